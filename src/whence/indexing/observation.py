"""What a layer sees of a batch, and what a pass over a training set needs of a model."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from whence.arrays.base import Array
from whence.data.base import Batch, Dataset
from whence.ihvp.collected import CurvaturePart
from whence.layers.rows import Rows

__all__ = ["Observation", "Observer", "PickledObserver", "Watcher"]


class Observation(NamedTuple):
    """What the target layer sees of a batch.

    Attributes
    ----------
    phi : array of shape (n, d) or (n, L, d)
        Features, with a constant 1 if the layer has a bias; of ``L`` positions along a sequence.
    target : array of shape (n, ...) or (n, L, ...), or None
        Labels in the loss's form; ``None`` if the batch has none.
    weight : array of shape (n,) or (n, L), or None
        What each sample, or each position, counts: 0 where a mask hides it.
    visible : array of shape (n, L), bool, or None
        Which positions of a sequence the model's mask does not hide, whatever their labels and weights.
    inputs : tree of arrays
        What the model was given, where rows of several layers are to be recorded from it.
    places : (int, array of shape (n,)) or None
        ``L``, and which position of each sample was chosen, where one was.
    """

    phi: Array
    target: np.ndarray | None
    weight: np.ndarray | None
    visible: np.ndarray | None = None
    inputs: Any = None
    places: tuple[int, np.ndarray] | None = None


class PickledObserver(Protocol):
    """A model on its way to other processes."""

    def wrapped(self) -> Observer:
        """Return the model, in this process."""


class Watcher(Protocol):
    """Whoever sees whether a model is still what it was."""

    def difference(self, *, thoroughly: bool = True) -> str | None:
        """Return what of the model is not what it was, or None; without reading it all, if so asked."""


class Observer(Protocol):
    """What a pass over a training set needs of a model."""

    def open(self, dataset: Any, argument: str = "dataset") -> Dataset:
        """Return a dataset as batches of what this model takes."""

    def warn_once(self, message: str, dataset: Any) -> None:
        """Warn of something about a dataset, unless that was said of it before."""

    def observe(self, batch: Batch) -> Observation:
        """Return features, targets and weights of a batch."""

    def training_rows(self, seen: Observation) -> tuple[Rows | None, CurvaturePart | None]:
        """Return gradient and curvature rows of a batch where several layers are explained."""

    def theta(self) -> np.ndarray:
        """Return the layer's weights as they are now."""

    def check_losses(self, seen: Observation, theta: np.ndarray, where: str) -> None:
        """Raise unless every sample of a batch has a finite loss."""

    def identity(self) -> dict[str, Any]:
        """Return what stored features belong to."""

    def state(self) -> dict[str, str]:
        """Return digests of all that shapes the features."""

    def watch(self, before: dict[str, str] | None = None) -> Watcher:
        """Return who sees whether the model stays what it is, or was at ``before``."""

    def differs_in(self, identity: dict[str, Any]) -> list[str]:
        """Return the names of what differs from the model that was pickled elsewhere."""

    def pickled(self, make: Any = None) -> PickledObserver:
        """Return the model for other processes, where ``make()`` makes it, if given."""
