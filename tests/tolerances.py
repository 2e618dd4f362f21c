"""How close is close: every tolerance of the suite, each with its reason.

All are relative to the largest entry of what is expected, the measure in which errors of sums and of
solves are bounded.
"""

import numpy as np

#: Sums and products in float64, in another order.
FLOAT64 = 1e-10
#: The same in float32, whose rounding is 6e-8.
FLOAT32 = 1e-6
#: Solves in float64: rounding times a condition number of up to 1e5 in these tests.
SOLVE = 1e-8
#: Solves whose matrix was assembled in float32 and damped well above its rounding.
SOLVE_FLOAT32 = 1e-4
#: Five-point differences of a derivative, h = 1e-3: rounding is eps / h, truncation h^4 / 30.
DIFFERENCES = 1e-9
#: Eigenvalues by Lanczos iteration, which the solver asks for to three digits.
LANCZOS = 2e-3


def of(dtype):
    """Return the tolerance of sums in ``dtype``, given by name or as a NumPy dtype."""
    return {"float32": FLOAT32, "float64": FLOAT64}[np.dtype(dtype).name]


def assert_close(actual, expected, tolerance):
    """Raise unless the arrays agree, in shape too, to ``tolerance`` times the largest expected entry."""
    actual, expected = (np.asarray(a, dtype=np.float64) for a in (actual, expected))
    assert actual.shape == expected.shape
    assert np.isfinite(expected).all()
    error = np.abs(actual - expected).max(initial=0.0)
    scale = np.abs(expected).max(initial=0.0) or 1.0
    assert error <= tolerance * scale, f"off by {error / scale:.2g}, more than {tolerance:g}"
