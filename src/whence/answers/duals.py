"""Models that are sums over their training samples as they stand: no derivative, no approximation."""

from __future__ import annotations

from typing import Any

import numpy as np

from whence._errors import WhenceError, described
from whence.answers.explanation import Explanation
from whence.answers.reading import at_most, check_k, checked_names
from whence.arrays.base import as_array, row_slices
from whence.data.tables import is_table, row_names, table_rows
from whence.models.sklearn.duals import open_dual

__all__ = ["DualRepresenters"]

#: Entries of the values of some questions that are held at once.
ENTRIES = 4_000_000
#: How far values and intercept may be from the estimator's own score, in units of the largest score.
EXACT = 1e-8


class DualRepresenters:
    """Explains an estimator whose scores are sums over its training samples, exactly.

    Support vector machines, kernel ridge regression, Gaussian processes, nearest neighbours and centroids,
    and forests by the weights of their leaves: each training sample's value is read from the estimator, and
    the values of all of them and the intercept are its own score. Nothing is linearised.

    Parameters
    ----------
    estimator : estimator of scikit-learn
        Fitted: ``SVC``, ``NuSVC``, ``SVR``, ``NuSVR``, ``OneClassSVM``, ``KernelRidge``,
        ``GaussianProcessClassifier``, ``GaussianProcessRegressor``, ``KNeighbors*``, ``RadiusNeighbors*``,
        ``NearestCentroid``, ``RandomForest*``, ``ExtraTrees*``; or a pipeline or search of one.
    train_set : tuple
        ``(X, y)`` or ``(X, y, sample_weight)`` of the fit, in its order.
    ids : sequence, optional
        Names of the training samples; by default the index of a pandas frame, or positions.

    Attributes
    ----------
    estimator : estimator
        The user's own.
    intercept : array of shape (C,)
        What the scores hold that belongs to no sample.
    unused_ids : array
        The training samples that no prediction draws on, such as those that are no support vectors.

    Raises
    ------
    WhenceError
        If the estimator is no such sum, is not fitted, or was fitted on other samples.

    Examples
    --------
    Three neighbours of 2.1 have the values 1, 2 and 6, and a third of each is in their mean:

    >>> from sklearn.neighbors import KNeighborsRegressor
    >>> x, y = np.asarray([[1.0], [2.0], [3.0], [9.0]]), np.asarray([1.0, 2.0, 6.0, 9.0])
    >>> duals = DualRepresenters(KNeighborsRegressor(3).fit(x, y), (x, y))
    >>> explanation = duals.explain(np.asarray([[2.1]]), k=2)
    >>> explanation.ids, explanation.values.round(3), explanation.totals
    (array([[2, 1]]), array([[2.   , 0.667]]), array([3.]))
    """

    method = "dual representers"

    def __init__(self, estimator: Any, train_set: Any, *, ids: Any = None) -> None:
        if not isinstance(train_set, tuple) or len(train_set) not in (2, 3):
            fix = "Give the arrays or the frame of the fit."
            raise WhenceError("train_set", "(X, y) or (X, y, sample_weight)", described(train_set), fix)
        x, y, *weight = (_plain(part) for part in train_set)
        if len(y) != x.shape[0]:
            raise WhenceError("train_set", f"{x.shape[0]} labels", str(len(y)), "Give one for each sample.")
        self.estimator = estimator
        self._pipe, self._dual = open_dual(estimator, x, y, *weight)
        given = row_names(train_set, "train_set") if ids is None else ids
        self._names = checked_names(given, x.shape[0], "names")

    @property
    def intercept(self) -> np.ndarray:
        """What the scores hold that belongs to no sample, shape ``(C,)``."""
        return self._dual.intercept

    @property
    def unused_ids(self) -> np.ndarray:
        """The training samples that no prediction draws on."""
        return self._names[self._dual.unused]

    def explain(self, samples: Any, k: int = 5, *, outputs: Any = None, ids: Any = None) -> Explanation:
        """Find the training samples that speak most for and most against each prediction.

        Parameters
        ----------
        samples : array, sparse matrix or frame, or a tuple ``(X, y)``
        k : int, default=5
            How many training samples of either sign.
        outputs : int or array of shape (T,), optional
            Which score to decompose. By default that of the predicted class; of ``SVC`` with more than two
            classes the pair of the predicted class and its strongest rival.
        ids : sequence, optional
            Names of the samples; by default the index of a pandas frame, or positions.

        Returns
        -------
        Explanation
            ``totals`` are the sums over all training samples, ``pre_activations`` the estimator's own
            scores: what lies between them is the intercept.
        """
        k = at_most(check_k(k), self._dual.n_samples)
        x, labels = _asked(samples)
        parts = [self._explained(_rows(x, rows), k, _cut(outputs, rows)) for rows in self._blocks(x)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        names = checked_names(row_names((x, None), "samples") if ids is None else ids, x.shape[0])
        rows, opponents = joined.pop("rows"), joined.pop("opponent_rows")
        y = self._dual.y
        return Explanation(
            ids=self._names[rows],
            opponent_ids=self._names[opponents],
            sample_ids=names,
            labels=None if labels is None else self._dual._encoded(labels),
            training_labels=y[rows],
            opponent_labels=y[opponents],
            about=self._about(k, float(joined.pop("gaps").max(initial=0.0))),
            **joined,
        )

    def influences(self, samples: Any, *, outputs: Any = None) -> np.ndarray:
        """Return the value of every training sample for each prediction.

        Parameters
        ----------
        samples, outputs
            As for :meth:`explain`.

        Returns
        -------
        array of shape (T, N)
        """
        x, _ = _asked(samples)
        blocks = ((_rows(x, rows), _cut(outputs, rows)) for rows in self._blocks(x))
        return np.concatenate([self._values(*block)[0] for block in blocks])

    def _blocks(self, x: Any) -> Any:
        return row_slices(x.shape[0], max(1, ENTRIES // self._dual.n_samples))

    def _values(self, x: Any, outputs: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the values ``(T, N)``, and what an explanation says of the samples."""
        dual = self._dual
        seen = self._pipe(x)
        scores = dual.scores(seen)
        if outputs is None:
            outputs = dual.outputs_of(scores)
        outputs = self._checked(outputs, len(scores))
        signs = dual.signs_of(scores, outputs)
        values = dual.values(seen, outputs) * signs[:, None]
        own = scores[np.arange(len(scores)), outputs]
        totals = values.sum(axis=1)
        gaps = np.abs(totals + signs * dual.intercept[outputs] - signs * own)
        scale = max(1.0, float(np.abs(scores).max(initial=0)), float(np.abs(values).max(initial=0)))
        if not (gaps <= EXACT * scale).all():
            raise WhenceError(
                "estimator",
                "one whose own scores are the sums of its samples' values",
                f"a {type(dual.model).__name__} that differs from them by up to {np.max(gaps):.2g}",
                "Give the training set of the fit, in its order, with its weights.",
            )
        facts = {
            "outputs": outputs,
            "signs": signs,
            "predictions": dual.predictions(seen),
            "pre_activations": signs * own,
            "totals": totals,
            "gaps": gaps / scale,
        }
        return values, facts

    def _explained(self, x: Any, k: int, outputs: Any) -> dict[str, np.ndarray]:
        values, facts = self._values(x, outputs)
        rows = np.argsort(-values, axis=1, kind="stable")[:, :k]
        opponents = np.argsort(values, axis=1, kind="stable")[:, :k]
        return facts | {
            "rows": rows,
            "opponent_rows": opponents,
            "values": np.take_along_axis(values, rows, axis=1),
            "opponent_values": np.take_along_axis(values, opponents, axis=1),
        }

    def _checked(self, outputs: Any, n_samples: int) -> np.ndarray:
        n_outputs = self._dual.n_outputs
        expected = f"numbers from 0 to {n_outputs - 1}, one for all samples or one each"
        given = as_array(outputs, "outputs", expected, "Number outputs from 0.")
        chosen = np.full(n_samples, given) if given.ndim == 0 else given
        whole = chosen.dtype.kind in "iu" and chosen.shape == (n_samples,)
        if not whole or (chosen < 0).any() or (chosen >= n_outputs).any():
            raise WhenceError("outputs", expected, repr(outputs)[:60], "Number outputs from 0.")
        return chosen.astype(np.int64)

    def _about(self, k: int, gap: float) -> dict[str, Any]:
        dual = self._dual
        names = [] if dual.classes is None else np.asarray(dual.classes).tolist()
        return {
            **({} if names == list(range(len(names))) else {"class_names": names}),
            "method": self.method,
            "model": type(dual.model).__name__,
            "layer": dual.what,
            "n_samples": dual.n_samples,
            "n_features": int(dual.x.shape[1]),
            "n_outputs": dual.n_outputs,
            "label": "predicted",
            "decomposes_prediction": True,
            "label_kind": "value" if dual.classes is None else "class",
            "intercept": [float(b) for b in dual.intercept],
            "n_unused": int(dual.unused.sum()),
            "k": k,
            "sum_error": gap,
        }


def _plain(part: Any) -> Any:
    return part if is_table(part) and len(part.shape) > 1 else np.asarray(part)


def _asked(samples: Any) -> tuple[Any, Any]:
    """Return inputs and labels of what is to be explained; labels may be None."""
    x, *labels = samples if isinstance(samples, tuple) else (samples,)
    x = _plain(x)
    if len(x.shape) < 1 or not x.shape[0]:
        raise WhenceError("samples", "one sample at least", described(samples), "Give some.")
    return x, np.asarray(labels[0]) if labels and labels[0] is not None else None


def _rows(x: Any, rows: slice) -> Any:
    """Return rows of an array, a sparse matrix or a frame."""
    return table_rows(x, rows) if is_table(x) else x[rows]


def _cut(outputs: Any, rows: slice) -> Any:
    return outputs if outputs is None or np.ndim(outputs) == 0 else np.asarray(outputs)[rows]
