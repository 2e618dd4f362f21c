"""Influence functions on a dense layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from whence._arrays import Array, as_numpy, check_seed, like, row_slices
from whence._errors import WhenceError
from whence.attribution.gradient import Gradients
from whence.attribution.leverage import leave_one_out_residuals
from whence.attribution.solver import build_solver, check_factory
from whence.ihvp import InverseHessianVectorProduct, InverseHessianVectorProductFactory
from whence.linear_layer import Block
from whence.models.base import InfluenceModel

__all__ = ["InfluenceFunctions"]

#: Gradients that are solved for at once.
SOLVE_ROWS = 256


class InfluenceFunctions(Gradients):
    """Score training samples by what leaving them out does to a loss or to a pre-activation.

    With the gradients ``g``, the Hessian ``H`` of the mean loss, and ``N`` training samples, all at the
    model's own weights::

        v(i, t)   =  (1/N) g_t^T H^{-1} g_i                    effect_on="loss"
        v_j(i, t) = -(1/N) (phi_t (x) e_j)^T H^{-1} g_i        effect_on="pre_activation"

    ``v(i, t)`` is how far the loss of ``t`` rises when ``i`` is left out and the layer is trained again,
    to first order, and ``v_j(i, t)`` how far its pre-activation ``j`` falls. Positive speaks for the label
    of ``t``, or for output ``j``. The influence of a group is the sum over its samples; see
    :meth:`influences`. Self-influence is ``g_i^T H^{-1} g_i``, ``N`` times ``v(i, i)``, or
    ``|v_j(i, i)|``.

    Parameters
    ----------
    influence_model : InfluenceModel
    dataset : dataset
        The training set, batched.
    ihvp_calculator_factory : InverseHessianVectorProductFactory
        Makes the solver, e.g. :class:`~whence.ExactIHVPFactory`.
    n_samples_for_hessian : int or None, default=None
        How many training samples the Hessian is computed from; ``None``: all.
    target_layer : int or str, default=-1
        Which dense layer; ``-1`` follows the model's ``start_layer``.
    shuffle_buffer_size : int, default=10000
        The size of the buffer that ``n_samples_for_hessian`` are drawn through.
    effect_on : {"loss", "pre_activation"}, default="loss"
        What is asked: the loss of samples, which then need labels, or a pre-activation.
    normalisation : {None, "loss", "parameters"}, default=None
        RelatIF: divide by ``sqrt(g_i^T H^{-1} g_i)``, what leaving ``i`` out does to the losses of the
        training set, or by ``|H^{-1} g_i|``, what it does to the weights. Samples that are unusual for
        every prediction then no longer head every list.
    leverage : bool, default=False
        Whether to leave a sample out of ``H`` too: one Newton step in place of the first-order formulas,
        ``g_i`` divided by one minus the leverage of ``i`` (a matrix, with several outputs). It is exact
        for squared error, and closer to training again wherever single samples carry much weight.
    label : {"predicted", "given"}, default="predicted"
        Which output counts as a sample's own, for ``effect_on="pre_activation"``. The loss is always that
        of the given label.
    ids : sequence, optional
        Names of the training samples; positions by default.
    seed : int, default=0
        Of the draw of ``n_samples_for_hessian``.
    progress : bool, optional
    index_path, engine : optional
        See :class:`~whence.RepresenterPointLJE`.

    Attributes
    ----------
    layer : LinearLayer
        The target layer with the model's own weights.
    ihvp : InverseHessianVectorProduct
        The solver.

    References
    ----------
    Koh, Liang. "Understanding Black-box Predictions via Influence Functions." ICML 2017.
    Barshan, Brunet, Dziugaite. "RelatIF: Identifying Explanatory Training Examples via Relative
    Influence." AISTATS 2020.
    """

    method = "InfluenceFunctions"

    def __init__(
        self,
        influence_model: InfluenceModel,
        dataset: Any,
        ihvp_calculator_factory: InverseHessianVectorProductFactory,
        n_samples_for_hessian: int | None = None,
        target_layer: int | str = -1,
        shuffle_buffer_size: int = 10000,
        *,
        effect_on: str = "loss",
        normalisation: str | None = None,
        leverage: bool = False,
        label: str = "predicted",
        ids: Any = None,
        seed: int = 0,
        progress: bool | None = None,
        index_path: str | Path | None = None,
        engine: Any = None,
    ) -> None:
        check_factory(ihvp_calculator_factory, n_samples_for_hessian, shuffle_buffer_size)
        check_seed(seed)
        if normalisation not in (None, "loss", "parameters"):
            raise WhenceError(
                "normalisation", "None, 'loss' or 'parameters'", repr(normalisation), "Choose one."
            )
        if leverage and n_samples_for_hessian is not None:
            raise WhenceError(
                "n_samples_for_hessian",
                "None with leverage=True, which takes each sample out of the Hessian again",
                repr(n_samples_for_hessian),
                "Compute the Hessian from all samples, or pass leverage=False.",
            )
        options: dict[str, Any] = {"effect_on": effect_on, "label": label, "ids": ids, "progress": progress}
        options |= {"index_path": index_path, "engine": engine}
        super().__init__(influence_model, dataset, target_layer, **options)
        self.normalisation = normalisation
        self.leverage = leverage
        self._coefficients_need_solver = leverage or normalisation is not None
        self.ihvp: InverseHessianVectorProduct = build_solver(
            ihvp_calculator_factory,
            self,
            self.layer,
            n_samples_for_hessian,
            shuffle_buffer_size,
            seed,
        )
        self._store_coefficients()

    def _about(self) -> dict[str, Any]:
        return super()._about() | {
            "normalisation": self.normalisation,
            "leverage": self.leverage,
            **self.ihvp.about(),
        }

    def _solve(self, matrices: np.ndarray) -> np.ndarray:
        return as_numpy(self.ihvp.solve(matrices).value)

    def _moved(self, block: Block, r: Array) -> Array:
        return self.ihvp.self_products(block.phi, r)

    def _residuals_left_out(self, block: Block) -> Array:
        if self.leverage:
            return leave_one_out_residuals(self.layer, self.ihvp, block, self.index.n_samples)
        return self.layer.residuals(block)

    def _scale(self, block: Block) -> Array | None:
        if self.normalisation is None:
            return None
        r = self.layer.residuals(block)
        if self.normalisation == "loss":
            product = as_numpy(self._moved(block, r)) * as_numpy(r)
            squared = product.reshape(len(product), -1).sum(axis=1)
            return like(np.sqrt(np.maximum(squared, 0)), r)
        norms = []
        for rows in row_slices(block.phi.shape[0], SOLVE_ROWS):
            part = Block(*(None if array is None else array[rows, ...] for array in block))
            solved = self._solve(np.asarray(as_numpy(self.layer.gradients(part)), dtype=np.float64))
            norms.append(np.sqrt((solved**2).sum(axis=(1, 2))))
        return like(np.concatenate(norms), r)
