"""Layers applied along a sequence: what is per position, checked and brought into one form.

A dense layer on ``(n, positions, d)`` is applied once at every position, and so is the loss. The loss
of a sample is the mean over its positions,

    ``ell_i = sum_l w_il m_il loss(y_il, tail(u_il)) / sum_l m_il``,

with the mask ``m`` (0 or 1) and the sample weight ``w`` of each position: what Keras computes for a
batch of that sample alone. Padding that a mask hides changes nothing. Axes between the first and the
last, such as the rows and columns of an image, are numbered through as positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, check_finite, namespace
from whence.layers.losses import Loss

__all__ = ["check_mask", "flat_positions", "position_targets", "position_weights"]


def flat_positions(array: Array, n_axes: int) -> Array:
    """Return ``(n, p_1, ..., p_axes, ...)`` with its position axes made one: ``(n, L, ...)``."""
    shape = tuple(array.shape)
    rest = shape[1 + n_axes :]
    size = int(np.prod(shape[1 : 1 + n_axes]))
    return namespace(array).reshape(array, (shape[0], size, *rest))


def position_targets(
    loss: Loss,
    labels: np.ndarray,
    positions: tuple[int, ...],
    counted: np.ndarray,
    n_outputs: int,
    where: str,
) -> np.ndarray:
    """Return labels ``(n, *positions, ...)`` as targets ``(n, L, ...)``, checked where they count.

    Parameters
    ----------
    loss : Loss
    labels : array
    positions : tuple of int
        The axes of the layer's input between the first and the last.
    counted : array of shape (n, L), bool
        Which positions are not hidden. Labels at hidden ones may be anything.
    n_outputs : int
    where : str
    """
    n, n_axes = counted.shape[0], len(positions)
    if tuple(labels.shape[1 : 1 + n_axes]) != positions:
        raise WhenceError(
            f"labels in {where}",
            f"one for each position: shape {(n, *positions)}, or with more axes after these",
            f"shape {tuple(labels.shape)}",
            "Give labels padded like the inputs; if the model brings positions together behind the "
            "layer, choose one behind that place.",
        )
    rows = flat_positions(labels, n_axes).reshape(counted.size, *labels.shape[1 + n_axes :])
    kept = counted.ravel()
    if not kept.any():
        raise WhenceError(
            f"labels in {where}",
            "at least one label that the loss does not ignore",
            "none",
            "Drop samples without labels.",
        )
    if not kept.all():
        # Padding is often labelled -1 or -100: any valid label does, since its weight is zero.
        rows = np.where(kept.reshape(-1, *[1] * (rows.ndim - 1)), rows, rows[np.argmax(kept)])
    check_finite(rows, "labels", where, "Clean or drop the samples.")
    target = loss.encode(rows, n_outputs, where)
    return target.reshape(*counted.shape, *target.shape[1:])


def position_weights(
    counted: np.ndarray, weight: Any, positions: tuple[int, ...], dtype: Any, where: str
) -> np.ndarray:
    """Return what each position's loss counts in its sample's, shape ``(n, L)``.

    Parameters
    ----------
    counted : array of shape (n, L), bool
    weight : array of shape (n,) or (n, *positions), or None
        Sample weights as the user gives them.
    positions : tuple of int
    dtype : dtype
    where : str
    """
    totals = counted.sum(axis=1, keepdims=True)
    result = counted / np.maximum(totals, 1)
    if weight is None:
        return result.astype(dtype)
    if tuple(weight.shape[1:]) not in ((), (1,), positions):
        raise WhenceError(
            f"sample weights in {where}",
            f"one number a sample, or one a position: shape {(len(counted), *positions)}",
            f"shape {tuple(weight.shape)}",
            "Give weights as the model was trained with.",
        )
    return (result * np.reshape(weight, (len(counted), -1))).astype(dtype)


def check_mask(mask: np.ndarray, where: str) -> None:
    """Raise if a mask ``(n, L)`` hides all positions of a sample."""
    hidden = np.flatnonzero(~mask.any(axis=1))
    if hidden.size:
        raise WhenceError(
            f"mask in {where}",
            "at least one position of each sample that the mask does not hide",
            f"{hidden.size} samples without one, first sample {hidden[0]} of the batch",
            "Drop empty samples.",
        )
