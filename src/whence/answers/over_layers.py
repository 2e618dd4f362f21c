"""A method over several layers of a network: what it holds and how it answers; see ``several``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy
from whence.data.base import Batch
from whence.ihvp import InverseHessianVectorProductFactory
from whence.index import CACHE, Index, StoredIndex
from whence.indexing.observation import Observation
from whence.layers.linear_layer import Block
from whence.layers.products import squared_norms
from whence.layers.rows import Rows
from whence.methods.gradient import Gradients, LossQuestion, no_step_to_leave_out
from whence.methods.ridge import Ridge
from whence.methods.several import RowQuestion, RowRule, curvature_rows
from whence.methods.solver import Drawn, build_for_rows
from whence.progress import track
from whence.search.rows import RowQueries, RowVector

__all__ = ["over_layers", "rows_rule"]


def rows_rule(
    model: Any,
    index: Index,
    *,
    name: str,
    factory: InverseHessianVectorProductFactory | None,
    drawn: Drawn,
    **settings: Any,
) -> RowRule:
    """Make a method's rule over the several layers that its model is wrapped at.

    Parameters
    ----------
    model : InfluenceModel
    index : Index
    name : str
        What results call the method.
    factory : InverseHessianVectorProductFactory or None
        ``None``: gradients are compared as they are.
    drawn : Drawn
        The samples that the curvature is of.
    **settings
        See :class:`~whence.methods.several.RowRule`.
    """
    ihvp = None
    if factory is not None:
        several = model.several
        n_samples, buffer, seed = drawn.arguments().values()
        l2 = dict(several.source.l2(index.n_samples))
        system = curvature_rows(index, l2, n_samples, buffer, seed, several.is_drawn)
        ihvp = build_for_rows(factory, system)
    return RowRule(name, model.layer, index, ihvp, **settings)


def over_layers(method: type) -> type:
    """Return a method as it is over several layers."""
    instead = {name: value for name, value in vars(OverLayers).items() if not name.startswith("__")}
    return type(method.__name__, (method,), {**instead, "__doc__": method.__doc__})


class OverLayers:
    """What every method does otherwise over several layers: these members take the place of its own."""

    rule: RowRule
    index: Index
    influence_model: Any
    layer: Any

    def _of_one_layer(self, name: str) -> Any:
        """Return a method as it is over one layer."""
        return getattr(super(type(self), self), name)

    # ------------------------------------------------------------------------ questions

    def _question(self, seen: Observation, outputs: np.ndarray, weight: np.ndarray | None) -> RowQuestion:
        if self.rule.asks_about_loss:  # and how far it falls
            of_layer = Gradients(layer=self.layer, n_samples=self.rule.n_samples)
            plain = of_layer.question(seen.phi, outputs, weight, seen.target)
            assert isinstance(plain, LossQuestion)
            by_output = -np.asarray(plain.r)
        else:
            by_output = np.eye(self.layer.n_outputs)[outputs]
            by_output = by_output if weight is None else by_output * weight[..., None]
        record = self.influence_model.several.rows
        return RowQuestion(
            seen.phi, outputs, weight, _placed(by_output, seen), lambda by: record(seen.inputs, by)
        )

    def _said(self, question: RowQuestion) -> np.ndarray:
        """Return what is asked about as the model says it, shape ``(T,)``."""
        return question.under(np.asarray(as_numpy(self.layer.theta), dtype=np.float64))

    def _queries(self, question: RowQuestion) -> RowQueries:
        if "_asked" not in question.__dict__:  # once a question
            asked = self.rule.queries(question.recorded(), self._said(question))
            question.__dict__["_asked"] = asked
        queries: RowQueries = question.__dict__["_asked"]
        return queries

    def _checked_queries(self, question: RowQuestion) -> tuple[RowQueries, np.ndarray]:
        return self._queries(question), np.zeros(len(question.phi))

    def _sums(self, queries: RowQueries) -> np.ndarray:
        return self.rule.totals(queries)

    def _totals(self, question: RowQuestion, queries: RowQueries) -> np.ndarray:
        return self.rule.totals(queries)

    # --------------------------------------------------------------------- training samples

    def _self_influences(self) -> np.ndarray:
        if self._self_influence_values is None:
            asks_loss = self.rule.asks_about_loss
            values = self._own_losses() if asks_loss else self._of_training(self._own_outputs_moved)
            self._self_influence_values: np.ndarray | None = values
        return self._self_influence_values

    def _own_losses(self) -> np.ndarray:
        """Return ``<g_i, M g_i>``, divided as the method says."""
        parts = []
        for number, shard in enumerate(self.index.shards):
            assert shard.gradients is not None
            values = self.rule.moved(shard.gradients, shard.gradients)
            factors = self.rule.factors
            if self.rule.normalisation == "gradient":
                values = (values > 0).astype(np.float64)
            elif factors is not None:
                values = values * as_numpy(factors[number])
            parts.append(values)
        return np.concatenate(parts)

    def _own_outputs_moved(
        self, seen: Observation, batch: Batch, gradients: Rows, rows: np.ndarray
    ) -> np.ndarray:
        """Return ``|v_j(i, i)|`` of a batch of training samples."""
        u = as_numpy(self.layer.pre_activations(seen.phi))
        outputs = self._own_outputs(u, None if seen.target is None else as_numpy(seen.target))  # type: ignore
        question = self._question(seen, outputs, self._shares(seen, batch.where))  # type: ignore[attr-defined]
        asked = question.recorded()
        moved = self.rule.moved(asked, gradients)
        own = self._said(question) if self.rule.is_expansion else np.zeros(len(moved))
        values = np.abs(own - moved) / self.index.n_samples
        if self.rule.normalisation == "gradient":
            norms = np.sqrt(as_numpy(squared_norms(asked)))
            values = np.divide(np.abs(moved), norms, out=np.zeros_like(norms), where=norms > 0)
        return values if self.rule.factors is None else values * self._factors(rows)

    def _factors(self, rows: np.ndarray) -> np.ndarray:
        assert self.rule.factors is not None
        return np.concatenate([as_numpy(part) for part in self.rule.factors])[rows]

    def _left_out(self, seen: Observation, batch: Batch, gradients: Rows, rows: np.ndarray) -> np.ndarray:
        """Return minus the margins of a batch of training samples, each without itself."""
        weight = None if seen.weight is None else as_numpy(seen.weight)
        block = Block(self._after(seen, batch, gradients, rows), as_numpy(seen.target), weight)
        of_rows = block.rows()
        return -as_numpy(block.mean_over_positions(self.layer.loss.margin(of_rows.phi, of_rows.target)))

    def _after(self, seen: Observation, batch: Batch, gradients: Rows, rows: np.ndarray) -> np.ndarray:
        """Return the pre-activations of a batch of training samples, each without itself."""
        u = np.asarray(as_numpy(self.layer.pre_activations(seen.phi)), dtype=np.float64)
        n_outputs, n_samples = self.layer.n_outputs, self.index.n_samples
        flat = u.reshape(len(u), -1)
        moved = np.zeros_like(flat)
        for column in range(flat.shape[1]):
            by_output = np.zeros_like(flat)
            by_output[:, column] = 1
            asked = self.influence_model.several.rows(seen.inputs, by_output.reshape(u.shape))
            moved[:, column] = self.rule.moved(asked, gradients)
        return (flat + moved / n_samples).reshape(*u.shape[:-1], n_outputs)

    def _of_training(self, function: Callable[..., np.ndarray]) -> np.ndarray:
        """Return ``function(seen, batch, gradients, rows)`` of every stored sample.

        They are recognised by their bytes, in whatever order they come; equal ones share their value.
        """
        given = self.index.source
        if given is None or isinstance(given, Index):
            raise WhenceError(
                "dataset",
                "the training set itself, since its samples go through the model again for this",
                "an index",
                "Make the method with the dataset, or rank by score='loss' or 'ridge'.",
            )
        opened = self.influence_model.open(given, "dataset")
        values = np.empty(0)
        for batch in track(opened, "training samples", opened.n_batches, self.progress):  # type: ignore
            seen = self._observe(batch)  # type: ignore[attr-defined]
            rows = self._training_set.rows(batch)  # type: ignore[attr-defined]
            found = function(seen, batch, self.index.take(rows).gradients, rows)
            if not values.size:
                values = np.full((self.index.n_samples, *found.shape[1:]), np.nan)
            values[rows] = found
        values = values[self.index.first_rows(np.arange(len(values)))]
        missing = int(np.isnan(values.reshape(len(values), -1)).any(axis=1).sum())
        if missing:
            raise WhenceError(
                "dataset",
                "the same samples in every pass over the training set",
                f"a pass without {missing} of them",
                "Leave out what is drawn anew in each pass.",
            )
        return values

    def _suspicion(self, score: str, progress: bool | None) -> np.ndarray:
        if score != "leave_one_out":
            return self._of_one_layer("_suspicion")(score, progress)
        return self._of_every_batch(self._left_out)

    def _rows_left_out(self, progress: bool | None) -> np.ndarray:
        return self._of_every_batch(self._after)

    def _leaves_out_at_once(self) -> bool:
        return True

    def _of_every_batch(self, function: Callable[..., np.ndarray]) -> np.ndarray:
        if self.rule.normalisation == "gradient":
            raise no_step_to_leave_out()
        return self._of_training(function)

    def _default_score(self) -> str:
        suits = self.rule.prefers_ridge and Ridge.where_it_suits(self.layer, self.index) is not None
        return "ridge" if suits else "leave_one_out"

    # ------------------------------------------------------------------------------ storing

    def _with_coefficients(self, index: Index) -> Index:
        if self.rule.factors is None:
            return copy.copy(index)
        if isinstance(index, StoredIndex):
            raise WhenceError(
                "index_path",
                "None for several layers and scores that are divided by norms",
                "a folder",
                "Leave it out, or take a method without normalisation.",
            )
        other = copy.copy(index)
        pairs = zip(index.shards, self.rule.factors, strict=True)
        other.shards = [replace(shard, coefficients=factor) for shard, factor in pairs]
        return other

    def _vector(self, batch: Batch, index: Index) -> RowVector:
        part = index.take(self._training_set.rows(batch))  # type: ignore[attr-defined]
        assert part.gradients is not None
        return RowVector(part.gradients, part.coefficients)

    def _fresh_vector(self, batch: Batch) -> RowVector:
        self._check_model()  # type: ignore[attr-defined]
        return self._vector(batch, self.index)

    def _vectors(self, cache: CACHE, load_path: Any, save_path: Any) -> Index:
        if load_path is not None or save_path is not None or cache is CACHE.DISK:
            raise WhenceError(
                "influence_vector_in_cache",
                "CACHE.MEMORY or CACHE.NO_CACHE, and no path, for several layers",
                "CACHE.DISK" if load_path is None and save_path is None else "a path",
                "Leave it out: their vectors are kept in memory.",
            )
        return self.index

    def about(self) -> dict[str, Any]:
        """Return what was computed and how, for results and manifests."""
        source = self.influence_model.several.source
        about: dict[str, Any] = self._of_one_layer("about")()
        about |= {
            "layer": ", ".join(source.layers),
            "layers": list(source.layers),
            "left_out": dict(source.left_out),
            "n_weights": sum(g * d * c for g, d, c in (s.shape for s in source.layers.values())),
        }
        if self.rule.is_expansion:
            about["step_size"] = 0.0
        return about

    @property
    def ihvp(self) -> Any:
        """The solver."""
        return self.rule.ihvp

    @property
    def relative_residual(self) -> float:
        """What the solver left of its first right-hand sides, relative to these."""
        return self.rule.relative_residual


def _placed(by_output: np.ndarray, seen: Observation) -> Array:
    """Return weights of outputs at all positions, where one position of each sample was chosen."""
    if seen.places is None:
        return by_output
    n_positions, places = seen.places
    whole = np.zeros((len(by_output), n_positions, by_output.shape[-1]))
    whole[np.arange(len(by_output)), places] = by_output
    return whole
