"""Residuals that account for a sample's own share in the Hessian."""

from __future__ import annotations

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, like
from whence.ihvp import InverseHessianVectorProduct
from whence.layers.linear_layer import Block, LinearLayer

__all__ = ["leave_one_out_residuals"]


def leave_one_out_residuals(
    layer: LinearLayer, ihvp: InverseHessianVectorProduct, block: Block, n_samples: int
) -> Array:
    """Return ``(I - K_i Q_i / N)^{-1} r_i``, for a Newton step that leaves ``i`` out.

    Leaving sample ``i`` out takes ``K_i (x) phi_i phi_i^T / N`` from ``H``. With
    ``Q_i = (I (x) phi_i)^T H^{-1} (I (x) phi_i)``, of shape ``(C, C)``, Woodbury's identity gives::

        H_without_i^{-1} g_i = H^{-1} outer(phi_i, (I - K_i Q_i / N)^{-1} r_i)

    so that with these residuals in place of ``r_i`` every first-order formula becomes one Newton step on
    the loss of the others: exact for squared error. The sum over samples stays divided by ``N``, as if
    the sample had weight zero. For one output, ``K_i Q_i / N`` is the leverage of the sample.

    Parameters
    ----------
    layer : LinearLayer
    ihvp : InverseHessianVectorProduct
        At the weights of ``layer``, with the Hessian of all samples.
    block : Block
        Training samples; not along a sequence.
    n_samples : int
        ``N``.

    Returns
    -------
    array of shape (n, C)

    Examples
    --------
    The mean of 0 and 3 is 1.5. Without the first sample it is 3, without the second 0; the leverage of
    each is 1/2, so that residuals double:

    >>> from whence.ihvp import ExactIHVPFactory
    >>> from whence.layers.losses import SquaredError
    >>> class Two:
    ...     n_samples = 2
    ...     def __iter__(self):
    ...         yield Block(np.ones((2, 1)), np.asarray([[0.0], [3.0]]))
    >>> layer = LinearLayer(np.asarray([[1.5]]), SquaredError())
    >>> ihvp = ExactIHVPFactory(damping=0).build(layer, Two())
    >>> (block,) = Two()
    >>> layer.residuals(block).ravel()
    array([ 3., -3.])
    >>> r = leave_one_out_residuals(layer, ihvp, block, 2)
    >>> r.ravel().round(9), (1.5 + ihvp.self_products(block.phi, r) / 2).ravel().round(9)
    (array([ 6., -6.]), array([3., 0.]))
    """
    if block.phi.ndim == 3:
        raise WhenceError(
            "leverage",
            "False for a layer that is applied along a sequence",
            "True",
            "Leave samples out to first order.",
        )
    r = layer.residuals(block)
    q = np.asarray(as_numpy(ihvp.leverages(block.phi)), dtype=np.float64)
    q = layer.centred(layer.centred(q).transpose(0, 2, 1))  # K_i sees nothing else of it
    k = np.asarray(as_numpy(layer.curvatures(block).matrices()), dtype=np.float64)
    kept = np.eye(q.shape[1]) - k @ q / n_samples
    right = np.asarray(as_numpy(r), dtype=np.float64)[:, :, None]
    return like(np.linalg.solve(kept, right)[:, :, 0], r)
