"""The inputs and labels of a model, made of those in files; no framework is needed for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from whence._errors import WhenceError

__all__ = ["InputSpec", "are_padded", "is_text"]

#: Names of pixel ranges, and what bytes are divided by and then lowered by.
PIXELS = {"0..255": (1.0, 0.0), "0..1": (255.0, 0.0), "-1..1": (127.5, 1.0)}


@dataclass(frozen=True)
class InputSpec:
    """The form of a model's inputs and labels.

    Attributes
    ----------
    layout : {"channels last", "channels first", "flat"}
        How a batch of images is laid out.
    dtype : str or None
        The dtype of real inputs; ``None`` leaves them.
    frames : bool
        Whether tables reach the model as frames, which it looks columns up in by name.
    columns : list of str or None
        The columns that the model was fitted on, if it knows them.
    image_shape : list of three int or None
        Height, width and channels that the model declares.
    pixels : str
        A key of ``PIXELS``.
    classes : list of str or None
        Names of the classes, in the order of the outputs.
    values : list or None
        The model's label of each class, in the order of ``classes``; ``None``: its number.
    """

    layout: str
    dtype: str | None
    frames: bool = False
    columns: list[str] | None = None
    image_shape: list[Any] | None = None
    pixels: str = "0..255"
    classes: list[str] | None = None
    values: list[Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    def inputs(self, raw: Any, are_images: bool) -> Any:
        """Return a batch as the model takes it.

        Parameters
        ----------
        raw : frame, array, dict of arrays, or array of bytes ``(n, H, W, C)``
            As :class:`~whence.cli.data.Samples` gives it.
        are_images : bool
        """
        if are_images:
            return self._images(raw)
        if isinstance(raw, Mapping):
            return {name: self._real(array) for name, array in raw.items()}
        if hasattr(raw, "columns"):
            return raw if self.frames else self._matrix(raw)
        return self._real(raw)

    def _images(self, pixels: np.ndarray) -> np.ndarray:
        divisor, lowered = PIXELS[self.pixels]
        scaled = pixels.astype(self.dtype or "float64") / divisor - lowered
        scaled = scaled.astype(self.dtype or "float64")
        if self.layout == "channels first":
            return np.ascontiguousarray(np.moveaxis(scaled, 3, 1))
        return scaled if self.layout == "channels last" else scaled.reshape(len(scaled), -1)

    def _real(self, array: np.ndarray) -> np.ndarray:
        if self.dtype is not None and array.dtype.kind == "f":
            return array.astype(self.dtype, copy=False)
        return array

    def _matrix(self, frame: Any) -> np.ndarray:
        texts = [str(name) for name in frame.columns if frame[name].dtype.kind not in "biuf"]
        if texts:
            raise WhenceError(
                f"columns {', '.join(texts[:5])}",
                "numbers, which is what this model takes",
                f"values such as {frame[texts[0]].iloc[0]!r}",
                "Name the columns to use with --inputs, or give a pipeline, which takes them.",
            )
        return np.ascontiguousarray(frame.to_numpy(dtype=self.dtype or "float64"))

    # ---------------------------------------------------------------------------------- labels

    def labels(self, raw: np.ndarray, where: str) -> np.ndarray:
        """Return labels as the model takes them.

        Parameters
        ----------
        raw : array of shape (n, ...)
            Names or numbers of classes, or values.
        where : str
            The name of the labels in messages.
        """
        if not is_text(raw):
            return self._real(raw.astype(np.int64) if raw.dtype.kind == "b" else raw)
        names = [_name(one) for one in raw.ravel()]
        if are_padded(raw) and not set(names) <= set(self.classes or ()):  # numbers after all
            return np.asarray([int(name) for name in names]).reshape(raw.shape)
        if self.classes is None:
            raise WhenceError(
                where,
                "numbers, since the names of the classes are not known",
                repr(names[0]),
                "Name the classes in the order of the outputs: --classes cat,dog",
            )
        values = range(len(self.classes)) if self.values is None else self.values
        taken = dict(zip(self.classes, values, strict=True))
        unknown = sorted({name for name in names if name not in taken})
        if unknown:
            raise WhenceError(
                where,
                f"one of the classes {', '.join(self.classes[:10])}",
                ", ".join(map(repr, unknown[:5])),
                "Leave these samples out, or name all classes with --classes.",
            )
        dtype = object if any(isinstance(value, str) for value in values) else None
        return np.asarray([taken[name] for name in names], dtype=dtype).reshape(raw.shape)


def are_padded(labels: np.ndarray) -> bool:
    """Return whether labels are texts of digits, with zeros in front: names such as 007, or numbers.

    Examples
    --------
    >>> are_padded(np.asarray(["007", "010"])), are_padded(np.asarray(["7", "10"]))
    (True, False)
    """
    names = [_name(one) for one in labels.ravel()] if is_text(labels) else []
    are_digits = bool(names) and all(name.isascii() and name.isdigit() for name in names)
    return are_digits and any(name != str(int(name)) for name in names)


def is_text(labels: np.ndarray) -> bool:
    """Return whether labels are names."""
    return labels.dtype.kind in "OUS"


def _name(one: Any) -> str:
    return one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one)
