"""The figures of the measures hold what they are given."""

import numpy as np
import pandas
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from whence.evaluation import detection_curve  # noqa: E402
from whence.report.measures import plot_agreement, plot_detection, plot_removal  # noqa: E402


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")


def test_detection_is_drawn_a_line_a_score():
    is_wrong = np.arange(20) < 4
    good = detection_curve(-np.arange(20.0), is_wrong, points=21)
    bad = detection_curve(np.arange(20.0), is_wrong, points=21)
    ax = plot_detection({"good": good, "mixed": [good, bad]})
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_array_equal(lines["good"], good["found"])
    np.testing.assert_allclose(lines["mixed"], (good["found"] + bad["found"]) / 2)
    assert len(ax.collections) == 1
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["by chance", "good", "mixed"]


def test_agreement_is_drawn_a_point_a_pair():
    frame = pandas.DataFrame({"predicted": [1.0, 2.0], "actual": [1.5, 1.0]})
    _, given = matplotlib.pyplot.subplots()
    ax = plot_agreement(frame, ax=given)
    assert ax is given
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), frame.to_numpy())


def test_removal_is_drawn_a_line_a_method():
    frame = pandas.DataFrame(
        {
            "sample": [0, 0, 0, 0, 1, 1, 1, 1],
            "k": [1, 1, 5, 5] * 2,
            "removed": ["supporters", "random"] * 4,
            "actual": [1.0, 0.0, 3.0, 0.2, 2.0, 0.1, 5.0, 0.4],
        }
    )
    ax = plot_removal({"one": frame, "other": frame.assign(actual=2 * frame["actual"])})
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["at random", "one", "other"]
    np.testing.assert_array_equal(lines["one"].get_xdata(), [1, 5])
    np.testing.assert_allclose(lines["one"].get_ydata(), [1.5, 4])
    np.testing.assert_allclose(lines["other"].get_ydata(), [3, 8])
    np.testing.assert_allclose(lines["at random"].get_ydata(), [0.05, 0.3])
