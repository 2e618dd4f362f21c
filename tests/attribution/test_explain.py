"""``explain`` and ``suspects``: ids, both signs, turned values, and every score against the reference."""

import numpy as np
import pytest
import reference
from tolerances import SOLVE, assert_close

import whence

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

N, T, D = 21, 9, 3
DAMPING, STEP = 0.05, 0.2
RNG = np.random.default_rng(0)
X, X_NEW = RNG.normal(size=(N, D)), RNG.normal(size=(T, D))
CLASSES, NEW_CLASSES = RNG.integers(0, 3, N), RNG.integers(0, 3, T)
REALS = RNG.normal(size=(N, 2))
WEIGHT = RNG.uniform(0.5, 2, N)
NAMES = np.asarray([f"train-{i}" for i in range(N)])


def made(units, loss, y, weight=None, **options):
    keras.utils.set_random_seed(4)
    head = keras.layers.Dense(units, dtype="float64", bias_initializer="random_normal")
    model = keras.Sequential([keras.Input((D,), dtype="float64"), head])
    wrapped = whence.InfluenceModel(model, loss_function=loss)
    arrays = (X, y) if weight is None else (X, y, weight)
    train = tf.data.Dataset.from_tensor_slices(arrays).batch(6)
    options = {"step_size": STEP, "progress": False} | options
    lje = whence.RepresenterPointLJE(wrapped, train, whence.ExactIHVPFactory(DAMPING), **options)
    return lje, train


def expected(lje, y, loss, weight=None):
    phi = np.concatenate([X, np.ones((N, 1))], axis=1)
    dense = reference.Dense(lje.layer.theta, phi, y, loss, weight, DAMPING)
    return reference.LocalJacobianExpansion(dense, STEP)


def new_phi():
    return np.concatenate([X_NEW, np.ones((T, 1))], axis=1)


SOFTMAX = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SIGMOID = keras.losses.BinaryCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def softmax():
    return made(3, SOFTMAX, CLASSES, ids=NAMES)


@pytest.fixture(scope="module")
def sigmoid():
    return made(1, SIGMOID, (CLASSES > 0)[:, None])


# ---- explain ------------------------------------------------------------------------------------


def test_both_ends_of_the_values_with_their_ids_and_labels(softmax):
    lje, _ = softmax
    explanation = lje.explain((X_NEW, NEW_CLASSES), k=4, ids=[f"new-{i}" for i in range(T)])
    v = expected(lje, CLASSES, reference.softmax_cross_entropy).influences(new_phi())
    u = new_phi() @ lje.layer.theta
    outputs = u.argmax(axis=1)
    own = v[np.arange(T), :, outputs]
    best, worst = np.argsort(-own, axis=1)[:, :4], np.argsort(own, axis=1)[:, :4]
    np.testing.assert_array_equal(explanation.ids, NAMES[best])
    np.testing.assert_array_equal(explanation.opponent_ids, NAMES[worst])
    assert_close(explanation.values, np.take_along_axis(own, best, axis=1), SOLVE)
    assert_close(explanation.opponent_values, np.take_along_axis(own, worst, axis=1), SOLVE)
    np.testing.assert_array_equal(explanation.training_labels, CLASSES[best])
    np.testing.assert_array_equal(explanation.opponent_labels, CLASSES[worst])
    np.testing.assert_array_equal(explanation.labels, NEW_CLASSES)
    np.testing.assert_array_equal(explanation.predictions, outputs)
    np.testing.assert_array_equal(explanation.outputs, outputs)
    np.testing.assert_array_equal(explanation.sample_ids, [f"new-{i}" for i in range(T)])
    np.testing.assert_array_equal(explanation.signs, np.ones(T))
    assert_close(explanation.pre_activations, u.max(axis=1), SOLVE)
    assert_close(explanation.totals, own.sum(axis=1), SOLVE)
    assert len(explanation) == T
    assert explanation.about["n_samples"] == N
    assert explanation.about["k"] == 4


def test_a_single_sigmoid_output_is_turned_where_class_0_is_predicted(sigmoid):
    lje, _ = sigmoid
    labels = (NEW_CLASSES > 0)[:, None]
    explanation = lje.explain((X_NEW, labels), k=N)
    y = (CLASSES > 0)[:, None]
    v = expected(lje, y, reference.binary_cross_entropy).influences(new_phi())[:, :, 0]
    u = (new_phi() @ lje.layer.theta)[:, 0]
    assert (u > 0).any()
    assert (u < 0).any()
    signs = np.where(u < 0, -1, 1)
    np.testing.assert_array_equal(explanation.signs, signs)
    np.testing.assert_array_equal(explanation.predictions, u > 0)
    np.testing.assert_array_equal(explanation.labels, labels[:, 0])
    np.testing.assert_array_equal(explanation.outputs, np.zeros(T))
    assert_close(explanation.values, -np.sort(-v * signs[:, None], axis=1), SOLVE)
    assert_close(explanation.opponent_values, np.sort(v * signs[:, None], axis=1), SOLVE)
    assert_close(explanation.pre_activations, np.abs(u), SOLVE)
    assert_close(explanation.totals, v.sum(axis=1) * signs, SOLVE)


def test_the_contract_leaves_a_single_sigmoid_output_as_it_is(sigmoid):
    lje, train = sigmoid
    evaluated = tf.data.Dataset.from_tensor_slices((X_NEW, (NEW_CLASSES > 0)[:, None])).batch(T)
    explanation = lje.explain(evaluated, k=N)
    unturned = np.sort(explanation.values * explanation.signs[:, None], axis=1)
    ((_, inner),) = lje.estimate_influence_values_in_batches(evaluated, train)
    values = np.concatenate([v for _, v in inner], axis=1)
    assert_close(np.sort(values, axis=1), unturned, SOLVE)
    ((_, best, _),) = lje.top_k(evaluated, train, k=2, d_type=np.float64)
    assert_close(best, unturned[:, :-3:-1], SOLVE)


def test_outputs_may_be_chosen(softmax):
    lje, _ = softmax
    v = expected(lje, CLASSES, reference.softmax_cross_entropy).influences(new_phi())
    chosen = RNG.integers(0, 3, T)
    for outputs in (chosen, 2):
        explanation = lje.explain((X_NEW, NEW_CLASSES), k=1, outputs=outputs)
        np.testing.assert_array_equal(explanation.outputs, np.broadcast_to(outputs, T))
        own = v[np.arange(T), :, np.broadcast_to(outputs, T)]
        assert_close(explanation.values[:, 0], own.max(axis=1), SOLVE)
        np.testing.assert_array_equal(explanation.predictions, (new_phi() @ lje.layer.theta).argmax(1))


def test_samples_without_labels_are_explained_too(softmax):
    lje, _ = softmax
    labelled = lje.explain((X_NEW, NEW_CLASSES), k=2)
    for samples in (
        (X_NEW,),
        [X_NEW[:4], X_NEW[4:]],
        tf.data.Dataset.from_tensor_slices(X_NEW).batch(2),
        tf.data.Dataset.from_tensor_slices((X_NEW,)).batch(4),
    ):
        explanation = lje.explain(samples, k=2)
        assert explanation.labels is None
        np.testing.assert_array_equal(explanation.ids, labelled.ids)
        np.testing.assert_array_equal(explanation.sample_ids, np.arange(T))
        assert "label" not in explanation.to_frame()


def test_regression_explains_values():
    lje, train = made(2, "mean_squared_error", REALS)
    explanation = lje.explain((X_NEW, REALS[:T]), k=2, outputs=1)
    u = new_phi() @ lje.layer.theta
    v = expected(lje, REALS, reference.squared_error).influences(new_phi())[:, :, 1]
    np.testing.assert_array_equal(explanation.signs, np.ones(T))  # nothing is turned
    assert_close(explanation.values, -np.sort(-v, axis=1)[:, :2], SOLVE)
    assert_close(explanation.pre_activations, u[:, 1], SOLVE)
    assert len(lje.suspects(train, k=2)) == 2


def test_a_frame_has_a_row_for_each_pair(softmax):
    lje, _ = softmax
    explanation = lje.explain((X_NEW, NEW_CLASSES), k=2)
    frame = explanation.to_frame()
    assert len(frame) == T * 4
    first = frame[frame["sample"] == 0]
    assert first["side"].tolist() == ["supporter"] * 2 + ["opponent"] * 2
    assert first["rank"].tolist() == [1, 2, 1, 2]
    assert first["training_id"].tolist() == [*explanation.ids[0], *explanation.opponent_ids[0]]
    assert first["value"].tolist() == [*explanation.values[0], *explanation.opponent_values[0]]
    assert first["label"].unique().tolist() == [NEW_CLASSES[0]]


# ---- suspects -----------------------------------------------------------------------------------


def margins(u, y):
    """How far each row of pre-activations speaks for its class."""
    return np.asarray([row[c] - np.delete(row, c).max() for row, c in zip(u, y, strict=True)])


def scores_of(suspects):
    """Scores in the order of the training set."""
    every = np.empty(N)
    every[suspects.ids] = suspects.scores
    return every


def test_suspects_by_every_score_match_the_reference():
    lje, train = made(3, SOFTMAX, CLASSES, WEIGHT)
    lje_of = expected(lje, CLASSES, reference.softmax_cross_entropy, WEIGHT)
    dense = lje_of.dense
    u = dense.phi @ dense.theta
    # The solver stands at theta', so the step is the reference's at theta'; see MATH on leave-one-out.
    left_out = u + lje_of.expanded.self_products() / N
    by_hand = {
        "leave_one_out": -margins(left_out, CLASSES),
        "self_influence": lje_of.self_influences(u.argmax(axis=1)),
        "loss": np.asarray(
            [reference.softmax_cross_entropy(row, y) for row, y in zip(u, dense.target, strict=True)]
        ),
    }
    for score, values in by_hand.items():
        suspects = lje.suspects(train, k=None, score=score)
        assert suspects.score == score
        assert suspects.about["score"] == score
        assert (np.diff(suspects.scores) <= 0).all()
        assert_close(scores_of(suspects), values, SOLVE)
        np.testing.assert_array_equal(suspects.labels, CLASSES[suspects.ids])
        np.testing.assert_array_equal(suspects.predictions, u.argmax(axis=1)[suspects.ids])
        few = lje.suspects(train, k=4, score=score)
        np.testing.assert_array_equal(few.ids, suspects.ids[:4])
    # The default; these features spread over too few directions for "ridge".
    assert lje.suspects(train, k=1).score == "leave_one_out"


def test_leave_one_out_is_near_the_layer_refitted_without_the_sample():
    """On a layer at its optimum, where the approximation of the first order is meant to hold."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 2))
    y = (x[:, 0] + 0.5 * rng.normal(size=60) > 0).astype(np.int64)
    phi = np.concatenate([x, np.ones((60, 1))], axis=1)
    start = reference.Dense(np.zeros((3, 2)), phi, y, reference.softmax_cross_entropy, lam=0.05)
    theta = start.refit()
    head = keras.layers.Dense(2, dtype="float64")
    model = keras.Sequential([keras.Input((2,), dtype="float64"), head])
    model.set_weights([theta[:2], theta[2]])
    lje = whence.RepresenterPointLJE(
        whence.InfluenceModel(model, loss_function=SOFTMAX),
        (x, y),
        whence.ExactIHVPFactory(damping=0.05),
        step_size=0.0,
        progress=False,
    )
    found = lje.suspects((x, y), k=12, score="leave_one_out")
    refitted = [
        -margins((phi[i] @ start.at(theta).without(i).refit())[None], y[i : i + 1])[0] for i in found.ids
    ]
    fitted = -margins(phi @ theta, y)[found.ids]
    moved = np.asarray(refitted) - fitted
    assert (moved > 0).all()  # a sample speaks for its own label
    np.testing.assert_allclose(found.scores - fitted, moved, rtol=0.15)


def test_suspects_of_a_single_sigmoid_output(sigmoid):
    lje, train = sigmoid
    y = (CLASSES > 0)[:, None]
    lje_of = expected(lje, y, reference.binary_cross_entropy)
    u = lje_of.dense.phi @ lje_of.dense.theta
    left_out = u + lje_of.expanded.self_products() / N
    suspects = lje.suspects(train, k=None, score="leave_one_out")
    assert_close(scores_of(suspects), -((2 * y - 1) * left_out)[:, 0], SOLVE)
    np.testing.assert_array_equal(suspects.labels, y[suspects.ids, 0])
    np.testing.assert_array_equal(suspects.predictions, (u > 0)[suspects.ids, 0])
    by_self_influence = lje.suspects(train, k=None, score="self_influence")
    assert_close(scores_of(by_self_influence), lje_of.self_influences(np.zeros(N, int)), SOLVE)


def test_suspects_answer_in_the_ids_of_the_user(softmax):
    lje, train = softmax
    suspects = lje.suspects(train, k=5)
    assert set(suspects.ids) <= set(NAMES)
    frame = suspects.to_frame()
    assert frame["id"].tolist() == suspects.ids.tolist()
    assert frame["score"].tolist() == suspects.scores.tolist()
    assert frame["label"].tolist() == suspects.labels.tolist()
    assert len(suspects) == len(frame) == 5
    shuffled = tf.data.Dataset.from_tensor_slices((X, CLASSES)).shuffle(N, seed=1).batch(4)
    np.testing.assert_array_equal(lje.suspects(shuffled, k=5).ids, suspects.ids)


def test_a_wrong_label_is_the_first_suspect():
    x = np.concatenate([RNG.normal(-3, 0.3, size=(20, D)), RNG.normal(3, 0.3, size=(20, D))])
    y = np.repeat([0, 1], 20)
    y[7] = 1
    model = keras.Sequential([keras.Input((D,), dtype="float64"), keras.layers.Dense(2, dtype="float64")])
    model.set_weights([np.tile([-1.0, 1.0], (D, 1)), np.zeros(2)])
    lje = whence.RepresenterPointLJE(
        whence.InfluenceModel(model, loss_function=SOFTMAX), (x, y), whence.ExactIHVPFactory()
    )
    for score in ("leave_one_out", "loss"):
        found = lje.suspects((x, y), k=1, score=score)
        assert (found.ids[0], found.labels[0], found.predictions[0]) == (7, 1, 0)
