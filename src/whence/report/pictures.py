"""How a sample looks on a page: an image, a text, or the values of a row."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whence._errors import WhenceError, described
from whence.arrays.base import as_numpy, import_extra
from whence.data.tables import plain_id
from whence.report.pixels import (
    as_array,
    is_pillow,
    nothing_to_see,
    opened,
    pillow_pixels,
    span_of,
    to_pixels,
)
from whence.report.samples import checked_samples, n_samples

__all__ = ["Gallery", "Picture", "picture_of"]

#: The longer side, in pixels, that a larger image is reduced to, by where it stands: two pixels of a file
#: for one of a common screen, so that it is sharp on finer ones too.
SIDES = {"large": 176, "small": 128, "tiny": 72}
LARGEST_SIDE = SIDES["large"]
#: From this many bytes on, an image is not kept to the last bit if that makes it smaller.
LOSSLESS_BYTES = 1024
#: Up to this side an image is shown with sharp pixels.
LARGEST_SHARP_SIDE = 48
#: How many values of a row, and how many characters of a text, are shown.
N_VALUES = 12
N_CHARACTERS = 280


@dataclass(frozen=True)
class Picture:
    """The picture of one sample on a page: an image, a text, or a row of values.

    Attributes
    ----------
    kind : {"image", "text", "row"}
    alt : str
        A description in words, for readers who cannot see it.
    source : str
        The data URI of an image.
    sharp : bool
        Whether single pixels should stay visible.
    text : str
        The words of a text.
    values : tuple of (name, value)
        The entries of a row, as text.
    """

    kind: str
    alt: str
    source: str = ""
    sharp: bool = False
    text: str = ""
    values: tuple[tuple[str, str], ...] = ()


class Gallery:
    """Samples by id, made into pictures when they are asked for.

    Parameters
    ----------
    samples : array, sequence, mapping or None
        By position (then ids are positions), or a mapping from id to sample. ``None``: there is
        nothing to show, and :meth:`picture` returns ``None``.
    argument : str
        The name of the argument in messages.

    Examples
    --------
    >>> Gallery(["good film", "bad film"], "samples").picture(1, "review 1").text
    'bad film'
    """

    def __init__(self, samples: Any, argument: str) -> None:
        samples = checked_samples(samples, argument)
        self._samples = as_numpy(samples) if hasattr(samples, "to_numpy") else samples
        self._argument = argument
        self._span: tuple[float, float] | None = None
        self._made: dict[tuple[Any, str], Picture] = {}  # a sample speaks for many predictions

    def picture(self, sample_id: Any, alt: str, size: str = "large") -> Picture | None:
        """Return the picture of one sample, no larger than ``size``: ``"large"``, ``"small"``, ``"tiny"``.

        Raises
        ------
        WhenceError
            If there is no sample of that id, or no way to show it.
        """
        if self._samples is None:
            return None
        name = plain_id(sample_id)
        made = self._made.get((name, "any")) or self._made.get((name, size))
        if made is None:
            made = picture_of(self._sample(sample_id), alt, self._argument, SIDES[size], self.span)
            is_reduced = made.kind == "image" and not made.sharp
            self._made[name, size if is_reduced else "any"] = made
        return replace(made, alt=alt)

    def pixels(self, sample_id: Any) -> np.ndarray | None:
        """Return a sample's pixels, or ``None`` if it is not an image."""
        if self._samples is None:
            return None
        sample = opened(self._sample(sample_id), self._argument)
        if is_pillow(sample):
            return pillow_pixels(sample, self._argument)
        if isinstance(sample, str | bytes | Mapping):
            return None
        array = as_array(sample, self._argument)
        return None if array.ndim < 2 else to_pixels(array, self._argument, self.span)

    @property
    def span(self) -> tuple[float, float]:
        """The smallest and the largest number in some of the images: what black and white may be."""
        if self._span is None:
            samples = self._samples
            if isinstance(samples, Mapping):
                samples = list(samples.values())
            can_look = isinstance(samples, list | tuple | np.ndarray)
            self._span = span_of(samples) if can_look else span_of(())
        return self._span

    def _sample(self, sample_id: Any) -> Any:
        name = plain_id(sample_id)
        is_position = isinstance(name, int) and name >= 0
        try:
            if not isinstance(self._samples, Mapping) and not is_position:
                raise KeyError(name)
            return self._samples[name]
        except (KeyError, IndexError):
            raise WhenceError(
                self._argument,
                f"a sample of id {name!r}",
                f"{n_samples(self._samples)} samples without it",
                "Pass every sample in the order of the ids, or a dict from id to sample.",
            ) from None


def picture_of(
    sample: Any,
    alt: str,
    argument: str = "samples",
    largest_side: int = LARGEST_SIDE,
    span: tuple[float, float] | None = None,
) -> Picture:
    """Return how one sample is shown.

    Texts are shown as text; mappings and vectors as rows of values; arrays of shape ``(H, W)``,
    ``(H, W, 1)``, ``(H, W, 3)``, ``(H, W, 4)``, or with the channels first, as images, and so are images
    of Pillow and the bytes of image files. ``span`` is that of all images; see ``to_pixels``.

    Examples
    --------
    >>> picture_of({"age": 31, "income": 2.5}, "customer 7").values
    (('age', '31'), ('income', '2.5'))
    >>> picture_of(np.zeros((8, 8)), "a black square").source[:22]
    'data:image/png;base64,'
    """
    sample = opened(sample, argument)
    if is_pillow(sample):
        return _image(pillow_pixels(sample, argument), alt, largest_side)
    if isinstance(sample, bytes):
        sample = sample.decode("utf-8", "replace")
    if isinstance(sample, str):
        cut = sample if len(sample) <= N_CHARACTERS else sample[: N_CHARACTERS - 1] + "…"
        return Picture("text", alt, text=cut)
    if isinstance(sample, Mapping):
        return Picture("row", alt, values=_entries(list(sample.items())))
    array = as_array(sample, argument)
    if array.ndim == 0 and array.dtype.kind in "US":
        return picture_of(array.item(), alt, argument, largest_side, span)
    if array.ndim == 0 and array.dtype.kind == "O":  # None, or an object that no one can look at
        raise nothing_to_see(argument, described(sample))
    if array.ndim <= 1:
        return Picture("row", alt, values=_entries(list(enumerate(array.reshape(-1).tolist()))))
    return _image(to_pixels(array, argument, span), alt, largest_side)


def _image(pixels: np.ndarray, alt: str, largest_side: int) -> Picture:
    height, width = pixels.shape[:2]
    source = _data_uri(pixels, largest_side)
    return Picture("image", alt, source=source, sharp=max(height, width) <= LARGEST_SHARP_SIDE)


def _data_uri(pixels: np.ndarray, largest_side: int) -> str:
    images = import_extra("PIL.Image", "report")
    has_webp = import_extra("PIL.features", "report").check("webp")
    image = images.fromarray(pixels)
    is_reduced = max(image.size) > largest_side
    if is_reduced:
        image.thumbnail((largest_side, largest_side))
    if is_reduced and has_webp:  # its pixels are not the user's own any more
        kind, data = "webp", _encoded(image, "WEBP", quality=80, method=2)
    else:
        kind, data = "png", _encoded(image, "PNG", optimize=True)
        if len(data) > LOSSLESS_BYTES and has_webp:
            lossy = _encoded(image, "WEBP", quality=90, method=2)
            kind, data = ("webp", lossy) if len(lossy) < len(data) else (kind, data)
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")


def _encoded(image: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def _entries(pairs: list[tuple[Any, Any]]) -> tuple[tuple[str, str], ...]:
    shown = [(str(name), f"{v:.4g}" if isinstance(v, float) else str(v)) for name, v in pairs[:N_VALUES]]
    left = len(pairs) - N_VALUES
    return (*shown, ("…", f"{left} more")) if left > 0 else tuple(shown)
