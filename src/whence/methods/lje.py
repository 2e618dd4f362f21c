"""Local Jacobian expansion: a prediction as a sum over training samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from whence._errors import WhenceError, check_choice
from whence.arrays.base import Array, as_numpy, check_finite, check_number, like
from whence.engine.base import Converted
from whence.index import Index
from whence.layers.linear_layer import Block, LinearLayer
from whence.methods.base import Rule, coefficients_as_stored
from whence.methods.question import Question
from whence.methods.solver import Drawn, build_solver
from whence.search.scores import Queries

__all__ = ["ElementwiseExpansion", "LocalJacobianExpansion", "check_expansion", "expand"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalJacobianExpansion(Rule):
    """Decompose the layer's predictions around its weights ``theta'``, a step of gradient ascent away.

    ::

        W_i     = (theta' - H^{-1} g_i) / N                          what sample i brings to the weights
        v_j(i, t) = phi_t^T W_i[:, j]                                its influence on output j of t

    See :class:`~whence.RepresenterPointLJE`.

    Parameters
    ----------
    expanded : LinearLayer
        The layer at ``theta'``.
    gradient : array of shape (d, C)
        The mean of the gradients there.
    theta_dagger : array of shape (d, C)
        ``sum_i W_i``.
    relative_residual : float
        What the solver left of the Newton step to ``theta_dagger``, relative to the gradient.
    drawn : Drawn
        The samples that the Hessian is of.
    step_size : float
    """

    name = "RepresenterPointLJE"
    prefers_ridge = True
    decomposition = "exact"

    expanded: LinearLayer
    gradient: np.ndarray
    theta_dagger: np.ndarray
    relative_residual: float
    drawn: Drawn
    step_size: float
    epsilon: float

    @property
    def decomposes_prediction(self) -> bool:
        return self.decomposition == "exact"

    @property
    def solves_queries(self) -> bool:
        return self.decomposition == "exact"

    def about(self) -> dict[str, Any]:
        assert self.solver is not None
        settings = {name: getattr(self, name) for name in ("decomposition", "step_size", "epsilon")}
        return settings | self.solver.about()

    def measured(self) -> dict[str, Any]:
        return {"relative_residual": self.relative_residual}

    def arguments(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in ("epsilon", "step_size", "decomposition")}
        return self.drawn.arguments() | settings

    def check_numbers(self, block: Block) -> np.ndarray:
        return np.concatenate([as_numpy(self.expanded.theta), as_numpy(self.theta_dagger)])

    def coefficients(self, block: Block) -> Array:
        return self.expanded.residuals(block)

    def queries(self, question: Question) -> Queries:
        # v(i, t) = <theta', Q_t> / N - (1/N) <g_i, S_t>,  S_t = H^{-1} Q_t,  Q_t = phi_t (x) e_j
        assert self.solver is not None
        n_samples = self.n_samples
        directions = self.layer.centred(question.directions(self.layer.n_outputs))
        solved = self.layer.centred(self.solver.solve(directions).value)
        return Queries(-solved / n_samples, question.under(self.expanded.theta) / n_samples)

    def self_influence(self, block: Block, question: Question) -> Array:
        assert self.solver is not None
        block = block.in_double()
        r = self.layer.centred(self.expanded.residuals(block))
        moved = as_numpy(self.solver.self_products(block.phi, r, question.outputs))
        own = question.under(self.expanded.theta)
        return np.abs(own - question.gather(moved)) / self.n_samples

    def leave_one_out(self, block: Block) -> Array:
        # u_i without i, to first order: u_i + (1/N) (H^{-1} g_i)^T phi_i
        assert self.solver is not None
        block = block.in_double()
        r = self.layer.centred(self.expanded.residuals(block))
        moved = self.solver.self_products(block.phi, r)
        return like(self.layer.pre_activations(block.phi), moved) + moved / self.n_samples

    def totals(self, question: Question) -> np.ndarray | None:
        return question.under(self.theta_dagger)

    def weighted_features(self) -> np.ndarray | None:
        return self.n_samples * as_numpy(self.gradient)


@dataclass(frozen=True, kw_only=True, eq=False)
class ElementwiseExpansion(LocalJacobianExpansion):
    """The formula that is printed in the paper, whose values do not sum to the prediction.

    ``alpha_i = theta'/(N phi_i) - (1/N) H^{-1} (g_i / phi_i)`` with divisions entry by entry, and
    ``v_j(i, t) = alpha_ij phi_i^T phi_t``.

    Parameters
    ----------
    summing : array of shape (C, d, C)
        ``S_j = H^{-1} (1 (x) e_j)``: summing ``H^{-1} M`` over features is ``<S_j, M>``.
    """

    decomposition = "elementwise"

    summing: np.ndarray

    def coefficients(self, block: Block) -> Array:
        # alpha_ij = sum_d theta'_dj / (N phi_id + eps) - sum_d (H^{-1} (g_i / (N phi_i + eps)))_dj
        phi = np.asarray(as_numpy(block.phi), dtype=np.float64)
        r = as_numpy(self.expanded.residuals(block))
        reciprocal = 1 / (self.n_samples * phi + self.epsilon)
        divided = phi * reciprocal
        second = np.einsum("jdc,nd,nc->nj", self.summing, divided, r, optimize=True)
        alpha = reciprocal @ self.expanded.theta - second
        return alpha.astype(as_numpy(block.phi).dtype)

    def queries(self, question: Question) -> Queries:
        phi = as_numpy(question.phi)
        weighted = phi if question.weight is None else phi * question.weight[:, None]
        return Queries(weighted, np.zeros(len(phi)), question.outputs)

    def self_influence(self, block: Block, question: Question) -> Array:
        return np.abs(question.pick(as_numpy(coefficients_as_stored(self, block))))

    def totals(self, question: Question) -> np.ndarray | None:
        return None

    def weighted_features(self) -> np.ndarray | None:
        return None


def expand(
    layer: LinearLayer,
    index: Index,
    factory: Any,
    drawn: Drawn,
    *,
    step_size: float,
    decomposition: str,
    epsilon: float,
) -> LocalJacobianExpansion:
    """Make the rule: take the step of ascent, build the solver there, and take the Newton step back."""
    if decomposition == "elementwise" and index.has_positions:
        raise WhenceError(
            "decomposition",
            "'exact' for a layer that is applied along a sequence",
            "'elementwise', which divides by the one row of features that a sample has",
            "Leave it out.",
        )
    wide = Converted(index, Block.in_double)
    ascent = step_size * layer.mean_gradient(wide)
    expanded = layer.at(layer.theta + ascent)
    solver = build_solver(factory, index, expanded, drawn)
    gradient = layer.centred(expanded.mean_gradient(wide))
    step = solver.solve(gradient[None, :, :])
    theta_dagger = expanded.theta - layer.centred(as_numpy(step.value)[0])
    check_finite(
        theta_dagger,
        "weights of the expansion",
        "theta_dagger",
        "Scale features and sample weights down: their products overflow.",
    )
    exact = LocalJacobianExpansion(
        layer=layer,
        n_samples=index.n_samples,
        solver=solver,
        factory=factory,
        expanded=expanded,
        gradient=gradient,
        theta_dagger=theta_dagger,
        relative_residual=float(step.relative_residual),
        drawn=drawn,
        step_size=step_size,
        epsilon=epsilon,
    )
    if decomposition == "exact":
        return exact
    n_outputs = layer.n_outputs
    ones = np.ones((n_outputs, layer.n_features, 1)) * np.eye(n_outputs)[:, None, :]
    return ElementwiseExpansion(**vars(exact), summing=as_numpy(solver.solve(ones).value))


def check_expansion(step_size: Any, decomposition: Any, epsilon: Any) -> None:
    """Raise unless the settings of an expansion make sense; before any work is done."""
    check_number(epsilon, "epsilon")
    check_number(step_size, "step_size")
    check_choice(decomposition, "decomposition", "exact", "elementwise")
