"""Influence functions, and dot products and cosines of gradients."""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack

import numpy as np

from whence._errors import WhenceError, check_choice
from whence.answers.contract import METHODS, Attribution
from whence.answers.over_layers import rows_rule
from whence.answers.reading import all_scores
from whence.arrays.base import as_numpy, check_finite
from whence.ihvp import InverseHessianVectorProduct, InverseHessianVectorProductFactory
from whence.index import Index
from whence.indexing.options import IndexKeywords
from whence.layers.linear_layer import Block
from whence.methods.gradient import Cosine, DotProduct, LossQuestion
from whence.methods.influence import Influence, check_influence
from whence.methods.several import RowRule
from whence.methods.solver import Drawn, check_factory
from whence.models.base import InfluenceModel

__all__ = ["GradientCosine", "GradientDotProduct", "InfluenceFunctions"]


@METHODS.register("InfluenceFunctions")
class InfluenceFunctions(Attribution):
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
    dataset : dataset or Index
        The training set, batched; or an index of it, see :meth:`whence.InfluenceModel.index`.
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
    ihvp : InverseHessianVectorProduct
        The solver.

    References
    ----------
    Koh, Liang. "Understanding Black-box Predictions via Influence Functions." ICML 2017.
    Barshan, Brunet, Dziugaite. "RelatIF: Identifying Explanatory Training Examples via Relative
    Influence." AISTATS 2020.
    """

    rule: Influence

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
        seed: int = 0,
        **options: Unpack[IndexKeywords],
    ) -> None:
        check_factory(ihvp_calculator_factory)
        drawn = Drawn(n_samples_for_hessian, shuffle_buffer_size, seed).check()
        check_influence(effect_on, normalisation, leverage, drawn)
        made: dict[str, Any] = {"factory": ihvp_calculator_factory, "drawn": drawn}
        settings: dict[str, Any] = {
            "effect_on": effect_on,
            "normalisation": normalisation,
            "leverage": leverage,
        }
        super().__init__(
            influence_model,
            dataset,
            partial(Influence.of, **made, **settings),
            target_layer,
            label=label,
            several=partial(_over_layers, **made, settings=settings),
            **options,
        )
        self.effect_on = effect_on
        self.normalisation = normalisation
        self.leverage = leverage

    @property
    def ihvp(self) -> InverseHessianVectorProduct:
        """The solver."""
        assert self.rule.solver is not None
        return self.rule.solver

    def loss_changes(
        self, samples: Any, *, positions: Any = None, progress: bool | None = None
    ) -> np.ndarray:
        """Return how far the loss of each sample rises without each training sample, curvature included.

        :meth:`influences` multiplies the change of the pre-activations with the slope of the loss. Here
        the loss is taken at the changed pre-activations, all ``C`` of them::

            ell_t(u_t + du) - ell_t(u_t),    du = (1/N) (H^{-1} g_i)^T phi_t

        which is further from zero on the side of a rise, as losses are convex. With ``leverage=True``
        it is exact for squared error. It is no inner product, so that values of single samples do not
        add up to those of groups, and there is no search by it: ``C`` solves and ``N C`` numbers for each
        sample.

        Parameters
        ----------
        samples : dataset
            With labels.
        positions, progress : optional
            As for :meth:`explain`.

        Returns
        -------
        array of shape (T, N), float64
            In the unit and with the sign of :meth:`influences`: positive speaks for the label.

        Raises
        ------
        WhenceError
            Unless the method asks about the loss, and without normalisation.

        Examples
        --------
        The mean of 0 and 3 is 1.5. Without the 0 it is 3, and the squared error of a 1 rises from 0.25
        to 4; without the 3 it is 0, and the error rises to 1. The slopes say 1.5 and -1.5:

        >>> from sklearn.linear_model import LinearRegression
        >>> import whence
        >>> x, y = np.ones((2, 1)), np.asarray([0.0, 3.0])
        >>> model = whence.InfluenceModel(LinearRegression(fit_intercept=False).fit(x, y))
        >>> method = whence.InfluenceFunctions(model, (x, y), whence.ExactIHVPFactory(0), leverage=True)
        >>> sample = np.ones((1, 1)), np.asarray([1.0])
        >>> method.loss_changes(sample).round(9), method.influences(sample).round(9)
        (array([[3.75, 0.75]]), array([[ 1.5, -1.5]]))
        """
        if not self.asks_about_loss or self.normalisation is not None:
            raise WhenceError(
                "effect_on and normalisation",
                "'loss' and None, to predict how far losses rise",
                f"{self.effect_on!r} and {self.normalisation!r}",
                "Make the method with these.",
            )
        if self.influence_model.several is not None:
            raise WhenceError(
                "target_layer",
                "one dense layer, to predict how far losses rise with their curvature",
                "several layers",
                "Take influences(), which multiplies with the slope of the loss.",
            )
        parts = []
        for question, _ in self._asked(samples, None, positions, progress):
            assert isinstance(question, LossQuestion)  # as the method asks about the loss
            parts += [self._loss_changes(question, row) for row in range(len(question.phi))]
        return np.stack(parts)

    def _loss_changes(self, question: LossQuestion, row: int) -> np.ndarray:
        """Return the changes of the loss of one sample, shape ``(N,)``."""
        n_outputs, n_samples = self.layer.n_outputs, self.index.n_samples
        phi = np.asarray(as_numpy(question.phi[row]), dtype=np.float64)
        moved = all_scores(self.rule.changes_of(phi), self.index).astype(np.float64)
        shape = n_samples, *phi.shape[:-1], n_outputs
        own = phi @ np.asarray(as_numpy(self.layer.theta), dtype=np.float64)
        before, after = own[None, ...], own + moved.T.reshape(shape)
        check_finite(after, "influences", "every answer", "Scale features and sample weights down.")

        def losses(u: np.ndarray) -> np.ndarray:
            target = np.repeat(as_numpy(question.target)[row][None, ...], len(u), axis=0)
            weight = None
            if phi.ndim == 2 and question.weight is not None:
                weight = np.repeat(question.weight[row][None, :], len(u), axis=0)
            block = Block(u, target, weight)
            rows = block.rows()
            return as_numpy(block.mean_over_positions(self.layer.loss.value(rows.phi, rows.target)))

        return losses(after) - losses(before)


@METHODS.register("GradientDotProduct")
class GradientDotProduct(Attribution):
    """Score training samples by the dot product of gradients: influence functions with ``H = I``.

    With the gradients ``g`` of the layer's loss and ``N`` training samples::

        v(i, t)   =  (1/N) <g_i, g_t>                    effect_on="loss"
        v_j(i, t) = -(1/N) <g_i, phi_t (x) e_j>          effect_on="pre_activation"

    It is what the share of sample ``i`` in one step of gradient descent of size 1 on the mean loss does,
    to first order: how far the loss of ``t`` falls, or its pre-activation ``j`` rises. Positive speaks
    for the label of ``t``, or for output ``j``. Self-influence is ``<g_i, g_i>``, or ``|v_j(i, i)|``;
    ``suspects`` leaves a sample out of that one step.

    Parameters
    ----------
    influence_model : InfluenceModel
    dataset : dataset or Index
        The training set, batched; or an index of it, see :meth:`whence.InfluenceModel.index`.
    target_layer : int or str, default=-1
        Which dense layer; ``-1`` follows the model's ``start_layer``.
    effect_on : {"loss", "pre_activation"}, default="loss"
        What is asked: the loss of samples, which then need labels, or a pre-activation.
    label : {"predicted", "given"}, default="predicted"
        Which output counts as a sample's own, for ``effect_on="pre_activation"``. The loss is always that
        of the given label.
    **options
        How the training set is stored and worked on, by name: ``index_path``, ``engine``, ``ids``,
        ``feature_dtype``, ``on_error``, ``progress``; or all as one object, ``index_options``. See
        :class:`~whence.IndexOptions`.
    """

    _rule_type: type[DotProduct] = DotProduct
    #: What scores over several layers are divided by.
    _normalisation: str | None = None

    def __init__(
        self,
        influence_model: InfluenceModel,
        dataset: Any,
        target_layer: int | str = -1,
        *,
        effect_on: str = "loss",
        label: str = "predicted",
        **options: Unpack[IndexKeywords],
    ) -> None:
        check_choice(effect_on, "effect_on", "loss", "pre_activation")
        name, normalisation = self._rule_type.name, self._normalisation
        several = partial(_gradients_over_layers, name, effect_on, normalisation)
        rule = partial(self._rule_type.of, effect_on=effect_on)
        super().__init__(
            influence_model, dataset, rule, target_layer, label=label, several=several, **options
        )
        self.effect_on = effect_on


@METHODS.register("GradientCosine")
class GradientCosine(GradientDotProduct):
    """Score training samples by the cosine between gradients.

    As :class:`~whence.GradientDotProduct`, with both gradients divided by their norms: from -1 to 1,
    without a unit. Large losses and long features count no more than others; a sample whose gradient is
    zero scores 0. For ``effect_on="loss"`` self-influence is 1 by definition and ranks nothing, and there
    is no step to leave a sample out of: rank doubtful labels by ``score="loss"`` or by another method.

    Parameters
    ----------
    influence_model, dataset, target_layer, effect_on, label, **options
        See :class:`~whence.GradientDotProduct`.
    """

    _rule_type = Cosine
    _normalisation = "gradient"


def _over_layers(model: InfluenceModel, index: Index, *, settings: dict[str, Any], **made: Any) -> RowRule:
    if settings["leverage"]:
        fix = "Leave it out, or explain one layer."
        raise WhenceError("leverage", "False for several layers", "True", fix)
    more = {name: settings[name] for name in ("effect_on", "normalisation")}
    return rows_rule(model, index, name="InfluenceFunctions", settings=settings, **more, **made)


def _gradients_over_layers(
    name: str, effect_on: str, normalisation: str | None, model: InfluenceModel, index: Index
) -> RowRule:
    settings = {"effect_on": effect_on}
    return rows_rule(
        model,
        index,
        name=name,
        factory=None,
        drawn=Drawn(),
        effect_on=effect_on,
        normalisation=normalisation,
        settings=settings,
    )
