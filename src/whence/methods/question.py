"""What is asked about a sample: one pre-activation of it, or a weighted sum of several.

A plain sample is asked about one output ``j``. A sample with positions is asked about the mean over these,
each with an output of its own,

    ``sum_l w_l (theta^T phi_l)_{j_l}``    with weights that sum to one, as they do in its loss.

Both are linear in ``theta``: the inner product with ``Q = sum_l w_l outer(phi_l, e_{j_l})``. Whatever
sums to ``theta`` over training samples therefore decomposes them completely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_array, as_numpy
from whence.search.scores import Queries

__all__ = ["Question", "hide", "join", "positions_of", "shares"]


@dataclass(frozen=True)
class Question:
    """What is asked about ``T`` samples.

    Attributes
    ----------
    phi : array of shape (T, d) or (T, L, d)
    outputs : array of shape (T,) or (T, L), integers
        Which output, of each sample or of each of its positions.
    weight : array of shape (T,) or (T, L), or None
        What it is multiplied with: a sign, and along a sequence each position's share. ``None`` means 1.

    Examples
    --------
    Two positions with features 1 and 3, of which outputs 0 and 1 are asked about, with weights 1/2:

    >>> import numpy as np
    >>> phi, outputs = np.asarray([[[1.0], [3.0]]]), np.asarray([[0, 1]])
    >>> question = Question(phi, outputs, np.full((1, 2), 0.5))
    >>> question.directions(2)
    array([[[0.5, 1.5]]])
    >>> question.under(np.asarray([[10.0, 100.0]]))
    array([155.])
    """

    phi: Array
    outputs: np.ndarray
    weight: np.ndarray | None = None

    def directions(self, n_outputs: int) -> np.ndarray:
        """Return ``Q (T, d, C)``, in float64."""
        wide = np.asarray(as_numpy(self.phi), dtype=np.float64)
        units = np.eye(n_outputs)[self.outputs]
        if self.weight is not None:
            units = units * self.weight[..., None]
        if wide.ndim == 2:
            return wide[:, :, None] * units[:, None, :]
        return np.matmul(np.swapaxes(wide, 1, 2), units)

    def inner_products(self, n_outputs: int) -> Queries:
        """Return the queries that score a sample by ``<outer(phi_i, a_i), Q_t>``."""
        phi = as_numpy(self.phi)
        if phi.ndim == 3:
            return Queries(self.directions(n_outputs), np.zeros(len(phi)))
        weighted = phi if self.weight is None else phi * self.weight[:, None]
        return Queries(weighted, np.zeros(len(phi)), self.outputs)

    def under(self, theta: np.ndarray) -> np.ndarray:
        """Return what is asked about as weights ``theta (d, C)`` would have it, ``(T,)``, in float64."""
        return self.pick(np.asarray(as_numpy(self.phi), dtype=np.float64) @ theta)

    def pick(self, u: np.ndarray) -> np.ndarray:
        """Return what is asked about, shape ``(T,)``, of pre-activations ``(T, C)`` or ``(T, L, C)``."""
        return self.gather(np.take_along_axis(u, self.outputs[..., None], axis=-1)[..., 0])

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Return values of the outputs in question, ``(T,)`` or ``(T, L)``, weighted and summed."""
        weighted = values if self.weight is None else values * self.weight
        return weighted if values.ndim == 1 else weighted.sum(axis=1)


def shares(weight: np.ndarray | None) -> np.ndarray | None:
    """Return the weights ``(n, L)`` of positions divided by their sums; 0 where all are zero.

    Examples
    --------
    >>> shares(np.asarray([[3.0, 1.0], [0.0, 0.0]]))
    array([[0.75, 0.25],
           [0.  , 0.  ]])
    """
    if weight is None or weight.ndim == 1:
        return None
    totals = weight.sum(axis=1, keepdims=True, dtype=np.float64)
    return weight / np.where(totals > 0, totals, 1.0)


def hide(values: np.ndarray, counted: np.ndarray | None) -> np.ndarray:
    """Return labels or outputs ``(n, L, ...)`` with -1, or NaN, where a position does not count.

    Examples
    --------
    >>> hide(np.asarray([[4, 5]]), np.asarray([[True, False]]))
    array([[ 4, -1]])
    """
    if counted is None:
        return values
    counted = counted.reshape(*counted.shape, *[1] * (values.ndim - counted.ndim))
    return np.where(counted, values, _nothing(values))


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Join values of samples, those of shorter sequences filled up with -1 or NaN as in :func:`hide`.

    Examples
    --------
    >>> join([np.asarray([[1, 2]]), np.asarray([[3]])])
    array([[ 1,  2],
           [ 3, -1]])
    """
    if parts[0].ndim == 1:
        return np.concatenate(parts)
    longest = max(part.shape[1] for part in parts)
    filled = [
        np.pad(
            part,
            ((0, 0), (0, longest - part.shape[1]), *[(0, 0)] * (part.ndim - 2)),
            constant_values=_nothing(part),
        )
        for part in parts
    ]
    return np.concatenate(filled)


def positions_of(positions: object, start: int, visible: np.ndarray, where: str) -> np.ndarray:
    """Return the position wanted of each sample of a batch, checked, shape ``(n,)``.

    Parameters
    ----------
    positions : int or array of shape (T,)
        As the user gives it, for all batches.
    start : int
        The first sample of the batch.
    visible : array of shape (n, L), bool
    where : str
    """
    n_samples, n_positions = visible.shape
    expected = f"a position from 0 to {n_positions - 1} that no mask hides, one for all samples or one each"
    fix = "Number positions from 0; those of an image row by row."
    chosen = as_array(positions, f"positions in {where}", expected, fix)
    part = np.full(n_samples, chosen) if chosen.ndim == 0 else chosen[start : start + n_samples]
    if part.shape != (n_samples,) or part.dtype.kind not in "iu":
        got = f"{positions!r}"
    elif (part < 0).any() or (part >= n_positions).any():
        got = f"{part[(part < 0) | (part >= n_positions)][0]}"
    elif not visible[np.arange(n_samples), part].all():
        first = int(np.flatnonzero(~visible[np.arange(n_samples), part])[0])
        got = f"{part[first]}, which the mask of sample {first} of the batch hides"
    else:
        return part.astype(np.int64)
    raise WhenceError(f"positions in {where}", expected, got, fix)


def _nothing(values: np.ndarray) -> int | float:
    return -1 if values.dtype.kind in "iu" else np.nan
