"""What a Keras layer's regulariser adds to the Hessian's diagonal."""

from __future__ import annotations

from typing import Any

import numpy as np

from whence._errors import warn
from whence.arrays.base import as_numpy

__all__ = ["l2_curvature"]


def l2_curvature(keras: Any, regularizer: Any, shape: Any) -> float:
    """Return the second derivative of a penalty ``strength * sum(w**2)``: twice its strength.

    One of the user's own is tried; where it is no such penalty its curvature is left out, as is that of L1.
    """
    strength = getattr(regularizer, "l2", None)
    if regularizer is None or strength is not None or isinstance(regularizer, keras.regularizers.L1):
        return 0.0 if strength is None else 2.0 * float(strength)
    draw, ratios = np.random.default_rng(0), []
    for scale in (0.5, 1.0, 2.0):
        w = scale * draw.normal(size=tuple(shape)).astype(np.float32)
        penalty = as_numpy(regularizer(keras.ops.convert_to_tensor(w)))
        ratios.append(float(penalty) / float((w.astype(np.float64) ** 2).sum()))
    if np.ptp(ratios) <= 1e-3 * max(ratios):
        return 2.0 * ratios[0]
    warn(
        f"regulariser {type(regularizer).__name__}: expected L2, got a penalty that is no multiple of the "
        "sum of squares. Its curvature is left out of the Hessian; add damping if it is to count."
    )
    return 0.0
