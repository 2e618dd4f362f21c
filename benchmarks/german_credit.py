"""Flipped labels found on German credit, by the experiment of the paper, on the leaves of the booster.

    python benchmarks/german_credit.py ../shared/data/german_credit

The folder holds ``train.csv`` and ``flip_orders.csv`` as the authors of "Representer Point Selection via
Local Jacobian Expansion" (NeurIPS 2021) prepared them; ``$WHENCE_DATA/german_credit`` is looked in by
default. Without it, ``--smoke`` runs on the breast cancer data, with orders of its own.

The labels of the first 30 % of an order are flipped, XGBoost is trained, samples are ranked, and the share
of the flipped ones among the first 5 to 50 % is printed. Rows without a damping have every setting at its
default. Where one is given, ``lam`` is that damping and the booster's ``reg_lambda`` or nothing (``the same
with reg_lambda=0``) in place of what whence takes by itself, what training implies; it is chosen on the
first three orders (the mean share over 10 to 40 %) and confirmed on the others. ``--defaults`` leaves those
rows out.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from _common import parser

import whence
from whence.ihvp.base import DEFAULT_DAMPING
from whence.layers.linear_layer import Block, LinearLayer
from whence.layers.losses import BinaryCrossEntropy

CHECKED = (0.05, 0.10, 0.20, 0.30, 0.40, 0.50)
FLIPPED = 0.3
DAMPINGS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
#: Means over ten orders, as published.
PUBLISHED = {
    "published: RPS-LJE": (0.0737, 0.1475, 0.2785, 0.3866, 0.4857, 0.5746),
    "published: influence function": (0.0803, 0.1582, 0.2961, 0.4012, 0.4654, 0.5436),
    "published: random": (0.0484, 0.0967, 0.1976, 0.2979, 0.3925, 0.4970),
}
#: Methods that take a damping.
DAMPED = (
    "LJE on leaves, self-influence",
    "the same with reg_lambda=0",
    "LJE on leaves, leave-one-out margin",
    "influence function on leaves",
    "LJE on outputs of trees",
)


def booster(learning_rate: float, n_trees: int) -> Any:
    """Return the paper's model, untrained."""
    return xgboost.XGBClassifier(
        n_estimators=n_trees,
        objective="binary:logistic",
        learning_rate=learning_rate,
        gamma=0.01,
        colsample_bytree=0.5,
        min_child_weight=3,
        max_depth=8,
        seed=9999,
    )


def data_of(folder: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, labels and orders."""
    if folder is None:
        from sklearn.datasets import load_breast_cancer

        x, y = load_breast_cancer(return_X_y=True)
        rng = np.random.default_rng(0)
        return x[:200], y[:200].astype(np.int64), np.stack([rng.permutation(200) for _ in range(5)])
    table = np.genfromtxt(folder / "train.csv", delimiter=",", names=True)
    columns = [column for column in table.dtype.names if column != "label"]
    x = np.stack([table[column] for column in columns], axis=1)
    orders = np.loadtxt(folder / "flip_orders.csv", delimiter=",", dtype=np.int64)
    return x, table["label"].astype(np.int64), orders


def self_influence(method: Any, data: Any) -> np.ndarray:
    """Return the contract's self-influence of every sample."""
    return np.concatenate([np.asarray(values) for _, values in method.compute_influence_values(data)])


def suspicion(method: Any, data: Any, score: str) -> np.ndarray:
    """Return how doubtful each label is."""
    found = method.suspects(data, None, score=score)
    result = np.empty(len(data[1]))
    result[found.ids] = found.scores
    return result


def overshoot(model: Any, data: Any, reg_lambda: float | None, damping: float) -> float:
    """Return how large the totals of LJE are, in units of the model's own margins, over 100 samples."""
    wrapped = whence.InfluenceModel(model, reg_lambda=reg_lambda)
    lje = whence.RepresenterPointLJE(wrapped, data, whence.WoodburyIHVPFactory(damping), progress=False)
    explanation = lje.explain((data[0][:100], data[1][:100]), 1, progress=False)
    return float(np.abs(explanation.totals).mean() / np.abs(explanation.pre_activations).mean())


class OutputsOfTrees:
    """The paper's features: what each tree says of a sample, all with weight 1."""

    def __init__(self, model: Any, x: np.ndarray, y: np.ndarray) -> None:
        trees = model.get_booster()
        matrix = xgboost.DMatrix(x)
        n_trees = trees.num_boosted_rounds()
        alone = [trees[t : t + 1].predict(matrix, output_margin=True) for t in range(n_trees)]
        phi = np.stack(alone, axis=1).astype(np.float64)
        # Each slice adds the whole base score: it is shared out among the trees instead.
        total = model.predict(x, output_margin=True).astype(np.float64)
        phi -= ((phi.sum(axis=1) - total) / n_trees)[:, None]
        self.block = Block(phi, y[:, None].astype(np.float64))
        self.n_samples = len(y)

    def __iter__(self) -> Any:
        yield self.block

    def scores(self, damping: float, step_size: float = 1e-4) -> np.ndarray:
        """Return the self-influence of every sample by LJE on these features."""
        phi = self.block.phi
        layer = LinearLayer(np.ones((phi.shape[1], 1)), BinaryCrossEntropy())
        layer = layer.at(layer.theta + step_size * layer.mean_gradient(self))
        ihvp = whence.ExactIHVPFactory(damping).build(layer, self)
        moved = ihvp.self_products(phi, layer.residuals(self.block))
        return np.abs(phi @ layer.theta - moved)[:, 0] / self.n_samples


def rankings(
    model: Any, x: np.ndarray, y: np.ndarray, seed: int, dampings: tuple[float, ...]
) -> dict[tuple[str, float | None], np.ndarray]:
    """Return what samples are ranked by, largest first: method and damping to scores."""
    data = (x, y)
    wrapped = whence.InfluenceModel(model, reg_lambda=1.0)  # XGBoost's default, as the paper leaves it
    undamped = whence.InfluenceModel(model, reg_lambda=0.0)
    outputs = OutputsOfTrees(model, x, y)
    result: dict[tuple[str, float | None], np.ndarray] = {}
    for damping in dampings:
        factory = whence.WoodburyIHVPFactory(damping)
        lje = whence.RepresenterPointLJE(wrapped, data, factory, progress=False)
        influence = whence.InfluenceFunctions(wrapped, data, factory, progress=False)
        alone = whence.RepresenterPointLJE(undamped, data, factory, progress=False)
        values = (
            self_influence(lje, data),
            self_influence(alone, data),
            suspicion(lje, data, "leave_one_out"),
            self_influence(influence, data),
            outputs.scores(damping),
        )
        result |= {(name, damping): value for name, value in zip(DAMPED, values, strict=True)}
    own, factory = whence.InfluenceModel(model), whence.WoodburyIHVPFactory()
    lje = whence.RepresenterPointLJE(own, data, factory, progress=False)
    influence = whence.InfluenceFunctions(own, data, factory, progress=False)
    result["LJE on leaves, leave-one-out margin", None] = suspicion(lje, data, "leave_one_out")
    result["LJE on leaves, self-influence", None] = self_influence(lje, data)
    result["influence function on leaves", None] = self_influence(influence, data)
    result["loss of the model", None] = suspicion(lje, data, "loss")
    l2 = whence.RepresenterPointL2(own, data, progress=False)
    result["RPS-L2 on leaves, self-influence", None] = self_influence(l2, data)
    result["random", None] = np.random.default_rng(seed).random(len(y))
    return result


def found(scores: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """Return the share of the flipped samples among the first of a ranking."""
    order = np.argsort(-scores, kind="stable")
    counts = [round(share * len(order)) for share in CHECKED]
    return np.asarray([np.isin(order[:count], flipped).sum() / len(flipped) for count in counts])


def run(
    data: tuple[np.ndarray, np.ndarray, np.ndarray], rate: float, n_trees: int, dampings: tuple[float, ...]
) -> tuple[dict[tuple[str, float | None], list[np.ndarray]], str]:
    """Return the shares of every method for each order, and a line about the model."""
    x, y, orders = data
    shares: dict[tuple[str, float | None], list[np.ndarray]] = {}
    for number, order in enumerate(orders):
        flipped = order[: round(FLIPPED * len(y))]
        labels = y.copy()
        labels[flipped] = 1 - labels[flipped]
        model = booster(rate, n_trees).fit(x, labels)
        for key, scores in rankings(model, x, labels, number, dampings).items():
            shares.setdefault(key, []).append(found(scores, flipped))
    n_leaves = whence.InfluenceModel(model).index((x, labels)).n_features - 1  # the last is the base score
    last = model, (x, labels)
    ratios = ((None, DEFAULT_DAMPING), (1.0, DEFAULT_DAMPING), (0.0, 1e-5))
    told = ", ".join(f"{overshoot(*last, *setting):.1f}" for setting in ratios)
    return shares, (
        f"{len(y)} samples, {n_trees} trees, {n_leaves} leaves in the last\n"
        "totals of LJE, as many times the booster's own margins, by default, with reg_lambda=1, and with "
        f"reg_lambda=0 and damping 1e-5: {told}"
    )


def line(name: str, damping: float | None, shares: Any) -> str:
    """Return a row of the table."""
    told = "" if damping is None else f"{damping:g}"
    return f"{name:37s}{told:>8s}" + "".join(f"{share:8.3f}" for share in shares)


def report(shares: dict[tuple[str, float | None], list[np.ndarray]], n_chosen_on: int) -> None:
    """Print the tables of a learning rate."""
    head = f"{'ranked by':37s}{'damping':>8s}" + "".join(f"{c:8.0%}" for c in CHECKED)
    chosen = {}
    for name in DAMPED:
        candidates = [key for key in shares if key[0] == name and key[1] is not None]
        if not candidates:
            continue
        chosen[name] = max(candidates, key=lambda key: np.mean([s[1:5] for s in shares[key][:n_chosen_on]]))
    every = slice(None)
    rows: list[tuple[str, slice, Callable[[Any], bool]]] = [
        (f"orders 1 to {n_chosen_on}, every damping", slice(0, n_chosen_on), lambda key: True),
        (f"other orders, damping chosen on 1 to {n_chosen_on}", slice(n_chosen_on, None),
         lambda key: key[1] is None or chosen.get(key[0]) == key),
        ("all orders, damping chosen", every, lambda key: key[1] is None or chosen.get(key[0]) == key),
    ]  # fmt: skip
    for title, orders, wanted in rows:
        print(f"\n{title}\n{head}")
        for key in shares:
            if wanted(key):
                print(line(*key, np.mean(shares[key][orders], axis=0)))


def main() -> None:
    """Print the tables for both learning rates."""
    options = parser(__doc__)
    options.add_argument("folder", nargs="?", help="where train.csv and flip_orders.csv are")
    options.add_argument("--defaults", action="store_true", help="leave out what is tried by damping")
    options.add_argument("--rates", nargs="*", type=float, default=[0.005, 0.1], help="learning rates")
    chosen = options.parse_args()
    named = chosen.folder or os.environ.get("WHENCE_DATA")
    folder = None if named is None else Path(named)
    if folder is not None and chosen.folder is None:
        folder = folder / "german_credit"
    if folder is not None and not (folder / "train.csv").is_file():
        folder = None
    if folder is None and not chosen.smoke:
        sys.exit("Give the folder of German credit: benchmarks/german_credit.py FOLDER")
    data = data_of(folder)
    dampings, n_trees, rates = () if chosen.defaults else DAMPINGS, 80, chosen.rates
    if chosen.smoke:
        print("smoke run on", "German credit" if folder else "breast cancer: German credit is not here")
        x, y, orders = data
        data, dampings, n_trees, rates = (x, y, orders[:2]), (1e-4,), 10, [0.1]
    for rate in rates:
        start = time.perf_counter()
        shares, about = run(data, rate, n_trees, dampings)
        print(f"\n==== learning rate {rate:g}, {time.perf_counter() - start:.0f} s: {about}")
        report(shares, 1 if chosen.smoke else 3)
    if not chosen.smoke:
        print("\npublished, ten orders, learning rate 0.005")
        for name, published in PUBLISHED.items():
            print(line(name, None, published))


if __name__ == "__main__":
    main()
