"""Whether explanations add up, and whether another training run tells the same."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import scipy.stats

from whence._errors import WhenceError
from whence.answers.contract import Attribution
from whence.arrays.base import check_number, import_extra

__all__ = ["completeness", "stability"]


def completeness(method: Attribution, samples: Any, *, outputs: Any = None) -> Any:
    """Compare the sum of all influences on a prediction with what it should be, and with the prediction.

    Parameters
    ----------
    method : Attribution
    samples : dataset
    outputs : optional
        As for ``explain``.

    Returns
    -------
    pandas.DataFrame
        ``sample``; ``sum`` of the influences of all training samples; ``total``, what the method says
        they sum to; ``pre_activation``, the model's own. ``sum - total`` is rounding. ``sum`` near
        ``pre_activation`` is what it takes to read an influence as a share of what the model said.
    """
    pandas = import_extra("pandas", "report")
    sums = method.influences(samples, outputs=outputs).sum(axis=1, dtype=np.float64)
    totals, said = [], []
    for _, facts in method.questions(samples, outputs=outputs):
        totals.append(facts["totals"])
        said.append(facts["pre_activations"])
    columns = {"sum": sums, "total": np.concatenate(totals), "pre_activation": np.concatenate(said)}
    return pandas.DataFrame({"sample": np.arange(len(sums)), **columns})


def stability(methods: Mapping[Any, Attribution], samples: Any, *, k: int = 10, outputs: Any = None) -> Any:
    """Compare the explanations of models that differ in their seed only.

    Parameters
    ----------
    methods : mapping
        From a name, such as the seed, to a method on the model of that seed. All with the same training
        set, in the same order.
    samples : dataset
    k : int, default=10
        How many supporters to compare.
    outputs : int or array of shape (T,), optional
        Which output to explain. Without it each model explains its own prediction, and where two differ
        so do the questions.

    Returns
    -------
    pandas.DataFrame
        For each pair of models and each sample: ``first``, ``second``, ``sample``, ``spearman`` between the
        influences of all training samples, and ``overlap``, the share of the ``k`` strongest supporters
        that they have in common.
    """
    pandas = import_extra("pandas", "report")
    check_number(k, "k", minimum=1, integer=True)
    sizes = {method.index.n_samples for method in methods.values()}
    if len(methods) < 2 or len(sizes) != 1:
        got = f"{len(methods)} methods on training sets of {sorted(sizes)} samples"
        raise WhenceError("methods", "at least two, on the same training set", got, "Train another seed.")
    if k > (n_samples := sizes.pop()):
        raise WhenceError("k", f"at most N = {n_samples}", str(k), "Compare fewer.")
    values = {name: method.influences(samples, outputs=outputs) for name, method in methods.items()}
    best = {name: np.argsort(-v, axis=1, kind="stable")[:, :k] for name, v in values.items()}
    rows = []
    for first, second in combinations(values, 2):
        for sample, pair in enumerate(zip(values[first], values[second], strict=True)):
            common = np.intersect1d(best[first][sample], best[second][sample]).size
            rows.append((first, second, sample, float(scipy.stats.spearmanr(*pair)[0]), common / k))
    return pandas.DataFrame(rows, columns=["first", "second", "sample", "spearman", "overlap"])
