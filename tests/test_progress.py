"""Bars are shown where they are asked for, and change nothing."""

import io
import sys
import time
import types

import numpy as np
import pytest

import whence
from whence.progress import track


@pytest.mark.parametrize("show", [None, True, False])
def test_items_come_out_as_they_went_in(show, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    items = [3, 1, 2]
    assert list(track(items, "counting", 3, show)) == items
    assert list(track(iter(items), "counting", None, show)) == items
    assert list(track([], "counting", 0, show)) == []


def test_a_bar_that_is_asked_for_says_what_is_done(monkeypatch):
    pytest.importorskip("tqdm")
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    list(track(range(3), "features of the training set", 3, True, unit="sample"))
    assert "features of the training set" in shown.getvalue()
    assert "/3" in shown.getvalue()
    assert "sample" in shown.getvalue()


@pytest.mark.parametrize("show", [None, False])
def test_nothing_is_shown_where_nobody_looks(show, monkeypatch):
    shown = io.StringIO()  # not a terminal
    monkeypatch.setattr(sys, "stderr", shown)
    list(track(range(3), "counting", 3, show))
    assert shown.getvalue() == ""


def test_without_tqdm_the_work_is_done_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert list(track(range(3), "counting", 3, True)) == [0, 1, 2]


def test_items_are_taken_one_by_one():
    taken = []

    def items():
        for i in range(3):
            taken.append(i)
            yield i

    bar = track(items(), "counting", 3, False)
    assert next(bar) == 0
    assert taken == [0]


class Terminal(io.StringIO):
    """A place to write that says that a person is looking."""

    def isatty(self):
        return True


def test_a_bar_is_there_before_a_long_first_step_is_done(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("whence.progress.DELAY", 0.05)
    monkeypatch.setenv("COLUMNS", "80")
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    steps = track(range(2), "Hessian", 2, None, unit="part")
    next(steps)
    for _ in range(100):
        if "Hessian" in shown.getvalue():
            break
        time.sleep(0.02)
    assert "Hessian:   0%" in shown.getvalue()
    assert "0/2" in shown.getvalue()
    assert list(steps) == [1]


def test_short_work_shows_nothing(monkeypatch):
    pytest.importorskip("tqdm")
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    assert list(track(range(3), "counting", 3, None)) == [0, 1, 2]
    time.sleep(0.6)
    assert "counting" not in shown.getvalue()


def test_every_pass_over_the_training_set_says_what_it_does(monkeypatch, tmp_path):
    pytest.importorskip("tqdm")
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression

    x = np.random.default_rng(0).normal(size=(40, 3))
    y = (x[:, 0] > 0).astype(int)
    model = whence.InfluenceModel(LogisticRegression().fit(x, y))
    for factory, steps in (
        (whence.ExactIHVPFactory(), ["Hessian"]),
        (whence.KroneckerIHVPFactory(), ["second moment of the features", "Kronecker factors"]),
    ):
        shown = io.StringIO()
        monkeypatch.setattr(sys, "stderr", shown)
        path = tmp_path / type(factory).__name__
        whence.RepresenterPointLJE(model, (x, y), factory, index_path=path, progress=True)
        whence.load_index(path, progress=True)
        for step in ["features of the training set", "mean gradient", *steps, "storing coefficients",
                     "checking the index"]:  # fmt: skip
            assert f"{step}:   0%" in shown.getvalue(), step
        silent = io.StringIO()
        monkeypatch.setattr(sys, "stderr", silent)
        whence.RepresenterPointLJE(model, (x, y), factory, progress=False).suspects(k=3)
        assert silent.getvalue() == ""


def test_a_notebook_shows_bars(monkeypatch):
    """Its streams are no terminals, and there need be no widgets."""
    pytest.importorskip("tqdm")
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr("whence.progress.DELAY", 0.01)
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    for _ in track(range(3), "counting", 3, None):
        time.sleep(0.05)
    assert "counting" in shown.getvalue()
