"""Figures: the bars are the values, in order, under their names."""

import dataclasses

import numpy as np
import pytest

from whence import Explanation, Suspects, WhenceError

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


@pytest.fixture
def explanation():
    return Explanation(
        ids=np.asarray([[4, 0]]),
        values=np.asarray([[0.5, 0.25]]),
        opponent_ids=np.asarray([[3, 1]]),
        opponent_values=np.asarray([[-1.0, -0.125]]),
        sample_ids=np.asarray([7]),
        outputs=np.asarray([1]),
        signs=np.ones(1),
        predictions=np.asarray([1]),
        labels=None,
        pre_activations=np.asarray([3.0]),
        totals=np.asarray([3.25]),
        training_labels=np.asarray([[1, 1]]),
        opponent_labels=np.asarray([[0, 0]]),
    )


@pytest.fixture
def suspects():
    return Suspects(
        np.asarray([3, 1]), np.asarray([2.5, 0.5]), "loss", np.asarray([0, 1]), np.asarray([1, 0])
    )


def names(ax):
    return [tick.get_text() for tick in ax.get_yticklabels()]


def test_explanation(explanation):
    ax = explanation.plot(class_names=["cat", "dog"])
    assert [bar.get_width() for bar in ax.patches] == [0.5, 0.25, -0.125, -1.0]
    assert names(ax) == ["4, labelled dog", "0, labelled dog", "1, labelled cat", "3, labelled cat"]
    assert ax.get_title(loc="left") == "Sample 7: predicted dog"
    low, high = ax.get_ylim()
    assert low > high  # the strongest supporter on top
    ax.figure.canvas.draw()


def boxes(ax):
    offsetbox = pytest.importorskip("matplotlib.offsetbox")
    return [artist for artist in ax.artists if isinstance(artist, offsetbox.AnnotationBbox)]


def test_images_stand_beside_their_bars(explanation, rng):
    _, given = pyplot.subplots()
    images = rng.random((5, 8, 8))
    assert explanation.plot(training_samples=images, ax=given) is given
    bars, beside = explanation.plot(training_samples=images).figure.axes[:2]
    for ax in (given, beside):
        assert [box.xy[1] for box in boxes(ax)] == [0, 1, 2, 3]
        pixels = boxes(ax)[2].offsetbox.image.get_array()
        np.testing.assert_array_equal(pixels, np.rint(255 * images[1]))
        ax.figure.canvas.draw()
    assert boxes(bars) == []


def test_texts_stand_beside_their_bars(explanation):
    texts = [f"sample {i} costs $5 or $6" for i in range(4)] + ["a long text " * 50]
    beside = explanation.plot(training_samples=texts).figure.axes[1]
    shown = [(text.get_position()[1], text.get_text()) for text in beside.texts]
    assert shown[1:] == [(1, texts[0]), (2, texts[1]), (3, texts[3])]
    assert shown[0][1].count("\n") == 1
    assert shown[0][1].endswith(" …")
    beside.figure.canvas.draw()  # dollars are no formula


def test_rows_stand_beside_their_bars_as_a_table(explanation):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({f"a long name {i}": [f"{10 * i + j}" for j in range(5)] for i in range(7)})
    for samples in (frame, frame.to_dict("records")):
        beside = explanation.plot(training_samples=samples).figure.axes[1]
        texts = {}
        for text in beside.texts:
            texts.setdefault(text.get_position()[1], []).append(text.get_text())
        heads = texts.pop(-0.75)
        assert heads == ["a long n…"] * 5 + ["+ 2"]
        rows = {place: [str(10 * i + row) for i in range(5)] for place, row in enumerate([4, 0, 1, 3])}
        assert texts == rows
        beside.figure.canvas.draw()


def test_there_is_no_panel_for_samples_that_are_not_given(explanation):
    assert len(explanation.plot().figure.axes) == 1


@pytest.fixture
def complete(explanation):
    two = explanation[[7, 7]]
    totals = np.asarray([4.0, -2.0])
    return dataclasses.replace(two, totals=totals, about={"decomposes_prediction": True})


def test_the_share_that_the_first_samples_explain(complete):
    ax = complete[:1].plot_cumulative()
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines["supporters"] == [[0, 0], [1, 12.5], [2, 18.75]]
    assert lines["opponents"] == [[0, 0], [1, -25], [2, -28.125]]
    assert lines["both"] == [[0, 0], [1, -12.5], [2, -9.375]]
    mean = complete.plot_cumulative(ax=pyplot.subplots()[1])
    lines = {line.get_label(): list(line.get_ydata()) for line in mean.lines}
    assert lines["supporters"] == [0, (12.5 + 25) / 2, (18.75 + 37.5) / 2]
    assert mean.get_ylabel() == "% of the prediction, mean"
    mean.figure.canvas.draw()


def test_the_curve_stands_below_the_bars(complete):
    bars, curve = complete.plot(1).figure.axes
    assert curve.lines[0].get_ydata().tolist() == [0, 25, 37.5]
    assert bars.get_xlabel() == "contribution to the pre-activation"
    _, given = pyplot.subplots()
    complete.plot(ax=given)
    assert len(given.figure.axes) == 1
    bars.figure.canvas.draw()


def test_scores_have_no_curve(explanation):
    with pytest.raises(WhenceError, match="explanation: expected one whose values sum to a prediction"):
        explanation.plot_cumulative()
    assert explanation.plot().get_xlabel() == "score"


def test_suspects(suspects):
    ax = suspects.plot()
    assert [bar.get_width() for bar in ax.patches] == [2.5, 0.5]
    assert names(ax) == ["3, labelled 0, model says 1", "1, labelled 1, model says 0"]
    assert ax.get_xlabel() == "training loss"
    assert len(suspects.plot(1).patches) == 1


def test_bad_input(explanation, suspects):
    with pytest.raises(WhenceError, match="sample: expected a place below 1"):
        explanation.plot(1)
    with pytest.raises(WhenceError, match="k"):
        suspects.plot(0)
