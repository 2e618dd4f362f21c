"""How well scores find wrong labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from whence._errors import WhenceError
from whence.arrays.base import check_number, check_seed, import_extra
from whence.evaluation.parallel import parallel_map

__all__ = [
    "average_precision",
    "detection_curve",
    "flip_labels",
    "label_error_detection",
    "roc_auc",
    "summary",
]


def flip_labels(
    labels: Any, share: float, seed: int = 0, n_classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Replace a share of class labels by others, drawn evenly among the other classes.

    Parameters
    ----------
    labels : array of shape (N,), integers
        Classes from 0.
    share : float
        From 0 to 1.
    seed : int, default=0
    n_classes : int, optional
        The largest label plus one, by default.

    Returns
    -------
    flipped : array of shape (N,)
    is_wrong : array of shape (N,), bool

    Examples
    --------
    >>> flipped, is_wrong = flip_labels(np.asarray([0, 1, 0, 1]), 0.5)
    >>> int(is_wrong.sum()), bool((flipped[is_wrong] != np.asarray([0, 1, 0, 1])[is_wrong]).all())
    (2, True)
    """
    check_number(share, "share")
    given = np.asarray(labels)
    if given.ndim != 1 or given.dtype.kind not in "iu" or share > 1:
        got = f"share {share}" if share > 1 else f"shape {given.shape}, dtype {given.dtype}"
        raise WhenceError(
            "labels and share", "classes (N,) as integers, and a share of them", got, "Number the classes."
        )
    count = int(given.max(initial=0)) + 1 if n_classes is None else n_classes
    if count < 2:
        raise WhenceError("n_classes", "at least 2", str(count), "There is no other class to flip to.")
    check_seed(seed)
    rng = np.random.default_rng(seed)
    is_wrong = np.zeros(given.size, dtype=bool)
    is_wrong[rng.permutation(given.size)[: round(share * given.size)]] = True
    moved = (given + rng.integers(1, count, size=given.size)) % count
    return np.where(is_wrong, moved, given).astype(given.dtype), is_wrong


def roc_auc(scores: Any, is_wrong: Any) -> float:
    """Return the probability that a wrong label scores above a right one; ties count half.

    Parameters
    ----------
    scores : array of shape (N,)
        Larger is more doubtful.
    is_wrong : array of shape (N,), bool

    Examples
    --------
    >>> roc_auc([3.0, 1.0, 2.0, 0.0], [True, False, False, True])
    0.5
    """
    values, wrong = _checked(scores, is_wrong)
    ranks = scipy.stats.rankdata(values)
    n_wrong, n_right = int(wrong.sum()), int((~wrong).sum())
    return float((ranks[wrong].sum() - n_wrong * (n_wrong + 1) / 2) / (n_wrong * n_right))


def average_precision(scores: Any, is_wrong: Any) -> float:
    """Return the mean, over the wrong labels, of the share of wrong ones down to each; ties are one step.

    Parameters
    ----------
    scores : array of shape (N,)
        Larger is more doubtful.
    is_wrong : array of shape (N,), bool

    Examples
    --------
    Ranks 1 and 4 are wrong: ``(1/1 + 2/4) / 2``.

    >>> average_precision([3.0, 1.0, 2.0, 0.0], [True, False, False, True])
    0.75
    """
    values, wrong = _checked(scores, is_wrong)
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    found = np.cumsum(wrong[order])[ends]
    gained = np.diff(found, prepend=0)
    return float((gained * found / (ends + 1)).sum() / wrong.sum())


def detection_curve(scores: Any, is_wrong: Any, points: int = 101) -> Any:
    """Return which share of wrong labels is found after checking a share of all, the most doubtful first.

    Parameters
    ----------
    scores : array of shape (N,)
        Larger is more doubtful. Equal scores are checked in the order in which they stand.
    is_wrong : array of shape (N,), bool
    points : int, default=101

    Returns
    -------
    pandas.DataFrame
        Columns ``checked`` and ``found``, both from 0 to 1.

    Examples
    --------
    >>> curve = detection_curve([3.0, 1.0, 2.0, 0.0], [True, False, False, True], points=5)
    >>> curve["found"].tolist()
    [0.0, 0.5, 0.5, 0.5, 1.0]
    """
    pandas = import_extra("pandas", "report")
    check_number(points, "points", minimum=2, integer=True)
    values, wrong = _checked(scores, is_wrong)
    found = np.append(0, np.cumsum(wrong[np.argsort(-values, kind="stable")])) / wrong.sum()
    checked = np.linspace(0, 1, points)
    return pandas.DataFrame(
        {"checked": checked, "found": found[np.round(checked * wrong.size).astype(int)]}
    )


def label_error_detection(
    run: Callable[[int], tuple[Mapping[str, Any], Any]],
    seeds: Iterable[int] = range(5),
    *,
    checked: Sequence[float] = (0.05, 0.1, 0.2, 0.3),
    n_jobs: int = 1,
    progress: bool | None = None,
) -> Any:
    """Measure how well scores find wrong labels, once for each seed.

    Parameters
    ----------
    run : callable
        ``run(seed)`` flips labels, trains, and returns ``(scores, is_wrong)``: a mapping from the name of
        a score to its values ``(N,)``, larger being more doubtful, and which labels are wrong ``(N,)``.
    seeds : iterable of int, default=range(5)
    checked : sequence of float, default=(0.05, 0.1, 0.2, 0.3)
        Shares of the training set after which to count what was found.
    n_jobs : int, default=1
        Seeds at once; -1 for as many as there are cores.
    progress : bool, optional

    Returns
    -------
    pandas.DataFrame
        One row for each seed and score: ``seed``, ``score``, ``roc_auc``, ``average_precision``, and
        ``found_5`` for what 5 % checked found, and so on. See :func:`summary`.

    Examples
    --------
    >>> frame = label_error_detection(
    ...     lambda seed: ({"loss": [0.0, 1.0, 2.0]}, [False, False, True]), [0], checked=[0.4]
    ... )
    >>> frame[["score", "roc_auc", "found_40"]].values.tolist()
    [['loss', 1.0, 1.0]]
    """
    pandas = import_extra("pandas", "report")
    chosen = list(seeds)
    runs = parallel_map(run, chosen, n_jobs, "label errors", progress, "seed")
    rows = []
    for seed, (scores, is_wrong) in zip(chosen, runs, strict=True):
        for name, values in scores.items():
            given, wrong = _checked(values, is_wrong)
            found = np.append(0, np.cumsum(wrong[np.argsort(-given, kind="stable")])) / wrong.sum()
            row = {
                "seed": seed,
                "score": name,
                "roc_auc": roc_auc(given, wrong),
                "average_precision": average_precision(given, wrong),
            }
            for share in checked:
                row[f"found_{100 * share:g}"] = found[round(share * wrong.size)]
            rows.append(row)
    return pandas.DataFrame(rows)


def summary(frame: Any, value: str, by: str | Sequence[str] = "score", confidence: float = 0.95) -> Any:
    """Return the mean of a column over seeds, with Student's confidence interval.

    Parameters
    ----------
    frame : pandas.DataFrame
    value : str
        The column, e.g. ``"roc_auc"``.
    by : str or sequence of str, default="score"
        What to group by.
    confidence : float, default=0.95

    Returns
    -------
    pandas.DataFrame
        ``by``, ``mean``, ``low``, ``high``, ``std`` and ``n``, in the order of appearance. With a single
        run, ``low`` and ``high`` are NaN: nothing is known about the spread.
    """
    if not 0 < confidence < 1:
        raise WhenceError("confidence", "a number between 0 and 1", repr(confidence), "Pass 0.95.")
    keys = [by] if isinstance(by, str) else list(by)
    groups = frame.groupby(keys, sort=False)[value]
    result = groups.agg(["mean", "std", "count"]).reset_index()
    spread = scipy.stats.t.ppf((1 + confidence) / 2, np.maximum(result["count"] - 1, 1))
    half = spread * result["std"] / np.sqrt(result["count"])
    result["low"], result["high"] = result["mean"] - half, result["mean"] + half
    return result.rename(columns={"count": "n"})[[*keys, "mean", "low", "high", "std", "n"]]


def _checked(scores: Any, is_wrong: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and flags as arrays, or say what is wrong with them."""
    values, wrong = np.asarray(scores, dtype=np.float64), np.asarray(is_wrong)
    if values.ndim != 1 or values.shape != wrong.shape or wrong.dtype != bool:
        raise WhenceError(
            "scores and is_wrong",
            "two arrays (N,), numbers and True where a label is wrong",
            f"shapes {values.shape} and {wrong.shape}, dtype {wrong.dtype}",
            "Give both in the order of the training set.",
        )
    if not np.isfinite(values).all():
        got = f"{int((~np.isfinite(values)).sum())} NaN or infinite values"
        raise WhenceError("scores", "finite numbers", got, "Look at the samples that they come from.")
    if wrong.all() or not wrong.any():
        raise WhenceError("is_wrong", "both right and wrong labels", "only one kind", "Flip some labels.")
    return values, wrong
