"""Every kind of dataset: seen as the same batches, and results given back as the same kind."""

import numpy as np
import pytest

import whence
from whence.arrays.hashing import hashed_rows
from whence.data.base import BatchList, fingerprints, leaves, map_leaves, open_dataset

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

N, D, SIZE = 10, 3, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
Y = RNG.integers(0, 3, N)
WEIGHT = RNG.uniform(size=N).astype(np.float32)


def cut(*arrays):
    """A list of batches, the last one ragged."""
    return [tuple(a[i : i + SIZE] for a in arrays) for i in range(0, len(arrays[0]), SIZE)]


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def as_tf(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(SIZE)


KINDS = {
    "tf.data": as_tf,
    "PyDataset": lambda *arrays: Batches(cut(*arrays)),
    "list of batches": cut,
    "lists in a list": lambda *arrays: [list(batch) for batch in cut(*arrays)],
    "arrays": lambda *arrays: arrays,
    "tensors": lambda *arrays: tuple(tf.constant(a) for a in arrays),
    "list of tensors": lambda *arrays: list(as_tf(*arrays)),
}


@pytest.fixture(params=KINDS, ids=str)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((D,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return whence.InfluenceModel(net, loss_function=loss)


def joined(parts):
    return np.concatenate([np.asarray(part) for part in parts])


# ---- in -----------------------------------------------------------------------------------------


def test_batches_hold_inputs_labels_and_weights(kind):
    for arrays in ((X, Y), (X, Y, WEIGHT)):
        dataset = open_dataset(kind(*arrays))
        for _ in range(2):  # can be iterated again
            batches = list(dataset)
            assert [batch.number for batch in batches] == list(range(len(batches)))
            np.testing.assert_array_equal(joined(b.inputs for b in batches), X)
            np.testing.assert_array_equal(joined(b.labels for b in batches), Y)
            if len(arrays) == 3:
                np.testing.assert_array_equal(joined(b.weight for b in batches), WEIGHT)
            else:
                assert all(batch.weight is None for batch in batches)
            assert sum(batch.n_samples for batch in batches) == N
        assert dataset.n_batches == len(batches)


def test_every_kind_gives_the_same_answers(kind, model):
    plain = whence.RepresenterPointLJE(model, (X, Y, WEIGHT), whence.ExactIHVPFactory())
    given = kind(X, Y, WEIGHT)
    lje = whence.RepresenterPointLJE(model, given, whence.ExactIHVPFactory())
    np.testing.assert_allclose(lje.theta_dagger, plain.theta_dagger, rtol=1e-6)
    expected, found = plain.explain((X, Y), k=2), lje.explain(kind(X, Y), k=2)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(lje.suspects(given, k=3).ids, plain.suspects((X, Y, WEIGHT), k=3).ids)


@pytest.mark.parametrize("form", ["dict", "tuple", "nested"])
def test_inputs_may_be_trees_of_arrays(form):
    second = RNG.integers(0, 9, (N, 2))
    x = {"dict": {"b": X, "a": second}, "tuple": (X, second), "nested": {"b": (X, second), "a": X}}[form]
    rows = [slice(i, i + SIZE) for i in range(0, N, SIZE)]
    for dataset in (
        tf.data.Dataset.from_tensor_slices((x, Y)).batch(SIZE),
        (x, Y),
        [(map_leaves(lambda leaf, r=r: leaf[r], x), Y[r]) for r in rows],
    ):
        batches = list(open_dataset(dataset))
        columns = zip(*(leaves(batch.inputs) for batch in batches), strict=True)
        for mine, theirs in zip(columns, leaves(x), strict=True):
            np.testing.assert_array_equal(joined(mine), theirs)
        assert all(type(batch.inputs) is type(x) for batch in batches)


def test_a_model_of_several_inputs_end_to_end():
    a, b = keras.Input((D,), name="a"), keras.Input((2,), name="b")
    net = keras.Model({"a": a, "b": b}, keras.layers.Dense(3)(keras.layers.Concatenate()([a, b])))
    wrapped = whence.InfluenceModel(
        net, loss_function=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x = {"a": X, "b": -X[:, :2]}
    train = tf.data.Dataset.from_tensor_slices((x, Y)).batch(SIZE)
    lje = whence.RepresenterPointLJE(wrapped, train, whence.ExactIHVPFactory())
    for samples, scores, found in lje.top_k(train, train, k=2):
        assert set(samples[0]) == set(found) == {"a", "b"}
        assert found["b"].shape == (*scores.shape, 2)
        np.testing.assert_array_equal(found["b"], -found["a"][..., :2])  # rows stay together
    best, _ = lje.compute_top_k_from_training_dataset(train, 3)
    np.testing.assert_array_equal(best["b"], -best["a"][:, :2])
    for (inputs, _), (phi, _) in lje.compute_influence_vector(train):
        np.testing.assert_array_equal(phi[:, :D], inputs["a"])


def test_samples_may_hold_texts_next_to_numbers():
    names = np.asarray([f"sample {i % 7}" for i in range(N)])  # some occur twice
    batches = list(open_dataset(as_tf({"x": np.zeros((N, 1)), "name": names}, np.zeros(N))))
    prints = np.concatenate([fingerprints(batch) for batch in batches])
    np.testing.assert_array_equal(prints[:3], prints[7:])
    assert len(set(prints)) == 7


def test_fingerprints_know_a_sample_in_any_batch_and_see_every_bit():
    whole = np.concatenate([fingerprints(batch) for batch in open_dataset((X, Y, WEIGHT))])
    parts = np.concatenate([fingerprints(batch) for batch in open_dataset(cut(X, Y, WEIGHT))])
    np.testing.assert_array_equal(whole, parts)
    assert len(set(whole)) == N
    tensors = np.concatenate([fingerprints(batch) for batch in open_dataset(as_tf(X, Y, WEIGHT))])
    np.testing.assert_array_equal(whole, tensors)
    for changed in (
        (np.nextafter(X, np.float32(9)), Y, WEIGHT),
        (X, (Y + 1) % 3, WEIGHT),
        (X, Y, np.nextafter(WEIGHT, np.float32(9))),
    ):
        (batch,) = open_dataset(changed)
        assert not np.isin(fingerprints(batch), whole).any()


def test_hashes_tell_rows_apart_that_are_much_alike():
    rng = np.random.default_rng(0)
    pixels = np.unique((rng.integers(0, 17, size=(40_000, 9)) / 16).astype(np.float32), axis=0)
    for rows in (
        pixels,
        np.arange(100_000)[:, None],
        np.eye(300, dtype=np.float32),
        np.tril(np.ones((300, 300), dtype=np.uint8)),
        np.stack([np.roll(np.arange(50, dtype=np.float32), i) for i in range(50)]),  # the same words, moved
    ):
        hashes = hashed_rows(np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1))
        assert len(np.unique(hashes)) == len(rows)
        bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
        assert np.abs(bits.mean(axis=0) - 0.5).max() < 2.5 / np.sqrt(len(rows))  # five deviations
    # What follows the last byte is part of neither: rows of another width are other rows.
    assert hashed_rows(np.zeros((1, 3), np.uint8)) != hashed_rows(np.zeros((1, 4), np.uint8))


# ---- out ----------------------------------------------------------------------------------------


def test_results_come_as_the_kind_that_went_in(kind, model):
    train = kind(X, Y)
    lje = whence.RepresenterPointLJE(model, train, whence.ExactIHVPFactory())
    values = lje.compute_influence_values(train)
    nested = lje.estimate_influence_values_in_batches(kind(X[:5], Y[:5]), train)
    found = lje.top_k(kind(X[:5], Y[:5]), train, k=2)
    if isinstance(train, tf.data.Dataset):
        assert all(isinstance(d, tf.data.Dataset) for d in (values, nested, found))
    else:  # batches that can be asked for by number, and iterated again
        assert all(isinstance(d, BatchList) for d in (values, nested, found))
        assert len(values) == len(list(values)) == len(open_dataset(train).native)
        np.testing.assert_array_equal(values[-1][1], list(values)[-1][1])
        assert [v.shape for _, v in values[:2]] == [v.shape for _, v in list(values)[:2]]
        with pytest.raises(IndexError):
            values[len(values)]
    np.testing.assert_array_equal(joined(batch[0] for batch, _ in values), X)
    for _ in range(2):
        assert joined(v for _, v in values).shape == (N,)
        shapes = [np.shape(v) for _, inner in nested for _, v in inner]
        assert sum(width for _, width in shapes) == N * len(list(nested))
        assert joined(v for _, v, _ in found).shape == (5, 2)
        assert joined(t for _, _, t in found).shape == (5, 2, D)


def test_the_training_set_and_the_evaluated_set_may_be_of_different_kinds(model):
    lje = whence.RepresenterPointLJE(model, (X, Y), whence.ExactIHVPFactory())
    expected = lje.top_k((X[:5], Y[:5]), (X, Y), k=2)
    for evaluated in (as_tf(X[:5], Y[:5]), cut(X, Y)[:1], Batches(cut(X, Y)[:1])):
        for train in (as_tf(X, Y), cut(X, Y), (X, Y)):
            found = lje.top_k(evaluated, train, k=2)
            values = joined(v for _, v, _ in found)
            np.testing.assert_allclose(values, expected[0][1][: len(values)], rtol=1e-4)


def test_a_message_numbers_the_batch_in_every_pass(model):
    lje = whence.RepresenterPointLJE(model, (X, Y), whence.ExactIHVPFactory())
    changed = X.copy()
    changed[SIZE:] = np.nan
    values = lje.compute_influence_values(as_tf(changed, Y))
    for _ in range(2):
        with pytest.raises(tf.errors.InvalidArgumentError, match="batch 1 of train_set"):
            list(values)
