"""A loss that the user computes of whole batches: what it reads of them is stored with each sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy
from whence.models.adapter import LossSpec

__all__ = ["HookedLoss"]


class Part(NamedTuple):
    """An array of a batch that the loss reads: where it stands, and its form."""

    path: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: Any


class HookedLoss:
    """The user's ``loss(outputs, batch)``, with what it reads of a batch as its target.

    Labels alone are a target as they are. Where it reads more, a target is a row of numbers for each
    sample, the labels first.

    Parameters
    ----------
    torch : module
    function : callable
    label_key : str
        Where batches are dicts, under which key the labels stand.
    """

    kind = ""
    is_on_rows = False
    is_on_tags = False
    factor = 1.0
    boundary: float | None = None

    def __init__(self, torch: Any, function: Any, label_key: str) -> None:
        self._torch = torch
        self.unreduced = function
        self.described = getattr(function, "__name__", type(function).__name__)
        self.settings: dict[str, Any] = {}
        self._label_key = label_key
        self._form: Any = None
        self._parts: list[Part] = []

    @property
    def n_label_columns(self) -> int | None:
        """How many columns of a target are labels, where others stand beside them."""
        return math.prod(self._parts[0].shape) if len(self._parts) > 1 else None

    def spec(self) -> LossSpec:
        """Return that no closed form is known."""
        return LossSpec(None, "", self.described)

    def learn(self, outputs: Any, batch: Any, is_along: bool) -> None:
        """See on a batch what the loss reads of it, besides the labels.

        Parameters
        ----------
        outputs : tensor
        batch : dict or tuple of tensors
        is_along : bool
            Whether the layer is applied along a sequence.
        """
        arrays = dict(_leaves(batch))
        labels = self._label_path(batch)
        if labels not in arrays:
            raise WhenceError("batch", "labels first, to see what the loss reads", "none", "Give labels.")
        read = self._read_by(lambda: self.unreduced(outputs, batch), arrays)
        others = [path for path in read if path != labels]
        if others and is_along:
            raise WhenceError(
                f"loss {self.described}",
                "one that reads labels alone, where the layer is applied along a sequence",
                f"one that reads {', '.join(map(str, others))} too",
                "Give labels that say what is to be left out, such as -100.",
            )
        self._parts = [
            Part(path, tuple(arrays[path].shape[1:]), arrays[path].dtype) for path in [labels, *others]
        ]
        self._form = _map(batch, lambda path, leaf: Part(path, tuple(leaf.shape[1:]), leaf.dtype))

    def target_of(self, batch: Any) -> np.ndarray:
        """Return what the loss reads of a batch, shape ``(n, ...)``."""
        arrays = dict(_leaves(batch))
        found = [arrays[part.path] for part in self._parts]
        if len(found) == 1:
            return as_numpy(found[0])
        rows = [as_numpy(array).reshape(len(array), -1).astype(np.float64) for array in found]
        return np.concatenate(rows, axis=1)

    def __call__(self, output: Any, target: Any) -> Any:
        """Return the loss of each row, shape ``(n,)``."""
        losses = self.unreduced(output, self._batch_of(output, target))
        if getattr(losses, "device", None) is not None and losses.device.type == "meta":
            raise WhenceError(
                f"loss {self.described}",
                "one that reads the same parts of every batch",
                "one that reads others than of the first",
                "Read all that it needs of every batch.",
            )
        return losses

    def _batch_of(self, output: Any, target: Any) -> Any:
        """Return a batch of these samples; parts that the loss does not read have no numbers."""
        held: dict[tuple[Any, ...], Any] = {}
        start, n = 0, int(target.shape[0])
        for part in self._parts:
            size = math.prod(part.shape)
            whole = len(self._parts) == 1
            values = target if whole else target[:, start : start + size].reshape(n, *part.shape)
            start += size
            held[part.path] = values.to(output.dtype if part.dtype.is_floating_point else part.dtype)

        def leaf(path: tuple[Any, ...], part: Part) -> Any:
            if path in held:
                return held[path]
            return self._torch.empty((n, *part.shape), dtype=part.dtype, device="meta")

        return _map(self._form, leaf)

    def _label_path(self, batch: Any) -> tuple[Any, ...]:
        return (self._label_key,) if isinstance(batch, Mapping) else (1,)

    def _read_by(self, compute: Any, arrays: dict[tuple[Any, ...], Any]) -> list[tuple[Any, ...]]:
        """Return which arrays take part in a computation."""
        torch, seen = self._torch, set[int]()

        class Watching(torch.overrides.TorchFunctionMode):  # type: ignore[misc,name-defined,unused-ignore]
            def __torch_function__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                seen.update(id(leaf) for leaf in torch.utils._pytree.tree_leaves((args, kwargs or {})))
                return function(*args, **(kwargs or {}))

        with torch.no_grad(), Watching():
            compute()
        return [path for path, array in arrays.items() if id(array) in seen]


def _leaves(batch: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    if isinstance(batch, Mapping):
        return [leaf for key, value in batch.items() for leaf in _leaves(value, (*path, key))]
    if isinstance(batch, list | tuple):
        return [leaf for key, value in enumerate(batch) for leaf in _leaves(value, (*path, key))]
    return [] if batch is None else [(path, batch)]


def _map(batch: Any, function: Any, path: tuple[Any, ...] = ()) -> Any:
    """Return a batch of the same form with ``function(path, leaf)`` in place of its arrays."""
    if isinstance(batch, Mapping):
        return {key: _map(value, function, (*path, key)) for key, value in batch.items()}
    if isinstance(batch, list | tuple) and not isinstance(batch, Part):
        return tuple(_map(value, function, (*path, key)) for key, value in enumerate(batch))
    return None if batch is None else function(path, batch)
