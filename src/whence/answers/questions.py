"""``explain`` and ``suspects``: answers in sample ids, over the index and the search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.answers.accuracy import is_sum, sum_error
from whence.answers.doubt import Doubt, doubt_by_label_noise, not_classes
from whence.answers.explanation import Explanation
from whence.answers.reading import Scorer, Vectors, all_scores, at_most, check_k, checked_names
from whence.answers.suspects import Suspects
from whence.arrays.base import as_array, as_numpy, check_finite, row_slices
from whence.data.base import Batch, Dataset
from whence.data.order import SampleNames, no_positions
from whence.index import Shard
from whence.indexing.observation import Observation
from whence.methods.base import Rule
from whence.methods.question import Question, hide, join, positions_of
from whence.methods.ridge import Ridge, has_rows
from whence.progress import track
from whence.search.scores import LinearNearestNeighbors, Queries, scores
from whence.search.top_k import ORDER

__all__ = ["Answers", "members_of"]

#: Queries that are searched at once.
QUERY_ROWS = 256

#: What training samples can be ranked by; see :meth:`Answers.suspects`.
SCORES = ("label_noise", "ridge", "leave_one_out", "self_influence", "loss")


class Answers(Scorer):
    """Explains predictions and ranks doubtful labels; see :class:`~whence.Attribution`."""

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
        """Find the training samples that speak most for and most against each prediction.

        Parameters
        ----------
        samples : dataset
            What to explain, batched; labels may be missing.
        k : int, default=5
            How many training samples of either sign.
        outputs : int or array of shape (T,), optional
            Which output to decompose. Default: the predicted class (``label="given"``: the given one).
            Along a sequence also ``(T, L)``, an output for each position.
        positions : int or array of shape (T,), optional
            For a layer along a sequence: which position of each sample to explain, from 0; those of
            an image are numbered row by row. Default: the mean over positions, each with its own
            output, by what they count in the sample's loss.
        ids : sequence, optional
            Names of the samples, in the order of the dataset; by default the ids that they bring, the
            index of a pandas frame, or positions.
        progress : bool, optional

        Returns
        -------
        Explanation
            Positive values speak for the output in question; for a single sigmoid output they are
            turned where class 0 is predicted.
        """
        self.index.check_named()
        k = at_most(check_k(k), self.index.n_samples)
        search = LinearNearestNeighbors()
        search.build(Vectors(self.index), scores, k, QUERY_ROWS)
        parts: list[dict[str, np.ndarray]] = []
        opened, named = self._opened(samples, ids)
        for question, facts in self._questions_of(opened, named, outputs, positions, progress):
            queries, errors = self._checked_queries(question)
            answer = {"totals": self._totals(question, queries), "solver_errors": errors}
            parts.append({**facts, **answer, **self._searched(queries, search)})
        joined = {key: join([part[key] for part in parts]) for key in parts[0]}
        measured = {"k": k, "sum_error": sum_error(joined.pop("sums"), joined)}
        solver_errors = joined.pop("solver_errors")
        if self.rule.solves_queries:
            measured["solver_error"] = float(solver_errors.max(initial=0.0))
        n_explained = joined["values"].shape[0]
        names = checked_names(named.names(n_explained), n_explained)
        rows, opponents = joined.pop("rows"), joined.pop("opponent_rows")
        return Explanation(
            ids=self.index.names(rows),
            opponent_ids=self.index.names(opponents),
            sample_ids=names,
            labels=joined.pop("labels", None),
            training_labels=self._stored_labels(rows),
            opponent_labels=self._stored_labels(opponents),
            about=self.about() | self.measured() | measured,
            **joined,
        )

    def suspects(
        self,
        train_set: Any = None,
        k: int | None = 50,
        *,
        score: str | None = None,
        progress: bool | None = None,
    ) -> Suspects:
        """Rank training samples by how doubtful their given label is.

        Parameters
        ----------
        train_set : dataset, optional
            The training set, or a part of it; all that is stored of it by default.
        k : int or None, default=50
            How many to list; ``None`` ranks all.
        score : {"label_noise", "ridge", "leave_one_out", "self_influence", "loss"}, optional
            ``"ridge"``: minus the margin of the given label in what a ridge regression of the labels on
            the layer's inputs, fitted to all other samples, says of the sample
            (:class:`whence.methods.ridge.Ridge`). ``"leave_one_out"``: the same for the
            prediction that the layer would make without the sample. ``"label_noise"``: minus the log
            probability that the given label is true, by a model of label noise that is fitted to both
            (:mod:`whence.methods.label_noise`). It alone says how many labels are wrong:
            ``n_suspects``. ``"self_influence"``: :meth:`compute_influence_values`. ``"loss"``: the model's
            loss on the sample. Along a sequence a sample is left out with all its positions, and margins
            and losses are averaged over them by what they count.

            By default :class:`~whence.RepresenterPointLJE` takes ``"label_noise"``, which finds most
            wrong labels, where samples have one class (or several, yes or no), a loss with a closed form
            and one row of up to 10,000 features that are not all 0 or 1 and spread over three directions
            or more (over several layers ``"ridge"``); for all else, such as trees, regressions and
            sequences, ``"leave_one_out"``. The other methods rank by themselves: ``"leave_one_out"``.
            Asked for where no ridge regression suits, ``"label_noise"`` does without one; where the solver
            has to solve for each sample, it takes the ridge regression alone.
        progress : bool, optional

        Returns
        -------
        Suspects
        """
        self.index.check_named()
        score = self._default_score() if score is None else score
        if not isinstance(score, str) or score not in SCORES:
            raise WhenceError("score", f"one of {', '.join(SCORES)}", repr(score), "Choose one.")
        wanted = None if k is None else check_k(k)
        self._check_model()
        show = self.progress if progress is None else progress
        rows = np.arange(self.index.n_samples)
        if train_set is not None:
            rows, _ = self._training_set.match(self.influence_model.open(train_set, "train_set"))
        k = rows.size if wanted is None else at_most(wanted, rows.size)
        doubt = self._doubt(show) if score == "label_noise" else None
        every = self._suspicion(score, show) if doubt is None else doubt.scores
        order = np.argsort(-every[rows], kind="stable")[:k]
        chosen = rows[order]
        return Suspects(
            ids=self.index.names(chosen),
            scores=every[chosen],
            score=score,
            labels=self._stored_labels(chosen),
            predictions=self._stored_predictions(chosen),
            about=self.about() | self.measured() | {"score": score},
            **({} if doubt is None else _estimates(doubt, rows, chosen)),
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
        """Return the influence of every training sample, or of groups of them, on each prediction.

        Parameters
        ----------
        samples : dataset
        groups : array of shape (N,), integers, optional
            The group of each training sample, from 0, in the order of the constructor's dataset; -1 for
            none. The influence of a group is the sum of its samples'.
        outputs, positions, progress : optional
            As for :meth:`explain`, and so are the signs.

        Returns
        -------
        array of shape (T, N), or (T, G) for groups 0 to G - 1
        """
        self.index.check_named()  # whose column is whose
        members = None if groups is None else members_of(groups, self.index.n_samples)
        parts: list[np.ndarray] = []
        for question, _ in self._asked(samples, outputs, positions, progress):
            values = all_scores(self._checked_queries(question)[0], self.index)
            _check_scores(values)
            parts.append(values if members is None else values.astype(np.float64) @ members)
        return np.concatenate(parts)

    def questions(
        self, samples: Any, *, outputs: Any = None, positions: Any = None, progress: bool | None = None
    ) -> Iterator[tuple[Question, dict[str, np.ndarray]]]:
        """Yield what is asked about each batch of samples, and what an explanation says of them.

        Parameters
        ----------
        samples, outputs, positions, progress
            As for :meth:`explain`.

        Yields
        ------
        question : Question
            The function of the layer's weights that the influences decompose.
        facts : dict
            Arrays of :class:`~whence.Explanation` that need no search.
        """
        for question, facts in self._asked(samples, outputs, positions, progress):
            yield question, {**facts, "totals": self._totals(question, self._queries(question))}

    def _asked(
        self, samples: Any, outputs: Any, positions: Any, progress: bool | None
    ) -> Iterator[tuple[Question, dict[str, np.ndarray]]]:
        """Yield the same, without totals."""
        return self._questions_of(*self._opened(samples, None), outputs, positions, progress)

    def _opened(self, samples: Any, ids: Any) -> tuple[Dataset, SampleNames]:
        """Return samples to explain as a dataset, and what gathers their names."""
        opened = self.influence_model.open(samples, "samples")
        opened.labels_are_needed = False
        named = SampleNames(opened, ids)
        if named.unordered is not None:
            raise no_positions(opened.argument, named.unordered)
        if opened.note is not None:
            self.influence_model.warn_once(f"samples: {opened.note}", samples)
        return opened, named

    def _questions_of(
        self, opened: Dataset, named: SampleNames, outputs: Any, positions: Any, progress: bool | None
    ) -> Iterator[tuple[Question, dict[str, np.ndarray]]]:
        """Yield what is asked about each batch; see :meth:`questions`."""
        show = self.progress if progress is None else progress
        self._check_model()
        start = 0
        for batch in track(opened, "explaining", opened.n_batches, show):
            named.add(batch)
            yield self._ask(batch, start, outputs, positions)
            start += batch.n_samples
        if named.unordered is not None:
            raise no_positions(opened.argument, named.unordered)
        self._check_model()
        for name, given in (("outputs", outputs), ("positions", positions)):
            if np.ndim(given) and len(given) != start:
                raise WhenceError(
                    name,
                    f"one for all samples or one for each of the {start}",
                    f"{len(given)}",
                    "Give them in the order of the samples.",
                )

    def _ask(
        self, batch: Batch, start: int, outputs: Any, positions: Any
    ) -> tuple[Question, dict[str, np.ndarray]]:
        """Return what is asked about a batch, and what an explanation says of it."""
        if outputs is not None and self.asks_about_loss:
            raise WhenceError(
                "outputs",
                "None, since effect_on='loss' asks about the loss of the given label",
                repr(outputs),
                "Leave it out, or ask about one output: effect_on='pre_activation'.",
            )
        seen = self._observe(batch)
        weight = labelled = counted = None
        at = None
        if positions is not None:
            seen, at = _at_positions(seen, positions, start, batch.where)
            labelled = as_numpy(seen.weight) > 0
        elif self._has_positions:
            weight = self._shares(seen, batch.where)
            labelled = counted = as_numpy(seen.weight) > 0
        u = as_numpy(self.layer.pre_activations(seen.phi))
        said = u if seen.target is None else self.layer.loss.with_margins(u, as_numpy(seen.target))
        if outputs is not None:
            outputs = _outputs_of(outputs, start, u.shape)
        elif self.label == "given" and (
            seen.target is None or (positions is not None and not np.all(labelled))
        ):
            raise WhenceError(
                batch.where,
                "labels, since label='given' explains the output that they name",
                "none",
                "Give them, or say which outputs to explain: explain(..., outputs=...).",
            )
        else:
            outputs = self._own_outputs(said, seen.target)
        is_turned = (
            self.layer.loss.is_classification and self.layer.n_outputs == 1 and not self.asks_about_loss
        )
        signs = np.where(is_turned & (said[..., 0] < 0), -1.0, 1.0)
        shares = signs if weight is None else signs * weight
        question = self._question(seen, outputs, shares)
        result = {
            "outputs": hide(outputs, counted),
            "signs": hide(signs, counted),
            "predictions": hide(self._predictions(said), counted),
            "pre_activations": question.pick(u),
        }
        if at is not None:
            result["positions"] = at
        if seen.target is not None:
            result["labels"] = hide(self._labels(seen.target, seen.phi), labelled)
        return question, result

    def _searched(self, queries: Queries, search: LinearNearestNeighbors) -> dict[str, np.ndarray]:
        """Return the strongest training samples of either sign for each question."""
        parts = []
        for rows in row_slices(len(queries), min(QUERY_ROWS, queries.at_once)):
            part = queries[rows]
            found = _both_ends(search, part, in_double=False)
            if not is_sum(found["sums"], self._sums(part), found, self.index.n_samples):
                found = _both_ends(search, part, in_double=True)
            parts.append(found)
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        dtype = as_numpy(self.index.shards[0].phi[:0, ...]).dtype
        for name in ("values", "opponent_values"):
            with np.errstate(over="ignore"):  # looked for right here
                joined[name] = joined[name].astype(dtype)
            _check_scores(joined[name])
        return joined

    def _suspicion(self, score: str, progress: bool | None) -> np.ndarray:
        """Return how doubtful the label of every stored sample is."""
        if score == "self_influence":
            return self._self_influences()
        if score == "ridge":
            left_out = Ridge(self.layer, self.index).left_out()
            target = as_numpy(self.index.gather("target", np.arange(len(left_out))))
            return -as_numpy(self.layer.loss.margin(left_out, target))
        if score == "label_noise":
            return self._doubt(progress).scores
        function = _losses_of if score == "loss" else _margins_left_out
        return self._of_shards(function, f"suspects by {score}", progress, score != "loss")

    def _default_score(self) -> str:
        """Return what doubtful labels are ranked by unless a score is asked for: the method itself."""
        suits = self.rule.prefers_ridge and Ridge.where_it_suits(self.layer, self.index) is not None
        return "label_noise" if suits else "leave_one_out"

    def _doubt(self, progress: bool | None) -> Doubt:
        """Return what a model of label noise says of all stored samples."""
        layer = self.layer
        if not (has_rows(layer, self.index) and layer.loss.margin_compares_outputs):
            raise not_classes(layer.loss)
        ridge = Ridge.where_it_suits(layer, self.index)
        evidence = [] if ridge is None else [ridge.left_out()]
        if not evidence or self._leaves_out_at_once():
            evidence.append(self._rows_left_out(progress))
        target = as_numpy(self.index.gather("target", np.arange(self.index.n_samples)))
        return doubt_by_label_noise(layer.loss, target, evidence, centred=ridge is not None)

    def _leaves_out_at_once(self) -> bool:
        """Whether a sample can be left out without a solve of its own, which takes long."""
        return self.rule.for_workers(with_solver=True) is not None

    def _rows_left_out(self, progress: bool | None) -> np.ndarray:
        """Return the pre-activations of all stored samples, each without itself, shape ``(N, C)``."""
        return self._of_shards(_rows_left_out, "suspects by label noise", progress, True)


def _both_ends(search: LinearNearestNeighbors, queries: Queries, in_double: bool) -> dict[str, np.ndarray]:
    """Return the strongest training samples of either sign, and the sums over all of them."""
    both = (ORDER.DESCENDING, ORDER.ASCENDING)
    (best, worst), sums = search.query_sums(queries, both, in_double=in_double)
    return {
        "rows": best.rows,
        "values": best.values,
        "opponent_rows": worst.rows,
        "opponent_values": worst.values,
        "sums": sums,
    }


def _losses_of(rule: Rule, shard: Shard) -> np.ndarray:
    """Return the model's loss on the samples of a shard, shape ``(n,)``."""
    return as_numpy(rule.layer.losses(shard.block))


def _rows_left_out(rule: Rule, shard: Shard) -> np.ndarray:
    """Return the pre-activations of samples without themselves, shape ``(n, C)``."""
    return np.asarray(as_numpy(rule.leave_one_out(shard.block)), dtype=np.float64)


def _estimates(doubt: Doubt, rows: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """Return what an answer says beside the ranking of ``rows``, of which ``chosen`` are listed."""
    n_wrong, lowest, highest = doubt.count(rows)
    return {
        "n_suspects": n_wrong,
        "interval": (lowest, highest),
        "noise": doubt.noise,
        "is_suspect": np.arange(len(chosen)) < n_wrong,
        "suggestions": doubt.suggestions(chosen),
        "tag_scores": doubt.tag_scores(chosen),
    }


def _margins_left_out(rule: Rule, shard: Shard) -> np.ndarray:
    """Return minus the margins of the given labels without each sample, shape ``(n,)``."""
    rows = shard.block._replace(phi=rule.leave_one_out(shard.block)).rows()
    margins = rule.layer.loss.margin(rows.phi, rows.target)
    return -as_numpy(shard.block.mean_over_positions(margins))


def _check_scores(values: np.ndarray) -> None:
    fix = "Scale features and sample weights down: their products overflow."
    check_finite(values, "influences", "every answer", fix)


def _outputs_of(outputs: Any, start: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the outputs wanted of a batch whose pre-activations have ``shape``, checked."""
    n_samples, n_outputs = shape[0], shape[-1]
    expected = f"an output from 0 to {n_outputs - 1}, one for all samples or one each"
    fix = "Number the outputs of the target layer from 0."
    chosen = as_array(outputs, "outputs", expected, fix)
    part = np.full(n_samples, chosen) if chosen.ndim == 0 else chosen[start : start + n_samples]
    if part.shape == (n_samples,):
        part = np.broadcast_to(part.reshape(-1, *[1] * (len(shape) - 2)), shape[:-1])
    valid = part.shape == shape[:-1] and part.dtype.kind in "iu"
    if valid and (part >= 0).all() and (part < n_outputs).all():
        return part.astype(np.int64)
    raise WhenceError("outputs", expected, f"{outputs!r}", fix)


def members_of(groups: Any, n_samples: int) -> np.ndarray:
    """Return the indicators ``(N, G)`` of groups ``0`` to ``G - 1``, checked."""
    expected = f"{n_samples} integers, the group of each training sample: from 0 to N - 1, or -1 for none"
    fix = "Number the groups from 0, in the order of the dataset."
    given = as_array(groups, "groups", expected, fix)
    if given.shape != (n_samples,) or given.dtype.kind not in "iu":
        raise WhenceError("groups", expected, f"shape {given.shape}, dtype {given.dtype}", fix)
    outside = given[(given < -1) | (given >= n_samples)]
    if outside.size:  # a number far above N would be as many columns of zeros
        raise WhenceError("groups", expected, f"{outside[0]}", fix)
    return (given[:, None] == np.arange(int(given.max(initial=-1)) + 1)).astype(np.float64)


def _at_positions(
    seen: Observation, positions: Any, start: int, where: str
) -> tuple[Observation, np.ndarray]:
    """Return what the layer sees at one position of each sample, as if it were the whole, and where it is.

    The weight says whether the label there counts.
    """
    if seen.visible is None or seen.weight is None:
        raise WhenceError(
            "positions",
            "None for a layer that is applied once a sample",
            repr(positions),
            "Leave it out: positions are those of a layer along a sequence.",
        )
    rows = np.arange(len(seen.visible))
    at = rows, positions_of(positions, start, seen.visible, where)
    target = None if seen.target is None else seen.target[at]
    places = (seen.visible.shape[1], at[1])
    return Observation(as_numpy(seen.phi)[at], target, seen.weight[at], None, seen.inputs, places), at[1]
