"""Rows beside their neighbours: what differs is marked, whatever kind of table they come in."""

import importlib

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from whence import Explanation, WhenceError
from whence.report import tables
from whence.report.html import prediction_cards
from whence.report.tables import Comparison, Rows, is_tabular, shown

FRAME = pd.DataFrame(
    {
        "income": [10.0, 20.0, 20.5, np.nan, 50.0],
        "rooms": [1, 2, 3, 3, 5],
        "town": ["Ulm", "Bonn", "Ulm", None, "Kiel"],
    }
)
ROW = FRAME.iloc[[1]].assign(income=20.6)


def explanation(ids, opponents=((0, 4),), sample_ids=(0,)):
    """One prediction with two neighbours of either sign."""
    return Explanation(
        ids=np.asarray(ids),
        values=np.asarray([[0.5, 0.25]]),
        opponent_ids=np.asarray(opponents),
        opponent_values=np.asarray([[-1.0, -0.125]]),
        sample_ids=np.asarray(sample_ids),
        outputs=np.asarray([1]),
        signs=np.ones(1),
        predictions=np.asarray([1]),
        labels=None,
        pre_activations=np.ones(1),
        totals=np.ones(1),
        training_labels=np.asarray([[1, 1]]),
        opponent_labels=np.asarray([[0, 0]]),
    )


def as_polars(frame):
    polars = importlib.import_module("polars")
    return polars.DataFrame({name: frame[name].astype(object).where(frame[name].notna(), None).tolist()
                             for name in frame}, strict=False)  # fmt: skip


def as_dicts(frame):
    return frame.to_dict("records")


# The spread of income is 15.2 without the gap, so that 20 and 20.5 are the same and 10 is not.
MARKS = [[False, True, True], [True, True, True], [True, True, True], [True, True, True]]


@pytest.mark.parametrize(
    "kind", [lambda frame: frame, as_dicts, as_polars], ids=["pandas", "dicts", "polars"]
)
def test_differing_columns_are_marked_in_every_kind_of_table(kind):
    near = explanation([[2, 3]]).neighbours(kind(ROW), kind(FRAME))
    assert list(near.frame.columns) == list(FRAME.columns)
    assert near.frame.index.names == ["sample", "side", "rank", "id", "value"]
    assert near.frame.index.get_level_values("id").tolist() == [0, 2, 3, 0, 4]
    assert near.frame.index.get_level_values("side").tolist() == [
        "explained", "supporter", "supporter", "opponent", "opponent"
    ]  # fmt: skip
    assert near.frame["rooms"].tolist() == [2, 3, 3, 1, 5]
    assert near.differs.to_numpy()[0].tolist() == [False] * 3
    assert near.differs.to_numpy()[1:].tolist() == MARKS
    assert len(near) == 5


def test_equal_rows_do_not_differ_and_a_gap_equals_a_gap():
    near = explanation([[1, 3]]).neighbours(FRAME.iloc[[3]], FRAME)
    assert near.differs.to_numpy()[2].tolist() == [False] * 3  # row 3 itself, with its gaps


def test_ids_are_looked_up_in_the_index_of_a_frame():
    named = FRAME.set_axis(["a", "b", "c", "d", "e"])
    near = explanation([["c", "d"]], [["a", "e"]], ["b"]).neighbours(ROW.set_axis(["b"]), named)
    assert near.frame["town"].tolist()[:2] == ["Bonn", "Ulm"]
    # explained rows may be found by name in a larger frame too
    again = explanation([["c", "d"]], [["a", "e"]], ["b"]).neighbours(named, named)
    assert again.frame["income"].tolist()[0] == 20.0
    positions = explanation([[2, 3]]).neighbours(ROW, named)  # ids are positions: the index holds none
    assert positions.differs.to_numpy()[1:].tolist() == MARKS
    shuffled = FRAME.set_axis([4, 3, 2, 1, 0])
    assert explanation([[0, 1]]).neighbours(ROW, shuffled).frame["town"].tolist()[1] == "Kiel"


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array, scipy.sparse.coo_matrix])
def test_matrices_with_and_without_names(kind):
    x = np.asarray([[0.0, 1.0], [1.0, 0.0], [1.05, 0.0], [0.0, 0.0], [0.0, 3.0]])
    near = explanation([[2, 3]]).neighbours(kind(x[[1]]), kind(x), column_names=["p", "q"])
    assert list(near.frame.columns) == ["p", "q"]
    assert near.differs.to_numpy()[1:].tolist() == [
        [False, False], [True, False], [True, True], [True, True]
    ]  # fmt: skip
    assert Rows(kind(x), "samples").names == ("0", "1")
    assert Rows(kind(x), "samples").spread() == pytest.approx(x.std(axis=0))


def test_the_tolerance_is_a_share_of_the_spread():
    x = np.asarray([[0.0], [1.0], [2.0]])
    spread = x.std()
    for share, differs in ((0.0, True), (0.9 / spread, True), (1.1 / spread, False)):
        assert Comparison(x, x, tolerance=share).differs([0.0], [1.0]) == [differs]


def test_integers_and_nullable_columns():
    frame = pd.DataFrame({"code": [100, 101, 900], "share": pd.array([0.5, None, 0.1], dtype="Float64")})
    compared = Comparison(frame, frame)
    assert compared.training.spread() == pytest.approx([0.0, 0.2])
    one, other = compared.training.row(0), compared.training.row(1)
    assert compared.differs(one, other) == [True, True]  # codes are close, and still others
    assert compared.differs(other, other) == [False, False]
    assert [shown(value) for value in other] == ["101", "missing"]
    whole = np.asarray([[1, 2], [3, 4]])
    assert Rows(whole, "samples").spread().tolist() == [0.0, 0.0]
    assert Rows(scipy.sparse.csr_array(whole), "samples").spread().tolist() == [0.0, 0.0]


def test_it_shows_itself_with_marks():
    near = explanation([[2, 3]]).neighbours(ROW, FRAME)
    assert "Ulm *" in repr(near)
    assert "Bonn *" not in repr(near)
    pytest.importorskip("jinja2")
    html = near._repr_html_()
    assert html.count("background") >= 1
    assert "missing" in html


def test_a_page_shows_rows_side_by_side(tmp_path):
    pytest.importorskip("jinja2")
    given = explanation([[2, 3]])
    (card,) = prediction_cards(given, samples=ROW, training_samples=FRAME)
    (table,) = card.tables
    assert [column.name for column in table.columns] == [
        "Column", "Explained", "+0.500 id 2", "+0.250 id 3", "−1.000 id 0", "−0.125 id 4"
    ]  # fmt: skip
    assert [[cell.text for cell in row] for row in table.cells][2] == [
        "town", "Bonn", "Ulm", "missing", "Ulm", "Kiel"
    ]  # fmt: skip
    assert [[cell.mark for cell in row[2:]] for row in table.cells] == np.transpose(MARKS).tolist()
    assert card.picture is None
    assert all(one.picture is None for side in card.sides for one in side.contributions)
    text = given.save_html(tmp_path / "page.html", samples=ROW, training_samples=FRAME).read_text()
    assert '<span class="mark">Ulm</span>' in text
    x = FRAME[["income", "rooms"]].to_numpy()
    text = given.save_html(
        tmp_path / "page.html", samples=x[[1]], training_samples=x, column_names=["income", "<b>"]
    ).read_text()
    assert "&lt;b&gt;" in text


def test_a_page_keeps_the_columns_that_differ_most(monkeypatch):
    monkeypatch.setattr(tables, "N_COLUMNS", 2)
    (card,) = prediction_cards(explanation([[2, 3]]), samples=ROW, training_samples=FRAME)
    (table,) = card.tables
    assert [row[0].text for row in table.cells] == ["rooms", "town"]
    assert "1 more columns" in table.caption


def test_texts_and_images_are_no_tables():
    for samples in (None, "text", ["a", "b"], [np.zeros((8, 8))], np.zeros((2, 8, 8)), {0: "text"}, []):
        assert not is_tabular(samples)
    for samples in (FRAME, as_dicts(FRAME), dict(enumerate(as_dicts(FRAME))), np.zeros((2, 3))):
        assert is_tabular(samples)


@pytest.mark.parametrize(
    ("samples", "training", "words"),
    [
        (ROW, FRAME.iloc[:2], "a row of id 2"),
        (ROW.drop(columns="rooms"), FRAME, "the columns of the training samples: income, rooms, town"),
        (ROW, FRAME.set_axis([1, 1, 2, 3, 4]), "distinct row names"),
        (["a text"], FRAME, "samples: expected a table"),
        (FRAME, FRAME.set_axis(["a", "b", "c", "d", 7]), "a row of id 2"),
    ],
)
def test_bad_tables(samples, training, words):
    with pytest.raises(WhenceError, match=words):
        explanation([[2, 3]], sample_ids=[0]).neighbours(samples, training)


def test_bad_settings():
    x = np.zeros((5, 2))
    with pytest.raises(WhenceError, match="column_names: expected 2 names"):
        explanation([[2, 3]]).neighbours(x, x, column_names=["a"])
    with pytest.raises(WhenceError, match="tolerance"):
        explanation([[2, 3]]).neighbours(x, x, tolerance=-1)
