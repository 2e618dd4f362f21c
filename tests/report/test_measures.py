"""The figures of the measures hold what they are given."""

import numpy as np
import pandas
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from whence.evaluation import detection_curve  # noqa: E402
from whence.report.measures import plot_agreement, plot_detection  # noqa: E402


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
