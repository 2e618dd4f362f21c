"""Arrays stay on their device: what is made on the way is made there, and nothing meets the default one."""

import numpy as np
import problems
import pytest
import reference
from tolerances import FLOAT64, SOLVE, assert_close

from whence.ihvp.exact import ExactIHVP
from whence.layers.linear_layer import Block, LinearLayer

strict = pytest.importorskip("array_api_strict")
#: Not the default device; arrays of two devices refuse to be combined.
DEVICE = strict.Device("device1")


def there(array):
    return None if array is None else strict.asarray(array, device=DEVICE)


def back(array):
    assert array.device == DEVICE
    return np.asarray(strict.asarray(array, device=strict.Device("CPU_DEVICE")))


@pytest.mark.parametrize("name", problems.CONVEX, ids=str)
def test_layer_and_exact_solver(name):
    problem = problems.problem(name, weighted=True)
    here = problem.layer()
    layer = LinearLayer(there(here.theta), here.loss, here.has_bias, here.l2, here.bias_l2)
    block = Block(*(there(array) for array in problem.block()[:3]))
    blocks, dense = problems.Blocks(block, 10), problem.dense(1e-3)
    assert_close(back(layer.residuals(block)), dense.residuals, FLOAT64)
    assert_close(back(layer.mean_gradient(blocks)), dense.gradients.mean(axis=0), FLOAT64)
    assert_close(back(layer.hessian(blocks).matrix()), dense.hessian, FLOAT64)
    right = problem.matrices()
    images = [reference.unflat(dense.damped @ reference.flat(v), v.shape[1]) for v in right]
    assert_close(back(layer.hessian_product(blocks, there(right), 1e-3)), images, FLOAT64)
    ihvp = ExactIHVP(layer, blocks, 1e-3)
    assert_close(back(ihvp.solve(there(right)).value), [dense.solve(b) for b in right], SOLVE)
    r = layer.residuals(block)
    expected = dense.self_products()
    assert_close(back(ihvp.self_products(block.phi, r)), expected, SOLVE)
    outputs = np.arange(problems.N) % layer.n_outputs
    chosen = back(ihvp.self_products(block.phi, r, there(outputs)))
    assert_close(chosen, expected[np.arange(problems.N), outputs], SOLVE)
    assert_close(back(ihvp.leverages(block.phi)), dense.leverages(), SOLVE)
