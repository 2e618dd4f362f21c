"""The damped Hessian as an operator: products with curvatures that are kept, and its definiteness."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse.linalg

from whence._errors import NotPositiveDefiniteError
from whence.arrays.base import WORKSPACE_BYTES, Array, as_numpy, astype, itemsize, namespace, row_slices
from whence.arrays.symmetric import rank_k_update
from whence.engine.base import Part, engine_of, parts_of, total
from whence.layers.curvature import Curvature
from whence.layers.linear_layer import Block, Blocks, LinearLayer, by_rows

__all__ = ["DampedHessian", "refuse_if_singular", "row_blocks", "second_moment"]

#: Bytes of curvatures that are kept from one product to the next.
KEPT_BYTES = 256 * 2**20


class DampedHessian:
    """``V -> (H + lam) V`` for stacks ``(m, d, C)``, in the vectors' precision.

    Curvatures are computed on the first product in the features' precision and kept, if they fit into
    ``KEPT_BYTES``. In another precision, and on a cluster, they are computed anew, block by block.

    Parameters
    ----------
    layer : LinearLayer
    blocks : Blocks
    damping : float
    """

    def __init__(self, layer: LinearLayer, blocks: Blocks, damping: float) -> None:
        self.layer = layer
        self.blocks = blocks
        self.damping = damping
        self.dtype: Any = next(iter(blocks)).phi.dtype
        self._kept: list[Curvature] | None = None
        self._fits: bool | None = None

    def __call__(self, vectors: Array) -> Array:
        """Return ``(H + lam) V``."""
        kept = self._curvatures() if vectors.dtype == self.dtype else None
        return self.layer.hessian_product(self.blocks, vectors, self.damping, kept)

    def _curvatures(self) -> list[Curvature] | None:
        if engine_of(self.blocks).is_remote:
            return None
        if self._fits is None:
            kept, n_bytes = [], 0
            for block in by_rows(self.blocks):
                size = block.phi.shape[0] * self.layer.n_outputs * itemsize(block.phi)
                n_bytes += size * (self.layer.n_outputs if self.layer.curvature_is_dense else 1)
                if n_bytes > KEPT_BYTES:
                    break
                kept.append(self.layer.curvatures(block))
            self._fits = n_bytes <= KEPT_BYTES
            self._kept = kept if self._fits else None
        return self._kept

    def smallest_eigenvalue(self) -> float:
        """Return the smallest eigenvalue, by Lanczos iteration to two digits.

        Where many eigenvalues crowd at the lower end, the iteration stops before they are told apart;
        what it returns then is the least that it found, an upper bound.
        """
        d, n_outputs = self.layer.n_features, self.layer.n_outputs
        like = next(iter(self.blocks)).phi
        xp = namespace(like)

        def product(vector: np.ndarray) -> np.ndarray:
            stack = xp.asarray(vector.reshape(1, d, n_outputs))
            return as_numpy(self(stack)).reshape(-1)

        size = d * n_outputs
        if size < 4:
            columns = [product(unit) for unit in np.eye(size)]
            return float(np.linalg.eigvalsh(np.stack(columns))[0])
        operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(size)
        n_basis = min(size - 1, 40)
        try:
            values = scipy.sparse.linalg.eigsh(
                operator, k=1, which="SA", tol=1e-2, v0=start, ncv=n_basis, maxiter=20,
                return_eigenvectors=False,
            )  # fmt: skip
            return float(values[0])
        except scipy.sparse.linalg.ArpackNoConvergence:
            return self._least_ritz_value(product, start, n_basis)

    @staticmethod
    def _least_ritz_value(product: Any, start: np.ndarray, n_steps: int) -> float:
        """Return the least Ritz value of a short Lanczos run, every vector orthogonal to all before."""
        basis = [start / np.linalg.norm(start)]
        images = []
        for _ in range(n_steps):
            images.append(product(basis[-1]))
            rest = images[-1]
            for _ in range(2):  # twice is enough
                rest = rest - np.stack(basis, 1) @ (np.stack(basis) @ rest)
            norm = np.linalg.norm(rest)
            if norm <= 1e-12 * np.linalg.norm(images[-1]):
                break
            basis.append(rest / norm)
        projected = np.stack(basis[: len(images)]) @ np.stack(images, 1)
        return float(np.linalg.eigvalsh((projected + projected.T) / 2)[0])

    def refuse_if_not_definite(self) -> None:
        """Raise unless ``H + lam`` is positive definite, as far as can be told before solving.

        Raises
        ------
        NotPositiveDefiniteError
            If it is singular for lack of damping, or if a loss that is not convex in the
            pre-activations makes it indefinite.
        """
        refuse_if_singular(self.layer, self.blocks, self.damping)
        if self.may_be_indefinite:
            self.refuse_if_indefinite()

    def refuse_if_indefinite(self) -> None:
        """Raise if the smallest eigenvalue is not positive, unless that is known already."""
        if not self.may_be_indefinite:
            return
        smallest = self.smallest_eigenvalue()
        if smallest <= 0:
            raise NotPositiveDefiniteError(
                smallest,
                self.damping,
                "Raise the damping above its size, or take curvature='gauss_newton' in the factory; a "
                "loss that is not convex in the pre-activations has an indefinite Hessian.",
            )

    @cached_property
    def may_be_indefinite(self) -> bool:
        """Whether some ``K_i`` has a negative eigenvalue. If none has, ``H`` has none either."""
        if self.layer.gauss_newton:
            return False
        layer = self.layer
        first = next(iter(by_rows(self.blocks)))
        one = layer.curvatures(Block(*(None if a is None else a[:1, ...] for a in first)))
        if one.dense is None and one.root is not None and one.rows_sum_to_zero:
            return False  # softmax
        bends = engine_of(self.blocks).map(
            lambda part: any(_bends_down(layer, block) for block in by_rows(part)), parts_of(self.blocks)
        )
        return any(bends)


def _bends_down(layer: LinearLayer, block: Block) -> bool:
    """Return whether the curvature of some row has a negative eigenvalue."""
    n_rows = max(1, WORKSPACE_BYTES // (32 * layer.n_outputs**2))
    for rows in row_slices(block.phi.shape[0], n_rows):
        weight = None if block.weight is None else block.weight[rows]
        curvature = layer.curvatures(Block(block.phi[rows, :], block.target[rows, ...], weight))
        if curvature.diagonal is not None and curvature.root is None:
            values = curvature.diagonal
        else:
            values = namespace(block.phi).linalg.eigvalsh(curvature.matrices())
        xp = namespace(values)
        rounding = 100 * float(xp.finfo(values.dtype).eps) * float(xp.max(xp.abs(values)))
        if float(xp.min(values)) < -rounding:
            return True
    return False


def row_blocks(blocks: Iterable[Block], n_columns: int) -> Any:
    """Yield blocks of rows in float64, so few at a time that ``n_columns`` of each fit the workspace."""
    for block in by_rows(blocks):
        xp = namespace(block.phi)
        for rows in row_slices(block.phi.shape[0], max(16, WORKSPACE_BYTES // (32 * n_columns))):
            weight = None if block.weight is None else astype(block.weight[rows], xp.float64)
            yield Block(astype(block.phi[rows, :], xp.float64), block.target[rows, ...], weight)


def second_moment(blocks: Blocks) -> tuple[Array, float]:
    """Return ``sum_i w_i phi_i phi_i^T / sum_i w_i`` in float64, and ``sum_i w_i``."""
    n_columns = next(iter(blocks)).phi.shape[-1]

    def of_part(part: Part) -> tuple[Array, float]:
        moment, weights = None, 0.0
        for block in row_blocks(part, n_columns):
            xp = namespace(block.phi)
            phi = block.phi
            if block.weight is None:
                weights += phi.shape[0]
            else:
                weights += float(xp.sum(block.weight))
                phi = phi * xp.sqrt(block.weight)[:, None]
            moment = rank_k_update(moment, phi, 1.0)
        return moment, weights

    moment, weights = total(blocks, of_part, "second moment of the features")
    xp = namespace(moment)
    symmetric = xp.tril(moment) + xp.matrix_transpose(xp.tril(moment, k=-1))
    return symmetric / (weights or 1.0), weights


def refuse_if_singular(layer: LinearLayer, blocks: Blocks, damping: float) -> None:
    """Raise if a row of ``theta`` is neither damped nor regularised and ``H`` needs that it were.

    That is so if the loss does not change when a constant is added to every output, or if features
    are linearly dependent.

    Raises
    ------
    NotPositiveDefiniteError
    """
    lam = astype(layer.regulariser(damping), namespace(layer.theta).float64)
    xp = namespace(lam)
    if bool(xp.all(lam > 0)):
        return
    first = next(iter(by_rows(blocks)))
    weight = None if first.weight is None else first.weight[:1]
    one = layer.curvatures(Block(first.phi[:1, :], first.target[:1, ...], weight))
    smallest = 0.0
    if not one.rows_sum_to_zero:
        moment, _ = second_moment(blocks)
        xp = namespace(moment)
        values = xp.linalg.eigvalsh(moment + xp.eye(moment.shape[0], dtype=moment.dtype) * lam[None, :])
        size = max(moment.shape[0], 10)
        rounding = size * float(xp.finfo(first.phi.dtype).eps) * float(values[-1])
        if float(values[0]) > rounding:
            return
        smallest = max(0.0, float(values[0]))
    raise NotPositiveDefiniteError(
        smallest,
        damping,
        "Pass damping > 0, e.g. 1e-3; ExactIHVPFactory(damping=0) takes the pseudo-inverse.",
    )
