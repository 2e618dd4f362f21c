"""The model of label noise: what it finds of noise that was planted, and its formulas."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

import whence
from whence.methods.label_noise import LabelNoise, NoiseModel
from whence.methods.ridge import Ridge as RidgeVotes

PLANTED = np.asarray([[0.9, 0.1, 0.0], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]])


def planted(noise=PLANTED, n=3000, seed=0):
    """Evidence for each class, given labels drawn by ``noise``, and the true ones."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, len(noise), n)
    evidence = [size * np.eye(len(noise))[true] + rng.normal(size=(n, len(noise))) for size in (3.0, 4.0)]
    given = (rng.random(n)[:, None] > np.cumsum(noise, axis=1)[true]).sum(axis=1)
    return evidence, given, true


def test_planted_noise_is_found():
    evidence, given, true = planted()
    found = LabelNoise.of(evidence, given)
    wrong = given != true
    np.testing.assert_allclose(found.noise, PLANTED, atol=0.04)
    n_wrong, lowest, highest = found.count()
    assert n_wrong == pytest.approx(wrong.sum(), rel=0.05)
    assert lowest <= wrong.sum() <= highest
    assert roc_auc_score(wrong, found.scores) > 0.99
    assert (found.suggestions[wrong] == true[wrong]).mean() > 0.95
    assert not (found.suggestions == given).any()


def test_labels_that_are_right_are_left_alone():
    evidence, given, _ = planted(np.eye(3))
    n_wrong, lowest, highest = LabelNoise.of(evidence, given).count()
    assert lowest == 0
    assert n_wrong <= 0.005 * len(given)
    assert highest <= 0.02 * len(given)


def test_few_wrong_labels_say_nothing_of_a_class():
    evidence, given, true = planted(np.eye(3), n=300)
    given[:2] = (true[:2] + 1) % 3
    found = LabelNoise.of(evidence, given)
    assert set(np.argsort(-found.scores)[:2]) == {0, 1}
    assert found.noise.diagonal().min() > 0.97


def test_probabilities_by_hand():
    model = NoiseModel(
        np.asarray([2.0]), np.asarray([1.5]), np.asarray([0.1, -0.1]), np.asarray([[0.9, 0.1], [0.2, 0.8]])
    )
    evidence, given = [np.asarray([[1.0, 3.0], [4.0, 0.0]])], np.asarray([0, 1])
    for row in range(2):
        logits = 1.5 * (evidence[0][row] - evidence[0][row].mean()) / 2 + [0.1, -0.1]
        of_class = np.exp(logits) / np.exp(logits).sum() * model.noise[:, given[row]]
        expected = np.log(of_class / of_class.sum())
        np.testing.assert_allclose(model.log_true(evidence, given)[row], expected, rtol=1e-12)


def test_no_better_model_is_near():
    """The fit is a maximum: moving the slopes, the bias or the noise lowers it."""
    evidence, given, _ = planted(n=600)
    model = NoiseModel.fitted(evidence, given)
    rng = np.random.default_rng(1)
    z = [(e - e.mean(axis=1, keepdims=True)) / s for e, s in zip(evidence, model.scales, strict=True)]

    def posterior(slopes, bias, noise):
        u = sum(a * e for a, e in zip(slopes, z, strict=True)) + bias
        p = np.exp(u) / np.exp(u).sum(axis=1, keepdims=True)
        likelihood = np.log((p * noise.T[given]).sum(axis=1)).sum()
        return likelihood - 0.5 * ((slopes - 1) ** 2).sum() / 100 - 0.5 * (bias**2).sum() / 0.09

    best = posterior(model.slopes, model.bias, model.noise)
    for _ in range(20):
        slopes, bias = model.slopes + rng.normal(size=2) * 0.1, model.bias + rng.normal(size=3) * 0.05
        assert posterior(slopes, bias, model.noise) < best


def test_only_some_rows_are_fitted_and_all_are_judged(monkeypatch):
    evidence, given, true = planted()
    whole = LabelNoise.of(evidence, given)
    monkeypatch.setattr("whence.methods.label_noise.FITTED_ROWS", 1500)
    part = LabelNoise.of(evidence, given)
    assert len(part.scores) == len(given)
    assert np.corrcoef(part.scores, whole.scores)[0, 1] > 0.99
    assert np.array_equal(LabelNoise.of(evidence, given).scores, part.scores)  # seeded
    assert part.count()[0] == pytest.approx((given != true).sum(), rel=0.1)


# ---- through suspects ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rare():
    """Digits "is it a 3?", 5 % of them, and 5 % of the labels flipped; and which."""
    x, digit = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    rows = np.r_[rng.permutation(np.flatnonzero(digit == 3))[:85], np.flatnonzero(digit != 3)]
    y = (digit[rows] == 3).astype(int)
    wrong = rng.random(len(y)) < 0.05
    return x[rows] / 16, np.where(wrong, 1 - y, y), wrong


def lje_of(x, y, factory=None):
    model = whence.InfluenceModel(LogisticRegression(max_iter=1000).fit(x, y))
    return whence.RepresenterPointLJE(model, (x, y), factory or whence.ExactIHVPFactory(), progress=False)


def test_rare_classes_are_not_doubtful_for_being_rare(rare):
    x, y, wrong = rare
    found = lje_of(x, y).suspects(k=None)
    assert found.score == "label_noise"
    assert roc_auc_score(wrong[found.ids], found.scores) > 0.99
    assert found.n_suspects == pytest.approx(wrong.sum(), rel=0.3)
    assert found.interval[0] <= wrong.sum() <= found.interval[1]
    assert found.is_suspect.sum() == found.n_suspects
    assert found.is_suspect[: found.n_suspects].all()
    assert np.array_equal(found.suggestions, 1 - found.labels)
    assert found.noise.shape == (2, 2)


def test_a_part_of_the_training_set_and_of_the_answer(rare):
    x, y, _ = rare
    method = lje_of(x, y)
    whole, part = method.suspects(k=None), method.suspects((x[:300], y[:300]), k=10)
    assert part.n_suspects < whole.n_suspects
    assert np.array_equal(part.ids, [i for i in whole.ids if i < 300][:10])
    few = whole[:5]
    assert few.n_suspects == whole.n_suspects
    assert len(few.is_suspect) == len(few.suggestions) == 5
    frame = few.to_frame()
    assert frame["is_suspect"].tolist() == [True] * 5
    assert frame["suggestion"].tolist() == few.suggestions.tolist()
    assert f"about {whole.n_suspects} of all labels are wrong" in repr(few)
    plain = method.suspects(k=5, score="loss")
    assert plain.n_suspects is None
    assert plain.is_suspect is None
    assert "suggestion" not in plain.to_frame()


def test_a_solver_that_solves_for_each_sample_leaves_it_to_the_ridge(rare):
    x, y, _ = (a[::4] for a in rare)
    method = lje_of(x, y, whence.CGDIHVPFactory())
    found = method.suspects(k=None)
    votes = RidgeVotes(method.layer, method.index).left_out()[:, 0]
    alone = LabelNoise.of([np.stack([-votes / 2, votes / 2], axis=1)], y, centred=True)
    np.testing.assert_allclose(found.scores, alone.scores[found.ids], rtol=1e-9)


def test_values_have_no_noise():
    x = np.random.default_rng(0).normal(size=(30, 4))
    model = whence.InfluenceModel(Ridge().fit(x, x[:, 0]))
    method = whence.RepresenterPointLJE(model, (x, x[:, 0]), whence.ExactIHVPFactory(), progress=False)
    with pytest.raises(whence.WhenceError, match=r"score.*label_noise.*squared error"):
        method.suspects(k=1, score="label_noise")


def test_a_wrong_tag_is_found_among_the_tags():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 8)).astype(np.float32)
    tags = (x @ rng.normal(size=(8, 3)) > [0, 1, 4]).astype(np.float32)  # the last one is rare
    wrong = np.zeros(tags.shape, bool)
    wrong[np.arange(20), rng.integers(0, 3, 20)] = True
    given = np.where(wrong, 1 - tags, tags).astype(np.float32)
    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200)
    loss = torch.nn.BCEWithLogitsLoss()

    def closure():
        optimizer.zero_grad()
        value = loss(layer(torch.tensor(x)), torch.tensor(given))
        value.backward()
        return value

    optimizer.step(closure)
    model = whence.InfluenceModel(layer, loss_function=loss)
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(given)), batch_size=100
    )
    method = whence.RepresenterPointLJE(model, data, whence.ExactIHVPFactory(), progress=False)
    found = method.suspects(k=20)
    assert found.score == "label_noise"
    assert (found.ids < 20).mean() > 0.8
    assert found.tag_scores.shape == (20, 3)
    right = found.ids < 20
    assert (found.tag_scores[right].argmax(axis=1) == wrong[found.ids[right]].argmax(axis=1)).all()
    assert np.array_equal(found.suggestions[right], tags[found.ids[right]])
    assert found.noise.shape == (3, 2, 2)
