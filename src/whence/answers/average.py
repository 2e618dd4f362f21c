"""Answers of several models averaged: checkpoints of one training, or trainings with other seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from whence._errors import WhenceError, described
from whence.answers.contract import Attribution
from whence.answers.explanation import Explanation
from whence.answers.questions import members_of
from whence.answers.reading import all_scores, at_most, check_k, checked_names
from whence.answers.suspects import Suspects
from whence.arrays.base import as_numpy
from whence.data.base import Batch, Dataset
from whence.data.order import SampleNames, no_positions
from whence.methods.question import join
from whence.progress import track
from whence.search.top_k import ORDER, TopK

__all__ = ["Average", "average"]


class Average:
    """Explains predictions by the mean of what several methods say; see :func:`whence.average`.

    Attributes
    ----------
    methods : list of Attribution
    """

    def __init__(self, methods: Sequence[Attribution]) -> None:
        self.methods: list[Attribution] = list(methods)

    def explain(
        self,
        samples: Any,
        k: int = 5,
        *,
        outputs: Any = None,
        positions: Any = None,
        ids: Any = None,
        progress: bool | None = None,
    ) -> Explanation:
        """Find the training samples that speak most for and most against each prediction, on average.

        Parameters
        ----------
        samples, k, outputs, positions, ids, progress
            As for :meth:`whence.Attribution.explain`. By default the output is the one that the models
            predict together: that with the largest mean pre-activation.

        Returns
        -------
        Explanation
            Values, pre-activations and totals are means over the models.
        """
        first = self.methods[0]
        k = at_most(check_k(k), first.index.n_samples)
        parts = []
        opened, named = first._opened(samples, ids)
        for values, facts in self._asked(opened, named, outputs, positions, progress):
            for name, order in (("", ORDER.DESCENDING), ("opponent_", ORDER.ASCENDING)):
                best = TopK(len(values), k, order)
                best.add(values, 0)
                facts |= {f"{name}rows": best.rows, f"{name}values": best.values}
            parts.append(facts)
        joined = {key: join([part[key] for part in parts]) for key in parts[0]}
        rows, opponents = joined.pop("rows"), joined.pop("opponent_rows")
        n_explained = len(rows)
        names = checked_names(named.names(n_explained), n_explained)
        return Explanation(
            ids=first.index.names(rows),
            opponent_ids=first.index.names(opponents),
            sample_ids=names,
            labels=joined.pop("labels", None),
            training_labels=first._stored_labels(rows),
            opponent_labels=first._stored_labels(opponents),
            about=self._about() | {"k": k},
            **joined,
        )

    def influences(
        self,
        samples: Any,
        *,
        groups: Any = None,
        outputs: Any = None,
        positions: Any = None,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Return the mean influence of every training sample, or of groups of them, on each prediction.

        Parameters
        ----------
        samples, groups, outputs, positions, progress
            As for :meth:`whence.Attribution.influences`.

        Returns
        -------
        array of shape (T, N), or (T, G) for groups 0 to G - 1
        """
        members = None if groups is None else members_of(groups, self.methods[0].index.n_samples)
        opened, named = self.methods[0]._opened(samples, None)
        parts = [values for values, _ in self._asked(opened, named, outputs, positions, progress)]
        values = np.concatenate(parts)
        return values if members is None else values @ members

    def suspects(
        self,
        train_set: Any = None,
        k: int | None = 50,
        *,
        score: str | None = None,
        progress: bool | None = None,
    ) -> Suspects:
        """Rank training samples by how doubtful their given label is, by the mean of all models' scores.

        Parameters
        ----------
        train_set, k, score, progress
            As for :meth:`whence.Attribution.suspects`.

        Returns
        -------
        Suspects
        """
        every = [m.suspects(train_set, None, score=score, progress=progress) for m in self.methods]
        names = {name: place for place, name in enumerate(every[0].ids.tolist())}
        sums = np.zeros(len(names))
        for one in every:
            sums[[names[name] for name in one.ids.tolist()]] += one.scores / len(every)
        k = len(sums) if k is None else at_most(check_k(k), len(sums))
        order = np.argsort(-sums, kind="stable")[:k]
        return Suspects(
            ids=every[0].ids[order],
            scores=sums[order],
            score=every[0].score,
            labels=every[0].labels[order],
            predictions=every[0].predictions[order],
            about=self._about() | {"score": every[0].score},
        )

    # ------------------------------------------------------------------------------ pieces

    def _asked(
        self, opened: Dataset, named: SampleNames, outputs: Any, positions: Any, progress: bool | None
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yield the mean values ``(b, N)`` of each batch, and what an explanation says of it."""
        first = self.methods[0]
        show = first.progress if progress is None else progress
        for method in self.methods:
            method._check_model()
        start = 0
        for batch in track(opened, "explaining", opened.n_batches, show):
            named.add(batch)
            wanted = outputs
            if outputs is None and first.label == "predicted" and not first.asks_about_loss:
                wanted = self._predicted(batch, start, positions)
            values: Any = 0.0
            together: list[dict[str, np.ndarray]] = []
            for method in self.methods:
                question, facts = method._ask(batch, start, wanted, positions)
                queries, _ = method._checked_queries(question)
                values = values + all_scores(queries, method.index).astype(np.float64)
                together.append({**facts, "totals": method._totals(question, queries)})
            facts = dict(together[0])
            for name in ("pre_activations", "totals"):
                facts[name] = np.mean([one[name] for one in together], axis=0)
            yield values / len(self.methods), facts
            start += batch.n_samples
        if named.unordered is not None:
            raise no_positions(opened.argument, named.unordered)
        for name, given in (("outputs", outputs), ("positions", positions)):
            if np.ndim(given) and len(given) != start:
                expected = f"one for all samples or one for each of the {start}"
                raise WhenceError(name, expected, f"{len(given)}", "Give them in the order of the samples.")

    def _predicted(self, batch: Batch, start: int, positions: Any) -> np.ndarray | None:
        """Return the output with the largest mean pre-activation, for samples from the first on."""
        if self.methods[0].layer.n_outputs == 1 or self.methods[0]._has_positions:
            return None
        sums: Any = 0.0
        for method in self.methods:
            sums = sums + as_numpy(method.layer.pre_activations(method._observe(batch).phi))
        return np.concatenate([np.zeros(start, dtype=np.int64), np.argmax(sums, axis=-1)])

    def _about(self) -> dict[str, Any]:
        about = self.methods[0].about() | self.methods[0].measured()
        return about | {"n_models": len(self.methods)}


def average(methods: Sequence[Attribution]) -> Average:
    """Return a method that answers with the mean of what several say.

    Parameters
    ----------
    methods : sequence of Attribution
        One for each model: of checkpoints, or of trainings with other seeds, over the same training set in
        the same order. Each has an index of its own, which may lie on disk.

    Returns
    -------
    Average
        With ``explain``, ``influences`` and ``suspects``.

    Raises
    ------
    WhenceError
        If they are not methods of one kind over one training set.

    Examples
    --------
    >>> import whence
    >>> from sklearn.linear_model import LinearRegression
    >>> x, y = np.asarray([[1.0], [2.0]]), np.asarray([1.0, 4.0])
    >>> models = [LinearRegression(fit_intercept=False).fit(x * s, y) for s in (1.0, 2.0)]
    >>> methods = [
    ...     whence.RepresenterPointLJE(whence.InfluenceModel(model), (x, y), whence.ExactIHVPFactory())
    ...     for model in models
    ... ]
    >>> both = whence.average(methods)
    >>> mean = np.mean([method.influences((x, y)) for method in methods], axis=0)
    >>> np.allclose(both.influences((x, y)), mean)
    True
    """
    given = list(methods) if isinstance(methods, list | tuple) else []
    wrong = next((one for one in given if not isinstance(one, Attribution)), None)
    if not given or wrong is not None:
        raise WhenceError(
            "methods",
            "a list of methods, such as RepresenterPointLJE, one for each model",
            described(methods if wrong is None else wrong),
            "Make a method with each model first.",
        )
    first = given[0]
    for other in given[1:]:
        same = {
            "kind of method": (first.method, other.method),
            "label": (first.label, other.label),
            "effect_on": (first.asks_about_loss, other.asks_about_loss),
            "number of outputs": (first.layer.n_outputs, other.layer.n_outputs),
            "training set": (first.index.order, other.index.order),
            "ids": (first.index.ids.tolist(), other.index.ids.tolist()),
        }
        for name, (one, another) in same.items():
            if one != another:
                raise WhenceError(
                    "methods",
                    f"the same {name} in all of them",
                    "different ones",
                    "Make each with the same training set, in the same order, and the same arguments.",
                )
    return Average(given)
