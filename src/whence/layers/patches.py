"""What a convolution sees at each place of its output, in one to three dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from array_api_compat import device as device_of

from whence.arrays.base import Array, namespace

__all__ = ["patches"]


def patches(
    inputs: Array,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int = 1,
) -> Array:
    """Return the patch under the kernel at every place of the output, shape ``(n, G, P, d)``.

    Parameters
    ----------
    inputs : array of shape (n, channels, ...)
        With one axis for each dimension of the kernel behind the channels.
    kernel, stride, dilation : sequence of int
        One number for each dimension.
    padding : sequence of (int, int)
        How many zeros stand before and behind each dimension.
    groups : int, default=1
        ``G``: so many runs of channels are seen by kernels of their own.

    Returns
    -------
    array of shape (n, G, P, d)
        ``d`` runs over the channels of a group, then over the places of the kernel, as the weights
        ``(C, channels / G, ...)`` of a convolution do.

    Examples
    --------
    A kernel of two over four numbers:

    >>> import numpy as np
    >>> patches(np.asarray([[[1, 2, 3, 4]]]), [2], [1], [(0, 0)], [1])[0, 0].tolist()
    [[1, 2], [2, 3], [3, 4]]
    """
    xp = namespace(inputs)
    for axis, (before, behind) in enumerate(padding, start=2):
        inputs = _padded(inputs, axis, before, behind)
    n_places = [
        (inputs.shape[axis] - gap * (size - 1) - 1) // step + 1
        for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2)
    ]
    seen = []
    for offset in itertools.product(*(range(size) for size in kernel)):
        cut = [slice(None), slice(None)]
        for at, gap, step, places in zip(offset, dilation, stride, n_places, strict=True):
            cut.append(slice(at * gap, at * gap + (places - 1) * step + 1, step))
        part = inputs[tuple(cut)]
        seen.append(xp.reshape(part, (*part.shape[:2], -1)))
    stacked = xp.stack(seen, axis=2)  # (n, channels, kernel, P)
    n, channels, size, n_positions = stacked.shape
    grouped = xp.reshape(stacked, (n, groups, channels // groups * size, n_positions))
    return xp.matrix_transpose(grouped)


def _padded(array: Array, axis: int, before: int, behind: int) -> Array:
    xp = namespace(array)
    parts = [array]
    for size, at_front in ((before, True), (behind, False)):
        if size > 0:
            shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
            zeros = xp.zeros(shape, dtype=array.dtype, device=device_of(array))
            parts = [zeros, *parts] if at_front else [*parts, zeros]
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=axis)
