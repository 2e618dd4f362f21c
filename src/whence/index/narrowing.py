"""Features on their way into half precision, and whether it has digits for what tells samples apart."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy
from whence.arrays.sparse import SparseRows
from whence.index.shard import narrow

__all__ = ["Narrowing"]

#: How large rounding may be beside the spread of features: values are off by about as much of the largest.
LARGEST_ROUNDING = 1e-2


class Narrowing:
    """Narrows batches of features, and remembers how far rounding moved them and how far they spread.

    In half precision 1,000 and 1,000.4 are one number: features that are far from zero beside their spread
    lose what tells samples apart, whatever their size is.

    Parameters
    ----------
    dtype : {None, "float16", "float32"}

    Examples
    --------
    >>> narrowing = Narrowing("float16")
    >>> narrowing(1000 + np.linspace(0, 1, 64)[:, None]).dtype
    dtype('float16')
    >>> narrowing.check()
    Traceback (most recent call last):
        ...
    whence._errors.WhenceError: feature_dtype: expected features that float16 rounds by less than 0.01 of
    their spread, got rounding by 0.49 of it. They are far from zero beside their spread: store them as
    float32.
    """

    def __init__(self, dtype: str | None) -> None:
        self.dtype = dtype
        self._lock = threading.Lock()
        self._n = 0
        self._mean: Any = 0.0
        self._spread: Any = 0.0
        self._moved: Any = 0.0

    def __reduce__(self) -> Any:
        return Narrowing, (self.dtype,)

    def __call__(self, features: Array) -> Array:
        """Return features in the precision of the store, or raise if they do not fit."""
        narrowed = narrow(features, self.dtype)
        if self.dtype == "float16" and not isinstance(features, SparseRows) and features.shape[0]:
            wide = np.asarray(as_numpy(features), dtype=np.float64).reshape(-1, features.shape[-1])
            self._remember(wide, np.asarray(as_numpy(narrowed), np.float64).reshape(wide.shape) - wide)
        return narrowed

    def _remember(self, wide: np.ndarray, moved: np.ndarray) -> None:
        n, mean = len(wide), wide.mean(axis=0)
        spread = ((wide - mean) ** 2).sum(axis=0)
        with self._lock:
            both = self._n + n
            gap = mean - self._mean
            self._spread = self._spread + spread + gap**2 * (self._n * n / both)
            self._mean = self._mean + gap * (n / both)
            self._moved = self._moved + (moved**2).sum(axis=0)
            self._n = both

    def check(self) -> None:
        """Raise if rounding is large beside the spread of the features, in the mean over them.

        Features that are the same for all samples play no part.
        """
        spread, moved = np.atleast_1d(self._spread), np.atleast_1d(self._moved)
        varied = spread > 0
        if not varied.any():
            return
        shares = np.minimum(moved[varied] / spread[varied], 1.0)
        rounding = float(np.sqrt(shares.mean()))
        if rounding > LARGEST_ROUNDING:
            raise WhenceError(
                "feature_dtype",
                f"features that float16 rounds by less than {LARGEST_ROUNDING:g} of their spread",
                f"rounding by {rounding:.2g} of it",
                "They are far from zero beside their spread: store them as float32.",
            )
