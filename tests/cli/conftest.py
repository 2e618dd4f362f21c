"""Files of every kind that the commands take, small, and the commands run in this process."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("pandas")
pytest.importorskip("sklearn")
import joblib
import pandas as pd
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from whence.cli import main

N, T, SIDE = 60, 5, 6
NAMES = ("ant", "bee", "cow")
COLUMNS = ["legs", "wings", "tail length", "mass"]


def problem():
    """Three classes of four features: ``(x, y)`` of the training set and of new samples."""
    rng = np.random.default_rng(5)
    y = np.arange(N + T) % 3
    x = rng.normal(size=(N + T, 4)).astype(np.float32) + np.eye(4, dtype=np.float32)[y] * 2
    return x[:N], y[:N], x[N:], y[N:]


@pytest.fixture(scope="session")
def made_files(tmp_path_factory):
    """The folder of files; tests that change one copy it."""
    folder = tmp_path_factory.mktemp("files")
    x, y, x_new, y_new = problem()
    np.savez(folder / "train.npz", x=x, y=y, name=np.asarray([f"n{i}" for i in range(N)]))
    np.savez(folder / "new.npz", x=x_new)
    table = pd.DataFrame(x, columns=COLUMNS)
    table.insert(0, "animal", [f"a{i}" for i in range(N)])
    table["class"] = np.asarray(NAMES)[y]
    table["value"] = x @ np.asarray([1.0, 2.0, 0.0, -1.0]) + 0.1 * np.arange(N)
    table.to_csv(folder / "train.csv", index=False)
    new = pd.DataFrame(x_new, columns=COLUMNS)
    new["animal"] = [f"new{i}" for i in range(T)]
    new["class"] = np.asarray(NAMES)[y_new]
    new.to_csv(folder / "new.csv", index=False)
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(table[COLUMNS], table["class"])
    joblib.dump(fitted, folder / "model.joblib")
    joblib.dump(LogisticRegression(C=0.5).fit(table[COLUMNS], table["class"]), folder / "other.joblib")
    joblib.dump(LogisticRegression(max_iter=300).fit(x, y), folder / "arrays.joblib")
    joblib.dump(Ridge().fit(table[COLUMNS], table["value"]), folder / "ridge.joblib")
    _make_images(folder)
    return folder


def _make_images(folder):
    images = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(6)
    pixels = rng.integers(0, 200, (30, SIDE, SIDE)).astype(np.uint8)
    kinds = np.arange(30) % 2
    pixels[kinds == 1, :3] += 55
    for i, (picture, kind) in enumerate(zip(pixels, kinds, strict=True)):
        place = folder / "photos" / ("dark", "light")[kind]
        place.mkdir(parents=True, exist_ok=True)
        images.fromarray(picture).save(place / f"{i:02d}.png")
    names = np.asarray(("dark", "light"))[kinds]
    fitted = LogisticRegression(C=1e-4, max_iter=500).fit(pixels.reshape(30, -1).astype(float), names)
    joblib.dump(fitted, folder / "photos.joblib")


@pytest.fixture
def files(made_files, tmp_path, monkeypatch):
    """The current folder, empty; the files are named by absolute paths through ``files / name``."""
    monkeypatch.chdir(tmp_path)
    return made_files


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer replaces it
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"))
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def whence_(capsys):
    """Run a command and return its exit code, its output and its messages."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def answer(whence_):
    """Run a command with ``--json``, which must succeed, and return what it says."""

    def run(*arguments):
        done = whence_(*arguments, "--json", "--quiet")
        assert done.code == 0, done.err
        assert done.err == ""
        assert done.out.count("\n") == 1
        return json.loads(done.out)

    return run


@pytest.fixture
def index(answer, files):
    """The folder of an index of ``train.csv`` by the pipeline in ``model.joblib``."""
    answer("index", files / "model.joblib", files / "train.csv", "--to", "an.index", "--id", "animal",
           "--trust-model")  # fmt: skip
    return Path("an.index")
