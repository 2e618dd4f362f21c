"""What users have in files stays theirs: nothing is lost to an error, and nothing foreign written over."""

import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import whence
from whence import WhenceError
from whence._files import FileKind, check_file, is_part, remove_parts, replaced
from whence._paths import as_path
from whence.index import check_folder
from whence.index.files import Lock

NOTES = FileKind("a note", lambda handle: handle.read(4) == b"note")
OLD, NEW = b"note: old", b"note: new and longer"
posix_only = pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")


@contextlib.contextmanager
def small_disk(n_bytes):
    """Let no file grow beyond some bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def note(tmp_path):
    file = tmp_path / "note"
    file.write_bytes(OLD)
    return file


def test_a_file_is_replaced_when_the_new_one_is_complete(note):
    with replaced(note) as handle:
        handle.write(NEW)
        handle.flush()
        assert note.read_bytes() == OLD
    assert note.read_bytes() == NEW
    assert list(note.parent.iterdir()) == [note]


@pytest.mark.parametrize(
    "error", [RuntimeError("half"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")]
)
def test_an_error_leaves_the_older_file(note, error):
    def write():
        with replaced(note) as handle:
            handle.write(NEW)
            raise error

    with pytest.raises(WhenceError if isinstance(error, OSError) else type(error)):
        write()
    assert note.read_bytes() == OLD
    assert list(note.parent.iterdir()) == [note]


def test_a_full_disk_leaves_the_older_file(note):
    with pytest.raises(WhenceError, match=r"^path"), small_disk(1000), replaced(note) as handle:
        handle.write(b"x" * 10_000)
    assert note.read_bytes() == OLD
    assert list(note.parent.iterdir()) == [note]


def test_a_killed_process_leaves_the_older_file(note):
    code = f"""
import os
from pathlib import Path
from whence._files import replaced
with replaced(Path({str(note)!r})) as handle:
    handle.write(b"half"); handle.flush(); os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert note.read_bytes() == OLD
    (left,) = set(note.parent.iterdir()) - {note}
    assert is_part(left.name)
    remove_parts(note.parent)
    assert list(note.parent.iterdir()) == [note]


@posix_only
def test_a_link_is_followed_and_permissions_stay(note, tmp_path):
    note.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(note)
    with replaced(link) as handle:
        handle.write(NEW)
    assert link.is_symlink()
    assert note.read_bytes() == NEW
    assert stat.S_IMODE(note.stat().st_mode) == 0o640
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "new")
    with replaced(dangling) as handle:
        handle.write(NEW)
    assert (tmp_path / "new").read_bytes() == NEW


@posix_only
def test_a_device_stays_one():
    with replaced(check_file(os.devnull, NOTES)) as handle:
        handle.write(NEW)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@posix_only
def test_the_name_may_be_as_long_as_names_can_be(tmp_path):
    file = tmp_path / ("n" * 255)
    with replaced(file) as handle:
        handle.write(NEW)
    assert file.read_bytes() == NEW


def test_only_files_of_the_kind_are_written_over(note, tmp_path):
    assert check_file(note, NOTES) == note
    empty = tmp_path / "empty"
    empty.touch()
    assert check_file(empty, NOTES) == empty
    other = tmp_path / "train.csv"
    other.write_text("a,b\n1,2\n")
    link = tmp_path / "link"
    link.symlink_to(other)
    for file in (other, link, tmp_path / "sub" / ".." / "train.csv"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(WhenceError, match="a new file, or a note to write over, got another file"):
            check_file(file, NOTES)


def test_what_is_no_place_for_a_file_is_named(tmp_path):
    for path, expected in (
        (tmp_path, "a file, got the folder"),
        (tmp_path / "none" / "note", "a file in a folder that exists"),
        (3, "a file, as text or a pathlib.Path, got 3"),
        ("no\0name", "a file, as text"),
        (tmp_path / ("n" * 300), "a path that can be used"),
        ("~nobody-of-that-name/note", "below a home folder"),
    ):
        with pytest.raises(WhenceError, match=expected):
            check_file(path, NOTES)


def test_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert as_path("~/a") == as_path(Path("~/a")) == tmp_path / "a"
    assert as_path("a~b") == Path("a~b")


# ---- folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.zip.part": "3 GB"},
        {"lock": "my lock"},
        {"lock": "", "x.part": "mine"},
        {"features-00000.npy": "mine"},
        {"values.json": "{}"},
        {"shard-00000.json": "{}"},
        {"lock": "12 monkeys"},
    ],
    ids=str,
)
def test_a_folder_of_others_is_left_alone(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(WhenceError, match="a folder with other files in it"):
        check_folder(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "begun.json"])
def test_a_manifest_of_others_makes_a_folder_theirs(tmp_path, problem_of_two, name):
    files = {name: '{"name": "a web page"}', "x.part": "mine", "lock": "mine", "ids.npy": "mine"}
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    model, data = problem_of_two
    lje = whence.RepresenterPointLJE(model, data, whence.ExactIHVPFactory(), progress=False)
    for attempt in (
        lambda: whence.RepresenterPointLJE(
            model, data, whence.ExactIHVPFactory(), progress=False, index_path=tmp_path
        ),
        lambda: lje.compute_influence_vector(data, tmp_path),
        lambda: lje.top_k(data, data, 1, save_top_k_ds_path=tmp_path),
        lambda: lje.estimate_influence_values_in_batches(data, data, save_influence_value_path=tmp_path),
    ):
        with pytest.raises(WhenceError, match=r"Choose another path|Give the path"):
            attempt()
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == files


def test_what_a_killed_process_left_is_ours(tmp_path):
    (tmp_path / "lock").write_text("4711")
    (tmp_path / "begun.json.0a1b2c3d.part").write_text("{")
    (tmp_path / f".whence-{'0' * 32}.part").touch()
    check_folder(tmp_path)


def test_a_lock_of_others_is_not_written_to(tmp_path):
    (tmp_path / "lock").write_text("a short story")
    with pytest.raises(WhenceError, match="without another file of the name 'lock'"):
        Lock(tmp_path)
    assert (tmp_path / "lock").read_text() == "a short story"


@pytest.fixture
def problem_of_two():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), np.arange(30) % 2
    return whence.InfluenceModel(linear_model.LogisticRegression().fit(x, y)), (x, y)


def test_answers_in_a_folder_are_replaced_together(tmp_path, problem_of_two):
    model, (x, y) = problem_of_two
    lje = whence.RepresenterPointLJE(model, (x, y), whence.ExactIHVPFactory(), progress=False)
    folder = tmp_path / "top"
    lje.top_k([(x[:2], y[:2])], (x, y), 2, save_top_k_ds_path=folder)
    older = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(WhenceError), small_disk(400):
        lje.top_k([(x, y)], (x, y), 20, save_top_k_ds_path=folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == older
    lje.top_k([(x[:4], y[:4])], (x, y), 3, save_top_k_ds_path=folder)
    assert np.load(folder / "ids.npy").shape == np.load(folder / "values.npy").shape == (4, 3)
    assert json.loads((folder / "values.json").read_text())["format"] == "whence values"
    with pytest.raises(WhenceError, match=r"answers of another kind \(top k\)"):
        lje.estimate_influence_values_in_batches([(x, y)], (x, y), save_influence_value_path=folder)
    index = tmp_path / "index"
    lje.compute_influence_vector((x, y), index)
    with pytest.raises(WhenceError, match="other files in it"):
        lje.top_k([(x, y)], (x, y), 2, save_top_k_ds_path=index)


def test_pages_and_tables_are_replaced_and_nothing_else_is(tmp_path, problem_of_two):
    pytest.importorskip("jinja2")
    pytest.importorskip("pyarrow")
    model, (x, y) = problem_of_two
    lje = whence.RepresenterPointLJE(model, (x, y), whence.ExactIHVPFactory(), progress=False)
    found, doubtful = lje.explain((x[:2], y[:2]), k=2), lje.suspects(k=3)
    page, table = tmp_path / "page.html", tmp_path / "table.parquet"
    for save, file, others in (
        (found.save_html, page, table),
        (doubtful.save_html, page, table),
        (found.to_parquet, table, page),
        (doubtful.to_parquet, table, page),
    ):
        assert save(file) == save(file)  # written over its own
        older = file.read_bytes()
        with pytest.raises(WhenceError), small_disk(500):
            save(file)
        assert file.read_bytes() == older
        if others.exists():
            with pytest.raises(WhenceError, match="another file, which is left as it is"):
                save(others)
    found.to_frame().to_parquet(table)  # the user's own export, without a word of whence in it
    with pytest.raises(WhenceError, match="a Parquet file of whence"):
        found.to_parquet(table)
    mine = tmp_path / "mine.html"
    mine.write_text("<!doctype html><title>whence</title><p>my own page")
    with pytest.raises(WhenceError, match="a page of whence"):
        found.save_html(mine)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine.html", "page.html", "table.parquet"]


def test_files_on_other_file_systems(problem_of_two):
    pytest.importorskip("upath")
    pytest.importorskip("jinja2")
    model, (x, y) = problem_of_two
    lje = whence.RepresenterPointLJE(model, (x, y), whence.ExactIHVPFactory(), progress=False)
    found = lje.explain((x[:2], y[:2]), k=2)
    file = found.save_html("memory://pages/new/page.html")
    assert found.save_html("memory://pages/new/page.html") == file
    assert b"generator" in file.read_bytes()
    (file.parent / "other").write_bytes(b"precious")
    with pytest.raises(WhenceError, match="another file"):
        found.save_html("memory://pages/new/other")
    assert (file.parent / "other").read_bytes() == b"precious"
