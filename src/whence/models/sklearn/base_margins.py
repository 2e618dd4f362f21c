"""Where the base margins of samples come from: a column of a frame, or an array beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from whence._errors import WhenceError, described
from whence.arrays.base import as_numpy, check_finite

__all__ = ["BaseMargins", "Labelled"]


class Labelled(NamedTuple):
    """Labels as the user gives them, and the base margins ``(n, C)`` of the same samples."""

    labels: Any
    margins: np.ndarray


class BaseMargins:
    """Takes base margins out of the inputs of a batch.

    Parameters
    ----------
    wanted : str, sequence of C str, or True
        Columns of the frame; or ``True``: inputs are ``(X, base_margin)``.
    n_outputs : int
        ``C``.
    """

    def __init__(self, wanted: Any, n_outputs: int) -> None:
        names = [wanted] if isinstance(wanted, str) else wanted
        if names is not True:
            is_names = isinstance(names, Sequence) and all(isinstance(name, str) for name in names)
            if not is_names or len(names) != n_outputs:
                expected = f"the names of {n_outputs} columns, or True for inputs (X, base_margin)"
                raise WhenceError("base_margin", expected, repr(wanted), "Leave it out if there are none.")
        self._names = None if names is True else list(names)
        self._n_outputs = n_outputs

    def split(self, inputs: Any) -> tuple[Any, np.ndarray]:
        """Return the model's own inputs, and the margins ``(n, C)``."""
        if self._names is None:
            if not isinstance(inputs, list | tuple) or len(inputs) != 2:
                fix = "Give ((X, base_margin), y)."
                raise WhenceError("inputs", "(X, base_margin)", described(inputs), fix)
            x, margins = inputs[0], np.asarray(as_numpy(inputs[1]), dtype=np.float64)
            margins = margins.reshape(len(margins), -1)
        else:
            missing = [name for name in self._names if name not in getattr(inputs, "columns", ())]
            if missing:
                got = f"none called {missing[0]!r}"
                raise WhenceError("inputs", "a frame with the columns of base_margin", got, "Add it.")
            columns = [np.asarray(inputs[name], dtype=np.float64) for name in self._names]
            margins = np.stack(columns, axis=1)
            x = inputs.drop(columns=self._names) if hasattr(inputs, "iloc") else inputs.drop(self._names)
        if margins.shape[1] != self._n_outputs:
            expected = f"{self._n_outputs} numbers a sample, one for each output"
            raise WhenceError(
                "base margins", expected, str(margins.shape[1]), "Give those of the training."
            )
        check_finite(margins, "base margins", "the inputs", "Clean or drop the samples.")
        return x, margins
