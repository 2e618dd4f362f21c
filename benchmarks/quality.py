"""What scores and explanations can be shown to predict, on data sets whose answer is known.

    python benchmarks/quality.py [--write benchmarks/results --plots docs/images]

First: how well each score finds training labels that were flipped on purpose; area under the ROC curve,
mean over seeds, each with its own flips and weights. Models are trained on the flipped labels with Adam.
Second: what influences predict of retraining the last layer without some samples. The layer is first
trained to the minimum of its damped loss. Columns: correlation of influences with the change that leaving
out one training sample makes, over 100 of them, mean over 20 followed samples; linear datamodeling score;
how far the explained pre-activation falls when the 20 strongest supporters are taken away; how far the sum
of all influences is from it; share of the 10 strongest supporters that two seeds have in common.

German credit and SST-2 are used if the folder $WHENCE_DATA holds them. ``--write`` puts the tables, as
Markdown, and all numbers, as CSV, into a folder, ``--plots`` figures of them into another; a part that is
not run is drawn from the numbers that were written before.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import parser
from _data import EPOCHS, data_of, logits_of, names_of, trained

SHARES = (0.1, 0.2)
DAMPING = 1e-2
#: What the refitted layer's damping is chosen from.
REFIT_DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
N_FOLLOWED, N_LEFT_OUT, N_SUBSETS, N_REMOVED = 20, 100, 30, 20


# ---- finding wrong labels -----------------------------------------------------------------------


def left_out(method: Any) -> dict[str, np.ndarray]:
    """Return scores from what the layer would say of its samples without them, in both forms."""
    from whence.arrays.base import as_numpy
    from whence.methods.leverage import leave_one_out_residuals

    (block,) = method.index
    layer, n_samples = method.layer, method.index.n_samples
    u = as_numpy(layer.pre_activations(block.phi)).astype(np.float64)
    forms = {
        "": layer.residuals(block),
        ", leverage": leave_one_out_residuals(layer, method.ihvp, block, n_samples),
    }
    result = {}
    for form, r in forms.items():
        without = u + as_numpy(method.ihvp.self_products(block.phi, r)) / n_samples
        result["leave-one-out margin" + form] = -layer.loss.margin(without, block.target)
        result["leave-one-out loss" + form] = layer.loss.value(without, block.target)
    return result


def refitted(method: Any) -> np.ndarray:
    """Return the leave-one-out margin, turned, after training the layer again to its minimum.

    In the form with leverage; of the dampings the one with the lowest leave-one-out loss.
    """
    import whence
    from whence.arrays.base import as_numpy
    from whence.methods.leverage import leave_one_out_residuals
    from whence.methods.refit import refit

    index, best, scores = method.index, np.inf, None
    (block,) = index
    block = block._replace(phi=as_numpy(block.phi).astype(np.float64), target=as_numpy(block.target))
    for damping in REFIT_DAMPINGS:
        layer = method.layer.at(refit(method.layer, index, damping, gradient_norm=1e-6).theta)
        ihvp = whence.ExactIHVPFactory(damping).build(layer, index)
        r = leave_one_out_residuals(layer, ihvp, block, index.n_samples)
        left = layer.pre_activations(block.phi) + ihvp.self_products(block.phi, r) / index.n_samples
        loss = layer.loss.value(left, block.target).mean()
        if loss < best:
            best, scores = loss, -layer.loss.margin(left, block.target)
    return scores


def out_of_fold(kind: str, x: np.ndarray, y: np.ndarray, seed: int, epochs: int) -> np.ndarray:
    """Return minus the probability of the given label by models that did not see the sample, five folds.

    It is cleanlab's label quality score ``self_confidence``, turned round.
    """
    from scipy.special import softmax
    from sklearn.model_selection import StratifiedKFold

    scores = np.empty(y.size)
    for kept, held in StratifiedKFold(5, shuffle=True, random_state=seed).split(x, y):
        u = logits_of(trained(kind, x[kept], y[kept], seed, epochs), x[held])
        scores[held] = -softmax(u, axis=1)[np.arange(held.size), y[held]]
    return scores


def one_run(seed: int, *, name: str, kind: str, share: float, smoke: bool) -> tuple[dict, np.ndarray]:
    """Train on flipped labels and return every score, larger for more doubtful labels."""
    import torch

    import whence
    from whence import evaluation

    x, y = data_of(name)
    y, is_wrong = evaluation.flip_labels(y, share, seed)
    epochs = 2 if smoke else EPOCHS[name]
    loss = torch.nn.CrossEntropyLoss()
    model = whence.InfluenceModel(trained(kind, x, y, seed, epochs), loss_function=loss)
    train, factory = (x, y), whence.ExactIHVPFactory()

    def self_influence(method: Any) -> np.ndarray:
        return np.concatenate([value for _, value in method.compute_influence_values(train)])

    def ranked(method: Any, score: str | None = None) -> np.ndarray:
        suspects = method.suspects(train, None, score=score)
        return suspects.scores[np.argsort(suspects.ids)]

    influence = whence.InfluenceFunctions(model, train, factory, progress=False)
    lje = {
        label: whence.RepresenterPointLJE(model, train, factory, label=label, progress=False)
        for label in ("predicted", "given")
    }
    fits = {
        fit_to: whence.RepresenterPointL2(model, train, fit_to=fit_to, label="given", progress=False)
        for fit_to in ("predictions", "labels")
    }
    scores = {
        "ridge regression": ranked(lje["predicted"], "ridge"),
        "training loss": ranked(influence, "loss"),
        **left_out(influence),
        "leave-one-out margin, leverage, refitted": refitted(influence),
        "LJE self-influence, predicted label": self_influence(lje["predicted"]),
        "LJE self-influence, given label": self_influence(lje["given"]),
        "influence self-influence": self_influence(influence),
        "gradient norm": self_influence(whence.GradientDotProduct(model, train, progress=False)),
        "RPS-L2 alpha, fitted to predictions": self_influence(fits["predictions"]),
        "RPS-L2 alpha, fitted to labels": self_influence(fits["labels"]),
        "RPS-L2 without own term": ranked(fits["labels"]),
        "feature similarity": ranked(whence.FeatureSimilarity(model, train, progress=False)),
        "five-fold self-confidence": out_of_fold(kind, x, y, seed, epochs),
    }
    return scores, is_wrong


def label_errors(
    names: list[str], kinds: list[str], seeds: int, smoke: bool, jobs: int, write: Path | None
) -> Any:
    """Return one row for each data set, model, share, seed and score; write what there is as it comes."""
    import pandas

    from whence import evaluation

    frames = []
    for name in names:
        for kind in kinds:
            if kind == "CNN" and name != "digits":
                continue
            for share in SHARES[:1] if smoke else SHARES:
                run = partial(one_run, name=name, kind=kind, share=share, smoke=smoke)
                frame = evaluation.label_error_detection(run, range(seeds), n_jobs=jobs)
                frames.append(frame.assign(data=name, model=kind, flipped=share))
                if write:
                    save(pandas.concat(frames), "label-errors", write)
                means = evaluation.summary(frame, "roc_auc")
                best = means.loc[means["mean"].idxmax()]
                print(f"{name}, {kind}, {share:.0%}: best {best['score']} {best['mean']:.3f}", flush=True)
    return pandas.concat(frames, ignore_index=True)


# ---- predicting what retraining does ------------------------------------------------------------


class Remembered:
    """A retraining that keeps its outcomes: all methods are held against the same ones."""

    def __init__(self, retraining: Any) -> None:
        self._retraining = retraining
        self._kept: dict[tuple[bytes, bool], np.ndarray] = {}

    @property
    def full(self) -> np.ndarray:
        return self._retraining.full

    def __call__(self, removed: np.ndarray, *, mean_over_kept: bool = False) -> np.ndarray:
        key = np.sort(removed).tobytes(), mean_over_kept
        if key not in self._kept:
            self._kept[key] = self._retraining(removed, mean_over_kept=mean_over_kept)
        return self._kept[key]


def methods_of(model: Any, train: Any) -> dict[str, Any]:
    """Return every method, asking about pre-activations."""
    import whence

    factory = whence.ExactIHVPFactory(damping=DAMPING)
    on = {"effect_on": "pre_activation", "progress": False}
    l2 = {"l2": DAMPING / 2, "progress": False}
    return {
        "LJE": whence.RepresenterPointLJE(model, train, factory, progress=False),
        "influence": whence.InfluenceFunctions(model, train, factory, **on),
        "influence, leverage": whence.InfluenceFunctions(model, train, factory, leverage=True, **on),
        "RelatIF": whence.InfluenceFunctions(model, train, factory, normalisation="loss", **on),
        "RPS-L2, labels": whence.RepresenterPointL2(model, train, fit_to="labels", **l2),
        "RPS-L2, predictions": whence.RepresenterPointL2(model, train, fit_to="predictions", **l2),
        "gradient dot product": whence.GradientDotProduct(model, train, **on),
        "gradient cosine": whence.GradientCosine(model, train, **on),
        "feature similarity": whence.FeatureSimilarity(model, train, progress=False),
        "training loss": whence.TrainingLoss(model, train, progress=False),
    }


def retraining(name: str, kind: str, seeds: int, smoke: bool) -> Any:
    """Return one row for each seed and method."""
    import pandas
    import torch

    import whence
    from whence import evaluation

    loss = torch.nn.CrossEntropyLoss()
    x, y = data_of(name)
    order = np.random.default_rng(0).permutation(y.size)
    new, rest = order[:N_FOLLOWED], order[N_FOLLOWED:]
    train, followed = (x[rest], y[rest]), (x[new], y[new])
    rows, by_method, outputs = [], {}, None
    for seed in range(seeds):
        network = trained(kind, *train, seed, 2 if smoke else EPOCHS[name])
        model = whence.InfluenceModel(network, loss_function=loss)
        factory = whence.ExactIHVPFactory(damping=DAMPING)
        asks = whence.InfluenceFunctions(model, train, factory, effect_on="pre_activation", progress=False)
        theta = evaluation.LayerRetraining(asks, followed).theta
        with torch.no_grad():
            network[-1].weight.copy_(torch.from_numpy(theta[:-1].T))
            network[-1].bias.copy_(torch.from_numpy(theta[-1]))
        methods = methods_of(whence.InfluenceModel(network, loss_function=loss), train)
        if outputs is None:  # every seed is asked about the same output
            outputs = methods["LJE"].explain(followed).outputs
        actual = Remembered(evaluation.LayerRetraining(methods["influence"], followed, outputs=outputs))
        left = np.random.default_rng(seed).permutation(rest.size)[: 10 if smoke else N_LEFT_OUT]
        for label, method in methods.items():
            options = {"outputs": outputs, "retraining": actual, "progress": False}
            each = evaluation.agreement(evaluation.leave_one_out(method, followed, rows=left, **options))
            subsets = evaluation.linear_datamodeling_score(
                method, followed, n_subsets=5 if smoke else N_SUBSETS, **options
            )
            removal = evaluation.subset_removal(method, followed, ks=(N_REMOVED,), n_random=1, **options)
            falls = removal.groupby("removed")["actual"].mean()
            sums = evaluation.completeness(method, followed, outputs=outputs)
            off = np.abs(sums["sum"] - sums["pre_activation"]).mean() / sums["pre_activation"].abs().mean()
            by_method.setdefault(label, {})[seed] = method
            rows.append(
                {
                    "data": name,
                    "seed": seed,
                    "method": label,
                    "leave-one-out, Pearson": each["pearson"].mean(),
                    "leave-one-out, Spearman": each["spearman"].mean(),
                    "datamodeling score": subsets["score"].mean(),
                    "fall without 20 supporters": falls["supporters"],
                    "fall without 20 at random": falls["random"],
                    "sum off by": off,
                }
            )
        print(f"{name}, {kind}, seed {seed}: retrained {len(actual._kept)} times", flush=True)
    frame = pandas.DataFrame(rows)
    if seeds > 1:
        for label, of_seeds in by_method.items():
            common = evaluation.stability(of_seeds, followed, outputs=outputs)["overlap"].mean()
            frame.loc[frame["method"] == label, "top 10 in common"] = common
    return frame


# ---- tables -------------------------------------------------------------------------------------


def markdown(frame: Any, digits: int = 3) -> str:
    """Return a frame as a table in Markdown, its index as first column."""

    def cell(value: Any) -> str:
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    head = [" / ".join(c) if isinstance(c, tuple) else str(c) for c in frame.columns]
    lines = [" | ".join(["", *head]), "|".join(["---", *["---:"] * len(head)])]
    lines += [" | ".join([str(name), *map(cell, row)]) for name, *row in frame.itertuples(name=None)]
    return "".join(f"| {line} |\n" if "---" not in line else f"|{line}|\n" for line in lines)


def save(frame: Any, title: str, folder: Path) -> None:
    """Write all numbers as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / f"quality-{title}.csv", index=False, float_format="%.6g")


def table_of_labels(frame: Any, kind: str) -> Any:
    """Return mean areas, one column a data set and share, and their mean, best first.

    The last column is half the width of Student's 95 % interval of that mean, over seeds.
    """
    from whence import evaluation

    chosen = frame[frame["model"] == kind].assign(
        column=lambda f: f["data"] + " " + (100 * f["flipped"]).round().astype(int).astype(str) + " %"
    )
    table = chosen.pivot_table(index="score", columns="column", values="roc_auc", sort=False)
    table["mean"] = table.mean(axis=1)
    of_seeds = chosen.groupby(["score", "seed"], sort=False)["roc_auc"].mean().reset_index()
    spread = evaluation.summary(of_seeds, "roc_auc").set_index("score")
    table["±"] = spread["high"] - spread["mean"]
    return table.sort_values("mean", ascending=False, kind="stable")


# ---- figures ------------------------------------------------------------------------------------

DRAWN = {
    "ridge regression": "ridge regression",
    "leave-one-out margin": "leave-one-out margin",
    "training loss": "training loss",
    "feature similarity": "feature similarity",
    "five-fold self-confidence": "five-fold self-confidence",
    "LJE self-influence, predicted label": "LJE self-influence",
}


def draw_labels(frame: Any, kind: str, file: Path) -> None:
    """Draw what share of the wrong labels is found against how many were checked, a panel a data set."""
    import pandas
    from matplotlib import pyplot

    from whence.report.measures import plot_detection

    chosen = frame[(frame["model"] == kind) & (frame["flipped"] == SHARES[0])]
    names = list(chosen["data"].unique())
    columns = [column for column in frame.columns if column.startswith("found_")]
    checked = [0.0, *(float(column.removeprefix("found_")) / 100 for column in columns)]
    n_rows = -(-len(names) // 3)
    shape = (9, 3.2 * n_rows)
    figure, axes = pyplot.subplots(n_rows, 3, figsize=shape, squeeze=False, layout="constrained")
    for ax, name in zip(axes.flat, names, strict=False):
        part = chosen[chosen["data"] == name]
        curves = {}
        for score, label in DRAWN.items():
            runs = part.loc[part["score"] == score, columns].to_numpy()
            curves[label] = [pandas.DataFrame({"checked": checked, "found": [0.0, *run]}) for run in runs]
        plot_detection(curves, ax=ax)
        ax.set(
            title=name, xlim=(0, checked[-1]), xlabel="share checked", ylabel="share of wrong labels found"
        )
        ax.get_legend().remove()
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, file)


def draw_retraining(frame: Any, file: Path) -> None:
    """Draw how well each method predicts leaving one out and training on halves, a panel a measure."""
    from matplotlib import pyplot

    from whence.report.measures import COLORS

    measures = ["leave-one-out, Spearman", "datamodeling score"]
    means = frame.groupby(["data", "method"], sort=False)[measures].mean()
    methods = list(frame["method"].unique())[::-1]
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for ax, measure in zip(axes, measures, strict=True):
        for color, name in zip(COLORS, frame["data"].unique(), strict=False):
            ax.plot(means.loc[name, measure][methods], methods, "o", color=color, label=name)
        ax.set(xlabel=measure + " correlation" * measure.endswith("Spearman"), xlim=(-0.1, 1.02))
        ax.grid(axis="both", color="0.9")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="center right")
    save_figure(figure, file)


def save_figure(figure: Any, file: Path) -> None:
    """Write an SVG that is the same bytes for the same numbers."""
    import matplotlib
    from matplotlib import pyplot

    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "whence"}):
        figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Print the tables."""
    options = parser(__doc__.split("\n\n")[0])
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--jobs", type=int, default=1, help="seeds at once")
    options.add_argument("--data", nargs="*", help="some of the data sets")
    options.add_argument("--models", nargs="*", default=["MLP", "linear", "CNN"], help="CNN: digits only")
    options.add_argument("--parts", nargs="*", default=["labels", "retraining"])
    options.add_argument("--write", type=Path, help="a folder for the tables and the numbers")
    options.add_argument("--plots", type=Path, help="a folder for the figures")
    chosen = options.parse_args()
    names = ["wine"] if chosen.smoke else (chosen.data or names_of())
    kinds = ["MLP"] if chosen.smoke else chosen.models
    seeds = 1 if chosen.smoke else chosen.seeds
    results = {}
    if "labels" in chosen.parts:
        frame = label_errors(names, kinds, seeds, chosen.smoke, chosen.jobs, chosen.write)
        results["label-errors"] = frame
        for kind in frame["model"].unique():
            results[f"label-errors-{kind}"] = table_of_labels(frame, kind)
    if "retraining" in chosen.parts:
        import pandas

        known = [name for name in names if name in ("digits", "breast cancer", "wine")]
        frame = pandas.concat([retraining(name, "MLP", min(seeds, 3), chosen.smoke) for name in known])
        results["retraining"] = frame
        for name in known:
            part = frame[frame["data"] == name].drop(columns=["data", "seed"])
            results[f"retraining-{name}"] = part.groupby("method", sort=False).mean()
    for title, table in results.items():
        if title in ("label-errors", "retraining"):
            if chosen.write:
                save(table, title, chosen.write)
            continue
        text = markdown(table)
        print(f"\n{title}\n\n{text}")
        if chosen.write:
            (chosen.write / f"quality-{title.lower().replace(' ', '-')}.md").write_text(text)
    if chosen.plots:
        draw(results, chosen.write, chosen.plots)


def draw(results: dict[str, Any], written: Path | None, folder: Path) -> None:
    """Draw what was measured now, and what was written before."""
    import matplotlib
    import pandas

    matplotlib.use("agg")
    frames = {title: results.get(title) for title in ("label-errors", "retraining")}
    for title in frames:
        if frames[title] is None and written and (written / f"quality-{title}.csv").is_file():
            frames[title] = pandas.read_csv(written / f"quality-{title}.csv")
    if frames["label-errors"] is not None:
        for kind in frames["label-errors"]["model"].unique():
            file = folder / f"quality-label-errors-{kind.lower()}.svg"
            draw_labels(frames["label-errors"], kind, file)
    if frames["retraining"] is not None:
        draw_retraining(frames["retraining"], folder / "quality-retraining.svg")


if __name__ == "__main__":
    main()
