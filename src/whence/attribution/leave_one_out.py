"""What a layer would say of its own training samples, had it not seen them."""

from __future__ import annotations

import numpy as np

from whence._arrays import Array, as_numpy, astype
from whence._errors import WhenceError
from whence.ihvp import InverseHessianVectorProduct
from whence.linear_layer import Block, LinearLayer

__all__ = ["left_out_pre_activations"]


def left_out_pre_activations(
    layer: LinearLayer,
    ihvp: InverseHessianVectorProduct,
    block: Block,
    n_samples: int,
    *,
    leverage: bool = False,
) -> Array:
    """Return the pre-activations of training samples without themselves, ``(n, C)`` or ``(n, L, C)``.

    With ``Q_i = (phi_i (x) I)^T H^{-1} (phi_i (x) I)``, of shape ``(C, C)``::

        u_i + (1/N) Q_i r_i                          to first order
        u_i + (1/N) (I - Q_i K_i / N)^{-1} Q_i r_i   with the sample left out of H too

    The second is one Newton step on the loss of the others, exact for squared error: leaving a sample out
    takes ``K_i (x) phi_i phi_i^T / N`` from ``H``, and the inverse of that follows by Woodbury's identity.
    The sum over samples stays divided by ``N``, as if the sample had weight zero.

    Parameters
    ----------
    layer : LinearLayer
    ihvp : InverseHessianVectorProduct
        At the weights of ``layer``.
    block : Block
        Training samples.
    n_samples : int
        ``N``.
    leverage : bool, default=False
        Whether to take the second form. Not for layers along a sequence.

    Examples
    --------
    The mean of 0 and 3 is 1.5; without the second sample it is 0, exactly.

    >>> import numpy as np
    >>> from whence.ihvp import ExactIHVPFactory
    >>> from whence.losses import SquaredError
    >>> class Two:
    ...     n_samples = 2
    ...     def __iter__(self):
    ...         yield Block(np.ones((2, 1)), np.asarray([[0.0], [3.0]]))
    >>> layer = LinearLayer(np.asarray([[1.5]]), SquaredError())
    >>> ihvp = ExactIHVPFactory(damping=0).build(layer, Two())
    >>> (block,) = Two()
    >>> left_out_pre_activations(layer, ihvp, block, 2).ravel()
    array([2.25, 0.75])
    >>> left_out_pre_activations(layer, ihvp, block, 2, leverage=True).ravel().round(9)
    array([3., 0.])
    """
    u = layer.pre_activations(block.phi)
    r = layer.residuals(block)
    if not leverage:
        moved = ihvp.self_products(block.phi, r)
        return astype(u, moved.dtype) + moved / n_samples
    if block.phi.ndim == 3:
        raise WhenceError(
            "leverage",
            "False for a layer that is applied along a sequence",
            "True",
            "Leave samples out to first order.",
        )
    q = as_numpy(ihvp.leverages(block.phi))
    k = as_numpy(layer.curvatures(block).matrices()).astype(np.float64)
    moved = q @ as_numpy(r).astype(np.float64)[:, :, None]
    kept = np.eye(q.shape[1]) - q @ k / n_samples
    return as_numpy(u) + np.linalg.solve(kept, moved)[:, :, 0] / n_samples
