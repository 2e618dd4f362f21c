"""Search: the running best of blocks against a full sort, and scores against sums written out."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FLOAT64, assert_close

from whence import ORDER, LinearNearestNeighbors, WhenceError
from whence.engine.base import Threads
from whence.search.scores import Queries, Vector, block_rows, scores
from whence.search.top_k import TopK, check_order

BOTH = (ORDER.DESCENDING, ORDER.ASCENDING)


def sorted_out(values, k, order):
    """The best ``k`` of each row by a full sort, equal ones by row, as one would write it down."""
    found = []
    for row in np.asarray(values).tolist():
        sign = -1 if order is ORDER.DESCENDING else 1
        found.append(sorted(range(len(row)), key=lambda i, row=row, sign=sign: (sign * row[i], i))[:k])
    rows = np.asarray(found, dtype=np.int64).reshape(len(values), -1)
    return np.take_along_axis(np.asarray(values), rows, axis=1), rows


@st.composite
def blocks_of_scores(draw):
    """Scores with many ties, a ``k`` that may exceed their number, and where they are cut."""
    n_queries = draw(st.integers(1, 4))
    n = draw(st.integers(1, 60))
    numbers = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0, np.inf, -np.inf])
    row = st.lists(numbers, min_size=n, max_size=n)
    values = draw(st.lists(row, min_size=n_queries, max_size=n_queries))
    cuts = draw(st.lists(st.integers(0, n), max_size=8))
    return np.asarray(values), draw(st.integers(1, 70)), sorted({0, n, *cuts})


@pytest.mark.parametrize("order", BOTH)
@settings(deadline=None)
@given(case=blocks_of_scores())
def test_the_running_best_is_that_of_a_full_sort(order, case):
    values, k, edges = case
    best = TopK(len(values), k, order)
    for start, stop in itertools.pairwise(edges):
        best.add(values[:, start:stop], start)
    expected, rows = sorted_out(values, k, order)
    assert np.array_equal(best.values, expected)
    assert np.array_equal(best.rows, rows)


@pytest.mark.parametrize("order", BOTH)
@settings(deadline=None)
@given(case=blocks_of_scores(), seed=st.integers(0, 100))
def test_blocks_may_come_in_any_order(order, case, seed):
    values, k, edges = case
    pieces = list(itertools.pairwise(edges))
    best = TopK(len(values), k, order)
    for place in np.random.default_rng(seed).permutation(len(pieces)):
        start, stop = pieces[place]
        best.add(values[:, start:stop], start)
    expected, rows = sorted_out(values, k, order)
    assert np.array_equal(best.values, expected)
    assert np.array_equal(best.rows, rows)


@pytest.mark.parametrize("order", BOTH)
@settings(deadline=None)
@given(case=blocks_of_scores(), data=st.data())
def test_what_was_found_apart_is_merged(order, case, data):
    """Of parts that come in order, as an engine gives them, some of which found less than ``k``."""
    values, k, edges = case
    split = data.draw(st.integers(1, len(edges) - 1))
    halves = []
    for pieces in (edges[: split + 1], edges[split:]):
        best = TopK(len(values), k, order)
        for start, stop in itertools.pairwise(pieces):
            best.add(values[:, start:stop], start)
        halves.append(best)
    merged = TopK(len(values), k, order)
    for best in halves:
        merged.merge(best)
    expected, rows = sorted_out(values, k, order)
    assert np.array_equal(merged.values, expected)
    assert np.array_equal(merged.rows, rows)


@pytest.mark.parametrize("kind", ["sorted", "reversed", "random", "equal", "many equal"])
@pytest.mark.parametrize("order", BOTH)
def test_long_blocks(kind, order, rng):
    """Long enough for candidates to be many in one block and few in another."""
    n = 5000
    values = {
        "sorted": np.arange(n),
        "reversed": -np.arange(n),
        "random": rng.normal(size=n),
        "equal": np.zeros(n),
        "many equal": rng.integers(0, 3, n),
    }[kind] * np.asarray([[1.0], [2.0], [-1.0]])
    best = TopK(3, 4, order)
    for start in range(0, n, 700):
        best.add(values[:, start : start + 700].astype(np.float32), start)
    expected, rows = sorted_out(values.astype(np.float32), 4, order)
    assert np.array_equal(best.values, expected)
    assert np.array_equal(best.rows, rows)


@pytest.mark.parametrize("order", BOTH)
@pytest.mark.parametrize("place", [3, 17])
def test_nan_is_refused(order, place):
    values = np.arange(40.0).reshape(2, 20)
    values[1, place] = np.nan
    best = TopK(2, 3, order)
    first, second = values[:, :10], values[:, 10:]
    if place >= 10:
        best.add(first, 0)
        first = second
    with pytest.raises(WhenceError, match=r"got NaN for query 1, in rows 10 to 19\."):
        best.add(first, 10)


# ---- scores -------------------------------------------------------------------------------------


def problem(rng, n=50, d=4, n_outputs=3, n_queries=6):
    phi, a = rng.normal(size=(n, d)), rng.normal(size=(n, n_outputs))
    return phi, a, rng.normal(size=(n_queries, d, n_outputs)), rng.normal(size=n_queries)


def test_scores_are_inner_products_with_gradients(rng, xp):
    phi, a, matrices, offsets = problem(rng)
    gradients = np.einsum("nd,nc->ndc", phi, a)
    expected = np.einsum("ndc,tdc->tn", gradients, matrices) + offsets[:, None]
    queries = Queries(xp.asarray(matrices), xp.asarray(offsets))
    found = scores(queries, Vector(xp.asarray(phi), xp.asarray(a)))
    assert_close(np.asarray(found), expected, FLOAT64)


def test_scores_of_one_output(rng, xp):
    phi, a, matrices, offsets = problem(rng)
    outputs = np.asarray([0, 2, 1, 1, 0, 2])
    expected = (matrices[:, :, 0] @ phi.T) * a[:, outputs].T + offsets[:, None]
    queries = Queries(xp.asarray(matrices[:, :, 0]), xp.asarray(offsets), xp.asarray(outputs))
    assert len(queries[1:3]) == 2
    found = scores(queries, Vector(xp.asarray(phi), xp.asarray(a)))
    assert_close(np.asarray(found), expected, FLOAT64)


def test_queries_of_numpy_take_features_of_any_library(rng, xp):
    phi, a, matrices, offsets = problem(rng)
    outputs = np.asarray([0, 2, 1, 1, 0, 2])
    for queries in (Queries(matrices, offsets), Queries(matrices[:, :, 0], offsets, outputs)):
        expected = scores(queries, Vector(phi, a))
        found = scores(queries, Vector(xp.asarray(phi), xp.asarray(a)))
        assert type(found) is type(xp.asarray(phi))
        assert_close(np.asarray(found), expected, FLOAT64)


def test_scores_are_in_the_precision_of_the_features_and_leave_the_input_alone(rng):
    phi, a, matrices, offsets = problem(rng)
    queries, vector = Queries(matrices, offsets), Vector(phi.astype(np.float32), a)
    copies = matrices.copy(), offsets.copy(), phi.copy(), a.copy()
    first = scores(queries, vector)
    assert first.dtype == np.float32
    assert np.array_equal(scores(queries, vector), first)
    assert_close(first, scores(queries, Vector(phi, a)), 1e-5)
    for array, copy in zip((matrices, offsets, phi, a), copies, strict=True):
        assert np.array_equal(array, copy)


@settings(max_examples=25, deadline=None)
@given(workspace=st.integers(1, 20_000), shard=st.integers(1, 60), k=st.integers(1, 70))
def test_the_result_does_not_depend_on_the_blocks(workspace, shard, k):
    rng = np.random.default_rng(3)
    phi, a, matrices, offsets = (np.round(array, 1) for array in problem(rng))
    phi[10:20] = phi[30:40]  # equal scores
    a[10:20] = a[30:40]
    queries = Queries(matrices, offsets)
    values = scores(queries, Vector(phi, a))
    vectors = [(i, Vector(phi[i : i + shard], a[i : i + shard])) for i in range(0, 50, shard)]
    search = LinearNearestNeighbors(workspace_bytes=workspace)
    search.build(vectors, scores, k, 6, d_type=np.float64)
    found = search.query_orders(queries, BOTH)
    for best, order in zip(found, BOTH, strict=True):
        expected, _ = sorted_out(values, k, order)
        assert_close(best.values, expected, FLOAT64)
        assert (np.sort(best.rows, axis=1)[:, 1:] > np.sort(best.rows, axis=1)[:, :-1]).all()
        assert_close(np.take_along_axis(values, best.rows, axis=1), expected, FLOAT64)


def test_query_gives_one_end_in_the_dtype_asked_for(rng):
    phi, a, matrices, offsets = problem(rng)
    queries = Queries(matrices, offsets)
    for order in BOTH:
        search = LinearNearestNeighbors()
        search.build([(0, Vector(phi, a))], scores, 5, 6, d_type=np.float16, order=order)
        values, rows = search.query(queries)
        assert values.dtype == np.float16
        expected, expected_rows = sorted_out(scores(queries, Vector(phi, a)), 5, order)
        assert np.array_equal(rows, expected_rows)
        assert_close(values, expected, 1e-3)


def test_blocks_fit_into_the_workspace(rng):
    phi, a, matrices, offsets = problem(rng, n_queries=300)
    queries, vector = Queries(matrices, offsets), Vector(phi, a)
    for workspace in (1, 10**5, 10**8):
        rows = block_rows(queries, vector, workspace)
        assert rows == 1 or rows * len(queries) * a.shape[1] * phi.itemsize <= workspace


@pytest.mark.parametrize("workspace", [0, -1, 1.5, None])
def test_a_workspace_is_a_number_of_bytes(workspace):
    with pytest.raises(WhenceError, match="workspace_bytes"):
        LinearNearestNeighbors(workspace_bytes=workspace)


def test_an_order_is_one_of_two():
    assert check_order(ORDER.ASCENDING) is ORDER.ASCENDING
    with pytest.raises(WhenceError, match=r"ORDER\.ASCENDING"):
        check_order("ascending")


class InParts:
    """A training set in as many parts as it has samples, some of them worked on at a time."""

    engine = Threads(2)

    def __init__(self, vector):
        self._vector = vector

    def parts(self):
        for row in range(len(self._vector.phi)):
            yield [(row, Vector(*(array[row : row + 1] for array in self._vector)))]


def test_threads_find_what_one_pass_finds_and_sum_it():
    rng = np.random.default_rng(0)
    vector = Vector(rng.normal(size=(300, 2)), rng.normal(size=(300, 1)))
    queries = Queries(rng.normal(size=(4, 2, 1)), np.zeros(4))
    search = LinearNearestNeighbors()
    search.build(InParts(vector), scores, 3, 4)
    (best, worst), sums = search.query_sums(queries, (ORDER.DESCENDING, ORDER.ASCENDING))
    every = scores(queries, vector)
    order = np.argsort(every, axis=1)
    assert np.array_equal(worst.rows, order[:, :3])
    assert np.array_equal(best.rows, order[:, ::-1][:, :3])
    assert_close(sums, every.sum(axis=1), FLOAT64)
