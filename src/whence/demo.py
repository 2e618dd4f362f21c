"""The demonstration: a small network, some wrong labels, and where its predictions come from.

Images of digits that come with scikit-learn are learned by a convolutional Keras model while one training
label in ten is wrong; then its predictions are explained, and the wrong labels looked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whence._arrays import import_extra
from whence.attribution import RepresenterPointLJE
from whence.explanation import Explanation, Suspects
from whence.ihvp import ExactIHVPFactory
from whence.models import InfluenceModel
from whence.progress import track
from whence.report.html import HOW_TO_READ, prediction_cards, suspects_table
from whence.report.page import Column, Fact, Page, Section, Table, check_file, number

__all__ = ["DEMO_SCORES", "Completeness", "DemoResult", "Digits", "run"]

#: What the training set is ranked by, with how the demo calls it. The loss is the baseline.
DEMO_SCORES = {
    "leave_one_out": "whence, leave-one-out",
    "self_influence": "LJE self-influence",
    "loss": "Training loss (baseline)",
}
#: Shares of the training set that somebody might check by hand.
CHECKED = (0.05, 0.10, 0.15)

N_EXPLAINED = 8
N_NEIGHBORS = 5
N_SUSPECTS_SHOWN = 24
N_TRAINING = 1437
BATCH_SIZE = 64
EPOCHS = 20

PACKAGES = ("tensorflow", "keras", "sklearn.datasets", "jinja2", "PIL.Image")


@dataclass(frozen=True)
class Digits:
    """Images of digits in two parts, some training labels wrong.

    Attributes
    ----------
    train_images, test_images : array of shape (n, 8, 8, 1), float32
        In [0, 1], 1 where there is ink.
    train_labels, test_labels : array of shape (n,), integers
        As the model sees them; those of the test images are right.
    true_labels : array of shape (n,), integers
        Those of the training images before some were changed.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    true_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def is_wrong(self) -> np.ndarray:
        """Whether each training label was changed, shape ``(n,)``."""
        return self.train_labels != self.true_labels


@dataclass(frozen=True)
class Completeness:
    """How well the values add up over some predictions.

    Attributes
    ----------
    mean_sum_gap, largest_sum_gap : float
        The difference between the summed values of all training samples and the prediction of the
        layer after one Newton step. Rounding only.
    mean_gap, largest_gap : float
        Between that prediction and the model's own.
    mean_prediction : float
        The mean of the model's own, for comparison.
    correlation : float
        Between that prediction and the model's own.
    """

    mean_sum_gap: float
    largest_sum_gap: float
    mean_gap: float
    largest_gap: float
    mean_prediction: float
    correlation: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes
    ----------
    path : Path
        The report.
    n_training, n_wrong, n_test, n_right : int
        Training images, wrong labels among them, test images, and how many are classified right.
    n_memorised : int
        How many of the wrong labels the model gives back when shown the image.
    n_checked : tuple of int
        How many training images are checked at each share.
    found : dict from score to tuple of int
        How many wrong labels are among those checked.
    completeness : Completeness
    seconds : float
    """

    path: Path
    n_training: int
    n_wrong: int
    n_test: int
    n_right: int
    n_memorised: int
    n_checked: tuple[int, ...]
    found: dict[str, tuple[int, ...]]
    completeness: Completeness
    seconds: float


def run(
    output: str | Path = "whence-demo.html",
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    n_training: int = N_TRAINING,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda step: None,
) -> DemoResult:
    """Train, explain, look for wrong labels, and write the report.

    Parameters
    ----------
    output : path, default="whence-demo.html"
        The HTML file to write; an existing one is replaced.
    seed : int, default=0
        Of the split, the wrong labels and the training.
    epochs : int
    n_training : int
        How many of the 1,797 images to train on; the rest is for testing.
    progress : bool, optional
        ``None`` shows progress bars on a terminal, ``True`` always, ``False`` never.
    say : callable, optional
        Called with a sentence as each step begins.

    Raises
    ------
    MissingExtraError
        If a package of the extra ``demo`` is not installed.
    WhenceError
        If the file cannot be written there.
    """
    start = time.perf_counter()
    file = check_file(output)
    say("Loading Keras")
    _load_packages(progress)
    digits = load_digits(seed, n_training)
    n_wrong = int(digits.is_wrong.sum())
    say(f"Training a small network on {len(digits.train_labels):,} images, {n_wrong} with a wrong label")
    net = _train(digits, seed, epochs, progress)

    say("Finding out what its predictions come from")
    train = _dataset(digits.train_images, digits.train_labels)
    test = _dataset(digits.test_images, digits.test_labels)
    lje = RepresenterPointLJE(InfluenceModel(net), train, ExactIHVPFactory(), seed=seed, progress=progress)
    everything = lje.explain(test, k=1)
    chosen = _choose(net.predict(digits.test_images, verbose=0), seed)
    explanation = lje.explain(
        _dataset(digits.test_images[chosen], digits.test_labels[chosen]), k=N_NEIGHBORS, ids=chosen
    )
    completeness = _completeness(lje, everything, test, train, progress)

    say("Looking for wrong labels")
    ranked = {score: lje.suspects(train, k=None, score=score) for score in DEMO_SCORES}
    n_checked = tuple(round(share * len(digits.train_labels)) for share in CHECKED)
    found = {
        score: tuple(int(digits.is_wrong[suspects.ids[:n]].sum()) for n in n_checked)
        for score, suspects in ranked.items()
    }
    by_us = ranked["leave_one_out"]
    result = DemoResult(
        path=file,
        n_training=len(digits.train_labels),
        n_wrong=n_wrong,
        n_test=len(digits.test_labels),
        n_right=int((everything.predictions == digits.test_labels).sum()),
        n_memorised=int((by_us.predictions == by_us.labels)[digits.is_wrong[by_us.ids]].sum()),
        n_checked=n_checked,
        found=found,
        completeness=completeness,
        seconds=time.perf_counter() - start,
    )
    say("Writing the report")
    _page(result, digits, explanation, by_us, seed).save(file)
    return result


# ------------------------------------------------------------------------------- data and model


def load_digits(seed: int, n_training: int = N_TRAINING) -> Digits:
    """Return the digits of scikit-learn, split at random, one training label in ten wrong."""
    datasets = import_extra("sklearn.datasets", "demo")
    rng = np.random.default_rng(seed)
    images, labels = datasets.load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    images = (images[order] / 16).astype("float32").reshape(-1, 8, 8, 1)
    labels = labels[order]
    true = labels[:n_training]
    given = true.copy()
    wrong = rng.choice(n_training, n_training // 10, replace=False)
    given[wrong] = (true[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return Digits(images[:n_training], given, true, images[n_training:], labels[n_training:])


def _load_packages(progress: bool | None) -> None:
    # TensorFlow writes of its start on the screen, which no one needs to read here; oneDNN is off
    # since its rounding differs from one processor to the next.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    for package in track(PACKAGES, "loading packages", len(PACKAGES), progress, "package"):
        import_extra(package, "demo")


def _dataset(images: np.ndarray, labels: np.ndarray) -> Any:
    tf = import_extra("tensorflow", "demo")
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH_SIZE)


def _train(digits: Digits, seed: int, epochs: int, progress: bool | None) -> Any:
    """Return a small convolutional network, trained through ``tf.data``."""
    keras = import_extra("keras", "demo")
    tf = import_extra("tensorflow", "demo")
    keras.utils.set_random_seed(seed)
    net = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(10, kernel_regularizer=keras.regularizers.L2(5e-3), name="logits"),
        ],
        name="digits",
    )
    net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    n_images = len(digits.train_labels)
    shuffled = tf.data.Dataset.from_tensor_slices((digits.train_images, digits.train_labels))
    shuffled = shuffled.shuffle(n_images, seed=seed).batch(BATCH_SIZE)
    n_steps = epochs * len(shuffled)
    steps = track(range(n_steps), "training", n_steps, progress, "step")
    bar = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: next(steps, None),
        on_train_end=lambda logs: next(steps, None),
    )
    net.fit(shuffled, epochs=epochs, verbose=0, shuffle=False, callbacks=[bar])
    return net


# -------------------------------------------------------------------------------------- questions


def _choose(logits: np.ndarray, seed: int) -> np.ndarray:
    """Return the test images to explain: half those with the closest decision, half drawn at random."""
    two = np.sort(logits, axis=1)[:, -2:]
    by_margin = np.argsort(two[:, 1] - two[:, 0], kind="stable")
    closest, rest = by_margin[: N_EXPLAINED // 2], by_margin[N_EXPLAINED // 2 :]
    rng = np.random.default_rng(seed)
    return np.concatenate([closest, np.sort(rng.choice(rest, N_EXPLAINED // 2, replace=False))])


def _completeness(
    lje: RepresenterPointLJE, everything: Explanation, test: Any, train: Any, progress: bool | None
) -> Completeness:
    """Add up the values of all training samples for every test image, and compare."""
    nested = lje.estimate_influence_values_in_batches(test, train)
    sums = []
    for _, values in track(nested, "adding up all values", len(test), progress):
        parts = [np.asarray(part, dtype=np.float64).sum(axis=1) for _, part in values]
        sums.append(np.sum(parts, axis=0))
    sum_gap = np.abs(np.concatenate(sums) - everything.totals)
    gap = np.abs(everything.totals - everything.pre_activations)
    return Completeness(
        mean_sum_gap=float(sum_gap.mean()),
        largest_sum_gap=float(sum_gap.max()),
        mean_gap=float(gap.mean()),
        largest_gap=float(gap.max()),
        mean_prediction=float(everything.pre_activations.mean()),
        correlation=float(np.corrcoef(everything.totals, everything.pre_activations)[0, 1]),
    )


# ----------------------------------------------------------------------------------------- report


def _page(
    result: DemoResult, digits: Digits, explanation: Explanation, suspects: Suspects, seed: int
) -> Page:
    paper = 1 - digits.train_images  # ink on paper, as a person would see it
    notes = {int(i): f"was {digits.true_labels[i]}" for i in np.flatnonzero(digits.is_wrong).tolist()}
    cards = prediction_cards(
        explanation,
        samples=(1 - digits.test_images)[explanation.sample_ids],
        training_samples=paper,
        notes=notes,
        sample_noun="test image",
        training_noun="training image",
    )
    table = suspects_table(
        suspects,
        training_samples=paper,
        notes=notes,
        notes_title="Changed by the demo",
        k=N_SUSPECTS_SHOWN,
    )
    return Page(
        "Which training images do these predictions come from?",
        lead=[
            f"A small convolutional network learned to read digits from {result.n_training:,} images. "
            f"Before the training, {result.n_wrong} of their labels, one in ten, were replaced by wrong "
            "ones. This page shows what its predictions come from, and how many of the wrong labels come "
            "to light.",
        ],
        facts=_facts(result),
        sections=[
            Section(
                "Predictions",
                [
                    HOW_TO_READ,
                    f"The first half of these {len(explanation)} are the test images on which the network "
                    "decides most narrowly, the second half were drawn at random. Where the demo changed "
                    "the label of a training image, a mark says what it was before.",
                ],
                cards,
            ),
            _detection_section(result, table),
            _completeness_section(result),
        ],
        about=explanation.about | {"seed": seed},
    )


def _facts(result: DemoResult) -> list[Fact]:
    ours, baseline = result.found["leave_one_out"][1], result.found["loss"][1]
    gaps = result.completeness
    return [
        Fact(
            "Test images read right",
            f"{result.n_right / result.n_test:.1%}",
            f"{result.n_right} of {result.n_test}, judged by their right labels",
        ),
        Fact(
            "Wrong labels found",
            f"{ours} of {result.n_wrong}",
            f"in the first 10% checked; {baseline} if ranked by training loss",
        ),
        Fact(
            "All values add up to within",
            number(gaps.largest_sum_gap),
            f"in each of {result.n_test} predictions: rounding",
        ),
        Fact(
            "Distance to the model itself",
            number(gaps.mean_gap, digits=2),
            f"on average; its own values are {number(gaps.mean_prediction, digits=2)} on average",
        ),
    ]


def _detection_section(result: DemoResult, suspects: Table) -> Section:
    def row(name: str, counts: Sequence[int]) -> list[str]:
        return [name, *(f"{count} ({count / result.n_wrong:.0%})" for count in counts)]

    by_chance = [round(n * result.n_wrong / result.n_training) for n in result.n_checked]
    rows = [row(name, result.found[score]) for score, name in DEMO_SCORES.items()]
    rows.append(row("In any order (expected)", by_chance))
    rows.append(row("The most there can be", [min(n, result.n_wrong) for n in result.n_checked]))
    heads = [f"First {part:.0%} ({n})" for part, n in zip(CHECKED, result.n_checked, strict=True)]
    caption = f"How many of the {result.n_wrong} wrong labels are among the training images checked first"
    return Section(
        "Labels to look at first",
        [
            "If the last layer had not been shown an image, how far would it be from the label given? "
            "That is the leave-one-out score: the pre-activation of the strongest other class minus that "
            "of the given one, to first order. Above zero, the layer would decide against the label.",
            "The training loss of each image needs no inverse and is a strong baseline: as long as a "
            "network has not learned its wrong labels by heart, expect about the same from both. This one "
            f"gives back {result.n_memorised} of its {result.n_wrong} wrong labels.",
        ],
        tables=[
            Table(
                caption,
                [Column("Ranked by"), *(Column(head, numeric=True) for head in heads)],
                rows,
            ),
            suspects,
        ],
    )


def _completeness_section(result: DemoResult) -> Section:
    gaps = result.completeness
    table = Table(
        f"Over all {result.n_test} test images, in units of the pre-activation of the predicted class",
        [Column("Comparison"), Column("Mean", numeric=True), Column("Largest", numeric=True)],
        [
            [
                "Sum of all values against the layer after one Newton step",
                number(gaps.mean_sum_gap),
                number(gaps.largest_sum_gap),
            ],
            [
                "The layer after one Newton step against the model itself",
                number(gaps.mean_gap),
                number(gaps.largest_gap),
            ],
        ],
    )
    return Section(
        "How complete this is",
        [
            f"The values of all {result.n_training:,} training images add up to a prediction, and the "
            "first line of the table shows how exactly. But it is the prediction that the last layer "
            "would make after one Newton step towards the optimum of its loss, not quite that of the "
            "model as it was trained. The second line says how far apart the two are; their correlation "
            f"is {number(gaps.correlation, digits=2)}, and the model's own predictions are "
            f"{number(gaps.mean_prediction, digits=2)} on average.",
            "Only the last layer is taken apart. What the layers below it learned from whom is not "
            "attributed, and no value says what a network trained without that image would do.",
        ],
        tables=[table],
    )
