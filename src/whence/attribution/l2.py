"""Representer points of a layer that is refitted with an L2 regulariser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, astype, check_number, like
from whence.attribution.contract import Attribution
from whence.attribution.question import Question
from whence.attribution.refit import refit
from whence.engine.base import Converted
from whence.index import Shard
from whence.layers.linear_layer import Block, LinearLayer
from whence.models.base import InfluenceModel
from whence.search.scores import Queries

__all__ = ["RepresenterPointL2"]


class RepresenterPointL2(Attribution):
    """Decompose the predictions of a refitted layer over training samples by the representer theorem.

    The layer is trained again on its own features with an L2 regulariser, ``theta*`` minimising
    ``(1/N) sum_i ell_i(theta) + l2 |theta|^2`` over all weights, the bias among them. There its residuals
    ``r_i`` carry the whole of the weights::

        alpha_i   = -r_i / (2 l2 N)                    sum_i phi_i (x) alpha_i = theta*
        v_j(i, t) = alpha_ij phi_i^T phi_t             influence on output j of t

    so that the values on output ``j`` of ``t`` sum to what the *refitted* layer says, not the model.
    ``v_j(i, t) > 0`` means that ``i`` raises the pre-activation. Self-influence is ``|alpha_ij|`` with
    ``j`` the sample's own output. ``suspects`` leaves out a sample's own term:
    ``u_i - alpha_i phi_i^T phi_i``, without training again.

    Parameters
    ----------
    influence_model : InfluenceModel
    dataset : dataset
        The training set, batched.
    l2 : float, default=3e-3
        Strength of the regulariser, which takes the place of the layer's own.
    target_layer : int or str, default=-1
        Which dense layer; ``-1`` follows the model's ``start_layer``.
    fit_to : {"predictions", "labels"}, default="predictions"
        What the layer is refitted to: the model's own predictions, as in the paper, so that the model is
        explained; or the given labels. Refitted to predictions, a wrong label that the model does not
        follow leaves no trace: its ``alpha`` is near 0. To look for wrong labels take ``"labels"``.
    gradient_norm : float, default=1e-10
        The largest entry that the gradient has after the refit. The weights are then off by at most
        ``gradient_norm / (2 l2)`` times the root of their number.
    label : {"predicted", "given"}, default="predicted"
        Which output counts as a sample's own.
    ids : sequence, optional
        Names of the training samples; positions by default.
    progress : bool, optional
    index_path, engine : optional
        See :class:`~whence.RepresenterPointLJE`.

    Attributes
    ----------
    layer : LinearLayer
        The target layer with the model's own weights.
    refitted_layer : LinearLayer
        The same at ``theta*``, with the loss that it was refitted with.

    Raises
    ------
    WhenceError
        If the refit does not reach the gradient norm; or for ``fit_to="predictions"``, if the loss has no
        closed form.

    References
    ----------
    Yeh, Kim, Yen, Ravikumar. "Representer Point Selection for Explaining Deep Neural Networks."
    NeurIPS 2018.
    """

    method = "RepresenterPointL2"

    def __init__(
        self,
        influence_model: InfluenceModel,
        dataset: Any,
        l2: float = 3e-3,
        target_layer: int | str = -1,
        *,
        fit_to: str = "predictions",
        gradient_norm: float = 1e-10,
        label: str = "predicted",
        ids: Any = None,
        progress: bool | None = None,
        index_path: str | Path | None = None,
        engine: Any = None,
    ) -> None:
        check_number(l2, "l2", strictly=True)
        check_number(gradient_norm, "gradient_norm", strictly=True)
        if fit_to not in ("predictions", "labels"):
            raise WhenceError("fit_to", "'predictions' or 'labels'", repr(fit_to), "Choose one.")
        options: dict[str, Any] = {"label": label, "ids": ids, "progress": progress}
        options |= {"index_path": index_path, "engine": engine}
        super().__init__(influence_model, dataset, target_layer, **options)
        self.l2: float = float(l2)
        self.fit_to = fit_to
        loss = self.layer.loss
        if fit_to == "predictions":
            loss, _ = loss.following(np.asarray(as_numpy(self.layer.theta))[:1])
        # All weights share the regulariser, so that the bias counts as one of them.
        start = LinearLayer(np.asarray(as_numpy(self.layer.theta), dtype=np.float64), loss)
        other: Any = self._place(needs_solver=False)[1]
        blocks = Converted(self.index, other.block_to_fit)  # the training set with the refit's targets
        found = refit(start, blocks, 2 * self.l2, gradient_norm=gradient_norm)
        #: The largest entry of the gradient that the refit reached.
        self.gradient_norm: float = found.gradient_norm
        self.refitted_layer: LinearLayer = start.at(found.theta)
        self._store_coefficients()

    def _about(self) -> dict[str, Any]:
        return super()._about() | {
            "l2": self.l2,
            "fit_to": self.fit_to,
            "gradient_norm": self.gradient_norm,
        }

    def _decomposes_prediction(self) -> bool:
        return True

    def block_to_fit(self, block: Block) -> Block:
        """Return a block in float64, on the host, with the targets that the refit takes.

        Parameters
        ----------
        block : Block
            Features, targets and weights as the model gives them.
        """
        phi = np.asarray(as_numpy(block.phi), dtype=np.float64)
        weight = None if block.weight is None else np.asarray(as_numpy(block.weight), dtype=np.float64)
        target = as_numpy(block.target)
        if self.fit_to == "predictions":
            _, target = self.layer.loss.following(self.layer.pre_activations(phi))
        return Block(phi, target, weight)

    def _alpha(self, block: Block) -> np.ndarray:
        r = as_numpy(self.refitted_layer.residuals(self.block_to_fit(block)))
        return -r / (2 * self.l2 * self.index.n_samples)

    def _coefficients(self, block: Block) -> Array:
        return astype(like(self._alpha(block), block.phi), block.phi.dtype)

    def _queries(self, question: Question) -> Queries:
        return question.inner_products(self.layer.n_outputs)

    def _self_influence(self, shard: Shard, question: Question) -> Array:
        return np.abs(question.pick(self._alpha(shard.block)))

    def _leave_one_out(self, shard: Shard) -> Array:
        alpha = self._alpha(shard.block)
        phi = np.asarray(as_numpy(shard.phi), dtype=np.float64)
        if phi.ndim == 2:
            own = alpha * (phi**2).sum(axis=1, keepdims=True)
        else:
            own = np.matmul(phi, np.matmul(np.swapaxes(phi, 1, 2), alpha))
        return like(as_numpy(self.refitted_layer.pre_activations(phi)) - own, shard.phi)

    def _totals(self, question: Question) -> np.ndarray:
        return question.under(self.refitted_layer.theta)
