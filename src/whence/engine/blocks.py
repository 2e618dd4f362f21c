"""Training samples in blocks, as a dense layer sees them.

Where the layer is applied along a sequence, a sample has ``L`` positions and a row of features at each.
Solvers and sums that do not ask which row is whose take the rows of all samples one after another:
:meth:`Block.rows`, or :func:`by_rows` for all blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from array_api_compat import device as device_of

from whence.arrays.base import Array, astype, namespace

__all__ = ["Block", "Blocks", "by_rows", "flat_positions"]


class Block(NamedTuple):
    """Some training samples as the layer sees them.

    Attributes
    ----------
    phi : array of shape (n, d) or (n, L, d)
        With three axes, the layer is applied at ``L`` positions of each sample.
    target : array of shape (n,) or (n, C), or (n, L, ...)
    weight : array of shape (n,) or (n, L), or None
        Sample weights; ``None`` means 1. Along a sequence, what each position's loss counts in its
        sample's; 0 where a mask hides it.
    """

    phi: Array
    target: Array
    weight: Array | None = None

    def rows(self) -> Block:
        """Return the block with positions as rows of their own, those of weight zero left out.

        What is hidden may be anything, also features at which the loss is not defined. The number of
        samples is not that of these rows: divide by ``N``. A block without positions is returned itself.

        Examples
        --------
        >>> import numpy as np
        >>> phi = np.asarray([[[1.0], [2.0]], [[3.0], [4.0]]])
        >>> block = Block(phi, np.asarray([[0, 1], [1, 0]]), np.asarray([[0.5, 0.5], [1.0, 0.0]]))
        >>> block.rows().phi.ravel(), block.rows().target, block.rows().weight
        (array([1., 2., 3.]), array([0, 1, 1]), array([0.5, 0.5, 1. ]))
        """
        if self.phi.ndim == 2:
            return self
        xp = namespace(self.phi)
        phi, target = flat_positions(self.phi), flat_positions(self.target)
        if self.weight is None:
            return Block(phi, target)
        weight = xp.reshape(self.weight, (-1,))
        (kept,) = xp.nonzero(weight)
        if kept.shape[0] == 0:  # of samples that all count nothing one row stays, with its weight of zero
            kept = xp.arange(1, device=device_of(weight))
        if kept.shape[0] == weight.shape[0]:
            return Block(phi, target, weight)
        return Block(*(xp.take(array, kept, axis=0) for array in (phi, target, weight)))

    def from_rows(self, values: Array) -> Array:
        """Put values of :meth:`rows`, ``(m, ...)``, back in place: ``(n, L, ...)``, 0 where left out.

        Examples
        --------
        >>> import numpy as np
        >>> block = Block(np.ones((1, 3, 1)), np.asarray([[0, 1, 1]]), np.asarray([[0.5, 0.0, 0.5]]))
        >>> block.from_rows(np.asarray([7.0, 8.0]))
        array([[7., 0., 8.]])
        """
        if self.phi.ndim == 2:
            return values
        xp = namespace(values)
        rest = tuple(values.shape[1:])
        n, n_positions = self.phi.shape[:2]
        if values.shape[0] < n * n_positions:
            kept = xp.reshape(self.weight, (-1,)) != 0
            # Row of each position; positions that were left out get the zeros behind the last row.
            place = xp.cumulative_sum(astype(kept, xp.int64)) - 1
            place = xp.where(kept, place, xp.full_like(place, values.shape[0]))
            zeros = xp.zeros((1, *rest), dtype=values.dtype, device=device_of(values))
            values = xp.take(xp.concat([values, zeros], axis=0), place, axis=0)
        return xp.reshape(values, (n, n_positions, *rest))

    def in_double(self) -> Block:
        """Return the block with features and weights in float64."""
        weight = None if self.weight is None else astype(self.weight, namespace(self.weight).float64)
        return self._replace(phi=astype(self.phi, namespace(self.phi).float64), weight=weight)

    def mean_over_positions(self, values: Array) -> Array:
        """Return the weighted mean over positions of values of :meth:`rows`: ``(m,)`` to ``(n,)``.

        Weights are divided by their sum; 0 for a sample whose weights are all zero. A block without
        positions returns the values themselves.

        Examples
        --------
        >>> import numpy as np
        >>> block = Block(np.ones((1, 3, 1)), np.asarray([[0, 1, 1]]), np.asarray([[3.0, 0.0, 1.0]]))
        >>> block.mean_over_positions(np.asarray([4.0, 8.0]))
        array([5.])
        """
        if self.phi.ndim == 2:
            return values
        xp = namespace(values)
        weight = self.rows().weight
        if weight is None:
            return xp.mean(self.from_rows(values), axis=1)
        sums = xp.sum(self.from_rows(values * astype(weight, values.dtype)), axis=1)
        totals = xp.sum(astype(self.weight, values.dtype), axis=1)
        return sums / xp.where(totals > 0, totals, xp.ones_like(totals))


class Blocks(Protocol):
    """The training set in blocks of any size, iterated as often as needed, always in the same order."""

    @property
    def n_samples(self) -> int:
        """Return ``N``, the number of training samples."""

    def __iter__(self) -> Iterator[Block]:
        """Yield the blocks."""


def by_rows(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yield the blocks with positions as rows of their own; see :meth:`Block.rows`."""
    for block in blocks:
        yield block.rows()


def flat_positions(array: Array) -> Array:
    """Return ``(n, L, ...)`` as ``(n * L, ...)``."""
    n, n_positions, *rest = array.shape
    return namespace(array).reshape(array, (n * n_positions, *rest))
