"""Influence functions on a dense layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from whence._errors import WhenceError, check_choice
from whence.arrays.base import Array, as_numpy, like, row_slices
from whence.index import Index
from whence.layers.linear_layer import Block, LinearLayer
from whence.methods.gradient import Gradients
from whence.methods.leverage import leave_one_out_residuals
from whence.methods.solver import Drawn, build_solver
from whence.search.scores import Queries

__all__ = ["Influence", "check_influence"]

#: Gradients that are solved for at once.
SOLVE_ROWS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Influence(Gradients):
    """``<g_i, H^{-1} Q_t> / N``; see :class:`~whence.InfluenceFunctions`.

    Parameters
    ----------
    normalisation : {None, "loss", "parameters"}
    leverage : bool
    drawn : Drawn
        The samples that the Hessian is of.
    """

    name = "InfluenceFunctions"

    normalisation: str | None
    leverage: bool
    drawn: Drawn

    @classmethod
    def of(
        cls, layer: LinearLayer, index: Index, factory: Any, *, drawn: Drawn, **settings: Any
    ) -> Influence:
        """Make the rule: build the solver at the layer's own weights."""
        solver = build_solver(factory, index, layer, drawn)
        return cls(
            layer=layer,
            n_samples=index.n_samples,
            solver=solver,
            factory=factory,
            drawn=drawn,
            **settings,
        )

    @property
    def solves_queries(self) -> bool:
        return True

    @property
    def coefficients_need_solver(self) -> bool:
        return self.leverage or self.normalisation is not None

    def about(self) -> dict[str, Any]:
        assert self.solver is not None
        return self._settings() | self.solver.about()

    def arguments(self) -> dict[str, Any]:
        return self.drawn.arguments() | self._settings()

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("effect_on", "normalisation", "leverage")}

    def solve(self, matrices: np.ndarray) -> np.ndarray:
        assert self.solver is not None
        return self.layer.centred(as_numpy(self.solver.solve(self.layer.centred(matrices)).value))

    def moved(self, block: Block, r: Array) -> Array:
        assert self.solver is not None
        return self.layer.centred(self.solver.self_products(block.phi, self.layer.centred(r)))

    def residuals_left_out(self, block: Block) -> Array:
        if self.leverage:
            assert self.solver is not None
            return leave_one_out_residuals(self.layer, self.solver, block, self.n_samples)
        return self.layer.residuals(block)

    def scale(self, block: Block) -> Array | None:
        if self.normalisation is None:
            return None
        r = self.layer.residuals(block)
        if self.normalisation == "loss":
            product = as_numpy(self.moved(block, r)) * as_numpy(r)
            squared = product.reshape(len(product), -1).sum(axis=1)
            return like(np.sqrt(np.maximum(squared, 0)), r)
        norms = []
        for rows in row_slices(block.phi.shape[0], SOLVE_ROWS):
            part = Block(*(None if array is None else array[rows, ...] for array in block))
            solved = self.solve(np.asarray(as_numpy(self.layer.gradients(part)), dtype=np.float64))
            norms.append(np.sqrt((solved**2).sum(axis=(1, 2))))
        return like(np.concatenate(norms), r)

    def changes_of(self, phi: np.ndarray) -> Queries:
        """Return queries for how far every pre-activation of one sample moves without each training sample.

        Parameters
        ----------
        phi : array of shape (d,) or (L, d)
            In float64.
        """
        n_outputs = self.layer.n_outputs
        places = phi.reshape(-1, phi.shape[-1])  # one, or those along a sequence
        directions = np.einsum("ld,jc->ljdc", places, np.eye(n_outputs)).reshape(
            -1, phi.shape[-1], n_outputs
        )
        solved = self.solve(directions) / self.n_samples
        return Queries(solved, np.zeros(len(solved)))


def check_influence(effect_on: Any, normalisation: Any, leverage: Any, drawn: Drawn) -> None:
    """Raise unless the settings of influence functions make sense; before any work is done."""
    check_choice(normalisation, "normalisation", None, "loss", "parameters")
    if leverage and drawn.n_samples_for_hessian is not None:
        raise WhenceError(
            "n_samples_for_hessian",
            "None with leverage=True, which takes each sample out of the Hessian again",
            repr(drawn.n_samples_for_hessian),
            "Compute the Hessian from all samples, or pass leverage=False.",
        )
    check_choice(effect_on, "effect_on", "loss", "pre_activation")
