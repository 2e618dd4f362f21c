"""Losses on margins, votes and counts against complex-step derivatives of what they are by definition."""

import numpy as np
import pytest
import reference
from tolerances import DIFFERENCES, FLOAT64, assert_close

from whence import WhenceError
from whence.layers.margin_losses import BrierScore, Exponential, ModifiedHuber, Poisson, SquaredHinge


def squared_hinge(u, y):
    return np.mean([(1 - m) ** 2 if m.real < 1 else 0 * m for m in (2 * y - 1) * u])


def modified_huber(u, y):
    margins = (2 * y - 1) * u
    return np.mean([-4 * m if m.real < -1 else ((1 - m) ** 2 if m.real < 1 else 0 * m) for m in margins])


def exponential(u, y):
    return np.mean(np.exp(-(2 * y - 1) * u))


def poisson(u, y):
    return np.mean(np.exp(u) - y * u)


BY_DEFINITION = [
    (SquaredHinge(), squared_hinge),
    (ModifiedHuber(), modified_huber),
    (Exponential(), exponential),
    (Poisson(), poisson),
    (Poisson(eps=0.3), lambda u, y: np.mean(np.exp(u) - y * np.log(np.exp(u) + 0.3))),
    (BrierScore(), reference.squared_error),
]


@pytest.mark.parametrize(("loss", "definition"), BY_DEFINITION, ids=lambda x: getattr(x, "name", ""))
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_values_residuals_and_curvatures(loss, definition, n_outputs, rng):
    u = 1.5 * rng.normal(size=(6, n_outputs))
    target = rng.integers(0, 2, size=(6, n_outputs)).astype(float)
    value, residual = loss.value(u, target), loss.residual(u, target)
    curvature = loss.curvature(u, target).matrices()
    for i in range(len(u)):

        def ell(v, i=i):
            return definition(v, target[i])

        assert_close(value[i], ell(u[i]).real, FLOAT64)
        assert_close(residual[i], reference.gradient(ell, u[i]), FLOAT64)
        assert_close(curvature[i], reference.hessian(ell, u[i]), DIFFERENCES * 10)


def test_predictions_margins_and_labels_by_hand():
    u, far = np.asarray([[0.0, np.log(2.0)], [-1.0, -3.0]]), np.asarray([[np.log(3.0)]])
    np.testing.assert_allclose(Poisson().predictions(u), np.exp(u))
    np.testing.assert_allclose(Poisson(says_log=True).predictions(u), u)
    np.testing.assert_allclose(Poisson().predictions(far), [3.0])
    np.testing.assert_allclose(Poisson().margin(far, np.asarray([[2.0]])), [2 * np.log(3.0) - 3])
    votes, given = np.asarray([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), np.eye(3)[[1, 2]]
    np.testing.assert_allclose(BrierScore().margin(votes, given), [-0.2, 0.7])
    np.testing.assert_array_equal(BrierScore().predictions(votes), [0, 2])
    for loss in (SquaredHinge(), ModifiedHuber(), Exponential()):
        np.testing.assert_array_equal(loss.predictions(u), [[0, 1], [0, 0]])  # each by itself
        np.testing.assert_array_equal(loss.predictions(far), [1])


def test_poisson_keeps_its_digits_where_the_mean_is_next_to_nothing():
    loss, u, y = Poisson(eps=1e-8), np.asarray([[-60.0], [60.0]]), np.asarray([[2.0], [0.0]])
    # u = -60: the mean is nothing beside eps, and the loss -2 log(eps).
    assert_close(loss.value(u, y), [-2 * np.log(1e-8), np.exp(60)], FLOAT64)
    shares = np.exp(-60 - np.log(1e-8))
    assert_close(loss.residual(u, y)[0, 0], np.exp(-60) - 2 * shares, FLOAT64)
    assert_close(loss.residual(u, loss.following(u)[1]), np.zeros((2, 1)), FLOAT64)


def test_what_a_loss_is_for():
    for loss in (SquaredHinge(), ModifiedHuber(), Exponential(), BrierScore()):
        assert loss.is_classification
    assert not Poisson().is_classification
    assert not Poisson().margin_compares_outputs  # its margin is minus the loss
    assert BrierScore().margin_compares_outputs


def test_brier_score_names_a_class_outside_the_outputs():
    with pytest.raises(WhenceError, match="class numbers from 0 to 2, got class 3"):
        BrierScore().encode(np.asarray([0, 3]), 3, "batch 0")


def test_poisson_takes_no_negative_counts():
    with pytest.raises(WhenceError, match="numbers >= 0, got -1"):
        Poisson().encode(np.asarray([1.0, -1.0]), 1, "batch 0")


def test_fingerprints_tell_the_losses_apart():
    assert len({loss.fingerprint() for loss, _ in BY_DEFINITION}) == len(BY_DEFINITION)
