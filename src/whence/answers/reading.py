"""A model, an index and a rule together: samples are read, and asked about by the rule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, Unpack

import numpy as np

from whence._errors import WhenceError, check_choice, described, warn
from whence.answers.accuracy import LARGEST_ERROR, Probe, refuse_if_eaten
from whence.answers.matching import TrainingSet
from whence.answers.over_layers import over_layers
from whence.arrays.base import Array, as_array, as_numpy, check_number, row_slices
from whence.data.base import Batch
from whence.engine.base import Engine, Serial, engine_of, parts_of
from whence.engine.chosen import as_engine
from whence.index import Index, IndexPart, Method, Shard
from whence.indexing.observation import Observation
from whence.indexing.options import IndexKeywords, IndexOptions, options_of
from whence.layers.linear_layer import LinearLayer
from whence.methods.base import Rule, coefficients_as_stored, sum_of_products
from whence.methods.question import Question, hide, shares
from whence.methods.several import RowRule
from whence.methods.solver import factory_arguments
from whence.models.base import InfluenceModel
from whence.models.stored import describe_layer, describe_object
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
    "checked_names",
    "scores_of",
    "self_influence_of",
]


#: Training samples on which a loss is tried for what it does not depend on.
TRIED_ROWS = 32


#: Training samples that are solved for the other way round.
PROBED_ROWS = 64


class Scorer:
    """Holds a model, an index and a rule, and reads samples; see :class:`~whence.Attribution`."""

    def __init__(
        self,
        influence_model: InfluenceModel,
        dataset: Any,
        rule: Any,
        target_layer: int | str = -1,
        *,
        label: str = "predicted",
        several: Callable[[InfluenceModel, Index], RowRule] | None = None,
        **options: Unpack[IndexKeywords],
    ) -> None:
        check_model(influence_model)
        check_choice(label, "label", "predicted", "given")
        wanted = options_of(options)
        follows = isinstance(target_layer, int) and target_layer == -1
        model = influence_model if follows else influence_model.at_layer(target_layer)
        if model.explains_several and several is None:
            raise WhenceError(
                "target_layer",
                f"one dense layer for {getattr(rule, 'name', type(self).__name__)}",
                "several layers",
                "Choose one, or take RepresenterPointLJE or InfluenceFunctions.",
            )
        if isinstance(dataset, Index):
            model, index = _shared(model, dataset, wanted, follows)
        else:
            index = model.index(dataset, options=wanted)
        self.influence_model: InfluenceModel = model
        self.progress: bool | None = wanted.progress
        #: The layer with the model's own weights.
        self.layer: LinearLayer = model.layer.knowing_shifts(index.shards[0].rows(0, TRIED_ROWS).block)
        #: The method's mathematics.
        self.rule: Any = _made(rule, self.layer, index) if model.several is None else None
        if self.rule is None:
            assert several is not None  # others are refused above
            self.rule = several(model, index)
            self.__class__ = over_layers(type(self))
        # The loss of a sample is that of its given label, whatever the model predicts.
        self.label: str = "given" if self.rule.asks_about_loss else label
        #: How the method is called in results.
        self.method: str = self.rule.name
        if self.rule.solver is not None and self.rule.solver.influence_model is None:
            self.rule.solver.influence_model = model
        self._model_fingerprint = model.fingerprint()
        self._watch: Any = index.watch or model.watch()
        self._self_influence_values: np.ndarray | None = None
        #: The stored training set, with the coefficients of this method.
        self.index: Index = self._with_coefficients(index)
        self._training_set = TrainingSet(self.index, self.index.source, wanted.progress, model)

    @property
    def asks_about_loss(self) -> bool:
        """Whether questions are about the loss of samples, so that positive speaks for their labels."""
        return self.rule.asks_about_loss

    def _with_coefficients(self, index: Index) -> Index:
        """Return an index with the coefficients of this method."""
        engine, sent = self._place(index.engine, with_solver=self.rule.coefficients_need_solver)
        function = partial(coefficients_as_stored, sent)
        return index.with_coefficients(function, lambda: self._to_store(index), engine)

    def about(self) -> dict[str, Any]:
        """Return what was computed and how, for results and manifests."""
        return {
            "method": self.method,
            "layer": self.influence_model.lasting_name,
            "loss": self.influence_model.loss.name,
            "n_samples": self.rule.n_samples,
            "n_features": self.layer.n_features,
            "n_outputs": self.layer.n_outputs,
            "label": self.label,
            **self.rule.about(),
        }

    def measured(self) -> dict[str, Any]:
        """Return what results say beyond that: the model's name, and what came out on the way.

        ``decomposes_prediction`` is whether the values of all training samples sum to a prediction;
        ``label_kind`` is what labels and predictions are: ``"class"``, ``"tags"`` or ``"value"``;
        ``class_names`` what the user calls classes, where that is something else than their numbers.
        """
        names = self.influence_model.class_names
        return {
            **({} if names is None else {"class_names": names}),
            "model": self.influence_model.model_name,
            "decomposes_prediction": self.rule.decomposes_prediction,
            "label_kind": self.layer.loss.label_kind(self.layer.n_outputs),
            **self.rule.measured(),
        }

    def _to_store(self, index: Index) -> Method:
        """Return what an index on disk records of this method, so that it can be made again."""
        rule, model = self.rule, self.influence_model
        settings: dict[str, Any] = {
            "class": rule.name,
            "arguments": {**rule.arguments(), "label": self.label},
            "layer": describe_layer(self.layer, model.lasting_name, model.model_name, model.class_names),
        }
        state = {"theta": as_numpy(self.layer.theta)}
        if rule.solver is not None:
            factory = rule.factory
            settings["factory"] = describe_object(factory, "whence.ihvp", factory_arguments(factory))
            state |= rule.solver.state()
        check = rule.check_numbers(index.shards[0].rows(0, 8).block)
        return Method(self.about(), settings, check, state)

    # ------------------------------------------------------------------------------ pieces

    @property
    def _has_positions(self) -> bool:
        """Whether the layer is applied along a sequence."""
        return self.index.has_positions

    def _queries_of(self, batch: Batch) -> Queries:
        """Return what a batch asks about each sample's own output, or the mean over its positions."""
        if self.label == "predicted" and not self._has_positions:
            batch = batch._replace(labels=None)
        seen = self._observe(batch)
        u = as_numpy(self.layer.pre_activations(seen.phi))
        outputs = self._own_outputs(u, seen.target)
        question = self._question(seen, outputs, self._shares(seen, batch.where))
        return self._checked_queries(question)[0]

    def _question(self, seen: Observation, outputs: np.ndarray, weight: np.ndarray | None) -> Any:
        """Return what is asked about samples: the outputs in question, times the weights."""
        return self.rule.question(seen.phi, outputs, weight, seen.target)

    def _queries(self, question: Question) -> Queries:
        """Return what a question asks of the training samples."""
        return self.rule.queries(question)

    def _checked_queries(self, question: Question) -> tuple[Queries, np.ndarray]:
        """Return what a question asks of the training samples, and how far the solver is off.

        Which is ``(T,)``, relative to the largest value, and 0 where nothing was solved.

        Raises
        ------
        WhenceError
            If rounding has eaten the answers of a direct solver.
        """
        queries = self.rule.queries(question)
        solver = self.rule.solver
        if solver is None or not self.rule.solves_queries or not len(queries):
            return queries, np.zeros(len(queries))
        errors, scale = self._probe.errors(question, queries)
        doubtful = np.flatnonzero(~(errors <= LARGEST_ERROR * scale))
        if solver.is_direct and doubtful.size:  # the largest values may be of others than the probe's
            search = LinearNearestNeighbors()
            search.build(Vectors(self.index), scores, 1, doubtful.size)
            ends = search.query_orders(queries.some(doubtful), tuple(ORDER), in_double=True)
            scale[doubtful] = np.abs(np.concatenate([end.values for end in ends], axis=1)).max(axis=1)
            refuse_if_eaten(float(np.max(errors[doubtful] / scale[doubtful])), solver.damping)
        return queries, errors / np.where(scale > 0, scale, 1.0)

    @cached_property
    def _probe(self) -> Probe:
        """A few training samples, solved for the other way round."""
        index, solver = self.index, self.rule.solver
        assert solver is not None  # as queries are solved for
        rows = np.arange(0, index.n_samples, max(1, index.n_samples // PROBED_ROWS))[:PROBED_ROWS]
        return Probe.of(solver, self.layer, index.take(rows), index.n_samples)

    @cached_property
    def _weighted(self) -> np.ndarray:
        """``sum_i outer(phi_i, a_i)``, what scores of all training samples sum to with a query."""
        known = self.rule.weighted_features()
        return sum_of_products(self.index, None) if known is None else known

    def _sums(self, queries: Queries) -> np.ndarray:
        """Return what the scores of all training samples sum to, ``(T,)``, by way of their sum."""
        matrices, offsets = as_numpy(queries.matrices), as_numpy(queries.offsets)
        if queries.outputs is None:
            products = matrices.reshape(len(matrices), -1) @ self._weighted.reshape(-1)
        else:
            products = np.einsum("td,dt->t", matrices, self._weighted[:, as_numpy(queries.outputs)])
        return self.index.n_samples * offsets + products

    def _totals(self, question: Question, queries: Queries) -> np.ndarray:
        """Return the sum over the training set of the scores for a question, shape ``(T,)``."""
        known = self.rule.totals(question)
        return self._sums(queries) if known is None else known

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
        return own_outputs(self.rule, self.label, u, target)

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

    def _place(self, engine: Engine, *, with_solver: bool) -> tuple[Engine, Rule]:
        """Return where work on single shards is done, and the rule to do it by.

        Work that needs a solver which needs the training set is done here: its products are not.
        """
        if isinstance(engine, Serial):
            return engine, self.rule
        sent = self.rule.for_workers(with_solver=with_solver)
        return (Serial(), self.rule) if sent is None else (engine, sent)

    def _of_shards(
        self, function: Callable[[Rule, Shard], np.ndarray], what: str, show: bool | None, with_solver: bool
    ) -> np.ndarray:
        """Return ``function(rule, shard)`` of all shards, one after another."""
        engine, rule = self._place(self.index.engine, with_solver=with_solver)
        steps = engine.map(lambda part: [function(rule, s) for s in part.shards], self.index.parts())
        of_shards = (result for results in steps for result in results)
        return np.concatenate(list(track(of_shards, what, len(self.index.shards), show, "shard")))

    def _self_influences(self) -> np.ndarray:
        """Return the self-influence of every stored sample, computed on the first call."""
        if self._self_influence_values is None:
            function = partial(self_influence_of, self.label)
            values = self._of_shards(function, "self-influence", self.progress, True)
            self._self_influence_values = values.astype(as_numpy(self.index.shards[0].phi).dtype)
        return self._self_influence_values


def _shared(
    model: InfluenceModel, index: Index, wanted: IndexOptions, follows: bool
) -> tuple[InfluenceModel, Index]:
    """Return the model at the layer of an index that is there already, and the index."""
    differing = wanted.differs_in("path", "ids", "feature_dtype", "on_error")
    if differing:
        name = "index_path" if differing[0] == "path" else differing[0]
        raise WhenceError(
            name,
            "nothing, since the training set is given as an index",
            repr(getattr(wanted, differing[0])),
            f"Give it where the index is made: model.index(train, {differing[0]}=...).",
        )
    if follows and not model.is_at(index.identity["layer"]):
        model = model.at_index(index)
    else:
        model.take(index)
    index = copy.copy(index)
    if wanted.engine is not None:
        index.engine = as_engine(wanted.engine)
    if wanted.progress is not None:
        index.progress = wanted.progress
    return model, index


def _made(rule: Any, layer: LinearLayer, index: Index) -> Rule:
    """Return a rule as it is given, or made by what makes one of a layer and an index."""
    make = rule.of if isinstance(rule, type) and issubclass(rule, Rule) else rule
    made = make if isinstance(make, Rule) else make(layer, index) if callable(make) else None
    if isinstance(made, Rule):
        return made
    raise WhenceError(
        "rule",
        "a subclass of whence.Rule, or what makes one of a layer and an index",
        described(rule),
        "See 'Write a method' in the documentation.",
    )


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


def checked_names(ids: Any, n_samples: int, noun: str = "ids") -> np.ndarray:
    """Return the names of samples as an array, positions where there are none, or raise."""
    expected, fix = f"{n_samples} {noun}, one a sample", "Give them in the order of the samples."
    names = np.arange(n_samples) if ids is None else as_array(ids, "ids", expected, fix)
    if names.shape != (n_samples,):
        raise WhenceError("ids", expected, f"shape {names.shape}", fix)
    return names


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


def own_outputs(rule: Rule, label: str, u: np.ndarray, target: np.ndarray | None) -> np.ndarray:
    """Return the output that counts as each sample's own, or each position's."""
    loss = rule.layer.loss
    if rule.layer.n_outputs == 1:
        return np.zeros(u.shape[:-1], dtype=np.int64)
    if label == "given" and target is not None:
        try:
            return _by_rows(loss.given_output, target, u.ndim - 1).astype(np.int64)
        except WhenceError:  # labels of a hidden layer name none of its outputs: the loss asks about all
            if not rule.asks_about_loss:
                raise
    return np.argmax(u, axis=-1)


def self_influence_of(label: str, rule: Rule, shard: Shard) -> np.ndarray:
    """Return the self-influence of the samples of a shard, shape ``(n,)``."""
    u, target = as_numpy(rule.layer.pre_activations(shard.phi)), as_numpy(shard.target)
    weight = shares(as_numpy(shard.weight)) if shard.phi.ndim == 3 else None
    outputs = own_outputs(rule, label, rule.layer.loss.with_margins(u, target), target)
    question = Question(shard.phi, outputs, weight)
    return as_numpy(rule.self_influence(shard.block, question))


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
