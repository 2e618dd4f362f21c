"""Representer point selection by local Jacobian expansion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, check_finite, check_number, check_seed, like
from whence.attribution.base import weighted_features
from whence.attribution.contract import Attribution
from whence.attribution.over_layers import explain_several
from whence.attribution.question import Question
from whence.attribution.ridge import Ridge
from whence.attribution.solver import build_solver, check_factory, factory_arguments
from whence.engine.base import Converted
from whence.ihvp import InverseHessianVectorProduct, InverseHessianVectorProductFactory
from whence.index import Shard
from whence.layers.linear_layer import Block, LinearLayer
from whence.models.base import InfluenceModel
from whence.models.stored import describe_layer, describe_object
from whence.search.scores import Queries

__all__ = ["RepresenterPointLJE"]


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
    dataset : dataset
        The training set, batched: a ``tf.data.Dataset``, a ``keras.utils.PyDataset``, a list of batches
        or a tuple of arrays, with ``(x, y)`` or ``(x, y, sample_weight)``.
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
    ids : sequence, optional
        Names of the training samples; the index of a pandas frame, or positions, by default.
    seed : int, default=0
        Of the draw of ``n_samples_for_hessian``.
    progress : bool, optional
        ``None`` shows progress bars on a terminal, ``True`` always, ``False`` never.
    index_path : path, optional
        A folder for what is stored of the training set, which may then be larger than memory. If it holds
        some of it already, as after an interruption, that is not computed again. See
        :func:`~whence.load_index`.
    feature_dtype : {None, "float16", "float32"}, default=None
        What features are stored as; ``None`` leaves them as the model gives them.
    engine : int or dask.distributed.Client or Engine, optional
        Where work on the training set is done: here, in so many threads, or on the workers of a Dask
        cluster, which share the index through its ``index_path``. Results do not depend on it.
    on_error : {"raise", "skip"}, default="raise"
        What to do about training samples that cannot be read or that the model does not take; see
        :meth:`whence.InfluenceModel.index`.

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

    _takes_several = True
    method = "RepresenterPointLJE"
    relative_residual: float

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
        ids: Any = None,
        seed: int = 0,
        progress: bool | None = None,
        index_path: str | Path | None = None,
        feature_dtype: Any = None,
        engine: Any = None,
        on_error: str = "raise",
    ) -> None:
        check_factory(ihvp_calculator_factory, n_samples_for_hessian, shuffle_buffer_size)
        check_seed(seed)
        check_number(epsilon, "epsilon")
        check_number(step_size, "step_size")
        if decomposition not in ("exact", "elementwise"):
            raise WhenceError(
                "decomposition", "'exact' or 'elementwise'", repr(decomposition), "Choose one."
            )
        super().__init__(
            influence_model,
            dataset,
            target_layer,
            label=label,
            ids=ids,
            progress=progress,
            index_path=index_path,
            feature_dtype=feature_dtype,
            engine=engine,
            on_error=on_error,
        )
        several = self.influence_model.several is not None
        if decomposition == "elementwise" and several:
            raise WhenceError(
                "decomposition",
                "'exact' for several layers",
                "'elementwise', which divides by the one row of features that a sample has",
                "Leave it out.",
            )
        if decomposition == "elementwise" and self._has_positions:
            raise WhenceError(
                "decomposition",
                "'exact' for a layer that is applied along a sequence",
                "'elementwise', which divides by the one row of features that a sample has",
                "Leave it out.",
            )
        self._factory = ihvp_calculator_factory
        self._drawn = (n_samples_for_hessian, shuffle_buffer_size, seed)
        self.epsilon = epsilon
        self.step_size = step_size
        self.decomposition = decomposition
        if several:
            explain_several(self, ihvp_calculator_factory, self._drawn, is_expansion=True)
            self._store_coefficients()
            return
        wide = Converted(self.index, Block.in_double)
        ascent = step_size * self.layer.mean_gradient(wide)
        self.expanded_layer: LinearLayer = self.layer.at(self.layer.theta + ascent)
        self.ihvp: InverseHessianVectorProduct = build_solver(
            ihvp_calculator_factory,
            self,
            self.expanded_layer,
            n_samples_for_hessian,
            shuffle_buffer_size,
            seed,
        )
        gradient = self.layer.centred(self.expanded_layer.mean_gradient(wide))
        step = self.ihvp.solve(gradient[None, :, :])
        self.relative_residual = float(step.relative_residual)
        self.theta_dagger: np.ndarray = self.expanded_layer.theta - self.layer.centred(
            as_numpy(step.value)[0]
        )
        check_finite(
            self.theta_dagger,
            "weights of the expansion",
            "theta_dagger",
            "Scale features and sample weights down: their products overflow.",
        )
        if decomposition == "elementwise":
            self._prepare_elementwise()
        else:
            self._weighted = self.index.n_samples * as_numpy(gradient)
        self._store_coefficients()

    def _default_score(self) -> str:
        suits = Ridge.where_it_suits(self.layer, self.index) is not None
        return "ridge" if suits else super()._default_score()

    def _about(self) -> dict[str, Any]:
        return super()._about() | {
            "decomposition": self.decomposition,
            "step_size": self.step_size,
            "epsilon": self.epsilon,
            **self.ihvp.about(),
        }

    def _measured(self) -> dict[str, Any]:
        return super()._measured() | {"relative_residual": self.relative_residual}

    @property
    def _solves(self) -> bool:
        return self.decomposition == "exact"

    def _decomposes_prediction(self) -> bool:
        return self.decomposition == "exact"

    def _settings(self) -> dict[str, Any]:
        n_samples_for_hessian, shuffle_buffer_size, seed = self._drawn
        factory = self._factory
        return {
            "class": self.method,
            "arguments": {
                "n_samples_for_hessian": n_samples_for_hessian,
                "shuffle_buffer_size": shuffle_buffer_size,
                "epsilon": self.epsilon,
                "step_size": self.step_size,
                "decomposition": self.decomposition,
                "label": self.label,
                "seed": seed,
            },
            "factory": describe_object(factory, "whence.ihvp", factory_arguments(factory)),
            "layer": describe_layer(
                self.layer, self.influence_model.lasting_name, self.influence_model.model_name
            ),
        }

    def _state(self) -> dict[str, np.ndarray]:
        return {"theta": as_numpy(self.layer.theta), **self.ihvp.state()}

    def _check_weights(self) -> np.ndarray:
        return np.concatenate([as_numpy(self.expanded_layer.theta), as_numpy(self.theta_dagger)])

    def _coefficients(self, block: Block) -> Array:
        if self.decomposition == "elementwise":
            return self._alpha(block)
        return self.expanded_layer.residuals(block)

    def _queries(self, question: Question) -> Queries:
        if self.decomposition == "elementwise":
            phi = as_numpy(question.phi)
            weighted = phi if question.weight is None else phi * question.weight[:, None]
            return Queries(weighted, np.zeros(len(phi)), question.outputs)
        # v(i, t) = <theta', Q_t> / N - (1/N) <g_i, S_t>,  S_t = H^{-1} Q_t,  Q_t = phi_t (x) e_j
        n_samples = self.index.n_samples
        directions = self.layer.centred(question.directions(self.layer.n_outputs))
        solved = self.layer.centred(self.ihvp.solve(directions).value)
        return Queries(-solved / n_samples, question.under(self.expanded_layer.theta) / n_samples)

    def _self_influence(self, shard: Shard, question: Question) -> Array:
        if self.decomposition == "elementwise":
            return np.abs(question.pick(as_numpy(shard.coefficients)))
        block = shard.block.in_double()
        r = self.layer.centred(self.expanded_layer.residuals(block))
        moved = as_numpy(self.ihvp.self_products(block.phi, r, question.outputs))
        own = question.under(self.expanded_layer.theta)
        return np.abs(own - question.gather(moved)) / self.index.n_samples

    def _leave_one_out(self, shard: Shard) -> Array:
        # u_i without i, to first order: u_i + (1/N) (H^{-1} g_i)^T phi_i
        block = shard.block.in_double()
        r = self.layer.centred(self.expanded_layer.residuals(block))
        moved = self.ihvp.self_products(block.phi, r)
        return like(self.layer.pre_activations(block.phi), moved) + moved / self.index.n_samples

    def _totals(self, question: Question) -> np.ndarray:
        if self.decomposition == "elementwise":
            return question.under(weighted_features(self.index))
        return question.under(self.theta_dagger)

    def _prepare_elementwise(self) -> None:
        """Solve for ``S_j = H^{-1} (1 (x) e_j)``: summing ``H^{-1} M`` over features is ``<S_j, M>``."""
        n_outputs = self.layer.n_outputs
        ones = np.ones((n_outputs, self.layer.n_features, 1)) * np.eye(n_outputs)[:, None, :]
        self._summing = as_numpy(self.ihvp.solve(ones).value)

    def _alpha(self, block: Block) -> Array:
        # alpha_ij = sum_d theta'_dj / (N phi_id + eps) - sum_d (H^{-1} (g_i / (N phi_i + eps)))_dj
        phi = np.asarray(as_numpy(block.phi), dtype=np.float64)
        r = as_numpy(self.expanded_layer.residuals(block))
        reciprocal = 1 / (self.index.n_samples * phi + self.epsilon)
        divided = phi * reciprocal
        second = np.einsum("jdc,nd,nc->nj", self._summing, divided, r, optimize=True)
        alpha = reciprocal @ self.expanded_layer.theta - second
        return alpha.astype(as_numpy(block.phi).dtype)
