"""What a module does with the positions of its layer: keeps them, moves them, or brings them together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from whence._errors import WhenceError

__all__ = ["Form", "checked_weights", "form_of", "spread", "stands_for_units"]


class Form(NamedTuple):
    """How the axes of a layer's output come out of the model.

    Attributes
    ----------
    positions : tuple of int
        The axes between the first and the last.
    is_pooled : bool
        Whether the model brings positions together, one row for each sample, so that the layer could as
        well stand behind that: it picks one, or takes a weighted mean.
    units_are_second : bool
        Whether the model moves the layer's units to the second axis, as for PyTorch's own losses.
    """

    positions: tuple[int, ...]
    is_pooled: bool = False
    units_are_second: bool = False

    def units_last(self, output: Any) -> Any:
        """Return an output ``(n, C, *positions)`` as ``(n, *positions, C)``, where it is such."""
        return output.movedim(1, -1) if self.is_moved(output) else output

    def is_moved(self, array: Any) -> bool:
        """Whether an array has its second axis where the others have their last."""
        return self.units_are_second and array.ndim == len(self.positions) + 2


def form_of(torch: Any, output: Callable[[Any], Any], u: Any, layer: str) -> Form:
    """Return the form of a model's output, found by moving what the layer gives.

    Parameters
    ----------
    torch : module
    output : callable
        The model's output, for what the layer would give.
    u : tensor of shape (n, ..., C)
    layer : str
        How messages call it.

    Raises
    ------
    WhenceError
        If what comes out at one position hinges on others, other than by a weighted mean.
    """
    positions = tuple(int(size) for size in u.shape[1:-1])
    if not positions:
        return Form(())
    with torch.no_grad():
        plain = output(u)
        place = tuple(size // 2 for size in positions)
        moved = u.clone()
        moved[(0, *place)] += 1
        changed = (output(moved) != plain)[0]
    n_axes = len(positions)
    if tuple(changed.shape[:n_axes]) == positions:
        elsewhere = changed.clone()
        elsewhere[place] = False
        if changed.any() and not elsewhere.any():
            return Form(positions)
    if tuple(changed.shape[1 : 1 + n_axes]) == positions and changed.ndim == n_axes + 1:
        elsewhere = changed.movedim(0, -1).clone()
        elsewhere[place] = False
        if changed.any() and not elsewhere.any():
            return Form(positions, units_are_second=True)
    if _is_pooled(torch, output, u):
        return Form(positions, is_pooled=True)
    raise WhenceError(
        f"layer {layer!r}",
        "a layer whose positions the model keeps, picks one of or takes a mean of",
        "one whose positions are brought together otherwise behind it",
        "Choose a layer behind the place where positions are brought together.",
    )


def weights_of_positions(torch: Any, result: Any, u: Any) -> tuple[Any, bool] | None:
    """Return how much each position of ``u (n, ..., C)`` counts in a result, shape ``(n, L)``, sum 1.

    And whether the result is the mean itself; None where it is no function of a weighted mean.
    """
    size = math.prod(u.shape[1:-1])
    rows = result.reshape(result.shape[0], -1)
    shares = torch.linspace(1, 2, rows.shape[1], dtype=rows.dtype, device=rows.device)
    mixed = (rows * shares).sum()
    if not mixed.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(mixed, u, allow_unused=True)
    if gradient is None:
        return None
    gradient = gradient.reshape(u.shape[0], size, u.shape[-1])
    totals = gradient.sum(dim=1, keepdim=True)
    # Of the unit that counts most: the others have the same weights, if it is a mean.
    unit = totals.abs().argmax(dim=2, keepdim=True)
    each, total = gradient.gather(2, unit.expand(-1, size, 1)), totals.gather(2, unit)
    if not bool((total != 0).all()):
        return None
    is_mean = rows.shape[1] == u.shape[-1] and torch.allclose(totals[:, 0], shares.to(u.dtype), rtol=1e-2)
    return (each / total)[..., 0], is_mean


def _is_pooled(torch: Any, output: Callable[[Any], Any], u: Any) -> bool:
    """Whether the output is a function of one weighted mean over positions, whatever the layer gives."""
    found = []
    for point in (u, -0.7 * u.roll(1, dims=0) + 0.1):
        with torch.enable_grad():
            point = point.detach().clone().requires_grad_()
            result = output(point)
            if result.shape[0] != u.shape[0]:
                return False
            counted = weights_of_positions(torch, result, point)
        if counted is None:
            return False
        weights, _ = counted
        with torch.no_grad():
            mean = (weights[..., None] * point.reshape(*weights.shape, -1)).sum(dim=1)
            at_mean = output(spread(mean, point.shape[1:-1]))
            if not _are_close(torch, at_mean, result):
                return False
        found.append(weights)
    return all(_are_close(torch, a, b) for a, b in itertools.pairwise(found))


def stands_for_units(torch: Any, output: Callable[[Any], Any], u: Any, form: Form) -> bool:
    """Whether output ``j`` of a model speaks of unit ``j`` of the layer alone, or keeps the units' order.

    Parameters
    ----------
    torch : module
    output : callable
        The model's output, units last, for what the layer would give.
    u : tensor of shape (n, ..., C)
    form : Form
    """
    with torch.no_grad():
        plain = output(u)
        n, n_outputs = int(u.shape[0]), int(u.shape[-1])
        if plain.shape[0] != n:
            return False
        units = u.reshape(n, -1, n_outputs)[:, :1] if form.is_pooled else u.reshape(n, -1, n_outputs)
        if plain.numel() != units.numel():
            return False
        if n_outputs == 1:
            return True
        rows = plain.reshape(units.shape)
        wide = output(5 * u).reshape(units.shape)
        if all(torch.equal(r.argsort(dim=-1), units.argsort(dim=-1)) for r in (rows, wide)):
            return True
        unit = n_outputs // 2
        moved = u.clone()
        moved[..., unit] += 1
        changed = output(moved).reshape(units.shape) != rows
        others = torch.arange(n_outputs, device=u.device) != unit
        return bool(changed[..., unit].any()) and not bool(changed[..., others].any())


def spread(rows: Any, positions: tuple[int, ...]) -> Any:
    """Return rows ``(n, C)`` at all positions ``(n, *positions, C)``."""
    between = rows.reshape(rows.shape[0], *[1] * len(positions), rows.shape[-1])
    return between.expand(rows.shape[0], *positions, rows.shape[-1])


def checked_weights(
    torch: Any, result: Any, u: Any, layer: str, of_mean: Callable[[Any], Any] | None
) -> Any:
    """Return the weights of positions in a batch, shape ``(n, L)``.

    Parameters
    ----------
    torch : module
    result, u : tensor
        See :func:`weights_of_positions`.
    layer : str
    of_mean : callable or None
        What the model made of means in the first batch; None while that is found out.

    Raises
    ------
    WhenceError
        If positions are not brought together as in the first batch.
    """
    counted = weights_of_positions(torch, result, u)
    if counted is not None:
        weights, is_mean = counted[0].detach(), counted[1]
        if is_mean or of_mean is None:
            return weights
        mean = (weights[..., None] * u.detach().reshape(*weights.shape, -1)).sum(dim=1)
        with torch.no_grad():
            expected = of_mean(mean)
        scale = float(expected.abs().max())
        if expected.shape == result.shape and torch.allclose(
            expected, result, rtol=0.01, atol=0.01 * scale
        ):
            return weights
    raise WhenceError(
        f"layer {layer!r}",
        "positions that the model brings together by a weighted mean, as in the first batch",
        "another way",
        "Choose a layer behind the place where positions are brought together.",
    )


def _are_close(torch: Any, a: Any, b: Any) -> bool:
    scale = max(1.0, float(b.abs().max()))
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-4, atol=1e-5 * scale))
