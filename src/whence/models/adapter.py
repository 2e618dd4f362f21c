"""What an adapter gives of a framework's model, and which adapter serves which model."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from whence._errors import WhenceError, described
from whence._registry import Registry
from whence.arrays.base import Array, as_numpy, check_finite
from whence.arrays.sparse import SparseRows
from whence.data.base import leaves
from whence.layers.losses import Loss
from whence.models.differentiated import DifferentiatedLoss
from whence.models.state import Part

__all__ = [
    "ADAPTERS",
    "Adapter",
    "LossSpec",
    "Reading",
    "Weights",
    "adapter_for",
    "check_callable",
    "register_adapter",
]


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
    ignored_class : int or None
        A label that stands for none: along a sequence, such positions do not count.
    remedy : str
        What to do where the tail contradicts the loss; an empty text speaks of ``from_logits``.
    """

    loss: Loss | None
    tail: str
    described: str
    contradicted_by: tuple[str, ...] = ()
    ignored_class: int | None = None
    remedy: str = ""


@dataclass(frozen=True)
class Weights:
    """The target layer's weights and the strengths of its L2 regularisers.

    Attributes
    ----------
    kernel : array of shape (d, C)
    bias : array of shape (C,) or None
    l2, bias_l2 : float
        Second derivative of the regulariser on each, see :class:`~whence.LinearLayer`.
    l2_of_sum, bias_l2_of_sum : float
        The same of a regulariser that stands next to the *sum* of the losses: divided by ``N``, it is
        added to the other.
    was_held_back : bool
        Whether training regularised beyond that, by small steps and by stopping: the strength is then at
        least :meth:`~whence.LinearLayer.implied_l2`.
    l1_of_sum : float
        The strength of an L1 penalty next to the sum of the losses. It has no curvature, and weights that
        it holds at 0 have no features; but it held the others back.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    l2: float = 0.0
    bias_l2: float = 0.0
    l2_of_sum: float = 0.0
    bias_l2_of_sum: float = 0.0
    was_held_back: bool = field(default=False, kw_only=True)
    l1_of_sum: float = field(default=0.0, kw_only=True)

    def theta(self) -> np.ndarray:
        """Return the weights as the library takes them: in float64, the bias as last row."""
        theta = np.array(self.kernel, dtype=np.float64)  # a copy: the model may go on training
        if self.bias is None:
            return theta
        return np.concatenate([theta, np.asarray(self.bias, dtype=np.float64)[None, :]])


class Reading(NamedTuple):
    """What an adapter reads of a batch.

    Attributes
    ----------
    features : array of shape (n, d) or (n, ..., d)
        The input of the target layer, without the bias's constant.
    mask : array or None
        Which positions of a sequence the model's mask does not hide; true counts.
    labels : array or None
        What the loss takes for labels: those of the batch, but for models that change them first.
    call : tree of arrays
        The batch as ``tail``, ``output`` and ``differentiated`` take it.
    mask_counts : bool
        Whether the loss leaves out what the mask hides; else labels alone say what counts.
    """

    features: Array
    mask: Array | None
    labels: Any
    call: Any
    mask_counts: bool = True


class Adapter(ABC):
    """What whence needs of a framework's model. It extracts; it contains no formula.

    Subclass it for a new framework, and register it: :func:`~whence.register_adapter`.
    """

    #: The target layer's name, as the framework calls it.
    layer_name: str
    #: Where batches are dicts, the key of the labels; ``None`` looks for the usual ones.
    label_key: str | None = None
    #: Whether the third element of a batch is taken for sample weights, as the framework takes it.
    third_is_weight: bool = True

    @abstractmethod
    def with_layer(self, layer: int | str) -> Adapter:
        """Return an adapter of the same model for another target layer."""

    @property
    def model_name(self) -> str | None:
        """The model's own name, where it has one."""
        return None

    @property
    def lasting_name(self) -> str:
        """What the layer is called in files: the same for the same model, however often it is built."""
        return self.layer_name

    def with_lasting_name(self, name: str) -> Adapter:
        """Return an adapter for the layer that :attr:`lasting_name` calls so."""
        return self.with_layer(name)

    @abstractmethod
    def weights(self) -> Weights:
        """Return the target layer's weights as they are now."""

    @abstractmethod
    def loss_spec(self) -> LossSpec:
        """Return what is known of the loss, or raise if there is none."""

    def learn_loss(self, inputs: Any, labels: Any) -> None:
        """Look at the first batch, where :meth:`loss_spec` needs one; ``labels`` may be None."""
        return None

    def check_inputs(self, inputs: Any, where: str) -> None:
        """Raise unless the inputs of a batch are what the model takes."""
        for leaf in leaves(inputs):
            array = as_numpy(leaf)
            if array.dtype.kind == "f":
                check_finite(array, "inputs", where, "Clean or drop the samples.")

    def encode_labels(self, labels: Any, where: str) -> np.ndarray:
        """Return labels as the loss takes them, where the model has names for its classes."""
        return as_numpy(labels)

    def class_weights(self, target: np.ndarray) -> np.ndarray | None:
        """Return what the model's training counts samples of these targets by their class, or None."""
        return None

    @property
    def class_names(self) -> list[Any] | None:
        """What the user calls the classes, in their order, where the model knows; ``None`` where not."""
        return None

    @property
    def counts_classes(self) -> bool:
        """Whether :meth:`class_weights` needs :meth:`count_classes` of the training set first."""
        return False

    def count_classes(self, labelled: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> np.ndarray:
        """Learn what each class counts from targets and sample weights, batch by batch; return it."""
        raise NotImplementedError

    def place(self, array: np.ndarray) -> Array:
        """Return an array of the host where the library is to compute with it."""
        return array

    @abstractmethod
    def features(self, inputs: Any) -> Array:
        """Return the input of the target layer, without the bias's constant.

        Shape ``(n, d)``, or ``(n, ..., d)`` if the layer is applied along a sequence.
        """

    def features_and_mask(self, inputs: Any) -> tuple[Array, Array | None]:
        """Return the features, and which positions of a sequence count in the loss, or None.

        The mask has the shape of the features without their last axis; true counts.
        """
        return self.features(inputs), None

    def read(self, inputs: Any, labels: Any) -> Reading:
        """Return what there is to know of a batch; ``labels`` may be None."""
        features, mask = self.features_and_mask(inputs)
        return Reading(features, mask, labels, inputs)

    @abstractmethod
    def tail(self, inputs: Any, pre_activations: np.ndarray) -> np.ndarray:
        """Return the model's output if the target layer gave these pre-activations ``(n, ..., C)``.

        In single precision at least, where the model computes in half.
        """

    def output(self, inputs: Any) -> np.ndarray | None:
        """Return the model's own output, which the tail of its own pre-activations must give.

        ``None`` says that it does by construction, so that there is nothing to compare.
        """
        return None

    #: How far two passes of the same samples may differ, relative to the largest number.
    probe_tolerance: float = 5e-4

    def state(self) -> Mapping[str, Part]:
        """Return what shapes the features and the output, by name, as it is now.

        What is not there is noticed by :meth:`probe` alone.
        """
        return {}

    def probe(self, inputs: Any, labels: Any) -> list[np.ndarray]:
        """Return what the model makes of samples, to see later whether it still does."""
        reading = self.read(inputs, labels)
        features, output = reading.features, self.output(reading.call)
        if isinstance(features, SparseRows):
            seen = [features.matrix.data, features.matrix.indices]
        else:
            seen = [as_numpy(features)]
        return seen if output is None else [*seen, output]

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

    def check_layers(self, wanted: Any) -> None:
        """Raise unless several layers can be explained; ``wanted`` are their names, or "all"."""
        raise WhenceError(
            "layers",
            "one dense layer, by name or index, for a model of this kind",
            repr(wanted if isinstance(wanted, str) else list(wanted)),
            "Several layers can be explained of PyTorch modules and of scikit-learn's perceptrons.",
        )

    def row_source(self, wanted: Any) -> Any:
        """Return what records rows of several layers: a :class:`whence.models.several.RowSource`.

        Asked for after the first batch, for layers that :meth:`check_layers` let pass.
        """
        raise NotImplementedError

    def on_device(self, device: str | None) -> AbstractContextManager[Any]:
        """Run the model on a device of the framework inside this context."""
        if device is None or str(device).lower().strip("/") in ("cpu", "cpu:0", "device:cpu:0"):
            return nullcontext()
        raise WhenceError("device", "'cpu' or None", repr(device), "Leave it out.")


@dataclass(frozen=True)
class _Served:
    """Which models an adapter serves."""

    make: Callable[..., Adapter]
    prefixes: tuple[str, ...]
    types: tuple[type, ...]
    before: tuple[str, ...]

    def place(self, model: Any) -> int | None:
        """Return how far up among the types of a model the one stands that is served; None if none does."""
        for place, base in enumerate(type(model).__mro__):
            if base in self.types or f"{base.__module__}.".startswith(self.prefixes):
                return place
        return None


#: Every adapter, by the name of what makes it.
ADAPTERS: Registry[_Served] = Registry("adapter", "whence.models")


def register_adapter(*served: type | str, before: Sequence[str] = ()) -> Callable[[Any], Any]:
    """Return a decorator that lets :class:`~whence.InfluenceModel` take models of another kind.

    Parameters
    ----------
    *served : type or str
        The classes of the models, subclasses included; or the beginnings of the names of the modules that
        define them, such as ``"torch."``, so that no framework need be imported.
    before : sequence of str, default=()
        Such beginnings of other adapters, which serve a model only where this one does not. Otherwise the
        adapter of the most special class of a model serves it.

    Returns
    -------
    callable
        For what makes the adapter: a subclass of :class:`~whence.models.Adapter`, or a function, called as
        ``make(model, start_layer, loss_function, **options)``. Its keyword-only arguments are the options
        that the models have.

    Examples
    --------
    >>> from whence.layers.losses import SquaredError
    >>> class Scales:
    ...     weight = 2.0
    >>> @register_adapter(Scales)
    ... class ScalesAdapter(Adapter):
    ...     layer_name = "scales"
    ...     def __init__(self, model, start_layer=-1, loss_function=None):
    ...         self.model = model
    ...     def with_layer(self, layer):
    ...         return self
    ...     def weights(self):
    ...         return Weights(np.asarray([[self.model.weight]]), None)
    ...     def loss_spec(self):
    ...         return LossSpec(SquaredError(), "identity", "squared error")
    ...     def features(self, inputs):
    ...         return np.asarray(inputs)
    ...     def tail(self, inputs, pre_activations):
    ...         return pre_activations
    >>> adapter_for(Scales(), -1, None, {}).weights().kernel
    array([[2.]])
    """
    prefixes = tuple(one for one in served if isinstance(one, str))
    types = tuple(one for one in served if isinstance(one, type))
    if not served or len(prefixes) + len(types) != len(served):
        raise WhenceError(
            "served",
            "classes of models, or the beginnings of the names of their modules",
            ", ".join(map(described, served)) or "none",
            "Say which models the adapter is for: register_adapter(MyModel).",
        )

    def keep(make: Any) -> Any:
        name = f"{make.__module__}.{make.__qualname__}"
        ADAPTERS.add(name, _Served(make, prefixes, types, tuple(before)), make)
        return make

    return keep


def _check_options(adapter: Any, options: Any) -> None:
    """Raise for options that models of another kind have."""
    kinds = inspect.signature(adapter).parameters.values()
    known = [parameter.name for parameter in kinds if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise WhenceError(
                f"option {name!r}",
                f"one that such a model has: {', '.join(known)}",
                repr(options[name]),
                "Leave it out.",
            )


def check_callable(function: Any, argument: str, form: str) -> Any:
    """Return a function of the user, or raise unless it takes two arguments; None stays None."""
    if function is None:
        return None
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        got = getattr(function, "__name__", repr(function))
        raise WhenceError(argument, f"a function {form}", got, "See docs/howto/any-loss.md.") from None
    return function


def adapter_for(model: Any, start_layer: int | str, loss_function: Any, options: Any) -> Adapter:
    """Return the adapter of the model's framework."""
    places = {entry: entry.place(model) for entry in ADAPTERS.values()}
    serving = {entry: place for entry, place in places.items() if place is not None}
    later = {name for entry in serving for name in entry.before}
    first = {entry: place for entry, place in serving.items() if not later.intersection(entry.prefixes)}
    if first:
        make = min(first, key=lambda entry: first[entry]).make
        _check_options(make, options)
        return make(model, start_layer, loss_function, **options)
    every = [*(p.rstrip(".") for e in ADAPTERS.values() for p in e.prefixes)]
    every += [t.__name__ for e in ADAPTERS.values() for t in e.types]
    raise WhenceError(
        "model",
        f"a trained model of one of: {', '.join(every)}",
        f"a {type(model).__module__}.{type(model).__name__}",
        "Pass the model itself, not its predictions or its path; of another framework, write an adapter: "
        "whence.register_adapter.",
    )
