"""The order of sums, parts of a training set, and the engines that need no other machine."""

import threading

import numpy as np
import pytest

import whence
from whence.engine import base as engine
from whence.engine.base import Converted, Fold, Part, Serial, Threads, cut, parts_of, total
from whence.engine.blocks import Block
from whence.engine.chosen import as_engine
from whence.index import Index

N, D, C = 500, 6, 3


def blocks(n=N, size=10):
    rng = np.random.default_rng(0)
    phi = rng.standard_normal((n, D))
    target = rng.integers(0, C, n)
    return [Block(phi[i : i + size], target[i : i + size]) for i in range(0, n, size)]


class Bare:
    """Blocks that know nothing of engines."""

    n_samples = N

    def __iter__(self):
        return iter(blocks())


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of a few rows, so that a small training set has many."""
    monkeypatch.setattr(engine, "PART_ROWS", 20)


def tree(values):
    """The sum of some letters, level by level: the plain form of what a fold does one by one."""
    while len(values) > 1:
        groups = [values[i : i + 8] for i in range(0, len(values), 8)]
        values = [left_to_right(group) for group in groups]
    return values[0]


def left_to_right(group):
    result = group[0]
    for value in group[1:]:
        result = f"({result}+{value})"
    return result


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 17, 63, 64, 65, 130, 520])
def test_a_fold_adds_level_by_level(n):
    fold = Fold(lambda left, right: f"({left}+{right})")
    for number in range(n):
        fold.push(str(number))
    assert fold.result() == tree([str(number) for number in range(n)])


def test_a_fold_of_nothing_is_nothing():
    assert Fold(lambda left, right: left + right).result() is None


def test_a_fold_holds_one_sum_for_each_level():
    alive = set()

    class Value:
        def __init__(self):
            alive.add(id(self))

        def __del__(self):
            alive.discard(id(self))

    def add(left, right):
        return left  # as arrays that are changed in place

    fold, most = Fold(add), 0
    for _ in range(500):
        fold.push(Value())
        most = max(most, len(alive))
    assert most <= 4  # three levels and the one that comes


def test_every_shard_is_in_one_part():
    for counts in ([5], [4096] * 10, [100] * 1000, [32_000] * 3000, [4095, 1, 1, 4096, 3]):
        ranges = cut(counts)
        assert [number for some in ranges for number in some] == list(range(len(counts)))
        assert len(ranges) <= engine.MAX_PARTS
        assert all(sum(counts[i] for i in some) >= engine.PART_ROWS for some in ranges[:-1])


def test_blocks_are_gathered_to_parts(small_parts):
    parts = list(parts_of(blocks(45)))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert [part.first for part in parts] == [0, 2, 4]
    assert all(isinstance(part, Part) for part in parts)


def test_parts_of_converted_blocks_are_converted(small_parts):
    def doubled(block):
        return block._replace(phi=2 * block.phi)

    def of_part(part):
        return sum(block.phi.sum(axis=0) for block in part), part.first * 0

    plain, _ = total(Bare(), of_part)
    twice, _ = total(Converted(Bare(), doubled), of_part)
    np.testing.assert_array_equal(twice, 2 * plain)


def filled(n=N, size=10, rows=20):
    index = Index()
    index._shard_rows = rows
    for number, block in enumerate(blocks(n, size)):
        prints = np.arange(number * size, number * size + len(block.phi), dtype=np.uint64)
        index.append(block.phi, block.target, None, prints)
    return index.finish()


def test_parts_of_an_index_know_their_rows(small_parts):
    index = filled()
    rows = [(row, shard.n_samples) for part in index.parts() for row, shard in part.starts()]
    assert rows == [(start, shard.n_samples) for start, shard in index.starts()]
    assert len(list(index.parts())) == 25


ENGINES = [None, 1, 2, 5]


@pytest.mark.parametrize("which", ENGINES)
def test_sums_do_not_depend_on_the_engine(small_parts, which):
    layer = whence.LinearLayer(
        np.random.default_rng(1).standard_normal((D, C)), whence.layers.losses.SoftmaxCrossEntropy()
    )
    vectors = np.random.default_rng(2).standard_normal((4, D, C))
    index, here = filled(), filled()
    index.engine = as_engine(which)
    np.testing.assert_array_equal(layer.mean_gradient(index), layer.mean_gradient(here))
    np.testing.assert_array_equal(layer.hessian(index).blocks, layer.hessian(here).blocks)
    np.testing.assert_array_equal(
        layer.hessian_product(index, vectors, 0.1), layer.hessian_product(here, vectors, 0.1)
    )


def test_sums_are_those_of_one_block(small_parts):
    layer = whence.LinearLayer(
        np.random.default_rng(1).standard_normal((D, C)), whence.layers.losses.SoftmaxCrossEntropy()
    )
    whole = blocks(size=N)

    class Whole(list):
        n_samples = N

    expected, found = layer.hessian(Whole(whole)).matrix(), layer.hessian(filled()).matrix()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_threads_keep_the_order_and_work_side_by_side():
    both = threading.Barrier(2, timeout=20)

    def wait(number):
        both.wait()
        return number

    assert list(Threads(2).map(wait, range(10))) == list(range(10))


def test_threads_begin_no_more_than_they_work_on():
    begun = []
    results = Threads(2).map(lambda number: begun.append(number) or number, range(100))
    assert next(results) == 0
    assert len(begun) <= 4
    results.close()


@pytest.mark.parametrize("which", [Serial(), Threads(2)])
def test_an_error_comes_through(which):
    def fail(number):
        if number == 3:
            raise whence.WhenceError("this", "that", "another")
        return number

    with pytest.raises(whence.WhenceError, match="this: expected that, got another"):
        list(which.map(fail, range(9)))


@pytest.mark.parametrize("bad", ["threads", 2.5, True, object(), Threads])
def test_what_is_no_engine_is_refused(bad):
    with pytest.raises(whence.WhenceError, match="engine: expected None, a number of threads"):
        as_engine(bad)


@pytest.mark.parametrize("bad", [0, -1])
def test_there_is_at_least_one_thread(bad):
    with pytest.raises(whence.WhenceError, match="n_threads"):
        as_engine(bad)
