"""The errors that whence raises: each names the argument, what was expected, what was got, what to do."""

from __future__ import annotations

import sys
import warnings
from typing import Any

__all__ = [
    "MissingExtraError",
    "NotConvergedError",
    "NotPositiveDefiniteError",
    "WhenceError",
    "described",
    "warn",
]

#: Characters that a message shows of what was got.
LONGEST_GOT = 400


def described(thing: Any) -> str:
    """Return how messages call something that is of the wrong kind.

    Examples
    --------
    >>> described(3), described(int)
    ('an int', 'the class int itself, not an object of it')
    """
    if isinstance(thing, type):
        return f"the class {thing.__name__} itself, not an object of it"
    name = type(thing).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def warn(message: str) -> None:
    """Warn of something, at the user's line that led to it, however deep in the library that shows."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("whence."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


class WhenceError(ValueError):
    """Base class of every error raised by whence for input that it cannot answer.

    Parameters
    ----------
    argument : str
        The argument, or the part of one, that is at fault.
    expected : str
        What it should have been.
    got : str
        What it was.
    fix : str, default=""
        What to do about it, as one sentence.

    Examples
    --------
    >>> print(WhenceError("damping", "a number >= 0", "-1.0", "Pass damping=1e-3."))
    damping: expected a number >= 0, got -1.0. Pass damping=1e-3.
    """

    def __init__(self, argument: str, expected: str, got: str, fix: str = "") -> None:
        self.argument = argument
        self.expected = expected
        self.got: str = _on_one_line(got)
        got = self.got
        self.fix = fix
        message = f"{argument}: expected {expected}, got {got.rstrip('.')}."
        super().__init__(f"{message} {fix}".strip())

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, vars(self))


class NotPositiveDefiniteError(WhenceError):
    """The damped Hessian has a negative or zero eigenvalue, so ``H^{-1}`` is not what is wanted.

    Attributes
    ----------
    smallest_eigenvalue : float
        The smallest eigenvalue of ``H + lam I``, as computed.
    """

    def __init__(self, smallest_eigenvalue: float, damping: float, fix: str) -> None:
        self.smallest_eigenvalue = smallest_eigenvalue
        super().__init__(
            f"damping (={damping:g})",
            "a damped Hessian that is positive definite",
            f"a smallest eigenvalue of {smallest_eigenvalue:.6g}",
            fix,
        )


class NotConvergedError(WhenceError):
    """An iterative solver stopped before it reached its tolerance.

    Attributes
    ----------
    relative_residual : float
        The largest relative residual reached over the right-hand sides.
    """

    def __init__(self, argument: str, expected: str, relative_residual: float, fix: str) -> None:
        self.relative_residual = relative_residual
        super().__init__(argument, expected, f"a relative residual of {relative_residual:.3g}", fix)


class MissingExtraError(ImportError):
    """A feature needs a package that is not installed.

    Examples
    --------
    >>> print(MissingExtraError("jinja2", "report"))
    This needs the package 'jinja2', which is not installed. Run: pip install 'whence[report]'
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This needs the package {package!r}, which is not installed. "
            f"Run: pip install 'whence[{extra}]'"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, vars(self))


def _on_one_line(text: str) -> str:
    """Return what was got in one line of bounded length: the ``repr`` of an array has many."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_GOT else f"{line[:LONGEST_GOT]} …"


def _restored(kind: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any]) -> Exception:
    """Rebuild a pickled error, whose ``__init__`` would otherwise get the message for its arguments."""
    error = kind.__new__(kind, *args)
    vars(error).update(attributes)
    return error


def check_choice(value: Any, argument: str, *choices: Any) -> None:
    """Raise unless ``value`` is one of some choices.

    Examples
    --------
    >>> check_choice("mean", "reduction", None, "sum", "none")
    Traceback (most recent call last):
        ...
    whence._errors.WhenceError: reduction: expected None, 'sum' or 'none', got 'mean'. Choose one.
    """
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return
    first = ", ".join(map(repr, choices[:-1]))
    raise WhenceError(argument, f"{first} or {choices[-1]!r}", repr(value), "Choose one.")
