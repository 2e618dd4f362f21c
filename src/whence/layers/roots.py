"""Roots of the curvature of a loss: ``K_i = R_i R_i^T``, column by column.

The Gauss-Newton matrix of a network is ``(1/N) sum_i J_i^T K_i J_i``, with ``J_i`` the derivative of the
outputs ``u_i``. With roots ``R_i`` of ``K_i`` it is ``(1/N) sum_m z_m z_m^T``, and ``z_m`` the gradient of
the number ``R_i[:, c]^T u_i``: a row like any other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from array_api_compat import device as device_of

from whence.arrays.base import Array, like, namespace
from whence.layers.curvature import Curvature

__all__ = ["MOST_COLUMNS", "drawn_roots", "roots"]

#: Outputs of a sample, over all its positions, up to which roots are exact rather than drawn.
MOST_COLUMNS = 128


def roots(curvature: Curvature) -> Array:
    """Return ``R (n, C, k)`` with ``K_i = R_i R_i^T``, the largest columns first, negative parts left out.

    Columns that are zero for every sample are left out too: one for softmax.

    Examples
    --------
    >>> half = np.asarray([[0.5, 0.5]])
    >>> abs(roots(Curvature(diagonal=half, root=half)))
    array([[[0.5],
            [0.5]]])
    """
    if curvature.dense is None and curvature.root is None:
        return _diagonal_roots(curvature.diagonal)
    matrices = curvature.matrices()
    xp = namespace(matrices)
    values, vectors = xp.linalg.eigh(matrices)
    # Eigenvalues that are rounding of the sample's largest are zero.
    largest = xp.max(xp.abs(values), axis=1, keepdims=True)
    is_seen = values > 8 * values.shape[1] * float(xp.finfo(values.dtype).eps) * largest
    sizes = xp.sqrt(xp.where(is_seen, values, xp.zeros_like(values)))
    columns = xp.flip(vectors * sizes[:, None, :], axis=2)
    n_kept = int(xp.max(xp.sum(xp.astype(is_seen, xp.int64), axis=1))) if values.shape[0] else 0
    return columns[:, :, : max(1, n_kept)]


def _diagonal_roots(diagonal: Array) -> Array:
    xp = namespace(diagonal)
    sizes = xp.sqrt(xp.maximum(diagonal, xp.zeros_like(diagonal)))
    eye = xp.eye(sizes.shape[1], dtype=sizes.dtype, device=device_of(sizes))
    return sizes[:, :, None] * eye[None, :, :]


def drawn_roots(curvature: Curvature, n_draws: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield ``r (n, C)`` drawn so that the mean of ``r_i r_i^T``, times their number, is ``K_i``.

    Each is ``R_i`` times random signs, divided by ``sqrt(n_draws)``. For softmax it needs no matrix of
    ``C x C`` numbers.

    Parameters
    ----------
    curvature : Curvature
    n_draws : int
    rng : numpy.random.Generator
    """
    scale = n_draws**-0.5
    full = None
    for _ in range(n_draws):
        if curvature.dense is None:
            diagonal: Array = curvature.diagonal
            xp = namespace(diagonal)
            signs = like(rng.choice([-1.0, 1.0], size=diagonal.shape), diagonal)
            sizes = xp.sqrt(xp.maximum(diagonal, xp.zeros_like(diagonal)))
            drawn = sizes * xp.astype(signs, sizes.dtype)
            if curvature.root is None:
                yield drawn * scale
                continue
            if curvature.rows_sum_to_zero:  # (diag(s) - d s^T / w) e with s = sqrt(d), w = sum(d)
                total = xp.sum(diagonal, axis=1, keepdims=True)
                total = xp.where(total > 0, total, xp.ones_like(total))
                yield (drawn - diagonal * (xp.sum(drawn, axis=1, keepdims=True) / total)) * scale
                continue
        full = roots(curvature) if full is None else full
        xp = namespace(full)
        signs = like(rng.choice([-1.0, 1.0], size=(full.shape[0], full.shape[2], 1)), full)
        yield xp.matmul(full, xp.astype(signs, full.dtype))[:, :, 0] * scale
