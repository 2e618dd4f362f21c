"""What a PyTorch model does after its target layer, as a function of the layer's pre-activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.data.base import map_leaves, take_rows
from whence.models.torch.losses import PerSampleLoss
from whence.models.torch.module import exclusive

__all__ = ["TorchTail", "inference"]


class TorchTail:
    """All that a module does behind its target layer, in eval mode.

    The whole module is called, and a hook puts the pre-activations in the place of the layer's output.
    What runs before the layer runs for its form only: on one sample, where that is enough.

    Parameters
    ----------
    torch : module
    model : torch.nn.Module
    layer : torch.nn.Linear
    arguments : callable
        ``arguments(inputs)`` gives what the module is called with: ``(args, kwargs)``.
    output_of : callable
        Picks the one tensor of the module's result.
    """

    def __init__(
        self,
        torch: Any,
        model: Any,
        layer: Any,
        arguments: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]],
        output_of: Callable[[Any], Any],
    ) -> None:
        self._torch = torch
        self._model = model
        self._layer = layer
        self._arguments = arguments
        self._output_of = output_of
        self._cast: dict[str, dict[str, Any]] = {}

    def __call__(self, inputs: Any, u: Any, precision: str | None = None) -> Any:
        """Return the module's output if the layer's pre-activations were ``u``.

        Parameters
        ----------
        inputs : tree of arrays
        u : tensor of shape (n, ..., C)
        precision : {"float64", "float32"}, optional
            What is computed in behind the layer: weights there are cast on the way. ``None`` leaves
            them as they are.
        """
        args, kwargs = self._arguments(inputs)
        weights = {} if precision is None else self._weights(precision, args, kwargs)
        if precision is not None:
            u = u.to(getattr(self._torch, precision))
        keeps_gradients = self._torch.is_grad_enabled()
        with inference(self._torch, self._model), self._torch.set_grad_enabled(keeps_gradients):
            hook = self._layer.register_forward_hook(lambda *_: u)
            try:
                call = self._torch.func.functional_call
                return self._output_of(call(self._model, weights, args, kwargs))
            finally:
                hook.remove()

    def for_rows(
        self, inputs: Any, loss: PerSampleLoss
    ) -> tuple[Callable[[Any, str], Any], Callable[[Any, Any, str], Any]]:
        """Return output and loss of rows ``u (m, C)``: of samples, or of positions of any samples.

        Parameters
        ----------
        inputs : tree of arrays
            Some samples, for their form.
        loss : PerSampleLoss
        """
        torch, n_outputs = self._torch, self._layer.weight.shape[0]
        one = take_rows(inputs, slice(0, 1))
        positions = self._positions(one)
        values = np.random.default_rng(0).normal(size=(3, *positions, n_outputs))
        probe = torch.tensor(values, dtype=torch.float32, device=self._layer.weight.device)
        three = _repeated(one, 3)
        with torch.no_grad():
            full = self(three, probe, "float32")
            is_identity = full.shape == probe.shape and bool(torch.equal(full, probe))
            one_is_enough = self._agrees(one, probe, full)

        def whole(u: Any, precision: str) -> Any:
            if is_identity:
                return u
            template = one if one_is_enough else _repeated(one, int(u.shape[0]))
            return self(template, u, precision)

        def output(u: Any, precision: str) -> Any:
            two = _two_at_least(torch, u)
            return _rows(whole(_whole(torch, two, positions), precision), positions, two)[: len(u)]

        def ell(u: Any, y: Any, precision: str) -> Any:
            if len(u) == 1:
                return ell(_two_at_least(torch, u), _two_at_least(torch, y), precision)[:1]
            result = whole(_whole(torch, u, positions), precision)
            if not positions:
                return loss(result, y)
            if loss.is_on_rows:  # classes on the second axis, as PyTorch's own losses want them
                return loss(_rows(result, positions, u), y)
            values = loss.unreduced(result, _whole(torch, y, positions))
            if tuple(values.shape[1 : 1 + len(positions)]) != positions:
                raise WhenceError(
                    f"loss {loss.described}",
                    "the loss of each position",
                    f"shape {tuple(values.shape)}",
                    "Leave out its reduction, or choose a layer behind the place where positions are "
                    "brought together.",
                )
            values = _rows(values, positions, u)
            return values.reshape(values.shape[0], -1).mean(dim=1)

        return output, ell

    def _agrees(self, one: Any, probe: Any, full: Any) -> bool:
        """Whether one sample before the layer is enough for any number of them behind it."""
        try:
            small = self(one, probe, "float32")
        except Exception:  # whatever the user's code raises for sizes that do not fit
            return False
        return small.shape == full.shape and self._torch.allclose(small, full, rtol=1e-5, atol=1e-6)

    def _positions(self, one: Any) -> tuple[int, ...]:
        seen: list[tuple[int, ...]] = []
        args, kwargs = self._arguments(one)
        with inference(self._torch, self._model):
            hook = self._layer.register_forward_hook(lambda *parts: seen.append(tuple(parts[2].shape)))
            try:
                self._model(*args, **kwargs)
            finally:
                hook.remove()
        return seen[0][1:-1]

    def _weights(self, precision: str, args: Any, kwargs: Any) -> dict[str, Any]:
        """Return the weights and buffers behind the layer, cast; those before it are left alone."""
        if precision in self._cast:
            return self._cast[precision]
        dtype = getattr(self._torch, precision)
        before = self._modules_before(args, kwargs)
        cast = {}
        for prefix, module in self._model.named_modules():
            if prefix in before or module is self._layer:
                continue
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in own:
                if tensor.is_floating_point() and tensor.dtype != dtype:
                    cast[f"{prefix}.{name}".lstrip(".")] = tensor.detach().to(dtype)
        self._cast[precision] = cast
        return cast

    def _modules_before(self, args: Any, kwargs: Any) -> set[str]:
        """Return the names of modules that have done their work when the layer is called."""
        torch, events = self._torch, list[tuple[str, str]]()
        with inference(torch, self._model), ExitStack() as hooks:
            for name, module in self._model.named_modules():
                for register, kind in (
                    (module.register_forward_pre_hook, "in"),
                    (module.register_forward_hook, "out"),
                ):
                    hook = register(lambda *_, event=(kind, name): events.append(event))
                    hooks.callback(hook.remove)
            self._model(*args, **kwargs)
        names = {id(module): name for name, module in self._model.named_modules()}
        at = events.index(("in", names[id(self._layer)]))
        done = {name for kind, name in events[:at] if kind == "out"}
        return done - {name for _, name in events[at:]}


@contextmanager
def inference(torch: Any, model: Any) -> Iterator[None]:
    """Switch a model to eval mode without gradients or compilation, and back; each module by itself.

    One thread at a time: hooks that are set inside see its calls alone.
    """
    stance = getattr(torch.compiler, "set_stance", None)
    eager: AbstractContextManager[Any] = nullcontext() if stance is None else stance("force_eager")
    with exclusive(model):
        modes = [(module, module.training) for module in model.modules()]
        try:
            for module, _ in modes:
                module.training = False
            with torch.no_grad(), eager:
                yield
        finally:
            for module, training in modes:
                module.training = training


def _repeated(one: Any, n_rows: int) -> Any:
    return map_leaves(lambda leaf: leaf.repeat(n_rows, axis=0), one)


def _two_at_least(torch: Any, rows: Any) -> Any:
    """Return rows, a single one twice: models that squeeze their output lose the batch's axis with it."""
    return torch.cat([rows, rows]) if len(rows) == 1 else rows


def _whole(torch: Any, rows: Any, positions: tuple[int, ...]) -> Any:
    """Put rows ``(m, ...)`` at the positions of as many samples as it takes, the last one repeated."""
    if not positions:
        return rows
    size, n_rows = math.prod(positions), rows.shape[0]
    n_samples = -(-n_rows // size)
    places = torch.arange(n_samples * size, device=rows.device).clamp(max=n_rows - 1)
    return rows[places].reshape(n_samples, *positions, *rows.shape[1:])


def _rows(whole: Any, positions: tuple[int, ...], like: Any) -> Any:
    """Undo :func:`_whole` for as many rows as ``like`` has."""
    if not positions:
        return whole
    return whole.reshape(-1, *whole.shape[1 + len(positions) :])[: like.shape[0]]
