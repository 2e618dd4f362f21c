"""An index on a file system of fsspec: in memory, and on an S3 server that several processes reach."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # making.py, also in importlib mode

import clusters
import making
from making import IDENTITY, batches, build

import whence
from whence.index import StoredIndex, Writer

upath = pytest.importorskip("upath")


@pytest.fixture
def address(request):
    """A new folder in memory, of this process."""
    name = f"memory://{request.node.name.translate(str.maketrans('[]/ ', '----'))}"
    yield f"{name}/index"
    upath.UPath(name).fs.store.clear()


def files(address):
    folder = upath.UPath(address)
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_the_bytes_are_those_of_a_local_index(address, tmp_path):
    build(tmp_path / "index", ids=range(400, 800))
    build(address, ids=range(400, 800))
    assert files(address) == making.contents(tmp_path / "index")


def test_it_is_read_as_a_local_one(address, tmp_path):
    there, here = build(address), build(tmp_path / "index")
    rows = np.asarray([399, 3, 57, 3])
    for name in ("features", "target", "weight", "fingerprint"):
        np.testing.assert_array_equal(there.gather(name, rows), here.gather(name, rows))
    for ours, theirs in zip(there, here, strict=True):
        np.testing.assert_array_equal(ours.phi, theirs.phi)
    assert there.order == here.order


def test_it_goes_on_where_it_stopped(address):
    computed = []
    writer = Writer(address)
    writer.begin(IDENTITY)
    for number, (phi, target, weight, fingerprint) in enumerate(batches()):
        if number == 30:
            break
        writer.append(phi, target, weight, fingerprint)
    writer.close()
    index = build(address, computed=computed)
    assert sum(computed) < 220
    assert index.n_samples == 400


def test_damage_is_seen_when_it_is_read(address):
    build(address)
    index = StoredIndex(address)
    file = upath.UPath(address) / "features-00003.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(whence.WhenceError, match=r"features-00003\.npy.*another content"):
        _ = index.shards[3].phi
    with pytest.raises(whence.WhenceError, match=r"a damaged one: features-00003\.npy"):
        StoredIndex(address)


def test_a_label_is_read_without_the_features(address):
    build(address)
    index = StoredIndex(address, verify=False)
    (upath.UPath(address) / "features-00002.npy").unlink()
    assert index.gather("target", np.asarray([41, 59])).shape == (2,)


def test_an_unknown_address_is_refused():
    with pytest.raises(whence.WhenceError, match=r"an address of a file system that fsspec knows"):
        Writer("nowhere://folder/index")


def test_a_file_address_is_a_local_path(tmp_path):
    index = build(f"file://{tmp_path}/index")
    assert isinstance(index.folder, Path)
    assert StoredIndex(tmp_path / "index").n_samples == 400


D = 5
X, Y = clusters.samples(d=D)


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of an S3 server here, by environment, so that workers find it too."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("training")
    yield "s3://training"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of botocore, by its version
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_workers_share_an_index_in_an_object_store(bucket, tmp_path):
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = whence.InfluenceModel(linear_model.LogisticRegression(C=0.05).fit(X, Y))
    solver = whence.ExactIHVPFactory()
    here = whence.RepresenterPointLJE(model, (X, Y), solver, index_path=tmp_path / "index", progress=False)
    with clusters.small_parts(D + 1), clusters.cluster(2) as client:
        there = whence.RepresenterPointLJE(
            model, (X, Y), solver, index_path=f"{bucket}/index", engine=client, progress=False
        )
        found, expected = there.explain((X[:9], Y[:9])), here.explain((X[:9], Y[:9]))
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-12)
        again = whence.load_index(f"{bucket}/index", engine=client, progress=False)
        np.testing.assert_array_equal(again.explain(X[:9]).ids, expected.ids)
