"""What the adapter asks about a PyTorch module: its layers, its device, and what ``forward`` takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from whence._errors import WhenceError
from whence.models.state import Part

__all__ = [
    "check_device",
    "device_named",
    "takes",
    "takes_any_keyword",
    "takes_positions",
    "tensor_part",
    "unwrapped",
]


def unwrapped(model: Any) -> Any:
    """Return the module inside ``torch.compile`` and ``DataParallel``."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
            model = model.module
        else:
            return model


def device_named(torch: Any, wanted: Any) -> Any:
    """Return the device of PyTorch that a user names, or raise if it cannot be used."""
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        got = f"{wanted!r} ({' '.join(str(error).split())[:80]})"
        raise WhenceError("device", "a device of PyTorch", got, "Leave it out.") from None
    if device.type == "mps":
        raise WhenceError("device", "a device with float64", "mps", "Leave it out: use the host.")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        n_devices = torch.cuda.device_count()
        raise WhenceError("device", f"one of {n_devices} CUDA devices", repr(wanted), "Leave it out.")
    return device


def check_device(torch: Any, model: Any, wanted: Any) -> Any:
    """Return the device to keep arrays on, or None; raise unless the model is on one, and that one."""
    found = sorted({str(p.device) for p in [*model.parameters(), *model.buffers()]})
    if len(found) > 1 or found == ["meta"]:
        raise WhenceError(
            "model",
            "a module with its weights on one device",
            " and ".join(found),
            "Move it: model.to('cpu').",
        )
    if wanted is None:
        return None
    device = device_named(torch, wanted)
    if str(device) == found[0]:
        return device
    raise WhenceError(
        "device",
        "the device that the model is on",
        f"{device}, and a model on {found[0]}",
        f"Move the model: model.to({str(wanted)!r}).",
    )


def tensor_part(tensor: Any, may_count: bool = False) -> Part | None:
    """Return a tensor as what a model computes with; PyTorch counts most of the writes to it.

    ``None`` for one that is not plain memory of its own, such as those that are made of several others.
    """
    try:
        address = tensor.data_ptr()
    except (NotImplementedError, RuntimeError):
        return None
    if not address and tensor.numel():
        return None
    version = 0 if tensor.is_inference() else tensor._version
    counts = may_count and not (tensor.is_floating_point() or tensor.is_complex())
    return Part(tensor.detach, (id(tensor), address, version), may_count=counts)


def takes(model: Any, name: str) -> bool:
    """Whether ``forward`` takes an argument of this name."""
    parameters = _parameters(model)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return name in parameters and parameters[name].kind in kinds


def takes_any_keyword(model: Any) -> bool:
    """Whether ``forward`` takes arguments of any name."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in _parameters(model).values())


def takes_positions(model: Any, count: int) -> bool:
    """Whether ``forward`` takes this many arguments by position."""
    kinds = [p.kind for p in _parameters(model).values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return True
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(kind in by_position for kind in kinds) >= count


def _parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    if hasattr(model, "get_base_model"):  # of peft, which hands on whatever it is given
        model = model.get_base_model()
    return inspect.signature(model.forward).parameters
