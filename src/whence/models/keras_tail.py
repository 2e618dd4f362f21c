"""What a Keras model does after its target layer, as a function of the layer's pre-activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.data import map_leaves
from whence.models.keras_losses import PerSampleLoss

__all__ = ["KerasTail", "intercepted"]


class KerasTail:
    """The target layer's activation and all layers behind it, in inference mode.

    The whole model is called, with the layer's pre-activations put in place: what stands before the
    layer is run on given inputs for its form only, and pruned where the call is compiled.

    Parameters
    ----------
    keras : module
    model : keras.Model
    layer : keras.layers.Dense
    """

    def __init__(self, keras: Any, model: Any, layer: Any) -> None:
        self._keras = keras
        self._model = model
        self._layer = layer

    def __call__(self, inputs: Any, u: Any, precision: str | None = None) -> Any:
        """Return the model's output if the layer's pre-activations were ``u``.

        Parameters
        ----------
        inputs : tree of arrays
            As many rows as ``u``.
        u : tensor of shape (n, C)
        precision : {"float64", "float32"}, optional
            What the layers behind the target layer compute in; ``None`` leaves it to each layer.
            Weights keep their values: they are cast on the way.
        """
        with ExitStack() as restored:

            def replaced(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                if precision is not None:
                    restored.enter_context(_computing_in(self._keras, self._model, precision))
                dtype = precision or self._layer.compute_dtype
                return self._layer.activation(self._keras.ops.cast(u, dtype))

            with intercepted(self._layer, replaced):
                output = self._model(inputs, training=False)
        if hasattr(output, "shape"):
            return output
        count = len(output) if hasattr(output, "__len__") else 0
        raise WhenceError(
            "model",
            "a model with one output",
            f"{count} outputs",
            "Explain one at a time: keras.Model(net.inputs, net.outputs[0]), with its own loss.",
        )

    def of_template(self, template: Any, u: Any, precision: str) -> Any:
        """Return the output for ``u (n, C)`` from a single row of inputs, which must not matter."""
        n_rows = self._keras.ops.shape(u)[0]

        def repeated(leaf: np.ndarray) -> Any:
            return self._keras.ops.repeat(self._keras.ops.convert_to_tensor(leaf), n_rows, axis=0)

        return self(map_leaves(repeated, template), u, precision)

    def loss_of(self, loss: PerSampleLoss, template: Any) -> Callable[[Any, Any, str], Any]:
        """Return ``ell(u, y, precision)``, the loss of each sample ``(n,)``."""
        return lambda u, y, precision: loss(y, self.of_template(template, u, precision))


@contextmanager
def intercepted(layer: Any, function: Callable[..., Any]) -> Iterator[None]:
    """Let ``function(call, *args)`` stand in for the layer's ``call`` inside this context.

    The attribute is set and removed behind Keras's own bookkeeping, so that the layer is the same
    object in the same state afterwards.
    """
    call = layer.call
    object.__setattr__(layer, "call", lambda *args, **kwargs: function(call, *args, **kwargs))
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
