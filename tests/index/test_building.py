"""Going on with an index: along sequences, from a manifest alone, and what is compared on the way."""

import json
import os

import making
import numpy as np
import pytest
from making import BATCH, IDENTITY, SHARD_ROWS, N, batches, build, contents
from refusing import refused

from whence.index import Index, StoredIndex, Writer, shuffle_buffer_sample
from whence.index.files import Lock
from whence.index.shard import Shard


@pytest.fixture
def folder(tmp_path):
    build(tmp_path / "index")
    return tmp_path / "index"


def test_a_complete_index_is_gone_on_with_by_its_manifest(folder):
    before, computed = contents(folder), []
    (folder / "begun.json").unlink()
    build(folder, computed=computed)
    assert computed == [BATCH]
    del before["begun.json"]
    assert contents(folder) == before
    refused(lambda: build(folder, identity=IDENTITY | {"loss": "other"}), "loss 'other'")


def test_labels_that_changed_under_the_same_fingerprints_are_refused(folder):
    other = [(phi, target + 1, weight, prints) for phi, target, weight, prints in batches()]
    refused(lambda: build(folder, other), "other labels of the same samples")


@pytest.mark.parametrize("n_features", [making.D - 1, making.D + 1])
def test_a_shard_recorded_with_another_width_is_made_again(n_features, folder):
    before = contents(folder)
    record = folder / "shard-00003.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"n_features": n_features}))
    (folder / "manifest.json").unlink()
    build(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("key", ["n_features", "n_samples"])
def test_a_manifest_that_its_shards_contradict_is_refused(key, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {key: manifest[key] + 1}))
    refused(lambda: StoredIndex(folder), f"shards of {N} samples in all, {{{making.D}}} features wide")


def test_folders_above_an_index_are_made(tmp_path):
    build(tmp_path / "some" / "where" / "index", batches(20))
    assert StoredIndex(tmp_path / "some" / "where" / "index").n_samples == 20


def test_opening_an_index_shows_no_bar(folder, capsys):
    pytest.importorskip("tqdm")
    StoredIndex(folder)
    assert not capsys.readouterr().err
    StoredIndex(folder, progress=True)
    assert "checking the index" in capsys.readouterr().err


def test_a_training_set_that_goes_on_says_from_where(tmp_path):
    build(tmp_path / "index", batches(N - 10))
    (tmp_path / "index" / "manifest.json").unlink()
    refused(lambda: build(tmp_path / "index", batches(batch=SHARD_ROWS)), f"one of {N - 10} samples, where")


def test_features_of_another_width_are_refused(folder):
    narrow = [(phi[:, 1:], *rest) for phi, *rest in batches()]
    refused(lambda: build(folder, narrow), f"index with d {making.D - 1}", f"one with d {making.D}")


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_features_are_compared_by_their_size(size, tmp_path):
    def scaled(factor):
        return [(size * factor * phi, *rest) for phi, *rest in batches()]

    build(tmp_path / "index", scaled(1.0))
    before = contents(tmp_path / "index")
    build(tmp_path / "index", scaled(1.005))  # another device
    assert contents(tmp_path / "index") == before
    refused(lambda: build(tmp_path / "index", scaled(1.03)), "features that differ by 0.03 of the largest")


def test_a_lock_names_its_holder_and_nobody_when_it_is_given_up(tmp_path):
    (tmp_path / "lock").write_text("1234567890123")  # of a process that was killed
    with Lock(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())
    assert (tmp_path / "lock").read_bytes() == b""


@pytest.mark.parametrize("verify", [True, False])
def test_ids_that_were_harmed_are_found(verify, tmp_path):
    build(tmp_path / "index", ids=np.arange(N) + 7)
    file = tmp_path / "index" / "ids.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    if verify:
        refused(lambda: StoredIndex(tmp_path / "index"), "ids.npy")
    else:  # as fast as it can be opened: by lengths alone
        assert StoredIndex(tmp_path / "index", verify=False).n_samples == N


def test_ids_may_be_objects_if_all_are_texts(tmp_path):
    names = np.asarray([f"sample {i}" for i in range(N)], dtype=object)  # as pandas gives them
    assert build(tmp_path / "index", ids=names).ids[7] == "sample 7"
    names[3] = 3
    refused(lambda: build(tmp_path / "other", ids=names), "ids: expected strings or integers")


def test_the_first_of_ids_that_occur_twice_is_named(tmp_path):
    ids = [str(i) for i in range(N)]
    ids[5], ids[7] = ids[50], ids[300]
    refused(lambda: build(tmp_path / "index", ids=ids), f"{min(ids[5], ids[7])!r} twice")


@pytest.mark.parametrize("buffer_size", [1, 3, 12, 100])
def test_a_shuffle_buffer_hands_out_every_row_once(buffer_size, rng):
    assert np.array_equal(shuffle_buffer_sample(12, 12, buffer_size, rng), np.arange(12))
    some = shuffle_buffer_sample(12, 5, buffer_size, rng)
    assert np.unique(some).size == 5
    assert 0 <= some.min() <= some.max() < min(12, 5 + buffer_size)


# ---- along a sequence ---------------------------------------------------------------------------

LENGTHS = (4, 6, 3, 5)


def sequences(weights=True):
    """Batches of seven sequences, each batch of another length; of every other one there are weights."""
    rng = np.random.default_rng(1)
    for number, length in enumerate(LENGTHS):
        shape = (BATCH, length)
        weight = rng.uniform(0.5, 2.0, shape).astype(np.float32) if weights and number % 2 else None
        prints = rng.integers(0, 2**63, BATCH).astype(np.uint64)
        yield rng.standard_normal((*shape, 3)).astype(np.float32), rng.integers(0, 2, shape), weight, prints


@pytest.fixture
def shards_of_nine(small_shards):
    making.shard.SHARD_BYTES = 9 * LENGTHS[0] * 3 * 4  # small_shards sets it back


def test_sequences_are_gone_on_with(tmp_path, shards_of_nine):
    """Stored, they are padded to the longest of their shard; the batch that is compared is not."""
    build(tmp_path / "index", sequences())
    before = contents(tmp_path / "index")
    (tmp_path / "index" / "manifest.json").unlink()
    writer = Writer(tmp_path / "index")
    writer.begin(IDENTITY)
    for batch in sequences():
        writer.append(*batch)  # never passed over: each batch is compared
    writer.finish()
    assert contents(tmp_path / "index") == before
    changed = [(phi + 1, *rest) for phi, *rest in sequences()]
    refused(lambda: build(tmp_path / "index", changed), "features that differ")


def test_weights_of_sequences_are_gathered(tmp_path, shards_of_nine):
    """Where a batch has none, positions count 1; what pads a shorter sequence counts 0."""
    rows = np.asarray([27, 0, 8, 20, 13])
    lengths = np.repeat(LENGTHS, BATCH)[rows]
    every = [batch[2] if batch[2] is not None else np.ones(batch[1].shape) for batch in sequences()]
    taken = build(tmp_path / "index", sequences()).take(rows)
    assert taken.weight.shape == taken.features.shape[:2]
    for row, length, found in zip(rows, lengths, taken.weight, strict=True):
        assert np.array_equal(found[:length], every[row // BATCH][row % BATCH].astype(np.float32))
        assert not found[length:].any()


@pytest.mark.parametrize("lead", [(6,), (6, 4)], ids=["samples", "sequences"])
def test_a_shard_without_weights_counts_one(lead, rng):
    index, weight = Index(), rng.uniform(size=lead)
    for given in (None, weight):
        prints = rng.integers(0, 2**63, 6).astype(np.uint64)
        index.shards.append(Shard(rng.normal(size=(*lead, 3)), np.zeros(lead), given, prints))
    rows = np.asarray([7, 2, 11])
    expected = [weight[1], np.ones(lead[1:]), weight[5]]
    assert np.array_equal(index.gather("weight", rows), expected)
