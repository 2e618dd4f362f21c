"""Influence functions on a dense layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, check_finite, check_seed, like, row_slices
from whence.attribution.base import all_scores
from whence.attribution.gradient import Gradients, LossQuestion
from whence.attribution.leverage import leave_one_out_residuals
from whence.attribution.over_layers import explain_several
from whence.attribution.solver import build_solver, check_factory
from whence.ihvp import InverseHessianVectorProduct, InverseHessianVectorProductFactory
from whence.layers.linear_layer import Block
from whence.models.base import InfluenceModel
from whence.search.scores import Queries

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
        if self.influence_model.several is not None:
            if leverage:
                raise WhenceError(
                    "leverage", "False for several layers", "True", "Leave it out, or explain one layer."
                )
            drawn = (n_samples_for_hessian, shuffle_buffer_size, seed)
            explain_several(self, ihvp_calculator_factory, drawn, normalisation=normalisation)
            self._store_coefficients()
            return
        self.ihvp: InverseHessianVectorProduct = build_solver(
            ihvp_calculator_factory,
            self,
            self.layer,
            n_samples_for_hessian,
            shuffle_buffer_size,
            seed,
        )
        self._store_coefficients()

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
        >>> method = InfluenceFunctions(model, (x, y), whence.ExactIHVPFactory(0), leverage=True)
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
        for question, _ in self.questions(samples, positions=positions, progress=progress):
            assert isinstance(question, LossQuestion)  # as the method asks about the loss
            parts += [self._loss_changes(question, row) for row in range(len(question.phi))]
        return np.stack(parts)

    def _loss_changes(self, question: LossQuestion, row: int) -> np.ndarray:
        """Return the changes of the loss of one sample, shape ``(N,)``."""
        n_outputs, n_samples = self.layer.n_outputs, self.index.n_samples
        phi = np.asarray(as_numpy(question.phi[row]), dtype=np.float64)
        places = phi.reshape(-1, phi.shape[-1])  # one, or those along a sequence
        directions = np.einsum("ld,jc->ljdc", places, np.eye(n_outputs)).reshape(
            -1, phi.shape[-1], n_outputs
        )
        solved = self._solve(directions) / n_samples
        moved = all_scores(Queries(solved, np.zeros(len(solved))), self.index).astype(np.float64)
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

    def _about(self) -> dict[str, Any]:
        return super()._about() | {
            "normalisation": self.normalisation,
            "leverage": self.leverage,
            **self.ihvp.about(),
        }

    @property
    def _solves(self) -> bool:
        return True

    def _solve(self, matrices: np.ndarray) -> np.ndarray:
        return self.layer.centred(as_numpy(self.ihvp.solve(self.layer.centred(matrices)).value))

    def _moved(self, block: Block, r: Array) -> Array:
        return self.layer.centred(self.ihvp.self_products(block.phi, self.layer.centred(r)))

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
