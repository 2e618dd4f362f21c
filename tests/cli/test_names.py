"""Ids, labels and paths of users: they stay what they are, and do nothing on a terminal."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from whence.cli import main
from whence.cli.forms import InputSpec
from whence.cli.tables import plain_column

pandas = pytest.importorskip("pandas")
joblib = pytest.importorskip("joblib")

N = 24
HOSTILE = {
    "a closing tag": "[/foo]",
    "a tag": "photo[red].png",
    "a link": "[link=https://evil.example]click[/link]",
    "an emoji's name": "a :smile: b",
    "a title": "\x1b]0;PWNED\x07x",
    "a cleared screen": "\x1b[2Jx",
    "another control": "\x9b31mx",
    "a line": "one\ntwo",
    "turned text": "\u202egnp.exe",
    "isolated text": "\u2066x",
    "a line separator": "a\u2028b",
    "right to left letters": "שלום",
    "other letters": "Zürich 北京 🙂",
}
INVISIBLE = {*map(chr, (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)))}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Index a small table of some ids and labels, in the current folder; return its index."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(rng.normal(size=(N, 3)), columns=list("abc"))

    def make(ids, classes=("cat", "dog")):
        labels = np.asarray(classes, dtype=object)[np.arange(N) % len(classes)]
        model = linear_model.LogisticRegression().fit(frame, labels)
        joblib.dump(model, "model.joblib")
        frame.assign(label=labels, id=ids).to_csv("train.csv", index=False)
        arguments = ["model.joblib", "train.csv", "--to", "an.index", "--id", "id", "--trust-model", "-q"]
        assert main(["index", *arguments]) == 0
        return "an.index"

    return make


def ids_with(*first):
    return [*first, *(f"s{i}" for i in range(len(first), N))]


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_ids_are_shown_and_do_nothing(name, table, whence_):
    index = table(ids_with(name))
    for arguments in (["suspects", index, "--all"], ["explain", index, "train.csv", "--trust-model"]):
        shown = whence_(*arguments, "--quiet")
        assert shown.code == 0, shown.err
        assert not (set(shown.out) - {"\n"}) & INVISIBLE
        visible = "".join(
            one if one.isprintable() else one.encode("unicode_escape").decode() for one in name
        )
        assert visible in shown.out.replace("\n", "")
        exact = whence_(*arguments, "--quiet", "--json")
        assert json.dumps(name)[1:-1] in exact.out or name in exact.out
        found = json.loads(exact.out)
        rows = found.get("suspects") or found["predictions"]
        assert name in [row["id"] for row in rows]
    missing = whence_("explain", index, "train.csv", "--trust-model", "--only", name + "!", "--quiet")
    assert missing.code == 1
    assert not (set(missing.err) - {"\n"}) & INVISIBLE


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16", "shift_jis"])
def test_every_encoding_of_a_terminal_will_do(encoding, table, monkeypatch):
    name = HOSTILE["other letters"]
    index = table(ids_with(name), ("straße", "日本"))
    for arguments in (
        ["suspects", index],
        ["explain", index, "train.csv", "--trust-model"],
        ["explain", index, "train.csv", "--trust-model", "--json"],
        ["index", "--help"],
    ):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        err.reconfigure(errors="backslashreplace")  # as Python's own
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert main(arguments) == 0
        out.flush()
        text = out.buffer.getvalue().decode(encoding)
        if "--json" in arguments:
            assert name in [one["id"] for one in json.loads(text)["predictions"]]


def test_ids_and_labels_stay_what_they_are(table, answer):
    index = table([f"{i:03d}" for i in range(N)], ("NA", "null", "NaN"))
    found = answer("explain", index, "train.csv", "--trust-model", "--only", "007")
    assert [one["id"] for one in found["predictions"]] == ["007"]
    assert found["classes"] == ["NA", "NaN", "null"]
    assert found["predictions"][0]["label"] == ["NA", "NaN", "null"].index(("NA", "null", "NaN")[7 % 3])
    assert {one["id"] for one in found["predictions"][0]["supporters"]} <= {f"{i:03d}" for i in range(N)}
    parquet = pandas.read_csv("train.csv", dtype={"id": str}, keep_default_na=False)
    parquet.to_parquet("train.parquet")
    again = answer("explain", index, "train.parquet", "--trust-model", "--only", "007")
    assert again["predictions"] == found["predictions"]


@pytest.mark.parametrize(
    ("texts", "are_labels", "expected"),
    [
        (["0", "10"], False, [0, 10]),
        (["1.0", "2"], False, ["1.0", "2"]),
        (["9" * 30, "1"], False, ["9" * 30, "1"]),
        (["True", "False"], True, [True, False]),
        (["1e3", "-.5"], True, [1000.0, -0.5]),
        (["0", ""], True, [0.0, np.nan]),
        (["yes", ""], True, ["yes", None]),
        (["nan", "inf"], True, ["nan", "inf"]),
        (["٣", "1"], True, ["٣", "1"]),
    ],
)
def test_columns_are_numbers_only_where_they_are_written_so(texts, are_labels, expected):
    np.testing.assert_array_equal(plain_column(texts, are_labels), np.asarray(expected))


def test_labels_with_zeros_in_front_are_names_or_numbers():
    padded = np.asarray(["007", "010"], dtype=object)
    assert InputSpec("flat", None).labels(padded, "labels").tolist() == [7, 10]
    numbers = InputSpec("flat", None, classes=["7", "10"], values=[7, 10])
    assert numbers.labels(padded, "labels").tolist() == [7, 10]
    names = InputSpec("flat", None, classes=["007", "010"], values=["007", "010"])
    assert names.labels(padded, "labels").tolist() == ["007", "010"]


def test_the_home_folder(table, whence_, monkeypatch):
    index = table(ids_with())
    monkeypatch.setenv("HOME", os.getcwd())
    monkeypatch.setenv("USERPROFILE", os.getcwd())
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    given = [f"~/{index}", "~/train.csv", "--model", "~/model.joblib", "--report", "~/a.html"]
    given = [f"~/{index}", "~/train.csv", "--model", "~/model.joblib", "--report", "~/a.html"]
    done = whence_("explain", *given, "--trust-model")
    assert done.code == 0, done.err
    assert os.path.exists("../a.html")
    assert os.listdir() == []


def test_a_report_takes_nobodys_place(table, whence_):
    index = table(ids_with())
    os.symlink("train.csv", "link.html")
    before = {name: Path(name).read_bytes() for name in ("train.csv", "model.joblib")}
    for target in ("train.csv", "model.joblib", "link.html", "./an.index/../train.csv"):
        for command in (["suspects", index], ["explain", index, "train.csv", "--trust-model"]):
            done = whence_(*command, "--report", target, "--quiet")
            assert (done.code, done.out) == (1, "")
            assert "another file, which is left as it is" in done.err
    for target in ("an.index/report.html", "an.index/manifest.json", "an.index"):
        done = whence_("suspects", index, "--report", target, "--quiet")
        assert done.code in (1, 2)
        assert not os.path.exists("an.index/report.html")
    assert {name: Path(name).read_bytes() for name in before} == before
    for _ in range(2):  # its own is written over
        assert whence_("suspects", index, "--report", "page.html", "--quiet").code == 0
