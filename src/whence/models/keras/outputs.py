"""Which of a Keras model's outputs comes from the target layer, and with which of its losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.data.base import leaves

__all__ = ["Outputs"]


class Outputs:
    """The one output that is explained, of a model that has one or several.

    Parameters
    ----------
    model : keras.Model
    layer_name : str
        The target layer, for messages.

    Attributes
    ----------
    number : int or None
        Which one, in the order of :func:`~whence.data.base.leaves`; ``None`` before :meth:`decide`.
    is_single : bool
        Whether the model has one output.
    """

    def __init__(self, model: Any, layer_name: str) -> None:
        self._model = model
        self._layer_name = layer_name
        self.number: int | None = None
        self.is_single = True
        self._names: list[str] = []

    def of(self, output: Any) -> Any:
        """Return the chosen output."""
        if hasattr(output, "shape"):
            return output
        if self.number is None:
            raise WhenceError(
                f"layer {self._layer_name!r}",
                "a batch first, to see which of the model's outputs comes from it",
                f"{len(leaves(output))} outputs",
                "Index the training set, or call features(batch).",
            )
        return leaves(output)[self.number]

    def decide(self, output: Any, changed: Callable[[], tuple[Any, Any]]) -> None:
        """Choose the output that changes with the layer.

        Parameters
        ----------
        output : tensor, or list, tuple or dict of tensors
            What the model gives.
        changed : callable
            Returns the same for two different states of the layer.

        Raises
        ------
        WhenceError
            If several outputs, or none, come from the layer.
        """
        self.number, self.is_single = 0, hasattr(output, "shape")
        if self.is_single:
            return
        one, other = (leaves(form) for form in changed())
        moves = [
            number
            for number, (a, b) in enumerate(zip(one, other, strict=True))
            if not np.array_equal(np.asarray(a), np.asarray(b))
        ]
        self._names = self._named(output, len(one))
        if len(moves) == 1:
            self.number = moves[0]
            return
        self.number = None
        names = ", ".join(self._names[number] for number in moves) or "none"
        raise WhenceError(
            f"layer {self._layer_name!r}",
            "a layer that one of the model's outputs comes from",
            f"{len(moves)} of {len(one)} outputs that change with it: {names}",
            "Choose the layer of one output, or explain a model of one: keras.Model(net.inputs, "
            "net.outputs[0]), with its own loss.",
        )

    def _named(self, output: Any, count: int) -> list[str]:
        if isinstance(output, Mapping):
            return [str(key) for key in sorted(output)]
        names = getattr(self._model, "output_names", None) or []
        return list(names) if len(names) == count else [f"output {number}" for number in range(count)]

    def part_of(self, compiled: Any) -> Any:
        """Return what belongs to the chosen output, of losses or their weights as given to ``compile``."""
        if isinstance(compiled, Mapping):
            name = self._names[self.number] if self._names and self.number is not None else None
            if name is None and len(compiled) == 1:
                return next(iter(compiled.values()))
            return compiled.get(name)
        if isinstance(compiled, list | tuple):
            fits = self.number is not None and self.number < len(compiled)
            return compiled[self.number] if fits else None  # type: ignore[index]
        return compiled
