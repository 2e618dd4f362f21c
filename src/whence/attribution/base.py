"""The five methods of the contract, ``explain`` and ``suspects``: once, for every method.

A method says what is stored of a training sample (coefficients beside its features), what a query asks
(a :class:`~whence.search.Queries`) and what a sample's self-influence is; everything else is here, over
the index and the search.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from whence._arrays import Array, as_numpy, check_number
from whence._errors import WhenceError
from whence.data import (
    Batch,
    Dataset,
    concatenate,
    fingerprints,
    leaves,
    open_dataset,
    take_rows,
)
from whence.explanation import Explanation, Suspects
from whence.index import CACHE, Index, Shard, check_folder, holds_index
from whence.linear_layer import Block, LinearLayer
from whence.models.base import InfluenceModel
from whence.progress import track
from whence.search import (
    ORDER,
    BaseNearestNeighbors,
    LinearNearestNeighbors,
    Queries,
    TopK,
    Vector,
    check_order,
    scores,
)

__all__ = ["Attribution"]

#: Queries that are searched at once.
QUERY_ROWS = 256

SCORES = ("leave_one_out", "self_influence", "loss")


class Attribution(ABC):
    """Scores training samples for predictions of a wrapped model.

    Parameters
    ----------
    influence_model : InfluenceModel
    dataset : dataset
        The training set, batched.
    target_layer : int or str, default=-1
        ``-1`` follows the model's own ``start_layer``.
    label : {"predicted", "given"}, default="predicted"
        Which output counts as a sample's own.
    ids : sequence, optional
        Names of the training samples, in the order of the dataset; positions by default.
    progress : bool, optional
        ``None`` shows progress bars on a terminal, ``True`` always, ``False`` never.
    """

    #: How the method is called in results.
    method: str

    def __init__(
        self,
        influence_model: InfluenceModel,
        dataset: Any,
        target_layer: int | str = -1,
        *,
        label: str = "predicted",
        ids: Any = None,
        progress: bool | None = None,
    ) -> None:
        if not isinstance(influence_model, InfluenceModel):
            raise WhenceError(
                "influence_model",
                "a whence.InfluenceModel",
                f"a {type(influence_model).__name__}",
                "Wrap the model: InfluenceModel(model).",
            )
        if label not in ("predicted", "given"):
            raise WhenceError("label", "'predicted' or 'given'", repr(label), "Choose one.")
        follows = isinstance(target_layer, int) and target_layer == -1
        self.influence_model = influence_model if follows else influence_model.at_layer(target_layer)
        self.label = label
        self.progress = progress
        self._train_set = dataset
        self.index: Index = self.influence_model.index(dataset, ids=ids, progress=progress)
        #: The layer with the model's own weights.
        self.layer: LinearLayer = self.influence_model.layer
        self._self_influence_values: np.ndarray | None = None

    # -------------------------------------------------------------- what a method must say

    @abstractmethod
    def _coefficients(self, block: Block) -> Array:
        """Return what each sample's features are weighed with, shape ``(n, C)``."""

    @abstractmethod
    def _queries(self, phi: Array, outputs: np.ndarray) -> Queries:
        """Return what samples with features ``phi (T, d)`` ask about one output each."""

    @abstractmethod
    def _self_influence(self, shard: Shard, outputs: np.ndarray) -> Array:
        """Return the self-influence of stored samples, shape ``(n,)``."""

    @abstractmethod
    def _leave_one_out(self, shard: Shard) -> Array:
        """Return the pre-activations of stored samples without themselves, shape ``(n, C)``."""

    @abstractmethod
    def _totals(self, phi: Array, outputs: np.ndarray) -> np.ndarray:
        """Return the sum over the training set of what the queries' scores are, shape ``(T,)``."""

    def _about(self) -> dict[str, Any]:
        """Return what was computed and how, for results and manifests."""
        return {
            "method": self.method,
            "layer": self.influence_model.layer_name,
            "loss": self.influence_model.loss.name,
            "n_samples": self.index.n_samples,
            "n_features": self.layer.n_features,
            "n_outputs": self.layer.n_outputs,
        }

    def _store_coefficients(self) -> None:
        """Fill in the coefficients of every stored sample; called once a method is ready."""
        for shard in self.index.shards:
            shard.coefficients = self._coefficients(shard.block)

    # ------------------------------------------------------------------------ the contract

    def compute_influence_values(self, train_set: Any, device: str | None = None) -> Any:
        """Compute the self-influence of each sample of the training set.

        Parameters
        ----------
        train_set : dataset
            The training set, or a part of it, in any order and batch size.
        device : str, optional
            A device of the framework.

        Returns
        -------
        dataset
            ``(batch of training samples, influence score (b,))``, of the same kind as ``train_set``.
        """
        values = self._self_influences()
        with self.influence_model.on_device(device):
            opened = open_dataset(train_set, "train_set")
            return opened.pair_with(lambda batch: values[self._rows(batch)])

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
        save_influence_vector_ds_path : path, optional
            A folder. If it already holds the vectors of this model and training set they are loaded,
            else they are computed and saved there.
        device : str, optional

        Returns
        -------
        dataset
            ``(batch of training samples, (phi (b, d), coefficients (b, C)))``, of the same kind as
            ``train_set``.
        """
        with self.influence_model.on_device(device):
            opened = open_dataset(train_set, "train_set")
            index = self._vectors(CACHE.MEMORY, None, save_influence_vector_ds_path)
            return opened.pair_with(lambda batch: self._vector(batch, index))

    def compute_top_k_from_training_dataset(
        self, train_set: Any, k: int, order: ORDER = ORDER.DESCENDING
    ) -> tuple[Any, Any]:
        """Find the training samples with the largest (or smallest) self-influence.

        Returns
        -------
        training_samples : array of shape (k, ...)
            Their inputs, of the framework's kind.
        influences_values : array of shape (k,)
        """
        k = self._check_k(k)
        check_order(order)
        opened = open_dataset(train_set, "train_set")
        rows, batches = self._match(opened)
        best = TopK(1, k, order)
        best.add(self._self_influences()[rows][None, :], 0)
        found = self._gather(opened, rows[best.rows], batches)
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
        dataset_to_evaluate, train_set : dataset
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
        with self.influence_model.on_device(device):
            opened = open_dataset(train_set, "train_set")
            evaluated = open_dataset(dataset_to_evaluate, "dataset_to_evaluate")
            cache = _check_cache(influence_vector_in_cache)
            index = self._vectors(cache, load_influence_vector_path, save_influence_vector_path)
            elements, queries = [], []
            for element, batch in _with_elements(evaluated):
                elements.append(element)
                queries.append(self._queries_of(batch)[0])
            if save_influence_value_path is not None:
                self._save_values(save_influence_value_path, queries, index)

            def score(i: int, batch: Batch) -> np.ndarray:
                if cache is CACHE.NO_CACHE:
                    vector = self._fresh_vector(batch)
                else:
                    vector = self._vector(batch, index)
                return as_numpy(scores(queries[i], vector))

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
        dataset_to_evaluate, train_set : dataset
        k : int, default=5
        nearest_neighbors : BaseNearestNeighbors, optional
            The search; ``None`` makes a new :class:`~whence.LinearNearestNeighbors`.
        influence_vector_in_cache : CACHE, default=CACHE.MEMORY
        load_influence_vector_ds_path, save_influence_vector_ds_path : path, optional
        save_top_k_ds_path : path, optional
            A folder to which ``ids.npy`` and ``values.npy``, both ``(T, k)``, are written.
        order : ORDER, default=ORDER.DESCENDING
        d_type : dtype, default=float32
            What the values are returned as.
        device : str, optional

        Returns
        -------
        dataset
            ``(samples_to_evaluate, influence_values (b, k), training_samples (b, k, ...))``.
        """
        k = self._check_k(k)
        check_order(order)
        if nearest_neighbors is None:
            nearest_neighbors = LinearNearestNeighbors()
        if not isinstance(nearest_neighbors, BaseNearestNeighbors):
            raise WhenceError(
                "nearest_neighbors",
                "a BaseNearestNeighbors",
                f"a {type(nearest_neighbors).__name__}",
                "Subclass it, or leave it out.",
            )
        d_type = np.dtype(getattr(d_type, "as_numpy_dtype", d_type))
        if save_top_k_ds_path is not None:
            _check_values_folder(Path(save_top_k_ds_path))
        with self.influence_model.on_device(device):
            opened = open_dataset(train_set, "train_set")
            evaluated = open_dataset(dataset_to_evaluate, "dataset_to_evaluate")
            cache = _check_cache(influence_vector_in_cache)
            searched, batches = self._match(opened)
            index = self._vectors(cache, load_influence_vector_ds_path, save_influence_vector_ds_path)
            whole = searched.size == index.n_samples
            source = _Vectors(index if whole else index.subset(searched))
            elements, values, places = [], [], []
            started = False
            for element, batch in _with_elements(evaluated):
                queries, _ = self._queries_of(batch)
                if not started:
                    nearest_neighbors.build(source, scores, k, len(queries), d_type, order)
                    started = True
                found_values, found_rows = nearest_neighbors.query(queries, len(queries))
                elements.append(element)
                values.append(np.asarray(found_values, dtype=d_type))
                places.append(searched[np.asarray(found_rows)])
            every = np.concatenate(places)
            if save_top_k_ds_path is not None:
                self._save_arrays(
                    save_top_k_ds_path,
                    {"ids": self.index.ids[every], "values": np.concatenate(values)},
                )
            samples = self._gather(opened, every, batches)
            results, start = [], 0
            for element, value in zip(elements, values, strict=True):
                part = take_rows(samples, slice(start, start + len(value)))
                results.append((element, value, part))
                start += len(value)
            return opened.from_elements(results)

    # ----------------------------------------------------------------- explain and suspects

    def explain(
        self,
        samples: Any,
        k: int = 5,
        *,
        outputs: Any = None,
        ids: Any = None,
        progress: bool | None = None,
    ) -> Explanation:
        """Find the training samples that speak most for and most against each prediction.

        Parameters
        ----------
        samples : dataset
            What to explain, batched; labels may be missing.
        k : int, default=5
            How many training samples of either sign.
        outputs : int or array of shape (T,), optional
            Which output to decompose. Default: the predicted class (``label="given"``: the given one).
        ids : sequence, optional
            Names of the samples; positions by default.
        progress : bool, optional

        Returns
        -------
        Explanation
            Positive values speak for the output in question; for a single sigmoid output they are
            turned where class 0 is predicted.
        """
        k = self._check_k(k)
        opened = open_dataset(samples, "samples")
        opened.labels_are_needed = False
        search = LinearNearestNeighbors()
        search.build(_Vectors(self.index), scores, k, QUERY_ROWS)
        parts: list[dict[str, np.ndarray]] = []
        show = self.progress if progress is None else progress
        start = 0
        for batch in track(opened, "explaining", opened.n_batches, show):
            chosen = None
            if outputs is not None:
                stop = start + batch.n_samples
                chosen = _outputs_of(outputs, start, stop, self.layer.n_outputs)
            parts.append(self._explain_batch(batch, chosen, search))
            start += batch.n_samples
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        n_explained = joined["values"].shape[0]
        names = np.arange(n_explained) if ids is None else np.asarray(ids)
        if names.shape != (n_explained,):
            raise WhenceError("ids", f"{n_explained} ids, one a sample", f"shape {names.shape}")
        labels = self._stored_labels()
        rows, opponents = joined.pop("rows"), joined.pop("opponent_rows")
        return Explanation(
            ids=self.index.ids[rows],
            opponent_ids=self.index.ids[opponents],
            sample_ids=names,
            labels=joined.pop("labels", None),
            training_labels=labels[rows],
            opponent_labels=labels[opponents],
            about=self._about() | {"k": k},
            **joined,
        )

    def suspects(
        self,
        train_set: Any,
        k: int | None = 50,
        *,
        score: str = "leave_one_out",
        progress: bool | None = None,
    ) -> Suspects:
        """Rank training samples by how doubtful their given label is.

        Parameters
        ----------
        train_set : dataset
            The training set, or a part of it.
        k : int or None, default=50
            How many to list; ``None`` ranks all.
        score : {"leave_one_out", "self_influence", "loss"}, default="leave_one_out"
            ``"leave_one_out"``: minus the margin of the given label in the prediction that the layer
            would make without the sample. ``"self_influence"``: :meth:`compute_influence_values`.
            ``"loss"``: the model's loss on the sample.
        progress : bool, optional

        Returns
        -------
        Suspects
        """
        if score not in SCORES:
            raise WhenceError("score", f"one of {', '.join(SCORES)}", repr(score), "Choose one.")
        show = self.progress if progress is None else progress
        rows, _ = self._match(open_dataset(train_set, "train_set"))
        k = rows.size if k is None else min(self._check_k(k), rows.size)
        every = self._suspicion(score, show)
        order = np.argsort(-every[rows], kind="stable")[:k]
        chosen = rows[order]
        predictions = self._predictions(self._stored_pre_activations(chosen))
        return Suspects(
            ids=self.index.ids[chosen],
            scores=every[chosen],
            score=score,
            labels=self._stored_labels()[chosen],
            predictions=predictions,
            about=self._about() | {"score": score},
        )

    # ------------------------------------------------------------------------------ pieces

    def _explain_batch(
        self, batch: Batch, outputs: np.ndarray | None, search: LinearNearestNeighbors
    ) -> dict[str, np.ndarray]:
        phi = self.influence_model.features(batch)
        u = as_numpy(self.layer.pre_activations(phi))
        given = None if batch.labels is None else self.influence_model.targets(batch)
        if outputs is None:
            outputs = self._own_outputs(u, given)
        one_class_output = self.layer.loss.is_classification and self.layer.n_outputs == 1
        signs = np.where(one_class_output & (u[:, 0] < 0), -1.0, 1.0)
        queries = self._queries(phi, outputs)
        turned = Queries(
            queries.matrices * signs.reshape(-1, *[1] * (queries.matrices.ndim - 1)),
            queries.offsets * signs,
            queries.outputs,
        )
        most, least = [], []
        for rows in range(0, len(turned), QUERY_ROWS):
            both = (ORDER.DESCENDING, ORDER.ASCENDING)
            best, worst = search.query_orders(turned[rows : rows + QUERY_ROWS], both)
            most.append(best)
            least.append(worst)
        result = {
            "rows": np.concatenate([found.rows for found in most]),
            "values": np.concatenate([found.values for found in most]),
            "opponent_rows": np.concatenate([found.rows for found in least]),
            "opponent_values": np.concatenate([found.values for found in least]),
            "outputs": outputs,
            "signs": signs,
            "predictions": self._predictions(u),
            "pre_activations": np.take_along_axis(u, outputs[:, None], axis=1)[:, 0] * signs,
            "totals": self._totals(phi, outputs) * signs,
        }
        if given is not None:
            result["labels"] = self._labels(given)
        return result

    def _queries_of(self, batch: Batch) -> tuple[Queries, np.ndarray]:
        phi = self.influence_model.features(batch)
        u = as_numpy(self.layer.pre_activations(phi))
        given = self.influence_model.targets(batch) if self.label == "given" else None
        outputs = self._own_outputs(u, given)
        return self._queries(phi, outputs), outputs

    def _own_outputs(self, u: np.ndarray, target: np.ndarray | None) -> np.ndarray:
        """Return the output that counts as each sample's own."""
        if self.layer.n_outputs == 1:
            return np.zeros(u.shape[0], dtype=np.int64)
        if self.label == "given" and target is not None:
            return as_numpy(self.layer.loss.given_output(target)).astype(np.int64)
        return np.argmax(u, axis=1)

    def _predictions(self, u: np.ndarray) -> np.ndarray:
        """Return the predicted class, or the predicted value of a regression."""
        return as_numpy(self.layer.loss.predictions(u))

    def _labels(self, target: np.ndarray) -> np.ndarray:
        """Return targets as one label a sample: a class, or a value."""
        return as_numpy(self.layer.loss.labels(target))

    def _stored_labels(self) -> np.ndarray:
        return np.concatenate([self._labels(shard.target) for shard in self.index.shards])

    def _stored_pre_activations(self, rows: np.ndarray) -> np.ndarray:
        return as_numpy(self.layer.pre_activations(self.index.take(rows).phi))

    def _self_influences(self) -> np.ndarray:
        """Return the self-influence of every stored sample, computed on the first call."""
        if self._self_influence_values is None:
            parts = []
            steps = track(
                self.index.shards, "self-influence", len(self.index.shards), self.progress, "shard"
            )
            for shard in steps:
                u = as_numpy(self.layer.pre_activations(shard.phi))
                outputs = self._own_outputs(u, as_numpy(shard.target))
                parts.append(as_numpy(self._self_influence(shard, outputs)))
            values = np.concatenate(parts)
            self._self_influence_values = values.astype(as_numpy(self.index.shards[0].phi).dtype)
        return self._self_influence_values

    def _suspicion(self, score: str, progress: bool | None) -> np.ndarray:
        """Return how doubtful the label of every stored sample is."""
        if score == "self_influence":
            return self._self_influences()
        parts = []
        shards = self.index.shards
        for shard in track(shards, f"suspects by {score}", len(shards), progress, "shard"):
            if score == "loss":
                parts.append(as_numpy(self.layer.losses(shard.block)))
            else:
                left_out = self._leave_one_out(shard)
                parts.append(-as_numpy(self.layer.loss.margin(left_out, shard.target)))
        return np.concatenate(parts)

    # ---------------------------------------------------- training sets as the user gives them

    def _rows(self, batch: Batch) -> np.ndarray:
        """Return the index's rows of a batch of training samples, recognised by their bytes."""
        rows = self.index.rows_of(fingerprints(batch))
        if (rows < 0).any():
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves(batch.inputs))
            raise WhenceError(
                f"train_set in {batch.where}",
                f"samples of the constructor's dataset (N = {self.index.n_samples})",
                f"{int((rows < 0).sum())} of {rows.size} samples that it did not hold "
                f"(inputs of shape {shapes})",
                "Pass the same training set; augmentation that is drawn anew on each pass must be left "
                "out. To score other samples, pass them as the ones to evaluate.",
            )
        return rows

    def _match(self, opened: Dataset) -> tuple[np.ndarray, int | None]:
        """Return the index's rows that a training set holds, ascending, and how many batches it has.

        The constructor's own dataset holds all of them, without another pass over it.
        """
        if opened.given is self._train_set:
            return np.arange(self.index.n_samples), opened.n_batches
        steps = track(opened, "matching the training set", opened.n_batches, self.progress)
        rows = [self._rows(batch) for batch in steps]
        return self.index.with_equals(np.unique(np.concatenate(rows))), len(rows)

    def _gather(self, opened: Dataset, rows: np.ndarray, n_batches: int | None) -> Any:
        """Return the inputs of the samples in ``rows (T, k)``, by one pass over the training set."""
        first = self.index.first_rows(rows.ravel())
        wanted = np.unique(first)
        kept: list[Any] = []
        seen: list[np.ndarray] = []
        for batch in track(opened, "gathering training samples", n_batches, self.progress):
            of_batch = self._rows(batch)
            here = np.flatnonzero(np.isin(of_batch, wanted))
            if here.size:
                kept.append(take_rows(batch.inputs, here))
                seen.append(of_batch[here])
        held = np.concatenate(seen)
        order = np.argsort(held, kind="stable")
        place = order[np.searchsorted(held[order], first)]
        flat = concatenate(kept)
        return take_rows(flat, place.reshape(rows.shape))

    def _vector(self, batch: Batch, index: Index) -> Vector:
        part = index.take(self._rows(batch))
        return Vector(as_numpy(part.phi), as_numpy(part.coefficients))

    def _fresh_vector(self, batch: Batch) -> Vector:
        """Compute the influence vectors of a batch anew."""
        phi = self.influence_model.features(batch)
        weight = self.influence_model.sample_weights(batch, phi.dtype)
        block = Block(phi, self.influence_model.targets(batch), weight)
        return Vector(phi, self._coefficients(block))

    # ------------------------------------------------------------------------------ storing

    def _manifest(self) -> dict[str, Any]:
        digest = hashlib.blake2b(digest_size=16)
        for shard in self.index.shards:
            digest.update(shard.fingerprint.tobytes())
        return {
            "model": self.influence_model.fingerprint(),
            "training_set": digest.hexdigest(),
            "about": self._about(),
        }

    def _vectors(self, cache: CACHE, load_path: str | Path | None, save_path: str | Path | None) -> Index:
        """Return the index that vectors come from, loaded or saved as the paths say."""
        if load_path is not None:
            return Index.load(load_path, self._manifest())
        if save_path is not None:
            if holds_index(save_path):
                return Index.load(save_path, self._manifest())
            self.index.save(save_path, self._manifest())
            return Index.load(save_path, self._manifest()) if cache is CACHE.DISK else self.index
        if cache is CACHE.DISK:
            raise WhenceError(
                "influence_vector_in_cache",
                "a path to load the influence vectors from or to save them to, with CACHE.DISK",
                "neither",
                "Pass a load_ or save_ path, or use CACHE.MEMORY.",
            )
        return self.index

    def _save_values(self, path: str | Path, queries: list[Queries], index: Index) -> None:
        rows = []
        for part in queries:
            blocks = [as_numpy(scores(part, vector)) for _, vector in _Vectors(index)]
            rows.append(np.concatenate(blocks, axis=1))
        self._save_arrays(path, {"values": np.concatenate(rows), "ids": self.index.ids})

    def _save_arrays(self, path: str | Path, arrays: dict[str, np.ndarray]) -> None:
        folder = Path(path)
        _check_values_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        content = {"format": "whence values", **self._manifest()}
        (folder / "values.json").write_text(json.dumps(content, indent=1) + "\n")

    def _check_k(self, k: Any) -> int:
        check_number(k, "k", minimum=1, integer=True)
        n_samples = self.index.n_samples
        if k > n_samples:
            warnings.warn(
                f"k: asked for {k} training samples, and there are {n_samples}: all are returned.",
                stacklevel=3,
            )
        return min(int(k), n_samples)


class _Vectors:
    """The index as the search sees it: ``(first row, Vector)`` for each shard."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __iter__(self) -> Iterator[tuple[int, Vector]]:
        for start, shard in self._index.starts():
            yield start, Vector(shard.phi, shard.coefficients)


def _with_elements(dataset: Dataset) -> Iterator[tuple[Any, Batch]]:
    """Yield each element of a dataset as the user gave it, beside the batch it is."""
    empty = True
    for number, element in enumerate(dataset.elements()):
        empty = False
        yield element, dataset.batch(element, number)
    if empty:
        next(iter(dataset))  # raises, with the message for empty datasets


def _outputs_of(outputs: Any, start: int, stop: int, n_outputs: int) -> np.ndarray:
    chosen = np.asarray(outputs)
    part = np.full(stop - start, chosen) if chosen.ndim == 0 else chosen[start:stop]
    valid = part.shape == (stop - start,) and part.dtype.kind in "iu"
    if valid and (part >= 0).all() and (part < n_outputs).all():
        return part.astype(np.int64)
    raise WhenceError(
        "outputs",
        f"an output from 0 to {n_outputs - 1}, one for all samples or one each",
        f"{outputs!r}",
        "Number the outputs of the target layer from 0.",
    )


def _check_cache(cache: Any) -> CACHE:
    if isinstance(cache, CACHE):
        return cache
    raise WhenceError(
        "influence_vector_in_cache",
        "CACHE.MEMORY, CACHE.DISK or CACHE.NO_CACHE",
        repr(cache),
        "Import CACHE from whence.",
    )


def _check_values_folder(folder: Path) -> None:
    if (folder / "values.json").is_file():
        return
    check_folder(folder)
