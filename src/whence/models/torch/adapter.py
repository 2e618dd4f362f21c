"""The adapter for PyTorch modules: any ``torch.nn.Linear`` of any ``torch.nn.Module``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, import_extra
from whence.data.base import leaves, map_leaves, take_rows
from whence.models.adapter import Adapter, LossSpec, Weights, register_adapter
from whence.models.differentiated import DifferentiatedLoss, identity_of
from whence.models.torch.derivatives import TorchDerivatives, torch_output
from whence.models.torch.losses import own_loss, read_loss
from whence.models.torch.module import (
    check_device,
    device_named,
    exclusive,
    linear_layers,
    takes,
    takes_any_keyword,
    takes_positions,
    unwrapped,
)
from whence.models.torch.tail import TorchTail, inference

__all__ = ["TorchAdapter"]

#: Samples on which a model is called twice, to see that it does not draw random numbers.
TRIED_ROWS = 8


@register_adapter("torch.", before=("sklearn.",))
class TorchAdapter(Adapter):
    """Reads a PyTorch module. Its input to the target layer is recorded by a hook, in eval mode.

    Modules wrapped by ``torch.compile`` or ``torch.nn.DataParallel`` are run unwrapped. Modes, hooks and
    gradients are afterwards what they were before.

    Parameters
    ----------
    model : torch.nn.Module
    start_layer : int or str, default=-1
        A name of ``named_modules()``, or an index among the linear modules in the order of their calls.
    loss_function : torch.nn.Module or callable, optional
        ``loss(output, target)``, with any reduction over the batch. ``None`` takes the loss that the
        model returns when it is called with ``labels``.
    classes : bool, optional
        Whether a loss without a closed form is on classes. ``None`` knows it of PyTorch's own losses and
        takes functions to be on values.
    weight_decay : float, default=0.0
        That of the optimiser, which is no part of a module: the second derivative of the penalty
        ``weight_decay / 2 * sum(theta**2)``, on weights and bias as PyTorch's optimisers have it.
    device : str or torch.device, optional
        Where features, Hessian and scores are kept and computed, as tensors; the model must be there.
        ``None``: on the host, as NumPy arrays.
    label_key : str, optional
        Where batches are dicts, the key of the labels; ``labels`` or ``label`` by default.
    """

    def __init__(
        self,
        model: Any,
        start_layer: int | str = -1,
        loss_function: Any = None,
        *,
        classes: bool | None = None,
        weight_decay: float = 0.0,
        device: Any = None,
        label_key: str | None = None,
    ) -> None:
        self._torch = import_extra("torch", "torch")
        self._given = model, start_layer, loss_function
        self._options = {
            "classes": classes,
            "weight_decay": weight_decay,
            "device": device,
            "label_key": label_key,
        }
        self.label_key = label_key
        self._model = unwrapped(model)
        self._linear = linear_layers(self._torch, self._model)
        self._start_layer = start_layer
        self._weight_decay = float(weight_decay)
        self._classes = classes
        self._loss = None if loss_function is None else read_loss(loss_function)
        self._device = check_device(self._torch, self._model, device)
        self._layer: Any = None
        self._layer_name = ""
        self._was_tried = False
        if self._loss is None and not takes(self._model, "labels"):
            raise WhenceError(
                "loss_function",
                "a loss, since a module does not hold the one that it was trained with",
                "None",
                "Pass loss_function=torch.nn.CrossEntropyLoss(), or whatever it was.",
            )
        if isinstance(start_layer, str):
            self._choose(start_layer)
        elif isinstance(start_layer, bool) or not isinstance(start_layer, int):
            raise WhenceError("target layer", "an index or a name", repr(start_layer), self._listing())

    # ------------------------------------------------------------------------------- the layer

    @property
    def layer_name(self) -> str:  # type: ignore[override]
        """The target layer's name in ``named_modules()``."""
        self._chosen_layer()
        return self._layer_name

    def with_layer(self, layer: int | str) -> TorchAdapter:
        """Return an adapter of the same model for another target layer."""
        model, _, loss = self._given
        return TorchAdapter(model, layer, loss, **self._options)

    def weights(self) -> Weights:
        """Return the target layer's weights as they are now."""
        layer = self._chosen_layer()
        bias = None if layer.bias is None else as_numpy(layer.bias)
        return Weights(as_numpy(layer.weight).T, bias, self._weight_decay, self._weight_decay)

    def _chosen_layer(self) -> Any:
        if self._layer is None and len(self._linear) == 1 and self._start_layer in (0, -1):
            self._choose(next(iter(self._linear)))
        if self._layer is None:
            raise WhenceError(
                "target layer",
                "a batch first, since linear layers are numbered in the order of their calls",
                f"index {self._start_layer}",
                "Index the training set, or name the layer.",
            )
        return self._layer

    def _choose(self, name: str) -> None:
        modules = dict(self._model.named_modules())
        if name not in modules:
            raise WhenceError("target layer", "a name of named_modules()", repr(name), self._listing())
        if name not in self._linear:
            got = f"{name!r}, a {type(modules[name]).__name__}"
            raise WhenceError("target layer", "a torch.nn.Linear", got, self._listing())
        layer = self._linear[name]
        twins = [n for n, x in self._linear.items() if x is not layer and x.weight is layer.weight]
        if twins:
            raise WhenceError(
                f"layer {name!r}",
                "a layer with weights of its own",
                f"weights shared with {', '.join(twins)}",
                "Choose a layer whose weights are used once in a forward pass.",
            )
        self._layer, self._layer_name = layer, name

    def _choose_by_calls(self, inputs: Any) -> None:
        """Give the linear layers numbers in the order in which a forward pass calls them."""
        called: dict[str, None] = {}
        with exclusive(self._model), ExitStack() as hooks:
            for name, layer in self._linear.items():
                hook = layer.register_forward_pre_hook(lambda *_, n=name: called.update({n: None}))
                hooks.callback(hook.remove)
            self._run(inputs)
        order = list(called)
        wanted = int(self._start_layer)
        if not -len(order) <= wanted < len(order):
            raise WhenceError(
                "target layer",
                f"an index from {-len(order)} to {len(order) - 1}" if order else "a linear layer",
                f"{wanted}" if order else "none that a forward pass calls",
                f"Called are, in this order: {', '.join(order)}." if order else self._listing(),
            )
        self._choose(order[wanted])

    def _listing(self) -> str:
        return f"The linear layers are: {', '.join(self._linear)}."

    # --------------------------------------------------------------------------- what it gives

    def place(self, array: np.ndarray) -> Array:
        """Return an array of the host where the library is to compute with it."""
        return array if self._device is None else self._torch.tensor(array, device=self._device)

    def loss_spec(self) -> LossSpec:
        """Return what is known of the loss; of a model's own loss nothing before a batch with labels."""
        return LossSpec(None, "", "of the model itself") if self._loss is None else self._loss.spec()

    def learn_loss(self, inputs: Any, labels: Any) -> None:
        """Find out which loss a model computes by itself, from a batch with labels."""
        if self._loss is not None:
            return
        if labels is None:
            raise WhenceError(
                "loss of the model itself",
                "a batch with labels first, to see which loss the model computes of them",
                "one without labels",
                "Index the training set, or pass loss_function=...",
            )
        rows = slice(0, TRIED_ROWS)
        labels = self._to_device(take_rows(labels, rows))
        with _restored_config(self._model):
            self._loss = own_loss(
                self._torch, lambda: _returned_loss(self._run(take_rows(inputs, rows), labels=labels))
            )
        if self._loss is None:
            raise WhenceError(
                "loss of the model itself",
                "one that is a loss of torch.nn.functional on its output",
                "another one",
                "Pass it as loss_function=lambda output, target: ..., one number a sample.",
            )

    def features(self, inputs: Any) -> Array:
        """Return the input of the target layer, shape ``(n, d)`` or ``(n, ..., d)``."""
        return self.features_and_mask(inputs)[0]

    def features_and_mask(self, inputs: Any) -> tuple[Array, Array | None]:
        """Return the input of the target layer, and the attention mask where it is along positions."""
        if self._layer is None:
            self._choose_by_calls(take_rows(inputs, slice(0, TRIED_ROWS)))
        features = self._record(inputs)
        if not self._was_tried:
            self._check_same_again(inputs)
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        if mask is not None and (features.ndim == 2 or mask.shape != features.shape[:-1]):
            mask = None
        if self._device is None:
            features = as_numpy(features)
        elif features.dtype not in (self._torch.float32, self._torch.float64):
            features = features.float()
        return features, mask

    def output(self, inputs: Any) -> np.ndarray:
        """Return the model's own output."""
        return _on_host(self._output_of(self._run(inputs)))

    def tail(self, inputs: Any, pre_activations: np.ndarray) -> np.ndarray:
        """Return the model's output if the target layer gave these pre-activations."""
        tail, u = self._tail(inputs), self._torch.tensor(pre_activations, device=self._at())
        with self._torch.no_grad():
            try:  # layers in half precision would hide what the tail is
                return _on_host(tail(inputs, u, "float32"))
            except WhenceError:
                raise
            except Exception:  # code in a layer that fixes another dtype: as the layers are, then
                return _on_host(tail(inputs, u.to(self._layer.weight.dtype)))

    def differentiated(self, inputs: Any) -> DifferentiatedLoss:
        """Return the loss and everything after the target layer, differentiated by PyTorch."""
        loss, tail = self._loss, self._tail(inputs)
        assert loss is not None  # learn_loss comes first
        n_outputs = int(self._layer.weight.shape[0])
        at_rows, loss_at_rows = tail.for_rows(inputs, loss)
        output = torch_output(at_rows, self._at())
        boundary = loss.boundary if self._classes is None else None
        if self._classes:  # of probabilities or of logits: what large pre-activations lead to tells
            extremes = as_numpy(output(np.linspace(-30, 30, 8)[:, None] * np.ones(n_outputs)))
            boundary = 0.5 if extremes.min() >= 0 and extremes.max() <= 1 else 0.0
        weights = [as_numpy(tensor) for tensor in self._model.state_dict().values()]
        own = self._given[2] or loss.unreduced
        config = {k: as_numpy(v) if hasattr(v, "detach") else v for k, v in loss.settings.items()}
        return DifferentiatedLoss(
            loss.described,
            TorchDerivatives(loss_at_rows, loss.described, self._at()),
            output,
            identity_of((getattr(own, "forward", own), config, loss.described), weights),
            boundary,
            n_outputs,
            loss.is_on_tags,
        )

    @contextmanager
    def on_device(self, device: str | None) -> Iterator[None]:
        """Run the model on a device inside this context; it is moved there and back."""
        if device is None:
            yield
            return
        before, wanted = self._at(), device_named(self._torch, device)
        if wanted == before or self._device is not None:
            if self._device is not None and wanted != self._device:
                raise WhenceError(
                    "device",
                    f"{self._device}, that of the InfluenceModel",
                    repr(device),
                    "Leave it out.",
                )
            yield
            return
        self._model.to(wanted)
        try:
            yield
        finally:
            self._model.to(before)

    # ------------------------------------------------------------------------------ the passes

    def _record(self, inputs: Any) -> Any:
        seen: list[Any] = []

        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append((args[0] if args else kwargs["input"]).detach())

        with exclusive(self._model):  # a hook sees what other threads call, too
            handle = self._layer.register_forward_pre_hook(hook, with_kwargs=True)
            try:
                self._run(inputs)
            finally:
                handle.remove()
        if len(seen) == 1:
            return seen[0]
        raise WhenceError(
            f"layer {self.layer_name!r}",
            "a layer that the model calls once in a forward pass",
            f"{len(seen)} calls" if seen else "no call",
            "Choose a layer whose weights are not shared, and that the model calls as a module.",
        )

    def _check_same_again(self, inputs: Any) -> None:
        self._was_tried = True
        some = take_rows(inputs, slice(0, TRIED_ROWS))
        first, again = as_numpy(self._record(some)), as_numpy(self._record(some))
        if not np.allclose(first, again, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise WhenceError(
                "model",
                "a model that gives the same features for the same inputs in eval mode",
                "random ones",
                "Use modules such as nn.Dropout, or dropout(x, training=self.training).",
            )

    def _run(self, inputs: Any, **more: Any) -> Any:
        """Call the model in inference mode; return whatever it returns."""
        with inference(self._torch, self._model):
            return self._call(self._model, inputs, **more)

    def _call(self, function: Callable[..., Any], inputs: Any, **more: Any) -> Any:
        args, kwargs = self._arguments(inputs)
        return function(*args, **kwargs, **more)

    def _arguments(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return inputs as the model takes them: a dict by keywords, a tuple one by one."""
        placed = map_leaves(self._to_device, inputs)
        if isinstance(placed, Mapping):
            every = takes_any_keyword(self._model) and not any(takes(self._model, k) for k in placed)
            known = {key: value for key, value in placed.items() if every or takes(self._model, key)}
            return ((), known) if known else ((placed,), {})
        if isinstance(placed, tuple) and takes_positions(self._model, len(placed)):
            return placed, {}
        return (placed,), {}

    def _to_device(self, leaf: Any) -> Any:
        torch = self._torch
        if not hasattr(leaf, "detach"):
            array = as_numpy(leaf)
            leaf = torch.from_numpy(array if array.flags.writeable else array.copy())
        dtype = None
        if leaf.is_floating_point():  # a model in another precision refuses what it was not made for
            dtype = next((p.dtype for p in self._model.parameters() if p.is_floating_point()), None)
        return leaf.to(self._at(), dtype)

    def _at(self) -> Any:
        return next(iter(self._linear.values())).weight.device

    def _tail(self, inputs: Any) -> TorchTail:
        return TorchTail(self._torch, self._model, self._layer, self._arguments, self._output_of)

    def _output_of(self, result: Any) -> Any:
        """Return the one tensor of a model's result."""
        if hasattr(result, "detach"):
            return result
        if hasattr(result, "logits"):  # transformers
            return result.logits
        tensors = [leaf for leaf in leaves(result) if hasattr(leaf, "detach")]
        if len(tensors) == 1:
            return tensors[0]
        raise WhenceError(
            "model",
            "a model with one output",
            f"{len(tensors)} tensors",
            "Wrap it in a module whose forward returns the output that the loss is on.",
        )


def _returned_loss(result: Any) -> Any:
    """Return the loss in what a model returns when it is given labels, or None."""
    if isinstance(result, Mapping):  # also what transformers return
        return result.get("loss")
    if isinstance(result, list | tuple):
        return next((part for part in result if getattr(part, "ndim", None) == 0), None)
    return getattr(result, "loss", None)


def _on_host(tensor: Any) -> np.ndarray:
    array = as_numpy(tensor)
    return array if array.dtype == np.float64 else array.astype(np.float32)


@contextmanager
def _restored_config(model: Any) -> Iterator[None]:
    """Undo what a model of transformers notes in its configuration when it first sees labels."""
    config = getattr(model, "config", None)
    before = getattr(config, "problem_type", None)
    try:
        yield
    finally:
        if config is not None and hasattr(config, "problem_type"):
            config.problem_type = before
