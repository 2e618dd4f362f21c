"""DataLoaders: whatever draws the samples, ids are positions in the loader's dataset."""

import time
import warnings

import clusters
import numpy as np
import pytest

import whence

torch = pytest.importorskip("torch")
Data = torch.utils.data

N, D = 53, 4
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 3
SAMPLES = Data.TensorDataset(X, Y)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return whence.InfluenceModel(torch.nn.Linear(D, 3), loss_function=torch.nn.CrossEntropyLoss())


class Epochs(Data.Sampler):
    """Another order each time, in batches of its own."""

    def __init__(self):
        self.n = 0

    def __iter__(self):
        self.n += 1
        order = torch.randperm(N, generator=torch.Generator().manual_seed(self.n)).tolist()
        yield from (order[i : i + 5] for i in range(0, N, 5))


class Endless(Data.Sampler):
    def __iter__(self):
        while True:
            yield from torch.randperm(N).tolist()


class Pairs(Data.Sampler):
    """What is no position."""

    def __iter__(self):
        return iter([(row, 0) for row in range(N)])


class Converting(Data.DataLoader):
    def __iter__(self):
        for x, y in super().__iter__():
            yield x.double(), y


class Remembering(Data.DataLoader):
    """A pass that its sampler has no say in any more."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.__dict__["pass_of_old"] = super().__iter__()

    def __iter__(self):
        return self.__dict__["pass_of_old"]


def loader(*, kind=Data.DataLoader, size=8, **options):
    return kind(SAMPLES, size, **options)


LOADERS = {
    "shuffle": lambda: loader(shuffle=True),
    "shuffle and drop_last": lambda: loader(shuffle=True, drop_last=True),
    "with replacement": lambda: loader(sampler=Data.RandomSampler(SAMPLES, replacement=True)),
    "some of all": lambda: loader(sampler=Data.RandomSampler(SAMPLES, num_samples=20)),
    "weighted": lambda: loader(sampler=Data.WeightedRandomSampler(torch.ones(N), N)),
    "a share of two": lambda: loader(sampler=Data.DistributedSampler(SAMPLES, num_replicas=2, rank=1)),
    "batch sampler": lambda: Data.DataLoader(SAMPLES, batch_sampler=Epochs()),
    "endless": lambda: loader(sampler=Endless()),
    "two workers": lambda: loader(shuffle=True, num_workers=2),
    "a pass of its own": lambda: loader(kind=Converting, shuffle=True),
    "asked for several": lambda: Data.DataLoader(
        SAMPLES, batch_size=None, sampler=Data.BatchSampler(Data.RandomSampler(SAMPLES), 8, False)
    ),
}


def features_of(index):
    return index.gather("features", np.arange(index.n_samples))[:, :D]


@pytest.mark.parametrize("made", LOADERS.values(), ids=LOADERS)
def test_ids_are_those_of_the_dataset(model, made, tmp_path):
    with pytest.warns(UserWarning, match="set aside"):
        index = model.index(made(), progress=False)
    np.testing.assert_array_equal(index.ids, np.arange(N))
    np.testing.assert_array_equal(features_of(index), X)
    with pytest.warns(UserWarning, match="set aside"):
        shared = model.index(made(), path=tmp_path / "i", engine=2, on_error="skip", progress=False)
    np.testing.assert_array_equal(features_of(shared), X)


def test_what_comes_in_order_is_passed_over_in_silence(model):
    for given in (
        SAMPLES,
        loader(),
        loader(sampler=range(N)),
        loader(sampler=Data.SequentialSampler(SAMPLES), num_workers=1),
    ):
        np.testing.assert_array_equal(features_of(model.index(given, progress=False)), X)


SUBSETS = {
    "indices": (lambda: loader(sampler=Data.SubsetRandomSampler([9, 5, 7, 30])), [5, 7, 9, 30]),
    "weights of zero": (
        lambda: loader(sampler=Data.WeightedRandomSampler((torch.arange(N) % 2).double(), N)),
        range(1, N, 2),
    ),
    "a list": (lambda: loader(sampler=[3, 1, 8]), [1, 3, 8]),
    "batches": (lambda: Data.DataLoader(SAMPLES, batch_sampler=[[3, 1], [2]]), [1, 2, 3]),
    "drop_last": (lambda: loader(drop_last=True), range(N - N % 8)),
}


@pytest.mark.parametrize(("made", "rows"), SUBSETS.values(), ids=SUBSETS)
def test_samples_that_are_never_drawn_are_no_training_samples(model, made, rows):
    rows = list(rows)
    said = r"drawn|draws|leaves out"
    with pytest.warns(UserWarning, match=said):
        index = model.index(made(), progress=False)
    np.testing.assert_array_equal(index.ids, rows)
    np.testing.assert_array_equal(features_of(index), X[rows])
    names = np.asarray([f"image {row}" for row in range(N)])  # in the order of the dataset
    with pytest.warns(UserWarning, match=said):
        assert model.index(made(), ids=names, progress=False).ids.tolist() == names[rows].tolist()
    with pytest.warns(UserWarning, match=said):
        explained = lje_of(model).explain(made(), k=1)
    np.testing.assert_array_equal(explained.sample_ids, rows)


def lje_of(model, train=SAMPLES, **options):
    return whence.RepresenterPointLJE(model, train, whence.ExactIHVPFactory(), progress=False, **options)


def test_a_new_user_passes_the_loader_that_the_model_was_trained_with():
    torch.manual_seed(1)
    labels = Y.clone()
    labels[::7] = (labels[::7] + 1) % 3
    data = Data.TensorDataset(X, labels)
    net = torch.nn.Sequential(torch.nn.Linear(D, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    loss = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    train = Data.DataLoader(data, 8, shuffle=True)
    for _ in range(20):
        for x, y in train:
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()
    names = [f"image {row}" for row in range(N)]
    wrapped = whence.InfluenceModel(net, loss_function=loss)
    with pytest.warns(UserWarning, match="order of the loader's RandomSampler is set aside"):
        lje = lje_of(wrapped, train, ids=names)
    plain = lje_of(wrapped, (X.numpy(), labels.numpy()))
    with pytest.warns(UserWarning, match="set aside"):
        found = lje.explain(Data.DataLoader(data, 5, shuffle=True), k=3)
    expected = plain.explain((X.numpy(), labels.numpy()), k=3)
    np.testing.assert_array_equal(found.ids, np.asarray(names)[expected.ids])
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-4, atol=1e-6)
    # A sample's features by its id, and the label that is said to be its own.
    for row, name in enumerate(found.ids[:, 0]):
        x, y = train.dataset[names.index(name)]
        inner = net[1](net[0](x)).detach().numpy()
        place = int(np.flatnonzero(lje.index.ids == name)[0])
        np.testing.assert_allclose(
            lje.index.gather("features", np.asarray([place]))[0, :8], inner, rtol=1e-5
        )
        assert found.training_labels[row, 0] == y
    suspects = lje.suspects(k=N)
    np.testing.assert_array_equal(suspects.labels, labels[[names.index(name) for name in suspects.ids]])


def test_that_an_order_is_set_aside_is_said_once(model):
    given = loader(shuffle=True)
    with pytest.warns(UserWarning, match="set aside"):
        model.index(given, progress=False)
    lje = lje_of(model, given)  # warnings are errors here
    whence.GradientDotProduct(model, given, progress=False)
    lje.suspects(k=3)
    list(lje.compute_influence_values(given))


def test_random_numbers_are_left_as_they_were(model):
    generator = torch.Generator().manual_seed(3)
    given = loader(shuffle=True, generator=generator)
    before, everywhere = generator.get_state(), torch.get_rng_state()
    with pytest.warns(UserWarning, match="set aside"):
        model.index(given, progress=False)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), everywhere)


def test_a_loader_whose_pass_goes_by_no_sampler_is_refused(model):
    with pytest.raises(whence.WhenceError, match="makes batches in a way of its own"):
        model.index(loader(kind=Remembering, shuffle=True), progress=False)


def test_a_sampler_of_other_things_than_positions_gives_no_ids(model):
    class ByPair(Data.Dataset):
        def __len__(self):
            return N

        def __getitem__(self, pair):
            return X[pair[0]], Y[pair[0]]

    train = Data.DataLoader(ByPair(), 8, sampler=Pairs())
    lje = lje_of(model, train)
    for ask in (lambda: lje.explain(SAMPLES, k=1), lambda: lje.suspects(k=1), lambda: lje.index.ids):
        with pytest.raises(whence.WhenceError, match="something else than numbers"):
            ask()
    with pytest.raises(whence.WhenceError, match="order that stays"):
        lje_of(model, train, ids=range(N))
    samples = torch.cat([found for _, _, found in lje.top_k(loader(), train, k=1)])
    assert samples.shape == (N, 1, D)  # which needs no names


def test_a_collate_fn_that_drops_samples_is_refused(model):
    def collate(samples):
        return Data.default_collate([sample for sample in samples if sample[1] != 2])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for options in ({"shuffle": True}, {}):
            with pytest.raises(whence.WhenceError, match="as many as the loader's collate_fn is given"):
                model.index(loader(collate_fn=collate, **options), progress=False)


class Stream(Data.IterableDataset):
    def __init__(self, shuffle=False):
        self.rng = np.random.default_rng(0) if shuffle else None

    def __iter__(self):
        order = np.arange(N) if self.rng is None else self.rng.permutation(N)
        return iter([(X[row], Y[row]) for row in order])


def test_streams_come_once_in_their_own_order_whatever_the_workers(model):
    np.testing.assert_array_equal(features_of(model.index(Data.DataLoader(Stream(), 8), progress=False)), X)
    with pytest.warns(UserWarning, match="2 workers are set aside"):
        index = model.index(Data.DataLoader(Stream(), 8, num_workers=2), progress=False)
    np.testing.assert_array_equal(features_of(index), X)


def test_streams_that_shuffle_have_no_positions(model):
    lje = lje_of(model, Data.DataLoader(Stream(shuffle=True), 8))
    with pytest.raises(whence.WhenceError, match="another order, in a second pass"):
        lje.suspects(k=1)
    with pytest.raises(whence.WhenceError, match="another order, in a second pass"):
        lje_of(model).explain(Data.DataLoader(Stream(shuffle=True), 8), k=1)


def test_datasets_of_whole_batches(model):
    batches = [(X[i : i + 10], Y[i : i + 10]) for i in range(0, N, 10)]
    with pytest.warns(UserWarning, match="set aside"):
        index = model.index(Data.DataLoader(batches, batch_size=None, shuffle=True), progress=False)
    np.testing.assert_array_equal(features_of(index), X)


def test_loaders_of_accelerate(model):
    accelerate = pytest.importorskip("accelerate.data_loader")
    for options in ({}, {"num_processes": 2, "process_index": 1}):
        prepared = accelerate.prepare_data_loader(loader(shuffle=True), **options)
        with pytest.warns(UserWarning, match="set aside"):
            index = model.index(prepared, progress=False)
        np.testing.assert_array_equal(features_of(index), X)


# ---- what the elements of a batch are ------------------------------------------------------------


class WithMore(Data.Dataset):
    def __init__(self, *more):
        self.more = more

    def __len__(self):
        return N

    def __getitem__(self, row):
        return (X[row], Y[row], *(part[row] for part in self.more))


NAMES = [f"image {3 * row}.png" for row in range(N)]
NUMBERS = torch.arange(N) * 10


def wrapped(batch=None):
    torch.manual_seed(0)
    net = torch.nn.Linear(D, 3)
    return whence.InfluenceModel(net, loss_function=torch.nn.CrossEntropyLoss(), batch=batch)


@pytest.mark.parametrize("names", [NAMES, NUMBERS], ids=["texts", "integers"])
def test_samples_bring_their_ids(names, tmp_path):
    data = WithMore(names)
    model = wrapped(("x", "y", "id"))
    plain = lje_of(wrapped())
    expected = plain.explain(SAMPLES, k=2)
    listed = np.asarray(names)
    for options in ({}, {"index_path": tmp_path / "i", "engine": 2, "on_error": "skip"}):
        with pytest.warns(UserWarning, match="set aside"):
            lje = lje_of(model, Data.DataLoader(data, 8, shuffle=True), **options)
        found = lje.explain(data, k=2)
        np.testing.assert_array_equal(found.ids, listed[expected.ids])
        np.testing.assert_array_equal(found.sample_ids, listed)
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)
    without = lje.explain((X.numpy(), Y.numpy()), k=2)  # samples need not bring any
    np.testing.assert_array_equal(without.sample_ids, np.arange(N))


def test_ids_stand_for_positions_where_there_are_none():
    class Named(Data.IterableDataset):
        def __iter__(self):
            return iter([(X[row], Y[row], NAMES[row]) for row in np.random.default_rng().permutation(N)])

    lje = lje_of(wrapped(("x", "y", "id")), Data.DataLoader(Named(), 8))
    expected = lje_of(wrapped()).suspects(k=N)
    assert dict(
        zip(lje.suspects(k=N).ids.tolist(), lje.suspects(k=N).scores.tolist(), strict=True)
    ) == pytest.approx(
        {NAMES[row]: score for row, score in zip(expected.ids, expected.scores, strict=True)}, rel=1e-4
    )


def test_weights_and_what_is_of_no_concern():
    weight = torch.rand(N) + 0.5
    plain = lje_of(wrapped(), (X.numpy(), Y.numpy(), weight.numpy()))
    found = lje_of(wrapped(("x", "y", None, "weight")), WithMore(NAMES, weight))
    np.testing.assert_allclose(
        found.explain(SAMPLES, k=2).values, plain.explain(SAMPLES, k=2).values, rtol=1e-5
    )


def test_dict_batches_say_which_key_is_what():
    rows = [{"input": X[i], "cls": Y[i], "file": NAMES[i], "note": "a text"} for i in range(N)]
    model = wrapped({"x": "input", "y": "cls", "id": "file"})
    found = lje_of(model, Data.DataLoader(rows, 8)).explain(SAMPLES, k=2)
    np.testing.assert_array_equal(found.ids, np.asarray(NAMES)[lje_of(wrapped()).explain(SAMPLES, k=2).ids])


def test_several_inputs_side_by_side():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(D, 3)

        def forward(self, a, b):
            return self.head(a + b)

    torch.manual_seed(0)
    model = whence.InfluenceModel(Two(), loss_function=torch.nn.CrossEntropyLoss(), batch=("x", "x", "y"))
    rows = [(X[i], X[i], Y[i]) for i in range(N)]
    np.testing.assert_array_equal(features_of(model.index(Data.DataLoader(rows, 8), progress=False)), 2 * X)


def test_a_third_element_is_no_weight_unless_it_is_said_to_be_one(model):
    for given in (WithMore(torch.arange(N)), [(X, Y, torch.arange(N))]):
        with pytest.raises(whence.WhenceError, match=r"batch=\('x', 'y', 'id'\)"):
            model.index(given, progress=False)
    weight = np.arange(1, N + 1.0)
    index = model.index((X.numpy(), Y.numpy(), weight), progress=False)  # of arrays it is
    np.testing.assert_array_equal(index.gather("weight", np.arange(N)), weight)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (("x", "y", "name"), "what the elements of a batch are"),
        (("x", "y", "y"), "Name each element once"),
        (("y", "id"), "an 'x' among the elements"),
        ("xy", "what the elements of a batch are"),
        ({"id": "a", None: "b"}, "keys of 'x', 'y', 'weight' and 'id'"),
    ],
)
def test_forms_of_batches_that_are_none(batch, words):
    with pytest.raises(whence.WhenceError, match=words):
        wrapped(batch)


def test_batches_of_another_form_than_was_said():
    with pytest.raises(whence.WhenceError, match="as many elements as"):
        lje_of(wrapped(("x", "y", "id", "weight")), WithMore(NAMES))
    with pytest.raises(whence.WhenceError, match="samples bring their ids"):
        lje_of(wrapped(("x", "y", "id")), WithMore(NAMES), ids=NAMES)
    with pytest.raises(whence.WhenceError, match="a text or an integer for each sample"):
        lje_of(wrapped(("x", "y", "id")), WithMore(torch.rand(N)))
    with pytest.raises(whence.WhenceError, match="distinct ids"):
        lje_of(wrapped(("x", "y", "id")), WithMore(["a"] * N))
    rows = [{"input": X[i], "labels": Y[i]} for i in range(N)]
    with pytest.raises(whence.WhenceError, match="a dict with the key"):
        lje_of(wrapped({"x": ["input", "other"]}), Data.DataLoader(rows, 8))
    with pytest.raises(whence.WhenceError, match="the keys that batch="):
        lje_of(wrapped({"id": "file"}), Data.DataLoader(rows, 8))


# ---- one reader at a time ------------------------------------------------------------------------


class OneReader(Data.Dataset):
    """Notices when two threads are in it at once."""

    def __init__(self):
        self.inside = self.met = 0

    def __len__(self):
        return N

    def __getitem__(self, row):
        self.inside += 1
        self.met += self.inside > 1
        time.sleep(1e-3)
        self.inside -= 1
        return X[row], Y[row]


def test_threads_read_one_after_another_unless_told_that_they_need_not(model, tmp_path):
    with clusters.small_parts(D + 1, rows=4):
        data = OneReader()
        engine = whence.Threads(3)
        model.index(
            Data.DataLoader(data, 4), path=tmp_path / "a", engine=engine, on_error="skip", progress=False
        )
        assert data.met == 0
        engine = whence.Threads(3, concurrent_reads=True)
        model.index(
            Data.DataLoader(data, 4), path=tmp_path / "b", engine=engine, on_error="skip", progress=False
        )
        assert data.met > 0
