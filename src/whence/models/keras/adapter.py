"""The adapter for Keras 3 models: Sequential, functional, subclassed, and models inside models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, import_extra
from whence.data.base import map_leaves, take_rows
from whence.models.adapter import Adapter, LossSpec, Weights, register_adapter
from whence.models.differentiated import DifferentiatedLoss, identity_of
from whence.models.keras.backends import backend_of
from whence.models.keras.losses import loss_spec
from whence.models.keras.tail import KerasTail, Template, intercepted

__all__ = ["KerasAdapter"]


@register_adapter("keras.", "tf_keras.", before=("torch.",))  # on that backend they are torch modules too
class KerasAdapter(Adapter):
    """Reads a Keras 3 model on the backend that Keras runs on.

    The layer's input is recorded while the model is called, which works for every kind of model;
    the call is traced and compiled once for batches of any size. Models in half precision run in it
    up to the layer's input; whatever is computed from that is in single precision at least.

    Parameters
    ----------
    model : keras.Model
    start_layer : int or str, default=-1
    loss_function : str, callable or keras.losses.Loss, optional
    classes : bool, optional
        Whether a loss without a closed form is on classes. ``None`` knows it of Keras's own losses
        and takes functions to be on values.
    """

    def __init__(
        self,
        model: Any,
        start_layer: int | str = -1,
        loss_function: Any = None,
        *,
        classes: bool | None = None,
    ) -> None:
        self._keras = import_extra("keras", "tensorflow")
        self._model = model
        self._loss_function = loss_function
        self._classes = classes
        self._check_model()
        self._layer, self.layer_name = _find_layer(self._keras, model, start_layer)
        self._applied = _applied_layer(self._keras, model, self._layer)
        self._tail = KerasTail(self._keras, model, self._layer, self._applied)
        self._backend = backend_of(self._keras, model)
        self._compiled_features = self._backend.forward(self._record_features)

    def with_layer(self, layer: int | str) -> KerasAdapter:
        """Return an adapter of the same model for another target layer."""
        return KerasAdapter(self._model, layer, self._loss_function, classes=self._classes)

    def weights(self) -> Weights:
        """Return the target layer's weights as they are now."""
        layer = self._layer
        return Weights(
            self._on_host(layer.kernel),
            self._on_host(layer.bias) if layer.use_bias else None,
            _l2_curvature(layer.kernel_regularizer),
            _l2_curvature(layer.bias_regularizer) if layer.use_bias else 0.0,
        )

    def loss_spec(self) -> LossSpec:
        """Return the loss given, or the one that the model was compiled with."""
        return loss_spec(self._keras, self._loss())[0]

    def features(self, inputs: Any) -> Array:
        """Return the input of the target layer, shape ``(n, d)`` or ``(n, ..., d)``."""
        return self.features_and_mask(inputs)[0]

    def features_and_mask(self, inputs: Any) -> tuple[Array, Array | None]:
        """Return the input of the target layer, and the mask that Keras's loss would respect."""
        parts = self._compiled_features(inputs)
        return as_numpy(parts[0]), as_numpy(parts[1]) if len(parts) == 2 else None

    def output(self, inputs: Any) -> np.ndarray:
        """Return the model's own output."""
        return self._on_host(self._model(map_leaves(as_numpy, inputs), training=False))

    def tail(self, inputs: Any, pre_activations: np.ndarray) -> np.ndarray:
        """Return the model's output if the target layer gave these pre-activations."""
        try:  # layers in half precision would hide what the tail is
            output = self._tail(inputs, pre_activations, "float32")
        except WhenceError:
            raise
        except Exception:  # code in a layer that fixes another dtype: as the layers are, then
            output = self._tail(inputs, pre_activations)
        return self._on_host(output)

    def differentiated(self, inputs: Any) -> DifferentiatedLoss:
        """Return the loss and everything after the target layer, differentiated by the backend."""
        spec, loss = loss_spec(self._keras, self._loss())
        first = take_rows(inputs, slice(0, 1))
        template = Template(first, tuple(self.features(first).shape[1:-1]))
        n_outputs = int(self._layer.kernel.shape[1])
        weights = [self._on_host(variable) for variable in self._model.variables]
        own = getattr(loss.loss, "fn", type(loss.loss).call)
        config = {key: value for key, value in vars(loss.loss).items() if key != "name"}
        output = self._backend.output(lambda u, dtype: self._tail.at_rows(template, u, dtype), n_outputs)
        boundary = loss.boundary if self._classes is None else None
        if self._classes:  # of probabilities or of logits: what large pre-activations lead to tells
            extremes = output(np.linspace(-30, 30, 8)[:, None] * np.ones(n_outputs))
            boundary = 0.5 if extremes.min() >= 0 and extremes.max() <= 1 else 0.0
        return DifferentiatedLoss(
            spec.described,
            self._backend.derivatives(self._tail.loss_at_rows(loss, template), spec.described),
            output,
            identity_of((own, config), weights),
            boundary,
            n_outputs,
            loss.is_on_tags,
        )

    def on_device(self, device: str | None) -> AbstractContextManager[Any]:
        """Run the model on a device inside this context."""
        if device is None:
            return nullcontext()
        if self._keras.backend.backend() != "tensorflow":
            return super().on_device(device)
        tf = import_extra("tensorflow", "tensorflow")
        wanted = str(device).upper().strip("/").removeprefix("DEVICE:")
        wanted = wanted if ":" in wanted else f"{wanted}:0"
        present = [d.name.removeprefix("/device:") for d in tf.config.list_logical_devices()]
        if wanted not in present:
            raise WhenceError(
                "device", f"one of {', '.join(present)}", repr(device), "Leave it out, or name one."
            )
        return tf.device(wanted)

    def _loss(self) -> Any:
        loss = self._loss_function
        if loss is None:
            loss = getattr(self._model, "loss", None)
        if loss is not None:
            return loss
        raise WhenceError(
            "loss_function",
            "a loss, since the model was not compiled with one",
            "None",
            "Pass loss_function=keras.losses...., or compile the model.",
        )

    def _on_host(self, array: Any) -> np.ndarray:
        return as_numpy(self._keras.ops.convert_to_tensor(array))

    def _record_features(self, inputs: Any) -> Any:
        seen: list[Any] = []

        def recorded(call: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(x)
            return call(x, *args, **kwargs)

        with intercepted(self._applied, recorded):
            output = self._model(inputs, training=False)
        if len(seen) == 1:
            mask = _mask_of(output)
            has_mask = mask is not None and len(mask.shape) == len(seen[0].shape) - 1
            return (seen[0], mask) if has_mask and len(seen[0].shape) > 2 else (seen[0],)
        raise WhenceError(
            f"layer {self.layer_name!r}",
            "a layer that the model applies once in a forward pass",
            f"{len(seen)} applications",
            "Choose a layer whose weights are not shared, and that the model uses.",
        )

    def _check_model(self) -> None:
        if not hasattr(self._model, "layers"):
            raise WhenceError(
                "model", "a keras.Model", f"a {type(self._model).__name__}", "Wrap it in a model."
            )
        if not self._model.built:
            raise WhenceError(
                "model",
                "a built model",
                f"{self._model.name!r}, which has no weights yet",
                "Train it, load its weights, or call it on a batch first.",
            )


# ------------------------------------------------------------------------------- finding the layer


def _leaf_layers(keras: Any, container: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and object of every layer without layers of its own, in order.

    A dense layer is one of them, even if its activation is a layer.
    """
    for layer in getattr(container, "layers", None) or getattr(container, "_layers", []):
        path = f"{prefix}{layer.name}"
        is_dense = isinstance(layer, keras.layers.Dense)
        inner = [] if is_dense else list(_leaf_layers(keras, layer, f"{path}/"))
        if inner:
            yield from inner
        else:
            yield path, layer


def _find_layer(keras: Any, model: Any, wanted: int | str) -> tuple[Any, str]:
    every = list(_leaf_layers(keras, model))
    listing = ", ".join(f"{path} ({type(layer).__name__})" for path, layer in every)
    if isinstance(wanted, str):
        found = [(p, x) for p, x in every if wanted in (p, x.name)]
        if len(found) != 1:
            raise WhenceError(
                "target layer",
                "the name of one layer of the model",
                f"{wanted!r}, which is the name of {len(found) or 'none'}",
                f"The layers are: {listing}.",
            )
        path, layer = found[0]
        return _check_dense(keras, layer, path, listing), path
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        raise WhenceError("target layer", "an index or a name", repr(wanted), f"Layers: {listing}.")
    top = model.layers
    if not -len(top) <= wanted < len(top):
        raise WhenceError(
            "target layer",
            f"an index from {-len(top)} to {len(top) - 1}",
            repr(wanted),
            f"The layers are: {listing}.",
        )
    last = top[wanted]
    paths = {id(layer): path for path, layer in every}
    inside = [last, *(x for _, x in _leaf_layers(keras, last))]
    end = max(i for i, (_, x) in enumerate(every) if any(x is y for y in inside))
    for _, layer in reversed(every[: end + 1]):
        if layer.weights or isinstance(layer, keras.layers.Dense):
            return _check_dense(keras, layer, paths[id(layer)], listing), paths[id(layer)]
    raise WhenceError(
        "target layer",
        "a dense layer",
        f"no layer with weights up to {wanted}",
        f"Layers: {listing}.",
    )


def _check_dense(keras: Any, layer: Any, path: str, listing: str) -> Any:
    if not isinstance(layer, keras.layers.Dense):
        raise WhenceError(
            "target layer",
            "a dense layer",
            f"{path!r}, a {type(layer).__name__}",
            f"The layers are: {listing}.",
        )
    if not layer.built:
        raise WhenceError(
            "target layer",
            "a layer with weights",
            f"{path!r}, never built",
            "Call the model first.",
        )
    return layer


def _applied_layer(keras: Any, model: Any, layer: Any) -> Any:
    """Return what the model calls to apply a layer: a ``TimeDistributed`` around it, or itself."""
    for other in model._flatten_layers(include_self=False):
        if isinstance(other, keras.layers.TimeDistributed) and other.layer is layer:
            return other
    return layer


def _mask_of(tensor: Any) -> Any:
    """Return the mask that Keras hangs on a tensor, or None."""
    try:
        from keras.src.backend import get_keras_mask
    except ImportError:  # before 3.7 it was an attribute on every backend
        return getattr(tensor, "_keras_mask", None)
    return get_keras_mask(tensor)


def _l2_curvature(regularizer: Any) -> float:
    """Return the second derivative of a penalty ``strength * sum(w**2)``: twice its strength."""
    strength = getattr(regularizer, "l2", None)
    return 0.0 if strength is None else 2.0 * float(strength)
