"""Products of rows: the tangent kernel, sums, and products with vectors of all weights.

``<x, y> = sum_l sum_{p, p'} (a_p . a'_{p'}) (delta_p . delta'_{p'})`` over layers and positions: products
of small factors, which never form a vector of all weights. Where a gradient written out is cheaper, as of
convolutions with many positions, it is written out, for a few samples at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from array_api_compat import device as device_of

from whence.arrays.base import Array, as_numpy, assign, astype, like, namespace
from whence.layers.rows import Factors, Matrices, Rows, Term, Tokens

__all__ = ["combined", "inner", "inner_by_pairs", "squared_norms"]

#: Bytes that gradients written out may take at once, on either side of a product.
WRITTEN_BYTES = 128 * 2**20


def inner(left: Rows, right: Rows, dtype: object = None) -> Array:
    """Return ``<x_i, y_j>`` for all pairs of rows, shape ``(n, m)``.

    Parameters
    ----------
    left, right : Rows
        Of ``n`` and ``m`` samples, with the same layers.
    dtype : dtype, optional
        What is computed in; by default float64.

    Examples
    --------
    Two dense layers with one weight each, ``2 * 3`` and ``1 * 1``:

    >>> def term(a, delta):
    ...     return (Factors(np.full((1, 1, 1, 1), a), np.full((1, 1, 1, 1), delta)),)
    >>> rows = Rows({"one": term(2.0, 3.0), "two": term(1.0, 1.0)})
    >>> inner(rows, rows)
    array([[37.]])
    """
    xp = namespace(left.like)
    dtype = xp.float64 if dtype is None else dtype
    shape = (left.n_samples, right.n_samples)
    result = xp.zeros(shape, dtype=dtype, device=device_of(left.like))
    for name, terms in left.layers.items():
        for one in terms:
            for other in right.layers[name]:
                result = _add_products(result, one, other, dtype)
    return result


def inner_by_pairs(left: Rows, right: Rows) -> Array:
    """Return ``<x_i, y_i>``, shape ``(n,)``, in float64."""
    xp = namespace(left.like)
    result = xp.zeros((left.n_samples,), dtype=xp.float64, device=device_of(left.like))
    for name, terms in left.layers.items():
        for one in terms:
            for other in right.layers[name]:
                result = result + _pairs(one, other)
    return result


def squared_norms(rows: Rows) -> Array:
    """Return ``<x_i, x_i>``, shape ``(n,)``, in float64."""
    return inner_by_pairs(rows, rows)


def combined(rows: Rows, coefficients: Array) -> Rows:
    """Return ``sum_i coefficients_ki x_i``, written out, for coefficients of shape ``(k, n)``.

    Examples
    --------
    >>> rows = Rows({"fc": (Matrices(np.asarray([[[[1.0]]], [[[10.0]]]])),)})
    >>> combined(rows, np.asarray([[2.0, 3.0]])).matrices("fc").ravel()
    array([32.])
    """
    layers = {}
    for name, terms in rows.layers.items():
        result = None
        for term in terms:
            result = _add_combined(result, term, coefficients)
        layers[name] = (Matrices(result),)
    return Rows(layers)


# ------------------------------------------------------------------------------ all pairs


def _add_products(result: Array, left: Term, right: Term, dtype: object) -> Array:
    if isinstance(left, Tokens):
        return _add_token_products(result, left, right, dtype)
    if isinstance(right, Tokens):
        xp = namespace(result)
        turned = _add_token_products(xp.zeros_like(result.T), right, left, dtype)
        return result + turned.T
    if isinstance(left, Factors) and isinstance(right, Factors) and _factors_are_cheaper(left, right):
        return _add_factor_products(result, left, right, dtype)
    for there, columns in _written_out(right, dtype):
        for here, rows in _written_out(left, dtype):
            result = _add_to(result, here, there, rows @ columns.T)
    return result


def _factors_are_cheaper(left: Factors, right: Factors) -> bool:
    """Whether products of the factors cost less than writing gradients out and multiplying these."""
    _, d, n_outputs = left.shape
    n, m, p, q = left.n_samples, right.n_samples, left.n_positions, right.n_positions
    by_factors = n * m * p * q * (d + n_outputs + 4)
    by_matrices = (n * m + 4 * (n * p + m * q)) * d * n_outputs
    return by_factors < by_matrices


def _add_factor_products(result: Array, left: Factors, right: Factors, dtype: object) -> Array:
    xp = namespace(left.left)
    p, q = left.n_positions, right.n_positions
    n_groups = left.shape[0]
    rows_at_once = max(1, int((WRITTEN_BYTES // 16) ** 0.5) // p)
    columns_at_once = max(1, int((WRITTEN_BYTES // 16) ** 0.5) // q)
    for there in _slices(right.n_samples, columns_at_once):
        columns = [_flat_positions(astype(a[there, ...], dtype)) for a in right.arrays]
        for here in _slices(left.n_samples, rows_at_once):
            rows = [_flat_positions(astype(a[here, ...], dtype)) for a in left.arrays]
            block = 0.0
            for g in range(n_groups):
                product = rows[0][g, ...] @ columns[0][g, ...].T
                product *= rows[1][g, ...] @ columns[1][g, ...].T
                block = block + product
            if p * q > 1:
                shape = (here.stop - here.start, p, there.stop - there.start, q)
                block = xp.sum(xp.sum(xp.reshape(block, shape), axis=3), axis=1)
            result = _add_to(result, here, there, block)
    return result


def _flat_positions(array: Array) -> Array:
    """Return ``(n, G, P, d)`` as ``(G, n * P, d)``."""
    xp = namespace(array)
    n, n_groups, n_positions, d = array.shape
    return xp.reshape(xp.permute_dims(array, (1, 0, 2, 3)), (n_groups, n * n_positions, d))


def _written_out(term: Term, dtype: object) -> Iterator[tuple[slice, Array]]:
    """Yield runs of samples with their gradients as rows, ``(n, G * d * C)``."""
    n_groups, d, n_outputs = term.shape
    at_once = max(1, WRITTEN_BYTES // (8 * n_groups * d * n_outputs))
    for rows in _slices(term.n_samples, at_once):
        arrays = [array[rows, ...] for array in term.arrays]
        integral = namespace(arrays[0]).isdtype(arrays[0].dtype, "integral")
        arrays[integral:] = [astype(array, dtype) for array in arrays[integral:]]
        matrices = term.of(arrays).matrices()
        yield rows, namespace(matrices).reshape(matrices, (matrices.shape[0], -1))


def _slices(n_rows: int, at_once: int) -> Iterator[slice]:
    for start in range(0, n_rows, at_once):
        yield slice(start, min(start + at_once, n_rows))


def _add_to(result: Array, rows: slice, columns: slice, block: Array) -> Array:
    if (rows.start, columns.start) == (0, 0) and block.shape == result.shape:
        return result + block
    return assign(result, (rows, columns), result[rows, columns] + block)


# ------------------------------------------------------------------------------ tokens


def _runs(term: Tokens) -> Iterator[tuple[int, np.ndarray, Array]]:
    """Yield each token with the samples that hold it and the sums of its ``delta`` in each of them."""
    tokens = as_numpy(term.tokens)
    n, n_positions = tokens.shape
    counts = as_numpy(namespace(term.right).any(term.right != 0, axis=2)).reshape(-1)
    places = np.flatnonzero(counts)  # padding has no derivative
    if places.size == 0:
        return
    token, sample = tokens.reshape(-1)[places], places // n_positions
    order = np.lexsort((sample, token))
    token, sample, places = token[order], sample[order], places[order]
    xp = namespace(term.right)
    flat = xp.reshape(term.right, (n * n_positions, term.right.shape[2]))
    is_new = np.ones(len(token), dtype=bool)
    is_new[1:] = (token[1:] != token[:-1]) | (sample[1:] != sample[:-1])
    firsts = np.flatnonzero(is_new)
    values = _segment_sums(xp.take(flat, like(places, flat), axis=0), firsts)
    token, sample = token[firsts], sample[firsts]
    edges = np.flatnonzero(np.concatenate([[True], token[1:] != token[:-1], [True]]))
    for start, stop in itertools.pairwise(edges):
        yield int(token[start]), sample[start:stop], values[start:stop, :]


def _segment_sums(values: Array, firsts: np.ndarray) -> Array:
    """Return the sums of the runs of rows that begin at ``firsts``."""
    if isinstance(values, np.ndarray):
        return np.add.reduceat(values, firsts, axis=0)
    xp = namespace(values)
    lengths = np.diff(np.concatenate([firsts, [values.shape[0]]]))
    result = xp.take(values, like(firsts, values), axis=0)
    for place in range(1, int(lengths.max())):
        longer = np.flatnonzero(lengths > place)
        more = xp.take(values, like(firsts[longer] + place, values), axis=0)
        at = like(longer, values)
        result = assign(result, at, result[at, ...] + more)
    return result


def _add_token_products(result: Array, left: Tokens, right: Term, dtype: object) -> Array:
    if isinstance(right, Tokens):
        others = {token: (samples, values) for token, samples, values in _runs(right)}
        for token, samples, values in _runs(left):
            if token in others:
                columns, theirs = others[token]
                block = astype(values, dtype) @ astype(theirs, dtype).T
                at = (like(samples, result)[:, None], like(columns, result)[None, :])
                result = assign(result, at, result[at] + block)
        return result
    runs = list(_runs(left))
    for there, columns in _written_out(right, dtype):
        xp = namespace(columns)
        wide = xp.reshape(columns, (columns.shape[0], *right.shape[1:]))
        for token, samples, values in runs:
            block = astype(values, dtype) @ wide[:, token, :].T
            at = (like(samples, result), there)
            result = assign(result, at, result[at] + block)
    return result


# ------------------------------------------------------------------------------ one by one


def _pairs(left: Term, right: Term) -> Array:
    """Return the inner products of the gradients of each sample, shape ``(n,)``."""
    xp = namespace(left.arrays[-1])
    if isinstance(left, Tokens) and isinstance(right, Tokens):
        same = astype(left.tokens[:, :, None] == right.tokens[:, None, :], xp.float64)
        both = xp.matmul(_double(left.right), xp.matrix_transpose(_double(right.right)))
        return xp.sum(xp.sum(same * both, axis=2), axis=1)
    if isinstance(left, Factors) and isinstance(right, Factors):
        _, d, n_outputs = left.shape
        p, q = left.n_positions, right.n_positions
        if p * q * (d + n_outputs) <= (p + q) * d * n_outputs:
            inputs = xp.matmul(_double(left.left), xp.matrix_transpose(_double(right.left)))
            outputs = xp.matmul(_double(left.right), xp.matrix_transpose(_double(right.right)))
            return xp.sum(xp.reshape(inputs * outputs, (inputs.shape[0], -1)), axis=1)
    parts = []
    for rows, written in _written_out(left, xp.float64):
        ((_, other),) = _written_out(right.of([array[rows, ...] for array in right.arrays]), xp.float64)
        parts.append(xp.sum(written * other, axis=1))
    return xp.concat(parts, axis=0)


def _double(array: Array) -> Array:
    return astype(array, namespace(array).float64)


# ------------------------------------------------------------------------------ sums


def _add_combined(result: Array | None, term: Term, coefficients: Array) -> Array:
    dtype = coefficients.dtype
    xp = namespace(coefficients)
    n_groups, d, n_outputs = term.shape
    if result is None:
        shape = (coefficients.shape[0], n_groups, d, n_outputs)
        result = xp.zeros(shape, dtype=dtype, device=device_of(coefficients))
    if isinstance(term, Tokens):
        for token, samples, values in _runs(term):
            columns = xp.take(coefficients, like(samples, coefficients), axis=1)
            at = (slice(None), 0, token, slice(None))
            result = assign(result, at, result[at] + columns @ astype(values, dtype))
        return result
    if isinstance(term, Factors) and term.n_positions * term.n_samples > 1 and coefficients.shape[0] == 1:
        left, right = (astype(_flat_positions(array), dtype) for array in term.arrays)
        by_row = xp.reshape(coefficients, (-1, 1))
        by_row = xp.reshape(xp.broadcast_to(by_row, (term.n_samples, term.n_positions)), (-1,))
        return result + xp.matmul(xp.matrix_transpose(left * by_row[None, :, None]), right)[None, ...]
    for rows, written in _written_out(term, dtype):
        result = result + xp.reshape(coefficients[:, rows] @ written, result.shape)
    return result
