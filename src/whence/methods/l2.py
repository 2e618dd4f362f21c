"""Representer points of a layer that is refitted with an L2 regulariser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from whence._errors import check_choice
from whence.arrays.base import Array, as_numpy, astype, check_number, like
from whence.engine.base import Converted
from whence.index import Index
from whence.layers.linear_layer import Block, LinearLayer
from whence.methods.base import Rule
from whence.methods.question import Question
from whence.methods.refit import refit
from whence.search.scores import Queries

__all__ = ["RefittedLayer", "check_refit"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RefittedLayer(Rule):
    """``alpha_ij phi_i^T phi_t`` of a refitted layer; see :class:`~whence.RepresenterPointL2`.

    Parameters
    ----------
    refitted : LinearLayer
        The layer at ``theta*``, with the loss that it was refitted with.
    l2 : float
    fit_to : {"predictions", "labels"}
    gradient_norm : float
        The largest entry of the gradient that the refit reached.
    wanted_norm : float
        The one that was asked for.
    """

    name = "RepresenterPointL2"

    refitted: LinearLayer
    l2: float
    fit_to: str
    gradient_norm: float
    wanted_norm: float

    @classmethod
    def of(
        cls,
        layer: LinearLayer,
        index: Index,
        l2: float = 3e-3,
        fit_to: str = "predictions",
        gradient_norm: float = 1e-10,
    ) -> RefittedLayer:
        """Refit the layer; see the base class."""
        check_refit(l2, fit_to, gradient_norm)
        loss = layer.loss
        if fit_to == "predictions":
            loss, _ = loss.following(np.asarray(as_numpy(layer.theta))[:1])
        # All weights share the regulariser, so that the bias counts as one of them.
        start = LinearLayer(np.asarray(as_numpy(layer.theta), dtype=np.float64), loss)
        fitted = _Fitted(layer, fit_to)
        found = refit(start, Converted(index, fitted), 2 * float(l2), gradient_norm=gradient_norm)
        return cls(
            layer=layer,
            n_samples=index.n_samples,
            refitted=start.at(found.theta),
            l2=float(l2),
            fit_to=fit_to,
            gradient_norm=found.gradient_norm,
            wanted_norm=gradient_norm,
        )

    @property
    def decomposes_prediction(self) -> bool:
        return True

    def about(self) -> dict[str, Any]:
        return {"l2": self.l2, "fit_to": self.fit_to, "gradient_norm": self.gradient_norm}

    def arguments(self) -> dict[str, Any]:
        return {"l2": self.l2, "fit_to": self.fit_to, "gradient_norm": self.wanted_norm}

    def block_to_fit(self, block: Block) -> Block:
        """Return a block in float64, on the host, with the targets that the refit takes."""
        return _Fitted(self.layer, self.fit_to)(block)

    def _alpha(self, block: Block) -> np.ndarray:
        r = as_numpy(self.refitted.residuals(self.block_to_fit(block)))
        return -r / (2 * self.l2 * self.n_samples)

    def coefficients(self, block: Block) -> Array:
        return astype(like(self._alpha(block), block.phi), block.phi.dtype)

    def queries(self, question: Question) -> Queries:
        return question.inner_products(self.layer.n_outputs)

    def self_influence(self, block: Block, question: Question) -> Array:
        return np.abs(question.pick(self._alpha(block)))

    def leave_one_out(self, block: Block) -> Array:
        alpha = self._alpha(block)
        phi = np.asarray(as_numpy(block.phi), dtype=np.float64)
        if phi.ndim == 2:
            own = alpha * (phi**2).sum(axis=1, keepdims=True)
        else:
            own = np.matmul(phi, np.matmul(np.swapaxes(phi, 1, 2), alpha))
        return like(as_numpy(self.refitted.pre_activations(phi)) - own, block.phi)

    def totals(self, question: Question) -> np.ndarray | None:
        return question.under(self.refitted.theta)


@dataclass(frozen=True)
class _Fitted:
    """Takes a block to float64, on the host, with the targets that a layer is refitted to."""

    layer: LinearLayer
    fit_to: str

    def __call__(self, block: Block) -> Block:
        phi = np.asarray(as_numpy(block.phi), dtype=np.float64)
        weight = None if block.weight is None else np.asarray(as_numpy(block.weight), dtype=np.float64)
        target = as_numpy(block.target)
        if self.fit_to == "predictions":
            _, target = self.layer.loss.following(self.layer.pre_activations(phi))
        return Block(phi, target, weight)


def check_refit(l2: Any, fit_to: Any, gradient_norm: Any) -> None:
    """Raise unless the settings of a refit make sense; before any work is done."""
    check_number(l2, "l2", strictly=True)
    check_number(gradient_norm, "gradient_norm", strictly=True)
    check_choice(fit_to, "fit_to", "predictions", "labels")
