"""The second derivatives of losses with respect to the pre-activations, in their smallest form."""

from __future__ import annotations

from dataclasses import dataclass, replace

from array_api_compat import device as device_of

from whence.arrays.base import Array, astype, namespace

__all__ = ["Curvature"]


@dataclass(frozen=True)
class Curvature:
    """The ``(C, C)`` curvatures of ``n`` samples, in whichever form is smallest.

    Either ``K_i = diag(diagonal_i) - outer(root_i, root_i)``, or any symmetric ``K_i = dense_i``.

    Attributes
    ----------
    diagonal : array of shape (n, C) or None
        The diagonal part; ``None`` if ``dense`` is given.
    root : array of shape (n, C) or None
        The rank-one part. ``None`` means that the outputs do not interact.
    dense : array of shape (n, C, C) or None
        The curvatures themselves, where they have no structure.
    rows_sum_to_zero : bool
        Whether ``K_i 1 = 0``, as for softmax: adding a constant to every output changes nothing.

    Examples
    --------
    Softmax with two equal logits has ``K = [[1/4, -1/4], [-1/4, 1/4]]``:

    >>> import numpy as np
    >>> half = np.asarray([[0.5, 0.5]])
    >>> curvature = Curvature(diagonal=half, root=half)
    >>> curvature.matrices()
    array([[[ 0.25, -0.25],
            [-0.25,  0.25]]])
    >>> curvature.apply(np.asarray([[1.0, 0.0]])), curvature.quadratic_forms(np.eye(2))
    (array([[ 0.25, -0.25]]), array([[0.25, 0.25]]))
    """

    diagonal: Array | None = None
    root: Array | None = None
    dense: Array | None = None
    rows_sum_to_zero: bool = False

    def apply(self, vectors: Array, axis: int = 1) -> Array:
        """Return ``K_i v_i`` for vectors along ``axis``, in memory of its own.

        Parameters
        ----------
        vectors : array of shape (n, C), (n, C, m), or (n, m, C)
        axis : {1, 2}, default=1
            The axis of length ``C``.
        """
        if vectors.ndim == 2:
            return self.apply(vectors[:, :, None])[:, :, 0]
        return self.apply_in_place(namespace(vectors).asarray(vectors, copy=True), axis)

    def apply_in_place(self, vectors: Array, axis: int = 1) -> Array:
        """Return ``K_i v_i`` for ``vectors (n, C, m)``, or ``(n, m, C)`` with ``axis=2``.

        The memory of ``vectors`` is used where the library allows it.
        """
        xp = namespace(vectors)
        if self.dense is not None:
            return xp.matmul(self.dense, vectors) if axis == 1 else xp.matmul(vectors, self.dense)
        assert self.diagonal is not None  # one of the two forms is given
        diagonal = xp.expand_dims(self.diagonal, axis=3 - axis)
        if self.root is None:
            vectors *= diagonal
            return vectors
        inner = _along(self.root, vectors, axis)
        if self.root is self.diagonal:  # softmax: diag(p) v - p (p^T v) = p * (v - p^T v)
            vectors -= inner
            vectors *= diagonal
            return vectors
        vectors *= diagonal
        vectors -= xp.expand_dims(self.root, axis=3 - axis) * inner
        return vectors

    def scaled(self, weight: Array | None) -> Curvature:
        """Return ``weight_i K_i`` for non-negative ``weight (n,)``; ``None`` means 1."""
        if weight is None:
            return self
        xp = namespace(weight)
        column = weight[:, None]
        return replace(
            self,
            diagonal=None if self.diagonal is None else self.diagonal * column,
            root=None if self.root is None else self.root * xp.sqrt(column),
            dense=None if self.dense is None else self.dense * column[:, :, None],
        )

    def rows(self, rows: slice) -> Curvature:
        """Return the curvatures of some samples."""
        diagonal = None if self.diagonal is None else self.diagonal[rows, :]
        root = diagonal
        if self.root is not self.diagonal:
            root = None if self.root is None else self.root[rows, :]
        dense = None if self.dense is None else self.dense[rows, ...]
        return Curvature(diagonal, root, dense, self.rows_sum_to_zero)

    def matrices(self) -> Array:
        """Return the ``(n, C, C)`` curvatures written out. For small blocks only."""
        if self.dense is not None:
            return self.dense
        eye = _eye_like(self.diagonal)
        result = self.diagonal[:, :, None] * eye[None, :, :]  # type: ignore[index]
        if self.root is not None:
            result = result - self.root[:, :, None] * self.root[:, None, :]
        return result

    def total(self) -> Array:
        """Return ``sum_i K_i``, shape ``(C, C)``."""
        if self.dense is not None:
            return namespace(self.dense).sum(self.dense, axis=0)
        xp = namespace(self.diagonal)
        sums = xp.sum(self.diagonal, axis=0)
        result = _eye_like(sums) * sums[None, :]
        return result if self.root is None else result - xp.matrix_transpose(self.root) @ self.root

    def quadratic_forms(self, directions: Array) -> Array:
        """Return ``v_b^T K_i v_b`` for the columns of ``directions (C, k)``, shape ``(n, k)``."""
        xp = namespace(directions)
        if self.dense is not None:
            images = xp.matmul(self.dense, directions[None, ...])
            return xp.sum(images * directions[None, ...], axis=1)
        result = self.diagonal @ (directions * directions)
        return result if self.root is None else result - (self.root @ directions) ** 2

    def positive_part(self) -> Curvature:
        """Return the nearest positive semi-definite curvatures: negative eigenvalues become zero."""
        if self.dense is None and self.root is None:
            xp = namespace(self.diagonal)
            return replace(self, diagonal=xp.maximum(self.diagonal, xp.zeros_like(self.diagonal)))
        if self.root is not None and self.rows_sum_to_zero and _not_negative(self.root):
            # v^T K v = sum_{a<b} root_a root_b (v_a - v_b)^2: there is nothing to cut off.
            return self
        matrices = self.matrices()
        xp = namespace(matrices)
        values, vectors = xp.linalg.eigh(matrices)
        kept = vectors * xp.maximum(values, xp.zeros_like(values))[:, None, :]
        return Curvature(dense=astype(xp.matmul(kept, xp.matrix_transpose(vectors)), matrices.dtype))


def _eye_like(array: Array) -> Array:
    """Return the identity of the size of the last axis."""
    xp = namespace(array)
    return xp.eye(array.shape[-1], dtype=array.dtype, device=device_of(array))


def _along(root: Array, vectors: Array, axis: int) -> Array:
    """Return ``root_i^T v_i``, with ``axis`` kept at length 1."""
    xp = namespace(vectors)
    if axis == 1:
        return xp.matmul(root[:, None, :], vectors)
    return xp.matmul(vectors, root[:, :, None])


def _not_negative(array: Array) -> bool:
    return bool(namespace(array).all(array >= 0))
