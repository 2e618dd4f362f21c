"""The dense layers of a PyTorch module, and which of them the output comes from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy
from whence.models.torch.replica import inference

__all__ = ["Dense", "calls_in_order", "dense_layers", "used_behind"]


@dataclass(frozen=True)
class Dense:
    """A module that is a dense layer: a ``torch.nn.Linear``, or one with an adapter of LoRA upon it.

    Attributes
    ----------
    module : torch.nn.Module
        What is called.
    linear : torch.nn.Linear
        What holds the weights.
    """

    module: Any
    linear: Any

    @property
    def n_outputs(self) -> int:
        """``C``."""
        return int(self.linear.weight.shape[0])

    @property
    def device(self) -> Any:
        """Where the weights are."""
        return self.linear.weight.device

    @property
    def dtype(self) -> Any:
        """The weights' dtype."""
        return self.linear.weight.dtype

    def kernel(self) -> np.ndarray:
        """Return the weights ``(C, d)`` as the layer has them now, with those of LoRA merged."""
        weight = as_numpy(self.linear.weight)
        if self.module is self.linear or self.module.merged or self.module.disable_adapters:
            return weight
        active = [name for name in self.module.active_adapters if name in self.module.lora_A]
        return weight + sum(as_numpy(self.module.get_delta_weight(name)) for name in active)

    def bias(self) -> np.ndarray | None:
        """Return the bias ``(C,)``, or None."""
        return None if self.linear.bias is None else as_numpy(self.linear.bias)


def dense_layers(torch: Any, model: Any) -> dict[str, Dense]:
    """Return the dense layers of a module by name, or raise if there are none with weights.

    A linear layer with LoRA is one layer, with its weights merged; the parts that it is made of are none.
    """
    found: dict[str, Dense] = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(inside)) and inside:
            continue
        if isinstance(module, torch.nn.Linear):
            found[name] = Dense(module, module)
        elif hasattr(module, "get_delta_weight") and hasattr(module, "get_base_layer"):
            base = module.get_base_layer()
            if isinstance(base, torch.nn.Linear):
                found[name] = Dense(module, base)
                inside.append(f"{name}.")
    if not found:
        raise WhenceError(
            "model",
            "a module with at least one torch.nn.Linear",
            f"a {type(model).__name__} without any",
            "Only dense layers can be explained.",
        )
    for name, layer in found.items():
        if isinstance(layer.linear.weight, torch.nn.parameter.UninitializedParameter):
            raise WhenceError(
                "model", "a model with weights", f"{name!r}, never called", "Train it, or load its weights."
            )
    return found


def calls_in_order(torch: Any, model: Any, layers: dict[str, Dense], run: Callable[[], Any]) -> list[str]:
    """Return the names of the layers that a pass calls, in the order of their first calls."""
    called: dict[str, None] = {}
    with inference(torch, model) as running, ExitStack() as hooks:
        for name, layer in layers.items():
            note = running[layer.module].register_forward_pre_hook
            hooks.callback(note(lambda *_, n=name: called.update({n: None})).remove)
        run()
    return list(called)


def used_behind(torch: Any, model: Any, layer: Dense, run: Callable[[dict[str, Any]], Any]) -> list[str]:
    """Return the names of parameters that act on the output other than through the layer's output.

    Parameters
    ----------
    torch : module
    model : torch.nn.Module
    layer : Dense
    run : callable
        ``run(weights)`` gives the output with other weights, the layer's own output held fixed.
    """
    copies = {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
    }
    with torch.enable_grad():
        output = run(copies)
        if not output.requires_grad:
            return []
        gradients = torch.autograd.grad(output.sum(), list(copies.values()), allow_unused=True)
    return [name for name, gradient in zip(copies, gradients, strict=True) if gradient is not None]
