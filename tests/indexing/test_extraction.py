"""Indexing in shares: what is read where, what cannot be read, and what is stored already."""

import warnings

import clusters
import numpy as np
import pytest

import whence
from whence.data.base import open_dataset
from whence.data.readers import ArraysReader, BatchReader, ShardedReader, is_small
from whence.engine.base import Serial

linear_model = pytest.importorskip("sklearn.linear_model")

D = 5
X, Y = clusters.samples(n=300, d=D)


@pytest.fixture
def model():
    return whence.InfluenceModel(linear_model.LogisticRegression(C=0.05).fit(X, Y))


@pytest.fixture(autouse=True)
def small_shards():
    with clusters.small_parts(D + 1):
        yield


def features(index):
    return np.concatenate([block.phi for block in index])[:, :-1]


class Corrupt:
    """Batches of 16 of which one cannot be read."""

    def __init__(self, bad=5):
        self.bad = bad

    def __len__(self):
        return -(-len(X) // 16)

    def __getitem__(self, number):
        if number == self.bad:
            raise OSError("image is truncated")
        return X[number * 16 : (number + 1) * 16], Y[number * 16 : (number + 1) * 16]


def with_nan(*rows):
    x = X.copy()
    x[list(rows), 2] = np.nan
    return x


def skipped(model, dataset, path, n_skipped):
    with pytest.warns(UserWarning, match=f"{n_skipped} of 300 samples were left out"):
        return model.index(dataset, path=path, on_error="skip", progress=False)


# ------------------------------------------------------------------------- what cannot be read


def test_a_sample_that_the_model_does_not_take_is_left_out(model, tmp_path):
    index = skipped(model, (with_nan(7, 123), Y), tmp_path / "index", 2)
    kept = np.delete(np.arange(300), [7, 123])
    np.testing.assert_array_equal(index.ids, kept)
    np.testing.assert_array_equal(features(index), X[kept])
    assert [entry["row"] for entry in index.skipped] == [7, 123]
    assert all("finite values" in entry["error"] for entry in index.skipped)


def test_what_is_left_out_keeps_its_name_free(model, tmp_path):
    names = [f"image {i}" for i in range(300)]
    with pytest.warns(UserWarning, match="left out"):
        index = model.index(
            (with_nan(7), Y), path=tmp_path / "index", on_error="skip", ids=names, progress=False
        )
    assert index.ids.tolist() == names[:7] + names[8:]


def test_a_batch_that_cannot_be_read_is_left_out(model, tmp_path):
    index = skipped(model, Corrupt(), tmp_path / "index", 16)
    np.testing.assert_array_equal(features(index), np.delete(X, np.arange(80, 96), axis=0))
    assert {entry["error"] for entry in index.skipped} == {"OSError: image is truncated"}


def test_an_index_without_some_samples_is_not_made_again(model, tmp_path):
    dataset = with_nan(7, 250), Y
    first = skipped(model, dataset, tmp_path / "index", 2)
    before = clusters.contents(tmp_path / "index")
    again = skipped(model, dataset, tmp_path / "index", 2)
    assert clusters.contents(tmp_path / "index") == before
    assert again.skipped == first.skipped


def test_what_was_left_out_is_tried_again(model, tmp_path):
    folder = tmp_path / "index"
    skipped(model, (with_nan(7, 250), Y), folder, 2)

    def method(x):
        return whence.RepresenterPointLJE(
            model, (x, Y), whence.ExactIHVPFactory(), index_path=folder, on_error="skip", progress=False
        )

    with pytest.warns(UserWarning, match="2 of 300"):
        method(with_nan(7, 250))  # with coefficients beside
    with pytest.warns(UserWarning, match="1 of 300"):
        lje = method(with_nan(250))
    np.testing.assert_array_equal(lje.index.ids, np.delete(np.arange(300), 250))
    assert [entry["row"] for entry in lje.index.skipped] == [250]
    whole = method(X)
    assert whole.index.skipped == []
    plain = whence.RepresenterPointLJE(model, (X, Y), whence.ExactIHVPFactory(), progress=False)
    np.testing.assert_array_equal(whole.influences((X[:3], Y[:3])), plain.influences((X[:3], Y[:3])))
    other = X.copy()
    other[8] += 1  # of the shard that is made again
    skipped(model, (with_nan(7), Y), tmp_path / "second", 1)
    with pytest.raises(whence.WhenceError, match="other samples, at sample"):
        model.index((other, Y), path=tmp_path / "second", on_error="skip", progress=False)


def test_a_batch_that_can_be_read_again_is(model, tmp_path):
    skipped(model, Corrupt(), tmp_path / "index", 16)
    mended = Corrupt()
    mended.bad = -1
    index = model.index(mended, path=tmp_path / "index", on_error="skip", progress=False)
    np.testing.assert_array_equal(features(index), X)


def test_other_samples_are_refused_all_the_same(model, tmp_path):
    skipped(model, (with_nan(7), Y), tmp_path / "index", 1)
    other = with_nan(7)
    other[200] += 1
    with pytest.raises(whence.WhenceError, match="other samples, at sample"):
        model.index((other, Y), path=tmp_path / "index", on_error="skip", progress=False)


def test_nothing_is_left_of_a_shard(model, tmp_path):
    with pytest.raises(whence.WhenceError, match="shard 3 of the index: expected at least one sample"):
        model.index(
            (with_nan(*range(100, 180)), Y), path=tmp_path / "index", on_error="skip", progress=False
        )


def test_an_explanation_names_what_is_left(model, tmp_path):
    with pytest.warns(UserWarning, match="left out"):
        lje = whence.RepresenterPointLJE(
            model,
            (with_nan(0), Y),
            whence.ExactIHVPFactory(),
            index_path=tmp_path / "index",
            on_error="skip",
            progress=False,
        )
    assert 0 not in lje.explain((X[:3], Y[:3]), k=299).ids
    assert lje.index.n_samples == 299


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error: expected 'raise' or 'skip', got 'ignore'"),
        ({"on_error": "skip"}, "index_path: expected a folder, since on_error='skip' records there"),
    ],
)
def test_bad_arguments(model, options, message):
    with pytest.raises(whence.WhenceError, match=message):
        model.index((X, Y), **options)


# --------------------------------------------------------------------------------- the readers


def pieces(reader):
    return [piece for unit in range(len(reader.starts) - 1) for piece in reader.read(unit)]


def whole(reader):
    found = pieces(reader)
    assert [piece.row for piece in found] == np.cumsum([0, *(p.n_samples for p in found)])[:-1].tolist()
    return np.concatenate([np.asarray(piece.element[0]) for piece in found])


def load(number):
    for start in range(number * 100, (number + 1) * 100, 30):
        rows = slice(start, min(start + 30, (number + 1) * 100))
        yield X[rows], Y[rows]


def datasets():
    yield (X, Y), ArraysReader
    yield [(X[i : i + 70], Y[i : i + 70]) for i in range(0, 300, 70)], BatchReader
    yield whence.Sharded(load, 3, counts=[100, 100, 100]), ShardedReader
    yield whence.Sharded(load, 3), ShardedReader


@pytest.mark.parametrize("number", range(4))
def test_a_reader_reads_what_the_dataset_holds(number):
    dataset, kind = list(datasets())[number]
    reader = open_dataset(dataset).reader(Serial())
    assert isinstance(reader, kind)
    assert reader.n_samples == 300
    np.testing.assert_array_equal(whole(reader), X)
    for start, stop in ((0, 40), (95, 105), (299, 300), (0, 300)):
        units = reader.units(start, stop)
        assert reader.starts[units.start] <= start
        assert reader.starts[units.stop] >= stop
        assert units.stop - units.start == 1 or reader.starts[units.stop - 1] < stop


def test_mapped_arrays_are_sent_by_their_names(tmp_path):
    np.save(tmp_path / "x.npy", np.tile(X, (2000, 1)))
    np.save(tmp_path / "y.npy", np.tile(Y, 2000))
    mapped = tuple(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "xy")
    pytest.importorskip("cloudpickle")
    assert is_small(open_dataset(mapped).reader(Serial()))
    assert not is_small(open_dataset(tuple(np.array(array) for array in mapped)).reader(Serial()))
    np.testing.assert_array_equal(whole(open_dataset(mapped).reader(Serial()))[:300], X)


def test_a_loader_reads_sample_by_sample():
    torch = pytest.importorskip("torch")

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 300

        def __getitem__(self, row):
            if row in (3, 40):
                raise OSError("image is truncated")
            return X[row], Y[row]

    reader = open_dataset(torch.utils.data.DataLoader(Images(), 32)).reader(Serial())
    found = pieces(reader)
    assert [(p.row, p.n_samples) for p in found if p.error is not None] == [(3, 1), (40, 1)]
    good = np.concatenate([np.asarray(p.element[0]) for p in found if p.error is None])
    np.testing.assert_array_equal(good, np.delete(X, [3, 40], axis=0))
    shuffled = open_dataset(torch.utils.data.DataLoader(Images(), 32, shuffle=True)).reader(Serial())
    again = np.concatenate([np.asarray(p.element[0]) for p in pieces(shuffled) if p.error is None])
    np.testing.assert_array_equal(again, good)  # in the order of the dataset all the same


def test_batches_of_other_sizes_are_refused():
    class Ragged(Corrupt):
        def __getitem__(self, number):
            x, y = super().__getitem__(number)
            return (x[:3], y[:3]) if number == 4 else (x, y)

    with pytest.raises(whence.WhenceError, match="batch 4 of dataset: expected 16 samples"):
        pieces(open_dataset(Ragged()).reader(Serial()))


def test_shards_of_other_sizes_are_refused():
    reader = open_dataset(whence.Sharded(load, 3, counts=[100, 90, 100])).reader(Serial())
    with pytest.raises(whence.WhenceError, match="shard 1 of dataset: expected 90 samples"):
        pieces(reader)


def test_a_sharded_training_set_is_one_like_any_other(model):
    shards = whence.Sharded(load, 3)
    here, there = (
        whence.RepresenterPointLJE(model, dataset, whence.ExactIHVPFactory(), progress=False)
        for dataset in ((X, Y), shards)
    )
    np.testing.assert_allclose(there.theta_dagger, here.theta_dagger, rtol=1e-9)
    values = np.concatenate([v for _, v in there.compute_influence_values(shards)])
    expected = np.concatenate([v for _, v in here.compute_influence_values((X, Y))])
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    ((_, values, samples),) = there.top_k([(X[:2], Y[:2])], shards, k=3)
    assert samples.shape == (2, 3, D)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 2), "load: expected a function"),
        ((load, 0), "n_shards: expected an integer >= 1"),
        ((load, 2, [1]), "counts: expected 2 positive integers"),
        ((load, 2, [1, 0]), "counts: expected 2 positive integers"),
    ],
)
def test_what_are_no_shards_is_refused(arguments, message):
    with pytest.raises(whence.WhenceError, match=message):
        whence.Sharded(*arguments)


# --------------------------------------------------------------------------------- on a cluster


@pytest.mark.slow
def test_workers_fill_an_index(model, tmp_path):
    pytest.importorskip("distributed")
    clusters.by_value(__name__)
    here = model.index((X, Y), path=tmp_path / "here", progress=False)
    with clusters.cluster(2, resources={"GPU": 1}) as client:
        engine = whence.Cluster(client, resources={"GPU": 1})
        for number, (dataset, _) in enumerate(datasets()):
            there = model.index(dataset, path=tmp_path / f"{number}", engine=engine, progress=False)
            assert clusters.contents(there.folder) == clusters.contents(here.folder)
        remade = whence.Cluster(client, model=lambda: linear_model.LogisticRegression(C=0.05).fit(X, Y))
        there = model.index((X, Y), path=tmp_path / "remade", engine=remade, progress=False)
        assert clusters.contents(there.folder) == clusters.contents(here.folder)
        other = whence.Cluster(client, model=lambda: linear_model.LogisticRegression(C=9.0).fit(X, Y))
        with pytest.raises(whence.WhenceError, match="workers that make the model that is explained"):
            model.index((X, Y), path=tmp_path / "other", engine=other, progress=False)
        with pytest.raises(whence.WhenceError, match=r"samples 80 to 95 .*batch 5 .*image is truncated"):
            model.index(Corrupt(), path=tmp_path / "corrupt", engine=client, progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            index = model.index(
                Corrupt(), path=tmp_path / "corrupt", engine=client, on_error="skip", progress=False
            )
        assert [entry["row"] for entry in index.skipped] == list(range(80, 96))
        with pytest.raises(whence.WhenceError, match=r"sample 7 of the training set \(batch 0 of dataset"):
            model.index((with_nan(7), Y), path=tmp_path / "nan", engine=client, progress=False)
        # A file that was harmed is made again by whoever comes to it.
        file = tmp_path / "0" / "features-00001.npy"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))
        again = model.index((X, Y), path=tmp_path / "0", engine=client, progress=False)
        np.testing.assert_array_equal(features(again), X)
