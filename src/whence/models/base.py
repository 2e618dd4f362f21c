"""What an adapter gives, and the wrapped model that the rest of the library sees."""

from __future__ import annotations

import hashlib
import importlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence._arrays import Array, as_numpy, astype, check_finite, namespace
from whence._errors import WhenceError
from whence.data import Batch, fingerprints, leaves, open_dataset
from whence.index import Index
from whence.linear_layer import LinearLayer
from whence.losses import Loss
from whence.models.differentiated import DifferentiatedLoss
from whence.models.tail import decide_loss
from whence.progress import track

__all__ = ["Adapter", "InfluenceModel", "LossSpec", "Weights"]


@dataclass(frozen=True)
class LossSpec:
    """What is known of a loss: its closed form, if it has one, and the tail that this takes.

    Attributes
    ----------
    loss : Loss or None
        The loss as a function of the pre-activations; ``None`` if it has no closed form.
    tail : str
        What the model must do after the pre-activations for it: a key of ``TAILS``.
    described : str
        The framework's loss, for messages.
    contradicted_by : tuple of str
        Tails that can only be there by mistake, such as probabilities where the loss takes logits.
    """

    loss: Loss | None
    tail: str
    described: str
    contradicted_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weights:
    """The target layer's weights and the strengths of its L2 regularisers.

    Attributes
    ----------
    kernel : array of shape (d, C)
    bias : array of shape (C,) or None
    l2, bias_l2 : float
        Second derivative of the regulariser on each, see :class:`~whence.LinearLayer`.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    l2: float = 0.0
    bias_l2: float = 0.0

    def theta(self) -> np.ndarray:
        """Return the weights as the library takes them: in float64, the bias as last row."""
        theta = np.array(self.kernel, dtype=np.float64)  # a copy: the model may go on training
        if self.bias is None:
            return theta
        return np.concatenate([theta, np.asarray(self.bias, dtype=np.float64)[None, :]])


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
        """Return what is known of the loss, or raise if there is none."""

    @abstractmethod
    def features(self, inputs: Any) -> Array:
        """Return the input of the target layer, shape ``(n, d)``, without the bias's constant."""

    @abstractmethod
    def tail(self, inputs: Any, pre_activations: np.ndarray) -> np.ndarray:
        """Return the model's output if the target layer gave these pre-activations ``(n, C)``.

        In single precision at least, where the model computes in half.
        """

    def output(self, inputs: Any) -> np.ndarray | None:
        """Return the model's own output, which the tail of its own pre-activations must give.

        ``None`` says that it does by construction, so that there is nothing to compare.
        """
        return None

    def differentiated(self, inputs: Any) -> DifferentiatedLoss:
        """Return the loss and everything after the layer, differentiated by the framework.

        Parameters
        ----------
        inputs : tree of arrays
            Some samples, for the form of the model's inputs; their values must not matter.
        """
        spec = self.loss_spec()
        raise WhenceError(
            f"loss {spec.described} at layer {self.layer_name!r}",
            "a loss and a tail that have a closed form",
            "others",
            "Choose the model's last layer, and cross-entropy or squared error.",
        )

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
        If the layer does not exist or is not dense, the model was never built, or the loss is
        missing or not supported.
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
        self._open(adapter_for(model, start_layer, loss_function, options))

    def at_layer(self, target_layer: int | str) -> InfluenceModel:
        """Return the same model with another target layer."""
        other = InfluenceModel.__new__(InfluenceModel)
        other.model = self.model
        other._open(self._adapter.with_layer(target_layer))
        return other

    def _open(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._spec = adapter.loss_spec()
        self._loss: Loss | None = None  # decided on the first batch
        self._loss_was_assumed = False
        self._loss_was_tried = False

    @property
    def layer_name(self) -> str:
        """The target layer's name."""
        return self._adapter.layer_name

    @property
    def loss(self) -> Loss:
        """The loss as a function of the pre-activations.

        The closed form where there is one and the model's tail is the one that it takes; else the
        loss differentiated by the framework. Which of the two is seen on the first batch.
        """
        if self._loss is not None:
            return self._loss
        if self._spec.loss is None:
            raise WhenceError(
                f"loss {self._spec.described}",
                "a batch first, since this loss has no closed form and the model must be traced",
                "none yet",
                "Index the training set, or call features(batch).",
            )
        self._loss_was_assumed = True
        return self._spec.loss

    @property
    def layer(self) -> LinearLayer:
        """The target layer with the weights that the model has now, in float64."""
        weights = self._adapter.weights()
        return LinearLayer(
            weights.theta(), self.loss, weights.bias is not None, weights.l2, weights.bias_l2
        )

    def on_device(self, device: str | None) -> AbstractContextManager[Any]:
        """Run the model on a device of the framework inside this context; ``None`` leaves it."""
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
        if self._loss is None:
            self._loss = decide_loss(self._adapter, batch.inputs, phi, self._loss_was_assumed)
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
        self,
        dataset: Any,
        *,
        ids: Any = None,
        progress: bool | None = None,
        argument: str = "dataset",
    ) -> Index:
        """Pass over a training set once and store what the layer sees of it."""
        opened = open_dataset(dataset, argument)
        index = Index()
        steps = track(opened, "features of the training set", opened.n_batches, progress)
        for batch in steps:
            phi = self.features(batch)
            target = self.targets(batch)
            weight = self.sample_weights(batch, phi.dtype)
            self._check_losses(phi, target, batch.where)
            index.append(phi, target, weight, fingerprints(batch))
        index.finish(ids)
        return index

    def linear_system(self, dataset: Any) -> tuple[LinearLayer, Index]:
        """Return the layer and the stored training set, for a solver that is built by hand."""
        index = self.index(dataset)
        return self.layer, index

    def fingerprint(self) -> str:
        """Return a text that changes with the layer's weights, its name and the loss."""
        layer = self.layer
        digest = hashlib.blake2b(np.ascontiguousarray(layer.theta).tobytes(), digest_size=16)
        digest.update(
            f"{self.layer_name} {self.loss.fingerprint()} {layer.l2} {layer.bias_l2}".encode()
        )
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

    def _check_losses(self, phi: Array, target: Array, where: str) -> None:
        """Raise unless every sample of a batch has a finite loss."""
        u = phi @ namespace(phi).asarray(self._adapter.weights().theta(), dtype=phi.dtype)
        try:
            if not self._loss_was_tried and isinstance(self.loss, DifferentiatedLoss):
                self.loss.check(u, target, where)
            self._loss_was_tried = True
            check_finite(
                self.loss.value(u, target),
                f"losses ({self.loss.name})",
                where,
                "Drop these samples.",
            )
        except WhenceError as error:
            if where in str(error):
                raise
            raise WhenceError(
                f"{error.argument} in {where}", error.expected, error.got, error.fix
            ) from error
