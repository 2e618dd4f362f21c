"""The five methods of the contract: once, for every method of attribution."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError, described
from whence._registry import Registry
from whence.answers.matching import TrainingSet
from whence.answers.questions import Answers
from whence.answers.reading import (
    Vectors,
    all_scores,
    at_most,
    check_k,
    scores_of,
    self_influence_of,
)
from whence.answers.storing import check_cache, check_values_folder, save_arrays, stored_vectors
from whence.arrays.base import as_numpy, check_finite
from whence.data.base import Batch, Dataset, fingerprints, take_rows
from whence.index import CACHE, Index, Shard
from whence.indexing.options import show_options
from whence.methods.base import coefficients_as_stored
from whence.progress import track
from whence.search.scores import (
    BaseNearestNeighbors,
    LinearNearestNeighbors,
    Queries,
    Vector,
    careful_scores,
    scores,
)
from whence.search.top_k import ORDER, TopK, check_order

__all__ = ["METHODS", "Attribution"]


class Attribution(Answers):
    """What people hold: a model, a stored training set, and the rule that scores its samples.

    Parameters
    ----------
    influence_model : InfluenceModel
    dataset : dataset or Index
        The training set, batched; or what :meth:`whence.InfluenceModel.index` made of it, which several
        methods then share.
    rule : type, callable or Rule
        The method's mathematics: a subclass of :class:`~whence.Rule`, or what makes one,
        ``rule(layer, index)``.
    target_layer : int or str, default=-1
        ``-1`` follows the model's own ``start_layer``.
    label : {"predicted", "given"}, default="predicted"
        Which output counts as a sample's own.
    several : callable, optional
        What makes the rule where the model is wrapped at several layers, ``several(model, index)``.
    **options
        How the training set is stored and worked on, as :class:`~whence.IndexOptions` has it:
        ``index_path``, ``engine``, ``ids``, ``feature_dtype``, ``on_error``, ``progress``; or all as one
        object, ``index_options``.

    Attributes
    ----------
    rule : Rule
    index : Index
        The stored training set with the coefficients of this method.
    layer : LinearLayer
        The target layer with the model's own weights.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            show_options(cls.__init__)

    # ------------------------------------------------------------------------ the contract

    def compute_influence_values(self, train_set: Any, device: str | None = None) -> Any:
        """Compute the self-influence of each sample of the training set.

        Parameters
        ----------
        train_set : dataset
            The training set, a part of it, or other samples with labels, in any order and batch size.
            Those that the constructor did not see go through the model: their values are what they would
            be beside the same Hessian and ``N``.
        device : str, optional
            A device of the framework.

        Returns
        -------
        dataset
            ``(batch of training samples, influence score (b,))``, of the same kind as ``train_set``.
        """
        self._check_model()
        values = self._self_influences()
        with self.influence_model.on_device(device):
            opened = self.influence_model.open(train_set, "train_set")
            return opened.pair_with(lambda batch: self._self_influences_of(batch, values))

    def compute_influence_vector(
        self,
        train_set: Any,
        save_influence_vector_ds_path: str | Path | None = None,
        device: str | None = None,
    ) -> Any:
        """Compute what is needed of each training sample to score it for any prediction.

        Parameters
        ----------
        train_set : dataset
            As for :meth:`compute_influence_values`.
        save_influence_vector_ds_path : path, optional
            A folder. If it already holds the vectors of this model and training set they are loaded,
            else they are computed and saved there.
        device : str, optional

        Returns
        -------
        dataset
            ``(batch of training samples, (phi (b, d), coefficients (b, C)))``, of the same kind as
            ``train_set``. Along a sequence ``(b, L, d)`` and ``(b, L, C)``.
        """
        self._check_model()
        with self.influence_model.on_device(device):
            opened = self.influence_model.open(train_set, "train_set")
            index = self._vectors(CACHE.MEMORY, None, save_influence_vector_ds_path)
            return opened.pair_with(lambda batch: self._vector(batch, index).arrays())

    def compute_top_k_from_training_dataset(
        self, train_set: Any, k: int, order: ORDER = ORDER.DESCENDING
    ) -> tuple[Any, Any]:
        """Find the training samples with the largest (or smallest) self-influence.

        Parameters
        ----------
        train_set : dataset
            As for :meth:`compute_influence_values`.
        k : int
            How many samples to find.
        order : ORDER, default=ORDER.DESCENDING
            The largest first, or the smallest.

        Returns
        -------
        training_samples : array of shape (k, ...)
            Their inputs, of the framework's kind.
        influences_values : array of shape (k,)
        """
        k = check_k(k)
        check_order(order)
        self._check_model()
        opened = self.influence_model.open(train_set, "train_set")
        training_set, rows, batches = self._matched(opened)
        best = TopK(1, at_most(k, rows.size), order)
        best.add(self._self_influences_in(training_set.index)[rows][None, :], 0)
        found = training_set.gather(opened, rows[best.rows], batches)
        (result,) = opened.from_elements([(take_rows(found, 0), best.values[0])])
        return result

    def estimate_influence_values_in_batches(
        self,
        dataset_to_evaluate: Any,
        train_set: Any,
        influence_vector_in_cache: CACHE = CACHE.MEMORY,
        load_influence_vector_path: str | Path | None = None,
        save_influence_vector_path: str | Path | None = None,
        save_influence_value_path: str | Path | None = None,
        device: str | None = None,
    ) -> Any:
        """Compute the influence of every training sample on every sample to evaluate.

        Parameters
        ----------
        dataset_to_evaluate : dataset
        train_set : dataset
            As for :meth:`compute_influence_values`.
        influence_vector_in_cache : CACHE, default=CACHE.MEMORY
        load_influence_vector_path, save_influence_vector_path : path, optional
            A folder to load the influence vectors from, or to save them to.
        save_influence_value_path : path, optional
            A folder to which ``values.npy`` is written: shape ``(T, N)``, training samples in the order
            of the constructor's dataset.
        device : str, optional

        Returns
        -------
        dataset
            ``(samples_to_evaluate, dataset of (training batch, scores (b_evaluate, b_train)))``.
        """
        if save_influence_value_path is not None:
            check_values_folder(save_influence_value_path, "influence values")
        self._check_model()
        with self.influence_model.on_device(device):
            opened = self.influence_model.open(train_set, "train_set")
            evaluated = self.influence_model.open(dataset_to_evaluate, "dataset_to_evaluate")
            cache = check_cache(influence_vector_in_cache)
            index = self._vectors(cache, load_influence_vector_path, save_influence_vector_path)
            elements, queries = [], []
            for element, batch in _with_elements(evaluated):
                elements.append(element)
                queries.append(self._queries_of(batch))
            self._check_model()
            if save_influence_value_path is not None:
                self._save_values(save_influence_value_path, queries, index)

            held: list[TrainingSet] = []

            def score(i: int, batch: Batch) -> np.ndarray:
                if cache is not CACHE.NO_CACHE and (held or (self._training_set.find(batch) < 0).any()):
                    if not held:  # other samples, which go through the model once
                        held.append(self._filled_for(opened))
                    part = held[0].index.take(held[0].rows(batch))
                    return scores_of(queries[i], Vector(part.phi, part.coefficients))
                if cache is CACHE.NO_CACHE:
                    vector = self._fresh_vector(batch)
                else:
                    vector = self._vector(batch, index)
                return scores_of(queries[i], vector)

            return opened.nested(elements, score)

    def top_k(
        self,
        dataset_to_evaluate: Any,
        train_set: Any,
        k: int = 5,
        nearest_neighbors: BaseNearestNeighbors | None = None,
        influence_vector_in_cache: CACHE = CACHE.MEMORY,
        load_influence_vector_ds_path: str | Path | None = None,
        save_influence_vector_ds_path: str | Path | None = None,
        save_top_k_ds_path: str | Path | None = None,
        order: ORDER = ORDER.DESCENDING,
        d_type: Any = np.float32,
        device: str | None = None,
    ) -> Any:
        """Find the training samples with the strongest influence on each sample to evaluate.

        Parameters
        ----------
        dataset_to_evaluate : dataset
        train_set : dataset
            As for :meth:`compute_influence_values`.
        k : int, default=5
        nearest_neighbors : BaseNearestNeighbors, optional
            The search; ``None`` makes a new :class:`~whence.LinearNearestNeighbors`.
        influence_vector_in_cache : CACHE, default=CACHE.MEMORY
        load_influence_vector_ds_path, save_influence_vector_ds_path : path, optional
        save_top_k_ds_path : path, optional
            A folder to which ``ids.npy`` and ``values.npy``, both ``(T, k)``, are written. Samples that the
            constructor did not see have no ids: they are refused then.
        order : ORDER, default=ORDER.DESCENDING
        d_type : dtype, default=float32
            What the values are returned as.
        device : str, optional

        Returns
        -------
        dataset
            ``(samples_to_evaluate, influence_values (b, k), training_samples (b, k, ...))``.
        """
        k = check_k(k)
        check_order(order)
        if nearest_neighbors is None:
            nearest_neighbors = LinearNearestNeighbors()
        if not isinstance(nearest_neighbors, BaseNearestNeighbors):
            raise WhenceError(
                "nearest_neighbors",
                "a BaseNearestNeighbors",
                described(nearest_neighbors),
                "Subclass it, or leave it out.",
            )
        d_type = _float_dtype(d_type)
        if save_top_k_ds_path is not None:
            check_values_folder(save_top_k_ds_path, "top k")
        self._check_model()
        with self.influence_model.on_device(device):
            opened = self.influence_model.open(train_set, "train_set")
            evaluated = self.influence_model.open(dataset_to_evaluate, "dataset_to_evaluate")
            cache = check_cache(influence_vector_in_cache)
            training_set, searched, batches = self._matched(opened, need_ids=save_top_k_ds_path is not None)
            index = training_set.index
            if training_set is self._training_set:
                index = self._vectors(cache, load_influence_vector_ds_path, save_influence_vector_ds_path)
            k = at_most(k, searched.size)
            whole = searched.size == index.n_samples
            source = Vectors(index if whole else index.subset(searched))
            elements, values, places = [], [], []
            started = False
            for element, batch in _with_elements(evaluated):
                queries = self._queries_of(batch)
                if not started:
                    own = isinstance(nearest_neighbors, LinearNearestNeighbors)  # looks at whole shards
                    dot_product = scores if own else careful_scores
                    nearest_neighbors.build(source, dot_product, k, len(queries), d_type, order)
                    started = True
                found_values, found_rows = nearest_neighbors.query(queries, len(queries))
                elements.append(element)
                values.append(_cast(found_values, d_type))
                places.append(searched[np.asarray(found_rows)])
            self._check_model()
            every = np.concatenate(places)
            if save_top_k_ds_path is not None:
                found = {"ids": self.index.names(every), "values": np.concatenate(values)}
                save_arrays(save_top_k_ds_path, "top k", found, self._manifest())
            samples = training_set.gather(opened, every, batches)
            results, start = [], 0
            for element, value in zip(elements, values, strict=True):
                part = take_rows(samples, slice(start, start + len(value)))
                results.append((element, value, part))
                start += len(value)
            return opened.from_elements(results)

    # ------------------------------------------------------------------------------ pieces

    def _vector(self, batch: Batch, index: Index) -> Vector:
        rows = self._training_set.find(batch)
        part = index.take(rows) if (rows >= 0).all() else self._shard_of(batch)
        return Vector(as_numpy(part.phi), as_numpy(part.coefficients))

    def _fresh_vector(self, batch: Batch) -> Vector:
        """Compute the coefficients of a batch anew; its features are those of the constructor's pass."""
        self._check_model(thoroughly=False)
        rows = self._training_set.find(batch)
        if (rows < 0).any():
            part = self._shard_of(batch)
            return Vector(part.phi, part.coefficients)
        part = self.index.take(rows)
        return Vector(part.phi, coefficients_as_stored(self.rule, part.block))

    def _self_influences_of(self, batch: Batch, values: np.ndarray) -> np.ndarray:
        """Return the self-influence of a batch of training samples, computed where it is not stored."""
        rows = self._training_set.find(batch)
        if (rows >= 0).all():
            return values[rows]
        computed = self_influence_of(self.label, self.rule, self._shard_of(batch)).astype(values.dtype)
        return np.where(rows >= 0, values[rows], computed)

    def _self_influences_in(self, index: Index) -> np.ndarray:
        if index is self.index:
            return self._self_influences()
        return np.concatenate([self_influence_of(self.label, self.rule, shard) for shard in index.shards])

    def _shard_of(self, batch: Batch) -> Shard:
        """Return a batch of training samples as the index would hold it, computed with the model."""
        model = self.influence_model
        seen = model.observe(batch)
        self._check_model(thoroughly=False)
        model.check_losses(seen, as_numpy(self.layer.theta), batch.where)
        assert seen.target is not None  # a training batch without labels is refused
        shard = Shard(seen.phi, seen.target, seen.weight, fingerprints(batch))
        shard.coefficients = coefficients_as_stored(self.rule, shard.block)
        return shard

    def _matched(
        self, opened: Dataset, need_ids: bool = False
    ) -> tuple[TrainingSet, np.ndarray, int | None]:
        """Return what holds the samples of a training set, their rows there, and its number of batches."""
        known = self._training_set.match if need_ids else self._training_set.match_known
        found = known(opened)
        if found is not None:
            return (self._training_set, *found)
        others = self._filled_for(opened)
        return (others, np.arange(others.index.n_samples), opened.n_batches)

    def _filled_for(self, opened: Dataset) -> TrainingSet:
        """Return an index that is filled for samples which the constructor did not see, or not all of."""
        index = Index()
        for batch in track(opened, "features of the training set", opened.n_batches, self.progress):
            shard = self._shard_of(batch)
            index.append(shard.features, shard.target, shard.weight, shard.fingerprint)
        index = index.finish()
        self._check_model()
        index = index.with_coefficients(partial(coefficients_as_stored, self.rule), None)
        return TrainingSet(index, opened.given, self.progress)

    # ------------------------------------------------------------------------------ storing

    def _manifest(self) -> dict[str, Any]:
        return {
            "model": self._model_fingerprint,
            "training_set": self.index.order,
            "about": self.about(),
        }

    def _vectors(self, cache: CACHE, load_path: str | Path | None, save_path: str | Path | None) -> Index:
        """Return the index that vectors come from, loaded or saved as the paths say."""
        return stored_vectors(
            self.index,
            lambda: self._to_store(self.index),
            partial(coefficients_as_stored, self.rule),
            cache,
            load_path,
            save_path,
        )

    def _save_values(self, path: str | Path, queries: list[Queries], index: Index) -> None:
        values = np.concatenate([all_scores(part, index) for part in queries])
        save_arrays(path, "influence values", {"values": values, "ids": self.index.ids}, self._manifest())


def _float_dtype(d_type: Any) -> np.dtype:
    """Return a dtype of NumPy or TensorFlow as NumPy's, if values can be given in it."""
    try:
        result = np.dtype(getattr(d_type, "as_numpy_dtype", d_type))
    except TypeError:
        result = None
    if result is not None and result.kind == "f":
        return result
    raise WhenceError("d_type", "a floating-point dtype", repr(d_type), "Pass np.float32 or np.float64.")


def _cast(values: Any, d_type: np.dtype) -> np.ndarray:
    """Return values in another dtype, or raise if they do not fit."""
    with np.errstate(over="ignore"):  # looked for right here
        cast = np.asarray(values).astype(d_type)
    fix = f"Values beyond {np.finfo(d_type).max:g} do not fit: pass np.float32 or np.float64."
    check_finite(cast, "d_type", "the influences", fix)
    return cast


def _with_elements(dataset: Dataset) -> Iterator[tuple[Any, Batch]]:
    """Yield each element of a dataset as the user gave it, beside the batch it is."""
    empty = True
    for number, element in enumerate(dataset.elements()):
        empty = False
        yield element, dataset.batch(element, number)
    if empty:
        next(iter(dataset))  # raises, with the message for empty datasets


#: Methods with a constructor of their own, by the names that stored indices have for them.
METHODS: Registry[Any] = Registry("method", "whence.answers")

show_options(Attribution.__init__)
