"""Gradient products, similarity and the loss: against loops, and their signs."""

import numpy as np
import pytest
from tolerances import FLOAT64, assert_close

import whence

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

from heads import CASES, CLASSES, Head, N, T, batches, self_values_of, values_of


@pytest.fixture(scope="module", params=CASES, ids=str)
def head(request):
    return Head(CASES[request.param])


def made(kind, head, **options):
    return kind(head.model, head.train, progress=False, **options)


def asked(head, effect_on):
    """Gradients of what is asked, ``(T, d, C)``: of minus the loss, or of the predicted output."""
    if effect_on == "loss":
        return -head.dense_new.gradients
    eye = np.eye(head.case.units)
    return np.stack([np.outer(p, eye[j]) for p, j in zip(head.phi_new, head.outputs_new, strict=True)])


def own_asked(head, effect_on):
    if effect_on == "loss":
        return -head.dense.gradients
    eye = np.eye(head.case.units)
    outputs = np.argmax(head.phi @ head.dense.theta, axis=1)
    return np.stack([np.outer(p, eye[j]) for p, j in zip(head.phi, outputs, strict=True)])


def norms(matrices):
    return np.sqrt((matrices**2).sum(axis=(1, 2)))


@pytest.mark.pairwise
@pytest.mark.parametrize("effect_on", ["loss", "pre_activation"])
def test_dot_products(head, effect_on):
    method = made(whence.GradientDotProduct, head, effect_on=effect_on)
    expected = -np.einsum("tdc,ndc->tn", asked(head, effect_on), head.dense.gradients) / N
    assert_close(values_of(method, head), expected, FLOAT64)
    own = -np.einsum("ndc,ndc->n", own_asked(head, effect_on), head.dense.gradients)
    own = own if effect_on == "loss" else np.abs(own) / N
    assert_close(self_values_of(method, head), own, FLOAT64)
    signs = method.explain(head.new).signs
    assert_close(method.explain(head.new).totals * signs, expected.sum(axis=1), FLOAT64)


@pytest.mark.pairwise
@pytest.mark.parametrize("effect_on", ["loss", "pre_activation"])
def test_cosines(head, effect_on):
    method = made(whence.GradientCosine, head, effect_on=effect_on)
    of, gradients = asked(head, effect_on), head.dense.gradients
    expected = -np.einsum("tdc,ndc->tn", of, gradients) / np.outer(norms(of), norms(gradients))
    values = values_of(method, head)
    assert_close(values, expected, FLOAT64)
    assert np.abs(values).max() <= 1 + FLOAT64
    own = own_asked(head, effect_on)
    cosines = np.abs(np.einsum("ndc,ndc->n", own, gradients)) / (norms(own) * norms(gradients))
    assert_close(self_values_of(method, head), cosines, FLOAT64)
    signs = method.explain(head.new).signs
    assert_close(method.explain(head.new).totals * signs, expected.sum(axis=1), FLOAT64)


def test_a_sample_without_a_gradient_has_no_direction():
    case = CASES["squared error"]
    head = Head(case, weighted=False, use_bias=False)
    x = head.phi.copy()
    x[3] = 0
    head.train = batches(x, case.labels)
    method = made(whence.GradientCosine, head)
    assert (values_of(method, head)[:, 3] == 0).all()
    assert self_values_of(method, head)[3] == 0


def test_a_step_of_gradient_descent_does_what_the_values_say(head):
    """The share of a sample in a small step: the label's loss falls, the output rises, by the value."""
    gradients, theta = head.dense.gradients, head.dense.theta
    losses = values_of(made(whence.GradientDotProduct, head), head)
    raised = values_of(made(whence.GradientDotProduct, head, effect_on="pre_activation"), head)
    step, new = 1e-6, head.dense_new
    for i in (0, 11):
        moved = theta - step * gradients[i] / N
        pairs = list(zip(new.phi, new.target, strict=True))
        fall = [new.loss(p @ theta, y) - new.loss(p @ moved, y) for p, y in pairs]
        assert_close(np.asarray(fall) / step, losses[:, i], 1e-4)
        rise = (head.phi_new @ (moved - theta))[np.arange(T), head.outputs_new]
        assert_close(rise / step, raised[:, i], 1e-6)


def test_leaving_out_of_a_step(head):
    method = made(whence.GradientDotProduct, head)
    dense = head.dense
    moved = np.einsum("nd,ndc->nc", dense.phi, dense.gradients) / N
    assert_close(
        method.rule.leave_one_out(method.index.shards[0].block), dense.phi @ dense.theta + moved, FLOAT64
    )


def test_cosines_leave_nothing_out(head):
    method = made(whence.GradientCosine, head)
    with pytest.raises(whence.WhenceError, match="score"):
        method.suspects(head.train, 3)
    assert len(method.suspects(head.train, 3, score="loss")) == 3


# ---- baselines ----------------------------------------------------------------------------------


@pytest.mark.pairwise
@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
def test_similarity_is_a_vote_of_neighbours(head, use_bias):
    plain = Head(head.case, use_bias=use_bias)
    method = made(whence.FeatureSimilarity, plain)
    x, new = plain.phi, plain.phi_new
    if use_bias:
        x, new = x[:, :-1], new[:, :-1]
    x, new = (a / np.sqrt((a**2).sum(axis=1, keepdims=True)) for a in (x, new))
    votes = plain.dense.target - plain.dense.target.mean(axis=0)
    expected = (new @ x.T) * votes[:, plain.outputs_new].T
    assert_close(values_of(method, plain), expected, FLOAT64)
    explanation = method.explain(plain.new)
    assert_close(explanation.totals * explanation.signs, expected.sum(axis=1), FLOAT64)
    outputs = np.argmax(plain.phi @ plain.dense.theta, axis=1)
    assert_close(self_values_of(method, plain), np.abs(votes[np.arange(N), outputs]), FLOAT64)
    others = x @ (x.T @ votes) - votes
    assert_close(method.rule.leave_one_out(method.index.shards[0].block), others, FLOAT64)


def test_similar_samples_speak_for_their_label():
    head = Head(CASES["softmax"])
    method = made(whence.FeatureSimilarity, head)
    own = (head.phi[:, :-1], CLASSES)
    values = method.influences(own, outputs=CLASSES)
    assert (np.diag(values) > 0).all()
    other = method.influences(own, outputs=(CLASSES + 1) % 3)
    assert (np.diag(other) < 0).all()


def test_training_loss(head):
    method = made(whence.TrainingLoss, head)
    dense = head.dense
    losses = np.array(
        [dense.loss(p @ dense.theta, y) for p, y in zip(dense.phi, dense.target, strict=True)]
    )
    expected = losses * -np.sign(dense.residuals)[:, head.outputs_new].T
    assert_close(values_of(method, head), expected, FLOAT64)
    assert_close(self_values_of(method, head), losses, FLOAT64)
    explanation = method.explain(head.new)
    assert_close(explanation.totals * explanation.signs, expected.sum(axis=1), FLOAT64)
    assert_close(method.rule.leave_one_out(method.index.shards[0].block), dense.phi @ dense.theta, FLOAT64)


def test_training_loss_of_outputs_that_are_right_to_the_last_bit_is_no_vote():
    head = Head(CASES["squared error"])
    head.set_weights(np.zeros_like(head.dense.theta))
    labels = np.tile([1.0, 0.0], (N, 1))  # the loss is not zero, the residual of the second output is
    head.train = batches(head.phi[:, :-1], labels)
    votes = made(whence.TrainingLoss, head).influences(head.new, outputs=1)
    assert np.array_equal(votes, np.zeros((T, N)))


def test_training_loss_without_a_bias_names_no_prediction(head):
    plain = Head(head.case, use_bias=False)
    method = made(whence.TrainingLoss, plain)
    assert self_values_of(method, plain).shape == (N,)
    with pytest.raises(whence.WhenceError, match="bias"):
        method.explain(plain.new)


@pytest.mark.parametrize("kind", [whence.FeatureSimilarity, whence.TrainingLoss])
def test_sequences_are_refused(kind):
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Dense(2)])
    model.compile(loss=keras.losses.MeanSquaredError())
    train = np.ones((6, 4, 3), "float32"), np.ones((6, 4, 2), "float32")
    with pytest.raises(whence.WhenceError, match="sequence"):
        kind(whence.InfluenceModel(model), train)


# ---- what all siblings share --------------------------------------------------------------------

SIBLINGS = {
    "L2": lambda head: whence.RepresenterPointL2(head.model, head.train, progress=False),
    "influence": lambda head: whence.InfluenceFunctions(
        head.model, head.train, head.factory, progress=False
    ),
    "relative influence": lambda head: whence.InfluenceFunctions(
        head.model, head.train, head.factory, normalisation="loss", effect_on="pre_activation"
    ),
    "dot product": lambda head: made(whence.GradientDotProduct, head),
    "cosine": lambda head: made(whence.GradientCosine, head),
    "similarity": lambda head: made(whence.FeatureSimilarity, head),
    "loss": lambda head: made(whence.TrainingLoss, head),
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_the_five_methods_explain_and_suspects_agree(name, tmp_path):
    head = Head(CASES["softmax"])
    method = SIBLINGS[name](head)
    values = values_of(method, head)
    own = self_values_of(method, head)
    assert values.shape == (T, N)
    _, best = method.compute_top_k_from_training_dataset(head.train, 4)
    assert_close(best, np.sort(own)[::-1][:4], FLOAT64)
    found = np.concatenate([v.numpy() for _, v, _ in method.top_k(head.new, head.train, k=4)])
    assert_close(found, -np.sort(-values, axis=1)[:, :4], 1e-6)
    assert_close(method.explain(head.new, k=4).values, -np.sort(-values, axis=1)[:, :4], FLOAT64)
    stored = method.compute_influence_vector(head.train, tmp_path / "vectors")
    again = method.compute_influence_vector(head.train, tmp_path / "vectors")
    for (_, (phi, a)), (_, (phi_again, a_again)) in zip(stored, again, strict=True):
        assert_close(phi_again, phi, FLOAT64)
        assert_close(a_again, a, FLOAT64)
    kept = method.estimate_influence_values_in_batches(
        head.new, head.train, load_influence_vector_path=tmp_path / "vectors"
    )
    assert_close(np.concatenate([np.concatenate([v for _, v in d], 1) for _, d in kept]), values, FLOAT64)
    fresh = method.estimate_influence_values_in_batches(
        head.new, head.train, influence_vector_in_cache=whence.CACHE.NO_CACHE
    )
    assert_close(np.concatenate([np.concatenate([v for _, v in d], 1) for _, d in fresh]), values, FLOAT64)
    for score in ("self_influence", "loss") + (() if name == "cosine" else ("leave_one_out",)):
        suspects = method.suspects(head.train, None, score=score)
        assert sorted(suspects.ids) == list(range(N))
        assert (np.diff(suspects.scores) <= 0).all()
    about = method.explain(head.new).about
    assert about["method"] == type(method).__name__
    assert about["decomposes_prediction"] is (name == "L2")  # complete by the representer theorem


@pytest.mark.parametrize("name", SIBLINGS)
def test_single_precision_gives_the_same(name):
    wide, narrow = Head(CASES["softmax"]), Head(CASES["softmax"], dtype="float32")
    narrow.set_weights(wide.dense.theta)
    values = values_of(SIBLINGS[name](narrow), narrow)
    assert values.dtype == np.float32
    # Float32 rounding of features and weights, times the condition number of a damped Hessian.
    assert_close(values, values_of(SIBLINGS[name](wide), wide), 1e-4)
