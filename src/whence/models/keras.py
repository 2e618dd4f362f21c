"""The adapter for Keras 3 models: Sequential, functional, subclassed, and models inside models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from whence._arrays import Array, as_numpy, import_extra
from whence._errors import WhenceError
from whence.losses import BinaryCrossEntropy, Loss, SoftmaxCrossEntropy, SquaredError
from whence.models.base import Adapter, LossSpec, Weights

__all__ = ["KerasAdapter"]


class KerasAdapter(Adapter):
    """Reads a Keras 3 model on the backend that Keras runs on.

    The layer's input is recorded while the model is called, which works for every kind of model; the
    call is traced and compiled once for each shape of batch.
    """

    def __init__(self, model: Any, start_layer: int | str = -1, loss_function: Any = None) -> None:
        self._keras = import_extra("keras", "tensorflow")
        self._model = model
        self._loss_function = loss_function
        self._check_model()
        self._layer, self.layer_name = _find_layer(self._keras, model, start_layer)
        self._activation = _tail_of_activation(self._keras, self._layer, self.layer_name)
        self._compiled_features = _compiled(self._keras.backend.backend(), self._record_features)

    def with_layer(self, layer: int | str) -> KerasAdapter:
        """Return an adapter of the same model for another target layer."""
        return KerasAdapter(self._model, layer, self._loss_function)

    def weights(self) -> Weights:
        """Return the target layer's weights as they are now."""
        to_numpy = self._keras.ops.convert_to_numpy
        layer = self._layer
        return Weights(
            to_numpy(layer.kernel),
            to_numpy(layer.bias) if layer.use_bias else None,
            _l2_curvature(layer.kernel_regularizer),
            _l2_curvature(layer.bias_regularizer) if layer.use_bias else 0.0,
        )

    def loss_spec(self) -> LossSpec:
        """Return the loss given, or the one that the model was compiled with, in closed form."""
        loss = self._loss_function
        if loss is None:
            loss = getattr(self._model, "loss", None)
        if loss is None:
            raise WhenceError(
                "loss_function",
                "a loss, since the model was not compiled with one",
                "None",
                "Pass loss_function=keras.losses...., or compile the model.",
            )
        return _closed_form(self._keras, loss)

    def features(self, inputs: Any) -> Array:
        """Return the input of the target layer, shape ``(n, d)``."""
        return as_numpy(self._compiled_features(inputs))

    def tail(self, inputs: Any, pre_activations: np.ndarray) -> np.ndarray:
        """Return the model's output if the target layer gave these pre-activations."""

        def replaced(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            u = self._keras.ops.convert_to_tensor(pre_activations, dtype=self._layer.compute_dtype)
            return self._layer.activation(u)

        with _intercepted(self._layer, replaced):
            output = self._model(inputs, training=False)
        return as_numpy(self._keras.ops.convert_to_numpy(output))

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

    def _record_features(self, inputs: Any) -> Any:
        seen: list[Any] = []

        def recorded(call: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(x)
            return call(x, *args, **kwargs)

        with _intercepted(self._layer, recorded):
            self._model(inputs, training=False)
        if len(seen) == 1:
            return seen[0]
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


@contextmanager
def _intercepted(layer: Any, function: Callable[..., Any]) -> Iterator[None]:
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


def _compiled(backend: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return ``function`` compiled by the backend, where that is safe while a layer is intercepted."""
    if backend == "tensorflow":
        tf = import_extra("tensorflow", "tensorflow")
        return tf.function(function, reduce_retracing=True, autograph=False)
    if backend == "jax":
        return import_extra("jax", "jax").jit(function)
    return import_extra("torch", "torch").no_grad()(function)


# ------------------------------------------------------------------------------- finding the layer


def _leaf_layers(container: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and object of every layer without layers of its own, in order."""
    for layer in getattr(container, "layers", None) or getattr(container, "_layers", []):
        path = f"{prefix}{layer.name}"
        inner = list(_leaf_layers(layer, f"{path}/"))
        if inner:
            yield from inner
        else:
            yield path, layer


def _find_layer(keras: Any, model: Any, wanted: int | str) -> tuple[Any, str]:
    every = list(_leaf_layers(model))
    listing = ", ".join(f"{path} ({type(layer).__name__})" for path, layer in every)
    if isinstance(wanted, str):
        found = [(p, x) for p, x in every if wanted in (p, x.name)]
        if len(found) != 1:
            raise WhenceError(
                "target layer",
                "the name of one layer of the model",
                f"{wanted!r}, which is the name of {len(found)}",
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
    inside = [x for _, x in _leaf_layers(last)] or [last]
    end = max(i for i, (_, x) in enumerate(every) if any(x is y for y in inside))
    for _, layer in reversed(every[: end + 1]):
        if layer.weights or isinstance(layer, keras.layers.Dense):
            return _check_dense(keras, layer, paths[id(layer)], listing), paths[id(layer)]
    raise WhenceError(
        "target layer", "a dense layer", f"no layer with weights up to {wanted}", f"Layers: {listing}."
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
            "target layer", "a layer with weights", f"{path!r}, never built", "Call the model first."
        )
    return layer


def _tail_of_activation(keras: Any, layer: Any, path: str) -> str:
    known = {
        keras.activations.linear: "identity",
        keras.activations.softmax: "softmax",
        keras.activations.sigmoid: "sigmoid",
    }
    try:
        return known[layer.activation]
    except (KeyError, TypeError):
        name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
        raise WhenceError(
            f"target layer {path!r}",
            "an activation that is linear, softmax or sigmoid",
            repr(name),
            "Choose the last dense layer.",
        ) from None


def _l2_curvature(regularizer: Any) -> float:
    """Return the second derivative of an L2 penalty ``strength * sum(w**2)``: twice its strength."""
    strength = getattr(regularizer, "l2", None)
    return 0.0 if strength is None else 2.0 * float(strength)


# ------------------------------------------------------------------------------------------ losses

#: Keras's losses that have a closed form, by class name: how to make it, and its tail for probabilities.
_LOSSES: dict[str, tuple[Callable[[float], Loss], str]] = {
    "CategoricalCrossentropy": (SoftmaxCrossEntropy, "softmax"),
    "SparseCategoricalCrossentropy": (lambda smoothing: SoftmaxCrossEntropy(), "softmax"),
    "BinaryCrossentropy": (BinaryCrossEntropy, "sigmoid"),
    "MeanSquaredError": (lambda smoothing: SquaredError(), "identity"),
}


def _closed_form(keras: Any, loss: Any) -> LossSpec:
    """Return the closed form of a loss given as an object, a function or a name."""
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError as error:
            raise WhenceError("loss_function", "a loss that Keras knows", repr(loss)) from error
    described = getattr(loss, "__name__", None) or type(loss).__name__
    if type(loss).__module__.startswith("keras.") and hasattr(loss, "get_config"):
        name, config = type(loss).__name__, loss.get_config()
    else:
        name, config = _class_of_function(keras, loss), {}
    plain = config.get("ignore_class") is None and config.get("axis", -1) == -1
    if name not in _LOSSES or not plain:
        raise WhenceError(
            "loss_function",
            f"one of {', '.join(_LOSSES)}, as an object, a function or a name",
            described if plain else f"{described} with ignore_class or axis",
            "Pass loss_function= one of them that has the same gradient.",
        )
    make, tail = _LOSSES[name]
    from_logits = bool(config.get("from_logits", False))
    closed = make(float(config.get("label_smoothing", 0.0)))
    return LossSpec(closed, "identity" if from_logits else tail, described)


def _class_of_function(keras: Any, function: Any) -> str:
    """Return the name of the class that wraps one of Keras's loss functions, or an empty text."""
    for name in _LOSSES:
        wrapped = getattr(getattr(keras.losses, name)(), "fn", None)
        if wrapped is function:
            return name
    return ""
