"""What an adapter gives, and the wrapped model that the rest of the library sees."""

from __future__ import annotations

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence._arrays import Array, as_numpy, astype, check_finite, namespace
from whence._errors import WhenceError
from whence.data import Batch, fingerprints, leaves, open_dataset, take_rows
from whence.index import Index
from whence.linear_layer import LinearLayer
from whence.losses import Loss, sigmoid, softmax
from whence.progress import track

__all__ = ["Adapter", "InfluenceModel", "LossSpec"]

#: What may follow the pre-activations of a loss in closed form.
TAILS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda u: u,
    "softmax": softmax,
    "sigmoid": sigmoid,
}


@dataclass(frozen=True)
class LossSpec:
    """A loss in closed form, and the tail that the model must have for it.

    Attributes
    ----------
    loss : Loss
        The loss as a function of the pre-activations.
    tail : str
        What the model does after the pre-activations: a key of ``TAILS``.
    described : str
        The framework's loss, for messages.
    """

    loss: Loss
    tail: str
    described: str


@dataclass(frozen=True)
class Weights:
    """The target layer's weights: ``kernel (d, C)``, ``bias (C,)`` or None, and its L2 strengths."""

    kernel: np.ndarray
    bias: np.ndarray | None
    l2: float = 0.0
    bias_l2: float = 0.0


class Adapter(ABC):
    """What whence needs of a framework's model. It extracts; it contains no formula.

    Subclass it for a new framework, and name it in ``ADAPTERS``.
    """

    #: The target layer's name, as the framework calls it.
    layer_name: str

    @abstractmethod
    def with_layer(self, layer: int | str) -> Adapter:
        """Return an adapter of the same model for another target layer."""

    @abstractmethod
    def weights(self) -> Weights:
        """Return the target layer's weights as they are now."""

    @abstractmethod
    def loss_spec(self) -> LossSpec:
        """Return the loss in closed form, or raise if there is none."""

    @abstractmethod
    def features(self, inputs: Any) -> Array:
        """Return the input of the target layer, shape ``(n, d)``, without the constant of the bias."""

    @abstractmethod
    def tail(self, inputs: Any, pre_activations: np.ndarray) -> np.ndarray:
        """Return the model's output if the target layer gave these pre-activations ``(n, C)``."""

    def on_device(self, device: str | None) -> AbstractContextManager[Any]:
        """Run the model on a device of the framework inside this context."""
        if device is None or str(device).lower().strip("/").split(":")[0] == "cpu":
            return nullcontext()
        raise WhenceError("device", "'cpu' or None", repr(device), "Leave it out.")


#: Module prefixes of the types that an adapter serves, and where the adapter stands.
ADAPTERS: list[tuple[tuple[str, ...], str, str]] = [
    (("keras.", "tf_keras."), "whence.models.keras", "KerasAdapter"),
]


def adapter_for(model: Any, start_layer: int | str, loss_function: Any, options: Any) -> Adapter:
    """Return the adapter of the model's framework."""
    modules = [f"{base.__module__}." for base in type(model).__mro__]
    for prefixes, where, name in ADAPTERS:
        if any(module.startswith(prefixes) for module in modules):
            adapter = getattr(importlib.import_module(where), name)
            return adapter(model, start_layer, loss_function, **options)
    known = ", ".join(prefixes[0].rstrip(".") for prefixes, _, _ in ADAPTERS)
    raise WhenceError(
        "model",
        f"a trained model of one of: {known}",
        f"a {type(model).__module__}.{type(model).__name__}",
        "Pass the model itself, not its predictions or its path.",
    )


class InfluenceModel:
    """A trained model, its loss, and the dense layer whose weights are explained.

    The model is read, never changed.

    Parameters
    ----------
    model : keras.Model
        The trained model; the adapter is picked by its type.
    start_layer : int or str, default=-1
        The dense layer, by index or by name. An index that points at a layer without weights
        (Activation, Softmax, Dropout) means the nearest dense layer before it.
    loss_function : loss of the framework, optional
        ``None`` takes the loss that the model was compiled with. Its reduction does not matter.
    **options
        Options of the adapter; the Keras adapter has none.

    Attributes
    ----------
    model : object
        The user's own model.
    layer_name : str
        The target layer.

    Raises
    ------
    WhenceError
        If the layer does not exist or is not dense, the model was never built, or the loss is missing
        or not supported.
    """

    def __init__(
        self,
        model: Any,
        start_layer: int | str = -1,
        *,
        loss_function: Any = None,
        **options: Any,
    ) -> None:
        self.model = model
        self._adapter = adapter_for(model, start_layer, loss_function, options)
        self._spec = self._adapter.loss_spec()
        self._tail_is_known = False

    def at_layer(self, target_layer: int | str) -> InfluenceModel:
        """Return the same model with another target layer."""
        other = InfluenceModel.__new__(InfluenceModel)
        other.model = self.model
        other._adapter = self._adapter.with_layer(target_layer)
        other._spec = other._adapter.loss_spec()
        other._tail_is_known = False
        return other

    @property
    def layer_name(self) -> str:
        """The target layer's name."""
        return self._adapter.layer_name

    @property
    def loss(self) -> Loss:
        """The loss as a function of the pre-activations."""
        return self._spec.loss

    @property
    def layer(self) -> LinearLayer:
        """The target layer with the weights that the model has now, in float64."""
        weights = self._adapter.weights()
        theta = np.asarray(weights.kernel, dtype=np.float64)
        if weights.bias is not None:
            theta = np.concatenate([theta, np.asarray(weights.bias, dtype=np.float64)[None, :]])
        return LinearLayer(
            theta, self.loss, weights.bias is not None, weights.l2, weights.bias_l2
        )

    def on_device(self, device: str | None) -> AbstractContextManager[Any]:
        """Run the model on a device of the framework inside this context; ``None`` leaves it alone."""
        return self._adapter.on_device(device)

    def features(self, batch: Batch) -> Array:
        """Return ``phi (n, d)``: the target layer's input, with a constant 1 if it has a bias.

        Raises
        ------
        WhenceError
            If inputs or features are not finite, or the features have the wrong width.
        """
        for leaf in leaves(batch.inputs):
            array = as_numpy(leaf)
            if array.dtype.kind == "f":
                check_finite(array, "inputs", batch.where, "Clean or drop the samples.")
        phi = self._extract(batch)
        xp = namespace(phi)
        phi = astype(phi, xp.float64 if phi.dtype == xp.float64 else xp.float32)
        check_finite(
            phi,
            f"features (the input of layer {self.layer_name!r})",
            batch.where,
            "The model overflows on these samples: look at them, or at its weights.",
        )
        weights = self._adapter.weights()
        expected = (batch.n_samples, weights.kernel.shape[0])
        if tuple(phi.shape) != expected:
            raise WhenceError(
                f"features of layer {self.layer_name!r} in {batch.where}",
                f"shape {expected}",
                f"shape {tuple(phi.shape)}",
                "Choose a dense layer that is applied once a sample.",
            )
        if weights.bias is not None:
            phi = xp.concat([phi, xp.ones((phi.shape[0], 1), dtype=phi.dtype)], axis=1)
        if not self._tail_is_known:
            self._check_tail(batch, phi)
        return phi

    def targets(self, batch: Batch) -> np.ndarray:
        """Return the labels of a batch in the loss's form, checked."""
        labels = as_numpy(batch.labels)
        fix = "Clean or drop the samples."
        check_finite(labels, "labels", batch.where, fix)
        return self.loss.encode(labels, self._adapter.weights().kernel.shape[1], batch.where)

    def sample_weights(self, batch: Batch, dtype: Any) -> np.ndarray | None:
        """Return the sample weights of a batch, checked, or None."""
        if batch.weight is None:
            return None
        weight = as_numpy(batch.weight)
        if weight.ndim == 2 and weight.shape[1] == 1:
            weight = weight[:, 0]
        if weight.ndim != 1 or weight.dtype.kind not in "iufb":
            raise WhenceError(
                f"sample weights in {batch.where}",
                "one number a sample",
                f"shape {weight.shape}, dtype {weight.dtype}",
                "Give weights of shape (batch,).",
            )
        check_finite(weight, "sample weights", batch.where, "Clean them.")
        if weight.min(initial=0) < 0:
            raise WhenceError(
                f"sample weights in {batch.where}",
                "numbers >= 0",
                f"{weight.min():g}",
                "A sample cannot count less than nothing.",
            )
        return weight.astype(dtype)

    def index(
        self, dataset: Any, *, ids: Any = None, progress: bool | None = None, argument: str = "dataset"
    ) -> Index:
        """Pass over a training set once and store what the layer sees of it."""
        opened = open_dataset(dataset, argument)
        index = Index()
        steps = track(opened, "features of the training set", opened.n_batches, progress)
        for batch in steps:
            phi = self.features(batch)
            weight = self.sample_weights(batch, phi.dtype)
            index.append(phi, self.targets(batch), weight, fingerprints(batch))
        index.finish(ids)
        return index

    def linear_system(self, dataset: Any) -> tuple[LinearLayer, Index]:
        """Return the layer and the stored training set, for a solver that is built by hand."""
        return self.layer, self.index(dataset)

    def fingerprint(self) -> str:
        """Return a text that changes with the layer's weights, its name and the loss."""
        layer = self.layer
        digest = hashlib.blake2b(np.ascontiguousarray(layer.theta).tobytes(), digest_size=16)
        digest.update(f"{self.layer_name} {self.loss.fingerprint()} {layer.l2} {layer.bias_l2}".encode())
        return digest.hexdigest()

    def _extract(self, batch: Batch) -> Array:
        try:
            return self._adapter.features(batch.inputs)
        except WhenceError:
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves(batch.inputs))
            reason = " ".join(str(error).split())[:300]
            raise WhenceError(
                f"inputs of {batch.where}",
                "a batch that the model accepts",
                f"shapes {shapes}, refused with {type(error).__name__}: {reason}",
                "Give the model's own inputs, batched.",
            ) from error

    def _check_tail(self, batch: Batch, phi: Array) -> None:
        """Compare what the model does after the layer with what the loss's closed form assumes.

        Some pre-activations of the test's own are put in place of the layer's, so that saturation or a
        kink that the data does not reach is seen as well.
        """
        n_samples = min(batch.n_samples, 8)
        n_outputs = self._adapter.weights().kernel.shape[1]
        probe = np.random.default_rng(0).normal(scale=3, size=(n_samples, n_outputs))
        probe = probe.astype(np.float32)
        output = self._adapter.tail(take_rows(batch.inputs, slice(0, n_samples)), probe)
        assumed = TAILS[self._spec.tail](probe)
        same = output.shape == assumed.shape and np.allclose(output, assumed, rtol=1e-2, atol=1e-3)
        if same:
            self._tail_is_known = True
            return
        found = [
            name
            for name, tail in TAILS.items()
            if output.shape == probe.shape and np.allclose(output, tail(probe), rtol=1e-2, atol=1e-3)
        ]
        raise WhenceError(
            f"loss {self._spec.described} at layer {self.layer_name!r}",
            f"a model whose output is the {self._spec.tail} of the layer's pre-activations",
            f"the {found[0]} of them" if found else "something else that follows the layer",
            "Choose the last dense layer, and from_logits=True if and only if nothing follows it.",
        )
