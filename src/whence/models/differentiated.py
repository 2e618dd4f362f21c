"""Losses and tails without a closed form, differentiated by the model's framework.

``ell_i(u) = loss(y_i, tail(u))`` is a function of the ``C`` pre-activations of one sample, so its
first and second derivatives are small whatever the model: ``r_i`` has ``C`` numbers and ``K_i`` has
``C * C``. The framework differentiates ``ell_i`` with respect to ``u_i`` alone, vectorised over
samples, and never with respect to weights. What comes out is a :class:`~whence.layers.losses.Loss` like
those in closed form.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from whence._errors import WhenceError, warn
from whence.arrays.base import Array, as_numpy, astype, check_finite, namespace
from whence.layers.losses import Curvature, Loss, refuse_tags

__all__ = ["Derivatives", "DifferentiatedLoss", "identity_of"]

#: Samples of the first batch on which a loss is tried before it is trusted.
TRIED_ROWS = 32


class Derivatives(Protocol):
    """What a framework supplies: ``ell_i`` and its derivatives with respect to ``u_i``."""

    def __call__(self, u: Array, target: Array, order: int) -> Array:
        """Return ``ell (n,)``, ``r (n, C)`` or ``K (n, C, C)``, for order 0, 1 or 2."""


@dataclass(frozen=True)
class DifferentiatedLoss(Loss):
    """A loss, and whatever the model does after the layer, as one function of the pre-activations.

    Parameters
    ----------
    name : str
        How the framework calls the loss.
    derivatives : callable
        See :class:`Derivatives`.
    output : callable
        ``output(u)`` is what the model says if the layer gives ``u (n, C)``; leading axis ``n``.
    identity : str
        A text that changes with the loss or the tail.
    boundary : float or None, default=None
        For losses on classes: the value from which on a single output of the model speaks for
        class 1. ``None``: the loss is on values, or nothing is known about it.
    n_outputs : int, default=1
        ``C``.
    outputs_are_tags : bool, default=False
        Whether each of several outputs says yes or no by itself.

    n_label_columns : int or None, default=None
        How many columns of a target are labels, where it holds more that the loss reads; ``None``: all.

    Attributes
    ----------
    is_classification : bool
        Whether pre-activation ``j`` stands for class ``j``: the loss is on classes, and the tail
        keeps the order of the pre-activations.

    Notes
    -----
    Targets are the user's labels, unchanged: any number of axes, any numeric dtype.

    Examples
    --------
    ``ell(u) = (u - y)^2`` at ``u = 3``, ``y = 1``:

    >>> def by_hand(u, y, order):
    ...     gap = u - y[:, None]
    ...     return [gap[:, 0] ** 2, 2 * gap, np.full((len(u), 1, 1), 2.0)][order]
    >>> loss = DifferentiatedLoss("square", by_hand, output=lambda u: u, identity="square")
    >>> u, y = np.asarray([[3.0]]), np.asarray([1.0])
    >>> loss.value(u, y), loss.residual(u, y), loss.curvature(u, y).matrices()
    (array([4.]), array([[4.]]), array([[[2.]]]))
    """

    name: str
    derivatives: Derivatives
    output: Callable[[Array], Array]
    identity: str
    boundary: float | None = None
    n_outputs: int = 1
    outputs_are_tags: bool = False
    n_label_columns: int | None = None
    is_classification: bool = field(init=False)
    curvature_is_dense = True
    margin_compares_outputs = False

    def __post_init__(self) -> None:
        classes = self.boundary is not None and self._keeps_order()
        object.__setattr__(self, "is_classification", classes)

    def remember(self, pickled: Callable[[], Any], inputs: Any) -> None:
        """Note what pickles the wrapped model, and inputs of its form: other processes make the loss again.

        What a framework has traced or compiled cannot be sent to them.
        """
        object.__setattr__(self, "_origin", (pickled, inputs))

    def __reduce_ex__(self, protocol: Any) -> Any:
        origin = getattr(self, "_origin", None)
        if origin is None:
            return super().__reduce_ex__(protocol)
        if not hasattr(self, "_recipe"):
            object.__setattr__(self, "_recipe", origin[0]())
        return _made_again, (self._recipe, origin[1])  # type: ignore[attr-defined]

    def _keeps_order(self) -> bool:
        """Whether the model's class is the largest pre-activation, or the sign of a single one."""
        u = np.random.default_rng(0).normal(size=(64, self.n_outputs))
        output = as_numpy(self.output(u))
        if self.n_outputs == 1 and output.shape == u.shape[:1]:
            output = output[:, None]  # a single output, squeezed
        if output.shape != u.shape:
            return False
        if self.n_outputs == 1:
            return bool(np.array_equal(output > self.boundary, u > 0))
        return bool(np.array_equal(np.argmax(output, axis=1), np.argmax(u, axis=1)))

    def encode(self, labels: np.ndarray, n_outputs: int, where: str) -> np.ndarray:
        labels = np.asarray(labels)
        if labels.dtype.kind in "iufb":
            return labels
        raise WhenceError(
            f"labels in {where}", "numbers", f"dtype {labels.dtype}", "Encode them as numbers."
        )

    def value(self, u: Array, target: Array) -> Array:
        return self._evaluate(u, target, 0)

    def residual(self, u: Array, target: Array) -> Array:
        return self._evaluate(u, target, 1)

    def curvature(self, u: Array, target: Array) -> Curvature:
        dense = self._evaluate(u, target, 2)
        return Curvature(dense=(dense + namespace(dense).matrix_transpose(dense)) / 2)

    def margin(self, u: Array, target: Array) -> Array:
        """Return minus the loss, the only margin that every loss has."""
        return -self.value(u, target)

    def given_output(self, target: Array) -> Array:
        xp = namespace(target)
        labels = self.labels(target)
        if self.is_classification and labels.ndim == 2:
            refuse_tags(labels)
            return xp.argmax(labels, axis=1)
        whole = self.is_classification and bool(xp.all(labels == xp.round(labels)))
        if whole and bool(xp.all((labels >= 0) & (labels < self.n_outputs))):
            return astype(labels, xp.int64)
        raise WhenceError(
            "label",
            f"'predicted', since labels of loss {self.name} do not name outputs of the layer",
            "'given'",
            "Name the outputs yourself: explain(..., outputs=...).",
        )

    def label_kind(self, n_outputs: int) -> str:
        if self.boundary is None:
            return "value"
        return "tags" if n_outputs > 1 and self.outputs_are_tags else "class"

    def predictions(self, u: Array) -> Array:
        """Return what the model's output says: a class, tags or values; see :class:`Loss`."""
        output = self.output(u)
        xp = namespace(output)
        rows = xp.reshape(output, (output.shape[0], -1))
        kind = self.label_kind(rows.shape[1])
        if kind == "class" and rows.shape[1] > 1:
            return xp.argmax(rows, axis=1)
        said = rows if kind == "value" else astype(rows > self.boundary, xp.int64)
        return said[:, 0] if rows.shape[1] == 1 else said

    def labels(self, target: Array) -> Array:
        xp = namespace(target)
        rows = xp.reshape(target, (target.shape[0], -1))[:, : self.n_label_columns]
        kind = self.label_kind(rows.shape[1])
        if kind == "class" and rows.shape[1] > 1:
            self._refuse_several(rows)
            return xp.argmax(rows, axis=1)
        given = rows[:, 0] if rows.shape[1] == 1 else rows
        if kind == "value" or not bool(xp.all(given == xp.round(given))):
            return given
        # One output has the classes 0 and 1, and so has each tag; hinge losses also take -1 and 1.
        return astype(given > 0 if self.n_outputs == 1 or kind == "tags" else given, xp.int64)

    def _refuse_several(self, rows: Array) -> None:
        """Raise unless every row of labels names one class, or gives shares of classes."""
        xp = namespace(rows)
        totals = xp.sum(astype(rows, xp.float64), axis=1)
        n_positive = xp.sum(astype(rows > 0, xp.int64), axis=1)  # 1 of -1 and 1 too
        several = (xp.abs(totals - 1) > 1e-3) & (n_positive != 1)
        if bool(xp.any(several)):
            got = as_numpy(totals)[np.argmax(as_numpy(several))]
            raise WhenceError(
                f"labels of loss {self.name}",
                "one class a sample, in rows that sum to 1",
                f"a row that sums to {got:.4g}, as of none or several classes",
                "Leave out classes=True: answers then give the rows themselves.",
            )

    def fingerprint(self) -> str:
        return f"{self.name}, differentiated, {self.identity}"

    def check(self, u: Array, target: Array, where: str) -> bool:
        """Try the loss on a batch, before anything is computed with it.

        Returns
        -------
        bool
            Whether that settles it: labels that differ are needed, to see that one sample's loss does not
            depend on another's label.

        Raises
        ------
        WhenceError
            If it does not give one number a sample, or lets samples depend on each other.

        Warns
        -----
        UserWarning
            If it has no second derivatives there.
        """
        u, target = self._tried_rows(as_numpy(u), as_numpy(target))
        values = as_numpy(self.value(u, target))
        room = self._rounding(u, target, values)
        n_rows = len(values)
        for row in (0, 1):
            others = np.arange(n_rows) != row
            moved = u.copy()
            moved[row] += 0.1 * (1 + np.abs(moved[row]))
            self._check_same(moved, target, values, others, room, where)
            for label in target[[row, -1 - row]]:  # all others labelled alike: one of the two is new
                changed = target.copy()
                changed[others] = label
                self._check_same(u, changed, values, ~others, room, where)
        for size in {max(2, n_rows // 2), max(2, n_rows - 1)} - {n_rows}:
            self._check_same(u[:size], target[:size], values[:size], slice(None), room, where)
        twice = np.concatenate([u, u]), np.concatenate([target, target])
        self._check_same(*twice, np.concatenate([values, values]), slice(None), room, where)
        turned = as_numpy(self.derivatives(np.roll(u, 1, 0), np.roll(target, 1, 0), 0))
        if not _are_close(turned, np.roll(values, 1), room):
            raise WhenceError(
                f"loss {self.name}",
                "a loss and a tail that treat all positions alike",
                "one that depends on the position",
                "Choose a layer behind the last one that knows positions.",
            )
        if not any(as_numpy(self.curvature(v, target).dense).any() for v in (u, moved, 0.5 * u)):
            warn(
                f"loss {self.name}: expected second derivatives, got zeros at the samples of "
                f"{where}. The Hessian is its damping (and the layer's L2) alone: H^{{-1}} g is g "
                "divided by it. Use a smooth loss, such as Huber or squared hinge, if curvature is "
                "to count."
            )
        return bool((target != target[:1]).any())

    def _tried_rows(self, u: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return some rows, two at least, first and last with labels that differ if there are such."""
        # Another number of rows than of outputs: (C,) is not taken for (n,).
        n_rows = min(max(2, u.shape[0]), TRIED_ROWS)
        n_rows += n_rows == self.n_outputs
        rows = np.arange(n_rows) % u.shape[0]
        differs = (target != target[:1]).reshape(len(target), -1).any(axis=1)
        if differs.any():
            rows[-1] = np.argmax(differs)
        return u[rows], target[rows]

    def _rounding(self, u: np.ndarray, target: np.ndarray, values: np.ndarray) -> float:
        """Return by how much losses may differ by rounding, at points where they are not all near zero."""
        moved = u + np.random.default_rng(0).normal(size=u.shape).astype(u.dtype)
        with contextlib.suppress(Exception):  # points that the loss does not allow
            values = np.concatenate([values, as_numpy(self.derivatives(moved, target, 0))])
        return 1e-7 * float(np.abs(values[np.isfinite(values)]).max(initial=0))

    def _check_same(
        self, u: np.ndarray, target: np.ndarray, values: np.ndarray, rows: Any, room: float, where: str
    ) -> None:
        """Raise unless these rows have these values, whatever the other rows are."""
        try:
            changed = as_numpy(self.derivatives(u, target, 0))
            if changed.shape == (len(u),) and _are_close(changed[rows], values[rows], room):
                return
        except WhenceError:
            raise
        except Exception:  # code that takes batches of one size
            pass
        raise WhenceError(
            f"loss {self.name}",
            "a loss of each sample (or position) that depends on it alone",
            f"one that changes with the others of {where}",
            "Use a loss that is a mean over them, on outputs and labels of one shape, and a layer behind "
            "the place where positions are brought together.",
        )

    def _evaluate(self, u: Array, target: Array, order: int) -> Array:
        n, n_outputs = u.shape
        try:
            result = self.derivatives(u, target, order)
        except WhenceError:
            raise
        except Exception as error:
            raise WhenceError(
                f"loss {self.name}",
                "a loss that takes the labels and the model's output",
                f"labels of shape {tuple(target.shape)} and dtype {target.dtype}, refused with "
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                "Give labels of the form that the model was trained with.",
            ) from error
        expected = (n, n_outputs, n_outputs)[: order + 1]
        if tuple(result.shape) != expected:
            raise WhenceError(
                f"loss {self.name}",
                f"one number a sample: shape {expected}",
                f"shape {tuple(result.shape)}",
                "Return the loss of each sample, with the batch as its first axis.",
            )
        what = ("values", "first derivatives", "second derivatives")[order]
        check_finite(
            result,
            f"{what} of loss {self.name}",
            f"these {n} samples",
            "Look for labels that the loss does not allow, and for points without derivatives.",
        )
        return astype(result, u.dtype)


def _are_close(values: np.ndarray, expected: np.ndarray, room: float) -> bool:
    return np.allclose(values, expected, rtol=1e-5, atol=room)


def identity_of(function: Any, arrays: Iterable[np.ndarray] = ()) -> str:
    """Return a text that changes with a function's code and constants, and with some arrays.

    Examples
    --------
    >>> one, other, same = (lambda y: y + 1), (lambda y: y + 2), (lambda y: y + 1)
    >>> identity_of(one) == identity_of(same), identity_of(one) == identity_of(other)
    (True, False)
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(function):
        digest.update(part)
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _parts(thing: Any, depth: int = 0) -> Iterable[bytes]:
    """Yield what tells two functions apart, and nothing that changes from one run to the next."""
    if isinstance(thing, str | bytes | int | float | bool | type(None)):
        yield repr(thing).encode()
    elif isinstance(thing, np.ndarray):
        yield np.ascontiguousarray(thing).tobytes()
    elif isinstance(thing, list | tuple | set | frozenset | dict) and depth < 8:
        if isinstance(thing, dict):
            thing = sorted(thing.items(), key=lambda item: str(item[0]))
        for part in thing:
            yield from _parts(part, depth + 1)
    elif hasattr(thing, "co_code"):
        yield thing.co_code
        yield from _parts((thing.co_names, thing.co_consts), depth + 1)
    elif hasattr(thing, "__code__") and depth < 8:
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        yield from _parts((thing.__code__, thing.__defaults__, thing.__kwdefaults__, cells), depth + 1)
    elif hasattr(thing, "func") and hasattr(thing, "keywords") and depth < 8:  # functools.partial
        yield from _parts((thing.func, thing.args, thing.keywords), depth + 1)
    else:
        yield f"{type(thing).__module__}.{type(thing).__qualname__}".encode()


#: Losses that this process has made from what others sent, the last few.
_made: dict[str, Any] = {}


def _made_again(recipe: Any, inputs: Any) -> Any:
    if recipe.digest not in _made:
        if len(_made) >= 4:
            _made.pop(next(iter(_made)))
        _made[recipe.digest] = recipe.wrapped().differentiated(inputs)
    return _made[recipe.digest]
