"""What ``explain`` and ``suspects`` return, as arrays and as frames."""

import dataclasses
import json
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import whence

T, K = 3, 2


def explanation(**changes):
    rng = np.random.default_rng(0)
    values = np.sort(rng.normal(size=(T, 2 * K)), axis=1)[:, ::-1]
    ids = rng.permuted(np.tile(np.arange(2 * K), (T, 1)), axis=1)
    parts = {
        "ids": ids[:, :K],
        "values": values[:, :K],
        "opponent_ids": ids[:, : -K - 1 : -1],
        "opponent_values": values[:, : -K - 1 : -1],
        "sample_ids": np.asarray(["x", "y", "z"]),
        "outputs": np.asarray([1, 0, 1]),
        "signs": np.ones(T),
        "predictions": np.asarray([1, 0, 1]),
        "labels": np.asarray([1, 1, 0]),
        "pre_activations": rng.normal(size=T),
        "totals": values.sum(axis=1),
        "training_labels": ids[:, :K] % 2,
        "opponent_labels": ids[:, : -K - 1 : -1] % 2,
        "about": {"method": "RepresenterPointLJE"},
    }
    return whence.Explanation(**(parts | changes))


def suspects():
    return whence.Suspects(
        ids=np.asarray([4, 2]),
        scores=np.asarray([0.5, -0.1]),
        score="leave_one_out",
        labels=np.asarray([0, 1]),
        predictions=np.asarray([1, 1]),
    )


def test_a_frame_names_each_pair_of_samples_once_strongest_first():
    given = explanation()
    frame = given.to_frame()
    assert list(frame.columns) == [
        "sample",
        "prediction",
        "label",
        "output",
        "side",
        "rank",
        "training_id",
        "training_label",
        "value",
        "share",
    ]
    assert len(frame) == 2 * T * K
    assert frame["sample"].tolist() == np.repeat(["x", "y", "z"], 2 * K).tolist()
    assert frame["side"].tolist() == (["supporter"] * K + ["opponent"] * K) * T
    assert frame["rank"].tolist() == [1, 2] * 2 * T
    for t, sample in enumerate("xyz"):
        rows = frame[frame["sample"] == sample]
        assert rows["training_id"].tolist() == [*given.ids[t], *given.opponent_ids[t]]
        assert rows["value"].tolist() == [*given.values[t], *given.opponent_values[t]]
        assert rows["training_label"].tolist() == [*given.training_labels[t], *given.opponent_labels[t]]
        for column, values in (
            ("prediction", given.predictions),
            ("label", given.labels),
            ("output", given.outputs),
        ):
            assert rows[column].unique().tolist() == [values[t]]


def test_a_frame_without_labels_has_no_column_of_them():
    assert "label" not in explanation(labels=None).to_frame()


def test_suspects_as_a_frame():
    given = suspects()
    frame = given.to_frame()
    assert list(frame.columns) == ["id", "score", "label", "prediction"]
    assert frame["id"].tolist() == [4, 2]
    assert frame["score"].tolist() == [0.5, -0.1]
    assert frame["label"].tolist() == [0, 1]
    assert frame["prediction"].tolist() == [1, 1]
    assert len(given) == 2


@pytest.mark.parametrize("answer", [explanation, suspects])
def test_answers_cannot_be_changed_by_accident(answer):
    given = answer()
    with pytest.raises(dataclasses.FrozenInstanceError):
        given.ids = np.zeros(1)
    assert len(given) in (T, 2)


@pytest.mark.parametrize("answer", [explanation, suspects])
def test_a_frame_without_pandas_says_what_to_install(answer, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(whence.MissingExtraError, match=r"pandas.*pip install 'whence\[report\]'"):
        answer().to_frame()


def test_shares_are_of_the_size_of_the_sum():
    about = {"decomposes_prediction": True}
    totals = np.asarray([2.0, -4.0, 0.0])
    values, against = np.asarray([[1.0, 0.5]] * T), np.asarray([[-2.0, -1.0]] * T)
    given = explanation(totals=totals, values=values, opponent_values=against, about=about)
    np.testing.assert_array_equal(given.shares, [[0.5, 0.25], [0.25, 0.125], [np.nan, np.nan]])
    np.testing.assert_array_equal(given.opponent_shares, [[-1, -0.5], [-0.5, -0.25], [np.nan, np.nan]])
    frame = given.to_frame()
    assert frame["share"].tolist()[:8] == [0.5, 0.25, -1, -0.5, 0.25, 0.125, -0.5, -0.25]
    assert frame["share"][8:].isna().all()


def test_there_is_no_share_of_what_is_not_a_prediction():
    given = explanation()
    assert not given.decomposes_prediction
    assert np.isnan(given.shares).all()
    assert given.to_frame()["share"].isna().all()


# ---- other frames and files ---------------------------------------------------------------------


@pytest.mark.parametrize("answer", [explanation, suspects])
def test_a_frame_of_polars_holds_the_same(answer):
    pytest.importorskip("polars")
    ours, theirs = answer().to_frame(), answer().to_frame("polars")
    assert type(theirs).__module__.startswith("polars")
    assert theirs.columns == list(ours.columns)
    for name in theirs.columns:
        np.testing.assert_array_equal(theirs[name].to_numpy(), ours[name].to_numpy())


def test_ids_of_a_frames_index_are_texts_in_polars():
    polars = pytest.importorskip("polars")
    given = explanation(sample_ids=np.asarray(["x", "y", "z"], dtype=object))
    assert given.to_frame("polars")["sample"].dtype == polars.String


def test_labels_along_a_sequence_are_lists():
    polars = pytest.importorskip("polars")
    given = explanation(labels=np.asarray([[1, 0], [1, -1], [0, 0]]))
    assert given.to_frame()["label"][4] == [1, -1]
    frame = given.to_frame("polars")
    assert frame["label"].dtype == polars.List(polars.Int64)
    assert frame["label"][4].to_list() == [1, -1]


def test_a_library_that_is_not_known():
    with pytest.raises(whence.WhenceError, match=r"library: expected 'pandas' or 'polars', got 'dask'"):
        explanation().to_frame("dask")


@pytest.mark.parametrize("answer", [explanation, suspects])
def test_parquet_holds_the_frame_and_what_was_computed(answer, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pandas = pytest.importorskip("pandas")
    given = answer()
    file = given.to_parquet(tmp_path / "answer.parquet")
    pandas.testing.assert_frame_equal(pandas.read_parquet(file), given.to_frame(), check_dtype=False)
    about = json.loads(parquet.read_schema(file).metadata[b"whence"])
    assert about.items() >= given.about.items()
    assert about.get("score") == getattr(given, "score", None)
    with pytest.raises(whence.WhenceError, match="folder that exists"):
        given.to_parquet(tmp_path / "missing" / "answer.parquet")


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(whence.MissingExtraError, match=r"pip install 'whence\[parquet\]'"):
        explanation().to_parquet(tmp_path / "answer.parquet")


# ---- by id --------------------------------------------------------------------------------------


def assert_is_part(part, whole, rows):
    for field in dataclasses.fields(part):
        value, expected = getattr(part, field.name), getattr(whole, field.name)
        if field.name in ("about", "score"):
            assert value == expected
        elif expected is None:
            assert value is None
        else:
            np.testing.assert_array_equal(value, expected[rows])


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        ("y", [1]),
        (["z", "x"], [2, 0]),
        (np.asarray(["z"]), [2]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
    ],
)
@pytest.mark.parametrize("labels", [np.asarray([1, 1, 0]), None])
def test_parts_of_an_explanation(key, rows, labels):
    given = explanation(labels=labels)
    assert_is_part(given[key], given, rows)


def test_parts_of_suspects():
    given = suspects()
    assert_is_part(given[2], given, [1])
    assert_is_part(given[np.int64(4)], given, [0])
    assert_is_part(given[[2, 4]], given, [1, 0])
    assert_is_part(given[:1], given, [0])


def test_an_id_that_names_two_samples_gives_both():
    given = explanation(sample_ids=np.asarray(["x", "y", "x"]))
    assert_is_part(given["x"], given, [0, 2])


def test_iteration_gives_one_sample_at_a_time():
    given = explanation()
    parts = list(given)
    assert [part.sample_ids.tolist() for part in parts] == [["x"], ["y"], ["z"]]
    assert [part.ids.tolist() for part in suspects()] == [[4], [2]]
    assert "y" in given
    assert "w" not in given
    assert 2 in suspects()
    assert 0 not in suspects()


def test_an_id_that_is_not_there_is_told_which_are():
    with pytest.raises(whence.WhenceError, match=r"explanation\['w'\].*The ids are x, y, z\."):
        explanation()["w"]
    with pytest.raises(whence.WhenceError, match=r"suspects\[3\].*The ids are 4, 2\."):
        suspects()[[4, 3]]
    many = whence.Suspects(*[np.arange(25)] * 2, "loss", *[np.arange(25)] * 2)
    with pytest.raises(whence.WhenceError, match=r"The ids are 0, 1, .*, 9 and 15 more\."):
        many[99]


# ---- in notebooks -------------------------------------------------------------------------------


class Parsed(HTMLParser):
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data)


def test_notebooks_show_a_small_table():
    page = Parsed(explanation()._repr_html_())
    assert page.tags.count("tr") == 1 + T
    assert "Explanation of 3 predictions by the 2 strongest training samples" in page.texts[0]
    assert {"sample", "predicted", "label", "speaks for it", "speaks against it"} <= set(page.texts)
    page = Parsed(explanation(labels=None)._repr_html_())
    assert "label" not in page.texts
    page = Parsed(suspects()._repr_html_())
    assert page.tags.count("tr") == 3
    assert page.texts[-4:] == ["2", "1", "1", "−0.10"]


def test_notebooks_show_the_first_of_many():
    given = whence.Suspects(*[np.arange(500)] * 2, "loss", *[np.arange(500)] * 2)
    html = given._repr_html_()
    assert "Suspects: 500 labels ranked by loss; the first 10" in html
    assert html.count("<tr>") == 11
    assert len(html) < 5000


def test_notebooks_show_markup_as_text():
    evil = "<script>alert(1)</script>"
    given = explanation(sample_ids=np.asarray([evil] * T), about={"method": evil})
    page = Parsed(given._repr_html_())
    assert "script" not in page.tags
    assert evil in page.texts


def test_notebooks_give_text_their_own_colour():
    for answer in (explanation(), suspects()):
        styles = [value for name, value in Parsed(answer._repr_html_()).attributes if name == "style"]
        assert all("color:inherit" in style for style in styles if "color:" in style)


def test_a_terminal_shows_one_line():
    assert repr(explanation()) == (
        "Explanation of 3 predictions by the 2 strongest training samples of either sign "
        "(RepresenterPointLJE)"
    )
    assert repr(suspects()) == "Suspects: 2 labels ranked by leave_one_out"


@pytest.mark.parametrize(
    ("ids", "holders"),
    [
        ([1, "a", "b"], ("polars", "parquet")),
        (["\ud800", "a", "b"], ("polars", "parquet")),
        ([10**30, 1, 2], ("parquet",)),
        ([len, int, str], ("parquet",)),
    ],
)
def test_ids_that_no_table_holds(ids, holders, tmp_path):
    names = np.empty(T, dtype=object)
    names[:] = ids
    given = explanation(sample_ids=names)
    for holder in holders:
        pytest.importorskip({"parquet": "pyarrow"}.get(holder, holder))
        with pytest.raises(whence.WhenceError, match=r"ids and labels that a column of .* can hold"):
            given.to_parquet(tmp_path / "x") if holder == "parquet" else given.to_frame(holder)
    assert list(tmp_path.iterdir()) == []


def test_tuples_and_truth_values_as_ids():
    names = np.empty(T, dtype=object)
    names[:] = [(0, 1), (0, 2), True]
    given = explanation(sample_ids=names)
    assert given[(0, 2)].sample_ids.tolist() == [(0, 2)]
    assert (0, 1) in given
    assert True in given
    assert 1 not in given
