"""What a PyTorch model does after its target layer, as a function of the layer's pre-activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.data.base import map_leaves, take_rows
from whence.models.torch.calls import Caller, Watched
from whence.models.torch.form import Form, spread
from whence.models.torch.hooks import HookedLoss
from whence.models.torch.layers import Dense
from whence.models.torch.own import CalledLoss, ComputedLoss
from whence.models.torch.replica import inference

__all__ = ["TorchTail", "repeated"]


class TorchTail:
    """All that a module does behind its target layer, in eval mode.

    The whole module is called, and a hook puts the pre-activations in the place of the layer's output.
    What runs before the layer runs for its form only: on one sample, where that is enough.

    Parameters
    ----------
    torch : module
    model : torch.nn.Module
    layer : Dense
    caller : Caller
    form : Form
        How the layer's positions come out of the model.
    loss : PerSampleLoss, CalledLoss or ComputedLoss, optional
    """

    def __init__(
        self, torch: Any, model: Any, layer: Dense, caller: Caller, form: Form, loss: Any = None
    ) -> None:
        self._torch = torch
        self._model = model
        self._layer = layer
        self._caller = caller
        self._form = form
        self._loss = loss
        self._cast: dict[str, dict[str, Any]] = {}
        self._before: set[str] | None = None
        self._runs_in_a_loop = False

    def run(self, batch: Any, u: Any, precision: str | None = None) -> Watched:
        """Run the module as if the layer's output, positions and all, were ``u``.

        Parameters
        ----------
        batch : (inputs, labels)
        u : tensor of shape (n, ..., C)
        precision : {"float64", "float32"}, optional
            What is computed in behind the layer: weights there are cast on the way. ``None`` leaves
            them as they are.
        """
        weights = {} if precision is None else self._weights(precision, batch)
        if precision is not None:
            u = u.to(getattr(self._torch, precision))
        return self.run_with(batch, u, weights)

    def run_with(self, batch: Any, u: Any, weights: dict[str, Any]) -> Watched:
        """Run the module as if the layer's output were ``u``, with other weights."""
        keeps_gradients = self._torch.is_grad_enabled()
        grad = self._torch.set_grad_enabled
        with inference(self._torch, self._model) as running, grad(keeps_gradients):
            hook = running[self._layer.module].register_forward_hook(lambda *_: u)
            try:
                return self._caller(batch, weights)
            finally:
                hook.remove()

    def output(self, batch: Any, u: Any, precision: str | None = None) -> Any:
        """Return the module's output, units last, if the layer's pre-activations were ``u``.

        Where the module brings positions together, ``u (n, C)`` stands for all of them.
        """
        result = self.run(batch, self._full(batch, u), precision).result
        return self._form.units_last(self._caller.output(result))

    def __call__(self, batch: Any, u: Any, precision: str | None = None) -> Any:
        """Return what the loss is on, the module's output but for losses that it computes by itself."""
        if not isinstance(self._loss, CalledLoss):
            return self.output(batch, u, precision)
        watched = self.run(batch, self._full(batch, u), precision)
        return self._loss.input_of(watched, int(u.shape[0]), u)

    def for_rows(self, batch: Any) -> tuple[Callable[[Any, str], Any], Callable[[Any, Any, str], Any]]:
        """Return output and loss of rows ``u (m, C)``: of samples, or of positions of any samples.

        Parameters
        ----------
        batch : (inputs, labels)
            Some samples, for their form.
        """
        torch, positions = self._torch, () if self._form.is_pooled else self._form.positions
        one = take_rows(batch, slice(0, 1))
        templates = {}
        for name, run in (("output", self.output), ("loss", self)):
            templates[name] = self._template(one, run, positions)

        def rows_of(name: str, u: Any, precision: str) -> Any:
            lacks = getattr(self._loss, "lacks", None) if name == "loss" else None
            result = templates[name](_whole(torch, u, positions, lacks), precision)
            return _rows(result, positions, u, lacks)

        def output(u: Any, precision: str) -> Any:
            return rows_of("output", _two_at_least(torch, u), precision)[: len(u)]

        def ell(u: Any, y: Any, precision: str) -> Any:
            if len(u) == 1:
                return ell(_two_at_least(torch, u), _two_at_least(torch, y), precision)[:1]
            if isinstance(self._loss, ComputedLoss):
                return self._one_by_one(one, u, y, precision)
            if not positions or self._loss.is_on_rows:  # rows, whatever axis the module has classes on
                return self._loss(rows_of("loss", u, precision), y)
            return self._at_positions(templates["loss"], positions, u, y, precision)

        return output, ell

    def _template(
        self, one: Any, run: Callable[..., Any], positions: tuple[int, ...]
    ) -> Callable[[Any, str], Any]:
        """Return a function of ``u`` alone, with inputs that need not count."""
        torch, n_outputs = self._torch, self._layer.n_outputs
        values = np.random.default_rng(0).normal(size=(3, *positions, n_outputs))
        probe = torch.tensor(values, dtype=torch.float32, device=self._layer.device)
        with torch.no_grad():
            precision, full = self._first_that_runs(lambda dtype: run(repeated(one, 3), probe, dtype))
            if full.shape == probe.shape and bool(torch.equal(full, probe.to(full.dtype))):
                return lambda u, precision: u
            for form in (_with_labels_repeated, lambda one, _: one):
                try:
                    small = run(form(one, 3), probe, precision)
                except Exception:  # whatever the user's code raises for sizes that do not fit
                    continue
                room = 1e-6 * float(full.abs().max())
                if small.shape == full.shape and torch.allclose(small, full, rtol=1e-5, atol=room):
                    break
            else:
                form = repeated
        return lambda u, precision: run(form(one, int(u.shape[0])), u, precision)

    @staticmethod
    def _first_that_runs(run: Callable[[str], Any]) -> tuple[str, Any]:
        """Return a precision that the module's own code takes, and what ``run`` gives in it."""
        try:
            return "float32", run("float32")
        except WhenceError:
            raise
        except Exception:  # code that fixes another one, or that goes on with what came before the layer
            return "float64", run("float64")

    def _at_positions(
        self, run: Callable[[Any, str], Any], positions: tuple[int, ...], u: Any, y: Any, precision: str
    ) -> Any:
        """Return a loss of the user's at each position, on outputs and labels as the module has them."""
        torch, form, loss = self._torch, self._form, self._loss
        output, target = run(_whole(torch, u, positions), precision), _whole(torch, y, positions)
        if form.is_moved(output):
            output = output.movedim(-1, 1)
        if form.is_moved(target):
            target = target.movedim(-1, 1)
        function = loss if isinstance(loss, HookedLoss) else loss.unreduced
        values = form.units_last(function(output, target))
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

    def _one_by_one(self, one: Any, u: Any, y: Any, precision: str) -> Any:
        """Return the loss that the module computes of each sample as a batch of its own."""
        torch = self._torch
        inputs, _ = one

        def single(u: Any, y: Any) -> Any:
            watched = self.run((inputs, y[None]), self._full(one, u[None]), precision)
            return self._loss.loss_of(watched.result).reshape(())

        self._weights(precision, one)  # once, and not inside
        if not self._runs_in_a_loop:
            try:
                return torch.func.vmap(single)(u, y)
            except Exception:  # code that looks at values, which vectorised code cannot
                self._runs_in_a_loop = True
        return torch.stack([single(u[i], y[i]) for i in range(len(u))])

    def _full(self, batch: Any, u: Any) -> Any:
        return spread(u, self._form.positions) if self._form.is_pooled else u

    def _weights(self, precision: str, batch: Any) -> dict[str, Any]:
        """Return the weights and buffers behind the layer, cast; those before it are left alone."""
        if precision in self._cast:
            return self._cast[precision]
        dtype = getattr(self._torch, precision)
        if self._before is None:
            self._before = self._modules_before(batch)
        cast = {}
        for prefix, module in self._model.named_modules():
            if prefix in self._before or module is self._layer.module:
                continue
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in own:
                if tensor.is_floating_point() and tensor.dtype != dtype:
                    cast[f"{prefix}.{name}".lstrip(".")] = tensor.detach().to(dtype)
        self._cast[precision] = cast
        return cast

    def _modules_before(self, batch: Any) -> set[str]:
        """Return the names of modules that have done their work when the layer is called."""
        torch, events = self._torch, list[tuple[str, str]]()
        with inference(torch, self._model) as running, ExitStack() as hooks:
            for name, module in running.model.named_modules():
                for register, kind in (
                    (module.register_forward_pre_hook, "in"),
                    (module.register_forward_hook, "out"),
                ):
                    hook = register(lambda *_, event=(kind, name): events.append(event))
                    hooks.callback(hook.remove)
            self._caller(batch)
            names = {id(module): name for name, module in running.model.named_modules()}
            own = names[id(running[self._layer.module])]
        at = events.index(("in", own))
        done = {name for kind, name in events[:at] if kind == "out"}
        return done - {name for _, name in events[at:]}


def repeated(one: Any, n_rows: int) -> Any:
    """Return a batch of one sample as one of several."""
    return map_leaves(lambda leaf: leaf.repeat(n_rows, axis=0), one)


def _with_labels_repeated(one: Any, n_rows: int) -> Any:
    """Return a batch of one sample with a label for each row, for modules that compute their loss."""
    inputs, labels = one
    return inputs, None if labels is None else repeated(labels, n_rows)


def _two_at_least(torch: Any, rows: Any) -> Any:
    """Return rows, a single one twice: models that squeeze their output lose the batch's axis with it."""
    return torch.cat([rows, rows]) if len(rows) == 1 else rows


def _whole(torch: Any, rows: Any, positions: tuple[int, ...], lacks: str | None = None) -> Any:
    """Put rows ``(m, ...)`` at the positions of as many samples as it takes, the last one repeated.

    The position at an end where the loss has none is left out.
    """
    if not positions:
        return rows
    size, n_rows = math.prod(positions), rows.shape[0]
    used = size - (lacks is not None)
    n_samples = -(-n_rows // used)
    places = torch.arange(n_samples * used, device=rows.device).clamp(max=n_rows - 1)
    places = places.reshape(n_samples, used)
    if lacks is not None:
        places = torch.cat([places, places[:, :1]] if lacks == "end" else [places[:, :1], places], dim=1)
    return rows[places].reshape(n_samples, *positions, *rows.shape[1:])


def _rows(whole: Any, positions: tuple[int, ...], like: Any, lacks: str | None = None) -> Any:
    """Undo :func:`_whole` for as many rows as ``like`` has."""
    if not positions:
        return whole
    rest = whole.shape[1 + len(positions) :]
    rows = whole.reshape(whole.shape[0], math.prod(positions), *rest)
    if lacks is not None:
        rows = rows[:, :-1] if lacks == "end" else rows[:, 1:]
    return rows.reshape(-1, *rest)[: like.shape[0]]
