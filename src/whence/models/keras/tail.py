"""What a Keras model does after its target layer, as a function of the layer's pre-activations."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.data.base import map_leaves
from whence.models.keras.losses import PerSampleLoss

__all__ = ["KerasTail", "Template", "intercepted"]

#: Layers are changed while they are intercepted, which all threads see.
_INTERCEPTING = threading.RLock()


class KerasTail:
    """The target layer's activation and all layers behind it, in inference mode.

    The whole model is called, with the layer's pre-activations put in place: what stands before the
    layer is run on given inputs for its form only, and pruned where the call is compiled.

    Parameters
    ----------
    keras : module
    model : keras.Model
    layer : keras.layers.Dense
    applied : keras.layers.Layer
        What the model calls: the layer itself, or the ``TimeDistributed`` around it.
    call : callable
        ``call(inputs)`` is what the model gives.
    choose : callable
        ``choose(output)`` is the one output of that which is explained.
    """

    def __init__(
        self,
        keras: Any,
        model: Any,
        layer: Any,
        applied: Any,
        call: Callable[[Any], Any],
        choose: Callable[[Any], Any],
    ) -> None:
        self._keras = keras
        self._model = model
        self._layer = layer
        self._applied = applied
        self._call = call
        self._choose = choose

    def __call__(self, inputs: Any, u: Any, precision: str | None = None) -> Any:
        """Return the model's output if the layer's pre-activations were ``u``.

        Parameters
        ----------
        inputs : tree of arrays
            As many rows as ``u``.
        u : tensor of shape (n, ..., C)
        precision : {"float64", "float32"}, optional
            What the layers behind the target layer compute in; ``None`` leaves it to each layer.
            Weights keep their values: they are cast on the way.
        """
        return self._choose(self.whole(inputs, u, precision))

    def whole(self, inputs: Any, u: Any, precision: str | None = None) -> Any:
        """Return all that the model gives if the layer's pre-activations were ``u``."""
        with ExitStack() as restored:

            def replaced(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                if precision is not None:
                    restored.enter_context(_computing_in(self._keras, self._model, precision))
                dtype = precision or self._layer.compute_dtype
                return self._layer.activation(self._keras.ops.cast(u, dtype))

            with intercepted(self._applied, replaced):
                return self._call(inputs)

    def at_rows(self, template: Template, u: Any, precision: str) -> Any:
        """Return the output ``(m, ...)`` for rows ``u (m, C)``: samples, or positions of any."""
        output = self._at_whole(template, template.whole(self._keras.ops, u), precision)
        return template.rows(self._keras.ops, output, u)

    def loss_at_rows(self, loss: PerSampleLoss, template: Template) -> Callable[..., Any]:
        """Return ``ell(u, y, precision)``, the loss of each row, shape ``(m,)``."""
        ops, n_kept = self._keras.ops, 1 + len(template.positions)

        def ell(u: Any, y: Any, precision: str) -> Any:
            output = self._at_whole(template, template.whole(ops, u), precision)
            return template.rows(ops, loss(template.whole(ops, y), output, n_kept), u)

        return ell

    def _at_whole(self, template: Template, u: Any, precision: str) -> Any:
        ops = self._keras.ops
        n_samples = ops.shape(u)[0]

        def repeated(leaf: np.ndarray) -> Any:
            return ops.repeat(ops.convert_to_tensor(leaf), n_samples, axis=0)

        return self(map_leaves(repeated, template.inputs), u, precision)


@dataclass(frozen=True)
class Template:
    """One sample that stands for the form of all: what is behind the layer must not depend on it.

    Attributes
    ----------
    inputs : tree of arrays
        One row.
    positions : tuple of int
        Axes of the target layer's input between the first and the last; none if it is applied once.
    """

    inputs: Any
    positions: tuple[int, ...] = ()

    def whole(self, ops: Any, rows: Any) -> Any:
        """Put rows ``(m, ...)`` at the positions of as many samples as it takes, the last repeated.

        Which row stands where does not matter: positions are treated alike.
        """
        if not self.positions:
            return rows
        size, n_rows = math.prod(self.positions), ops.shape(rows)[0]
        n_samples = (n_rows + size - 1) // size
        missing = n_samples * size - n_rows
        last = ops.broadcast_to(rows[-1:], (missing, *rows.shape[1:]))
        whole = ops.concatenate([rows, last], axis=0)
        return ops.reshape(whole, (-1, *self.positions, *rows.shape[1:]))

    def rows(self, ops: Any, whole: Any, like: Any) -> Any:
        """Undo :meth:`whole` for as many rows as ``like`` has."""
        if not self.positions:
            return whole
        rest = whole.shape[1 + len(self.positions) :]
        return ops.reshape(whole, (-1, *rest))[: ops.shape(like)[0]]


@contextmanager
def intercepted(layer: Any, function: Callable[..., Any]) -> Iterator[None]:
    """Let ``function(call, *args)`` stand in for the layer's ``call`` inside this context.

    The attribute is set and removed behind Keras's own bookkeeping, so that the layer is the same
    object in the same state afterwards. Calls of other threads pass it by; one thread at a time is here.
    """
    owner = threading.get_ident()
    with _INTERCEPTING:
        call = layer.call

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != owner:
                return call(*args, **kwargs)
            return function(call, *args, **kwargs)

        object.__setattr__(layer, "call", stand_in)
        try:
            yield
        finally:
            object.__delattr__(layer, "call")


@contextmanager
def _computing_in(keras: Any, model: Any, precision: str) -> Iterator[None]:
    """Let all layers with a floating-point dtype compute in ``precision`` inside this context."""

    class Raised(keras.DTypePolicy):
        """A policy of its own for each layer: variables stay what they are."""

        def __init__(self, given: Any) -> None:
            super().__init__(given.variable_dtype)
            self._compute_dtype = precision

    changed = []
    try:
        for layer in [model, *model._flatten_layers(include_self=False)]:
            if "float" not in str(layer.compute_dtype):
                continue
            # Newer versions of Keras keep the policy behind a property, which would also write to
            # policies that layers share.
            name = "_dtype_policy" if "_dtype_policy" in vars(layer) else "dtype_policy"
            changed.append((layer, name, getattr(layer, name)))
            object.__setattr__(layer, name, Raised(layer.dtype_policy))
        yield
    finally:
        for layer, name, policy in changed:
            object.__setattr__(layer, name, policy)
