"""Influence functions: against dense linear algebra and real retraining, signs, groups, RelatIF."""

import numpy as np
import pytest
import reference
from tolerances import FLOAT64, SOLVE, assert_close

import whence

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

from heads import CASES, Head, N, T, self_values_of, values_of


def made(head, **options):
    return whence.InfluenceFunctions(head.model, head.train, head.factory, progress=False, **options)


@pytest.fixture(scope="module", params=CASES, ids=str)
def head(request):
    return Head(CASES[request.param])


def solved(head):
    """``H^{-1} g_i (N, d, C)``."""
    return np.stack([head.dense.solve(g) for g in head.dense.gradients])


def unit(phi, output, n_outputs):
    return np.outer(phi, np.eye(n_outputs)[output])


def on_losses(head, moves):
    gradients = head.dense_new.gradients
    return np.einsum("tdc,ndc->tn", gradients, moves) / N


def on_outputs(head, moves):
    pairs = zip(head.phi_new, head.outputs_new, strict=True)
    units = [unit(phi, output, head.case.units) for phi, output in pairs]
    return -np.einsum("tdc,ndc->tn", np.stack(units), moves) / N


def test_influence_on_losses(head):
    method = made(head)
    assert_close(values_of(method, head), on_losses(head, solved(head)), SOLVE)
    own = np.einsum("ndc,ndc->n", head.dense.gradients, solved(head))
    assert_close(self_values_of(method, head), own, SOLVE)


def test_influence_on_pre_activations(head):
    method = made(head, effect_on="pre_activation")
    assert_close(values_of(method, head), on_outputs(head, solved(head)), SOLVE)
    outputs = np.argmax(head.phi @ head.dense.theta, axis=1)
    own = np.abs(head.dense.self_products()[np.arange(N), outputs]) / N
    assert_close(self_values_of(method, head), own, SOLVE)


@pytest.mark.pairwise
@pytest.mark.parametrize("effect_on", ["loss", "pre_activation"])
def test_relative_influence(head, effect_on):
    moves = solved(head)
    of = on_losses if effect_on == "loss" else on_outputs
    roots = np.sqrt(np.einsum("ndc,ndc->n", head.dense.gradients, moves))
    norms = np.sqrt((moves**2).sum(axis=(1, 2)))
    for name, divisor in {"loss": roots, "parameters": norms}.items():
        method = made(head, effect_on=effect_on, normalisation=name)
        assert_close(values_of(method, head), of(head, moves) / divisor, SOLVE)
        plain = self_values_of(made(head, effect_on=effect_on), head)
        assert_close(self_values_of(method, head), plain / divisor, SOLVE)


@pytest.mark.pairwise
@pytest.mark.parametrize("factory", [whence.ExactIHVPFactory(), whence.CGDIHVPFactory()], ids=type)
@pytest.mark.parametrize("options", [{"leverage": True}, {"normalisation": "loss"}, {}], ids=str)
def test_threads_give_the_same(options, factory):
    """They work on copies of the method, with a solver where coefficients need one that they can take."""
    head = Head(CASES["softmax"])
    options |= {"progress": False}
    here, beside = (
        values_of(
            whence.InfluenceFunctions(head.model, head.train, factory, engine=engine, **options), head
        )
        for engine in (None, 2)
    )
    assert np.array_equal(here, beside)


@pytest.mark.pairwise
@pytest.mark.parametrize("effect_on", ["loss", "pre_activation"])
def test_leverage_is_a_newton_step_without_the_sample(head, effect_on):
    """``(H - K_i (x) phi_i phi_i^T / N)^{-1} g_i``, with the matrix written out for each sample."""
    dense = head.dense
    moves = []
    for k, p, g in zip(dense.curvatures, dense.phi, dense.gradients, strict=True):
        matrix = dense.damped - np.kron(k, np.outer(p, p)) / N
        moves.append(reference.unflat(np.linalg.solve(matrix, reference.flat(g)), head.case.units))
    method = made(head, effect_on=effect_on, leverage=True)
    of = on_losses if effect_on == "loss" else on_outputs
    assert_close(values_of(method, head), of(head, np.stack(moves)), SOLVE)
    (shard,) = method.index.shards
    left_out = dense.phi @ dense.theta + np.einsum("nd,ndc->nc", dense.phi, np.stack(moves)) / N
    assert_close(method.rule.leave_one_out(shard.block), left_out, SOLVE)


def test_leverage_is_exact_for_squared_error():
    """Predicted pre-activations without a sample are those of a layer trained without it."""
    head = Head(CASES["squared error"])
    head.set_weights(head.dense.refit())
    method = made(head, effect_on="pre_activation", leverage=True)
    values = method.influences(head.new, outputs=1)
    theta = method.layer.theta
    for i in (0, 7, N - 1):
        weight = head.dense.weight.copy()
        weight[i] = 0
        parts = head.phi, head.case.labels, head.case.plain, weight, head.damping
        without = reference.Dense(theta, *parts).refit()
        assert_close(values[:, i], (head.phi_new @ (theta - without))[:, 1], SOLVE)


def test_changes_of_the_loss_are_those_at_the_changed_pre_activations(head):
    """Of every sample, against the loss at weights that are moved one by one."""
    new, theta = head.dense_new, head.dense.theta
    expected = [
        [new.loss(p @ (theta + move / N), y) - new.loss(p @ theta, y) for move in solved(head)]
        for p, y in zip(new.phi, new.target, strict=True)
    ]
    assert_close(made(head).loss_changes(head.new), expected, SOLVE)


def test_changes_of_the_loss_are_exact_for_squared_error():
    head = Head(CASES["squared error"])
    head.set_weights(head.dense.refit())
    method = made(head, leverage=True)
    found = method.loss_changes(head.new)
    theta, new = method.layer.theta, head.dense_new
    pairs = list(zip(new.phi, new.target, strict=True))
    for i in range(N):
        weight = head.dense.weight.copy()
        weight[i] = 0
        parts = head.phi, head.case.labels, head.case.plain, weight, head.damping
        without = reference.Dense(theta, *parts).refit()
        rise = [new.loss(p @ without, y) - new.loss(p @ theta, y) for p, y in pairs]
        assert np.abs(found[:, i] - rise).max() < 1e-8
    # The slope alone is not.
    assert np.abs(found - method.influences(head.new)).max() > 1e-3


@pytest.mark.parametrize("options", [{"effect_on": "pre_activation"}, {"normalisation": "loss"}], ids=str)
def test_changes_of_the_loss_need_the_loss(head, options):
    with pytest.raises(whence.WhenceError, match="effect_on and normalisation"):
        made(head, **options).loss_changes(head.new)


def test_without_leverage_leaves_out_to_first_order(head):
    method = made(head)
    (shard,) = method.index.shards
    assert_close(method.rule.leave_one_out(shard.block), head.dense.leave_one_out(), SOLVE)


def test_positive_speaks_for(head):
    """Training without a sample: what it spoke for falls, the label's loss rises; to first order."""
    at_minimum = Head(head.case, damping=0.5)
    at_minimum.set_weights(at_minimum.dense.refit())
    theta = whence.InfluenceModel(at_minimum.keras_model).layer.theta
    losses = made(at_minimum).influences(at_minimum.new)
    raised = made(at_minimum, effect_on="pre_activation").influences(at_minimum.new, outputs=0)
    if head.case.units == 1:  # turned, to speak for the predicted class
        raised = raised * np.sign(at_minimum.phi_new @ theta)
    new = at_minimum.dense_new
    for i in range(0, N, 5):
        parts = at_minimum.phi, head.case.labels, head.case.plain
        weight = at_minimum.dense.weight.copy()
        weight[i] *= 1 - 1e-4
        moved = reference.Dense(theta, *parts, weight, 0.5).refit()
        fall = (at_minimum.phi_new @ (theta - moved))[:, 0]
        assert_close(fall / 1e-4, raised[:, i], 1e-3)
        pairs = list(zip(new.phi, new.target, strict=True))
        rise = [new.loss(p @ moved, y) - new.loss(p @ theta, y) for p, y in pairs]
        assert_close(np.asarray(rise) / 1e-4, losses[:, i], 1e-3)


def test_local_jacobian_expansion_ranks_alike(head):
    """For one sample and one output, the values differ by one number: the same for every ``i``."""
    lje = whence.RepresenterPointLJE(head.model, head.train, head.factory, step_size=0.0, progress=False)
    method = made(head, effect_on="pre_activation")
    gap = values_of(lje, head) - values_of(method, head)
    own = (head.phi_new @ head.dense.theta)[np.arange(T), head.outputs_new] / N
    assert_close(gap, np.repeat(own[:, None], N, axis=1), SOLVE)


def test_groups_are_sums(head):
    method = made(head)
    groups = np.arange(N) % 4 - 1
    values = method.influences(head.new)
    expected = np.stack([values[:, groups == g].sum(axis=1) for g in range(3)], axis=1)
    assert_close(method.influences(head.new, groups=groups), expected, FLOAT64)
    with pytest.raises(whence.WhenceError, match="groups"):
        method.influences(head.new, groups=groups[:-1])
    with pytest.raises(whence.WhenceError, match="groups"):
        method.influences(head.new, groups=groups / 2)


@pytest.mark.pairwise
@pytest.mark.parametrize("effect_on", ["loss", "pre_activation"])
def test_explain_agrees_with_the_contract(head, effect_on):
    method = made(head, effect_on=effect_on)
    explanation = method.explain(head.new, k=4)
    turned = effect_on == "pre_activation" and head.case.units == 1
    signs = np.where(turned & ((head.phi_new @ head.dense.theta)[:, :1] < 0), -1.0, 1.0)
    values = values_of(method, head) * signs
    assert_close(method.influences(head.new), values, FLOAT64)
    assert_close(explanation.values, -np.sort(-values, axis=1)[:, :4], FLOAT64)
    assert_close(explanation.opponent_values, np.sort(values, axis=1)[:, :4], FLOAT64)
    assert_close(explanation.totals, values.sum(axis=1), SOLVE)
    best = [(v.numpy(), t.numpy()) for _, v, t in method.top_k(head.new, head.train, k=4)]
    turned_back = -np.sort(-values * signs, axis=1)[:, :4]
    assert_close(np.concatenate([v for v, _ in best]), turned_back, 1e-6)


def test_the_loss_needs_labels(head):
    method = made(head)
    unlabelled = head.new.map(lambda x, y: x)
    with pytest.raises(whence.WhenceError, match="labels"):
        method.explain(unlabelled)
    with pytest.raises(whence.WhenceError, match="outputs"):
        method.explain(head.new, outputs=0)
    with pytest.raises(whence.WhenceError, match="outputs"):
        method.influences(head.new, outputs=0)
    made(head, effect_on="pre_activation").explain(unlabelled, outputs=0)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"effect_on": "both"}, "effect_on"),
        ({"normalisation": "l2"}, "normalisation"),
        ({"leverage": True, "n_samples_for_hessian": 5}, "n_samples_for_hessian"),
        ({"n_samples_for_hessian": 0}, "n_samples_for_hessian"),
        ({"ihvp_calculator_factory": whence.ExactIHVPFactory}, "ihvp_calculator_factory"),
    ],
)
def test_bad_arguments_are_named(options, argument):
    head = Head(CASES["softmax"])
    with pytest.raises(whence.WhenceError, match=argument):
        whence.InfluenceFunctions(
            **{
                "influence_model": head.model,
                "dataset": head.train,
                "ihvp_calculator_factory": head.factory,
            }
            | options
        )
