"""Rows of any layer: their products against gradients written out."""

import itertools

import numpy as np
import pytest
import tolerances

from whence.layers.products import combined, inner, inner_by_pairs, squared_norms
from whence.layers.rows import Factors, Matrices, Rows, Tokens, scaled_rows

KINDS = {
    "dense": ("factors", 1, 1, 5, 3),
    "sequence": ("factors", 1, 4, 5, 3),
    "long sequence": ("factors", 1, 40, 3, 2),
    "groups": ("factors", 3, 2, 4, 2),
    "scales": ("factors", 5, 6, 2, 1),
    "tokens": ("tokens", 1, 6, 7, 3),
    "matrices": ("matrices", 2, 1, 4, 3),
}


def term_of(kind, n, rng, dtype=np.float64):
    name, g, p, d, c = KINDS[kind]
    if name == "tokens":
        right = rng.normal(size=(n, p, c)).astype(dtype)
        right[:, -1] = 0  # padding
        return Tokens(rng.integers(0, d, size=(n, p)), right, d)
    if name == "matrices":
        return Matrices(rng.normal(size=(n, g, d, c)).astype(dtype))
    return Factors(rng.normal(size=(n, g, p, d)).astype(dtype), rng.normal(size=(n, g, p, c)).astype(dtype))


def rows_of(n, seed, dtype=np.float64, kinds=tuple(KINDS)):
    rng = np.random.default_rng(seed)
    return Rows({kind: (term_of(kind, n, rng, dtype),) for kind in kinds})


def tied(n, seed):
    """Weights (7, 3) that an embedding and an output layer share."""
    rng = np.random.default_rng(seed)
    other = Factors(rng.normal(size=(n, 1, 2, 7)), rng.normal(size=(n, 1, 2, 3)))
    return Rows({"tied": (term_of("tokens", n, rng), other)})


def flat(rows):
    """Every gradient as a loop over positions writes it."""
    every = []
    for terms in rows.layers.values():
        g, d, c = terms[0].shape
        sums = np.zeros((rows.n_samples, g, d, c))
        for term, i in itertools.product(terms, range(rows.n_samples)):
            if isinstance(term, Tokens):
                for token, delta in zip(term.tokens[i], term.right[i], strict=True):
                    sums[i, 0, token] += delta
            elif isinstance(term, Factors):
                for group, place in np.ndindex(term.left.shape[1:3]):
                    sums[i, group] += np.outer(term.left[i, group, place], term.right[i, group, place])
            else:
                sums[i] += term.values[i]
        every.append(sums.reshape(rows.n_samples, -1))
    return np.concatenate(every, axis=1)


@pytest.mark.parametrize("kind", [*KINDS, "tied"])
@pytest.mark.parametrize("small_blocks", [False, True])
def test_products_are_those_of_gradients_written_out(kind, small_blocks, monkeypatch):
    if small_blocks:
        monkeypatch.setattr("whence.layers.products.WRITTEN_BYTES", 512)
    left, right = (tied(n, n) if kind == "tied" else rows_of(n, n, kinds=[kind]) for n in (9, 6))
    x, y = flat(left), flat(right)
    tolerances.assert_close(inner(left, right), x @ y.T, tolerances.FLOAT64)
    tolerances.assert_close(inner(right, left), y @ x.T, tolerances.FLOAT64)
    tolerances.assert_close(squared_norms(left), (x**2).sum(axis=1), tolerances.FLOAT64)
    both = inner_by_pairs(left[:6], right)
    tolerances.assert_close(both, (x[:6] * y).sum(axis=1), tolerances.FLOAT64)
    for n_sums in (1, 4):
        weights = np.random.default_rng(0).normal(size=(n_sums, 9))
        tolerances.assert_close(flat(combined(left, weights)), weights @ x, tolerances.FLOAT64)


def test_kinds_multiply_with_each_other():
    left, right = rows_of(5, 0), rows_of(4, 1)
    written = Rows({name: (Matrices(right.matrices(name)),) for name in right.layers})
    tolerances.assert_close(inner(left, written), flat(left) @ flat(right).T, tolerances.FLOAT64)
    tolerances.assert_close(inner(written, left), flat(right) @ flat(left).T, tolerances.FLOAT64)
    tolerances.assert_close(
        inner_by_pairs(left[:4], written), (flat(left)[:4] * flat(right)).sum(axis=1), tolerances.FLOAT64
    )


def test_layers_add_up():
    left, right = rows_of(5, 0), rows_of(4, 1)
    tolerances.assert_close(inner(left, right), flat(left) @ flat(right).T, tolerances.FLOAT64)
    assert left.n_weights == flat(left).shape[1]


def test_rows_are_cut_joined_taken_and_scaled():
    rows = rows_of(6, 0)
    x = flat(rows)
    assert np.array_equal(flat(Rows.joined([rows[:2], rows[2:]])), x)
    assert np.array_equal(flat(rows.take(np.asarray([4, 0, 4]))), x[[4, 0, 4]])
    tolerances.assert_close(flat(scaled_rows(rows, np.arange(6.0))), x * np.arange(6.0)[:, None], 1e-14)
    assert np.array_equal(flat(rows.smallest().astype(np.float64)), flat(rows.smallest()))
    tolerances.assert_close(flat(rows.smallest()), x, tolerances.FLOAT64)
    by_input = {name: np.arange(1.0, shape[1] + 1) for name, shape in rows.shapes.items()}
    for name, shape in rows.shapes.items():
        expected = rows.matrices(name) * by_input[name][:, None]
        got = rows.scaled(by_input).matrices(name)
        tolerances.assert_close(got, expected, tolerances.FLOAT64)
        assert got.shape == (6, *shape)


def test_sequences_of_unequal_length_are_joined():
    rng = np.random.default_rng(0)
    parts = []
    for length in (2, 5):
        factors = Factors(rng.normal(size=(3, 1, length, 4)), rng.normal(size=(3, 1, length, 3)))
        tokens = Tokens(rng.integers(0, 9, size=(3, length)), rng.normal(size=(3, length, 2)), 9)
        parts.append(Rows({"dense": (factors,), "embedding": (tokens,)}))
    joined = Rows.joined(parts)
    assert np.array_equal(flat(joined), np.concatenate([flat(part) for part in parts]))


def test_a_smallest_term_is_the_smaller():
    rng = np.random.default_rng(0)
    long = Factors(rng.normal(size=(2, 1, 40, 3)), rng.normal(size=(2, 1, 40, 2)))
    short = Factors(rng.normal(size=(2, 1, 1, 30)), rng.normal(size=(2, 1, 1, 20)))
    assert isinstance(long.smallest(), Matrices)
    assert short.smallest() is short


def test_rows_of_torch_multiply_as_those_of_numpy():
    torch = pytest.importorskip("torch")
    left, right = rows_of(5, 0), rows_of(4, 1)

    def moved(rows):
        return rows.of(lambda term: term.of([torch.tensor(array) for array in term.arrays]))

    tolerances.assert_close(inner(moved(left), moved(right)).numpy(), inner(left, right), 1e-12)
    weights = np.random.default_rng(0).normal(size=(3, 5))
    got = combined(moved(left), torch.tensor(weights))
    for name in left.layers:
        expected = combined(left, weights).matrices(name)
        tolerances.assert_close(got.matrices(name).numpy(), expected, 1e-12)
