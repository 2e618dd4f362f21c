"""The measures: against scikit-learn and loops, and what they say of methods whose answer is known."""

import numpy as np
import pandas
import pytest
import reference
from tolerances import FLOAT64, SOLVE, assert_close

import whence
from whence import evaluation

metrics = pytest.importorskip("sklearn.metrics")
pytest.importorskip("keras")
pytest.importorskip("tensorflow")

from heads import CASES, Head, N, T, batches  # noqa: E402

#: A retrained layer's gradient is within 1e-10 of 0, and its Hessian's smallest eigenvalue is the damping.
RETRAINED = 1e-7


def at_minimum(case, **options):
    """A head whose weights are the minimum of its damped loss."""
    head = Head(case, **options)
    head.set_weights(head.dense.refit())
    return head


def influence(head, **options):
    return whence.InfluenceFunctions(head.model, head.train, head.factory, progress=False, **options)


@pytest.fixture(scope="module", params=CASES, ids=str)
def head(request):
    return at_minimum(CASES[request.param])


# ---- label errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1000, 4], ids=["distinct", "ties"])
def test_areas_are_those_of_scikit_learn(rng, levels):
    for _ in range(5):
        scores, is_wrong = rng.integers(0, levels, 60).astype(float), rng.random(60) < 0.2
        is_wrong[0], is_wrong[1] = True, False
        assert_close(evaluation.roc_auc(scores, is_wrong), metrics.roc_auc_score(is_wrong, scores), FLOAT64)
        expected = metrics.average_precision_score(is_wrong, scores)
        assert_close(evaluation.average_precision(scores, is_wrong), expected, FLOAT64)


def test_detection_curve(rng):
    scores, is_wrong = rng.random(40), rng.random(40) < 0.3
    curve = evaluation.detection_curve(scores, is_wrong, points=41)
    order = np.argsort(-scores)
    expected = [is_wrong[order[:k]].sum() / is_wrong.sum() for k in range(41)]
    assert_close(curve["found"], expected, FLOAT64)
    assert_close(curve["checked"], np.arange(41) / 40, FLOAT64)


def test_flipped_labels_are_other_labels(rng):
    labels = rng.integers(0, 4, 200)
    flipped, is_wrong = evaluation.flip_labels(labels, 0.2, seed=3)
    assert is_wrong.sum() == 40
    np.testing.assert_array_equal(flipped != labels, is_wrong)
    assert set(np.unique(flipped)) == set(range(4))
    again, _ = evaluation.flip_labels(labels, 0.2, seed=3)
    np.testing.assert_array_equal(again, flipped)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_label_error_detection(n_jobs):
    def one_seed(seed):
        rng = np.random.default_rng(seed)
        is_wrong = np.arange(30) < 6
        return {"good": is_wrong + 0.1 * rng.random(30), "blind": rng.random(30)}, is_wrong

    frame = evaluation.label_error_detection(one_seed, range(4), checked=[0.1, 0.2], n_jobs=n_jobs)
    assert list(frame.columns) == ["seed", "score", "roc_auc", "average_precision", "found_10", "found_20"]
    assert len(frame) == 8
    good = frame[frame["score"] == "good"]
    assert (good["roc_auc"] == 1).all()
    assert (good["found_10"] == 0.5).all()
    assert (good["found_20"] == 1).all()
    blind = frame[(frame["score"] == "blind") & (frame["seed"] == 2)]
    scores, is_wrong = one_seed(2)
    assert_close(blind["roc_auc"], [metrics.roc_auc_score(is_wrong, scores["blind"])], FLOAT64)


def test_summary_is_students_interval():
    frame = pandas.DataFrame({"score": ["a"] * 3 + ["b"], "roc_auc": [0.7, 0.8, 0.9, 0.5]})
    result = evaluation.summary(frame, "roc_auc")
    assert result["score"].tolist() == ["a", "b"]
    assert_close(result["mean"], [0.8, 0.5], FLOAT64)
    # t of two degrees of freedom at 97.5 %, from a table
    assert_close(result["high"][0] - 0.8, 4.302653 * 0.1 / np.sqrt(3), 1e-6)
    assert np.isnan(result["low"][1])


# ---- retraining ---------------------------------------------------------------------------------


def test_retraining_is_the_minimum_without_the_samples(head):
    method = influence(head, effect_on="pre_activation")
    retraining = evaluation.LayerRetraining(method, head.new, outputs=0)
    assert_close(retraining.theta, head.dense.refit(), RETRAINED)
    assert retraining.gap < RETRAINED
    removed = [2, 5, 11]
    weight = head.dense.weight.copy()
    weight[removed] = 0
    parts = head.phi, head.case.labels, head.case.plain, weight
    expected = reference.Dense(retraining.theta, *parts, head.damping).refit()
    assert_close(retraining.weights_without(removed), expected, RETRAINED)
    signs = np.ones(T)
    if head.case.units == 1:
        signs = np.sign((head.phi_new @ head.dense.refit())[:, 0])
    assert_close(retraining(removed), (head.phi_new @ expected)[:, 0] * signs, RETRAINED)
    # Over those that are left, the sum is divided by their number: as if the regulariser were weaker.
    few = reference.Dense(retraining.theta, *parts, head.damping * (N - 3) / N).refit()
    assert_close(retraining.weights_without(removed, mean_over_kept=True), few, RETRAINED)


def test_gap_tells_a_model_that_is_not_at_its_minimum():
    head = Head(CASES["softmax"])
    retraining = evaluation.LayerRetraining(influence(head), head.new)
    assert retraining.gap > 0.01


def test_retraining_of_l2_is_its_own_refit():
    head = Head(CASES["softmax"])
    method = whence.RepresenterPointL2(head.model, head.train, 0.02, progress=False)
    retraining = evaluation.LayerRetraining(method, head.new)
    assert_close(retraining.theta, method.refitted_layer.theta, RETRAINED)


def test_what_cannot_be_trained_is_refused():
    head = Head(CASES["one sigmoid"])
    method = whence.GradientDotProduct(head.model, head.train, effect_on="pre_activation", progress=False)
    with pytest.raises(whence.WhenceError, match="gradient_norm"):
        evaluation.LayerRetraining(method, head.new, damping=0.1, gradient_norm=1e-300)
    retraining = evaluation.LayerRetraining(method, head.new, damping=0.1)
    assert np.isfinite(retraining(np.arange(N - 1))).all()
    with pytest.raises(whence.WhenceError, match="removed"):
        retraining(np.arange(N))


# ---- leave one out ------------------------------------------------------------------------------


def test_leave_one_out_measures_what_it_says(head):
    method = influence(head)
    frame = evaluation.leave_one_out(method, head.new, rows=[3, 8])
    assert list(frame.columns) == ["training_id", "sample", "predicted", "actual"]
    assert frame["training_id"].tolist() == [3, 8] * T
    values = method.influences(head.new)
    theta = head.dense.refit()
    new = head.dense_new
    for _, row in frame.iterrows():
        i, t = int(row["training_id"]), int(row["sample"])
        weight = head.dense.weight.copy()
        weight[i] = 0
        parts = head.phi, head.case.labels, head.case.plain, weight, head.damping
        moved = reference.Dense(theta, *parts).refit()
        rise = new.loss(new.phi[t] @ moved, new.target[t]) - new.loss(new.phi[t] @ theta, new.target[t])
        assert abs(row["actual"] - rise) < 1e-8
        assert_close(row["predicted"], values[t, i], FLOAT64)


def test_the_change_of_a_squared_error_is_predicted_exactly():
    head = at_minimum(CASES["squared error"])
    method = influence(head, leverage=True)
    retraining = evaluation.LayerRetraining(method, head.new, gradient_norm=1e-13)
    frames = {
        change: evaluation.leave_one_out(method, head.new, change=change, retraining=retraining)
        for change in ("linear", "finite")
    }
    gaps = {change: (f["predicted"] - f["actual"]).abs().max() for change, f in frames.items()}
    assert gaps["finite"] < 1e-8
    assert gaps["linear"] > 1e-3


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_influence_predicts_leaving_out(n_jobs):
    """A ridge head, where one Newton step is exact, and the values of LJE say the same."""
    head = at_minimum(CASES["squared error"])
    method = influence(head, effect_on="pre_activation", leverage=True)
    frame = evaluation.leave_one_out(method, head.new, n_jobs=n_jobs)
    assert_close(frame["predicted"], frame["actual"], RETRAINED)
    lje = whence.RepresenterPointLJE(head.model, head.train, head.factory, progress=False)
    expected = evaluation.agreement(evaluation.leave_one_out(lje, head.new))
    assert expected["pearson"].min() > 0.95
    assert expected["spearman"].min() > 0.95


def test_leave_group_out(head):
    method = influence(head, effect_on="pre_activation", leverage=True)
    groups = np.arange(N) % 3 - 1
    frame = evaluation.leave_group_out(method, head.new, groups)
    assert frame["group"].tolist() == [0, 1] * T
    retraining = evaluation.LayerRetraining(method, head.new)
    actual = retraining.full - retraining(np.flatnonzero(groups == 1))
    assert_close(frame[frame["group"] == 1]["actual"], actual, RETRAINED)
    assert_close(frame["predicted"], method.influences(head.new, groups=groups).ravel(), FLOAT64)


def test_whole_estimators_are_retrained():
    """scikit-learn's ridge regression, of which the head is a copy: sum over samples, alpha = N lam / 2."""
    from sklearn.linear_model import Ridge

    case = CASES["squared error"]
    head = at_minimum(case, weighted=False, use_bias=False)
    method = influence(head, effect_on="pre_activation", leverage=True)
    # The head's loss is the mean over two outputs of squares.
    ridge = Ridge(alpha=head.damping * N, fit_intercept=False, solver="cholesky")
    retraining = evaluation.EstimatorRetraining(
        ridge, head.phi, case.labels, lambda fitted: fitted.predict(head.phi_new)[:, 1]
    )
    frame = evaluation.leave_one_out(method, head.new, outputs=1, retraining=retraining)
    assert_close(frame["actual"], frame["predicted"], RETRAINED)


# ---- subsets ------------------------------------------------------------------------------------


def test_linear_datamodeling_score_tells_methods_apart():
    head = at_minimum(CASES["softmax"], weighted=False)
    options = {"n_subsets": 40, "seed": 1}
    method = influence(head, effect_on="pre_activation")
    good = evaluation.linear_datamodeling_score(method, head.new, **options)
    assert list(good.columns) == ["sample", "score"]
    assert len(good) == T
    assert good["score"].mean() > 0.6
    opposite = influence(head, effect_on="pre_activation")
    for shard in opposite.index.shards:
        shard.coefficients = -shard.coefficients
    bad = evaluation.linear_datamodeling_score(opposite, head.new, **options)
    assert_close(bad["score"], -good["score"], FLOAT64)


def test_removing_supporters_hurts_more_than_random_subsets(head):
    method = influence(head, effect_on="pre_activation")
    frame = evaluation.subset_removal(method, head.new, ks=(1, 4), n_random=3)
    assert len(frame) == T * 2 * 2
    fall = frame.groupby(["k", "removed"])["actual"].mean()
    assert fall[4, "supporters"] > fall[1, "supporters"] > 0
    assert fall[4, "supporters"] > fall[4, "random"]
    best = method.influences(head.new).max(axis=1)
    first = frame[(frame["k"] == 1) & (frame["removed"] == "supporters")]
    assert_close(first["predicted"], best, FLOAT64)


# ---- sums and seeds -----------------------------------------------------------------------------


def test_completeness(head):
    lje = whence.RepresenterPointLJE(head.model, head.train, head.factory, progress=False)
    frame = evaluation.completeness(lje, head.new)
    assert_close(frame["sum"], frame["total"], SOLVE)
    theta = head.dense.refit()
    said = (head.phi_new @ theta)[np.arange(T), np.argmax(head.phi_new @ theta, axis=1)]
    signs = np.sign(said) if head.case.units == 1 else 1
    assert_close(frame["pre_activation"], said * signs, SOLVE)


def test_stability():
    first, second = Head(CASES["softmax"]), Head(CASES["softmax"])
    second.set_weights(np.random.default_rng(9).normal(size=first.dense.theta.shape))
    methods = {seed: influence(head) for seed, head in enumerate((first, first, second))}
    frame = evaluation.stability(methods, first.new, k=6)
    assert len(frame) == 3 * T
    same = frame[(frame["first"] == 0) & (frame["second"] == 1)]
    assert_close(same["spearman"], np.ones(T), FLOAT64)
    assert (same["overlap"] == 1).all()
    assert (frame[frame["second"] == 2]["spearman"] < 0.999).all()
    values = [method.influences(first.new)[0] for method in methods.values()]
    best = [set(np.argsort(-v)[:6].tolist()) for v in values]
    other = frame[(frame["first"] == 1) & (frame["second"] == 2) & (frame["sample"] == 0)]
    assert other["overlap"].item() == len(best[1] & best[2]) / 6


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda h, m: evaluation.roc_auc([1.0], [True, False]), "scores"),
        (lambda h, m: evaluation.roc_auc([1.0, np.nan], [True, False]), "scores"),
        (lambda h, m: evaluation.roc_auc([1.0, 2.0], [True, True]), "is_wrong"),
        (lambda h, m: evaluation.roc_auc([1.0, 2.0], [1, 0]), "is_wrong"),
        (lambda h, m: evaluation.flip_labels([0.5, 1.0], 0.5), "labels"),
        (lambda h, m: evaluation.flip_labels([0, 1], 1.5), "share"),
        (lambda h, m: evaluation.flip_labels([0, 0], 0.5), "n_classes"),
        (lambda h, m: evaluation.leave_one_out(m, h.new, rows=[N]), "rows"),
        (lambda h, m: evaluation.leave_one_out(m, h.new, rows=[0.5]), "rows"),
        (lambda h, m: evaluation.leave_one_out(m, h.new, change="exact"), "change"),
        (
            lambda h, m: evaluation.leave_one_out(
                whence.FeatureSimilarity(h.model, h.train), h.new, change="finite"
            ),
            "change",
        ),
        (lambda h, m: evaluation.leave_one_out(m, h.new, rows=[0], n_jobs=0), "n_jobs"),
        (lambda h, m: evaluation.linear_datamodeling_score(m, h.new, share=1.0), "share"),
        (lambda h, m: evaluation.linear_datamodeling_score(m, h.new, n_subsets=1), "n_subsets"),
        (lambda h, m: evaluation.subset_removal(m, h.new, ks=(N,)), "ks"),
        (lambda h, m: evaluation.stability({0: m}, h.new), "methods"),
        (lambda h, m: evaluation.stability({0: m, 1: m}, h.new, k=N + 1), "k"),
        (lambda h, m: evaluation.summary(pandas.DataFrame(), "roc_auc", confidence=1.0), "confidence"),
    ],
)
def test_bad_arguments_are_named(call, argument):
    head = at_minimum(CASES["softmax"])
    with pytest.raises(whence.WhenceError, match=argument):
        call(head, influence(head))


# ---- the evidence at length ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["breast cancer", "diabetes"])
def test_influence_predicts_retraining_without_every_sample(name):
    """A logistic and a ridge head on real data, every training sample left out by real retraining."""
    import keras
    from sklearn import datasets
    from sklearn.preprocessing import StandardScaler

    damping = 0.01
    is_logistic = name == "breast cancer"
    load = datasets.load_breast_cancer if is_logistic else datasets.load_diabetes
    x, y = load(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    y = (y if is_logistic else (y - y.mean()) / y.std())[:, None].astype(float)
    model = keras.Sequential([keras.Input((x.shape[1],)), keras.layers.Dense(1, dtype="float64")])
    losses = keras.losses
    model.compile(
        loss=losses.BinaryCrossentropy(from_logits=True) if is_logistic else losses.MeanSquaredError()
    )
    train, new = batches(x, y, size=256), batches(x[:20], y[:20], size=20)
    factory = whence.ExactIHVPFactory(damping=damping)
    wrapped = whence.InfluenceModel(model)
    theta = evaluation.LayerRetraining(whence.InfluenceFunctions(wrapped, train, factory), new).theta
    model.layers[-1].set_weights([theta[:-1], theta[-1]])

    def agreement(method):
        retraining = evaluation.LayerRetraining(method, new)
        assert retraining.gap < RETRAINED
        return evaluation.agreement(evaluation.leave_one_out(method, new, retraining=retraining))

    for effect_on in ("loss", "pre_activation"):
        one_step = whence.InfluenceFunctions(wrapped, train, factory, effect_on=effect_on, leverage=True)
        result = agreement(one_step)
        assert result[["pearson", "spearman"]].mean().min() >= 0.99
        assert result["spearman"].min() >= 0.99
    result = agreement(whence.RepresenterPointLJE(wrapped, train, factory))
    assert result["spearman"].min() >= 0.99
    # To first order the few samples of high leverage fall short, which Pearson's correlation sees.
    assert result["pearson"].mean() >= (0.98 if is_logistic else 0.99)


@pytest.mark.parametrize("head", [pytest.param("logistic", marks=pytest.mark.slow), "ridge"])
def test_what_is_predicted_of_training_a_whole_estimator_without_each_sample(head):
    """scikit-learn trains its own model again without each of 569 samples."""
    from sklearn import datasets
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import scale

    x, y = datasets.load_breast_cancer(return_X_y=True)
    x, n_samples = scale(x), len(y)
    signs = np.where(y[:10] == 1, 1.0, -1.0)
    if head == "ridge":
        y = y.astype(float)
        estimator = Ridge(alpha=0.005 * n_samples)
        asked = {"pre_activation": lambda m: m.predict(x[:10])}
        asked["loss"] = lambda m: -((m.predict(x[:10]) - y[:10]) ** 2)
    else:
        estimator = LogisticRegression(C=100 / n_samples, solver="newton-cholesky", tol=1e-12, max_iter=99)
        asked = {"pre_activation": lambda m: m.decision_function(x[:10]) * signs}
        asked["loss"] = lambda m: -np.log1p(np.exp(-signs * m.decision_function(x[:10])))
    model = whence.InfluenceModel(estimator.fit(x, y))
    train, new, factory = (x, y), (x[:10], y[:10]), whence.ExactIHVPFactory(0)
    everything = evaluation.EstimatorRetraining(
        estimator, x, y, lambda m: [ask(m) for ask in asked.values()]
    )
    without = np.stack([everything([row]).reshape(2, -1) for row in range(n_samples)])
    actual = dict(zip(asked, everything.full.reshape(2, 10, 1) - without.transpose(1, 2, 0), strict=True))

    def predicts(values, effect_on, bound):
        """Pearson's and Spearman's correlation, the mean over followed samples."""
        frame = pandas.DataFrame(
            {
                "sample": np.repeat(np.arange(10), n_samples),
                "predicted": values.ravel(),
                "actual": actual[effect_on].ravel(),
            }
        )
        pearson, spearman = evaluation.agreement(frame)[["pearson", "spearman"]].mean()
        assert pearson >= bound
        assert spearman >= 0.99

    def made(effect_on, leverage):
        options = {"effect_on": effect_on, "leverage": leverage, "label": "given", "progress": False}
        return whence.InfluenceFunctions(model, train, factory, **options)

    # To first order the few samples of high leverage fall short of the minimum of a logistic loss, which
    # Pearson's correlation sees.
    bound = 0.97 if head == "logistic" else 0.99
    predicts(made("pre_activation", False).influences(new), "pre_activation", bound)
    predicts(made("loss", False).loss_changes(new), "loss", bound)
    lje = whence.RepresenterPointLJE(model, train, factory, label="given", progress=False)
    predicts(lje.influences(new), "pre_activation", bound)
    on_outputs = made("pre_activation", True).influences(new)
    on_losses = made("loss", True).loss_changes(new)
    predicts(on_outputs, "pre_activation", 0.99)
    predicts(on_losses, "loss", 0.99)
    if head == "ridge":
        assert np.abs(on_outputs - actual["pre_activation"]).max() < 1e-8
        assert np.abs(on_losses - actual["loss"]).max() < 1e-8
