"""What a dataset's positions mean: orders that stay, orders that nobody knows, and frames' own names."""

import numpy as np
import pandas as pd
import pytest

import whence

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
linear_model = pytest.importorskip("sklearn.linear_model")

N, D = 48, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
Y = RNG.integers(0, 3, N)
SAMPLES = tf.data.Dataset.from_tensor_slices((X, Y))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((D,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return whence.InfluenceModel(net, loss_function=loss)


def lje_of(model, train, **options):
    return whence.RepresenterPointLJE(model, train, whence.ExactIHVPFactory(), progress=False, **options)


def features_of(index):
    return index.gather("features", np.arange(index.n_samples))[:, :D]


def without_order(dataset):
    options = tf.data.Options()
    options.deterministic = False
    return dataset.with_options(options)


def in_any_order():
    for row in np.random.default_rng().permutation(N):
        yield X[row], Y[row]


SIGNATURE = tf.TensorSpec((D,), tf.float32), tf.TensorSpec((), tf.int64)

UNKNOWN = {
    "shuffle": lambda: SAMPLES.shuffle(10),
    "with a seed": lambda: SAMPLES.shuffle(10, seed=1),
    "before a cache": lambda: SAMPLES.shuffle(10).cache(),
    "in a part": lambda: SAMPLES.take(4).concatenate(SAMPLES.skip(4).shuffle(4)),
    "in what is mapped": lambda: tf.data.Dataset.range(1).flat_map(lambda _: SAMPLES.shuffle(9)),
    "a map in any order": lambda: SAMPLES.map(
        lambda x, y: (x, y), num_parallel_calls=2, deterministic=False
    ),
    "an interleave in any order": lambda: tf.data.Dataset.range(1).interleave(
        lambda _: SAMPLES, num_parallel_calls=2, deterministic=False
    ),
    "drawn from two": lambda: tf.data.Dataset.sample_from_datasets([SAMPLES.take(9), SAMPLES.skip(9)]),
    "options": lambda: without_order(SAMPLES),
    "a generator": lambda: tf.data.Dataset.from_generator(in_any_order, output_signature=SIGNATURE),
}


@pytest.mark.parametrize("made", UNKNOWN.values(), ids=UNKNOWN)
def test_positions_of_an_unknown_order_are_refused_and_nothing_else_is(model, made, tmp_path):
    train = made().batch(8)
    lje = lje_of(model, train)
    plain = lje_of(model, (X, Y))
    for ask in (
        lambda: lje.explain((X, Y), k=1),
        lambda: lje.suspects(k=1),
        lambda: lje.influences((X, Y)),
        lambda: lje.index.ids,
        lambda: plain.explain(train, k=1),
        lambda: plain.influences(train),
        lambda: lje_of(model, train, ids=range(N)),
    ):
        with pytest.raises(whence.WhenceError, match="order that stays"):
            ask()
    # The contract's methods give samples, not positions.
    values = dict(
        zip(
            map(bytes, X),
            np.concatenate([v for _, v in plain.compute_influence_values((X, Y))]),
            strict=True,
        )
    )
    for (x, _), found in lje.compute_influence_values(SAMPLES.batch(5)):
        np.testing.assert_allclose(found, [values[bytes(row)] for row in x.numpy()], rtol=1e-4)
    list(lje.compute_influence_vector(SAMPLES.batch(5), tmp_path / "vectors"))
    with pytest.raises(whence.WhenceError, match="order that stays"):
        whence.load_index(tmp_path / "vectors").suspects(k=1)


def test_an_index_on_disk_knows_that_its_positions_mean_nothing(model, tmp_path):
    model.index(SAMPLES.shuffle(9).batch(8), path=tmp_path / "index", progress=False)
    with pytest.raises(whence.WhenceError, match="order that stays"):
        whence.index.StoredIndex(tmp_path / "index").check_named()


KNOWN = {
    "plain": lambda: SAMPLES,
    "mapped": lambda: SAMPLES.map(lambda x, y: (x, y), num_parallel_calls=2).cache().prefetch(2),
    "interleaved": lambda: tf.data.Dataset.range(1).interleave(lambda _: SAMPLES, num_parallel_calls=2),
    "of batches": lambda: SAMPLES.batch(5).unbatch(),
    "zipped": lambda: tf.data.Dataset.zip((SAMPLES, SAMPLES)).map(lambda one, other: one),
    "a generator": lambda: tf.data.Dataset.from_generator(
        lambda: iter(zip(X, Y, strict=True)), output_signature=SIGNATURE
    ),
}


@pytest.mark.parametrize("made", KNOWN.values(), ids=KNOWN)
def test_positions_of_an_order_that_stays_are_the_ids(model, made):
    index = model.index(made().batch(8), progress=False)
    np.testing.assert_array_equal(features_of(index), X)
    np.testing.assert_array_equal(index.ids, np.arange(N))


def test_a_shuffle_that_stays_is_said_once(model):
    train = SAMPLES.shuffle(N, seed=4, reshuffle_each_iteration=False).batch(8)
    with pytest.warns(UserWarning, match="positions are those of the order that its shuffle"):
        index = model.index(train, progress=False)
    np.testing.assert_array_equal(features_of(index), np.concatenate([x for x, _ in train]))


def test_ids_come_with_samples_that_are_shuffled(model):
    names = np.asarray([f"image {row}" for row in range(N)])
    train = tf.data.Dataset.from_tensor_slices((X, Y, names)).shuffle(N).batch(8)
    named = whence.InfluenceModel(
        model.model,
        loss_function=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        batch=("x", "y", "id"),
    )
    expected = lje_of(model, (X, Y)).explain((X, Y), k=2)
    found = lje_of(named, train).explain((X, Y, names.tolist()), k=2)
    np.testing.assert_array_equal(found.ids, names[expected.ids])
    np.testing.assert_array_equal(found.sample_ids, names)


class Batches(keras.utils.PyDataset):
    def __init__(self, order=lambda: np.arange(N), noise=0.0, length=6):
        super().__init__()
        self.order, self.noise, self.length = order, noise, length

    def __len__(self):
        return self.length

    def __getitem__(self, number):
        if number >= 6:
            raise IndexError(number)
        if number == 0:
            self.rows = self.order()
        rows = self.rows[number * 8 : number * 8 + 8]
        return X[rows] + self.noise * np.random.default_rng().normal(size=(8, D)), Y[rows]


def test_batches_asked_for_by_number(model):
    np.testing.assert_array_equal(features_of(model.index(Batches(), progress=False)), X)
    shuffled = Batches(lambda: np.random.default_rng().permutation(N))
    told = Batches()
    told.shuffle = True
    for train, words in ((shuffled, "another order, in a second pass"), (told, "shuffle=True")):
        with pytest.raises(whence.WhenceError, match=words):
            lje_of(model, train).suspects(k=1)
    # What is drawn anew for the same samples leaves them where they are.
    assert lje_of(model, Batches(noise=0.1)).suspects(k=N).ids.size == N


@pytest.mark.parametrize("length", [9, None, float("inf"), -1])
def test_lengths_that_are_none(model, length):
    words = "9 batches, as its length says" if length == 9 else "a dataset that ends"
    with pytest.raises(whence.WhenceError, match=words):
        model.index(Batches(length=length), progress=False)


def test_a_dataset_that_says_its_length_as_keras_does(model):
    class Counted(keras.utils.PyDataset):
        num_batches = 6

        def __getitem__(self, number):
            return X[number * 8 : number * 8 + 8], Y[number * 8 : number * 8 + 8]

    class Endless(Counted):
        num_batches = None

    np.testing.assert_array_equal(features_of(model.index(Counted(), progress=False)), X)
    with pytest.raises(whence.WhenceError, match="a dataset that ends"):
        model.index(Endless(), progress=False)


def test_tensors_that_are_no_arrays_are_refused(model):
    ragged = tf.ragged.constant([[1.0] * (1 + row % 3) for row in range(N)])
    sparse = tf.sparse.from_dense(X)
    for inputs, words in ((ragged, "RaggedTensor"), (sparse, "SparseTensor")):
        with pytest.raises(whence.WhenceError, match=words):
            model.index(tf.data.Dataset.from_tensor_slices((inputs, Y)).batch(8), progress=False)
    with pytest.raises(whence.WhenceError, match="expected inputs, got None"):
        model.index((None, Y), progress=False)


# ---- frames --------------------------------------------------------------------------------------

INDICES = {
    "times": pd.date_range("2024", periods=N),
    "periods": pd.period_range("2020-01", periods=N, freq="D"),
    "levels": pd.MultiIndex.from_product([range(6), range(8)]),
    "floats": np.arange(N) / 2,
    "booleans": [True, False] * (N // 2),
    "equal names": [f"row {row // 2}" for row in range(N)],
    "of two kinds": ["a", *range(1, N)],
    "missing": ["a", None, *map(str, range(2, N))],
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_an_index_that_names_nothing_leaves_positions(index):
    frame = pd.DataFrame(X, columns=list("abc"), index=index)
    estimator = whence.InfluenceModel(linear_model.LogisticRegression().fit(frame, Y))
    with pytest.warns(UserWarning, match="their positions, from 0 on, are the ids"):
        lje = lje_of(estimator, (frame, Y))
    with pytest.warns(UserWarning, match="samples: the frame's"):
        found = lje.explain((frame, Y), k=2)
    expected = lje_of(estimator, (frame.set_axis(range(N)), Y)).explain((frame.set_axis(range(N)), Y), k=2)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.sample_ids, np.arange(N))


def test_a_table_is_not_asked_for_positions_by_an_index_of_floats():
    frame = pd.DataFrame(X, columns=list("abc"), index=np.arange(N) / 2)
    estimator = whence.InfluenceModel(linear_model.LogisticRegression().fit(frame, Y))
    with pytest.warns(UserWarning, match="positions"):
        found = lje_of(estimator, (frame, Y)).explain((frame, Y), k=1)
    shown = found.neighbours(frame, frame).frame
    for row in range(0, 2 * N, 3):
        _, _, _, place, _ = shown.index[row]
        np.testing.assert_array_equal(shown.iloc[row].astype(np.float32), X[int(place)])


@pytest.mark.parametrize("index", [[f"row {row}" for row in range(N)], np.arange(N)[::-1] * 3])
def test_an_index_of_names_names_the_samples(index):
    frame = pd.DataFrame(X, columns=list("abc"), index=index)
    estimator = whence.InfluenceModel(linear_model.LogisticRegression().fit(frame, Y))
    assert lje_of(estimator, (frame, Y)).index.ids.tolist() == list(index)


def test_a_label_of_none_is_told(model):
    labels = Y.astype(object)
    labels[3] = None
    estimator = whence.InfluenceModel(linear_model.LogisticRegression().fit(X, Y))
    with pytest.raises(whence.WhenceError, match="a class of each sample, got None"):
        estimator.index((X, labels), progress=False)
    with pytest.raises(whence.WhenceError, match="labels in batch 0"):
        model.index((X, labels), progress=False)
    with pytest.raises(whence.WhenceError, match="a list with None in it"):
        model.index([(X[:2], [1, None])], progress=False)
