"""What every method shares: the stored training set, whose output is whose, and self-influence.

A method says what is stored of a training sample (coefficients beside its features), what a query asks
(a :class:`~whence.search.scores.Queries`) and what a sample's self-influence is. The answers to users are
in ``answers`` and ``contract``, over the index and the search.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from whence._errors import WhenceError, warn
from whence.arrays.base import Array, as_numpy, astype, check_number, row_slices
from whence.attribution.accuracy import LARGEST_ERROR, Probe, refuse_if_eaten
from whence.attribution.question import Question, hide, shares
from whence.attribution.training_set import TrainingSet
from whence.data.base import Batch
from whence.engine.base import Engine, Serial, engine_of, parts_of, total
from whence.ihvp import InverseHessianVectorProduct
from whence.index import Index, IndexPart, Method, Shard
from whence.indexing.observation import Observation
from whence.layers.linear_layer import Block, LinearLayer
from whence.models.base import InfluenceModel
from whence.progress import track
from whence.search.rows import RowQueries, RowVector
from whence.search.scores import LinearNearestNeighbors, Queries, Vector, careful_scores, scores
from whence.search.top_k import ORDER

__all__ = [
    "Scorer",
    "Vectors",
    "all_scores",
    "at_most",
    "check_k",
    "check_model",
    "scores_of",
    "self_influence_of",
    "weighted_features",
]


#: Training samples on which a loss is tried for what it does not depend on.
TRIED_ROWS = 32


#: Training samples that are solved for the other way round.
PROBED_ROWS = 64


class Scorer(ABC):
    """Stores a training set once and knows each sample's own output; see :class:`~whence.Attribution`."""

    #: How the method is called in results.
    method: str
    #: Whether questions are about the loss of samples, so that positive speaks for their labels.
    asks_about_loss: bool = False
    #: Whether coefficients are computed with the solver.
    _coefficients_need_solver: bool = False
    #: Whether the method can be over several layers.
    _takes_several: bool = False

    def __init__(
        self,
        influence_model: InfluenceModel,
        dataset: Any,
        target_layer: int | str = -1,
        *,
        label: str = "predicted",
        ids: Any = None,
        progress: bool | None = None,
        index_path: str | Path | None = None,
        feature_dtype: Any = None,
        engine: Any = None,
        on_error: str = "raise",
    ) -> None:
        check_model(influence_model)
        if label not in ("predicted", "given"):
            raise WhenceError("label", "'predicted' or 'given'", repr(label), "Choose one.")
        follows = isinstance(target_layer, int) and target_layer == -1
        self.influence_model: InfluenceModel = (
            influence_model if follows else influence_model.at_layer(target_layer)
        )
        if self.influence_model.explains_several and not self._takes_several:
            raise WhenceError(
                "target_layer",
                f"one dense layer for {self.method}",
                "several layers",
                "Choose one, or take RepresenterPointLJE or InfluenceFunctions.",
            )
        self.label = label
        self.progress = progress
        self.index: Index = self.influence_model.index(
            dataset,
            ids=ids,
            progress=progress,
            path=index_path,
            feature_dtype=feature_dtype,
            engine=engine,
            on_error=on_error,
        )
        self._training_set = TrainingSet(self.index, dataset, progress, self.influence_model)
        #: The layer with the model's own weights.
        self.layer: LinearLayer = self.influence_model.layer.knowing_shifts(
            self.index.shards[0].rows(0, TRIED_ROWS).block
        )
        self._model_fingerprint = self.influence_model.fingerprint()
        self._watch: Any = self.index.watch or self.influence_model.watch()
        self._self_influence_values: np.ndarray | None = None

    # -------------------------------------------------------------- what a method must say

    @abstractmethod
    def _coefficients(self, block: Block) -> Array:
        """Return what each sample's features are weighed with, shape ``(n, C)`` or ``(n, L, C)``."""

    @abstractmethod
    def _queries(self, question: Question) -> Queries:
        """Return what a question asks of the training samples."""

    @abstractmethod
    def _self_influence(self, shard: Shard, question: Question) -> Array:
        """Return the self-influence of stored samples on what is asked about them, shape ``(n,)``."""

    @abstractmethod
    def _leave_one_out(self, shard: Shard) -> Array:
        """Return the pre-activations of stored samples without themselves, ``(n, C)`` or ``(n, L, C)``."""

    @abstractmethod
    def _totals(self, question: Question) -> np.ndarray:
        """Return the sum over the training set of the scores for a question, shape ``(T,)``."""

    def _default_score(self) -> str:
        """Return what doubtful labels are ranked by unless a score is asked for: the method itself."""
        return "leave_one_out"

    def _about(self) -> dict[str, Any]:
        """Return what was computed and how, for results and manifests."""
        return {
            "method": self.method,
            "layer": self.influence_model.lasting_name,
            "loss": self.influence_model.loss.name,
            "n_samples": self.index.n_samples,
            "n_features": self.layer.n_features,
            "n_outputs": self.layer.n_outputs,
            "label": self.label,
        }

    def _measured(self) -> dict[str, Any]:
        """Return what results say beyond that: the model's name, and what came out on the way.

        ``decomposes_prediction`` is whether the values of all training samples sum to a prediction;
        ``label_kind`` is what labels and predictions are: ``"class"``, ``"tags"`` or ``"value"``.
        """
        return {
            "model": self.influence_model.model_name,
            "decomposes_prediction": self._decomposes_prediction(),
            "label_kind": self.layer.loss.label_kind(self.layer.n_outputs),
        }

    def _decomposes_prediction(self) -> bool:
        """Return whether the values of all training samples sum to a prediction of the layer."""
        return False

    def _store_coefficients(self) -> None:
        """Fill in the coefficients of every stored sample; called once a method is ready."""
        engine, scorer = self._place(self._coefficients_need_solver)
        self.index.store_coefficients(scorer._stored_form, self._to_store, engine)

    def _to_store(self) -> Method:
        """Return what an index on disk records of this method."""
        return Method(self._about(), self._settings(), self._check_weights(), self._state())

    def _settings(self) -> dict[str, Any]:
        """Return what it takes to make the method again from a stored index, as JSON; see ``load_index``.

        Empty where it cannot be made without the model.
        """
        return {}

    def _state(self) -> dict[str, np.ndarray]:
        """Return what is costly to compute again and is stored with the method."""
        return {}

    def _check_weights(self) -> np.ndarray:
        """Return numbers that change with anything that the method computes."""
        first = self.index.shards[0].rows(0, 8)
        return np.asarray(as_numpy(self._stored_form(first.block)), dtype=np.float64)

    def _stored_form(self, block: Block) -> Array:
        """Return the coefficients of a block, computed in float64, in the precision of its features."""
        coefficients = self._coefficients(block.in_double())
        return astype(coefficients, block.phi.dtype)

    # ------------------------------------------------------------------------------ pieces

    @property
    def _has_positions(self) -> bool:
        """Whether the layer is applied along a sequence."""
        return self.index.shards[0].phi.ndim == 3

    def _queries_of(self, batch: Batch) -> Queries:
        """Return what a batch asks about each sample's own output, or the mean over its positions."""
        if self.label == "predicted" and not self._has_positions:
            batch = batch._replace(labels=None)
        seen = self._observe(batch)
        u = as_numpy(self.layer.pre_activations(seen.phi))
        outputs = self._own_outputs(u, seen.target)
        question = self._question(seen, outputs, self._shares(seen, batch.where))
        return self._checked_queries(question)[0]

    def _checked_queries(self, question: Question) -> tuple[Queries, np.ndarray]:
        """Return what a question asks of the training samples, and how far the solver is off.

        Which is ``(T,)``, relative to the largest value, and 0 where nothing was solved.

        Raises
        ------
        WhenceError
            If rounding has eaten the answers of a direct solver.
        """
        queries = self._queries(question)
        if not self._solves or not len(queries):
            return queries, np.zeros(len(queries))
        errors, scale = self._probe.errors(question, queries)
        ihvp = self._solver
        doubtful = np.flatnonzero(~(errors <= LARGEST_ERROR * scale))
        if ihvp.is_direct and doubtful.size:  # the largest values may be of other samples than the probe's
            search = LinearNearestNeighbors()
            search.build(Vectors(self.index), scores, 1, doubtful.size)
            ends = search.query_orders(queries.some(doubtful), tuple(ORDER), in_double=True)
            scale[doubtful] = np.abs(np.concatenate([end.values for end in ends], axis=1)).max(axis=1)
            refuse_if_eaten(float(np.max(errors[doubtful] / scale[doubtful])), ihvp.damping)
        return queries, errors / np.where(scale > 0, scale, 1.0)

    @property
    def _solver(self) -> InverseHessianVectorProduct:
        """The solver of a method that has one."""
        ihvp: InverseHessianVectorProduct = self.ihvp  # type: ignore[attr-defined]
        return ihvp

    @property
    def _solves(self) -> bool:
        """Whether queries are right-hand sides that were solved for, over ``N``."""
        return False

    @cached_property
    def _probe(self) -> Probe:
        """A few training samples, solved for the other way round."""
        index = self.index
        rows = np.arange(0, index.n_samples, max(1, index.n_samples // PROBED_ROWS))[:PROBED_ROWS]
        some = index.take(rows)
        return Probe.of(self._solver, self.layer, some, index.n_samples)

    @cached_property
    def _weighted(self) -> np.ndarray:
        """``sum_i outer(phi_i, a_i)``, what scores of all training samples sum to with a query."""
        return weighted_features(self.index)

    def _sums(self, queries: Queries) -> np.ndarray:
        """Return what the scores of all training samples sum to, ``(T,)``, by way of their sum."""
        matrices, offsets = as_numpy(queries.matrices), as_numpy(queries.offsets)
        if queries.outputs is None:
            products = matrices.reshape(len(matrices), -1) @ self._weighted.reshape(-1)
        else:
            products = np.einsum("td,dt->t", matrices, self._weighted[:, as_numpy(queries.outputs)])
        return self.index.n_samples * offsets + products

    def _question(self, seen: Observation, outputs: np.ndarray, weight: np.ndarray | None) -> Question:
        """Return what is asked about samples: the outputs in question, times the weights."""
        return Question(seen.phi, outputs, weight)

    def _take_model(self, influence_model: InfluenceModel) -> None:
        """Read samples with another model of the same layer from here on."""
        self.influence_model = influence_model
        self._model_fingerprint = influence_model.fingerprint()
        self._watch = influence_model.watch()

    def _observe(self, batch: Batch) -> Observation:
        """Return what the layer sees of samples to explain: how much they count plays no part.

        How much each position counts does.
        """
        weight = batch.weight
        if weight is not None and (not self._has_positions or np.prod(weight.shape[1:]) == 1):
            batch = batch._replace(weight=None)
        seen = self.influence_model.observe(batch)
        self._check_model(thoroughly=False)  # afterwards, so that it was the same model all the time
        return seen

    def _check_model(self, *, thoroughly: bool = True) -> None:
        """Raise if the model is not what it was when the training set was stored.

        Every question looks thoroughly, once; between batches it is enough to see what tells by itself.
        """
        if thoroughly:
            self.index.check_current()
        got = self._watch.difference(thoroughly=thoroughly)
        if got is not None:
            raise WhenceError(
                "influence_model",
                "a model that is, before and behind layer "
                f"{self.influence_model.layer_name!r}, as it was when the training set was stored",
                got,
                f"Make a new {self.method}, or put the model back into its state.",
            )

    def _shares(self, seen: Observation, where: str) -> np.ndarray | None:
        """Return each position's share in the mean over a sample, or None without positions."""
        weight = shares(seen.weight)
        if weight is None or seen.phi.ndim == 2:
            return None
        nothing = np.flatnonzero(~weight.any(axis=1))
        if nothing.size:
            raise WhenceError(
                f"samples in {where}",
                "at least one position of each that counts, by its label and weight",
                f"{nothing.size} samples without one, first sample {nothing[0]} of the batch",
                "Leave them out, or explain one position of each: explain(..., positions=...).",
            )
        return weight

    def _own_outputs(self, u: np.ndarray, target: np.ndarray | None) -> np.ndarray:
        """Return the output that counts as each sample's own, or each position's."""
        if self.layer.n_outputs == 1:
            return np.zeros(u.shape[:-1], dtype=np.int64)
        if self.label == "given" and target is not None:
            return _by_rows(self.layer.loss.given_output, target, u.ndim - 1).astype(np.int64)
        return np.argmax(u, axis=-1)

    def _predictions(self, u: np.ndarray) -> np.ndarray:
        """Return what is predicted of samples (or positions): classes, tags or values."""
        return _by_rows(self.layer.loss.predictions, u, u.ndim - 1)

    def _labels(self, target: np.ndarray, like: Array) -> np.ndarray:
        """Return targets as labels of samples (or positions), in the same form."""
        return _by_rows(self.layer.loss.labels, target, like.ndim - 1)

    def _stored_labels(self, rows: np.ndarray) -> np.ndarray:
        """Return the labels of some stored samples, of the shape of ``rows``, or with more axes."""
        like = self.index.shards[0].features
        target, weight = (self.index.gather(name, rows.ravel()) for name in ("target", "weight"))
        labels = hide(self._labels(as_numpy(target), like), _counted(like, weight))
        return labels.reshape(*rows.shape, *labels.shape[1:])

    def _stored_predictions(self, rows: np.ndarray) -> np.ndarray:
        """Return the predictions of some stored samples, shape ``(n, ...)``."""
        shard = self.index.take(rows)
        u = as_numpy(self.layer.pre_activations(shard.phi))
        u = self.layer.loss.with_margins(u, as_numpy(shard.target))
        return hide(self._predictions(u), _counted(shard.phi, shard.weight))

    def _place(self, needs_solver: bool) -> tuple[Engine, Scorer]:
        """Return where work on single shards is done, and what to do it with there.

        For other threads and machines that is a copy which holds neither model nor training set. Work
        that needs a solver which needs the training set is done here: its products are not.
        """
        if isinstance(self.index.engine, Serial):
            return self.index.engine, self
        ihvp = getattr(self, "ihvp", None) if needs_solver else None
        solver = None if ihvp is None else ihvp.for_samples()
        if ihvp is not None and solver is None:
            return Serial(), self
        other = copy.copy(self)
        other.__dict__ |= {
            "influence_model": None,
            "ihvp": solver,
            "index": _Size(self.index.n_samples),
            "_training_set": None,
            "_self_influence_values": None,
        }
        return self.index.engine, other

    def _of_shards(
        self,
        function: Callable[[Scorer, Shard], np.ndarray],
        what: str,
        show: bool | None,
        needs_solver: bool = True,
    ) -> np.ndarray:
        """Return ``function(scorer, shard)`` of all shards, one after another."""
        engine, scorer = self._place(needs_solver)
        steps = engine.map(lambda part: [function(scorer, s) for s in part.shards], self.index.parts())
        of_shards = (result for results in steps for result in results)
        return np.concatenate(list(track(of_shards, what, len(self.index.shards), show, "shard")))

    def _self_influences(self) -> np.ndarray:
        """Return the self-influence of every stored sample, computed on the first call."""
        if self._self_influence_values is None:
            values = self._of_shards(self_influence_of, "self-influence", self.progress)
            self._self_influence_values = values.astype(as_numpy(self.index.shards[0].phi).dtype)
        return self._self_influence_values


def check_model(influence_model: Any) -> InfluenceModel:
    """Return ``influence_model``, or raise if it is not a wrapped model."""
    if isinstance(influence_model, InfluenceModel):
        return influence_model
    raise WhenceError(
        "influence_model",
        "a whence.InfluenceModel",
        f"a {type(influence_model).__name__}",
        "Wrap the model: InfluenceModel(model).",
    )


def check_k(k: Any) -> int:
    """Return ``k``, or raise unless it is an integer from 1 on."""
    check_number(k, "k", minimum=1, integer=True)
    return int(k)


def at_most(k: int, n_samples: int) -> int:
    """Return ``k``, or all training samples that there are, with a warning, if it is more."""
    if k > n_samples:
        warn(f"k: asked for {k} training samples, and there are {n_samples}: all are returned.")
    return min(k, n_samples)


def _by_rows(function: Callable[[Array], Array], array: np.ndarray, n_axes: int) -> np.ndarray:
    """Apply a function of rows to an array whose ``n_axes`` first axes are samples, and positions."""
    if n_axes == 1:
        return as_numpy(function(array))
    rows = array.reshape(-1, *array.shape[n_axes:])
    result = as_numpy(function(rows))
    return result.reshape(*array.shape[:n_axes], *result.shape[1:])


def _counted(phi: Array, weight: Array | None) -> np.ndarray | None:
    """Return which positions count, shape ``(n, L)``; None without positions."""
    return None if phi.ndim == 2 or weight is None else as_numpy(weight) > 0


def self_influence_of(scorer: Scorer, shard: Shard) -> np.ndarray:
    """Return the self-influence of the samples of a shard, shape ``(n,)``."""
    u, target = as_numpy(scorer.layer.pre_activations(shard.phi)), as_numpy(shard.target)
    outputs = scorer._own_outputs(scorer.layer.loss.with_margins(u, target), target)
    weight = shares(as_numpy(shard.weight)) if shard.phi.ndim == 3 else None
    return as_numpy(scorer._self_influence(shard, Question(shard.phi, outputs, weight)))


class _Size(NamedTuple):
    """What is left of an index on other machines."""

    n_samples: int


def weighted_features(index: Index) -> np.ndarray:
    """Return ``sum_i outer(phi_i, a_i)`` over the stored samples, shape ``(d, C)``, in float64."""

    def of_part(part: IndexPart) -> np.ndarray:
        result = None
        for shard in part.shards:
            phi = np.asarray(as_numpy(shard.phi), dtype=np.float64).reshape(-1, shard.phi.shape[-1])
            product = phi.T @ as_numpy(shard.coefficients).reshape(len(phi), -1)
            result = product if result is None else result + product
        assert result is not None  # a part holds at least one shard
        return result

    return total(index, of_part)


def all_scores(queries: Queries | RowQueries, index: Index) -> np.ndarray:
    """Return the scores of all stored samples, shape ``(T, N)``."""
    if len(queries) > queries.at_once:
        runs = row_slices(len(queries), queries.at_once)
        return np.concatenate([all_scores(queries[run], index) for run in runs])
    vectors = Vectors(index)
    steps = vectors.engine.map(
        lambda part: [scores_of(queries, vector) for _, vector in part], vectors.parts()
    )
    return np.concatenate([block for blocks in steps for block in blocks], axis=1)


def scores_of(queries: Queries | RowQueries, vector: Vector | RowVector) -> np.ndarray:
    """Return scores in the precision of the features, computed in that which they need."""
    with np.errstate(over="ignore"):  # whoever shows values looks for what does not fit
        return as_numpy(careful_scores(queries, vector)).astype(vector.dtype)


class Vectors:
    """The index, or a part, as the search sees it: ``(first row, Vector)`` for each shard."""

    def __init__(self, index: Index | IndexPart) -> None:
        self._index = index

    @property
    def engine(self) -> Engine:
        """Where it is searched."""
        return engine_of(self._index)

    def parts(self) -> Iterator[Vectors]:
        """Yield it in parts."""
        return map(Vectors, parts_of(self._index))

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        for start, shard in self._index.starts():
            if shard.gradients is not None:
                yield start, RowVector(shard.gradients, shard.coefficients)
            else:
                yield start, Vector(shard.phi, shard.coefficients)
