"""Shards: runs of consecutive training samples, and batches on their way into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, astype, check_finite, itemsize, namespace
from whence.arrays.sparse import SparseRows
from whence.ihvp.collected import CurvaturePart
from whence.layers.linear_layer import Block
from whence.layers.rows import Rows

__all__ = [
    "RowBuffer",
    "Shard",
    "check_feature_dtype",
    "joined",
    "joined_weights",
    "narrow",
    "shard_rows",
    "widen",
]

#: Bytes of features that one shard holds, counted in the precision that they are used in.
SHARD_BYTES = 32 * 2**20

#: The smallest number that half precision holds with all its digits.
SMALLEST_HALF = 2.0**-14
#: How many features of a batch are enough to tell that all of them are smaller.
ENOUGH_ENTRIES = 32

#: What features may be stored as, where another dtype than their own is asked for.
FEATURE_DTYPES = ("float16", "float32")


def widen(features: Array) -> Array:
    """Return features in the precision of arithmetic: half precision is for storing only."""
    xp = namespace(features)
    return features if itemsize(features) >= 4 else astype(features, xp.float32)


def narrow(features: Array, dtype: str | None, where: str = "the training set") -> Array:
    """Return features in the precision of the store, or raise if they do not fit.

    Examples
    --------
    >>> narrow(np.asarray([[1.0, 70000.0]]), "float16")
    Traceback (most recent call last):
        ...
    whence._errors.WhenceError: feature_dtype: expected finite values in the training set, got 1 NaN or
    infinite values. Features above 65504 do not fit into float16: store them as float32.
    """
    if dtype is None:
        return features
    with np.errstate(over="ignore"):  # looked for right here
        narrowed = astype(features, getattr(namespace(features), dtype))
    if dtype == "float16":
        fix = "Features above 65504 do not fit into float16: store them as float32."
        check_finite(narrowed, "feature_dtype", where, fix)
        if _loses_digits(features):
            raise WhenceError(
                "feature_dtype",
                f"features of {SMALLEST_HALF:.1e} and more in {where}",
                "smaller ones only",
                "They lose their digits in float16: store them as float32.",
            )
    return narrowed


def _loses_digits(features: Array) -> bool:
    """Return whether all features are below what half precision holds; constants such as 1 aside."""
    entries = features.matrix.data if isinstance(features, SparseRows) else features
    xp = namespace(entries)
    sizes = xp.abs(entries)
    counted = (sizes > 0) & (sizes != 1)
    if int(xp.sum(astype(counted, xp.int64))) < ENOUGH_ENTRIES:
        return False  # a small batch may hold little by chance
    return float(xp.max(xp.where(counted, sizes, xp.zeros_like(sizes)))) < SMALLEST_HALF


def check_feature_dtype(dtype: Any) -> str | None:
    """Return the name of a dtype that features can be stored in; ``None`` leaves them as they are."""
    try:
        name = None if dtype is None else getattr(np.dtype(dtype), "name", "")
    except TypeError:  # nothing that NumPy knows
        name = ""
    if name is None or name in FEATURE_DTYPES:
        return name
    raise WhenceError(
        "feature_dtype", f"None or one of {', '.join(FEATURE_DTYPES)}", repr(dtype), "Choose one."
    )


@dataclass
class Shard:
    """A run of consecutive training samples.

    Attributes
    ----------
    features : array of shape (n, d), or (n, L, d) along a sequence
        As stored, perhaps in half precision; ``phi`` are the same in the precision of arithmetic.
    target : array of shape (n,) or (n, C), or (n, L, ...)
    weight : array of shape (n,) or (n, L), or None
    fingerprint : array of shape (n,), uint64
    coefficients : array of shape (n, C) or (n, L, C), or None
        What each sample's features are weighed with: its residuals, for most methods.
    gradients : Rows or None
        Where several layers are explained, the gradient of each sample's loss with respect to them.
    curvature : CurvaturePart or None
        The same of the curvature.
    """

    features: Array
    target: Array
    weight: Array | None
    fingerprint: np.ndarray
    coefficients: Array | None = None
    gradients: Rows | None = None
    curvature: CurvaturePart | None = None

    @property
    def n_samples(self) -> int:
        """How many samples it holds."""
        return int(self.features.shape[0])

    @property
    def phi(self) -> Array:
        """The features, in single precision at least."""
        return widen(self.features)

    @property
    def block(self) -> Block:
        """What the linear layer sees of it."""
        return Block(self.phi, self.target, self.weight)

    def rows(self, start: int, stop: int) -> Shard:
        """Return some of its rows, as views."""
        if start == 0 and stop == self.n_samples:
            return self

        def cut(array: Any) -> Any:
            return None if array is None else array[start:stop, ...]

        return Shard(
            cut(self.features),
            cut(self.target),
            cut(self.weight),
            cut(self.fingerprint),
            cut(self.coefficients),
            None if self.gradients is None else self.gradients[start:stop],
            None if self.curvature is None else self.curvature.between(start, stop),
        )


class RowBuffer:
    """Batches on their way into shards."""

    def __init__(self) -> None:
        self._parts: list[Shard] = []
        self.n_rows = 0

    def add(self, part: Shard) -> None:
        """Put some rows behind those that are here."""
        self._parts.append(part)
        self.n_rows += part.n_samples

    def take(self, n_rows: int) -> Shard:
        """Remove the first ``n_rows`` rows and return them as one shard."""
        taken: list[Shard] = []
        missing = n_rows
        while missing:
            part = self._parts[0]
            if part.n_samples <= missing:
                self._parts.pop(0)
            else:
                self._parts[0] = part.rows(missing, part.n_samples)
                part = part.rows(0, missing)
            taken.append(part)
            missing -= part.n_samples
        self.n_rows -= n_rows
        weights = joined_weights([(p.weight, p.features.shape[:-1]) for p in taken])
        return Shard(
            joined([p.features for p in taken]),
            joined([p.target for p in taken]),
            weights,
            np.concatenate([p.fingerprint for p in taken]),
            None,
            *several_layers(taken),
        )


def several_layers(parts: Sequence[Shard]) -> tuple[Rows | None, CurvaturePart | None]:
    """Join what is known of several layers; None where it is not known."""
    gradients = [part.gradients for part in parts if part.gradients is not None]
    curvature = [part.curvature for part in parts if part.curvature is not None]
    return (
        Rows.joined(gradients) if gradients else None,
        CurvaturePart.joined(curvature) if curvature else None,
    )


def shard_rows(phi: Array, gradients: Rows | None = None) -> int:
    """Return how many samples a shard has, whatever the batches."""
    row_bytes = int(np.prod(phi.shape[1:])) * max(4, itemsize(phi))
    if gradients is not None:
        row_bytes += 2 * gradients.n_bytes // max(1, gradients.n_samples)  # and about as much curvature
    return max(1, SHARD_BYTES // max(1, row_bytes))


def joined_weights(parts: Sequence[tuple[Any, tuple[int, ...]]]) -> Any:
    """Join sample weights ``(weight or None, shape)``; those that were not given count 1."""
    given = [weight for weight, _ in parts if weight is not None]
    if not given:
        return None
    xp, dtype = namespace(given[0]), given[0].dtype
    return joined([xp.ones(shape, dtype=dtype) if w is None else w for w, shape in parts])


def joined(arrays: list[Any]) -> Any:
    """Join along the samples; shorter sequences are padded with zeros, of weight zero, too."""
    if len(arrays) == 1:
        return arrays[0]
    xp = namespace(arrays[0])
    if arrays[0].ndim > 1:
        longest = max(array.shape[1] for array in arrays)
        arrays = [_padded(array, longest) for array in arrays]
    return xp.concat(arrays, axis=0)


def _padded(array: Any, n_positions: int) -> Any:
    xp = namespace(array)
    n, length, *rest = array.shape
    if length == n_positions:
        return array
    return xp.concat([array, xp.zeros((n, n_positions - length, *rest), dtype=array.dtype)], axis=1)
