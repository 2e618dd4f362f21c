"""Scores of all training samples for some queries, and the strongest of them, block by block.

Every method of this library scores a training sample ``i`` for a query ``t`` as

    ``v(i, t) = offset_t + <outer(phi_i, a_i), S_t>``,

with the stored features ``phi_i (d,)`` and coefficients ``a_i (C,)`` of the sample, and a matrix
``S_t (d, C)`` of the query. Of a sample with ``L`` positions ``phi_i (L, d)`` and ``a_i (L, C)`` are
stored, and the outer products are summed over positions. A query about one output alone has
``S_t = outer(s_t, e_j)``; then ``s_t`` and ``j`` are all that is kept.
"""

from __future__ import annotations

import contextlib
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from whence._arrays import (
    Array,
    Workspace,
    as_numpy,
    astype,
    check_number,
    itemsize,
    like,
    namespace,
    row_slices,
    rows_at_once,
)
from whence._errors import WhenceError
from whence._sparse import SparseRows
from whence.engine import Serial, engine_of, parts_of
from whence.linear_layer import flatten

__all__ = [
    "ORDER",
    "BaseNearestNeighbors",
    "LinearNearestNeighbors",
    "Queries",
    "TopK",
    "check_order",
    "scores",
]

#: Bytes that the temporaries of one block of scores may take: more no longer makes products faster, and
#: what does not stay in the processor's caches makes everything else slower.
WORKSPACE_BYTES = 16 * 2**20


class ORDER(Enum):
    """Which end of the scores is wanted: the smallest (ascending) or the largest (descending)."""

    ASCENDING = 1
    DESCENDING = 2


def check_order(order: Any) -> ORDER:
    """Return ``order``, or raise if it is not an :class:`ORDER`."""
    if isinstance(order, ORDER):
        return order
    raise WhenceError(
        "order", "ORDER.ASCENDING or ORDER.DESCENDING", repr(order), "Import ORDER from whence."
    )


class Vector(NamedTuple):
    """What is stored of some training samples.

    Attributes
    ----------
    phi : array of shape (n, d) or (n, L, d)
    coefficients : array of shape (n, C) or (n, L, C)
    """

    phi: Array
    coefficients: Array


@dataclass(frozen=True)
class Queries:
    """What some samples to explain ask of the training samples.

    Attributes
    ----------
    matrices : array of shape (T, d, C) or (T, d)
        ``S_t``, or ``s_t`` where the query is about one output alone.
    offsets : array of shape (T,)
    outputs : array of shape (T,) or None
        The one output of each query; given if and only if ``matrices`` has two axes.
    """

    matrices: Array
    offsets: Array
    outputs: Array | None = None

    def __len__(self) -> int:
        return int(self.matrices.shape[0])

    def __getitem__(self, rows: slice) -> Queries:
        outputs = None if self.outputs is None else self.outputs[rows]
        return Queries(self.matrices[rows, ...], self.offsets[rows], outputs)

    def on(self, phi: Array) -> Queries:
        """Return the queries in the library, on the device and in the precision of some features.

        The same object each time it is asked for.
        """
        dtype = phi.dtype
        if type(self.matrices) is not type(phi) and not isinstance(phi, SparseRows):
            if type(phi) not in self._casts:
                parts = (self.matrices, self.offsets, self.outputs)
                moved = [None if part is None else like(part, phi) for part in parts]
                self._casts[type(phi)] = Queries(*moved)
            return self._casts[type(phi)].on(phi)
        if self.matrices.dtype == dtype and self.offsets.dtype == dtype:
            return self
        if dtype not in self._casts:
            cast = Queries(astype(self.matrices, dtype), astype(self.offsets, dtype), self.outputs)
            self._casts[dtype] = cast
        return self._casts[dtype]

    @cached_property
    def _casts(self) -> dict[Any, Queries]:
        return {}

    @cached_property
    def side_by_side(self) -> Array:
        """The matrices beside each other, output by output, shape ``(d, C * T)``."""
        n_queries, d, n_outputs = self.matrices.shape
        xp = namespace(self.matrices)
        return xp.reshape(xp.permute_dims(self.matrices, (1, 2, 0)), (d, n_outputs * n_queries))

    @cached_property
    def flat(self) -> Array:
        """The matrices as rows, shape ``(T, C * d)``."""
        return flatten(self.matrices)


def scores(queries: Queries, vector: Vector) -> Array:
    """Return ``v(i, t)``, shape ``(T, n)``, in the precision of the features.

    Beyond the result itself the memory is that of a workspace, whatever ``n`` is.

    Examples
    --------
    ``phi = 2``, ``a = 3``, ``S = 10``, offset 1: ``1 + 2 * 3 * 10``.

    >>> one = Queries(np.full((1, 1, 1), 10.0), np.ones(1))
    >>> scores(one, Vector(np.full((1, 1), 2.0), np.full((1, 1), 3.0)))
    array([[61.]])
    """
    phi, coefficients = vector
    n_rows = block_rows(queries, vector)
    if phi.shape[0] > n_rows:
        blocks = (Vector(phi[r, ...], coefficients[r, ...]) for r in row_slices(phi.shape[0], n_rows))
        parts = [scores(queries, block) for block in blocks]
        return namespace(parts[0]).concat(parts, axis=1)
    xp = namespace(phi)
    queries = queries.on(phi)
    coefficients = astype(coefficients, phi.dtype)
    if phi.ndim == 3:
        result = _scores_of_gradients(queries, xp.matmul(xp.matrix_transpose(phi), coefficients))
    elif queries.outputs is not None:
        similarity = _product(phi, queries.matrices.T)
        similarity *= xp.take(coefficients, queries.outputs, axis=1)
        result = similarity.T
    else:
        # sum_c a_ic (phi_i S_t)_c: one product for all queries and outputs, contracted where it lies.
        shape = (phi.shape[0], coefficients.shape[1], len(queries))
        images = xp.reshape(_product(phi, queries.side_by_side), shape)
        result = xp.matmul(coefficients[:, None, :], images)[:, 0, :].T
    result += queries.offsets[:, None]
    return result


_in_thread = threading.local()


@contextlib.contextmanager
def _one_workspace() -> Iterator[None]:
    """Let the scores of one block take the memory of those before, in this thread."""
    _in_thread.workspace = Workspace()
    try:
        yield
    finally:
        del _in_thread.workspace


def _product(phi: Array, matrix: Array) -> Array:
    workspace = getattr(_in_thread, "workspace", None)
    return phi @ matrix if workspace is None else workspace.matmul(phi, matrix)


def _scores_of_gradients(queries: Queries, gradients: Array) -> Array:
    """Return ``<gradients_i, S_t>``, shape ``(T, n)``, for gradients ``(n, d, C)``."""
    if queries.outputs is None:
        return queries.flat @ flatten(gradients).T
    xp = namespace(gradients)
    images = xp.matmul(xp.matrix_transpose(gradients), queries.matrices.T)  # (n, C, T)
    outputs = xp.broadcast_to(queries.outputs[None, None, :], (images.shape[0], 1, images.shape[2]))
    return xp.take_along_axis(images, outputs, axis=1)[:, 0, :].T


def block_rows(queries: Queries, vector: Vector, workspace_bytes: int = WORKSPACE_BYTES) -> int:
    """Return how many training samples a block may have, for its temporaries to fit."""
    phi = vector.phi
    d, n_outputs = phi.shape[-1], vector.coefficients.shape[-1]
    positions = math.prod(phi.shape[1:-1])
    width = n_outputs * (d if phi.ndim == 3 else len(queries)) + 2 * len(queries)
    width += positions * (d + n_outputs)  # the block itself, where it is widened from half precision
    row_bytes = width * max(4, itemsize(phi))
    return min(rows_at_once(row_bytes), max(1, workspace_bytes // row_bytes))


class TopK:
    """The ``k`` largest (or smallest) scores of each query so far, over blocks that come one by one.

    Equal scores are ordered by row, the first first, so that the result does not depend on how the
    training set was cut into blocks.

    Parameters
    ----------
    n_queries, k : int
    order : ORDER

    Examples
    --------
    >>> best = TopK(1, 2, ORDER.DESCENDING)
    >>> best.add(np.asarray([[1.0, 5.0]]), 0)
    >>> best.add(np.asarray([[5.0, 3.0]]), 2)
    >>> best.values, best.rows
    (array([[5., 5.]]), array([[1, 2]]))
    """

    def __init__(self, n_queries: int, k: int, order: ORDER) -> None:
        self.k = k
        self.sign: float = -1.0 if order is ORDER.DESCENDING else 1.0
        self._keys = np.empty((n_queries, 0))  # what is kept, negated if the largest are wanted
        self.rows: np.ndarray = np.empty((n_queries, 0), dtype=np.int64)
        self._next_row = 0

    def add(self, block_scores: Array, first_row: int) -> None:
        """Take in the scores ``(T, n)`` of the rows from ``first_row`` on.

        Raises
        ------
        WhenceError
            If a score is NaN, which has no place in an order.
        """
        values = as_numpy(block_scores)
        if not values.size:
            return
        strongest = values.min(axis=1) if self.sign > 0 else values.max(axis=1)
        if np.isnan(strongest).any():  # minimum and maximum hand on NaN
            raise WhenceError(
                "scores",
                "numbers",
                f"NaN for query {int(np.flatnonzero(np.isnan(strongest))[0])}, "
                f"in rows {first_row} to {first_row + values.shape[1] - 1}",
                "Look at the features and coefficients of these training samples.",
            )
        in_order = first_row >= self._next_row
        self._next_row = max(self._next_row, first_row + values.shape[1])
        queries = np.arange(len(values))
        if self._keys.shape[1] < self.k:
            self._merge_block(queries, values, first_row)
            return
        # Most blocks hold little that is better than the last that is kept: look for that first. Among
        # equals the first row comes first, and later blocks hold later rows, unless a caller goes back.
        worst = self._keys[:, -1] * self.sign
        better: Any
        if self.sign > 0:
            better = np.less if in_order else np.less_equal
        else:
            better = np.greater if in_order else np.greater_equal
        queries = queries[better(strongest, worst)]
        if not queries.size:
            return
        active = values[queries]
        owners, columns = np.nonzero(better(active, worst[queries, None]))
        if columns.size > queries.size * 16 * self.k:
            self._merge_block(queries, active, first_row)
        else:
            self._merge_few(queries, owners, active[owners, columns] * self.sign, columns + first_row)

    def merge(self, other: TopK) -> None:
        """Take in what was found among other rows.

        Examples
        --------
        >>> first, second = TopK(1, 2, ORDER.DESCENDING), TopK(1, 2, ORDER.DESCENDING)
        >>> first.add(np.asarray([[1.0, 5.0]]), 0)
        >>> second.add(np.asarray([[5.0, 3.0]]), 2)
        >>> first.merge(second)
        >>> first.values, first.rows
        (array([[5., 5.]]), array([[1, 2]]))
        """
        self._next_row = max(self._next_row, other._next_row)
        keys = np.concatenate([self._keys.astype(other._keys.dtype, copy=False), other._keys], axis=1)
        rows = np.concatenate([self.rows, other.rows], axis=1)
        best = np.lexsort((rows, keys), axis=1)[:, : self.k]
        self._keys, self.rows = np.take_along_axis(keys, best, 1), np.take_along_axis(rows, best, 1)

    def _merge_block(self, queries: np.ndarray, values: np.ndarray, first_row: int) -> None:
        """Take in all scores of some queries; of all queries while fewer than ``k`` are kept."""
        rows = np.broadcast_to(np.arange(first_row, first_row + values.shape[1]), values.shape)
        keys, rows = _smallest(values * self.sign, rows, self.k)
        keys = np.concatenate([self._keys[queries].astype(keys.dtype, copy=False), keys], axis=1)
        rows = np.concatenate([self.rows[queries], rows], axis=1)
        order = np.lexsort((rows, keys), axis=1)[:, : self.k]
        self._keep(
            queries, np.take_along_axis(keys, order, axis=1), np.take_along_axis(rows, order, axis=1)
        )

    def _merge_few(
        self, queries: np.ndarray, owners: np.ndarray, keys: np.ndarray, rows: np.ndarray
    ) -> None:
        """Take in single scores, ``owners`` the place in ``queries`` of each."""
        owners = np.concatenate([np.repeat(np.arange(queries.size), self.k), owners])
        keys = np.concatenate([self._keys[queries].ravel(), keys])
        rows = np.concatenate([self.rows[queries].ravel(), rows])
        order = np.lexsort((rows, keys, owners))
        starts = np.searchsorted(owners[order], np.arange(queries.size))
        best = order[starts[:, None] + np.arange(self.k)]
        self._keep(queries, keys[best], rows[best])

    def _keep(self, queries: np.ndarray, keys: np.ndarray, rows: np.ndarray) -> None:
        if len(queries) == len(self._keys):
            self._keys, self.rows = keys, rows
        else:
            self._keys[queries], self.rows[queries] = keys, rows

    @property
    def values(self) -> np.ndarray:
        """The scores, best first, shape ``(T, min(k, N))``."""
        return self._keys * self.sign


def _smallest(keys: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``k`` columns with the smallest keys; among equal keys at the cut, the first rows."""
    if keys.shape[1] <= k:
        return keys, rows
    chosen = np.argpartition(keys, k - 1, axis=1)[:, :k]
    cut = np.take_along_axis(keys, chosen, axis=1).max(axis=1, keepdims=True)
    tied = (keys <= cut).sum(axis=1) > k
    for query in np.flatnonzero(tied):  # rare: decide ties at the cut by row
        candidates = np.flatnonzero(keys[query] <= cut[query])
        best = np.lexsort((rows[query, candidates], keys[query, candidates]))[:k]
        chosen[query] = candidates[best]
    return np.take_along_axis(keys, chosen, axis=1), np.take_along_axis(rows, chosen, axis=1)


class BaseNearestNeighbors(ABC):
    """A search for the training samples with the strongest scores; subclass it to bring your own."""

    @abstractmethod
    def build(
        self,
        dataset: Iterable[tuple[int, Vector]],
        dot_product_fun: Callable[[Queries, Vector], Array],
        k: int,
        query_batch_size: int,
        d_type: Any = np.float32,
        order: ORDER = ORDER.DESCENDING,
    ) -> None:
        """Take in what is to be searched.

        Parameters
        ----------
        dataset : iterable of (int, Vector)
            The training set in blocks, each with the row of its first sample. Can be iterated again.
        dot_product_fun : callable
            ``dot_product_fun(queries, vector)`` gives the scores ``(T, n)``.
        k : int
            How many samples to find for each query.
        query_batch_size : int
            How many queries come at once, at most.
        d_type : dtype
            What the values are returned as.
        order : ORDER
            Which end of the scores is wanted.
        """

    @abstractmethod
    def query(self, vector_to_find: Queries, batch_size: int | None = None) -> tuple[Any, Any]:
        """Find the strongest training samples of each query.

        Parameters
        ----------
        vector_to_find : Queries
            What ``T`` samples ask.
        batch_size : int, optional
            How many of them to search for at once; all by default.

        Returns
        -------
        values, rows : array of shape (T, k)
            The scores, strongest first, and the rows of the training set that they belong to.
        """


class LinearNearestNeighbors(BaseNearestNeighbors):
    """Exact search: one pass over the training set, in blocks of bounded memory.

    Parameters
    ----------
    workspace_bytes : int, default=16 MiB
        What the temporaries of a block may take, whatever ``N`` is. Results do not depend on it.

    Examples
    --------
    >>> search = LinearNearestNeighbors()
    >>> vector = Vector(np.asarray([[1.0], [3.0], [2.0]]), np.ones((3, 1)))
    >>> search.build([(0, vector)], scores, k=2, query_batch_size=1)
    >>> values, rows = search.query(Queries(np.ones((1, 1, 1)), np.zeros(1)))
    >>> values.tolist(), rows.tolist()
    ([[3.0, 2.0]], [[1, 2]])
    """

    def __init__(self, workspace_bytes: int = WORKSPACE_BYTES) -> None:
        check_number(workspace_bytes, "workspace_bytes", minimum=1, integer=True)
        self.workspace_bytes: int = int(workspace_bytes)

    def build(
        self,
        dataset: Iterable[tuple[int, Vector]],
        dot_product_fun: Callable[[Queries, Vector], Array],
        k: int,
        query_batch_size: int,
        d_type: Any = np.float32,
        order: ORDER = ORDER.DESCENDING,
    ) -> None:
        """Remember what is to be searched; see the base class."""
        check_number(k, "k", minimum=1, integer=True)
        self._dataset = dataset
        self._scores = dot_product_fun
        self._k = k
        self._dtype = np.dtype(d_type)
        self._order = check_order(order)

    def query(self, vector_to_find: Queries, batch_size: int | None = None) -> tuple[Any, Any]:
        """Return ``(values, rows)``; see the base class."""
        (best,) = self.query_orders(vector_to_find, (self._order,))
        with np.errstate(over="ignore"):  # whoever asks for a narrow dtype looks for what does not fit
            return best.values.astype(self._dtype), best.rows

    def query_orders(self, queries: Queries, orders: tuple[ORDER, ...]) -> tuple[TopK, ...]:
        """Find several ends of the scores in one pass.

        Parameters
        ----------
        queries : Queries
        orders : tuple of ORDER

        Returns
        -------
        tuple of TopK
            What was found at each end.
        """
        k, dot_product, workspace = self._k, self._scores, self.workspace_bytes

        def search(part: Iterable[tuple[int, Vector]]) -> tuple[TopK, ...]:
            found = tuple(TopK(len(queries), k, order) for order in orders)
            with _one_workspace():
                for start, vector in part:
                    for rows in row_slices(vector.phi.shape[0], block_rows(queries, vector, workspace)):
                        some = Vector(vector.phi[rows, ...], vector.coefficients[rows, ...])
                        block = dot_product(queries, some)
                        for best in found:
                            best.add(block, start + rows.start)
            return found

        engine = engine_of(self._dataset)
        if isinstance(engine, Serial):  # one pass, in which what was found narrows what is looked at
            return search(self._dataset)
        found = tuple(TopK(len(queries), k, order) for order in orders)
        for of_part in engine.map(search, parts_of(self._dataset)):
            for best, others in zip(found, of_part, strict=True):
                best.merge(others)
        return found
