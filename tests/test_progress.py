"""Bars are shown where they are asked for, and change nothing."""

import io
import sys

import pytest

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
