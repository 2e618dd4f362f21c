"""Curvature rows as they are gathered: which are kept, of whom, and what share they hold."""

import numpy as np
import pytest
import tolerances

from whence import WhenceError
from whence.ihvp import collected
from whence.ihvp.collected import CurvaturePart, curvature_of, gathered
from whence.ihvp.rows import as_vectors
from whence.layers.linear_layer import Block, LinearLayer
from whence.layers.losses import SoftmaxCrossEntropy
from whence.layers.rows import Matrices, Rows

N, D, C = 12, 4, 3


def layer_of(positions=False):
    rng = np.random.default_rng(0)
    lead = (N, 5) if positions else (N,)
    layer = LinearLayer(rng.normal(size=(D, C)), SoftmaxCrossEntropy(), gauss_newton=True)
    weight = rng.uniform(0.5, 2, size=lead)
    if positions:
        weight[:, 3] = 0
    block = Block(rng.normal(size=(*lead, D)), rng.integers(0, C, size=lead), weight)
    return layer, block


def record(block):
    def rows(by_output):
        phi = block.phi if block.phi.ndim == 3 else block.phi[:, None]
        r = by_output if block.phi.ndim == 3 else by_output[:, None]
        return Rows({"fc": (Matrices(np.einsum("nld,nlc->ndc", phi, r)[:, None]),)})

    return rows


def part_of(layer, block, share=1.0, n_draws=8):
    return curvature_of(layer, block, record(block), share, n_draws, np.random.default_rng(0))


def hessian(layer, block):
    class One:
        n_samples = N

        def __iter__(self):
            yield block

    matrix = layer.hessian(One()).matrix()
    order = np.arange(C * D).reshape(C, D).T.reshape(-1)  # output by output there, input by input here
    return matrix[np.ix_(order, order)]


@pytest.mark.parametrize("positions", [False, True])
def test_rows_of_the_output_layer_alone_are_its_hessian(positions):
    layer, block = layer_of(positions)
    system = gathered([part_of(layer, block)], {"fc": np.zeros(D)}, 1.0, 1000)
    z = as_vectors(system.rows)
    tolerances.assert_close(z.T @ z / N, hessian(layer, block), tolerances.FLOAT64)
    assert (system.share_kept, system.n_candidates) == (1.0, N * (C - 1) * (4 if positions else 1))


def test_rows_of_many_outputs_are_drawn(monkeypatch):
    monkeypatch.setattr(collected, "MOST_COLUMNS", 14)
    layer, block = layer_of(positions=True)
    n_draws = 4000
    z = as_vectors(gathered([part_of(layer, block, n_draws=n_draws)], {"fc": np.zeros(D)}, 1.0, 10**6).rows)
    tolerances.assert_close(z.T @ z / N, hessian(layer, block), 8 / n_draws**0.5)


def test_the_largest_rows_are_kept_up_to_a_share(monkeypatch):
    monkeypatch.setattr(collected, "FEW_IN_ALL", 0)
    layer, block = layer_of()
    part = part_of(layer, block)
    sizes = np.sort(part.sizes)[::-1]
    for share in (0.5, 0.9, 1.0):
        system = gathered([part], {"fc": np.zeros(D)}, share, 1000)
        expected = int(np.searchsorted(np.cumsum(sizes) / sizes.sum(), share - 1e-12)) + 1
        assert system.n_rows == expected
        assert system.share_kept == pytest.approx(sizes[:expected].sum() / sizes.sum())
    few = gathered([part], {"fc": np.zeros(D)}, 1.0, 3)
    assert (few.n_rows, few.share_kept) == (3, pytest.approx(sizes[:3].sum() / sizes.sum()))


def test_what_a_batch_leaves_out_counts_in_the_share(monkeypatch):
    monkeypatch.setattr(collected, "FEW_ROWS", 0)
    layer, block = layer_of()
    pruned, whole = part_of(layer, block, share=0.5), part_of(layer, block)
    assert pruned.rows.n_samples < whole.rows.n_samples
    system = gathered([pruned], {"fc": np.zeros(D)}, 1.0, 1000)
    assert 0.5 <= system.share_kept < 1
    assert system.n_candidates == whole.rows.n_samples


def test_little_memory_changes_nothing_that_must_be_kept(monkeypatch):
    layer, block = layer_of()
    whole = part_of(layer, block)
    monkeypatch.setattr(collected, "HELD_BYTES", 1)
    small = part_of(layer, block)
    assert np.array_equal(np.sort(small.sizes), np.sort(whole.sizes))


def test_few_rows_are_kept_all():
    layer, block = layer_of()
    part = part_of(layer, block, share=0.5)
    assert gathered([part], {"fc": np.zeros(D)}, 0.5, 1000).share_kept == 1


def test_parts_are_cut_and_joined_by_samples():
    layer, block = layer_of()
    part = part_of(layer, block, share=0.9)
    pieces = [part.between(0, 5), part.between(5, 6), part.between(6, N)]
    back = CurvaturePart.joined(pieces)
    assert np.array_equal(np.sort(back.sizes), np.sort(part.sizes))
    assert np.array_equal(back.trace, part.trace)
    order = np.asarray([7, 0, 3])
    some = part.taken(order)
    assert np.array_equal(some.trace, part.trace[order])
    assert np.array_equal(np.sort(order[some.samples]), np.sort(part.samples[np.isin(part.samples, order)]))


def test_a_loss_without_curvature_is_refused():
    rows = Rows({"fc": (Matrices(np.zeros((3, 1, 1, 1))),)})
    with pytest.raises(WhenceError, match="curvature at some training sample"):
        gathered([CurvaturePart.of([rows], 3, 1.0)], {"fc": np.zeros(1)}, 1.0, 10)
