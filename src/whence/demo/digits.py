"""The digits of scikit-learn, some of whose labels are made wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whence.arrays.base import import_extra

__all__ = ["N_TRAINING", "Digits", "load_digits"]

#: How many of the images are for training.
N_TRAINING = 1437


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
