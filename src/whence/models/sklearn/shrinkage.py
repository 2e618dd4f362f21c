"""What held back the leaf values of a booster, and where they start from.

XGBoost saves the trees, and not the strengths they were grown with: a booster that was loaded says
``lambda`` 1 and ``alpha`` 0, whatever they were. But each split keeps its gain, and each node the sum of
its second derivatives ``H`` and its weight ``w = -soft(G, alpha) / (H + lambda)``, so that::

    gain   = sum_children w^2 (H + lambda) - w_p^2 (H_p + lambda)
    G_p    = sum_children G,   G = -(w (H + lambda) + alpha sign(w))

Of most leaves the weight stands there times the learning rate, ``w = s v``, and ``s`` is found as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

__all__ = ["Strengths", "base_in_leaves", "strengths_of"]

#: Splits that are read: more than enough to tell two numbers.
MOST_SPLITS = 20_000
#: The relative error of a gain up to which splits are explained; XGBoost computes in single precision.
FITS = 1e-3
#: How much of a split's gradient an L1 penalty must explain to be one.
NOTICED = 1e-3


class Strengths(NamedTuple):
    """The penalties on leaf values that the splits of an ensemble tell of.

    Attributes
    ----------
    reg_lambda, reg_alpha : float or None
        L2 and L1; ``None`` where the splits do not tell.
    """

    reg_lambda: float | None
    reg_alpha: float | None


class _Splits(NamedTuple):
    """Splits, and of their two children those whose weight is known or known up to a factor."""

    tree: np.ndarray  # (n,)
    gain: np.ndarray  # (n,)
    weight: np.ndarray  # (n,)
    hessian: np.ndarray  # (n,)
    child_weight: np.ndarray  # (n, 2)
    child_hessian: np.ndarray  # (n, 2)
    is_scaled: np.ndarray  # (n, 2)


def strengths_of(trees: Sequence[dict[str, Any]], said: float) -> Strengths:
    """Return the strengths that trees were grown with.

    Parameters
    ----------
    trees : sequence of dict
        As XGBoost saves them.
    said : float
        The L2 strength that the booster names, which is taken if the splits agree with it.
    """
    splits = _read(trees)
    if splits is None or len(splits.gain) < 3:
        return Strengths(None, None)
    for group in (np.zeros_like(splits.tree), splits.tree):  # one learning rate, or one a tree
        at_said, found = _misfit(splits, said, group), _best(splits, group)
        if min(at_said, found[1]) <= FITS:
            strength = said if at_said <= max(2 * found[1], 1e-6) else found[0]
            return Strengths(strength, _l1(splits, strength, group))
    return Strengths(None, None)


def _read(trees: Sequence[dict[str, Any]]) -> _Splits | None:
    parts, count = [], 0
    for number, tree in enumerate(trees):
        left, right = np.asarray(tree["left_children"]), np.asarray(tree["right_children"])
        if "base_weights" not in tree or "sum_hessian" not in tree or count > MOST_SPLITS:
            break
        values = np.asarray(tree["split_conditions"], dtype=np.float32)
        weight = np.asarray(tree["base_weights"], dtype=np.float32)
        hessian = np.asarray(tree["sum_hessian"], dtype=np.float64)
        gain = np.asarray(tree["loss_changes"], dtype=np.float64)
        is_leaf = left == -1
        at = np.flatnonzero(~is_leaf & (gain > 0))
        children = np.stack([left[at], right[at]], axis=1)
        scaled = is_leaf & (weight == values)
        child_weight = weight[children].astype(np.float64)
        parts.append(
            _Splits(
                np.full(len(at), number),
                gain[at],
                weight[at].astype(np.float64),
                hessian[at],
                child_weight,
                hessian[children],
                scaled[children],
            )
        )
        count += len(at)
    if not parts:
        return None
    splits = _Splits(*map(np.concatenate, zip(*parts, strict=True)))
    return _Splits(*(part[_is_free(splits)] for part in splits))


def _is_free(splits: _Splits) -> np.ndarray:
    """Return which splits stay off the largest weights, where ``max_delta_step`` may have cut them off."""
    free = np.ones(len(splits.gain), dtype=bool)
    own = np.abs(splits.weight)[:, None]
    scaled = np.where(splits.is_scaled, np.abs(splits.child_weight), 0)
    others = np.concatenate([own, np.where(splits.is_scaled, 0, np.abs(splits.child_weight))], axis=1)
    for size in (scaled, others):
        at_most = size >= 0.9999 * size.max(initial=0)
        if np.count_nonzero(at_most) > 2 and size.any():  # a child that was split stands there twice
            free &= ~at_most.any(axis=1)
    return free


def _scales(splits: _Splits, strength: float, group: np.ndarray) -> np.ndarray:
    """Return ``s`` of each split: the factor of its scaled children that explains the gains best."""
    h = splits.child_hessian + strength
    energy = splits.child_weight**2 * h
    scaled = np.where(splits.is_scaled, energy, 0).sum(axis=1)
    rest = splits.gain + splits.weight**2 * (splits.hessian + strength)
    rest = rest - np.where(splits.is_scaled, 0, energy).sum(axis=1)
    squares = np.ones(len(rest))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(scaled > 0, rest / scaled, np.nan)
    for one in np.unique(group):
        here = (group == one) & np.isfinite(ratio)
        if here.any():
            squares[group == one] = max(float(np.median(ratio[here])), 1.0)
    return np.sqrt(squares)


def _child_weights(splits: _Splits, strength: float, group: np.ndarray) -> np.ndarray:
    scale = _scales(splits, strength, group)[:, None]
    return np.where(splits.is_scaled, scale * splits.child_weight, splits.child_weight)


def _misfit(splits: _Splits, strength: float, group: np.ndarray) -> float:
    """Return the relative error of the gains that most splits stay below."""
    w = _child_weights(splits, strength, group)
    before = splits.weight**2 * (splits.hessian + strength)
    got = (w**2 * (splits.child_hessian + strength)).sum(axis=1) - before
    errors = np.abs(got - splits.gain) / (splits.gain + before)
    # Not all: weights that a bound cut off do not follow the formula.
    return float(np.quantile(errors, 0.6))


def _best(splits: _Splits, group: np.ndarray) -> tuple[float, float]:
    """Return the strength that explains the gains best, and its misfit."""
    grid = np.concatenate([[0.0], np.geomspace(1e-3, 1e4, 57)])
    misfits = [_misfit(splits, strength, group) for strength in grid]
    place = int(np.argmin(misfits))
    low, high = grid[max(0, place - 1)], grid[min(len(grid) - 1, place + 1)]
    found = minimize_scalar(
        lambda strength: _misfit(splits, strength, group),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6 * high},
    )
    return min((float(found.x), float(found.fun)), (float(grid[place]), misfits[place]), key=lambda b: b[1])


def _l1(splits: _Splits, strength: float, group: np.ndarray) -> float:
    """Return the L1 strength under which gradients of children sum to those of their parents.

    Where nothing else tells, it is the least that there must have been.
    """
    w = _child_weights(splits, strength, group)
    signs = np.sign(splits.weight) - np.sign(w).sum(axis=1)
    parts = w * (splits.child_hessian + strength)
    gap = parts.sum(axis=1) - splits.weight * (splits.hessian + strength)
    size = np.abs(parts).sum(axis=1)
    tells = (signs != 0) & (w != 0).all(axis=1) & (splits.weight != 0)
    if tells.any():
        found = float(np.median(gap[tells] / signs[tells]))
        return found if found > NOTICED * float(np.median(size[tells])) else 0.0
    # A child of weight 0 has |G| <= alpha: the gap, where the other child has its parent's sign.
    bounds = ((w == 0).sum(axis=1) == 1) & (signs == 0) & (np.abs(gap) > NOTICED * size)
    return float(np.abs(gap[bounds]).max()) if bounds.any() else 0.0


def base_in_leaves(values: np.ndarray, hessians: np.ndarray, l2: float, l1: float) -> float:
    """Return the base score that stands in the leaf values of a first tree.

    At the base score the gradients of all samples sum to zero, and a leaf ``v = base + w`` keeps minus the
    gradient of its own, ``w (H + l2) + l1 sign(w)``: ``base`` makes these sum to zero. Leaves that ``l1``
    holds at zero are at ``base``.

    Parameters
    ----------
    values, hessians : arrays of shape (n_leaves,)
    l2 : float
    l1 : float
        Times the learning rate.

    Examples
    --------
    >>> base_in_leaves(np.asarray([9.0, 12.0]), np.asarray([2.0, 1.0]), 0.0, 0.0)
    10.0
    """
    h = hessians + l2

    def pull(base: float) -> float:
        return float(h @ (values - base) + l1 * np.sign(values - base).sum())

    levels = np.unique(values)
    for level in levels:
        if abs(pull(level)) <= l1 * np.count_nonzero(values == level):
            return float(level)
    above = values > max([level for level in levels if pull(level) > 0], default=-np.inf)
    return float((h @ values + l1 * (above.sum() - (~above).sum())) / h.sum())
