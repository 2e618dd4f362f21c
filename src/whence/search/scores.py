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
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from whence.arrays.base import (
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
from whence.arrays.sparse import SparseRows
from whence.engine.base import Serial, engine_of, parts_of
from whence.layers.linear_layer import flatten
from whence.search.rows import RowQueries, RowVector
from whence.search.top_k import ORDER, TopK, check_order

__all__ = [
    "BaseNearestNeighbors",
    "LinearNearestNeighbors",
    "Queries",
    "scores",
]

#: Bytes that the temporaries of one block of scores may take: more no longer makes products faster, and
#: what does not stay in the processor's caches makes everything else slower.
WORKSPACE_BYTES = 16 * 2**20


class Vector(NamedTuple):
    """What is stored of some training samples.

    Attributes
    ----------
    phi : array of shape (n, d) or (n, L, d)
    coefficients : array of shape (n, C) or (n, L, C)
    """

    phi: Array
    coefficients: Array

    def in_double(self) -> Vector:
        """Return the same in float64, in which their scores are then computed."""
        return Vector(*(astype(array, namespace(array).float64) for array in self))

    @property
    def n_samples(self) -> int:
        """How many samples they are."""
        return int(self.phi.shape[0])

    @property
    def dtype(self) -> np.dtype:
        """The precision that scores are returned in."""
        return as_numpy(self.phi[:0, ...]).dtype

    def part(self, rows: slice) -> Vector:
        """Return some of the samples."""
        return Vector(self.phi[rows, ...], self.coefficients[rows, ...])

    def arrays(self) -> Vector:
        """Return the arrays, as they are given to users."""
        return self


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

    #: How many queries to search for at a time, at most.
    at_once = 2**31

    def __len__(self) -> int:
        return int(self.matrices.shape[0])

    def __getitem__(self, rows: slice) -> Queries:
        outputs = None if self.outputs is None else self.outputs[rows]
        return Queries(self.matrices[rows, ...], self.offsets[rows], outputs)

    def some(self, rows: np.ndarray) -> Queries:
        """Return some of the queries, by their numbers."""

        def cut(array: Array) -> Array:
            return namespace(array).take(array, like(rows, array), axis=0)

        return Queries(
            cut(self.matrices), cut(self.offsets), None if self.outputs is None else cut(self.outputs)
        )

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


def scores(queries: Queries | RowQueries, vector: Vector | RowVector) -> Array:
    """Return ``v(i, t)``, shape ``(T, n)``, in the precision of the features.

    Beyond the result itself the memory is that of a workspace, whatever ``n`` is.

    Examples
    --------
    ``phi = 2``, ``a = 3``, ``S = 10``, offset 1: ``1 + 2 * 3 * 10``.

    >>> one = Queries(np.full((1, 1, 1), 10.0), np.ones(1))
    >>> scores(one, Vector(np.full((1, 1), 2.0), np.full((1, 1), 3.0)))
    array([[61.]])
    """
    if isinstance(queries, RowQueries):
        assert isinstance(vector, RowVector)  # of the same index
        return queries.scores(vector)
    assert isinstance(vector, Vector)
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


#: How far scores may be from what float64 gives, relative to the largest of a query, for their precision
#: to be enough.
TOLERANCE = 1e-5
#: Training samples of a shard that this is tried on: as many again with the largest coefficients.
TRIED_ROWS = 16


def needs_double(
    queries: Queries | RowQueries,
    vector: Vector | RowVector,
    dot_product: Callable[[Any, Any], Array] = scores,
) -> bool:
    """Whether the scores of some training samples lose digits in the precision of their features.

    Some of the samples are scored in float64 too. Where features are not scaled, depend on each other, or
    a query is far off their span, what adds up to a score is much larger than the score.

    Examples
    --------
    The part of ``S`` across the features is large and adds nothing, but in float32:

    >>> phi = np.asarray([[1, 0.1], [2, 0.2]], np.float32)
    >>> across = Queries(np.asarray([[[-1e6], [1e7]]]) + 1, np.zeros(1))
    >>> needs_double(across, Vector(phi, np.ones((2, 1), np.float32)))
    True
    """
    if isinstance(queries, RowQueries):  # whose scores are in float64
        return False
    assert isinstance(vector, Vector)
    phi, coefficients = vector
    n = phi.shape[0]
    if itemsize(phi) >= 8 or n == 0 or len(queries) == 0:
        return False
    sizes = np.abs(as_numpy(coefficients)).reshape(n, -1).max(axis=1)
    largest = np.argpartition(-sizes, min(TRIED_ROWS, n - 1))[:TRIED_ROWS]
    rows = np.unique(np.concatenate([np.arange(0, n, max(1, n // TRIED_ROWS)), largest]))
    some = Vector(*(namespace(array).take(array, like(rows, array), axis=0) for array in vector))
    with np.errstate(over="ignore", invalid="ignore"):
        found = as_numpy(dot_product(queries, some)).astype(np.float64)
        right = _in_double(queries, some)
        enough = np.abs(found - right).max(axis=1) <= TOLERANCE * np.abs(right).max(axis=1)
    return not bool(enough.all())  # nor is NaN


def careful_scores(queries: Queries | RowQueries, vector: Vector | RowVector) -> Array:
    """Return :func:`scores` in the precision that they need; see :func:`needs_double`."""
    return scores(queries, vector.in_double() if needs_double(queries, vector) else vector)


def _in_double(queries: Queries, vector: Vector) -> np.ndarray:
    """Return the scores of a few training samples in float64, without another layout of the matrices."""
    phi, coefficients = (np.asarray(as_numpy(array), dtype=np.float64) for array in vector)
    matrices, offsets = (np.asarray(as_numpy(a), np.float64) for a in (queries.matrices, queries.offsets))
    if queries.outputs is not None:
        wide = Queries(matrices, offsets, as_numpy(queries.outputs))
        return as_numpy(scores(wide, Vector(phi, coefficients)))
    rows = phi.reshape(-1, phi.shape[-1])
    weights = coefficients.reshape(len(rows), -1)
    result = np.empty((len(queries), len(phi)))
    for some in row_slices(len(matrices), max(1, WORKSPACE_BYTES // (8 * weights.size))):
        images = np.matmul(rows, matrices[some])
        images *= weights
        result[some] = images.reshape(len(images), len(phi), -1).sum(axis=2)
    return result + offsets[:, None]


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


def block_rows(
    queries: Queries | RowQueries, vector: Vector | RowVector, workspace_bytes: int = WORKSPACE_BYTES
) -> int:
    """Return how many training samples a block may have, for its temporaries to fit."""
    if isinstance(queries, RowQueries):
        assert isinstance(vector, RowVector)
        return queries.block_rows(vector, workspace_bytes)
    assert isinstance(vector, Vector)
    phi = vector.phi
    d, n_outputs = phi.shape[-1], vector.coefficients.shape[-1]
    positions = math.prod(phi.shape[1:-1])
    width = n_outputs * (d if phi.ndim == 3 else len(queries)) + 2 * len(queries)
    width += positions * (d + n_outputs)  # the block itself, where it is widened from half precision
    row_bytes = width * max(4, itemsize(phi))
    return min(rows_at_once(row_bytes), max(1, workspace_bytes // row_bytes))


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

    def query_orders(
        self, queries: Queries, orders: tuple[ORDER, ...], *, in_double: bool = False
    ) -> tuple[TopK, ...]:
        """Find several ends of the scores in one pass.

        Parameters
        ----------
        queries : Queries
        orders : tuple of ORDER
        in_double : bool, default=False
            Whether scores are computed in float64. By default they are in the precision of the features,
            or in float64 for those samples where that loses digits; see :func:`needs_double`.

        Returns
        -------
        tuple of TopK
            What was found at each end.
        """
        return self.query_sums(queries, orders, in_double=in_double)[0]

    def query_sums(
        self, queries: Queries, orders: tuple[ORDER, ...], *, in_double: bool = False
    ) -> tuple[tuple[TopK, ...], np.ndarray]:
        """Find several ends of the scores, and their sums ``(T,)``; see :meth:`query_orders`."""
        k, dot_product, workspace = self._k, self._scores, self.workspace_bytes
        n_queries = len(queries)

        def search(part: Iterable[tuple[int, Vector]]) -> tuple[tuple[TopK, ...], np.ndarray]:
            found = tuple(TopK(n_queries, k, order) for order in orders)
            sums = np.zeros(n_queries)
            with _one_workspace():
                for start, vector in part:
                    widen = in_double or needs_double(queries, vector, dot_product)
                    for rows in row_slices(vector.n_samples, block_rows(queries, vector, workspace)):
                        some = vector.part(rows)
                        block = as_numpy(dot_product(queries, some.in_double() if widen else some))
                        sums += block.sum(axis=1)
                        for best in found:
                            best.add(block, start + rows.start)
            return found, sums

        engine = engine_of(self._dataset)
        if isinstance(engine, Serial):  # one pass, in which what was found narrows what is looked at
            return search(self._dataset)
        every = tuple(TopK(n_queries, k, order) for order in orders)
        total = np.zeros(n_queries)
        for of_part, sums in engine.map(search, parts_of(self._dataset)):
            total += sums
            for best, others in zip(every, of_part, strict=True):
                best.merge(others)
        return every, total
