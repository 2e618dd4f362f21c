"""Derivatives of a loss with respect to the pre-activations, by PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, import_extra

__all__ = ["TorchDerivatives", "torch_output"]

#: What is computed in: the second where code in the model or the loss fixes float32.
PRECISIONS = ("float64", "float32")


class TorchDerivatives:
    """``ell``, ``r`` and ``K`` of every sample of a batch; see ``differentiated.Derivatives``.

    Parameters
    ----------
    loss : callable
        ``loss(u, y, precision)`` gives ``ell (n,)`` for tensors ``u (n, C)`` and ``y (n, ...)``.
        Sample ``i`` must depend on row ``i`` alone.
    described : str
        How messages call the loss.
    device : torch.device or None
        Where it is computed.

    Attributes
    ----------
    precision : str or None
        The dtype that was settled on; ``None`` before the first call.
    """

    def __init__(self, loss: Callable[[Any, Any, str], Any], described: str, device: Any = None) -> None:
        self._torch = import_extra("torch", "torch")
        self._loss = loss
        self._described = described
        self._device = device
        self.precision: str | None = None

    def __call__(self, u: Array, target: Array, order: int) -> Array:
        """Return ``ell (n,)``, ``r (n, C)`` or ``K (n, C, C)``, for order 0, 1 or 2."""
        y = self._torch.as_tensor(_writable(target), device=self._device)
        result = self._in_first_precision(u, y, order)
        return result.detach() if hasattr(u, "detach") else as_numpy(result)

    def _in_first_precision(self, u: Array, y: Any, order: int) -> Any:
        failure: Exception | None = None
        for precision in PRECISIONS if self.precision is None else (self.precision,):
            try:
                point = _point(self._torch, u, precision, self._device)
                result = self._derivative(point, y, precision, order)
            except WhenceError:
                raise
            except Exception as error:  # whatever the user's layers and functions raise
                if order == 2 and "derivative for" in str(error):
                    raise WhenceError(
                        f"loss {self._described}",
                        "a loss with second derivatives in PyTorch",
                        " ".join(str(error).split()),
                        "Write it with plain tensor operations, as a function of (output, target).",
                    ) from error
                failure = failure or error
            else:
                self.precision = precision
                return result
        assert failure is not None
        raise failure

    def _derivative(self, point: Any, y: Any, precision: str, order: int) -> Any:
        torch = self._torch
        with torch.set_grad_enabled(order > 0), _without_autocast(torch, point):
            point.requires_grad_(order > 0)
            value = self._loss(point, y, precision)
            if order == 0:
                return value
            if not value.requires_grad:
                raise self._no_gradient()
            # Of the sum, in which each row occurs in one term.
            total = value.sum()
            (r,) = torch.autograd.grad(total, point, create_graph=order == 2, allow_unused=True)
            if r is None:
                raise self._no_gradient()
            if order == 1:
                return r
            rows = []
            for a in range(point.shape[1]):
                part = None
                if r.requires_grad:
                    column = r[:, a].sum()
                    (part,) = torch.autograd.grad(column, point, retain_graph=True, allow_unused=True)
                rows.append(torch.zeros_like(point) if part is None else part)
            return torch.stack(rows, dim=1)

    def _no_gradient(self) -> WhenceError:
        return WhenceError(
            f"loss {self._described}",
            "a loss that depends on the layer and can be differentiated",
            "one without a gradient with respect to the layer's pre-activations",
            "Choose a layer that the output depends on, and a loss that is not a metric.",
        )


def torch_output(output: Callable[[Any, str], Any], device: Any = None) -> Callable[[Array], Array]:
    """Return ``output(u, precision)`` as a function from and to arrays of the caller's kind."""
    torch = import_extra("torch", "torch")
    settled: list[str] = []

    def computed(u: Array) -> Array:
        failure: Exception | None = None
        for precision in settled or PRECISIONS:
            try:
                with torch.no_grad():
                    point = _point(torch, u, precision, device)
                    with _without_autocast(torch, point):
                        result = output(point, precision)
            except Exception as error:
                failure = failure or error
            else:
                settled[:] = [precision]
                return result if hasattr(u, "detach") else as_numpy(result)
        assert failure is not None
        raise failure

    return computed


def _point(torch: Any, u: Array, precision: str, device: Any) -> Any:
    """Return a leaf tensor of its own with the values of ``u``."""
    tensor = u if hasattr(u, "detach") else torch.from_numpy(_writable(u))
    return tensor.detach().to(device, getattr(torch, precision), copy=True)


def _writable(array: Array) -> Array:
    """Return an array that torch takes without a warning: a copy of one that is read-only."""
    flags = getattr(array, "flags", None)
    return array.copy() if flags is not None and not flags.writeable else array


def _without_autocast(torch: Any, tensor: Any) -> Any:
    return torch.autocast(tensor.device.type, enabled=False)
