"""The demonstration: a small network, some wrong labels, and where its predictions come from.

Images of digits that come with scikit-learn are learned by a convolutional Keras model while one training
label in ten is wrong; then its predictions are explained, and the wrong labels looked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from whence._files import check_file
from whence.answers.explanation import Explanation
from whence.answers.representers import RepresenterPointLJE
from whence.arrays.base import import_extra
from whence.demo.digits import N_TRAINING, Digits, load_digits
from whence.demo.report import CHECKED, DEMO_SCORES, Completeness, DemoResult, demo_page
from whence.ihvp import ExactIHVPFactory
from whence.models import InfluenceModel
from whence.progress import track
from whence.report.page import PAGE

__all__ = ["run"]

N_EXPLAINED = 8
N_NEIGHBORS = 5
BATCH_SIZE = 64
EPOCHS = 20

PACKAGES = ("tensorflow", "keras", "sklearn.datasets", "jinja2", "PIL.Image")


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
        The HTML file to write; an older page of whence is replaced.
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
    file = check_file(output, PAGE)
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
    demo_page(result, digits, explanation, by_us, seed).save(file)
    return result


# ------------------------------------------------------------------------------- data and model


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
