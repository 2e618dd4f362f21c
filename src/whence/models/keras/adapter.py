"""The adapter for Keras 3 models: Sequential, functional, subclassed, and models inside models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, import_extra
from whence.data.base import leaves, map_leaves, take_rows
from whence.models.adapter import Adapter, LossSpec, Weights, check_callable, register_adapter
from whence.models.differentiated import DifferentiatedLoss, identity_of
from whence.models.keras.backends import backend_of
from whence.models.keras.finding import (
    applied_layer,
    find_layer,
    lasting_name,
    layers_with_weights,
    with_lasting_name,
    without_number,
)
from whence.models.keras.losses import GivenLoss, PerSampleLoss, loss_spec
from whence.models.keras.outputs import Outputs
from whence.models.keras.own_loss import (
    COMPARED_ROWS,
    LossOfRows,
    overrides,
    own_loss_of,
    tell_own_loss,
)
from whence.models.keras.regularisers import l2_curvature
from whence.models.keras.tail import KerasTail, Template, intercepted
from whence.models.state import Part

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
    forward : callable, optional
        ``forward(model, batch)`` calls the model in inference mode, with a batch ``(inputs, None)``, and
        returns the outputs that the loss is on. ``None`` calls ``model(inputs, training=False)``.
    loss : callable, optional
        ``loss(outputs, batch)`` returns the loss of each sample, with a batch ``(None, labels)``; in place
        of ``loss_function``.
    """

    def __init__(
        self,
        model: Any,
        start_layer: int | str = -1,
        loss_function: Any = None,
        *,
        classes: bool | None = None,
        forward: Callable[[Any, Any], Any] | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self._keras = import_extra("keras", "tensorflow")
        self._options: dict[str, Any] = {"classes": classes, "forward": forward, "loss": loss}
        self._forward = check_callable(forward, "forward", "forward(model, batch)")
        self._hook = check_callable(loss, "loss", "loss(outputs, batch)")
        if loss is not None and loss_function is not None:
            raise WhenceError(
                "loss", "one loss", "loss_function and loss", "Give loss=, or loss_function=, not both."
            )
        self._model = model
        self._loss_function = loss_function
        self._classes = classes
        self._check_model()
        self._layer, self.layer_name = find_layer(self._keras, model, start_layer)
        self._is_default = start_layer == -1
        self._applied = applied_layer(self._keras, model, self._layer)
        self._outputs = Outputs(model, self.layer_name)
        self._tail = KerasTail(self._keras, model, self._layer, self._applied, self._call, self._outputs.of)
        self._backend = backend_of(self._keras, model)
        self._compiled_features = self._backend.forward(self._record_features)
        self._known_loss: PerSampleLoss | None = None if loss is None else GivenLoss(self._keras, loss)

    def with_layer(self, layer: int | str) -> KerasAdapter:
        """Return an adapter of the same model for another target layer."""
        return KerasAdapter(self._model, layer, self._loss_function, **self._options)

    def _call(self, inputs: Any) -> Any:
        """Call the model as its user does."""
        if self._forward is None:
            return self._model(inputs, training=False)
        return self._forward(self._model, (map_leaves(self._keras.ops.convert_to_tensor, inputs), None))

    @property
    def model_name(self) -> str:
        """The model's name, without the number that Keras gives one that has none of its own."""
        return without_number(self._model)

    @property
    def lasting_name(self) -> str:
        """What the layer is called in files, however often the model is built anew."""
        return lasting_name(self._keras, self._model, self.layer_name)

    def with_lasting_name(self, name: str) -> KerasAdapter:
        """Return an adapter for the layer that an index calls so."""
        return self.with_layer(with_lasting_name(self._keras, self._model, name))

    def weights(self) -> Weights:
        """Return the target layer's weights as they are now."""
        layer = self._layer
        return Weights(
            self._on_host(layer.kernel),
            self._on_host(layer.bias) if layer.use_bias else None,
            l2_curvature(self._keras, layer.kernel_regularizer, layer.kernel.shape),
            l2_curvature(self._keras, layer.bias_regularizer, layer.bias.shape) if layer.use_bias else 0.0,
        )

    def state(self) -> Mapping[str, Part]:
        """Return the values of all weights that the model saves, numbered: names change from run to run."""
        parts = {"regularisers": Part(self._regularisers)}
        for number, variable in enumerate(self._model.weights):
            parts[f"{number} {variable.name}"] = self._backend.part(variable)
        return parts

    def _regularisers(self) -> np.ndarray:
        layer = self._layer
        pairs = [(layer.kernel_regularizer, layer.kernel), (layer.bias_regularizer, layer.bias)]
        given = [(kind, part.shape) for kind, part in pairs if part is not None]
        return np.asarray([l2_curvature(self._keras, kind, shape) for kind, shape in given])

    def loss_spec(self) -> LossSpec:
        """Return the loss given, or the one that the model was compiled with for the layer's output.

        A loss that the model computes itself has no closed form, until :meth:`learn_loss` found that it is
        the one that it was compiled with.
        """
        if isinstance(self._known_loss, LossOfRows | GivenLoss):
            return LossSpec(None, "", self._known_loss.described)
        compiled = self._compiled_loss()
        own = self._own_loss(compiled)
        if own is not None and self._known_loss is None:
            return LossSpec(None, "", own[1])
        if compiled is None:
            return LossSpec(None, "", "of several outputs")  # which, is seen on the first batch
        return loss_spec(self._keras, compiled)[0]

    def learn_loss(self, inputs: Any, labels: Any) -> None:
        """Compare the model's own loss, where it has one, with the compiled one on the first batch."""
        if isinstance(self._known_loss, GivenLoss):
            return
        compiled = self._compiled_loss()
        own = self._own_loss(compiled)
        if own is None or labels is None:
            return
        keras = self._keras
        labels = as_numpy(labels)
        rows = np.arange(min(len(labels), COMPARED_ROWS))
        output = self._keras.ops.convert_to_tensor(self.output(take_rows(inputs, rows)))
        if not self._outputs.is_single and own[1].endswith("compute_loss"):
            raise WhenceError(
                f"loss {own[1]}",
                "the loss of one output",
                "one that the model computes of several",
                "Name that of the layer's output: InfluenceModel(net, loss_function=...).",
            )
        per_sample = None if compiled is None else loss_spec(keras, compiled)[1]
        self._known_loss = tell_own_loss(
            keras, own, per_sample, keras.ops.convert_to_tensor(labels[rows]), output
        )

    def class_weights(self, target: np.ndarray) -> np.ndarray | None:
        """Return the weight of the compiled loss, where it has one, for each sample."""
        is_given = self._loss_function is not None or self._hook is not None
        weight = None if is_given else _loss_weights(self._model)
        weight = self._outputs.part_of(weight)
        return None if weight is None or weight == 1 else np.full(len(target), float(weight))

    def features(self, inputs: Any) -> Array:
        """Return the input of the target layer, shape ``(n, d)`` or ``(n, ..., d)``."""
        return self.features_and_mask(inputs)[0]

    def features_and_mask(self, inputs: Any) -> tuple[Array, Array | None]:
        """Return the input of the target layer, and the mask that Keras's loss would respect."""
        self._look(inputs)
        parts = self._compiled_features(inputs)
        return as_numpy(parts[0]), as_numpy(parts[1]) if len(parts) == 2 else None

    def output(self, inputs: Any) -> np.ndarray:
        """Return the model's own output."""
        self._look(inputs)
        return self._on_host(self._outputs.of(self._call(map_leaves(as_numpy, inputs))))

    def tail(self, inputs: Any, pre_activations: np.ndarray) -> np.ndarray:
        """Return the model's output if the target layer gave these pre-activations."""
        self._look(inputs)
        try:  # layers in half precision would hide what the tail is
            output = self._tail(inputs, pre_activations, "float32")
        except WhenceError:
            raise
        except Exception:  # code in a layer that fixes another dtype: as the layers are, then
            output = self._tail(inputs, pre_activations)
        return self._on_host(output)

    def differentiated(self, inputs: Any) -> DifferentiatedLoss:
        """Return the loss and everything after the target layer, differentiated by the backend."""
        self._look(inputs)
        spec, loss = self.loss_spec(), self._per_sample_loss()
        first = take_rows(inputs, slice(0, 1))
        template = Template(first, tuple(self.features(first).shape[1:-1]))
        n_outputs = int(self._layer.kernel.shape[1])
        weights = [self._on_host(variable) for variable in self._model.variables]
        own, config = loss.identity()
        output = self._backend.output(lambda u, dtype: self._tail.at_rows(template, u, dtype), n_outputs)
        boundary = loss.boundary if self._classes is None else None
        if self._classes:  # of probabilities or of logits: what large pre-activations lead to tells
            extremes = output(np.linspace(-30, 30, 8)[:, None] * np.ones(n_outputs))
            boundary = 0.5 if extremes.min() >= 0 and extremes.max() <= 1 else 0.0
        return DifferentiatedLoss(
            spec.described,
            self._backend.derivatives(self._tail.loss_at_rows(loss, template), spec.described),
            output,
            identity_of((own, config, self._forward), weights),
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

    def _per_sample_loss(self) -> PerSampleLoss:
        if self._known_loss is not None:
            return self._known_loss
        compiled = self._compiled_loss()
        own = self._own_loss(compiled)
        per_sample = None if compiled is None else loss_spec(self._keras, compiled)[1]
        if own is not None:
            return LossOfRows(self._keras, own, per_sample)
        assert per_sample is not None
        return per_sample

    def _own_loss(self, compiled: Any) -> Any:
        return own_loss_of(self._keras, self._model, compiled, self._loss_function is not None)

    def _compiled_loss(self) -> Any:
        """Return the loss given or compiled; None where that is known later, or only by the model."""
        loss = self._loss_function
        if loss is not None:
            return loss
        compiled = getattr(self._model, "loss", None)
        if isinstance(compiled, dict | list | tuple):
            if self._outputs.number is None:
                return None
            compiled = self._outputs.part_of(compiled)
        if compiled is not None or overrides(self._model, "compute_loss"):
            return compiled
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
            output = self._call(inputs)
        if len(seen) == 1:
            mask = _mask_of(self._outputs.of(output))
            has_mask = mask is not None and len(mask.shape) == len(seen[0].shape) - 1
            return (seen[0], mask) if has_mask and len(seen[0].shape) > 2 else (seen[0],)
        raise WhenceError(
            f"layer {self.layer_name!r}",
            "a layer that the model applies once in a forward pass",
            f"{len(seen)} applications",
            "Choose a layer whose weights are not shared, and that the model uses.",
        )

    def _look(self, inputs: Any) -> None:
        """See, once, which output comes from the layer, and whether it is the last that is applied."""
        if self._outputs.number is not None:
            return
        first = leaves(inputs)[0]
        two = take_rows(inputs, np.arange(2) % first.shape[0])
        called: list[str] = []
        seen: list[Any] = []

        def record(path: str) -> Callable[..., Any]:
            def recorded(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                called.append(path)
                if path == self.layer_name:
                    seen.append(args[0])
                return call(*args, **kwargs)

            return recorded

        with ExitStack() as stack:
            for path, layer in layers_with_weights(self._keras, self._model).items():
                stack.enter_context(intercepted(layer, record(path)))
            output = self._call(two)
        if not seen:
            return  # what is wrong with that, the features will tell
        shape = (*seen[0].shape[:-1], int(self._layer.kernel.shape[1]))
        draw = np.random.default_rng(0)
        states = [draw.normal(size=shape).astype(np.float32) for _ in range(2)]

        def changed() -> tuple[Any, Any]:
            one, other = (map_leaves(self._on_host, self._tail.whole(two, state)) for state in states)
            return one, other

        self._outputs.decide(output, changed)
        try:
            self._check_added_losses(two, states)
            if self._is_default and self._outputs.is_single:
                self._check_last(called, shape, tuple(output.shape))
        except WhenceError:
            self._outputs.number = None
            raise

    def _check_last(self, called: list[str], pre_activation: Any, output: Any) -> None:
        """Raise if the default layer is one that the model's output does not come from."""
        behind = called[len(called) - called[::-1].index(self.layer_name) :]
        widened = len(output) == len(pre_activation) and output[-1] != pre_activation[-1]
        if not behind and not widened:
            return
        got = f"the output passes {', '.join(map(repr, behind))} after it"
        if not behind:
            got = f"the output has {output[-1]} columns, and the layer {pre_activation[-1]} units"
        dense = [
            path
            for path, layer in layers_with_weights(self._keras, self._model).items()
            if isinstance(layer, self._keras.layers.Dense)
        ]
        raise WhenceError(
            f"target layer {self.layer_name!r}, the last one",
            "a dense layer that the model's output comes from",
            got,
            f"Name the layer that you mean: start_layer='...', one of {', '.join(dense)}.",
        )

    def _check_added_losses(self, inputs: Any, states: list[np.ndarray]) -> None:
        """Raise if losses that the model adds depend on the layer: they are no part of the loss here."""
        if not self._model.losses:
            return
        totals = []
        for state in states:
            self._tail.whole(inputs, state)
            totals.append(sum(float(as_numpy(loss)) for loss in self._model.losses))
        if np.isclose(totals[0], totals[1], rtol=1e-6, atol=0):
            return
        raise WhenceError(
            f"layer {self.layer_name!r}",
            "a layer that the loss depends on through the model's output alone",
            "one that an activity regulariser or add_loss behind it depends on too",
            "Choose a layer behind that place, or explain a copy of the model without it.",
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


def _mask_of(tensor: Any) -> Any:
    """Return the mask that Keras hangs on a tensor, or None."""
    try:
        from keras.src.backend import get_keras_mask
    except ImportError:  # before 3.7 it was an attribute on every backend
        return getattr(tensor, "_keras_mask", None)
    return get_keras_mask(tensor)


def _loss_weights(model: Any) -> Any:
    """Return the ``loss_weights`` that a model was compiled with, which Keras keeps in a private place."""
    return getattr(getattr(model, "_compile_loss", None), "_user_loss_weights", None)
