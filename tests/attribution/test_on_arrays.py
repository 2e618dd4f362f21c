"""Every method against its formula written out, on arrays alone: nothing of this needs a framework."""

import numpy as np
import pytest
import reference
from plain import (
    CASES,
    CLASSES,
    NEW_CLASSES,
    WEIGHT,
    D,
    Head,
    N,
    T,
    X,
    batches,
    self_values_of,
    values_of,
)
from tolerances import SOLVE, assert_close

import whence

STEP = 1e-2  # large enough that leaving the ascent out shows
ROWS = np.arange(N)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(params=["bias", "no bias"])
def head(request, case):
    return Head(case, use_bias=request.param == "bias")


def lje_of(head, **options):
    return whence.RepresenterPointLJE(head.model, head.train, head.factory, **options)


def expansion_of(head, step_size=STEP):
    return reference.LocalJacobianExpansion(head.dense, step_size)


def turned(head):
    """Signs by which ``explain`` turns a single output of a classifier to its predicted class."""
    u = head.phi_new @ head.dense.theta
    is_turned = head.case.units == 1 and head.case.loss.is_classification
    return np.where(u[:, 0] < 0, -1.0, 1.0) if is_turned else np.ones(T)


# ------------------------------------------------------------------------ local Jacobian expansion


def test_expanded_weights(head):
    expected = expansion_of(head)
    lje = lje_of(head, step_size=STEP)
    assert_close(
        lje.expanded_layer.theta - head.dense.theta, expected.expanded.theta - head.dense.theta, SOLVE
    )
    assert_close(lje.theta_dagger, expected.theta_dagger, SOLVE)
    assert lje.relative_residual < 1e-10


@pytest.mark.pairwise
@pytest.mark.parametrize("solver", ["exact", "conjugate gradient", "Woodbury"])
def test_values_and_their_sum(head, solver):
    head.factory = {
        "exact": whence.ExactIHVPFactory(damping=head.damping),
        "conjugate gradient": whence.CGDIHVPFactory(damping=head.damping, tolerance=1e-11),
        "Woodbury": whence.WoodburyIHVPFactory(damping=head.damping),
    }[solver]
    lje = lje_of(head, step_size=STEP)
    every = expansion_of(head).influences(head.phi_new)
    outputs = head.outputs(head.phi_new)
    assert_close(values_of(lje, head), every[np.arange(T), :, outputs], SOLVE)
    explanation = lje.explain(head.new, k=3)
    assert_close(explanation.totals, every.sum(axis=1)[np.arange(T), outputs] * turned(head), SOLVE)
    for output in range(head.case.units):
        signs = turned(head)[:, None]
        assert_close(lje.influences(head.new, outputs=output), every[:, :, output] * signs, SOLVE)


@pytest.mark.pairwise
@pytest.mark.parametrize("label", ["predicted", "given"])
def test_self_influence(head, label):
    outputs = head.outputs(head.phi)
    if label == "given" and head.case.loss.is_classification and head.case.units > 1:
        outputs = CLASSES
    elif label == "given" and head.case.units > 1:
        outputs = np.argmax(head.case.labels, axis=1)
    lje = lje_of(head, step_size=STEP, label=label)
    expected = expansion_of(head).self_influences(outputs)
    assert_close(self_values_of(lje, head), expected, SOLVE)
    for order, sign in ((whence.ORDER.DESCENDING, -1), (whence.ORDER.ASCENDING, 1)):
        samples, values = lje.compute_top_k_from_training_dataset(head.train, 4, order)
        best = np.argsort(sign * expected)[:4]
        assert_close(values, expected[best], SOLVE)
        np.testing.assert_array_equal(samples, X[best])


def test_both_ends_of_the_values(head):
    lje = lje_of(head, step_size=STEP)
    every = expansion_of(head).influences(head.phi_new)
    values = every[np.arange(T), :, head.outputs(head.phi_new)]
    speaking = values * turned(head)[:, None]
    order = np.argsort(-speaking, axis=1)
    explanation = lje.explain(head.new, k=3)
    np.testing.assert_array_equal(explanation.ids, order[:, :3])
    np.testing.assert_array_equal(explanation.opponent_ids, order[:, ::-1][:, :3])
    assert_close(explanation.values, np.take_along_axis(speaking, order[:, :3], 1), SOLVE)
    assert_close(explanation.signs, turned(head), 0)
    for wanted, rows in (
        (whence.ORDER.DESCENDING, np.argsort(-values, axis=1)[:, :3]),
        (whence.ORDER.ASCENDING, np.argsort(values, axis=1)[:, :3]),
    ):
        parts = list(lje.top_k(head.new, head.train, k=3, order=wanted, d_type=np.float64))
        assert_close(np.concatenate([v for _, v, _ in parts]), np.take_along_axis(values, rows, 1), SOLVE)
        np.testing.assert_array_equal(np.concatenate([x for _, _, x in parts]), X[rows])


@pytest.mark.pairwise
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_the_printed_formula(head, epsilon):
    lje = lje_of(head, step_size=STEP, decomposition="elementwise", epsilon=epsilon)
    alphas = expansion_of(head).elementwise_alphas(epsilon)
    outputs = head.outputs(head.phi_new)
    expected = alphas.T[outputs] * (head.phi_new @ head.phi.T)
    assert_close(values_of(lje, head), expected, SOLVE)
    own = np.abs(alphas[ROWS, head.outputs(head.phi)])
    assert_close(self_values_of(lje, head), own, SOLVE)
    assert_close(lje.explain(head.new, k=1).totals, expected.sum(axis=1) * turned(head), SOLVE)


def test_doubtful_labels(head):
    lje = lje_of(head, step_size=STEP)
    moved = expansion_of(head).expanded
    left_out = head.phi @ head.dense.theta + moved.self_products() / N
    margins = margins_of(head.case, left_out)
    found = lje.suspects(head.train, k=None, score="leave_one_out")
    np.testing.assert_array_equal(found.ids, np.argsort(margins))
    assert_close(found.scores, -np.sort(margins), SOLVE)
    losses = [
        head.case.plain(p @ head.dense.theta, y) for p, y in zip(head.phi, head.dense.target, strict=True)
    ]
    by_loss = lje.suspects(head.train, k=5, score="loss")
    np.testing.assert_array_equal(by_loss.ids, np.argsort(-np.asarray(losses))[:5])
    assert_close(by_loss.scores, -np.sort(-np.asarray(losses))[:5], SOLVE)


def margins_of(case, u):
    """How far pre-activations speak for the given label."""
    if not case.loss.is_classification:
        return -((u - case.labels) ** 2).mean(axis=1)
    if case.units == 1:
        return ((2 * case.labels - 1) * u)[:, 0]
    given = u[ROWS, CLASSES]
    others = u.copy()
    others[ROWS, CLASSES] = -np.inf
    return given - others.max(axis=1)


# -------------------------------------------------------------------------------- sibling methods


def asked(head, effect_on, phi, dense):
    """What influences are on: minus the gradient of the loss, or that of the predicted output."""
    if effect_on == "loss":
        return -dense.gradients
    eye = np.eye(head.case.units)[head.outputs(phi)]
    return phi[:, :, None] * eye[:, None, :]


def moves_of(head):
    """``H^{-1} g_i`` of every training sample."""
    return np.stack([head.dense.solve(g) for g in head.dense.gradients])


@pytest.mark.pairwise
@pytest.mark.parametrize("effect_on", ["loss", "pre_activation"])
@pytest.mark.parametrize("normalisation", [None, "loss", "parameters"])
def test_influence_functions(head, effect_on, normalisation):
    method = whence.InfluenceFunctions(
        head.model, head.train, head.factory, effect_on=effect_on, normalisation=normalisation
    )
    moves = moves_of(head)
    scale = {
        None: np.ones(N),
        "loss": np.sqrt(np.einsum("ndc,ndc->n", head.dense.gradients, moves)),
        "parameters": np.sqrt((moves**2).sum(axis=(1, 2))),
    }[normalisation]
    of = asked(head, effect_on, head.phi_new, head.dense_new)
    assert_close(values_of(method, head), -np.einsum("tdc,ndc->tn", of, moves) / (N * scale), SOLVE)


@pytest.mark.pairwise
@pytest.mark.parametrize("effect_on", ["loss", "pre_activation"])
def test_leverage_is_a_newton_step_without_the_sample(head, effect_on):
    dense = head.dense
    moves = []
    for k, p, g in zip(dense.curvatures, dense.phi, dense.gradients, strict=True):
        matrix = dense.damped - np.kron(k, np.outer(p, p)) / N
        moves.append(reference.unflat(np.linalg.solve(matrix, reference.flat(g)), head.case.units))
    method = whence.InfluenceFunctions(
        head.model, head.train, head.factory, effect_on=effect_on, leverage=True
    )
    of = asked(head, effect_on, head.phi_new, head.dense_new)
    assert_close(values_of(method, head), -np.einsum("tdc,ndc->tn", of, np.stack(moves)) / N, SOLVE)


@pytest.mark.pairwise
@pytest.mark.parametrize("effect_on", ["loss", "pre_activation"])
@pytest.mark.parametrize("kind", [whence.GradientDotProduct, whence.GradientCosine])
def test_gradients(head, effect_on, kind):
    method = kind(head.model, head.train, effect_on=effect_on)
    of = asked(head, effect_on, head.phi_new, head.dense_new)
    gradients = head.dense.gradients
    expected = -np.einsum("tdc,ndc->tn", of, gradients)
    if kind is whence.GradientCosine:
        sizes = [np.sqrt((m**2).sum(axis=(1, 2))) for m in (of, gradients)]
        expected = expected / np.outer(*sizes)
    else:
        expected = expected / N
    assert_close(values_of(method, head), expected, SOLVE)
    signs = 1 if effect_on == "loss" else turned(head)
    assert_close(method.explain(head.new).totals, expected.sum(axis=1) * signs, SOLVE)


@pytest.mark.pairwise
@pytest.mark.parametrize("fit_to", ["labels", "predictions"])
def test_representer_points_of_an_l2_refit(head, fit_to):
    l2 = 0.02
    method = whence.RepresenterPointL2(head.model, head.train, l2, fit_to=fit_to)
    target = head.case.labels
    if fit_to == "predictions":
        u = head.phi @ head.dense.theta
        exponentials = np.exp(u - u.max(axis=1, keepdims=True))
        target = {
            "softmax cross-entropy": exponentials / exponentials.sum(axis=1, keepdims=True),
            "binary cross-entropy": 1 / (1 + np.exp(-u)),
            "squared error": u,
        }[head.case.loss.name]
    start = reference.Dense(
        np.zeros_like(head.dense.theta), head.phi, target, head.case.plain, head.dense.weight, 2 * l2
    )
    expected = start.at(start.refit())
    assert_close(method.refitted_layer.theta, expected.theta, 1e-6)
    alpha = -expected.residuals / (2 * l2 * N)
    outputs = head.outputs(head.phi_new)
    values = alpha.T[outputs] * (head.phi_new @ head.phi.T)
    assert_close(values_of(method, head), values, 1e-6)
    assert_close(values.sum(axis=1), (head.phi_new @ expected.theta)[np.arange(T), outputs], 1e-6)
    own = np.abs(alpha[ROWS, head.outputs(head.phi)])
    assert_close(self_values_of(method, head), own, 1e-6)


def test_feature_similarity_and_loss():
    head = Head(CASES["softmax"])
    unit = X / np.sqrt((X**2).sum(axis=1, keepdims=True))
    new = head.phi_new[:, :D]
    new = new / np.sqrt((new**2).sum(axis=1, keepdims=True))
    rows = np.eye(3)[CLASSES]
    votes = rows - rows.mean(axis=0)
    outputs = head.outputs(head.phi_new)
    method = whence.FeatureSimilarity(head.model, head.train)
    assert_close(values_of(method, head), votes.T[outputs] * (new @ unit.T), SOLVE)
    losses = [head.case.plain(p @ head.dense.theta, y) for p, y in zip(head.phi, rows, strict=True)]
    signs = np.sign(-head.dense.residuals)
    by_loss = whence.TrainingLoss(head.model, head.train)
    assert_close(values_of(by_loss, head), (losses * signs.T)[outputs], SOLVE)
    assert_close(self_values_of(by_loss, head), losses, SOLVE)


# ------------------------------------------------------------------------------------ invariances


@pytest.mark.pairwise
@pytest.mark.parametrize("size", [1, 7, N])
def test_the_batch_size_changes_nothing(case, size):
    head = Head(case)
    expected = values_of(lje_of(head, step_size=STEP), head)
    own = self_values_of(lje_of(head, step_size=STEP), head)
    head.train = batches(X, case.labels, WEIGHT, size=size)
    assert_close(values_of(lje_of(head, step_size=STEP), head), expected, SOLVE)
    assert_close(self_values_of(lje_of(head, step_size=STEP), head), own, SOLVE)


def test_labels_count(case):
    """Other labels give other values: they are no mere function of features and weights."""
    head = Head(case)
    before = values_of(lje_of(head), head)
    labels = case.labels[::-1].copy()
    assert not np.array_equal(labels, case.labels)
    head.train = batches(X, labels, WEIGHT)
    after = values_of(lje_of(head), head)
    assert np.abs(after - before).max() > 0.1 * np.abs(before).max()


def test_new_labels_count_where_the_loss_is_asked_about():
    head = Head(CASES["softmax"])
    method = whence.InfluenceFunctions(head.model, head.train, head.factory)
    before = values_of(method, head)
    head.new = batches(head.phi_new[:, :D], (NEW_CLASSES + 1) % 3, size=2)
    assert np.abs(values_of(method, head) - before).max() > 0.1 * np.abs(before).max()


@pytest.mark.parametrize(
    "call", [f"lje.explain(new, k={N + 1})", f"lje.compute_top_k_from_training_dataset(train, {N + 1})"]
)
def test_a_warning_points_at_the_line_that_asked(call):
    head = Head(CASES["softmax"])
    names = {"lje": lje_of(head), "new": head.new, "train": head.train}
    with pytest.warns(UserWarning, match="all are returned") as caught:
        eval(compile(call, "a user's file", "eval"), names)
    assert [warning.filename for warning in caught] == ["a user's file"]


@pytest.mark.parametrize("count", [T - 1, T + 1])
def test_as_many_ids_as_samples(count):
    head = Head(CASES["softmax"])
    with pytest.raises(whence.WhenceError, match=f"ids: expected {T} ids"):
        lje_of(head).explain(head.new, ids=np.arange(count))
