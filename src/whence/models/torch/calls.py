"""How a PyTorch module is called with a batch, and what comes of it: outputs, and losses."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from whence._errors import WhenceError
from whence.arrays.base import as_numpy
from whence.data.base import leaves, map_leaves
from whence.models.torch.losses import CLASS_OF_FUNCTION
from whence.models.torch.module import takes, takes_any_keyword, takes_positions
from whence.models.torch.replica import running

__all__ = ["Caller", "LossCall", "Watched"]


class LossCall(NamedTuple):
    """A loss of ``torch.nn.functional`` that a module called: its arguments and what it gave."""

    name: str
    settings: dict[str, Any]
    input: Any
    target: Any
    value: Any


class Watched(NamedTuple):
    """What a module returned, and the losses that it called on the way, where they were listened for."""

    result: Any
    losses: list[LossCall]


class Caller:
    """Calls a module with a batch, on its device, as its user does.

    A batch is a pair ``(inputs, labels)`` here; labels may be None.

    Parameters
    ----------
    torch : module
    model : torch.nn.Module
    at : callable
        Returns the module's device.
    forward : callable, optional
        ``forward(model, batch)``, which calls it in the user's way.
    label_key : str, optional
        Where batches are dicts, under which key ``forward`` finds the labels; ``"labels"`` by default.
    passes_labels : bool
        Whether the module is called with ``labels`` where there are some.
    """

    def __init__(
        self,
        torch: Any,
        model: Any,
        at: Callable[[], Any],
        forward: Any = None,
        label_key: str | None = None,
        passes_labels: bool = False,
    ) -> None:
        self._torch = torch
        self._model = model
        self._at = at
        self._forward = forward
        self.label_key = label_key or "labels"
        config = getattr(model, "config", None)
        # They make what their decoders take in of the labels.
        is_fed = bool(getattr(config, "is_encoder_decoder", False)) and takes(model, "labels")
        self._is_fed = is_fed and forward is None
        self.passes_labels = passes_labels or self._is_fed
        self.listens = passes_labels

    def batch(self, inputs: Any, labels: Any) -> tuple[Any, Any]:
        """Return what to call the module with for a batch."""
        fed = ("decoder_input_ids", "decoder_inputs_embeds", "decoder_attention_mask")
        if self._is_fed and labels is None and not any(key in inputs for key in fed):
            raise WhenceError(
                "samples",
                "labels, or decoder_input_ids: an encoder-decoder goes on from them",
                "neither",
                "Give with each sample the text whose next token is asked about.",
            )
        return inputs, labels

    def as_given(self, batch: tuple[Any, Any]) -> Any:
        """Return a batch in the form that the user's own functions take, as tensors."""
        inputs, labels = self.placed(batch)
        if isinstance(inputs, Mapping):
            return dict(inputs) if labels is None else {**inputs, self.label_key: labels}
        return inputs, labels

    def __call__(self, batch: tuple[Any, Any], weights: dict[str, Any] | None = None) -> Watched:
        """Call the module, with other weights if some are given."""
        own = running(self._model)
        model, names = own, dict(weights or {})
        args: tuple[Any, ...]
        kwargs: dict[str, Any]
        if self._forward is not None:
            model = _Calling(self._torch, own, self._forward)
            names = {f"model.{name}": value for name, value in names.items()}
            args, kwargs = (self.as_given(batch),), {}
        else:
            args, kwargs = self._arguments(batch)
        heard: list[LossCall] = []
        listening = _listening(self._torch, heard) if self.listens else nullcontext()
        with _restored_config(self._model), listening:
            if names:
                return Watched(self._torch.func.functional_call(model, names, args, kwargs), heard)
            return Watched(model(*args, **kwargs), heard)

    def output(self, result: Any) -> Any:
        """Return the one tensor of a module's result that is its output.

        Raises
        ------
        WhenceError
            If there are several.
        """
        if hasattr(result, "detach") and result.ndim:
            return result
        if hasattr(result, "detach"):
            raise WhenceError(
                "model",
                "a model that returns its output, beside its loss if it computes one",
                "a single number",
                "Let it return (loss, output), or pass the loss as loss_function=...",
            )
        if isinstance(result, Mapping) and "logits" in result:
            return result["logits"]
        if not isinstance(result, Mapping) and hasattr(result, "logits"):
            return result.logits
        if dataclasses.is_dataclass(result) and not isinstance(result, Mapping):
            result = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        if isinstance(result, Mapping):
            result = {key: value for key, value in result.items() if key != "loss"}
        tensors = [leaf for leaf in leaves(result) if getattr(leaf, "ndim", 0) and hasattr(leaf, "detach")]
        if len(tensors) == 1:
            return tensors[0]
        raise WhenceError(
            "model",
            "a model with one output",
            f"{len(tensors)} tensors",
            "Say which: InfluenceModel(..., forward=lambda model, batch: model(batch[0])[0]), or whatever "
            "gives the output that the loss is on.",
        )

    def loss(self, result: Any) -> Any:
        """Return the loss in what a module returns when it is given labels, or None."""
        if isinstance(result, Mapping):  # also what transformers return
            return result.get("loss")
        if isinstance(result, list | tuple):
            return next((part for part in result if getattr(part, "ndim", None) == 0), None)
        return None if hasattr(result, "detach") else getattr(result, "loss", None)

    def placed(self, tree: Any) -> Any:
        """Return a tree of arrays as tensors on the module's device."""
        return map_leaves(self._placed, tree)

    def _placed(self, leaf: Any) -> Any:
        torch = self._torch
        if not hasattr(leaf, "detach"):
            array = as_numpy(leaf)
            leaf = torch.from_numpy(array if array.flags.writeable else array.copy())
        dtype = None
        if leaf.is_floating_point():  # a model in another precision refuses what it was not made for
            dtype = next((p.dtype for p in self._model.parameters() if p.is_floating_point()), None)
        return leaf.to(self._at(), dtype)

    def _arguments(self, batch: tuple[Any, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return inputs as the model takes them: a dict by keywords, a tuple one by one."""
        inputs, labels = batch
        placed = map_leaves(self._placed, inputs)
        more = {}
        if labels is not None and self.passes_labels:
            labels = self._placed(labels)
            whole = not labels.is_floating_point() and labels.dtype != self._torch.bool
            more["labels"] = labels.long() if whole else labels
        if isinstance(placed, Mapping):
            every = takes_any_keyword(self._model) and not any(takes(self._model, k) for k in placed)
            known = {key: value for key, value in placed.items() if every or takes(self._model, key)}
            return ((), {**known, **more}) if known else ((placed,), more)
        if isinstance(placed, tuple) and takes_positions(self._model, len(placed)):
            return placed, more
        return (placed,), more


def _Calling(torch: Any, model: Any, forward: Any) -> Any:
    """Return a module that calls another one by a function of the user."""

    class Calling(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.training = model.training

        def forward(self, batch: Any) -> Any:
            return forward(self.model, batch)

    return Calling()


@contextmanager
def _listening(torch: Any, heard: list[LossCall]) -> Iterator[None]:
    """Note each loss of ``torch.nn.functional`` that is called inside."""
    functions = {getattr(torch.nn.functional, name): name for name in CLASS_OF_FUNCTION}

    class Listening(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function not in functions:
                return function(*args, **kwargs)
            with torch._C.DisableTorchFunction():  # what it calls in turn is a part of it
                value = function(*args, **kwargs)
            bound = inspect.signature(function).bind(*args, **kwargs).arguments
            given = list(bound.items())
            settings = {key: setting for key, setting in given[2:] if setting is not None}
            heard.append(LossCall(functions[function], settings, given[0][1], given[1][1], value))
            return value

    with Listening():
        yield


@contextlib.contextmanager
def _restored_config(model: Any) -> Iterator[None]:
    """Undo what a model of transformers notes in its configuration when it first sees labels."""
    config = getattr(model, "config", None)
    before = getattr(config, "problem_type", None)
    try:
        yield
    finally:
        if config is not None and hasattr(config, "problem_type"):
            config.problem_type = before
