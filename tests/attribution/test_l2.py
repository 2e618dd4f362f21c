"""Representer points with L2: the refit, the representer theorem, signs, and what is refused."""

import numpy as np
import pytest
import reference
from tolerances import SOLVE, assert_close

import whence

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

from heads import CASES, CLASSES, Head, N, T, self_values_of, values_of

from whence.methods.refit import DoubleBlocks, _Objective

L2 = 0.02
#: Weights are off by the gradient norm, 1e-10, over 2 * L2; alphas by a curvature times that over N * L2.
REFIT = 1e-7


def made(head, **options):
    return whence.RepresenterPointL2(head.model, head.train, L2, progress=False, **options)


def followed(head):
    """The reference with the model's own predictions for labels."""
    u = head.phi @ head.dense.theta
    if head.case.plain is reference.softmax_cross_entropy:
        target = np.exp(u) / np.exp(u).sum(axis=1, keepdims=True)
    else:
        target = 1 / (1 + np.exp(-u)) if head.case.plain is reference.binary_cross_entropy else u
    return target


@pytest.fixture(scope="module", params=CASES, ids=str)
def head(request):
    return Head(CASES[request.param])


@pytest.fixture(scope="module", params=["predictions", "labels"])
def fitted(request, head):
    """Method, and the reference at the minimum of the regularised loss."""
    target = followed(head) if request.param == "predictions" else head.case.labels
    start = reference.Dense(
        np.zeros_like(head.dense.theta), head.phi, target, head.case.plain, head.dense.weight, 2 * L2
    )
    return made(head, fit_to=request.param), start.at(start.refit()), head


@pytest.mark.pairwise
def test_refit_is_the_minimum(fitted):
    method, expected, _ = fitted
    assert_close(method.refitted_layer.theta, expected.theta, REFIT)
    assert method.gradient_norm <= 1e-10


@pytest.mark.pairwise
def test_values_are_alpha_times_the_kernel(fitted):
    method, expected, head = fitted
    alpha = -expected.residuals / (2 * L2 * N)
    kernel = head.phi_new @ head.phi.T
    own = alpha[:, head.outputs_new].T * kernel
    assert_close(values_of(method, head), own, REFIT)
    outputs = np.argmax(head.phi @ head.dense.theta, axis=1)
    assert_close(self_values_of(method, head), np.abs(alpha[np.arange(N), outputs]), REFIT)


@pytest.mark.pairwise
def test_values_sum_to_what_the_refitted_layer_says(fitted):
    method, expected, head = fitted
    said = head.phi_new @ expected.theta
    total = said[np.arange(T), head.outputs_new]
    assert_close(values_of(method, head).sum(axis=1), total, REFIT)
    explanation = method.explain(head.new)
    assert_close(explanation.totals * explanation.signs, total, REFIT)


def test_without_a_bias(head):
    plain = Head(head.case, use_bias=False)
    method = made(plain, fit_to="labels")
    total = (plain.phi_new @ method.refitted_layer.theta)[np.arange(T), plain.outputs_new]
    assert_close(values_of(method, plain).sum(axis=1), total, REFIT)


def test_passes_over_the_training_set_are_counted(head):
    method = made(head)
    objective = _Objective(method.layer, DoubleBlocks(method.index), 0.1)
    assert objective.evaluations == 0
    objective(np.zeros(method.layer.theta.size))
    assert objective.evaluations == 1


def test_the_refit_descends_what_its_gradient_is_of(head):
    method = made(head)
    objective = _Objective(method.layer, DoubleBlocks(method.index), 0.1)
    point, way = np.random.default_rng(0).normal(size=(2, method.layer.theta.size))
    (up, _), (down, _) = (objective(point + step * way) for step in (1e-5, -1e-5))
    assert (up - down) / 2e-5 == pytest.approx(objective(point)[1] @ way, rel=1e-7)


def test_single_precision_is_complete_to_a_millionth(head):
    single = Head(head.case, dtype="float32")
    method = made(single)
    total = (single.phi_new @ method.refitted_layer.theta)[np.arange(T), single.outputs_new]
    assert_close(values_of(method, single).sum(axis=1, dtype=float), total, 1e-6)


def test_leaving_out_drops_the_own_term(fitted):
    method, expected, head = fitted
    alpha = -expected.residuals / (2 * L2 * N)
    own = alpha * (head.phi**2).sum(axis=1, keepdims=True)
    (shard,) = method.index.shards
    assert_close(method.rule.leave_one_out(shard.block), head.phi @ expected.theta - own, REFIT)


def test_a_sample_speaks_for_its_label_where_features_agree():
    head = Head(CASES["softmax"], weighted=False)
    method = made(head, fit_to="labels")
    alpha = method.index.shards[0].coefficients
    assert (alpha[np.arange(N), CLASSES] > 0).all()
    others = alpha.copy()
    others[np.arange(N), CLASSES] = -1
    assert (others < 0).all()


def test_a_wrong_label_leaves_its_trace_only_in_a_fit_to_labels():
    """Refitted to a model that does not follow a wrong label, its alpha is nearly 0."""
    case = CASES["softmax"]
    head = Head(case, weighted=False)
    labels = np.argmax(head.phi @ np.random.default_rng(1).normal(size=(5, 3)), axis=1)
    head.set_weights(reference.Dense(head.dense.theta, head.phi, labels, case.plain, lam=0.01).refit())
    u = np.sort(head.phi @ whence.InfluenceModel(head.keras_model).layer.theta, axis=1)
    wrong = int(np.argmax(u[:, -1] - u[:, -2]))
    given = labels.copy()
    given[wrong] = (given[wrong] + 1) % 3
    train = (head.phi[:, :-1], given)
    rank = {}
    for fit_to in ("labels", "predictions"):
        method = whence.RepresenterPointL2(
            whence.InfluenceModel(head.keras_model), train, L2, fit_to=fit_to, label="given"
        )
        rank[fit_to] = method.suspects(train, None, score="self_influence").ids.tolist().index(wrong)
    assert rank["labels"] == 0
    assert rank["predictions"] > N // 2


def test_results_say_what_the_refit_followed(fitted):
    method, _, head = fitted
    about = method.explain(head.new).about
    assert about["fit_to"] == method.fit_to
    assert about["l2"] == L2
    assert about["decomposes_prediction"] is True
    assert about["gradient_norm"] <= 1e-10


def test_batches_change_nothing():
    case = CASES["softmax"]
    one, other = Head(case), Head(case)
    other.train = other.train.unbatch().batch(5)
    assert_close(values_of(made(one), one), values_of(made(other), other), SOLVE)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"l2": 0.0}, "l2"),
        ({"l2": float("nan")}, "l2"),
        ({"fit_to": "both"}, "fit_to"),
        ({"gradient_norm": 0.0}, "gradient_norm"),
        ({"gradient_norm": 1e-300}, "gradient_norm"),
        ({"label": "mine"}, "label"),
    ],
)
def test_bad_arguments_are_named(options, argument):
    head = Head(CASES["softmax"])
    with pytest.raises(whence.WhenceError, match=argument):
        whence.RepresenterPointL2(head.model, head.train, **{"l2": L2, "progress": False} | options)


def test_a_loss_without_a_closed_form_has_no_predictions_to_follow():
    import keras

    head = Head(CASES["squared error"])
    head.keras_model.compile(loss=keras.losses.Huber())
    model = whence.InfluenceModel(head.keras_model)
    with pytest.raises(whence.WhenceError, match="fit_to='labels'"):
        whence.RepresenterPointL2(model, head.train, L2, progress=False)
    method = whence.RepresenterPointL2(model, head.train, L2, fit_to="labels", progress=False)
    total = (head.phi_new @ method.refitted_layer.theta)[np.arange(T), head.outputs_new]
    assert_close(values_of(method, head).sum(axis=1), total, REFIT)
