"""Training again without some samples: the layer alone, or a whole scikit-learn model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.answers.contract import Attribution
from whence.answers.representers import RepresenterPointL2
from whence.arrays.base import as_numpy, import_extra
from whence.engine.blocks import Block
from whence.layers.linear_layer import LinearLayer
from whence.methods.gradient import LossQuestion
from whence.methods.refit import refit

__all__ = ["EstimatorRetraining", "LayerRetraining"]


class LayerRetraining:
    """Trains the target layer again on its stored features, without some training samples.

    The objective is the one that the method's Hessian is of: the mean loss, the layer's own regulariser
    and ``(damping/2) |theta|^2``; for :class:`~whence.RepresenterPointL2` its refit. Each retraining starts
    from the weights that all samples give, and runs L-BFGS, and Newton steps where its line search ends,
    until no entry of the gradient exceeds ``gradient_norm``.

    Parameters
    ----------
    method : Attribution
        Whose layer, training set and damping to take.
    samples : dataset
        The samples whose predictions are followed.
    outputs : int or array of shape (T,), optional
        As for ``explain``.
    damping : float, optional
        Instead of the method's own; needed for methods without a solver, unless the layer has a
        regulariser.
    gradient_norm : float, default=1e-10

    Attributes
    ----------
    theta : array of shape (d, C)
        Weights trained on all samples.
    full : array of shape (T,)
        What is asked about the samples, with those weights: the pre-activation in question, turned as in
        ``explain``, or minus the loss for methods with ``effect_on="loss"``.
    gap : float
        The largest difference between ``full`` and what the model's own weights give. Where it is not
        small, the model was not at the minimum that the method's formulas take it to be at.
    """

    def __init__(
        self,
        method: Attribution,
        samples: Any,
        *,
        outputs: Any = None,
        damping: float | None = None,
        gradient_norm: float = 1e-10,
    ) -> None:
        layer, blocks, own_damping = _problem_of(method)
        self.damping: float = own_damping if damping is None else damping
        self.gradient_norm = gradient_norm
        self._blocks = blocks
        self._questions = [question for question, _ in method.questions(samples, outputs=outputs)]
        self._own_layer = method.layer
        found = refit(layer, _Kept(blocks, None), self.damping, gradient_norm=gradient_norm)
        self.theta: np.ndarray = found.theta
        self._layer = layer.at(found.theta)

    @property
    def n_samples(self) -> int:
        """``N``, all training samples."""
        return sum(block.phi.shape[0] for block in self._blocks)

    @cached_property
    def full(self) -> np.ndarray:
        """The quantity in question, with the weights that all samples give; see the class."""
        return self.asked(self.theta)

    @property
    def gap(self) -> float:
        """How far the model is from the minimum; see the class."""
        own = self.asked(np.asarray(as_numpy(self._own_layer.theta), dtype=np.float64))
        return float(np.abs(self.full - own).max())

    def weights_without(self, removed: Any, *, mean_over_kept: bool = False) -> np.ndarray:
        """Return the weights ``(d, C)`` after retraining without some samples.

        Parameters
        ----------
        removed : array of int
            Rows of the training set, in the order of the constructor's dataset.
        mean_over_kept : bool, default=False
            Whether losses are averaged over the samples that are left. By default their sum stays divided
            by ``N``, as with a sample weight of zero, so that regularisers do not gain on them.
        """
        kept = np.ones(self.n_samples, dtype=bool)
        kept[np.asarray(removed, dtype=np.int64)] = False
        if not kept.any():
            raise WhenceError("removed", "fewer samples than there are", "all of them", "Leave some.")
        blocks = _Kept(self._blocks, kept, int(kept.sum()) if mean_over_kept else None)
        return refit(self._layer, blocks, self.damping, gradient_norm=self.gradient_norm).theta

    def __call__(self, removed: Any, *, mean_over_kept: bool = False) -> np.ndarray:
        """Return what is asked about the samples, ``(T,)``, after retraining without ``removed``."""
        return self.asked(self.weights_without(removed, mean_over_kept=mean_over_kept))

    def asked(self, theta: np.ndarray) -> np.ndarray:
        """Return what is asked about the samples, ``(T,)``, with weights ``theta (d, C)``."""
        parts = []
        for question in self._questions:
            if isinstance(question, LossQuestion):
                phi = np.asarray(as_numpy(question.phi), dtype=np.float64)
                block = Block(phi, question.target, question.weight if phi.ndim == 3 else None)
                parts.append(-as_numpy(self._own_layer.at(theta).losses(block)))
            else:
                parts.append(question.under(theta))
        return np.concatenate(parts)


class EstimatorRetraining:
    """Trains a whole scikit-learn estimator again, without some training samples.

    Parameters
    ----------
    estimator : scikit-learn estimator
        Cloned for each training; itself left alone.
    x, y : array of shape (N, ...)
        The training set.
    ask : callable
        ``ask(fitted)`` returns what is followed, shape ``(T,)``, e.g.
        ``lambda fitted: fitted.decision_function(x_test)``.
    sample_weight : array of shape (N,), optional

    Examples
    --------
    >>> from sklearn.linear_model import Ridge
    >>> x, y = np.asarray([[0.0], [1.0], [2.0]]), np.asarray([0.0, 1.0, 4.0])
    >>> without = EstimatorRetraining(Ridge(alpha=1e-9), x, y, lambda fitted: fitted.predict([[3.0]]))
    >>> without([2]).round(6), without.full.round(6)
    (array([3.]), array([5.666667]))
    """

    def __init__(
        self, estimator: Any, x: Any, y: Any, ask: Callable[[Any], Any], sample_weight: Any = None
    ) -> None:
        self._estimator = estimator
        self._arrays = {"X": x, "y": y}
        if sample_weight is not None:
            self._arrays["sample_weight"] = sample_weight
        self._ask = ask
        self.n_samples: int = len(y)

    @cached_property
    def full(self) -> np.ndarray:
        """The quantity in question of the estimator trained on all samples, shape ``(T,)``."""
        return self(np.empty(0, dtype=np.int64))

    def __call__(self, removed: Any, *, mean_over_kept: bool = True) -> np.ndarray:
        """Return what is asked, ``(T,)``, after training without ``removed``.

        Whether losses are summed or averaged is the estimator's own affair.
        """
        base = import_extra("sklearn.base", "sklearn")
        kept = np.ones(self.n_samples, dtype=bool)
        kept[np.asarray(removed, dtype=np.int64)] = False
        fitted = base.clone(self._estimator).fit(**{k: _rows(a, kept) for k, a in self._arrays.items()})
        return np.asarray(self._ask(fitted), dtype=np.float64).ravel()


class _Kept:
    """The training set without some samples, divided by ``N`` all the same, or by another number."""

    def __init__(self, blocks: list[Block], kept: np.ndarray | None, n_samples: int | None = None) -> None:
        self._blocks = blocks
        self._kept = kept
        total = sum(block.phi.shape[0] for block in blocks)
        self.n_samples = total if n_samples is None else n_samples

    def __iter__(self) -> Iterator[Block]:
        start = 0
        for block in self._blocks:
            stop = start + block.phi.shape[0]
            if self._kept is None or self._kept[start:stop].all():
                yield block
            elif self._kept[start:stop].any():
                rows = np.flatnonzero(self._kept[start:stop])
                yield Block(*(None if array is None else array[rows] for array in block))
            start = stop


def _problem_of(method: Attribution) -> tuple[LinearLayer, list[Block], float]:
    """Return what a method's training minimises: layer, samples in float64, and damping."""
    if isinstance(method, RepresenterPointL2):
        blocks = [method.block_to_fit(shard.block) for shard in method.index.shards]
        return method.refitted_layer, blocks, 2 * method.l2
    layer = method.layer.at(np.asarray(as_numpy(method.layer.theta), dtype=np.float64))
    solver = getattr(method, "ihvp", None)
    blocks = []
    for phi, target, weight in method.index:
        wide = None if weight is None else np.asarray(as_numpy(weight), dtype=np.float64)
        blocks.append(Block(np.asarray(as_numpy(phi), dtype=np.float64), as_numpy(target), wide))
    return layer, blocks, 0.0 if solver is None else solver.damping


def _rows(array: Any, kept: np.ndarray) -> Any:
    """Return the kept rows of an array, a frame or a list."""
    rows = np.flatnonzero(kept)
    if hasattr(array, "iloc"):
        return array.iloc[rows]
    return array[rows] if hasattr(array, "shape") else [array[i] for i in rows]
