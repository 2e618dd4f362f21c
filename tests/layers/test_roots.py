"""Roots of the curvature of losses, in closed form, by eigenvectors, and drawn."""

import numpy as np
import pytest
import tolerances

from whence.layers.curvature import Curvature
from whence.layers.losses import BinaryCrossEntropy, SoftmaxCrossEntropy, SquaredError
from whence.layers.roots import drawn_roots, roots

U = np.random.default_rng(0).normal(size=(6, 4))
TARGET = np.random.default_rng(1).uniform(size=(6, 4))
DENSE = np.einsum("nab,ncb->nac", *[np.random.default_rng(2).normal(size=(6, 4, 3))] * 2)

CURVATURES = {
    "softmax": SoftmaxCrossEntropy().curvature(U, np.zeros(6, dtype=int)),
    "weighted softmax": SoftmaxCrossEntropy().curvature(U, np.zeros(6, dtype=int)).scaled(np.arange(6.0)),
    "sigmoid": BinaryCrossEntropy().curvature(U, TARGET),
    "square": SquaredError().curvature(U, TARGET),
    "any": Curvature(dense=DENSE),
}
COLUMNS = {"softmax": 3, "weighted softmax": 3, "sigmoid": 4, "square": 4, "any": 3}


@pytest.mark.parametrize("name", CURVATURES)
def test_roots_squared_are_the_curvature(name):
    columns = roots(CURVATURES[name])
    squared = np.einsum("nac,nbc->nab", columns, columns)
    tolerances.assert_close(squared, CURVATURES[name].matrices(), tolerances.FLOAT64)
    assert columns.shape == (6, 4, COLUMNS[name])


def test_negative_parts_are_left_out():
    columns = roots(Curvature(dense=np.asarray([[[2.0, 0.0], [0.0, -3.0]]])))
    assert np.allclose(np.einsum("nac,nbc->nab", columns, columns), [[[2, 0], [0, 0]]])


@pytest.mark.parametrize("name", CURVATURES)
def test_drawn_roots_have_the_curvature_as_their_mean(name):
    curvature, n_draws = CURVATURES[name], 20_000
    total = 0.0
    for r in drawn_roots(curvature, n_draws, np.random.default_rng(0)):
        total = total + r[:, :, None] * r[:, None, :]
    # The standard error of a mean of products of signs: the entries over the root of their number.
    tolerances.assert_close(total, curvature.matrices(), 4 / n_draws**0.5)
    one, again = (next(iter(drawn_roots(curvature, 1, np.random.default_rng(3)))) for _ in range(2))
    assert np.array_equal(one, again)
