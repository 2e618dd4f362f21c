"""Samples as pictures: the pixels survive, everything else is refused or shown as what it is."""

import base64
import io

import numpy as np
import pytest

from whence import WhenceError
from whence.report import pictures
from whence.report.pictures import LARGEST_SIDE, N_CHARACTERS, N_VALUES, Gallery, picture_of
from whence.report.pixels import to_pixels

images = pytest.importorskip("PIL.Image")


def decoded(picture):
    head, _, data = picture.source.partition(",")
    assert head in ("data:image/png;base64", "data:image/webp;base64")
    return np.asarray(images.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4), (3, 5, 7), (1, 5, 7)])
def test_bytes_survive(rng, shape):
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    plain = np.moveaxis(image, 0, 2) if shape[0] in (1, 3) else image
    np.testing.assert_array_equal(decoded(picture_of(image, "x")), np.squeeze(plain))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.5, 1.0]], [[0, 128, 255]]),
        ([[0.0, 100.0, 255.0]], [[0, 100, 255]]),
        ([[-2.0, 0.0, 2.0]], [[0, 128, 255]]),
        ([[0.0, 500.0, 1000.0]], [[0, 128, 255]]),
        ([[3.0, 3.0]], [[3, 3]]),
        ([[-3.0, -3.0]], [[0, 0]]),
        ([[-0.06, 0.5, 1.04]], [[0, 128, 255]]),
        ([[-1e-9, 0.5, 1.0001]], [[0, 128, 255]]),
        ([[-7.0, 100.5, 262.0]], [[0, 100, 255]]),
        ([[0.0, 1.0, 2.5]], [[0, 102, 255]]),
        ([[-0.04, 0.0, 0.04]], [[0, 128, 255]]),
        ([[-1e308, 1e308]], [[0, 255]]),
    ],
)
def test_ranges_of_numbers(values, expected):
    np.testing.assert_array_equal(to_pixels(np.asarray(values)), expected)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 1], int, [0, 255]),
        ([0, 200], np.uint16, [0, 200]),
        ([0, 2048, 4095], np.uint16, [0, 128, 255]),
        ([0, 32768, 60000], np.uint16, [0, 128, 233]),
        ([0, 10**6], int, [0, 255]),
        ([-1, 0, 1], int, [0, 128, 255]),
        ([0, 1], np.float16, [0, 255]),
    ],
)
def test_ranges_of_integers(values, dtype, expected):
    np.testing.assert_array_equal(to_pixels(np.asarray([values], dtype)), [expected])


def test_images_of_a_gallery_have_one_scale():
    """A dark image among others stays dark: 1 is white only if nothing is whiter."""
    dark, bright = np.full((4, 4), 1.0), np.full((4, 4), 250.0)
    for samples in ([dark, bright], {0: dark, 1: bright}, np.stack([dark, bright])):
        gallery = Gallery(samples, "samples")
        assert decoded(gallery.picture(0, "x")).max() == 1
        assert gallery.pixels(0).max() == 1
    assert decoded(Gallery([dark], "samples").picture(0, "x")).max() == 255


COLORS = np.asarray([[[250, 10, 20], [10, 240, 30]], [[5, 15, 220], [128, 128, 128]]], dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr", "HSV", "L", "LA", "PA", "1", "RGBX"])
def test_images_of_pillow_look_as_they_do(mode):
    """Against Pillow's own conversion, pixel by pixel."""
    image = images.fromarray(COLORS).convert(mode if mode not in ("PA", "HSV") else "RGB").convert(mode)
    expected = np.asarray(image.convert("RGBA"))
    np.testing.assert_array_equal(shown_rgba(picture_of(image, "x")), expected)
    file = io.BytesIO()
    if mode in ("RGB", "P", "RGBA", "L", "LA", "1"):
        image.save(file, "PNG")
        np.testing.assert_array_equal(shown_rgba(picture_of(file.getvalue(), "x")), expected)


def shown_rgba(picture):
    _, _, data = picture.source.partition(",")
    return np.asarray(images.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))


def test_a_transparent_palette_stays_transparent():
    image = images.fromarray(COLORS).convert("P")
    image.info["transparency"] = image.getpixel((0, 0))
    shown = shown_rgba(picture_of(image, "x"))
    assert shown[0, 0, 3] == 0
    assert shown[1, 1, 3] == 255


def test_wide_and_turned_images():
    wide = images.fromarray(np.asarray([[0, 32896, 65535]], dtype=np.uint16))
    np.testing.assert_array_equal(decoded(picture_of(wide, "x")), [[0, 128, 255]])
    np.testing.assert_array_equal(
        decoded(picture_of(images.fromarray(np.float32([[0, 1]])), "x")), [[0, 255]]
    )
    turned = images.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    turned.getexif()[0x0112] = 6  # turned by a quarter
    assert decoded(picture_of(turned, "x")).shape == (3, 2)
    damaged = io.BytesIO()
    images.fromarray(COLORS).save(damaged, "PNG")
    with pytest.raises(WhenceError, match=r"samples: expected texts, rows, or images"):
        picture_of(damaged.getvalue()[:50], "x")


def test_numbers_that_are_no_brightness():
    for bad in (np.zeros((2, 2), complex), np.full((2, 2), "a"), np.full((2, 2), None)):
        with pytest.raises(WhenceError, match="a sample of dtype"):
            to_pixels(bad)


def test_booleans_are_black_and_white():
    np.testing.assert_array_equal(to_pixels(np.asarray([[True, False]])), [[255, 0]])


def test_large_images_are_reduced_and_small_ones_keep_sharp_pixels():
    large = picture_of(np.zeros((600, 400), dtype=np.uint8), "x")
    height, width = decoded(large).shape[:2]
    assert (height, width) == (LARGEST_SIDE, round(LARGEST_SIDE * 2 / 3))
    assert not large.sharp
    assert decoded(picture_of(np.zeros((600, 400), dtype=np.uint8), "x", largest_side=72)).shape[:2] == (
        72,
        48,
    )
    assert picture_of(np.zeros((8, 8)), "x").sharp


def test_texts_are_cut():
    assert picture_of("short", "x").text == "short"
    assert picture_of(np.asarray("short"), "x").text == "short"
    assert picture_of(b"sh\xffrt", "x").text == "sh�rt"
    assert len(picture_of("a" * 1000, "x").text) == N_CHARACTERS


def test_rows_name_their_values():
    assert picture_of(np.asarray([1, 2]), "x").values == (("0", "1"), ("1", "2"))
    long = picture_of(np.arange(N_VALUES + 3), "x").values
    assert long[-1] == ("…", "3 more")
    assert len(long) == N_VALUES + 1


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 2, 2)), np.zeros((5, 7, 2)), np.zeros((0, 4))])
def test_shapes_that_are_no_image(bad):
    with pytest.raises(WhenceError, match=r"training_samples: expected texts, rows, or images"):
        picture_of(bad, "x", "training_samples")


def test_pixels_that_are_not_finite():
    with pytest.raises(WhenceError, match="finite pixels"):
        picture_of(np.asarray([[0.0, np.nan]]), "x")


def test_gallery_by_position_and_by_id():
    by_position = Gallery(np.arange(12).reshape(3, 4), "samples")
    assert by_position.picture(np.int64(2), "x").values[0] == ("0", "8")
    by_id = Gallery({"a": "first"}, "samples")
    assert by_id.picture(np.asarray(["a"])[0], "x").text == "first"
    assert Gallery(None, "samples").picture(0, "x") is None
    assert Gallery(None, "samples").pixels(0) is None
    assert Gallery(["text"], "samples").pixels(0) is None


@pytest.mark.pairwise
@pytest.mark.parametrize("wrong", [3, -1, "a"])
@pytest.mark.parametrize("samples", [["x", "y", "z"], {0: "x"}, np.zeros((3, 2))])
def test_gallery_without_that_sample(samples, wrong):
    with pytest.raises(WhenceError, match=r"samples: expected a sample of id"):
        Gallery(samples, "samples").picture(wrong, "x")


def test_photographs_cost_little(rng):
    y, x = np.mgrid[:40, :40] / 40
    photo = np.stack([x, y, 0.5 * x + 0.5 * y], axis=2) + 0.05 * rng.normal(size=(40, 40, 3))
    picture = picture_of(np.clip(photo, 0, 1), "x")
    assert picture.source.startswith("data:image/webp")
    assert len(picture.source) < 2500  # as PNG 5,000 and more
    close = np.abs(decoded(picture) / 255.0 - np.clip(photo, 0, 1))
    assert close.mean() < 0.05


def test_a_gallery_makes_each_picture_once(rng, monkeypatch):
    made = []
    plain = pictures.picture_of
    monkeypatch.setattr(pictures, "picture_of", lambda *args: made.append(args) or plain(*args))
    small, large = Gallery(rng.random((2, 8, 8)), "samples"), Gallery(rng.random((2, 300, 300)), "samples")
    for gallery, times in ((small, 1), (large, 2)):
        made.clear()
        shown = [gallery.picture(np.int64(1), f"the {size}", size) for size in ("tiny", "small", "tiny")]
        assert len(made) == times
        assert [picture.alt for picture in shown] == ["the tiny", "the small", "the tiny"]
        assert shown[0].source == shown[2].source
    assert max(decoded(shown[0]).shape) == 72
    assert max(decoded(shown[1]).shape) == 128
