"""Answers of several models averaged, against the means of theirs."""

import numpy as np
import pytest
import tolerances

import whence
from whence import WhenceError

linear = pytest.importorskip("sklearn.linear_model")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4))
Y = (X @ RNG.normal(size=(4, 3))).argmax(axis=1)
TEST = RNG.normal(size=(6, 4)), RNG.integers(0, 3, 6)


def methods(kind=whence.RepresenterPointLJE, **options):
    made = []
    for strength in (0.1, 1.0, 10.0):
        model = whence.InfluenceModel(linear.LogisticRegression(C=strength).fit(X, Y))
        made.append(kind(model, (X, Y), whence.ExactIHVPFactory(), **options))
    return made


def predicted(each):
    return np.mean([m.influence_model.model.decision_function(TEST[0]) for m in each], axis=0).argmax(
        axis=1
    )


def test_values_are_means_for_the_output_that_all_predict_together():
    each = methods()
    outputs = predicted(each)
    assert any((m.influence_model.model.predict(TEST[0]) != outputs).any() for m in each)
    expected = np.mean([m.influences(TEST, outputs=outputs) for m in each], axis=0)
    both = whence.average(each)
    tolerances.assert_close(both.influences(TEST), expected, tolerances.FLOAT64)
    explanation = both.explain(TEST, k=3)
    order = np.argsort(-expected, axis=1)[:, :3]
    assert np.array_equal(explanation.ids, order)
    assert np.array_equal(explanation.opponent_ids, np.argsort(expected, axis=1)[:, :3])
    assert np.array_equal(explanation.outputs, outputs)
    tolerances.assert_close(explanation.values, np.take_along_axis(expected, order, 1), tolerances.FLOAT64)
    tolerances.assert_close(explanation.totals, expected.sum(axis=1), tolerances.FLOAT64)
    assert explanation.about["n_models"] == 3
    assert np.array_equal(explanation.labels, TEST[1])


def test_outputs_groups_and_losses():
    each = methods()
    groups = np.arange(40) % 2
    for options in ({"outputs": 1}, {"outputs": 2, "groups": groups}):
        expected = np.mean([m.influences(TEST, **options) for m in each], axis=0)
        tolerances.assert_close(whence.average(each).influences(TEST, **options), expected, 1e-10)
    losses = methods(whence.InfluenceFunctions)
    expected = np.mean([m.influences(TEST) for m in losses], axis=0)
    tolerances.assert_close(whence.average(losses).influences(TEST), expected, tolerances.FLOAT64)


@pytest.mark.parametrize("score", ["loss", "leave_one_out", "self_influence"])
def test_suspects_are_ranked_by_the_mean(score):
    each = methods()
    expected = np.zeros(40)
    for method in each:
        found = method.suspects(k=None, score=score)
        expected[found.ids] += found.scores / 3
    found = whence.average(each).suspects(k=5, score=score)
    assert np.array_equal(found.ids, np.argsort(-expected, kind="stable")[:5])
    tolerances.assert_close(found.scores, expected[found.ids], tolerances.FLOAT64)


def test_what_does_not_fit_together_is_refused():
    each = methods()
    for wrong in ([], each[0], [each[0], "lje"]):
        with pytest.raises(WhenceError, match="methods: expected a list of methods"):
            whence.average(wrong)
    with pytest.raises(WhenceError, match="the same kind of method"):
        whence.average([each[0], methods(whence.InfluenceFunctions)[0]])
    with pytest.raises(WhenceError, match="the same label"):
        whence.average([each[0], methods(label="given")[0]])
    other = whence.RepresenterPointLJE(
        each[0].influence_model, (X[::-1], Y[::-1]), whence.ExactIHVPFactory()
    )
    with pytest.raises(WhenceError, match="the same training set"):
        whence.average([each[0], other])
