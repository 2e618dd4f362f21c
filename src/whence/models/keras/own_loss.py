"""The loss that a Keras model computes itself: compared with the one that it was compiled with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy
from whence.models.keras.losses import PerSampleLoss

__all__ = ["LossOfRows", "overrides", "own_loss_of", "tell_own_loss"]

#: Samples of the first batch on which a model's own loss is compared.
COMPARED_ROWS = 16

#: ``own(labels, output)``: the loss of a batch, one number.
Own = Callable[[Any, Any], Any]


def overrides(thing: Any, method: str) -> bool:
    """Return whether an object of Keras has a method of the user's in place of Keras's own."""
    if method in vars(thing):
        return True
    owner = next((kind for kind in type(thing).__mro__ if method in vars(kind)), None)
    return owner is not None and not f"{owner.__module__}.".startswith("keras.")


def own_loss_of(keras: Any, model: Any, loss: Any, is_given: bool) -> tuple[Own, str] | None:
    """Return what computes a model's loss in a way that is the user's own, and its name; None if nothing.

    Parameters
    ----------
    keras : module
    model : keras.Model
    loss : keras.losses.Loss, callable or None
        That given, or that compiled with.
    is_given : bool
        Whether the user named the loss, and so means that one whatever the model's training does.

    Raises
    ------
    WhenceError
        If a training step of the user's own computes it.
    """
    kind = type(model).__name__
    if not is_given and overrides(model, "compute_loss"):
        return partial(_computed, model), f"{kind}.compute_loss"
    if not is_given and overrides(model, "train_step"):
        raise WhenceError(
            "loss_function",
            "the loss that the model was trained with, since it has a training step of its own",
            f"a {kind} with train_step, and no loss_function",
            "Name it: InfluenceModel(net, loss_function=net.loss) if the step computes the compiled loss.",
        )
    if isinstance(loss, keras.losses.Loss) and overrides(loss, "__call__"):
        return loss, type(loss).__name__
    return None


def _computed(model: Any, labels: Any, output: Any) -> Any:
    return model.compute_loss(None, labels, output, None)


class LossOfRows(PerSampleLoss):
    """The loss of each sample as the model computes it for a batch of that sample alone."""

    def __init__(self, keras: Any, found: tuple[Own, str], like: PerSampleLoss | None) -> None:
        self._own, described = found
        super().__init__(keras, None if like is None else like.loss, described)
        self._is_compiled = like is not None

    def identity(self) -> tuple[Any, dict[str, Any]]:
        function, settings = super().identity() if self._is_compiled else (None, {})
        owner: Any = self._own.args[0] if isinstance(self._own, partial) else self._own
        method = owner.compute_loss if isinstance(self._own, partial) else type(owner).__call__
        plain = {
            name: value
            for name, value in vars(owner).items()
            if not name.startswith("_") and isinstance(value, bool | int | float | str)
        }
        plain.pop("name", None)
        return method, {"compiled": function, **settings, **plain}

    @property
    def is_on_tags(self) -> bool:
        return False

    @property
    def boundary(self) -> None:
        """None: it may renumber the classes, so that labels name no outputs."""
        return None

    def __call__(self, labels: Any, output: Any, n_kept: int = 1) -> Any:
        ops = self._keras.ops
        if n_kept != 1:
            raise WhenceError(
                f"loss {self.described}",
                "the loss of each position, for a layer that is applied along a sequence",
                "one that the model computes of whole samples",
                "Give it as a function: InfluenceModel(net, loss_function=...).",
            )

        def one(row: tuple[Any, Any]) -> Any:
            return ops.mean(self._own(row[0][None], row[1][None]))

        return ops.vectorized_map(one, (ops.convert_to_tensor(labels), output))


def tell_own_loss(
    keras: Any, found: tuple[Own, str], compiled: PerSampleLoss | None, labels: Any, output: Any
) -> PerSampleLoss:
    """Return the compiled loss if the model's own is the same on a batch, else its own, row by row.

    Parameters
    ----------
    keras : module
    found : tuple
        Of :func:`own_loss_of`.
    compiled : PerSampleLoss or None
    labels, output : tensors
        Of a batch.

    Raises
    ------
    WhenceError
        If the model's own loss of a batch is neither mean nor sum of what samples have by themselves.
    """
    own, described = found
    rows = LossOfRows(keras, found, compiled)
    failure: Exception | None = None
    for loss in (compiled, rows):
        try:
            if loss is not None and _explains(keras, loss, own, labels, output):
                return loss
        except Exception as error:  # whatever the user's code raises without the model's inputs
            failure = error
    reason = f", which fails without the model's inputs ({type(failure).__name__}: {failure})"
    raise WhenceError(
        f"loss {described}",
        "a loss of a batch that is the mean, or the sum, of what its samples have alone",
        f"one that is neither{reason[:300] if failure is not None else ''}",
        "Give the loss of each sample: InfluenceModel(net, loss_function=a function of (y_true, y_pred)).",
    )


def _explains(keras: Any, loss: PerSampleLoss, own: Own, labels: Any, output: Any) -> bool:
    """Return whether losses of samples give the model's own loss of a batch, and of half of it."""
    n_rows = int(output.shape[0])
    found = set()
    for n in (n_rows, (n_rows + 1) // 2):
        whole = float(as_numpy(keras.ops.mean(own(labels[:n], output[:n]))))
        values = as_numpy(loss(labels[:n], output[:n])).astype(np.float64)
        if values.shape[0] != n:
            return False
        values = values.reshape(n, -1).mean(axis=1)
        how = {"mean": values.mean(), "sum": values.sum()}
        scale = np.abs(values).max(initial=0) + 1e-6
        found.add(tuple(name for name, value in how.items() if abs(value - whole) <= 1e-4 * scale))
    return len(found) == 1 and found != {()}
