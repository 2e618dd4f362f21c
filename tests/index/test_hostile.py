"""An index that was tampered with: refused in words, and nothing is run, followed or lost."""

import contextlib
import io
import json
import os
import pickle
import shutil
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusing import refused

import whence
from whence import WhenceError
from whence.index.files import Lock, open_array, write_json
from whence.index.records import SHARD, difference

linear_model = pytest.importorskip("sklearn.linear_model")

RNG = np.random.default_rng(0)
N, D, C = 30, 4, 3
X, Y = RNG.normal(size=(N, D)) * (RNG.random((N, D)) < 0.6), RNG.integers(0, C, N)
QUICK = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


KINDS = [
    pytest.param(np.asarray, id="dense"),
    pytest.param(scipy.sparse.csr_array, id="sparse", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """A folder beside which a file stands, and what makes its method again."""
    top = tmp_path_factory.mktemp("hostile")
    model = whence.InfluenceModel(linear_model.LogisticRegression().fit(X, Y))
    data = request.param(X), Y

    def make(folder):
        factory = whence.ExactIHVPFactory()
        return whence.RepresenterPointLJE(model, data, factory, index_path=folder, progress=False)

    make(top / "index")
    (top / "thesis.npy").write_bytes(b"years of work")
    return top, make


@pytest.fixture
def folder(made, tmp_path):
    """A copy to tamper with."""
    return Path(shutil.copytree(made[0] / "index", tmp_path / "index"))


def fresh(made):
    """A copy for one example of many."""
    folder = made[0] / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(made[0] / "index", folder))


def use(folder, make=None, verify=True):
    """Read the index as a user does, and build on it; any error must be one of this library's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers out of nowhere overflow
        with contextlib.suppress(WhenceError):
            whence.load_index(folder, verify=verify, progress=False).explain(X[:2], k=1)
        if make is not None:
            with contextlib.suppress(WhenceError):
                make(folder).explain((X[:2], Y[:2]), k=1)


def method_of(folder):
    return sorted(folder.glob("method-*"))[0]


def edited(file, change):
    """Change the content of a JSON file in place."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def stamped(folder, name, content):
    """Write another file over one of the index, and record it as if it had always been that."""
    file = sorted(folder.rglob(name))[0]
    file.write_bytes(content)
    for record in (folder / "manifest.json", method_of(folder) / "method.json"):
        text = record.read_text()
        parsed = json.loads(text)
        for stamp in stamps(parsed):
            if stamp["file"] == name:
                stamp.update(bytes=len(content), crc32=zlib.crc32(content))
        record.write_text(json.dumps(parsed))


def stamps(tree):
    """Yield the records of files in a tree of JSON."""
    if isinstance(tree, dict):
        if "crc32" in tree:
            yield tree
        for part in tree.values():
            yield from stamps(part)
    elif isinstance(tree, list):
        for part in tree:
            yield from stamps(part)


def npy(array, allow_pickle=False):
    """The bytes of an ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


# ---- names lead nowhere -------------------------------------------------------------------------

ELSEWHERE = ["../thesis.npy", "/etc/passwd", "method/../x", "..", ".", "", "a\\b", "C:x", "x\0y", 3, None]


@pytest.mark.pairwise
@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("record", ["manifest.json", "method.json", "shard-00000.json"])
def test_a_record_that_names_files_elsewhere_is_refused(record, name, made, folder):
    for file in folder.rglob(record):
        edited(file, lambda content: next(stamps(content)).update(file=name))
    if record == "shard-00000.json":  # read where the manifest is gone: the shard is made again
        (folder / "manifest.json").unlink()
        made[1](folder)
        return
    refused(lambda: whence.load_index(folder), "name of a file in the folder", repr(name)[1:-1])


def test_nothing_is_written_through_a_link(made, folder, tmp_path):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    (folder / "lock").unlink()
    (folder / "lock").symlink_to(thesis)
    shutil.rmtree(method_of(folder))
    refused(lambda: made[1](folder), "link")
    refused(lambda: Lock(folder), "link")
    (folder / "lock").unlink()
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to(thesis)
    write_json(folder / "manifest.json", {})  # takes the place of the link
    shutil.copy(made[0] / "index" / "manifest.json", folder / "manifest.json")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    name = method_of(made[0] / "index").name
    (folder / name).symlink_to(elsewhere)
    refused(lambda: made[1](folder), "link", "Remove it")
    assert not list(elsewhere.iterdir())
    assert thesis.read_text() == "years of work"


def test_what_never_ends_is_not_read(made, folder):
    """A pipe in place of a file would wait for ever."""
    name = method_of(folder).name
    for file in (
        "manifest.json",
        "begun.json",
        "shard-00000.json",
        "shard-00007.json",
        f"{name}/method.json",
    ):
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)
    refused(lambda: whence.load_index(folder), "no manifest.json")
    for file in ("manifest.json", "begun.json"):
        (folder / file).unlink()
        shutil.copy(made[0] / "index" / file, folder / file)
    refused(lambda: whence.load_index(folder), "features alone")


# ---- nothing is run -----------------------------------------------------------------------------


class Trap:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.pairwise
@pytest.mark.parametrize(
    "name",
    ["fingerprint-00000.npy", "target-00000.npy", "theta.npy", "factor-0.npy", "coefficients-00000.npy"],
)
def test_no_pickle_is_loaded(name, made, folder, tmp_path):
    trap = np.empty(1, dtype=object)
    trap[0] = Trap(tmp_path / "trace")
    for content in (npy(trap, allow_pickle=True), pickle.dumps(trap[0])):
        stamped(folder, name, content)
        refused(lambda: whence.load_index(folder).explain(X[:1]), f"{name}, which gives ValueError")
        use(folder, made[1])
        assert not (tmp_path / "trace").exists()


def test_no_archive_is_opened(folder, tmp_path):
    np.savez(tmp_path / "archive.npz", X)
    stamped(folder, "target-00000.npy", (tmp_path / "archive.npz").read_bytes())
    refused(lambda: whence.load_index(folder), "target-00000.npy, which gives ValueError")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("whence.cli", "main"),
        ("whence.nothing", "x"),
        ("whence.ihvp.base", "Solution"),
        ("whence.ihvp", "__builtins__"),
        ("whence.ihvp.base", "InverseHessianVectorProductFactory"),
    ],
)
def test_only_this_librarys_solvers_and_losses_are_made(module, name, folder):
    def other(content):
        content["settings"][key] = {"module": module, "class": name, "arguments": {}}

    record = method_of(folder) / "method.json"
    before = record.read_text()
    for key in ("factory", "layer"):
        if key == "layer":

            def other(content):
                content["settings"]["layer"]["loss"] = {"module": module, "class": name, "arguments": {}}

        edited(record, other)
        refused(lambda: whence.load_index(folder), "path")
        record.write_text(before)


# ---- anything else ------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def places(tree, path=()):
    """Every place in a tree of JSON."""
    yield path
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, part in pairs:
        yield from places(part, (*path, key))


@QUICK
@given(data=st.data(), verify=st.booleans())
def test_any_change_of_a_record_is_refused_or_harmless(made, data, verify):
    folder = fresh(made)
    file = data.draw(st.sampled_from(sorted(folder.rglob("*.json"))))
    content = json.loads(file.read_text())
    *lead, key = data.draw(st.sampled_from(list(places(content))[1:]))
    parent = content
    for step in lead:
        parent = parent[step]
    if isinstance(parent, dict) and data.draw(st.booleans()):
        del parent[key]
    else:
        parent[key] = data.draw(JSON)
    file.write_text(json.dumps(content))
    if data.draw(st.booleans()):
        (folder / "manifest.json").unlink()
    use(folder, made[1], verify)
    assert (made[0] / "thesis.npy").read_bytes() == b"years of work"


@QUICK
@given(data=st.data(), verify=st.booleans())
def test_any_change_of_bytes_is_refused_or_harmless(made, data, verify):
    folder = fresh(made)
    file = data.draw(st.sampled_from(sorted(f for f in folder.rglob("*") if f.is_file())))
    content = bytearray(file.read_bytes())
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, len(content)))
    content[start:stop] = data.draw(st.binary(max_size=40))
    if file.suffix == ".npy" and data.draw(st.booleans()):
        stamped(folder, file.name, bytes(content))
    else:
        file.write_bytes(content)
    use(folder, made[1], verify)


SHAPES = st.lists(st.integers(0, 5) | st.just(N) | st.just(D + 1), max_size=3)
DTYPES = st.sampled_from(["f2", "f4", "f8", ">f8", "i1", "i8", "u8", "c16", "U3", "S2", "?", "M8[s]", "V4"])


@QUICK
@given(shape=SHAPES, dtype=DTYPES, data=st.data())
def test_any_other_array_is_refused_or_harmless(made, shape, dtype, data):
    folder = fresh(made)
    file = data.draw(st.sampled_from(sorted(folder.rglob("*.npy"))))
    array = np.zeros(shape, dtype)
    order = data.draw(st.sampled_from("CF"))
    stamped(folder, file.name, npy(np.asarray(array, order=order)))
    use(folder, made[1])


@QUICK
@given(content=st.binary(max_size=200), magic=st.sampled_from([b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"]))
def test_any_bytes_are_an_array_or_refused(made, content, magic):
    file = made[0] / "any.npy"
    file.write_bytes(magic + content)
    with contextlib.suppress(WhenceError):
        assert isinstance(open_array(file, {}), np.ndarray)


HEADERS = st.fixed_dictionaries(
    {
        "descr": st.sampled_from(["<f8", "|O", "<U1", [("a", "<f8")], "", 3, None, "<f99"]),
        "fortran_order": st.sampled_from([True, False, 1, None]),
        "shape": st.lists(st.integers(-3, 2**70), max_size=3).map(tuple)
        | st.sampled_from([3, None, ("a",)]),
    }
)


@QUICK
@given(header=HEADERS, rest=st.binary(max_size=64))
def test_any_header_is_an_array_or_refused(made, header, rest):
    text = repr(header).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    file = made[0] / "any.npy"
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + rest)
    with contextlib.suppress(WhenceError):
        assert not open_array(file, {}).dtype.hasobject


@pytest.mark.parametrize(("shape", "dtype"), [((N,), "<U3"), ((), "float32"), ((N,), "datetime64[s]")])
def test_targets_of_another_kind_are_refused(shape, dtype, folder):
    stamped(folder, "target-00000.npy", npy(np.zeros(shape, dtype)))
    refused(lambda: whence.load_index(folder), f"target of {N} samples of shape", dtype)


def test_labels_that_the_loss_does_not_take_are_refused(folder):
    stamped(folder, "target-00000.npy", npy(np.where(np.arange(N) == 7, C, Y)))
    refused(lambda: whence.load_index(folder), "labels in shard 0 of", f"class {C}")


def test_rows_that_end_before_they_begin_are_refused(folder):
    file = folder / "features-indptr-00000.npy"
    if not file.exists():  # dense features have none
        stamped(folder, "features-00000.npy", npy(np.zeros((N, D + 1), "c16")))
        refused(lambda: whence.load_index(folder), "complex128")
        return
    ends = np.load(file)
    ends[1], ends[2] = ends[2], ends[1]
    assert ends[1] > ends[2]
    stamped(folder, file.name, npy(ends))
    refused(lambda: whence.load_index(folder), "sparse features with entries outside")


def test_a_record_of_another_kind_is_named():
    assert difference({"n_samples": 3, "n_features": 0, "files": {}}, SHARD) == (
        "n_features is 0, not a number from 1 on"
    )
    assert difference([], SHARD) == "it is [], not a record"
    assert difference({"shards": {}}, {"shards": [SHARD]}) == "shards is {}, not a list"
