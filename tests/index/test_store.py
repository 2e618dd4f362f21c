"""The index on disk: what it holds, resumed after interruptions, and what it says of damage."""

import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import making
import numpy as np
import pytest
import scipy.sparse
from making import BATCH, IDENTITY, SHARD_ROWS, N, batches, build, contents
from refusing import refused

from whence.arrays.base import as_numpy
from whence.arrays.sparse import SparseRows
from whence.index import Index, StoredIndex, Writer, holds_index, write_index
from whence.index.files import Lock

#: A file of every shard that holds its features, or a part of them.
FEATURES = {"dense": "features", "sparse": "features-indices"}


@pytest.fixture(scope="module", autouse=True, params=["dense", "sparse"])
def layout(request):
    """Every test runs on dense and on sparse features."""
    making.LAYOUT = request.param
    yield request.param
    making.LAYOUT = "dense"


@pytest.fixture(scope="module")
def reference(layout, tmp_path_factory):
    """An index that was built without interruption."""
    before = making.small_shards()
    folder = tmp_path_factory.mktemp("reference") / "index"
    build(folder)
    making.shard.SHARD_BYTES = before
    return folder


@pytest.fixture
def folder(reference, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(reference, tmp_path / "index"))


def in_memory(ids=None):
    index = Index()
    index.begin(IDENTITY)
    for batch in batches():
        index.append(*batch)
    return index.finish(ids)


# ---- what it holds ------------------------------------------------------------------------------


def test_what_is_stored_is_what_was_given(reference):
    stored, memory = StoredIndex(reference), in_memory()
    assert stored.n_samples == memory.n_samples == N
    assert len(stored.shards) == len(memory.shards) == N // SHARD_ROWS
    assert stored.order == memory.order
    for number in range(0, len(memory.shards), 7):
        ours, theirs = stored.shards[number], memory.shards[number]
        for name in ("features", "target", "weight", "fingerprint"):
            assert np.array_equal(as_numpy(getattr(ours, name)), as_numpy(getattr(theirs, name)))
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype
    assert stored.shards[-1].n_samples == SHARD_ROWS


def mapped(array):
    """Whether an array is a view of a file."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array is not None


def test_features_are_mapped_and_cannot_be_written_to(reference, layout):
    features = StoredIndex(reference).shards[3].features
    for array in (features,) if layout == "dense" else (features.matrix.data, features.matrix.indices):
        assert mapped(array)
        assert not array.flags.writeable
    assert isinstance(features, SparseRows) == (layout == "sparse")


def test_shards_are_plain_files_that_numpy_reads(reference, layout):
    every = np.concatenate([np.asarray(batch[0]) for batch in batches()])
    if layout == "dense":
        features = np.load(reference / "features-00003.npy")
    else:
        parts = [
            np.load(reference / f"features-{part}-00003.npy") for part in ("data", "indices", "indptr")
        ]
        features = scipy.sparse.csr_array(tuple(parts), shape=(SHARD_ROWS, making.D)).toarray()
    assert np.array_equal(features, every[3 * SHARD_ROWS : 4 * SHARD_ROWS])


def test_sparse_features_take_the_room_of_their_entries(reference, layout):
    stamps = StoredIndex(reference).manifest["shards"][2]["files"]
    features = sum(stamp["bytes"] for name, stamp in stamps.items() if name.startswith("features"))
    entries = np.count_nonzero(StoredIndex(reference).shards[2].features)
    headers = 128 * sum(name.startswith("features") for name in stamps)
    expected = 4 * SHARD_ROWS * making.D if layout == "dense" else 8 * entries + 4 * (SHARD_ROWS + 1)
    assert features == headers + expected


def test_the_manifest_says_what_it_is_of(reference, layout):
    manifest = json.loads((reference / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["library_version"]
    assert manifest["identity"] == IDENTITY
    assert manifest["feature_dtype"] == "float32"
    assert (manifest["n_samples"], manifest["n_features"]) == (N, making.D)
    assert len(manifest["order"]) == 32
    assert manifest["ids"] is None
    stamp = manifest["shards"][0]["files"][FEATURES[layout]]
    assert stamp["bytes"] == (reference / stamp["file"]).stat().st_size


def test_rows_are_gathered_in_any_order(reference, rng):
    stored, memory = StoredIndex(reference), in_memory()
    rows = rng.integers(0, N, 50)
    for name in ("features", "target", "weight", "fingerprint"):
        ours, theirs = getattr(stored.take(rows), name), getattr(memory.take(rows), name)
        assert np.array_equal(as_numpy(ours), as_numpy(theirs))
    assert np.array_equal(stored.rows_of(stored.take(rows).fingerprint), rows)
    assert stored.rows_of(np.asarray([1], dtype=np.uint64)) == -1


@pytest.mark.parametrize("batch", [1, SHARD_ROWS, 333, N])
def test_the_files_do_not_depend_on_the_batch_size(batch, reference, tmp_path):
    build(tmp_path / "index", batches(batch=batch))
    assert contents(tmp_path / "index") == contents(reference)


def test_the_files_of_a_saved_index_are_those_of_a_built_one(reference, tmp_path):
    write_index(in_memory(), tmp_path / "index")
    assert contents(tmp_path / "index") == contents(reference)


def test_half_precision_is_for_storing_only(layout, tmp_path):
    stored = build(tmp_path / "index", feature_dtype="float16")
    name = "features-00000.npy" if layout == "dense" else "features-data-00000.npy"
    assert np.load(tmp_path / "index" / name).dtype == np.float16
    assert stored.shards[0].phi.dtype == np.float32
    every = np.concatenate([as_numpy(batch[0]) for batch in batches()])
    again = np.concatenate([as_numpy(shard.phi) for shard in stored.shards])
    assert np.array_equal(again, every.astype(np.float16))
    computed = []
    build(tmp_path / "index", feature_dtype="float16", computed=computed)
    assert computed == [BATCH]


def test_features_that_half_precision_cannot_hold_are_refused(tmp_path):
    def large():
        for phi, *rest in batches():
            yield phi * 1e5, *rest

    refused(lambda: build(tmp_path / "index", large(), feature_dtype="float16"), "65504", "float32")
    refused(lambda: Index("int8"), "feature_dtype", "float16")


def test_ids_are_kept(tmp_path):
    names = [f"sample {i}" for i in range(N)]
    stored = build(tmp_path / "index", ids=names)
    assert stored.ids.tolist() == names
    assert stored.names(np.asarray([[3, 1]])).tolist() == [["sample 3", "sample 1"]]
    assert StoredIndex(tmp_path / "index").ids.tolist() == names
    assert build(tmp_path / "index").ids.tolist() == names  # taken from there
    assert build(tmp_path / "index", ids=names).ids.tolist() == names
    refused(lambda: build(tmp_path / "index", ids=range(N)), "ids", "other ids")


@pytest.mark.parametrize(
    ("ids", "part"),
    [
        ([7] * N, "7 twice"),
        (["a"] * (N - 1) + ["b"], "'a'"),
        (range(N - 1), f"one id for each of the {N}"),
        (np.linspace(0, 1, N), "strings or integers"),
        ([*range(N - 1), "a"], "strings or integers"),
        ([None] * N, "strings or integers"),
    ],
)
def test_ids_that_name_nothing_are_refused(ids, part, folder, tmp_path):
    refused(lambda: in_memory(ids), "ids", part)
    refused(lambda: build(tmp_path / "new", ids=ids), "ids", part)


# ---- going on -----------------------------------------------------------------------------------


def test_nothing_is_computed_twice(folder):
    before, computed = contents(folder), []
    stamps = {file: file.stat().st_mtime_ns for file in folder.rglob("*.npy")}
    build(folder, computed=computed)
    assert computed == [BATCH]  # the first batch shows whether the features are the model's
    assert contents(folder) == before
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())


@pytest.mark.parametrize("n_done", [0, 3, 64, 390])
def test_an_interrupted_run_goes_on(n_done, reference, tmp_path):
    class Interrupted(Exception):
        pass

    def some():
        done = 0
        for batch in batches():
            if done >= n_done:
                raise Interrupted
            yield batch
            done += len(batch[0])

    with pytest.raises(Interrupted):
        build(tmp_path / "index", some())
    assert not holds_index(tmp_path / "index")
    computed = []
    build(tmp_path / "index", computed=computed)
    assert contents(tmp_path / "index") == contents(reference)
    stored = n_done // BATCH * BATCH // SHARD_ROWS * SHARD_ROWS
    assert sum(computed) <= N - stored + 2 * BATCH


def kill_once(folder, delay):
    """Build in another process and kill it after a while; return whether it was still building."""
    command = [sys.executable, making.__file__, str(folder), making.LAYOUT]
    source = str(Path(sys.modules["whence"].__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "building\n"
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()  # SIGKILL: nothing is cleaned up
        return process.wait() != 0


def check_kills(n_kills, reference, tmp_path, rng):
    started = making.shard.SHARD_BYTES
    assert started == SHARD_ROWS * making.D * 4
    n_killed = 0
    for number in range(n_kills):
        folder = tmp_path / f"index {number}"
        n_killed += kill_once(folder, rng.uniform(0.0, 0.3))
        if folder.exists() and not holds_index(folder) and (folder / "begun.json").exists():
            refused(lambda folder=folder: StoredIndex(folder), "not complete", "goes on where it stopped")
        computed = []
        build(folder, computed=computed)
        assert contents(folder) == contents(reference)
        shutil.rmtree(folder)
    return n_killed


def test_a_killed_run_goes_on_to_the_same_bytes(reference, tmp_path, rng):
    check_kills(2, reference, tmp_path, rng)


@pytest.mark.slow
def test_many_killed_runs_go_on_to_the_same_bytes(reference, layout, tmp_path, rng):
    n_kills = 30 if layout == "dense" else 10
    assert check_kills(n_kills, reference, tmp_path, rng) >= n_kills // 3


# ---- two at once --------------------------------------------------------------------------------


def test_a_second_builder_is_told_who_holds_the_folder(tmp_path):
    first = Writer(tmp_path / "index")
    message = refused(lambda: Writer(tmp_path / "index"), "no other process", "Wait until it is done")
    assert str(os.getpid()) in message
    first.close()
    build(tmp_path / "index")


def test_the_lock_ends_with_its_process(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from whence.index.files import Lock; "
        "Lock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    )
    source = str(Path(sys.modules["whence"].__file__).parents[1])
    command = [sys.executable, "-c", code.replace("Lock(Path", "l = Lock(Path"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": source}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "locked\n"
        message = refused(lambda: Lock(tmp_path), "no other process")
        assert str(process.pid) in message
        process.kill()
    with Lock(tmp_path):
        pass


def test_a_complete_index_is_read_while_another_process_builds(folder):
    with Lock(folder):
        assert build(folder).n_samples == N
        assert StoredIndex(folder).n_samples == N


# ---- another model, loss or training set --------------------------------------------------------


@pytest.mark.parametrize("key", IDENTITY)
def test_another_model_or_loss_is_refused(key, folder):
    before = contents(folder)
    other = IDENTITY | {key: "other"}
    refused(lambda: build(folder, identity=other), f"{key} 'other'", f"{key} {IDENTITY[key]!r}")
    refused(lambda: StoredIndex(folder).check(other), f"{key} 'other'")
    assert contents(folder) == before


def test_features_of_other_weights_before_the_layer_are_refused(folder):
    before = contents(folder)

    def other():
        for phi, *rest in batches():
            yield 1.1 * phi, *rest

    refused(lambda: build(folder, other()), "features that differ", "before the layer")
    assert contents(folder) == before


def test_another_order_is_refused(folder, rng):
    before = contents(folder)
    shuffled = rng.permutation(N)
    refused(lambda: build(folder, batches(order=shuffled)), "in another order, from sample 0", "shuffle")
    late = np.arange(N)
    late[[300, 350]] = late[[350, 300]]
    refused(lambda: build(folder, batches(order=late)), "in another order, from sample 300")
    refused(lambda: build(folder, batches(seed=1)), "other samples, from sample 0")
    refused(lambda: build(folder, batches(n=N - 1)), f"{N} samples, where the training set has {N - 1}")
    more = [*batches(), *batches(n=3, seed=2)]
    refused(lambda: build(folder, more), f"{N} samples, where the training set")
    assert contents(folder) == before


def test_another_feature_dtype_is_refused(folder):
    refused(lambda: build(folder, feature_dtype="float16"), "feature_dtype 'float16'", "'float32'")


# ---- damage -------------------------------------------------------------------------------------


def truncate(file):
    file.write_bytes(file.read_bytes()[:-5])


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "part"), [(truncate, "bytes instead of"), (flip, "CRC-32"), (Path.unlink, "missing")]
)
@pytest.mark.parametrize("name", ["features-00004.npy", "fingerprint-00019.npy"])
def test_a_damaged_shard_is_found_and_made_again(harm, part, name, layout, folder):
    name = name.replace("features", FEATURES[layout])
    before = contents(folder)
    harm(folder / name)
    refused(lambda: StoredIndex(folder), name, part, "index_path")
    computed = []
    with pytest.warns(UserWarning, match="is computed again"):
        build(folder, computed=computed)
    assert sum(computed) <= SHARD_ROWS + 3 * BATCH
    assert contents(folder) == before


def test_lengths_are_compared_even_unverified(layout, folder):
    name = f"{FEATURES[layout]}-00004.npy"
    flip(folder / "fingerprint-00004.npy")
    assert StoredIndex(folder, verify=False).n_samples == N
    truncate(folder / name)
    refused(lambda: StoredIndex(folder, verify=False), name)


def test_a_missing_manifest_is_made_again_from_the_shards(folder):
    before = contents(folder)
    (folder / "manifest.json").unlink()
    refused(lambda: StoredIndex(folder), "not complete", "goes on where it stopped")
    computed = []
    build(folder, computed=computed)
    assert computed == [BATCH]
    assert contents(folder) == before


def test_a_broken_manifest_says_how_to_mend_it(folder):
    before = contents(folder)
    truncate(folder / "manifest.json")
    refused(lambda: StoredIndex(folder), "JSON in manifest.json", "Delete manifest.json", "are kept")
    refused(lambda: build(folder), "JSON in manifest.json", "Delete manifest.json", "are kept")
    (folder / "manifest.json").unlink()
    build(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["manifest.json", "begun.json"])
def test_a_newer_format_is_refused_and_left_alone(name, folder):
    content = json.loads((folder / name).read_text())
    content |= {"format_version": 3, "library_version": "9.9"}
    (folder / name).write_text(json.dumps(content))
    before = contents(folder)
    refused(lambda: build(folder), "format version 1", "version 3", "whence 9.9")
    assert contents(folder) == before


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    refused(lambda: Writer(tmp_path), "other files", "nothing was written")
    refused(lambda: Writer(tmp_path / "thesis.txt"), "a file", "nothing was written")
    refused(lambda: StoredIndex(tmp_path), "no manifest.json")
    (tmp_path / "manifest.json").write_text("{}")
    refused(lambda: StoredIndex(tmp_path), "another file of that name")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


# ---- disks --------------------------------------------------------------------------------------


def test_a_full_disk_keeps_what_is_complete(disk, reference):
    folder = disk.folder / "index"
    refused(lambda: build(folder), "a full disk", "run the same again")
    kept = contents(folder)
    assert kept
    assert not [name for name in kept if name.endswith(".part")]
    computed = []
    disk.grow()
    build(folder, computed=computed)
    assert sum(computed) < N
    assert contents(folder) == contents(reference)


def test_a_folder_that_cannot_be_written_to(layout, disk):
    disk.grow()
    folder = disk.folder / "index"
    build(folder)
    name = f"{FEATURES[layout]}-00004.npy"
    flip(folder / name)
    disk.make_read_only()
    refused(lambda: build(folder), "can be written to", "Change its permissions")
    refused(lambda: StoredIndex(folder), name)


def test_a_complete_index_is_read_from_a_read_only_folder(disk):
    disk.grow()
    build(disk.folder / "index")
    disk.make_read_only()
    assert build(disk.folder / "index").n_samples == N
    assert StoredIndex(disk.folder / "index").n_samples == N
