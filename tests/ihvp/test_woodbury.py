"""Woodbury's identity against the exact solver and dense linear algebra, dense and sparse features."""

import numpy as np
import problems
import pytest
import reference
import scipy.sparse
from tolerances import SOLVE, assert_close

from whence import (
    CGDIHVPFactory,
    ExactIHVPFactory,
    KroneckerIHVPFactory,
    NotPositiveDefiniteError,
    WhenceError,
    WoodburyIHVPFactory,
)
from whence.arrays.base import as_numpy
from whence.arrays.sparse import SparseRows
from whence.ihvp import kronecker, woodbury
from whence.layers.linear_layer import Block, LinearLayer
from whence.layers.losses import BinaryCrossEntropy, SoftmaxCrossEntropy


class Wide:
    """30 samples with 90 features, most of them zero, in two blocks."""

    n_samples = 30

    def __init__(self, n_outputs, sparse, weighted=False):
        rng = np.random.default_rng(0)
        phi = rng.normal(size=(30, 90)) * (rng.random((30, 90)) < 0.1)
        self.phi = np.concatenate([phi, np.ones((30, 1))], axis=1)
        self.theta = rng.normal(size=(91, n_outputs))
        if n_outputs == 3:
            self.target = rng.integers(0, 3, size=30)
        else:
            self.target = rng.integers(0, 2, size=(30, n_outputs)).astype(float)
        self.weight = rng.random(30) if weighted else None
        self.sparse = sparse

    def __iter__(self):
        for rows in (slice(0, 11), slice(11, 30)):
            phi = SparseRows(scipy.sparse.csr_array(self.phi[rows])) if self.sparse else self.phi[rows]
            weight = None if self.weight is None else self.weight[rows]
            yield Block(phi, self.target[rows], weight)


@pytest.mark.pairwise
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(("n_outputs", "loss"), [(1, BinaryCrossEntropy()), (3, SoftmaxCrossEntropy())])
def test_more_features_than_samples(n_outputs, loss, sparse, weighted, rng):
    blocks = Wide(n_outputs, sparse, weighted)
    layer = LinearLayer(blocks.theta, loss, has_bias=True, l2=0.1)
    ours = WoodburyIHVPFactory(1e-2).build(layer, blocks)
    exact = ExactIHVPFactory(1e-2).build(layer, Wide(n_outputs, False, weighted))
    right = rng.normal(size=(4, 91, n_outputs))
    solution = ours.solve(right)
    assert_close(solution.value, exact.solve(right).value, SOLVE)
    assert solution.converged
    assert solution.iterations == 0
    assert solution.relative_residual < 1e-9
    phi = next(iter(blocks)).phi
    assert_close(ours.leverages(phi), exact.leverages(blocks.phi[:11]), SOLVE)
    r = rng.normal(size=(11, n_outputs))
    assert_close(ours.self_products(phi, r), exact.self_products(blocks.phi[:11], r), SOLVE)
    outputs = rng.integers(0, n_outputs, size=11)
    assert_close(
        ours.self_products(phi, r, outputs), exact.self_products(blocks.phi[:11], r, outputs), SOLVE
    )


@pytest.mark.pairwise
@pytest.mark.parametrize("loss", problems.CONVEX)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_every_loss_against_dense_linear_algebra(loss, has_bias, rng):
    problem = problems.problem(loss, has_bias, weighted=has_bias)
    layer, blocks = problem.layer(), problem.blocks()
    right = rng.normal(size=(3, layer.n_features, layer.n_outputs))
    dense = problem.dense(1e-2)
    flat = np.stack([reference.flat(part) for part in right], axis=1)
    expected = np.linalg.solve(dense.damped, flat)
    got = WoodburyIHVPFactory(1e-2).build(layer, blocks).solve(right).value
    assert_close(np.stack([reference.flat(part) for part in as_numpy(got)], axis=1), expected, SOLVE)


def test_no_damping_is_refused():
    blocks = Wide(1, True)
    layer = LinearLayer(blocks.theta, BinaryCrossEntropy(), has_bias=True, l2=0.1)
    with pytest.raises(NotPositiveDefiniteError, match="divides by it"):
        WoodburyIHVPFactory(0).build(layer, blocks)


def test_too_many_samples_for_the_memory(monkeypatch):
    blocks = Wide(3, True)
    layer = LinearLayer(blocks.theta, SoftmaxCrossEntropy(), has_bias=True)
    monkeypatch.setattr(woodbury, "memory_bytes", lambda: 10_000)
    with pytest.raises(WhenceError, match="CGDIHVPFactory"):
        WoodburyIHVPFactory().build(layer, blocks)


@pytest.mark.parametrize(
    ("n_outputs", "loss", "needed"),
    [
        (3, SoftmaxCrossEntropy(), 8 * (3 * 30) ** 2 * 3),
        (2, BinaryCrossEntropy(), 8 * 30**2 * (2 + 2)),
    ],
    ids=["outputs together", "outputs apart"],
)
def test_what_counts_is_the_memory_that_is_needed(n_outputs, loss, needed, monkeypatch):
    blocks = Wide(n_outputs, False)
    layer = LinearLayer(blocks.theta, loss, has_bias=True)
    monkeypatch.setattr(woodbury, "memory_bytes", lambda: 1.01 * needed / 0.8)
    WoodburyIHVPFactory().build(layer, blocks)
    monkeypatch.setattr(woodbury, "memory_bytes", lambda: 0.99 * needed / 0.8)
    with pytest.raises(WhenceError, match="fits into memory"):
        WoodburyIHVPFactory().build(layer, blocks)


@pytest.mark.parametrize("name", ["Welsch", "Welsch, one output"])
def test_a_loss_that_is_not_convex_is_refused(name):
    problem = problems.problem(name)
    assert -1 < np.linalg.eigvalsh(problem.dense().curvatures).min() < 0
    with pytest.raises(NotPositiveDefiniteError, match="gauss_newton") as e:
        WoodburyIHVPFactory(1e-2).build(problem.layer(), problem.blocks())
    assert e.value.smallest_eigenvalue < -1e-3
    WoodburyIHVPFactory(1e-2, curvature="gauss_newton").build(problem.layer(), problem.blocks())


def test_the_residual_is_measured():
    blocks = Wide(3, False)
    layer = LinearLayer(blocks.theta, SoftmaxCrossEntropy(), has_bias=True)
    ihvp = WoodburyIHVPFactory(1e-2).build(layer, blocks)
    right = np.ones((1, 91, 3))
    solution = ihvp.solve(right)
    gap = np.linalg.norm(ihvp.product(solution.value) - right) / np.linalg.norm(right)
    assert 0 < solution.relative_residual == pytest.approx(gap, rel=0.5)
    assert WoodburyIHVPFactory(1e-2).build(layer, blocks).solve(0 * right).relative_residual == 0


def test_nothing_to_solve():
    blocks = Wide(1, True)
    layer = LinearLayer(blocks.theta, BinaryCrossEntropy(), has_bias=True)
    nothing = WoodburyIHVPFactory().build(layer, blocks).solve(np.empty((0, 91, 1)))
    assert nothing.value.shape == (0, 91, 1)
    assert (nothing.converged, nothing.iterations, nothing.relative_residual) == (True, 0, 0.0)


@pytest.mark.parametrize(
    "factory", [KroneckerIHVPFactory(), CGDIHVPFactory()], ids=["factors", "preconditioner"]
)
def test_features_too_wide_for_a_dense_second_moment(factory, monkeypatch):
    blocks = Wide(1, True)
    layer = LinearLayer(blocks.theta, BinaryCrossEntropy(), has_bias=True)
    monkeypatch.setattr(kronecker, "memory_bytes", lambda: 300_000)
    with pytest.raises(WhenceError, match=r"memory \(0 GiB here\).*preconditioner=None"):
        factory.build(layer, blocks).solve(np.ones((1, 91, 1)))
    monkeypatch.setattr(kronecker, "memory_bytes", lambda: 3 * 2**30)
    with pytest.raises(WhenceError, match=r"\(3 GiB here\), got 10000 features, which take 4 GiB"):
        kronecker._refuse_if_too_large(10_000)
    plain = CGDIHVPFactory(preconditioner=None).build(layer, blocks)
    assert plain.solve(np.ones((1, 91, 1))).converged
