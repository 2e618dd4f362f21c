"""A layer along a sequence: against one plain layer whose rows are the positions, and sample by sample."""

import numpy as np
import pytest
import reference
from tolerances import DIFFERENCES, FLOAT64, SOLVE, assert_close

from whence.ihvp import InverseHessianVectorProduct, Solution
from whence.ihvp.exact import ExactIHVP
from whence.index import Index
from whence.layers.linear_layer import Block, LinearLayer, by_rows
from whence.layers.losses import BinaryCrossEntropy, SoftmaxCrossEntropy, SquaredError
from whence.search.scores import Queries, Vector, scores

N, L, D, C = 5, 4, 3, 3
LOSSES = {
    "softmax": (SoftmaxCrossEntropy(0.1), lambda u, y: reference.softmax_cross_entropy(u, y, 0.1)),
    "sigmoid": (BinaryCrossEntropy(), reference.binary_cross_entropy),
    "squared error": (SquaredError(), reference.squared_error),
}


class Blocks(list):
    """Some blocks with a number of samples that is not that of their rows."""

    n_samples = N


def whole(loss, dtype="float64"):
    """All samples as one block; two positions are hidden, and a whole sample counts nothing."""
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(N, L, D)).astype(dtype)
    classes = rng.integers(0, C, (N, L))
    target = classes if isinstance(loss, SoftmaxCrossEntropy) else np.eye(C)[classes]
    weight = rng.random((N, L))
    weight[0, 2:] = weight[3] = 0
    return Block(phi, target, weight.astype(dtype)), rng.normal(size=(D, C))


def moved(block, xp):
    return Block(*(xp.asarray(array) for array in block))


def dense(block, theta, loss):
    """The reference, over the positions; its means are over N * L rows."""
    target = block.target.reshape(N * L, *block.target.shape[2:])
    return reference.Dense(theta, block.phi.reshape(-1, D), target, loss, block.weight.ravel())


@pytest.fixture(params=LOSSES, ids=str)
def case(request):
    mine, theirs = LOSSES[request.param]
    block, theta = whole(mine)
    return LinearLayer(theta, mine), block, dense(block, theta, theirs)


def parts(block):
    return Blocks([Block(*(a[:2] for a in block)), Block(*(a[2:] for a in block))])


def test_gradients_sum_over_positions(case):
    layer, block, expected = case
    gradients = expected.gradients.reshape(N, L, D, C).sum(axis=1)
    assert_close(layer.residuals(block), expected.residuals.reshape(N, L, C), FLOAT64)
    assert_close(layer.gradients(block), gradients, FLOAT64)
    assert_close(layer.mean_gradient(parts(block)), gradients.mean(axis=0), FLOAT64)


def test_hessian_sums_over_positions_and_divides_by_samples(case):
    layer, block, expected = case
    assert_close(layer.hessian(parts(block)).matrix(), expected.hessian * L, DIFFERENCES)
    vectors = np.random.default_rng(1).normal(size=(2, D, C))
    products = [reference.unflat(L * expected.hessian @ reference.flat(v), C) + 0.5 * v for v in vectors]
    assert_close(layer.hessian_product(parts(block), vectors, damping=0.5), products, DIFFERENCES)


def test_losses_are_means_over_the_positions_that_count(case):
    layer, block, expected = case
    u = block.phi @ layer.theta
    rows = reference.rows(block.target.reshape(N * L, *block.target.shape[2:]), C).reshape(N, L, C)
    for i in range(N):
        each = [expected.loss(u[i, at], rows[i, at]) for at in range(L)]
        total = block.weight[i].sum()
        mean = (block.weight[i] * each).sum() / total if total else 0.0
        assert_close(layer.losses(block)[i], mean, FLOAT64)
    assert_close(layer.losses(block._replace(weight=None))[4], np.mean(each), FLOAT64)


def test_what_is_hidden_may_be_anything(case):
    layer, block, _ = case
    hidden = block.weight == 0
    phi = np.where(hidden[:, :, None], np.nan, block.phi)
    other = block._replace(phi=phi)
    for method in (layer.residuals, layer.losses):
        np.testing.assert_array_equal(method(other), method(block))
    assert sum(rows.phi.shape[0] for rows in by_rows(parts(other))) == (~hidden).sum()
    assert_close(layer.hessian(parts(other)).matrix(), layer.hessian(parts(block)).matrix(), FLOAT64)


def test_samples_that_all_count_nothing(case):
    layer, block, _ = case
    nothing = Blocks([block._replace(weight=np.zeros((N, L)))])
    assert not layer.mean_gradient(nothing).any()
    assert not layer.hessian(nothing).matrix().any()
    assert not layer.losses(nothing[0]).any()


def test_inputs_are_left_as_they_were(case):
    layer, block, _ = case
    before = [array.copy() for array in block]
    layer.gradients(block), layer.hessian(parts(block)), layer.losses(block)
    for array, then in zip(block, before, strict=True):
        np.testing.assert_array_equal(array, then)


def test_every_namespace(case, xp):
    layer, block, _ = case
    there = LinearLayer(xp.asarray(layer.theta), layer.loss)
    other = Blocks(moved(part, xp) for part in parts(block))
    assert_close(there.mean_gradient(other), layer.mean_gradient(parts(block)), FLOAT64)
    assert_close(there.hessian(other).matrix(), layer.hessian(parts(block)).matrix(), FLOAT64)
    assert_close(there.residuals(moved(block, xp)), layer.residuals(block), FLOAT64)
    assert_close(there.losses(moved(block, xp)), layer.losses(block), FLOAT64)


def test_one_position_is_a_plain_layer():
    block, theta = whole(SoftmaxCrossEntropy())
    layer = LinearLayer(theta, SoftmaxCrossEntropy())
    first = Block(block.phi[:, :1], block.target[:, :1], block.weight[:, :1])
    plain = Block(block.phi[:, 0], block.target[:, 0], block.weight[:, 0])
    assert_close(layer.gradients(first), layer.gradients(plain), FLOAT64)
    mine, theirs = Blocks([first]), Blocks([plain])
    assert_close(layer.hessian(mine).matrix(), layer.hessian(theirs).matrix(), FLOAT64)


class Solved(InverseHessianVectorProduct):
    """A solver that has nothing but ``solve``, by dense linear algebra."""

    def solve(self, right):
        matrix = self.layer.hessian(self.blocks).matrix() + self.damping * np.eye(C * D)
        solved = [reference.unflat(np.linalg.solve(matrix, reference.flat(b)), C) for b in right]
        return Solution(np.stack(solved), True, 0, 0.0)


@pytest.mark.parametrize("solver", [ExactIHVP, Solved])
def test_a_sample_is_left_out_with_all_its_positions(case, solver):
    layer, block, expected = case
    ihvp = solver(layer, parts(block), 0.1)
    inverse = np.linalg.inv(expected.hessian * L + 0.1 * np.eye(C * D))
    r = layer.residuals(block)
    moved = ihvp.self_products(block.phi, r)
    assert moved.shape == (N, L, C)
    gradients = expected.gradients.reshape(N, L, D, C).sum(axis=1)
    for i in range(N):
        solved = reference.unflat(inverse @ reference.flat(gradients[i]), C)
        assert_close(moved[i], block.phi[i] @ solved, SOLVE)
    outputs = np.random.default_rng(2).integers(0, C, (N, L))
    picked = np.take_along_axis(moved, outputs[:, :, None], axis=2)[:, :, 0]
    assert_close(ihvp.self_products(block.phi, r, outputs), picked, SOLVE)
    between = ihvp.leverages(block.phi)
    assert_close(np.einsum("ilamb,imb->ila", between, r), moved, SOLVE)
    plain, residuals = block.phi[:, 0], r[:, 0]
    assert_close(
        ihvp.self_products(block.phi[:, :1], r[:, :1])[:, 0], ihvp.self_products(plain, residuals), SOLVE
    )
    assert_close(ihvp.leverages(block.phi[:, :1])[:, 0, :, 0], ihvp.leverages(plain), SOLVE)


def test_search_sums_over_positions():
    rng = np.random.default_rng(3)
    phi, a = rng.normal(size=(N, L, D)), rng.normal(size=(N, L, C))
    matrices, offsets = rng.normal(size=(2, D, C)), rng.normal(size=2)
    expected = offsets[:, None] + np.einsum("ild,ilc,tdc->ti", phi, a, matrices)
    assert_close(scores(Queries(matrices, offsets), Vector(phi, a)), expected, FLOAT64)
    outputs = np.asarray([2, 0])
    expected = offsets[:, None] + np.einsum("ild,ilt,td->ti", phi, a[:, :, outputs], matrices[:, :, 0])
    one = Queries(matrices[:, :, 0], offsets, outputs)
    assert_close(scores(one, Vector(phi, a)), expected, FLOAT64)


def test_shorter_sequences_are_stored_with_longer_ones():
    rng = np.random.default_rng(4)
    index = Index()
    lengths = (2, 4, 3)
    for number, length in enumerate(lengths):
        phi, target = rng.normal(size=(2, length, D)), rng.integers(0, C, (2, length))
        weight = np.full((2, length), 1 / length)
        index.append(phi, target, weight, np.asarray([2 * number, 2 * number + 1], dtype=np.uint64))
    index.finish()
    (block,) = index
    assert (index.n_samples, index.n_features, block.phi.shape) == (6, D, (6, 4, D))
    np.testing.assert_array_equal((block.weight > 0).sum(axis=1), np.repeat(lengths, 2))
    assert block.rows().phi.shape == (2 * sum(lengths), D)
