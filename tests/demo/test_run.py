"""The demo: what it says is what it computed, and the page it writes holds it."""

import re

import numpy as np
import pytest

from whence import WhenceError
from whence.demo.report import CHECKED
from whence.demo.run import load_digits, run

pytest.importorskip("keras")
pytest.importorskip("tensorflow")
pytest.importorskip("sklearn")
pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    file = tmp_path_factory.mktemp("demo") / "page.html"
    steps = []
    result = run(file, epochs=3, n_training=1700, progress=False, say=steps.append)
    return result, file.read_text(encoding="utf-8"), steps


def test_one_label_in_ten_is_wrong():
    digits = load_digits(0)
    assert digits.train_images.shape == (1437, 8, 8, 1)
    assert digits.test_images.shape == (360, 8, 8, 1)
    assert digits.is_wrong.sum() == 143
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 1
    assert set(np.unique(digits.train_labels)) == set(range(10))


def test_the_seed_decides():
    first, again, other = load_digits(3), load_digits(3), load_digits(4)
    np.testing.assert_array_equal(first.train_labels, again.train_labels)
    np.testing.assert_array_equal(first.train_images, again.train_images)
    assert (first.train_labels != other.train_labels).any()


def test_counts(tiny):
    result, _, steps = tiny
    assert (result.n_training, result.n_wrong, result.n_test) == (1700, 170, 97)
    assert result.n_checked == tuple(round(share * 1700) for share in CHECKED)
    for found in result.found.values():
        assert list(found) == sorted(found)
        assert all(count <= min(n, 170) for count, n in zip(found, result.n_checked, strict=True))
    assert len(steps) == 5


def test_values_add_up(tiny):
    gaps = tiny[0].completeness
    assert 0 < gaps.largest_sum_gap < 1e-4
    assert gaps.mean_sum_gap <= gaps.largest_sum_gap
    assert gaps.mean_gap <= gaps.largest_gap


def test_page(tiny):
    result, text, _ = tiny
    # Eight predictions with five images on either side, and the first tenth of the suspects.
    assert text.count("<img ") == 8 * 11 + 170
    assert text.count('alt="test image ') == 8
    assert text.count("data:image/png;base64,") == text.count("<img ")
    assert not re.search(r"https?:|@import|<script[^>]|<link|url\(", text)
    assert text.count("<script") == 1
    for found in result.found.values():
        for count in found:
            assert f"{count} ({count / result.n_wrong:.0%})" in text
    assert f"{result.n_right} of {result.n_test}" in text
    assert ">was " in text


def test_refuses_a_bad_path_before_it_trains(tmp_path):
    with pytest.raises(WhenceError, match="folder that exists"):
        run(tmp_path / "missing" / "page.html")


@pytest.mark.slow
def test_full_demo_finds_the_wrong_labels_and_repeats_itself(tmp_path):
    first = run(tmp_path / "1.html", progress=False)
    again = run(tmp_path / "2.html", progress=False)
    assert first.n_right / first.n_test > 0.95
    assert first.found["leave_one_out"][0] >= 70
    assert first.found["leave_one_out"][1] >= 130
    assert first.found["leave_one_out"][2] >= 140
    assert first.found["loss"][1] >= 130
    assert first.completeness.largest_sum_gap < 1e-4
    assert first.completeness.correlation > 0.8
    assert first.found == again.found
    assert first.completeness == again.completeness
    pages = [(tmp_path / name).read_text(encoding="utf-8") for name in ("1.html", "2.html")]
    without_date = [re.sub(r"Written</dt><dd>[^<]*", "", page) for page in pages]
    assert without_date[0] == without_date[1]
