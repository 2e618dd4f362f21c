"""Label errors found through a boosted ensemble: whence beside tree_influence, on the same booster.

    python benchmarks/tree_peers.py

A tenth of the training labels is flipped, XGBoost is trained on them, and the training samples are
ranked by the scores of whence and by the self-influence of BoostIn and LeafInfluence (Brophy, Hammoudeh and
Lowd, 2023; Sharchilev et al., 2018). Printed are the area under the ROC curve of finding the flipped
labels, mean and standard deviation over seeds, and the median time from the trained booster to the scores
of all samples, in seconds and in units of the first row's.

``tree_influence`` 0.1.7 has wheels for Python 3.9 and 3.10; where it cannot be imported it is left out. On
later versions of Python it runs once its C files are compiled in place: its source archive lacks the Cython
files that its ``setup.py`` asks for. It reads the boosters of XGBoost before 3, whose base score is 0.5::

    for n in 32 64; do gcc -O3 -shared -fPIC $(python3-config --includes) -I$NUMPY_INCLUDE \\
        tree_influence/explainers/parsers/_tree$n.c -o tree_influence/explainers/parsers/_tree$n$SUFFIX
    done
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import xgboost
from _common import parser
from _data import data_of, names_of

import whence
from whence.evaluation import flip_labels

DATA = ("breast cancer", "German credit")
SHARE = 0.1

Score = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]


def suspicion(score: str) -> Score:
    """Return how doubtful each label is by ``suspects``, with every setting left at its default."""

    def scored(booster: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        lje = whence.RepresenterPointLJE(
            whence.InfluenceModel(booster), (x, y), whence.WoodburyIHVPFactory(), progress=False
        )
        found = lje.suspects((x, y), None, score=score)
        result = np.empty(len(y))
        result[found.ids] = found.scores
        return result

    return scored


def influence(booster: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the self-influence by influence functions on the leaves."""
    method = whence.InfluenceFunctions(
        whence.InfluenceModel(booster), (x, y), whence.WoodburyIHVPFactory(), progress=False
    )
    return np.concatenate([np.asarray(values) for _, values in method.compute_influence_values((x, y))])


def peer(name: str) -> Score:
    """Return the self-influence of a method of tree_influence."""

    explainers = importlib.import_module("tree_influence.explainers")  # which imports torch: not timed

    def scored(booster: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        method = getattr(explainers, name)().fit(booster, x, y)
        # What get_self_influence takes the diagonal of; LeafInfluence does not take its arguments.
        return np.diagonal(method.get_local_influence(x, y))

    return scored


def methods() -> dict[str, Score]:
    """Return the methods that are here."""
    found = {
        "whence, leave-one-out margin": suspicion("leave_one_out"),
        "whence, LJE self-influence": suspicion("self_influence"),
        "whence, influence functions": influence,
        "the model's loss": suspicion("loss"),
    }
    if importlib.util.find_spec("tree_influence"):
        found |= {f"tree_influence, {name}": peer(name) for name in ("BoostIn", "LeafInfluence")}
    else:
        print("tree_influence is not installed: left out")
    return found


def main() -> None:
    """Print one table for each data set."""
    from sklearn.metrics import roc_auc_score

    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--trees", type=int, default=50)
    options.add_argument("--data", nargs="*", default=DATA, help=" or ".join(DATA))
    chosen = options.parse_args()
    n_seeds, n_trees = (1, 5) if chosen.smoke else (chosen.seeds, chosen.trees)
    for name in DATA[:1] if chosen.smoke else [name for name in chosen.data if name in names_of()]:
        x, y = data_of(name)
        areas: dict[str, list[float]] = {}
        times: dict[str, list[float]] = {}
        for seed in range(n_seeds):
            labels, wrong = flip_labels(y, SHARE, seed)
            booster = xgboost.XGBClassifier(
                n_estimators=n_trees, max_depth=4, learning_rate=0.1, base_score=0.5, tree_method="exact",
                n_jobs=1, random_state=seed,
            ).fit(x, labels)  # fmt: skip
            for method, score in methods().items():
                start = time.perf_counter()
                scores = score(booster, x, labels)
                times.setdefault(method, []).append(time.perf_counter() - start)
                areas.setdefault(method, []).append(roc_auc_score(wrong, scores))
        print(f"\n{name}: {len(y)} samples, {n_trees} trees, {SHARE:.0%} of the labels flipped")
        first = statistics.median(next(iter(times.values())))
        for method, of_seeds in areas.items():
            seconds = statistics.median(times[method])
            area = f"{np.mean(of_seeds):.4f} ±{np.std(of_seeds):.4f}"
            print(f"{method:34s}{area:>16s}{seconds:9.2f} s{seconds / first:9.1f}", flush=True)


if __name__ == "__main__":
    main()
