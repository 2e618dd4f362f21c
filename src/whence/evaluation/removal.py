"""Predicted against actual: what happens to predictions when training samples are taken away."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.stats

from whence._errors import WhenceError
from whence.answers.contract import Attribution
from whence.answers.gradients import InfluenceFunctions
from whence.arrays.base import check_number, check_seed, import_extra
from whence.evaluation.parallel import parallel_map
from whence.evaluation.retraining import LayerRetraining

__all__ = [
    "agreement",
    "leave_group_out",
    "leave_one_out",
    "linear_datamodeling_score",
    "subset_removal",
]


def leave_one_out(
    method: Attribution,
    samples: Any,
    *,
    rows: Any = None,
    outputs: Any = None,
    change: str = "linear",
    retraining: Any = None,
    n_jobs: int = 1,
    progress: bool | None = None,
) -> Any:
    """Compare influences with what leaving single training samples out does, by training again.

    Parameters
    ----------
    method : Attribution
    samples : dataset
        Whose predictions are followed.
    rows : array of int, optional
        Which training samples to leave out, by position; all by default.
    outputs : optional
        As for ``explain``.
    change : {"linear", "finite"}, default="linear"
        How the change of a loss is predicted: by influences, which follow its slope, or by
        :meth:`InfluenceFunctions.loss_changes <whence.InfluenceFunctions.loss_changes>`, which take it at
        the changed pre-activations.
    retraining : callable, optional
        ``retraining(removed)`` returns what is asked ``(T,)`` after training without some rows, and
        ``retraining.full`` with all. By default a :class:`LayerRetraining` of the method; pass an
        :class:`EstimatorRetraining` to train a whole scikit-learn model again.
    n_jobs : int, default=1
    progress : bool, optional

    Returns
    -------
    pandas.DataFrame
        One row for each training sample and followed sample: ``training_id``, ``sample``, ``predicted``
        and ``actual``. ``actual`` is how far what is asked falls without the training sample: the
        pre-activation, or minus the loss. ``predicted`` says the same in the same unit; local Jacobian
        expansion adds the same number to all influences on one sample.
        See :func:`agreement`.
    """
    pandas = import_extra("pandas", "report")
    chosen = _rows_of(method, rows)
    if change not in ("linear", "finite"):
        raise WhenceError("change", "'linear' or 'finite'", repr(change), "Choose one.")
    if change == "finite" and not isinstance(method, InfluenceFunctions):
        raise WhenceError(
            "change",
            "'linear' for all but InfluenceFunctions",
            f"'finite' for {method.method}",
            "Leave it out.",
        )
    retraining = LayerRetraining(method, samples, outputs=outputs) if retraining is None else retraining
    if change == "finite" and isinstance(method, InfluenceFunctions):
        values = method.loss_changes(samples, progress=progress)
    else:
        values = method.influences(samples, outputs=outputs, progress=progress)
    predicted = values[:, chosen]
    left = [np.asarray([row]) for row in chosen]
    fits = parallel_map(retraining, left, n_jobs, "leaving one out", progress)
    actual = retraining.full[:, None] - np.stack(fits, axis=1)
    return _long(pandas, "training_id", method.index.ids[chosen], predicted, actual)


def leave_group_out(
    method: Attribution,
    samples: Any,
    groups: Any,
    *,
    outputs: Any = None,
    retraining: Any = None,
    n_jobs: int = 1,
    progress: bool | None = None,
) -> Any:
    """Compare sums of influences with what leaving groups of training samples out does.

    Parameters
    ----------
    groups : array of shape (N,), integers
        The group of each training sample, from 0; -1 for none.
    method, samples, outputs, retraining, n_jobs, progress
        See :func:`leave_one_out`.

    Returns
    -------
    pandas.DataFrame
        ``group``, ``sample``, ``predicted`` and ``actual``.
    """
    pandas = import_extra("pandas", "report")
    predicted = method.influences(samples, groups=groups, outputs=outputs, progress=progress)
    retraining = LayerRetraining(method, samples, outputs=outputs) if retraining is None else retraining
    names = np.arange(predicted.shape[1])
    left = [np.flatnonzero(np.asarray(groups) == name) for name in names]
    fits = parallel_map(retraining, left, n_jobs, "leaving groups out", progress)
    actual = retraining.full[:, None] - np.stack(fits, axis=1)
    return _long(pandas, "group", names, predicted, actual)


def linear_datamodeling_score(
    method: Attribution,
    samples: Any,
    *,
    n_subsets: int = 50,
    share: float = 0.5,
    seed: int = 0,
    outputs: Any = None,
    retraining: Any = None,
    n_jobs: int = 1,
    progress: bool | None = None,
) -> Any:
    """Rank-correlate sums of influences over random subsets with what training on those gives.

    The linear datamodeling score of Park et al. (TRAK, ICML 2023), with the layer trained again on each
    subset, its losses averaged over the subset.

    Parameters
    ----------
    n_subsets : int, default=50
    share : float, default=0.5
        Of the training set, in each subset.
    seed : int, default=0
    method, samples, outputs, retraining, n_jobs, progress
        See :func:`leave_one_out`.

    Returns
    -------
    pandas.DataFrame
        ``sample`` and ``score``, Spearman's correlation over subsets: 1 if sums of influences put all
        subsets into the right order.
    """
    pandas = import_extra("pandas", "report")
    check_number(n_subsets, "n_subsets", minimum=2, integer=True)
    check_number(share, "share", strictly=True)
    n_samples = method.index.n_samples
    size = round(share * n_samples)
    if not 0 < size < n_samples:
        raise WhenceError(
            "share", "a share of the training set that leaves some in and some out", repr(share), "Try 0.5."
        )
    retraining = LayerRetraining(method, samples, outputs=outputs) if retraining is None else retraining
    check_seed(seed)
    rng = np.random.default_rng(seed)
    is_kept = np.zeros((n_subsets, n_samples), dtype=bool)
    for subset in is_kept:
        subset[rng.permutation(n_samples)[:size]] = True
    train = partial(retraining, mean_over_kept=True)
    removed = [np.flatnonzero(~subset) for subset in is_kept]
    outcomes = np.stack(parallel_map(train, removed, n_jobs, "subsets", progress), axis=1)
    values = method.influences(samples, outputs=outputs, progress=progress).astype(np.float64)
    sums = values @ is_kept.T
    scores = [_correlation(scipy.stats.spearmanr, *pair) for pair in zip(sums, outcomes, strict=True)]
    return pandas.DataFrame({"sample": np.arange(len(scores)), "score": scores})


def subset_removal(
    method: Attribution,
    samples: Any,
    ks: Sequence[int] = (1, 5, 10, 20, 50),
    *,
    n_random: int = 5,
    seed: int = 0,
    outputs: Any = None,
    retraining: Any = None,
    n_jobs: int = 1,
    progress: bool | None = None,
) -> Any:
    """Train again without the strongest supporters of each prediction, and see how far it falls.

    Parameters
    ----------
    ks : sequence of int, default=(1, 5, 10, 20, 50)
        How many to take away.
    n_random : int, default=5
        Random subsets of the same sizes, to compare with.
    seed : int, default=0
    method, samples, outputs, retraining, n_jobs, progress
        See :func:`leave_one_out`.

    Returns
    -------
    pandas.DataFrame
        ``sample``, ``k``, ``removed`` (``supporters`` or ``random``), ``predicted`` and ``actual``: how far
        what is asked falls. For ``random`` both are means over the subsets.
    """
    pandas = import_extra("pandas", "report")
    n_samples = method.index.n_samples
    for k in ks:
        check_number(k, "ks", minimum=1, integer=True)
        if k >= n_samples:
            raise WhenceError("ks", f"numbers below N = {n_samples}", str(k), "Leave samples to train on.")
    retraining = LayerRetraining(method, samples, outputs=outputs) if retraining is None else retraining
    values = method.influences(samples, outputs=outputs, progress=progress).astype(np.float64)
    order = np.argsort(-values, axis=1, kind="stable")
    check_seed(seed)
    rng = np.random.default_rng(seed)
    drawn = {k: [rng.permutation(n_samples)[:k] for _ in range(n_random)] for k in ks}
    removed = [order[sample, :k] for sample in range(len(values)) for k in ks]
    removed += [rows for k in ks for rows in drawn[k]]
    fits = parallel_map(retraining, removed, n_jobs, "removing subsets", progress)
    rows = []
    for sample in range(len(values)):
        for place, k in enumerate(ks):
            own = fits[sample * len(ks) + place][sample]
            predicted = values[sample, order[sample, :k]].sum()
            rows.append((sample, k, "supporters", predicted, retraining.full[sample] - own))
            if n_random:
                first = len(values) * len(ks) + place * n_random
                others = np.mean([fit[sample] for fit in fits[first : first + n_random]])
                expected = np.mean([values[sample, chosen].sum() for chosen in drawn[k]])
                rows.append((sample, k, "random", expected, retraining.full[sample] - others))
    return pandas.DataFrame(rows, columns=["sample", "k", "removed", "predicted", "actual"])


def agreement(frame: Any) -> Any:
    """Correlate ``predicted`` with ``actual``, for each followed sample.

    Parameters
    ----------
    frame : pandas.DataFrame
        From :func:`leave_one_out` or :func:`leave_group_out`.

    Returns
    -------
    pandas.DataFrame
        ``sample``, ``pearson``, ``spearman``; NaN where either side is constant.

    Examples
    --------
    >>> import pandas
    >>> frame = pandas.DataFrame({"sample": [0, 0, 0], "predicted": [1.0, 2.0, 3.0],
    ...                           "actual": [1.0, 2.0, 9.0]})
    >>> agreement(frame).round(3).values.tolist()
    [[0.0, 0.918, 1.0]]
    """
    pandas = import_extra("pandas", "report")
    rows = []
    for sample, part in frame.groupby("sample", sort=False):
        pair = part["predicted"].to_numpy(), part["actual"].to_numpy()
        pearson = _correlation(scipy.stats.pearsonr, *pair)
        rows.append((sample, pearson, _correlation(scipy.stats.spearmanr, *pair)))
    return pandas.DataFrame(rows, columns=["sample", "pearson", "spearman"])


def _correlation(function: Any, left: np.ndarray, right: np.ndarray) -> float:
    """Return a correlation, NaN where either side is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        warnings.simplefilter("ignore", scipy.stats.NearConstantInputWarning)
        return float(function(left, right)[0])


def _rows_of(method: Attribution, rows: Any) -> np.ndarray:
    n_samples = method.index.n_samples
    chosen = np.arange(n_samples) if rows is None else np.asarray(rows)
    valid = chosen.ndim == 1 and chosen.size > 0 and chosen.dtype.kind in "iu"
    if valid and chosen.min() >= 0 and chosen.max() < n_samples:
        return chosen
    raise WhenceError(
        "rows",
        f"positions from 0 to {n_samples - 1} in the training set",
        repr(rows),
        "Leave it out for all.",
    )


def _long(pandas: Any, name: str, ids: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> Any:
    """Return matrices ``(T, n)`` as a tidy frame, ordered by followed sample."""
    n_followed = len(predicted)
    return pandas.DataFrame(
        {
            name: np.tile(ids, n_followed),
            "sample": np.repeat(np.arange(n_followed), len(ids)),
            "predicted": predicted.astype(np.float64).ravel(),
            "actual": actual.ravel(),
        }
    )
