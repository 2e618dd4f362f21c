"""Figures: the bars are the values, in order, under their names."""

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


def test_thumbnails_stand_beside_images_only(explanation, rng):
    offsetbox = pytest.importorskip("matplotlib.offsetbox")
    _, axes = pyplot.subplots(2)
    assert explanation.plot(training_samples=rng.random((5, 8, 8)), ax=axes[0]) is axes[0]
    explanation.plot(training_samples=["text"] * 5, ax=axes[1])
    counts = [sum(isinstance(a, offsetbox.AnnotationBbox) for a in ax.artists) for ax in axes]
    assert counts == [4, 0]
    axes[0].figure.canvas.draw()


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
