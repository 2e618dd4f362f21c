"""``explain`` and ``suspects``: answers in sample ids, over the index and the search."""

from __future__ import annotations

from typing import Any

import numpy as np

from whence._arrays import as_numpy
from whence._errors import WhenceError
from whence.attribution.base import Scorer, Vectors, at_most, check_k
from whence.data import Batch, open_dataset
from whence.explanation import Explanation, Suspects
from whence.progress import track
from whence.search import ORDER, LinearNearestNeighbors, Queries, scores

__all__ = ["Answers"]

#: Queries that are searched at once.
QUERY_ROWS = 256

SCORES = ("leave_one_out", "self_influence", "loss")


class Answers(Scorer):
    """Explains predictions and ranks doubtful labels; see :class:`~whence.Attribution`."""

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
        k = at_most(check_k(k), self.index.n_samples)
        opened = open_dataset(samples, "samples")
        opened.labels_are_needed = False
        search = LinearNearestNeighbors()
        search.build(Vectors(self.index), scores, k, QUERY_ROWS)
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
        wanted = None if k is None else check_k(k)
        show = self.progress if progress is None else progress
        rows, _ = self._training_set.match(open_dataset(train_set, "train_set"))
        k = rows.size if wanted is None else at_most(wanted, rows.size)
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

    def _explain_batch(
        self, batch: Batch, outputs: np.ndarray | None, search: LinearNearestNeighbors
    ) -> dict[str, np.ndarray]:
        phi = self.influence_model.features(batch)
        u = as_numpy(self.layer.pre_activations(phi))
        given = None if batch.labels is None else self.influence_model.targets(batch)
        if outputs is None and given is None and self.label == "given":
            raise WhenceError(
                batch.where,
                "labels, since label='given' explains the output that they name",
                "none",
                "Give them, or say which outputs to explain: explain(..., outputs=...).",
            )
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
