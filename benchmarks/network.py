"""What scores over whole networks predict of training them again.

    python benchmarks/network.py [--smoke] [--tasks mlp cnn sst2] [--truth FOLDER --train] [--write FOLDER]

The linear datamodeling score: the network is trained again on 120 random halves of its training set, three
seeds each. With scores ``v (T, N)``, positive where a training sample speaks for the label of an explained
one, the margin ``log p_y - log(1 - p_y)`` of a half is predicted by the sum of ``v`` over it; Spearman's
correlation over the halves with the mean margin of the seeds; the mean over 100 explained samples. Chance
in a single training bounds it from above: the square root of the truth's reliability is given beside it.

Tasks: a 64-128-64-10 network on digits; a small convolutional network on digits; an embedding bag with two
dense layers on SST-2, if the folder $WHENCE_DATA holds it. The truth of the first is read from
``retraining/digits_mlp.npz`` in that folder, of the others from ``--truth``, where ``--train`` computes it,
half by half: what is there is kept.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _common import parser

N_HALVES, N_SEEDS, N_EXPLAINED, N_MODELS = 120, 3, 100, 5
DECAY = 1e-3


@dataclass
class Task:
    """A network and its data.

    Attributes
    ----------
    name : str
    make : callable
        A new network.
    train, test : (array, array)
    epochs : int
    rate : float
        SGD with momentum .9, batches of 64, the learning rate on a cosine to 0, L2 of 1e-3.
    """

    name: str
    make: Callable[[], Any]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    epochs: int
    rate: float


def digits(as_images: bool) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return 1,437 digits to train on and 100 to explain."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x / 16).astype(np.float32)[order], y[order]
    x = x.reshape(-1, 1, 8, 8) if as_images else x
    return (x[:1437], y[:1437]), (x[1437:1537], y[1437:1537])


def sentences() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], int]:
    """Return the words of SST-2 as numbers, 0 for none, and how many numbers there are."""
    folder = Path(os.environ["WHENCE_DATA"]) / "sst2"

    def read(name: str) -> tuple[list[list[str]], np.ndarray]:
        lines = (folder / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        pairs = [line.rsplit("\t", 1) for line in lines]
        return [text.split() for text, _ in pairs], np.asarray([int(label) for _, label in pairs])

    train, y = read("train")
    test, z = read("dev")
    words: dict[str, int] = {}
    for text in train:
        for word in text:
            words[word] = words.get(word, 0) + 1
    kept = sorted(words, key=lambda word: (-words[word], word))[:4998]
    numbers = {word: place + 2 for place, word in enumerate(kept)}  # 1 is any other word

    def coded(texts: list[list[str]]) -> np.ndarray:
        rows = np.zeros((len(texts), 56), dtype=np.int64)
        for row, text in zip(rows, texts, strict=True):
            codes = [numbers.get(word, 1) for word in text][:56]
            row[: len(codes)] = codes
        return rows

    return (coded(train), y), (coded(test)[:N_EXPLAINED], z[:N_EXPLAINED]), 5000


def tasks_of(names: list[str]) -> list[Task]:
    """Return the tasks that are asked for and can be had."""
    from torch import nn

    def mlp() -> Any:
        return nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(64, 128), relu1=nn.ReLU(), fc2=nn.Linear(128, 64), relu2=nn.ReLU(),
                fc3=nn.Linear(64, 10),
            )
        )  # fmt: skip

    def cnn() -> Any:
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 16, 3, padding=1), relu1=nn.ReLU(), conv2=nn.Conv2d(16, 32, 3, stride=2),
                relu2=nn.ReLU(), flat=nn.Flatten(), fc1=nn.Linear(288, 32), relu3=nn.ReLU(),
                fc2=nn.Linear(32, 10),
            )
        )  # fmt: skip

    made = {}
    if "mlp" in names:
        made["mlp"] = Task("mlp", mlp, *digits(False), 40, 0.05)
    if "cnn" in names:
        made["cnn"] = Task("cnn", cnn, *digits(True), 30, 0.02)
    if "sst2" in names and (Path(os.environ.get("WHENCE_DATA", "missing")) / "sst2").is_dir():
        train, test, n_words = sentences()

        def text() -> Any:
            return nn.Sequential(
                OrderedDict(
                    words=nn.EmbeddingBag(n_words, 64, mode="mean", padding_idx=0),
                    fc1=nn.Linear(64, 32), relu=nn.ReLU(), fc2=nn.Linear(32, 2),
                )
            )  # fmt: skip

        made["sst2"] = Task("sst2", text, train, test, 20, 0.5)
    return [made[name] for name in names if name in made]


# ---- training -----------------------------------------------------------------------------------


def trained(task: Task, rows: np.ndarray, seed: int, epochs: int | None = None) -> Any:
    """Return a network trained on some rows of the training set."""
    import torch

    torch.manual_seed(seed)
    net, epochs = task.make(), task.epochs if epochs is None else epochs
    x, y = torch.tensor(task.train[0][rows]), torch.tensor(task.train[1][rows])
    optimizer = torch.optim.SGD(net.parameters(), lr=task.rate, momentum=0.9, weight_decay=DECAY)
    n_steps = epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for some in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[some]), y[some]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def logits_of(net: Any, x: np.ndarray) -> np.ndarray:
    """Return a network's outputs."""
    import torch

    with torch.no_grad():
        return np.asarray(net(torch.tensor(x)).numpy())


def halves(task: Task, n_halves: int) -> np.ndarray:
    """Return the rows of each half."""
    rng, n = np.random.default_rng(1), len(task.train[1])
    return np.stack([np.sort(rng.permutation(n)[: n // 2]) for _ in range(n_halves)])


def truth_of(
    task: Task, folder: Path | None, train: bool, n_halves: int, n_seeds: int, epochs: int | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the halves and the logits ``(halves, seeds, T, C)``, or None if they are not there."""
    shared = Path(os.environ.get("WHENCE_DATA", "missing")) / "retraining" / f"digits_{task.name}.npz"
    if shared.is_file():
        stored = np.load(shared)
        return stored["subsets"], stored["logits"]
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    subsets = halves(task, n_halves)
    logits = []
    for number, rows in enumerate(subsets):
        file = folder / f"{task.name}-{number:03d}.npy"
        if not file.is_file():
            if not train:
                return None
            runs = [logits_of(trained(task, rows, seed, epochs), task.test[0]) for seed in range(n_seeds)]
            np.save(file, np.stack(runs))
        logits.append(np.load(file))
    return subsets, np.stack(logits)


def models_of(task: Task, n_models: int, epochs: int | None) -> list[Any]:
    """Return networks trained on all rows, those of the truth's file where it holds some."""
    import torch

    shared = Path(os.environ.get("WHENCE_DATA", "missing")) / "retraining" / f"digits_{task.name}.npz"
    if not shared.is_file():
        every = np.arange(len(task.train[1]))
        return [trained(task, every, seed, epochs) for seed in range(n_models)]
    stored, models = np.load(shared), []
    for number in range(n_models):
        net = task.make()
        names = [name for name in stored if name.startswith("models.")]
        state = {name.removeprefix("models."): torch.tensor(stored[name][number]) for name in names}
        net.load_state_dict(state)
        models.append(net.eval())
    return models


# ---- scores -------------------------------------------------------------------------------------


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return ``log p_y - log(1 - p_y)``, shape ``(..., T)``."""
    u = logits.astype(np.float64)
    given = np.take_along_axis(u, np.broadcast_to(labels[:, None], (*u.shape[:-1], 1)), axis=-1)[..., 0]
    others = np.where(np.arange(u.shape[-1]) == labels[:, None], -np.inf, u)
    largest = others.max(axis=-1, keepdims=True)
    return given - (np.log(np.exp(others - largest).sum(axis=-1)) + largest[..., 0])


def datamodeling_score(values: np.ndarray, subsets: np.ndarray, truth: np.ndarray) -> float:
    """Return the linear datamodeling score of ``values (T, N)`` against margins ``(halves, T)``."""
    from scipy.stats import spearmanr

    predicted = np.stack([values[:, rows].sum(axis=1) for rows in subsets])
    return float(np.mean([spearmanr(predicted[:, t], truth[:, t])[0] for t in range(values.shape[0])]))


def ceiling(of_seeds: np.ndarray) -> float:
    """Return the most that can be reached: the root of the reliability of means over seeds."""
    n_seeds = of_seeds.shape[1]
    if n_seeds < 2:
        return float("nan")
    pairs = [(a, b) for a in range(n_seeds) for b in range(a)]
    each = [
        np.corrcoef(of_seeds[:, a, t], of_seeds[:, b, t])[0, 1]
        for a, b in pairs
        for t in range(of_seeds.shape[2])
    ]
    single = float(np.mean(each))
    return float(np.sqrt(n_seeds * single / (1 + (n_seeds - 1) * single)))


def methods_of() -> dict[str, tuple[Any, Callable[..., Any]]]:
    """Return the methods compared: which layers, and how each is made."""
    import whence

    def influence(damping: float, factory: Any = whence.ExactIHVPFactory) -> Callable[..., Any]:
        return lambda model, train: whence.InfluenceFunctions(model, train, factory(damping=damping))

    return {
        "last layer, exact, damping 1e-2": (-1, influence(1e-2)),
        "all layers, exact, damping 1e-2": ("all", influence(1e-2)),
        "all layers, exact, damping 1e-3": ("all", influence(1e-3)),
        "all layers, EK-FAC, damping 1e-2": ("all", influence(1e-2, whence.KroneckerIHVPFactory)),
        "all layers, EK-FAC, damping 1e-3": ("all", influence(1e-3, whence.KroneckerIHVPFactory)),
        "all layers, gradients": ("all", lambda m, train: whence.GradientDotProduct(m, train)),
        "all layers, gradient cosines": ("all", lambda m, train: whence.GradientCosine(m, train)),
    }


def table_of(task: Task, truth: tuple[np.ndarray, np.ndarray], models: list[Any]) -> list[list[str]]:
    """Return the rows of a task's table: method, score of each model and of their mean, seconds."""
    import torch

    import whence

    subsets, logits = truth
    of_seeds = margins(logits, task.test[1])
    mean = of_seeds.mean(axis=1)
    rows = []
    for name, (layers, make) in methods_of().items():
        made, scores = [], []
        start = time.perf_counter()
        for net in models:
            loss = torch.nn.CrossEntropyLoss()
            model = whence.InfluenceModel(net, layers, loss_function=loss, weight_decay=DECAY)
            made.append(make(model, task.train))
            scores.append(datamodeling_score(made[-1].influences(task.test), subsets, mean))
        seconds = (time.perf_counter() - start) / len(models)
        together = datamodeling_score(whence.average(made).influences(task.test), subsets, mean)
        rows.append([name, f"{np.mean(scores):.3f}", f"{together:.3f}", f"{seconds:.1f}"])
        print(f"{task.name}: {' | '.join(rows[-1])}", flush=True)
    rows.append(["most that can be reached", f"{ceiling(of_seeds):.3f}", "", ""])
    return rows


def main() -> None:
    """Print the table of each task."""
    options = parser(__doc__ or "")
    options.add_argument("--tasks", nargs="+", default=["mlp", "cnn", "sst2"])
    options.add_argument("--truth", type=Path, help="a folder of what training again gave")
    options.add_argument("--train", action="store_true", help="compute the truth where it is missing")
    options.add_argument("--write", type=Path, help="a folder for the tables")
    options.add_argument("--models", type=int, default=N_MODELS)
    given = options.parse_args()
    n_halves, n_seeds, epochs = (6, 2, 1) if given.smoke else (N_HALVES, N_SEEDS, None)
    for task in tasks_of(given.tasks):
        truth = truth_of(task, given.truth, given.train or given.smoke, n_halves, n_seeds, epochs)
        if truth is None:
            print(f"{task.name}: no truth; compute it with --truth FOLDER --train")
            continue
        models = models_of(task, 1 if given.smoke else given.models, epochs)
        head = ["method", "one model", f"{len(models)} averaged", "seconds a model"]
        rows = table_of(task, truth, models)
        lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
        print("\n".join(lines))
        if given.write is not None:
            given.write.mkdir(parents=True, exist_ok=True)
            (given.write / f"network-{task.name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
