"""A dense layer and its loss: everything first- and second-order about its weights, in closed form.

Notation, here and everywhere above:

======== =========== ==================================================================================
symbol   shape       meaning
======== =========== ==================================================================================
``N``                number of training samples behind the layer, never a batch size
``phi``  ``(n, d)``  features: the layer's input, a constant 1 appended when it has a bias
``theta````(d, C)``  the weights, the bias as last row when there is one
``u``    ``(n, C)``  pre-activations, ``phi @ theta``
``r``    ``(n, C)``  residuals, ``d ell_i / d u_i``
``K``    ``(n,C,C)`` curvatures, ``d2 ell_i / d u_i2``
``g_i``  ``(d, C)``  gradient of sample ``i``, ``outer(phi_i, r_i)``; never formed
``H``                Hessian of the mean loss, ``(1/N) sum_i K_i (x) phi_i phi_i^T``
======== =========== ==================================================================================

Matrices ``(d, C)`` are flattened output by output: entry ``(a, c)`` of ``theta`` has index ``c*d + a``.

A layer applied along a sequence sees ``L`` rows a sample, and the loss of a sample is a weighted sum over
them. So is everything linear in the loss: ``g_i = sum_l outer(phi_il, r_il)``, with the weights in ``r``,
and ``H = (1/N) sum_i sum_l K_il (x) phi_il phi_il^T``. ``N`` stays the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from array_api_compat import device as device_of

from whence._errors import WhenceError
from whence.arrays.base import (
    WORKSPACE_BYTES,
    Array,
    Workspace,
    as_numpy,
    assign,
    astype,
    itemsize,
    like,
    namespace,
    row_slices,
    rows_at_once,
)
from whence.arrays.symmetric import rank_k_update
from whence.engine.base import Part, total
from whence.engine.blocks import Block, Blocks, by_rows, flat_positions
from whence.layers.losses import Curvature, Loss

__all__ = ["Block", "Blocks", "Hessian", "LinearLayer", "by_rows", "flatten", "outer_rows", "unflatten"]

#: Rows of a block that a Hessian product takes at once.
TILE_ROWS = 1024


def flatten(matrices: Array) -> Array:
    """Flatten ``(..., d, C)`` to ``(..., C*d)``, output by output."""
    xp = namespace(matrices)
    *lead, d, n_outputs = matrices.shape
    return xp.reshape(xp.matrix_transpose(matrices), (*lead, d * n_outputs))


def unflatten(vectors: Array, n_outputs: int) -> Array:
    """Undo :func:`flatten`: ``(..., C*d)`` back to ``(..., d, C)``."""
    xp = namespace(vectors)
    *lead, size = vectors.shape
    return xp.matrix_transpose(xp.reshape(vectors, (*lead, n_outputs, size // n_outputs)))


@dataclass(frozen=True)
class Hessian:
    """The Hessian of the mean loss, undamped, whole or as the blocks of its diagonal.

    Attributes
    ----------
    blocks : array of shape (b, m, m)
        Only the lower triangles are meaningful. If ``is_whole``, ``b = 1`` and ``m = C*d``. Otherwise
        ``m = d`` and there is one block for each output, or a single one that all outputs share.
    n_outputs : int
        ``C``.
    is_whole : bool
        Whether the outputs interact, so that the blocks off the diagonal count.
    """

    blocks: Array
    n_outputs: int
    is_whole: bool

    def matrix(self) -> Array:
        """Return the ``(C*d, C*d)`` matrix written out, symmetric. For small layers only."""
        xp = namespace(self.blocks)
        full = xp.tril(self.blocks) + xp.matrix_transpose(xp.tril(self.blocks, k=-1))
        if self.is_whole:
            return full[0, ...]
        d = full.shape[1]
        size = d * self.n_outputs
        result = xp.zeros((size, size), dtype=full.dtype, device=device_of(full))
        for c in range(self.n_outputs):
            here = slice(c * d, (c + 1) * d)
            result = assign(result, (here, here), full[c % full.shape[0], ...])
        return result


@dataclass(frozen=True)
class LinearLayer:
    """A dense layer, its loss, and the damping that its own regulariser brings.

    Parameters
    ----------
    theta : array of shape (d, C)
        Weights, the bias as last row if ``has_bias``.
    loss : Loss
        The loss as a function of the pre-activations.
    has_bias : bool, default=False
        Whether the last row of ``theta`` is a bias and the last feature a constant 1.
    l2, bias_l2 : float, default=0.0
        Second derivative of the layer's own L2 regulariser on the kernel and on the bias, i.e.
        ``2 * strength`` for ``strength * sum(kernel**2)``.
    gauss_newton : bool, default=False
        Whether ``H`` is the Gauss-Newton matrix: every ``K_i`` without its negative eigenvalues, so that
        ``H`` is positive semi-definite. For a loss that is convex in the pre-activations it is the
        Hessian itself.
    shift_invariant : bool, default=False
        Whether adding one number to all outputs is known to change nothing, where the loss does not say
        so itself; see :meth:`knowing_shifts`.

    Examples
    --------
    One feature, squared error: ``ell(theta) = (theta x - y)^2``, so ``g = 2 (theta x - y) x`` and
    ``H = 2 x^2``.

    >>> import numpy as np
    >>> from whence.layers.losses import SquaredError
    >>> layer = LinearLayer(np.asarray([[3.0]]), SquaredError())
    >>> class One:
    ...     n_samples = 1
    ...     def __iter__(self):
    ...         yield Block(np.asarray([[2.0]]), np.asarray([[1.0]]))
    >>> layer.mean_gradient(One())
    array([[20.]])
    >>> layer.hessian(One()).matrix()
    array([[8.]])
    >>> layer.hessian_product(One(), np.asarray([[[10.0]]]), damping=0.5)
    array([[[85.]]])
    """

    theta: Array
    loss: Loss
    has_bias: bool = False
    l2: float = 0.0
    bias_l2: float = 0.0
    gauss_newton: bool = False
    shift_invariant: bool = False

    @property
    def n_features(self) -> int:
        """``d``, with the constant of the bias."""
        return int(self.theta.shape[0])

    @property
    def n_outputs(self) -> int:
        """``C``."""
        return int(self.theta.shape[1])

    @property
    def outputs_are_independent(self) -> bool:
        """Whether ``H`` falls into one block for each output."""
        return self.loss.outputs_are_independent or self.n_outputs == 1

    @property
    def curvature_is_dense(self) -> bool:
        """Whether ``K_i`` is written out for every sample."""
        return self.loss.curvature_is_dense

    def at(self, theta: Array) -> LinearLayer:
        """Return the same layer with other weights."""
        return replace(self, theta=theta)

    def knowing_shifts(self, block: Block) -> LinearLayer:
        """Return the layer, having tried on some samples whether its loss is invariant to shifts.

        That is so if residuals and the rows of curvatures sum to zero over the outputs, whatever the
        pre-activations.

        Parameters
        ----------
        block : Block
            A few training samples.
        """
        if self.loss.is_shift_invariant or self.n_outputs == 1 or self.outputs_are_independent:
            return self
        rows = block.in_double().rows()
        u = self.pre_activations(rows.phi)
        noise = like(np.random.default_rng(0).standard_normal(tuple(u.shape)), u)
        for at in (u, u + astype(noise, u.dtype)):
            r = self.loss.residual(at, rows.target)
            if not _sums_to_zero(r):
                return self
            try:
                curvature = self.loss.curvature(at, rows.target).matrices()
            except WhenceError:  # it has no second derivatives, and what needs them will say so
                return self
            if not _sums_to_zero(curvature, or_is_zero=True):
                return self
        return replace(self, shift_invariant=True)

    def centred(self, array: Array) -> Array:
        """Return ``array (..., C)`` less its mean over outputs, where shifting all outputs changes nothing.

        Residuals sum to zero over outputs then, and ``H`` takes matrices with that property to such ones:
        what gradients are multiplied with needs no part that all outputs share. With features that are
        not scaled to about 1, or little damping, that part of ``H^{-1} V`` is so large that beside it
        float32 has no digits for the rest.

        Examples
        --------
        >>> from whence.layers.losses import SoftmaxCrossEntropy
        >>> LinearLayer(np.ones((1, 2)), SoftmaxCrossEntropy()).centred(np.asarray([[1e9, 1e9 + 2]]))
        array([[-1.,  1.]])
        """
        if not (self.loss.is_shift_invariant or self.shift_invariant):
            return array
        return array - namespace(array).mean(array, axis=-1, keepdims=True)

    def pre_activations(self, phi: Array) -> Array:
        """Return ``u = phi @ theta``, shape ``(n, C)`` or ``(n, L, C)``, in the features' precision."""
        flat = phi if phi.ndim == 2 else flat_positions(phi)
        u = flat @ astype(like(self.theta, phi), phi.dtype)
        return u if phi.ndim == 2 else namespace(u).reshape(u, (*phi.shape[:-1], self.n_outputs))

    def residuals(self, block: Block) -> Array:
        """Return ``r``, sample weights included: ``(n, C)``, or ``(n, L, C)`` and 0 where hidden."""
        rows = block.rows()
        r = self.loss.residual(self.pre_activations(rows.phi), rows.target)
        if rows.weight is not None:
            r = r * astype(rows.weight, r.dtype)[:, None]
        return block.from_rows(r)

    def gradients(self, block: Block) -> Array:
        """Return ``g_i (n, d, C)``, summed over positions. For small blocks only."""
        r = self.residuals(block)
        if block.phi.ndim == 2:
            return block.phi[:, :, None] * r[:, None, :]
        xp = namespace(r)
        return xp.matmul(xp.matrix_transpose(block.phi), r)

    def curvatures(self, block: Block) -> Curvature:
        """Return ``K`` of every sample, or of every one of :meth:`Block.rows`; weights included."""
        rows = block.rows()
        u = self.pre_activations(rows.phi)
        weight = None if rows.weight is None else astype(rows.weight, u.dtype)
        curvature = self.loss.curvature(u, rows.target).scaled(weight)
        return curvature.positive_part() if self.gauss_newton else curvature

    def losses(self, block: Block) -> Array:
        """Return ``ell_i (n,)``, sample weights left out: what the model pays for each sample.

        Along a sequence it is the mean over positions by their weights; 0 if these are all zero.
        """
        rows = block.rows()
        return block.mean_over_positions(self.loss.value(self.pre_activations(rows.phi), rows.target))

    def regulariser(self, damping: float = 0.0) -> Array:
        """Return ``lam (d,)``: damping on every row of ``theta``, next to the layer's own L2."""
        xp = namespace(self.theta)
        kind = {"dtype": self.theta.dtype, "device": device_of(self.theta)}
        lam = xp.full((self.n_features,), damping + self.l2, **kind)
        if self.has_bias:
            lam = assign(lam, -1, damping + self.bias_l2)
        return lam

    def mean_gradient(self, blocks: Blocks) -> Array:
        """Return ``(1/N) sum_i g_i``, shape ``(d, C)``, in the weights' precision."""

        def of_part(part: Part) -> Array:
            gradient = namespace(self.theta).zeros_like(self.theta)
            for block in by_rows(part):
                product = like(block.phi.T @ self.residuals(block), gradient)
                gradient = gradient + astype(product, gradient.dtype)
            return gradient

        return total(blocks, of_part, "mean gradient") / blocks.n_samples

    def implied_l2(self, blocks: Blocks, l1: float = 0.0) -> float:
        """Return the L2 strength that makes the weights, but the bias, most nearly a stationary point.

        A layer that was held back by small steps and by stopping early lies where a stronger regulariser
        would have led: ``g + lam theta = 0`` for the mean gradient ``g``, which least squares solves by
        ``lam = -<g, theta> / <theta, theta>``. At an optimum it is the strength of the layer's own.

        Parameters
        ----------
        blocks : blocks
        l1 : float, default=0.0
            The strength of an L1 penalty on the weights: its gradient ``l1 sign(theta)`` is added to ``g``.

        Returns
        -------
        float
            Negative where the weights grow along the gradient.

        Examples
        --------
        One sample ``x = 2``, ``theta = 3``, target 7: ``g = 2 x (x theta - 7) = -4``.

        >>> import numpy as np
        >>> from whence.layers.losses import SquaredError
        >>> class One:
        ...     n_samples = 1
        ...     def __iter__(self):
        ...         yield Block(np.asarray([[2.0]]), np.asarray([[7.0]]))
        >>> round(LinearLayer(np.asarray([[3.0]]), SquaredError()).implied_l2(One()), 6)
        1.333333
        """
        rows = slice(0, self.n_features - int(self.has_bias))
        theta, gradient = (as_numpy(a)[rows] for a in (self.theta, self.mean_gradient(blocks)))
        size = float((theta * theta).sum())
        pull = float((gradient * theta).sum()) + l1 * float(abs(theta).sum())
        return -pull / size if size else 0.0

    def hessian_product(
        self,
        blocks: Blocks,
        vectors: Array,
        damping: float = 0.0,
        curvatures: Sequence[Curvature] | None = None,
    ) -> Array:
        """Return ``(H + lam) V`` for a stack of matrices, in the vectors' precision.

        Parameters
        ----------
        blocks : Blocks
            The training set.
        vectors : array of shape (m, d, C)
        damping : float, default=0.0
        curvatures : sequence of Curvature, optional
            :meth:`curvatures` of each block in the vectors' precision, where they were kept.

        Returns
        -------
        array of shape (m, d, C)
            ``(1/N) sum_i phi_i (K_i (V^T phi_i))^T + lam V``: two matrix products a block.
        """
        xp = namespace(vectors)
        n_vectors, _, n_outputs = vectors.shape
        if n_vectors == 0:
            return xp.zeros_like(vectors)
        n_rows, n_at_once = self._tile(n_vectors, itemsize(vectors))
        # The longer of the two axes last: elementwise steps run along it.
        axis = 2 if n_outputs > n_at_once else 1
        wide = [_wide(vectors[some, ...], axis) for some in row_slices(n_vectors, n_at_once)]
        dtype = vectors.dtype  # not the vectors: what a part's function refers to is sent to workers

        def of_part(part: Part) -> tuple[Array, ...]:
            sums = [xp.zeros_like(columns) for columns in wide]
            there, back = Workspace(), Workspace()
            for number, block in enumerate(by_rows(part), part.first):
                for rows in row_slices(block.phi.shape[0], n_rows):
                    some = _rows_of(block, rows)
                    phi = astype(some.phi, dtype)
                    if curvatures is None:
                        curvature = self.curvatures(some._replace(phi=phi))
                    else:
                        curvature = curvatures[number].rows(rows)
                    for at, columns in enumerate(wide):
                        shape = (-1, n_outputs) if axis == 2 else (n_outputs, -1)
                        changes = xp.reshape(there.matmul(phi, columns), (phi.shape[0], *shape))
                        changes = curvature.apply_in_place(changes, axis)
                        sums[at] += back.matmul(phi.T, xp.reshape(changes, (phi.shape[0], -1)))
            return tuple(sums)

        sums = total(blocks, of_part)
        product = xp.concat([_narrow(columns, n_outputs, axis) for columns in sums], axis=0)
        product /= blocks.n_samples
        lam = astype(self.regulariser(damping), vectors.dtype)
        product += lam[None, :, None] * vectors
        return product

    def _tile(self, n_vectors: int, item_bytes: int) -> tuple[int, int]:
        """Return how many rows and how many vectors a product takes at once.

        Thousands of each would be best for BLAS; what they produce stays in the workspace.
        """
        n_rows = TILE_ROWS
        if self.curvature_is_dense:
            n_rows = max(1, min(n_rows, WORKSPACE_BYTES // (4 * item_bytes * self.n_outputs**2)))
        n_at_once = WORKSPACE_BYTES // (2 * item_bytes * n_rows * self.n_outputs)
        return n_rows, max(1, min(n_vectors, n_at_once))

    def hessian(self, blocks: Blocks) -> Hessian:
        """Return ``H`` of the mean loss, undamped, in the features' precision.

        Memory is the matrix itself, a workspace of ``WORKSPACE_BYTES``, and for a training set of several
        parts one more matrix for each level of their sum (:class:`~whence.engine.base.Fold`). How ``H`` is
        assembled depends on the curvature:

        - diagonal ``K``: one symmetric rank-k update for each output (one for all, if ``K`` is constant);
        - ``diag(k) - root root^T`` with rows that sum to zero (softmax): one update with the rows
          ``root_i (x) phi_i``, which gives ``-H`` off the diagonal blocks; the diagonal blocks follow
          from ``sum_b K_ab = 0``;
        - any other ``K``: one product for each pair of outputs.
        """
        if self.outputs_are_independent:
            return Hessian(self._independent_blocks(blocks), self.n_outputs, is_whole=False)
        scale = 1.0 / blocks.n_samples
        matrix, n_to_fill = total(blocks, lambda part: self._matrix_of(part, scale), "Hessian")
        if n_to_fill:
            matrix = self._fill_diagonal_blocks(matrix)
        return Hessian(matrix[None, ...], self.n_outputs, is_whole=True)

    def _matrix_of(self, blocks: Iterable[Block], scale: float) -> tuple[Array, int]:
        """Return ``scale`` times the sum over some blocks, and in how many its diagonal is left out."""
        matrix: Array | None = None
        diagonal_follows = False
        for block in by_rows(blocks):
            row_bytes = self.n_outputs * self.n_features * itemsize(block.phi)
            if self.curvature_is_dense:
                row_bytes += self.n_outputs**2 * 4 * itemsize(block.phi)
            for rows in row_slices(block.phi.shape[0], rows_at_once(row_bytes)):
                part = _rows_of(block, rows)
                curvature = self.curvatures(part)
                diagonal_follows = curvature.root is not None and curvature.rows_sum_to_zero
                if diagonal_follows:
                    scaled = outer_rows(curvature.root, part.phi)
                    matrix = rank_k_update(matrix, scaled, -scale)
                else:
                    term = scale * self._general_term(part.phi, curvature.matrices())
                    matrix = term if matrix is None else matrix + term
        return matrix, int(diagonal_follows)

    def _independent_blocks(self, blocks: Blocks) -> Array:
        n_blocks = 1 if self.loss.curvature_is_constant else self.n_outputs
        scale = 1.0 / blocks.n_samples

        def of_part(part: Part) -> tuple[Array, ...]:
            sums: list[Array | None] = [None] * n_blocks
            for block in by_rows(part):
                row_bytes = self.n_features * itemsize(block.phi)
                for rows in row_slices(block.phi.shape[0], rows_at_once(row_bytes)):
                    some = _rows_of(block, rows)
                    curvature = self.curvatures(some)
                    diagonal = curvature.diagonal
                    if diagonal is None or curvature.root is not None:  # one output of any loss
                        diagonal = curvature.matrices()[:, :, 0]
                    for c in range(n_blocks):
                        sums[c] = _weighted_gram(sums[c], some.phi, diagonal[:, c], scale)
            return tuple(sums)

        sums = total(blocks, of_part, "Hessian")
        return namespace(sums[0]).stack(sums)

    def _fill_diagonal_blocks(self, lower: Array) -> Array:
        """Set diagonal block ``(a, a)`` to minus the sum of the blocks ``(a, b)``, ``b != a``."""
        d, n_outputs = self.n_features, self.n_outputs
        for a in range(n_outputs):
            here = slice(a * d, (a + 1) * d)
            corner = namespace(lower).zeros((d, d), dtype=lower.dtype, device=device_of(lower))
            for b in range(n_outputs):
                there = slice(b * d, (b + 1) * d)
                if b < a:
                    corner = corner - lower[here, there]
                elif b > a:
                    corner = corner - lower[there, here].T
            lower = assign(lower, (here, here), corner)
        return lower

    def _general_term(self, phi: Array, curvature: Array) -> Array:
        """Return ``sum_i K_i (x) phi_i phi_i^T`` by one product for each column of ``K``."""
        xp = namespace(phi)
        columns = [
            xp.reshape(outer_rows(curvature[:, :, b], phi), (phi.shape[0], -1)).T @ phi
            for b in range(self.n_outputs)
        ]
        return xp.concat(columns, axis=1)


def _rows_of(block: Block, rows: slice) -> Block:
    if rows.stop - rows.start == block.phi.shape[0]:
        return block
    weight = None if block.weight is None else block.weight[rows]
    return Block(block.phi[rows, :], block.target[rows, ...], weight)


def _sums_to_zero(derivatives: Array, or_is_zero: bool = False) -> bool:
    """Whether all sums over the last axis are rounding, and not for lack of anything to sum."""
    xp = namespace(derivatives)
    size = float(xp.sum(xp.abs(derivatives)))
    sums = float(xp.sum(xp.abs(xp.sum(derivatives, axis=-1))))
    return sums <= 64 * float(xp.finfo(derivatives.dtype).eps) * size and (size > 0 or or_is_zero)


def _wide(vectors: Array, axis: int) -> Array:
    """Return vectors ``(k, d, C)`` side by side: ``(d, k*C)`` for ``axis=2``, ``(d, C*k)`` for 1."""
    xp = namespace(vectors)
    order = (1, 0, 2) if axis == 2 else (1, 2, 0)
    return xp.reshape(xp.permute_dims(vectors, order), (vectors.shape[1], -1))


def _narrow(wide: Array, n_outputs: int, axis: int) -> Array:
    """Undo :func:`_wide`."""
    xp = namespace(wide)
    if axis == 2:
        return xp.permute_dims(xp.reshape(wide, (wide.shape[0], -1, n_outputs)), (1, 0, 2))
    return xp.permute_dims(xp.reshape(wide, (wide.shape[0], n_outputs, -1)), (2, 0, 1))


def outer_rows(left: Array, phi: Array) -> Array:
    """Return the rows ``left_i (x) phi_i``, shape ``(n, C*d)``."""
    xp = namespace(phi)
    product = left[:, :, None] * phi[:, None, :]
    return xp.reshape(product, (phi.shape[0], left.shape[1] * phi.shape[1]))


def _weighted_gram(total: Array | None, phi: Array, weight: Array, scale: float) -> Array:
    """Return ``total + scale * sum_i weight_i phi_i phi_i^T``; lower triangle."""
    xp = namespace(phi)
    if bool(xp.all(weight >= 0)):
        return rank_k_update(total, phi * xp.sqrt(weight)[:, None], scale)
    product = scale * ((phi * weight[:, None]).T @ phi)
    return product if total is None else total + product
