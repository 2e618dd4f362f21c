"""The loss that a module computes by itself: which one it is, found out on the first batch.

A module is believed to compute a loss of ``torch.nn.functional`` only where its whole loss is that
function's, but for a factor and for terms that the target layer has no part in. What the module gave the
function, its output after a temperature, its labels shifted by one, is then what the loss is on. Any other
loss is taken as the module computes it, sample by sample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.data.base import take_rows
from whence.models.adapter import LossSpec
from whence.models.torch.calls import LossCall, Watched
from whence.models.torch.form import Form
from whence.models.torch.losses import TAKE_CLASS_NUMBERS, PerSampleLoss

__all__ = ["CalledLoss", "ComputedLoss", "check_is_that_of_training", "own_loss"]

_NAMED = "loss of the model itself"
_REMEDY = "Pass it as loss_function=lambda output, target: ..., or loss=..., one number a sample."

Run = Callable[[Any, Any], Watched]
"""``run(batch, u)`` calls the module with pre-activations ``u`` in place of the layer's."""


class CalledLoss(PerSampleLoss):
    """A loss of ``torch.nn.functional`` that a module calls, on what the module gives it.

    Parameters
    ----------
    torch : module
    call : LossCall
    place : int
        Which of the losses that the module calls it is.
    form : Form
        Of the layer's positions.
    """

    def __init__(self, torch: Any, call: LossCall, place: int, form: Form) -> None:
        super().__init__(functools.partial(getattr(torch.nn.functional, call.name), **call.settings))
        self._torch = torch
        self._place = place
        self._name = call.name
        self._form = Form(()) if form.is_pooled else form
        self._given = call.settings
        self._takes_classes = self.kind in TAKE_CLASS_NUMBERS
        #: Along a sequence: at which end labels are missing, as where they are shifted by one.
        self.lacks: str | None = None

    @property
    def ignored(self) -> int:
        """The label that stands for none."""
        return int(self.settings.get("ignore_index", -100))

    def heard(self, watched: Watched, where: str = "for every batch") -> LossCall:
        """Return the call in what came of running the module, or raise if it is another one."""
        calls = watched.losses
        call = calls[self._place] if self._place < len(calls) else None
        if call is not None and call.name == self._name and self._has_settings(call.settings):
            return call
        raise WhenceError(
            _NAMED,
            f"{self.described} with the same settings {where}",
            "other settings or another loss, such as classes weighted by their share of the batch",
            _REMEDY,
        )

    def input_of(self, watched: Watched, n: int, u: Any) -> Any:
        """Return what the loss is on, shape ``(n, *positions, ...)``; ``u`` where it is on nothing."""
        given = self.heard(watched).input
        if not self._form.positions:
            return _by_sample(given, n)
        if given.ndim > 2 and (self._takes_classes or self._form.is_moved(given)):
            given = given.movedim(1, -1)  # where PyTorch's losses have classes
        return self._by_position(given, n, u if given.shape[-1:] == u.shape[-1:] else None)

    def target_of(self, watched: Watched, n: int, positions: tuple[int, ...] | None = None) -> Any:
        """Return the labels that the loss is given, shape ``(n, *positions, ...)``.

        A batch may have other ``positions`` than the first one.
        """
        target = self.heard(watched).target
        if not self._form.positions:
            return _by_sample(target, n)
        is_on_classes = self._takes_classes and not target.is_floating_point()
        if not is_on_classes and (self._takes_classes or self._form.is_moved(target)) and target.ndim > 2:
            target = target.movedim(1, -1)
        return self._by_position(target, n, self.ignored if is_on_classes else None, positions)

    def _by_position(self, tensor: Any, n: int, fill: Any, positions: tuple[int, ...] | None = None) -> Any:
        """Return rows as ``(n, *positions, ...)``; those that the module leaves out are filled in."""
        positions = positions or self._form.positions
        size = math.prod(positions)
        n_rows = size if self.lacks is None else size - 1
        rest = _rest(tensor, n, n_rows)
        rows = tensor.reshape(n, n_rows, *rest)
        if self.lacks is not None:
            if fill is None:
                raise WhenceError(_NAMED, "a loss at every position", "one at some of them", _REMEDY)
            at = -1 if self.lacks == "end" else 0
            gap = self._torch.zeros_like(rows[:, :1])
            gap += fill.reshape(n, size, *rest)[:, at, None] if hasattr(fill, "detach") else fill
            rows = self._torch.cat([rows, gap] if at else [gap, rows], dim=1)
        return rows.reshape(n, *positions, *rest)

    def _has_settings(self, settings: dict[str, Any]) -> bool:
        if settings.keys() != self._given.keys():
            return False
        return all(_is_same(self._torch, settings[key], self._given[key]) for key in settings)


class ComputedLoss:
    """A loss as the module computes it, of one sample at a time.

    Parameters
    ----------
    loss_of : callable
        Picks the loss of what the module returns.
    boundary : float or None
        See :class:`PerSampleLoss`.
    code : object
        What computes it, from which the loss is recognised.
    """

    described = "of the model itself"
    kind = ""
    is_on_rows = False
    is_on_tags = False
    factor = 1.0

    def __init__(self, loss_of: Callable[[Any], Any], boundary: float | None, code: Any) -> None:
        self.loss_of = loss_of
        self.boundary = boundary
        self.unreduced = code
        self.settings: dict[str, Any] = {}

    def spec(self) -> LossSpec:
        """Return that no closed form is known."""
        return LossSpec(None, "", self.described)


def own_loss(
    torch: Any,
    run: Run,
    loss_of: Callable[[Any], Any],
    batch: tuple[Any, Any],
    u: Any,
    form: Form,
    model: Any,
) -> CalledLoss | ComputedLoss:
    """Return the loss that a module computes by itself.

    Parameters
    ----------
    torch : module
    run : callable
        See ``Run``.
    loss_of : callable
        Picks the loss of what the module returns.
    batch : (inputs, labels)
        Three samples at least.
    u : tensor
        What the layer gives for them.
    form : Form
    model : torch.nn.Module

    Raises
    ------
    WhenceError
        If it is no loss of single samples, or not one of the layer's output alone.
    """
    with torch.no_grad():
        plain = run(batch, u)
    total = loss_of(plain.result)
    if total is None or not hasattr(total, "detach") or total.numel() != 1:
        got = "None" if total is None else f"a {type(total).__name__} of shape {tuple(np.shape(total))}"
        raise WhenceError(
            _NAMED, "a number, returned as `loss` for a batch with labels in eval mode", got, _REMEDY
        )
    found = [
        loss
        for place in range(len(plain.losses))
        if (loss := _called(torch, run, loss_of, batch, u, form, place)) is not None
    ]
    if len(found) == 1:
        return found[0]
    if form.positions and not form.is_pooled:
        raise WhenceError(
            _NAMED,
            "along a sequence, one loss of torch.nn.functional on each position",
            "another one",
            "Pass it: loss=lambda outputs, batch: ..., one number for each position.",
        )
    return _computed(torch, run, loss_of, batch, u, model)


def check_is_that_of_training(torch: Any, model: Any, call: Callable[[Any], Watched], loss: Any) -> None:
    """Raise if the module calls a loss with other settings in training, such as smoothing.

    Modules of PyTorch itself stay in eval mode, so that nothing is drawn or learned; what others draw or
    learn is undone.

    Parameters
    ----------
    torch : module
    model : torch.nn.Module
        In any mode.
    call : callable
        ``call(weights)`` runs the module in the mode that it is in, with these buffers.
    loss : CalledLoss or ComputedLoss
    """
    if not isinstance(loss, CalledLoss):
        return
    own = [module for module in model.modules() if not type(module).__module__.startswith("torch.")]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = [module.training for module in own]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            for module in own:
                module.training = True
            watched = call(buffers)
        except Exception:  # what runs in training alone, and needs more than a batch
            return
        finally:
            for module, mode in zip(own, modes, strict=True):
                module.training = mode
    loss.heard(watched, "in training as in eval mode")


# ----------------------------------------------------------------------- a loss that the module calls


def _called(
    torch: Any,
    run: Run,
    loss_of: Callable[[Any], Any],
    batch: tuple[Any, Any],
    u: Any,
    form: Form,
    place: int,
) -> CalledLoss | None:
    """Return one of the losses that the module called, if the module's is no other."""
    factors = []
    n = int(u.shape[0])
    with torch.no_grad():
        loss = CalledLoss(torch, run(batch, u).losses[place], place, form)
        try:
            if not _is_arranged(torch, run, batch, u, loss):
                return None
            if not _is_free_of_labels(torch, run, batch, u, loss):
                return None
            if not _is_free_of_others(torch, run, batch, u, loss):
                return None
            for size in (n, n - 1):
                part = _rows_of(batch, size)
                factors.append(_factor(torch, run, loss_of, part, u[:size], loss))
        except WhenceError:
            return None
    (first, counted), (second, fewer) = factors
    if first is None or second is None:
        return None
    if not _is_near(first, second):
        first, second = first / counted, second / fewer
        if not _is_near(first, second):
            return None
    loss.factor = 1.0 if _is_near(first, 1.0, 2e-5) else float(first)
    return loss


def _is_arranged(torch: Any, run: Run, batch: Any, u: Any, loss: CalledLoss) -> bool:
    """Whether the loss has one row for each sample (or position), and these are the sample's own."""
    watched, n, positions = run(batch, u), int(u.shape[0]), loss._form.positions
    call = loss.heard(watched)
    if positions and loss._takes_classes and call.target.numel() == n * (math.prod(positions) - 1):
        loss.lacks = _missing_end(torch, run, batch, u, loss)
    try:
        rows, target = loss.input_of(watched, n, u), loss.target_of(watched, n)
        axes = 1 + len(positions)
        flat, labels = rows.reshape(-1, *rows.shape[axes:]), target.reshape(-1, *target.shape[axes:])
        function = getattr(torch.nn.functional, call.name)
        value = function(flat, loss._as_target(flat, labels), **call.settings)
    except (WhenceError, RuntimeError, ValueError, IndexError):
        return False
    rounding = 1e-6 * float(rows.abs().max())
    if not _is_near(float(value.double().mean()), float(call.value.double().mean()), rounding):
        return False
    place = (0, *(size // 2 for size in positions))
    moved = u.clone()
    moved[place] += 1
    changed = loss.input_of(run(batch, moved), n, moved) != rows
    elsewhere = changed.clone()
    elsewhere[place] = False
    return bool(changed.any()) and not bool(elsewhere.any())


def _missing_end(torch: Any, run: Run, batch: Any, u: Any, loss: CalledLoss) -> str | None:
    """Return at which end of a sequence the loss has no row."""
    plain = loss.heard(run(batch, u)).input
    for at, name in ((-1, "end"), (0, "start")):
        moved = u.clone()
        moved[:, at] += 1
        if torch.equal(loss.heard(run(batch, moved)).input, plain):
            return name
    return None


def _is_free_of_labels(torch: Any, run: Run, batch: Any, u: Any, loss: CalledLoss) -> bool:
    """Whether what the loss is on is the same for all labels, without margins put on their classes."""
    inputs, labels = batch
    n = int(u.shape[0])
    plain = loss.input_of(run(batch, u), n, u)
    for other in (np.roll(labels, 1, axis=0), np.zeros_like(labels)):
        try:
            changed = loss.input_of(run((inputs, other), u), n, u)
        except Exception:  # labels that the module does not take
            continue
        if changed.shape != plain.shape or not _are_equal(torch, changed, plain):
            return False
    return True


def _is_free_of_others(torch: Any, run: Run, batch: Any, u: Any, loss: CalledLoss) -> bool:
    """Whether what the loss gets of a sample stays the same without other samples, its label too."""
    n = int(u.shape[0])
    watched = run(batch, u)
    full = loss.input_of(watched, n, u), loss.target_of(watched, n)
    size_of_label = np.asarray(batch[1]).reshape(n, -1).sum(axis=1)
    alone = [[int(i)] * 2 for i in (size_of_label.argmax(), size_of_label.argmin())]  # two: none squeezes
    for rows in (list(range(n - 1)), list(range(1, n)), *alone):
        watched = run(take_rows(batch, np.asarray(rows)), u[rows])
        size = len(rows)
        for part, whole in zip(
            (loss.input_of(watched, size, u[rows]), loss.target_of(watched, size)), full, strict=True
        ):
            if part.shape != whole[rows].shape or not _are_equal(torch, part, whole[rows]):
                return False
    return True


def _factor(
    torch: Any, run: Run, loss_of: Callable[[Any], Any], batch: Any, u: Any, loss: CalledLoss
) -> tuple[float | None, int]:
    """Return by how much the module's loss moves with the mean of this one, and how many rows count.

    None unless it is the same everywhere.
    """
    totals, means = [], []
    generator = np.random.default_rng(0)
    n = int(u.shape[0])
    counted = 0
    for scale in (0.0, 1.0, 2.0, 4.0):
        noise = torch.tensor(generator.normal(size=tuple(u.shape)), dtype=u.dtype, device=u.device)
        watched = run(batch, u + scale * noise)
        call = loss.heard(watched)
        target = loss.target_of(watched, n)
        is_on_classes = loss._takes_classes and not target.is_floating_point()
        counted = int((target != loss.ignored).sum()) if is_on_classes else int(target.numel())
        value = call.value.double()
        reduction = call.settings.get("reduction", "mean")
        means.append(float(value.sum() / counted if reduction == "sum" else value.mean()))
        totals.append(float(loss_of(watched.result).double()))
    spans = np.diff(means), np.diff(totals)
    if not np.abs(spans[0]).min() > 1e-9:
        return None, counted
    slopes = spans[1] / spans[0]
    room = 2e-5 * np.abs(totals).max() / np.abs(spans[0])
    if np.any(np.abs(slopes - slopes[-1]) > 1e-4 * abs(slopes[-1]) + room) or slopes[-1] <= 0:
        return None, counted
    return float(slopes[-1]), counted


# ------------------------------------------------------------------------------- as it is computed


def _computed(
    torch: Any, run: Run, loss_of: Callable[[Any], Any], batch: Any, u: Any, model: Any
) -> ComputedLoss:
    """Return the module's loss of single samples, if that of a batch is their mean or their sum."""
    n = int(u.shape[0])
    with torch.no_grad():
        singles = [
            float(loss_of(run(_rows_of(batch, slice(i, i + 1)), u[i : i + 1]).result)) for i in range(n)
        ]
        room = 2e-5 * float(np.abs(singles).max())  # losses may be of any scale
        is_mean = is_sum = True
        for rows in (slice(0, n), slice(0, n - 1), slice(1, n)):
            total = float(loss_of(run(_rows_of(batch, rows), u[rows]).result))
            is_mean = is_mean and _is_near(total, float(np.mean(singles[rows])), room)
            is_sum = is_sum and _is_near(total, float(np.sum(singles[rows])), room)
    if not (is_mean or is_sum):
        raise WhenceError(
            _NAMED,
            "the mean or the sum of the losses of single samples",
            "a loss in which the samples of a batch depend on each other, or are weighted by the batch",
            _REMEDY,
        )
    labels = np.asarray(batch[1])
    names_outputs = (
        labels.dtype.kind in "iu" and labels.size == n and labels.min() >= 0 and labels.max() < u.shape[-1]
    )
    boundary = 0.0 if names_outputs and u.shape[-1] > 1 else None
    return ComputedLoss(loss_of, boundary, model.forward)


# ------------------------------------------------------------------------------------------ helpers


def _rows_of(batch: Any, rows: Any) -> Any:
    return take_rows(batch, rows if isinstance(rows, slice) else slice(0, rows))


def _by_sample(tensor: Any, n: int) -> Any:
    """Return rows of samples where a module has squeezed them."""
    if tensor.ndim and tensor.shape[0] == n:
        return tensor
    if tensor.numel() == n:
        return tensor.reshape(n)
    if tensor.numel() % n or n > 1:
        raise WhenceError(_NAMED, "one row for each sample", f"shape {tuple(tensor.shape)}", _REMEDY)
    return tensor.reshape(n, *tensor.shape)


def _rest(tensor: Any, n: int, size: int) -> tuple[int, ...]:
    """Return the axes behind those of samples and positions, whether these are one axis or several."""
    held = 1
    for axis, length in enumerate(tensor.shape):
        held *= int(length)
        if held == n * size and axis < tensor.ndim:
            return tuple(int(s) for s in tensor.shape[axis + 1 :])
    raise WhenceError(_NAMED, "one row for each position", f"shape {tuple(tensor.shape)}", _REMEDY)


def _are_equal(torch: Any, part: Any, whole: Any) -> bool:
    """Whether two tensors are equal but for rounding."""
    if not whole.is_floating_point():
        return bool(torch.equal(part, whole.to(part.dtype)))
    atol = 1e-6 * float(whole.abs().max())
    return bool(torch.allclose(part.to(whole.dtype), whole, rtol=1e-5, atol=atol))


def _is_near(a: float, b: float, room: float = 0.0) -> bool:
    return math.isclose(a, b, rel_tol=2e-4, abs_tol=room)


def _is_same(torch: Any, a: Any, b: Any) -> bool:
    if hasattr(a, "detach") and hasattr(b, "detach"):
        return a.shape == b.shape and bool(torch.equal(a, b))
    return type(a) is type(b) and not hasattr(a, "detach") and bool(a == b)
