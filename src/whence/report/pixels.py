"""Images of every kind as bytes, such that they look as their owner knows them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from whence._errors import WhenceError, described
from whence.arrays.base import as_numpy, import_extra

__all__ = ["as_array", "is_pillow", "nothing_to_see", "opened", "pillow_pixels", "span_of", "to_pixels"]

#: How far beyond black and white a number may lie, in shares of white, as after interpolation.
OVERSHOOT = 0.1
#: Numbers with fractions up to this are no bytes: such an image would be all but black.
LARGEST_FRACTION = 8.0
#: White in integers of 10, 12, 14 and 16 bits.
WHITES = (1023, 4095, 16383, 65535)
#: How many images are looked at to find out what black and white are.
IMAGES_LOOKED_AT = 64
#: How the files of images begin that a page shows.
MAGIC = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def nothing_to_see(argument: str, got: str) -> WhenceError:
    """Return the error for what is no sample that a person could look at."""
    return WhenceError(
        argument,
        "texts, rows, or images of shape (H, W) or (H, W, 1, 3 or 4)",
        got,
        "Pass what a person should see of each sample, not what the model takes.",
    )


# ------------------------------------------------------------------------------------------ Pillow


def is_pillow(sample: Any) -> bool:
    """Return whether a sample is an image of Pillow."""
    return any(base.__module__ == "PIL.Image" for base in type(sample).__mro__)


def opened(sample: Any, argument: str) -> Any:
    """Return the bytes of an image file as an image of Pillow, anything else as it is."""
    if not isinstance(sample, bytes):
        return sample
    is_webp = sample[:4] == b"RIFF" and sample[8:12] == b"WEBP"
    if not is_webp and not sample.startswith(MAGIC):
        return sample
    try:
        return import_extra("PIL.Image", "report").open(io.BytesIO(sample))
    except OSError:
        if sample.startswith(b"BM"):  # two letters begin many a text
            return sample
        raise nothing_to_see(argument, "the bytes of a damaged image") from None


def pillow_pixels(image: Any, argument: str = "samples") -> np.ndarray:
    """Return an image of Pillow as bytes ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``, as viewers show it.

    Palettes and other colour spaces become red, green and blue, transparency is kept, and a camera's
    orientation is heeded.
    """
    try:
        image = import_extra("PIL.ImageOps", "report").exif_transpose(image)
        if image.mode.startswith("I;16"):
            return np.rint(np.asarray(image).astype(np.float64) / 257).astype(np.uint8)
        if image.mode in ("I", "F"):
            return to_pixels(np.asarray(image), argument)
        has_alpha = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
        if image.mode == "LAB":
            colors = import_extra("PIL.ImageCms", "report")
            profiles = colors.createProfile("LAB"), colors.createProfile("sRGB")
            image = colors.profileToProfile(image, *profiles, outputMode="RGB")
        plain = "RGBA" if has_alpha else "L" if image.mode in ("1", "L") else "RGB"
        return np.asarray(image.convert(plain))
    except WhenceError:
        raise
    except Exception as error:  # Pillow has many for what is damaged
        got = f"an image that cannot be read ({type(error).__name__}: {error})"
        raise nothing_to_see(argument, got) from error


# ------------------------------------------------------------------------------------------ arrays


def as_array(sample: Any, argument: str) -> np.ndarray:
    """Return a sample as an array, or raise if it is nothing that a person could look at."""
    try:
        return as_numpy(sample)
    except Exception as error:  # of parts that make no array, as in a pair of inputs and label
        got = f"{described(sample)} ({type(error).__name__}: {error})"
        raise nothing_to_see(argument, got) from error


def span_of(samples: Any) -> tuple[float, float]:
    """Return the smallest and the largest finite number in some of the images among samples.

    One image does not tell whether 1 is white or all but black; many do.
    """
    low, high = np.inf, -np.inf
    step = max(1, len(samples) // IMAGES_LOOKED_AT)
    for place in range(0, len(samples), step):
        sample = samples[place]
        if isinstance(sample, str | bytes | dict) or is_pillow(sample):
            continue
        try:
            array = as_numpy(sample)
        except Exception:  # it is told when that sample is shown
            continue
        if array.ndim < 2 or array.dtype.kind not in "iuf" or not array.size:
            continue
        ends = float(array.min()), float(array.max())
        if np.isfinite(ends).all():
            low, high = min(low, ends[0]), max(high, ends[1])
    return low, high


def to_pixels(
    image: np.ndarray, argument: str = "samples", span: tuple[float, float] | None = None
) -> np.ndarray:
    """Return an image as bytes, shape ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``.

    Bytes are taken as they are. Of other numbers, black and white are 0 and 1, 0 and 255, or, of integers,
    0 and the largest of 10, 12, 14 or 16 bits, whichever fits first; a little beyond them, as after
    interpolation, is black and white too. Any other range is stretched from its smallest to its largest.

    Parameters
    ----------
    image : array
    argument : str
    span : (float, float), optional
        The smallest and the largest number of all images, so that all are shown in one scale.

    Examples
    --------
    >>> to_pixels(np.asarray([[0.0, 1.0]])).tolist(), to_pixels(np.asarray([[0.0, 1.03]])).tolist()
    ([[0, 255]], [[0, 255]])
    >>> to_pixels(np.asarray([[-1.0, 1.0]])).tolist()
    [[0, 255]]
    """
    channels = (1, 3, 4)
    if image.ndim == 3 and image.shape[2] not in channels and image.shape[0] in channels:
        image = np.moveaxis(image, 0, 2)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in channels) or not image.size:
        raise nothing_to_see(argument, f"a sample of shape {image.shape}")
    if image.dtype.kind not in "biuf":
        raise nothing_to_see(argument, f"a sample of dtype {image.dtype}")
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    values = np.asarray(image, dtype=np.float64)
    ends = float(values.min()), float(values.max())
    if not np.isfinite(ends).all():
        raise WhenceError(argument, "finite pixels", "NaN or infinity", "Check the images.")
    low, high = ends if span is None else (min(ends[0], span[0]), max(ends[1], span[1]))
    is_whole = image.dtype.kind != "f" or bool((values == np.rint(values)).all())
    white = _white(low, high, is_whole, image.dtype.kind != "f")
    if white is not None:
        return np.rint(255 * np.clip(values / white, 0, 1)).astype(np.uint8)
    half = high / 2 - low / 2 or 0.5  # halves, since the range may be larger than the largest number
    return np.rint(255 * np.clip((values / 2 - low / 2) / half, 0, 1)).astype(np.uint8)


def _white(low: float, high: float, is_whole: bool, is_integer: bool) -> float | None:
    """Return the number that is white, 0 being black; None where the range is to be stretched."""
    if _is_within(low, high, 1.0) and (not is_integer or low >= 0):
        return 1.0
    if (is_whole or high > LARGEST_FRACTION) and _is_within(low, high, 255.0):
        return 255.0
    if is_integer and low >= 0:
        return next((float(white) for white in WHITES if high <= white), None)
    return None


def _is_within(low: float, high: float, white: float) -> bool:
    """Return whether numbers lie between 0 and white, or a little beyond."""
    beyond = OVERSHOOT * white
    return high <= white + beyond and (low >= 0 or (low >= -beyond and high >= white / 2))
