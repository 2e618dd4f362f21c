"""How well wrong labels are found and counted, by kinds of noise, data and models.

    WHENCE_DATA=... python benchmarks/label_noise.py
    python benchmarks/label_noise.py --smoke

Labels are made wrong: evenly (``uniform``), by class (every second class, always into the next), on samples
that a logistic regression finds hard (into the class it takes them for), or by annotators of whom four of
eight make no mistake. Models are fitted to them, and their training samples ranked. Printed are the area
under the ROC curve and the average precision of each score, the estimated number of wrong labels, and the
mean of each kind of noise. Columns of cleanlab are there where it is installed.
"""

from __future__ import annotations

import csv
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _common import parser
from _data import data_of, names_of

KINDS = ("uniform", "class", "hard", "annotator")
RATES = (0.05, 0.1, 0.2)
POSITIVES = (0.5, 0.3, 0.1, 0.05, 0.02)
SCORES = ("label_noise", "ridge", "leave_one_out", "loss")
MODELS = ("linear", "mlp", "lightgbm")
#: Samples of SST-2 that are kept.
N_TEXTS = 2500


def sets() -> list[str]:
    """Return the names of the data sets: those that are here, digits "is it a 3?", and a long tail."""
    return [*names_of(), *(f"3 of digits, {share:.0%}" for share in POSITIVES), "long tail"]


def samples_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features and classes."""
    rng = np.random.default_rng(0)
    if name == "long tail":  # ten classes thinned to 1:100
        x, y = data_of("digits")
        kept = [
            rng.permutation(np.flatnonzero(y == c))[: max(4, int(178 * 100 ** (-c / 9)))] for c in range(10)
        ]
        rows = np.concatenate(kept)
        return x[rows], y[rows]
    if name.startswith("3 of digits"):
        x, y = data_of("digits")
        share = float(name.split(",")[1].strip(" %")) / 100
        yes, no = np.flatnonzero(y == 3), np.flatnonzero(y != 3)
        n_yes = min(len(yes), round(len(no) * share / (1 - share)))
        n_no = min(len(no), round(n_yes * (1 - share) / share))
        rows = np.r_[rng.choice(yes, n_yes, replace=False), rng.choice(no, n_no, replace=False)]
        return x[rows], (y[rows] == 3).astype(np.int64)
    x, y = data_of(name)
    rows = rng.permutation(len(y))[:N_TEXTS] if name == "SST-2" else slice(None)
    return x[rows], y[rows]


def made_wrong(
    x: np.ndarray, y: np.ndarray, kind: str, rate: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which a share is wrong, and which ones."""
    rng, n, n_classes = np.random.default_rng(100 + seed), len(y), int(y.max()) + 1
    given, count = y.copy(), round(rate * n)
    weight = np.ones(n)
    if kind == "class":
        weight = np.where((y + seed) % 2 == 0, 1.0, 0.25 if n_classes > 2 else 0.0)
    elif kind == "annotator":
        weight = np.asarray([0, 0, 0, 0, 0.25, 0.5, 1, 2])[rng.integers(0, 8, n)] + 1e-9
    elif kind == "hard":
        own, other = hardness(x, y)
        weight = 1.02 - own
    rows = rng.choice(n, min(count, int((weight > 0).sum())), replace=False, p=weight / weight.sum())
    if kind == "class":
        given[rows] = (y[rows] + 1) % n_classes
    elif kind == "hard":
        given[rows] = other[rows]
    else:
        given[rows] = (y[rows] + rng.integers(1, n_classes, len(rows))) % n_classes
    return given, given != y


def hardness(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of the true class by models without the sample, and the likeliest other."""
    p = left_out_probabilities(x, y)
    places = np.arange(len(y))
    own, others = p[places, y].copy(), p.copy()
    others[places, y] = -1
    return own, others.argmax(axis=1)


def left_out_probabilities(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return probabilities of logistic regressions in five folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    return cross_val_predict(LogisticRegression(max_iter=300), x, y, method="predict_proba", cv=5)


def model_of(kind: str, seed: int) -> Any:
    """Return an estimator."""
    if kind == "linear":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(max_iter=500)
    if kind == "mlp":
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier((64,), max_iter=40, alpha=0, random_state=seed)
    from lightgbm import LGBMClassifier

    return LGBMClassifier(n_estimators=60, n_jobs=1, random_state=seed, verbose=-1)


def cell(name: str, model: str, kind: str, rate: float, seed: int) -> dict[str, Any] | None:
    """Return what is measured of one cell; None if a class has lost its labels."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    import whence

    x, y = samples_of(name)
    given, wrong = made_wrong(x, y, kind, rate, seed)
    if np.bincount(given, minlength=int(y.max()) + 1).min() < 2 or (rate and not wrong.any()):
        return None
    fitted = model_of(model, seed).fit(x, given)
    method = whence.RepresenterPointLJE(
        whence.InfluenceModel(fitted), (x, given), whence.ExactIHVPFactory(), progress=False
    )
    found: dict[str, Any] = {"n": len(y), "true": int(wrong.sum())}
    scores = {}
    for score in SCORES:
        suspects = method.suspects(k=None, score=score)
        scores[score] = np.empty(len(y))
        scores[score][suspects.ids] = suspects.scores
        if suspects.interval is not None:
            found |= {"count": suspects.n_suspects, "lowest": suspects.interval[0]}
            found["highest"] = suspects.interval[1]
    scores |= peers(model, x, given, seed)
    if rate:
        for score, values in scores.items():
            found[f"auc {score}"] = roc_auc_score(wrong, values)
            found[f"ap {score}"] = average_precision_score(wrong, values)
    return found


def peers(model: str, x: np.ndarray, given: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return the scores of models in five folds, and of cleanlab if it is here."""
    from sklearn.model_selection import cross_val_predict

    try:
        p = cross_val_predict(model_of(model, seed), x, given, method="predict_proba", cv=5)
    except ValueError:  # a class is missing in a fold
        return {}
    result = {"five folds": -p[np.arange(len(given)), given]}
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return result
    for method in ("self_confidence", "normalized_margin"):
        result[f"cleanlab {method}"] = -get_label_quality_scores(given, p, method=method)
    return result


def cells(chosen: Any) -> Iterator[tuple[str, str, str, float, int]]:
    """Yield the cells: data, model, kind of noise, rate, seed."""
    if chosen.smoke:
        yield from (("wine", "linear", "uniform", rate, 0) for rate in (0, 0.1))
        return
    for model in chosen.models:
        for name in chosen.sets or sets():
            for rate in (0, *chosen.rates):
                for kind in KINDS if rate else ("uniform",):
                    for seed in range(chosen.seeds):
                        yield name, model, kind, rate, seed


def table(rows: list[dict[str, Any]], columns: list[str], by: Callable[[dict[str, Any]], str]) -> str:
    """Return means of the columns, a line for each group, as Markdown."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[by(row)].append(row)
    lines = ["| |" + "".join(f" {column} |" for column in columns), "|---" * (len(columns) + 1) + "|"]
    for group, members in groups.items():
        means = [np.mean([m[c] for m in members if c in m] or [np.nan]) for c in columns]
        lines.append(f"| {group} |" + "".join(f" {mean:.3f} |" for mean in means))
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the tables: by kind of noise, by data, and the counts."""
    noisy = [row for row in rows if row["true"]]
    clean = [row for row in rows if row["rate"] == 0]
    columns = [c for c in dict.fromkeys(c for row in noisy for c in row) if c.startswith("auc ")]
    text = []
    for model in dict.fromkeys(row["model"] for row in rows):
        some = [row for row in noisy if row["model"] == model]
        if some:
            text += [f"\n{model}\n", table(some, columns, lambda row: str(row["noise"]))]
            text += [
                "",
                table(some, [c.replace("auc", "ap") for c in columns], lambda row: str(row["noise"])),
            ]
            text += ["", table(some, columns, lambda row: str(row["data"]))]
            best = [max(row["auc loss"], row["auc leave_one_out"]) for row in some]
            behind = sum(row["auc label_noise"] < b - 0.01 for row, b in zip(some, best, strict=True))
            text.append(
                f"\nmore than .01 below the better of loss and leave_one_out: {behind} of {len(some)}"
            )
        for kind in dict.fromkeys(row["noise"] for row in some):
            these = [row for row in some if row["noise"] == kind]
            near = sum(abs(row["count"] - row["true"]) <= 0.3 * row["true"] for row in these)
            inside = sum(row["lowest"] <= row["true"] <= row["highest"] for row in these)
            text.append(
                f"{kind}: count within 30 % in {near}, in the interval in {inside}, of {len(these)}"
            )
        share = [row["count"] / row["n"] for row in clean if row["model"] == model]
        if share:
            text.append(f"none wrong: {np.mean(share):.2%} counted, {max(share):.2%} at most")
    return "\n".join(text)


def main() -> None:
    """Measure all cells, write them as they come, and print the tables."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options.add_argument("--sets", nargs="+")
    options.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    options.add_argument("--csv", type=Path, help="a file for the cells")
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    for name, model, kind, rate, seed in cells(chosen):
        found = cell(name, model, kind, rate, seed)
        if found is not None:
            rows.append({"data": name, "model": model, "noise": kind, "rate": rate, "seed": seed} | found)
            print(f"{time.perf_counter() - started:6.0f} s  {rows[-1]}", file=sys.stderr, flush=True)
    if chosen.csv is not None:
        with chosen.csv.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(dict.fromkeys(c for row in rows for c in row)))
            writer.writeheader()
            writer.writerows(rows)
    print(summary(rows))


if __name__ == "__main__":
    main()
