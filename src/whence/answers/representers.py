"""Representer points: predictions as sums over training samples."""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack

import numpy as np

from whence._errors import WhenceError
from whence.answers.contract import METHODS, Attribution
from whence.answers.over_layers import rows_rule
from whence.ihvp import InverseHessianVectorProduct, InverseHessianVectorProductFactory
from whence.index import Index
from whence.indexing.options import IndexKeywords
from whence.layers.linear_layer import Block, LinearLayer
from whence.methods.l2 import RefittedLayer, check_refit
from whence.methods.lje import LocalJacobianExpansion, check_expansion, expand
from whence.methods.several import RowRule
from whence.methods.solver import Drawn, check_factory
from whence.models.base import InfluenceModel

__all__ = ["RepresenterPointL2", "RepresenterPointLJE"]


@METHODS.register("RepresenterPointLJE")
class RepresenterPointLJE(Attribution):
    """Decompose predictions over training samples by local Jacobian expansion.

    A trained model's target layer is expanded around its weights ``theta``. With the gradients ``g_i``,
    the Hessian ``H`` of the mean loss, and ``N`` training samples::

        theta'  = theta + step_size * (1/N) sum_i g_i(theta)         one step of gradient ascent
        W_i     = (theta' - H^{-1} g_i) / N                          what sample i brings to the weights
        v_j(i, t) = phi_t^T W_i[:, j]                                its influence on output j of t

    ``g_i`` and ``H`` are taken at ``theta'``. Summed over the training set, the influences on a sample
    give ``(theta_dagger^T phi_t)_j`` with ``theta_dagger = theta' - H^{-1} (1/N) sum_i g_i``, to
    rounding, for every loss and solver.

    Parameters
    ----------
    influence_model : InfluenceModel
        The wrapped, trained model and its loss.
    dataset : dataset or Index
        The training set, batched: a ``tf.data.Dataset``, a ``keras.utils.PyDataset``, a list of batches
        or a tuple of arrays, with ``(x, y)`` or ``(x, y, sample_weight)``; or an index of it, see
        :meth:`whence.InfluenceModel.index`.
    ihvp_calculator_factory : InverseHessianVectorProductFactory
        Makes the solver, e.g. :class:`~whence.ExactIHVPFactory`.
    n_samples_for_hessian : int or None, default=None
        How many training samples, drawn at random through a shuffle buffer, the Hessian is computed
        from. ``None``: all.
    target_layer : int or str, default=-1
        Which dense layer, by index or by name. ``-1`` follows the model's ``start_layer``.
    shuffle_buffer_size : int, default=10000
        The size of that shuffle buffer.
    epsilon : float, default=1e-5
        Guards the divisions by a feature in ``decomposition="elementwise"``.
    step_size : float, default=1e-4
        Multiplies the mean gradient in the ascent step.
    decomposition : {"exact", "elementwise"}, default="exact"
        ``"exact"`` keeps ``W_i`` whole and is complete. ``"elementwise"`` is the formula printed in the
        paper, ``alpha_i = theta'/(N phi_i) - (1/N) H^{-1} (g_i / phi_i)`` with divisions entry by entry;
        its values ``alpha_ij phi_i^T phi_t`` do not sum to the prediction.
    label : {"predicted", "given"}, default="predicted"
        Which output counts as a sample's own, in self-influence and in what is explained.
    seed : int, default=0
        Of the draw of ``n_samples_for_hessian``.
    **options
        How the training set is stored and worked on, by name: ``index_path``, ``engine``, ``ids``,
        ``feature_dtype``, ``on_error``, ``progress``; or all as one object, ``index_options``. See
        :class:`~whence.IndexOptions`.

    Attributes
    ----------
    layer : LinearLayer
        The target layer with the model's own weights.
    expanded_layer : LinearLayer
        The same at ``theta'``.
    ihvp : InverseHessianVectorProduct
        The solver.
    theta_dagger : array of shape (d, C)
        The weights whose predictions are decomposed completely.
    relative_residual : float
        What the solver left of the Newton step to ``theta_dagger``, relative to the gradient.

    Raises
    ------
    WhenceError
        For input that has no answer; the message says what was expected and what to do.

    References
    ----------
    Sui, Wu, Sanner. "Representer Point Selection via Local Jacobian Expansion for Post-hoc Classifier
    Explanation of Deep Neural Networks and Ensemble Models." NeurIPS 2021.
    """

    rule: LocalJacobianExpansion

    def __init__(
        self,
        influence_model: InfluenceModel,
        dataset: Any,
        ihvp_calculator_factory: InverseHessianVectorProductFactory,
        n_samples_for_hessian: int | None = None,
        target_layer: int | str = -1,
        shuffle_buffer_size: int = 10000,
        epsilon: float = 1e-05,
        *,
        step_size: float = 1e-4,
        decomposition: str = "exact",
        label: str = "predicted",
        seed: int = 0,
        **options: Unpack[IndexKeywords],
    ) -> None:
        check_factory(ihvp_calculator_factory)
        check_expansion(step_size, decomposition, epsilon)
        made: dict[str, Any] = {
            "factory": ihvp_calculator_factory,
            "drawn": Drawn(n_samples_for_hessian, shuffle_buffer_size, seed).check(),
        }
        settings: dict[str, Any] = {
            "step_size": step_size,
            "decomposition": decomposition,
            "epsilon": epsilon,
        }
        super().__init__(
            influence_model,
            dataset,
            partial(expand, **made, **settings),
            target_layer,
            label=label,
            several=partial(_over_layers, **made, settings=settings),
            **options,
        )
        self.epsilon = epsilon
        self.step_size = step_size
        self.decomposition = decomposition

    @property
    def expanded_layer(self) -> LinearLayer:
        """The layer at ``theta'``."""
        return self.rule.expanded

    @property
    def theta_dagger(self) -> np.ndarray:
        """The weights whose predictions are decomposed completely."""
        return self.rule.theta_dagger

    @property
    def relative_residual(self) -> float:
        """What the solver left of the Newton step, relative to the gradient."""
        return self.rule.relative_residual

    @property
    def ihvp(self) -> InverseHessianVectorProduct:
        """The solver."""
        assert self.rule.solver is not None
        return self.rule.solver


def _over_layers(model: InfluenceModel, index: Index, *, settings: dict[str, Any], **made: Any) -> RowRule:
    if settings["decomposition"] == "elementwise":
        raise WhenceError(
            "decomposition",
            "'exact' for several layers",
            "'elementwise', which divides by the one row of features that a sample has",
            "Leave it out.",
        )
    name = "RepresenterPointLJE"
    return rows_rule(model, index, name=name, is_expansion=True, settings=settings, **made)


@METHODS.register("RepresenterPointL2")
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
    dataset : dataset or Index
        The training set, batched; or an index of it, see :meth:`whence.InfluenceModel.index`.
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
    **options
        How the training set is stored and worked on, by name: ``index_path``, ``engine``, ``ids``,
        ``feature_dtype``, ``on_error``, ``progress``; or all as one object, ``index_options``. See
        :class:`~whence.IndexOptions`.

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

    rule: RefittedLayer

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
        **options: Unpack[IndexKeywords],
    ) -> None:
        check_refit(l2, fit_to, gradient_norm)
        rule = partial(RefittedLayer.of, l2=l2, fit_to=fit_to, gradient_norm=gradient_norm)
        super().__init__(influence_model, dataset, rule, target_layer, label=label, **options)
        self.l2: float = self.rule.l2
        self.fit_to = fit_to
        #: The largest entry of the gradient that the refit reached.
        self.gradient_norm: float = self.rule.gradient_norm
        self.refitted_layer: LinearLayer = self.rule.refitted

    def block_to_fit(self, block: Block) -> Block:
        """Return a block in float64, on the host, with the targets that the refit takes.

        Parameters
        ----------
        block : Block
            Features, targets and weights as the model gives them.
        """
        return self.rule.block_to_fit(block)
