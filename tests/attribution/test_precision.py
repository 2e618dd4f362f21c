"""The right digits from float32 features that nobody scaled: against formulas written out in float64."""

import numpy as np
import pytest
from plain import Dense, batches

import whence
from whence.layers.losses import BinaryCrossEntropy, Curvature, Loss, SoftmaxCrossEntropy

N, T, D, C, DAMPING, STEP = 200, 6, 5, 3, 1e-3, 1e-4
#: What is promised of values: so far from the right one, relative to the largest for the same sample.
PROMISED = 1e-4


class Differentiated(Loss):
    """Softmax cross-entropy as a framework differentiates it: ``K`` written out, nothing known of it.

    With ``decay``, the squares of the outputs are added: a number added to all of them changes it.
    """

    name = "someone's cross-entropy"
    curvature_is_dense = True

    def __init__(self, decay=0.0):
        self._of, self._decay = SoftmaxCrossEntropy(label_smoothing=0.1), decay

    def encode(self, labels, n_outputs, where):
        return self._of.encode(labels, n_outputs, where)

    def value(self, u, target):
        return self._of.value(u, target) + self._decay / 2 * (u**2).sum(axis=1)

    def residual(self, u, target):
        return self._of.residual(u, target) + u.dtype.type(self._decay) * u

    def curvature(self, u, target):
        decay = u.dtype.type(self._decay) * np.eye(C, dtype=u.dtype)
        return Curvature(dense=self._of.curvature(u, target).matrices() + decay)

    def margin(self, u, target):
        return self._of.margin(u, target)


class Softmax:
    """Local Jacobian expansion and influence functions of a softmax layer, in float64."""

    def __init__(self, phi, y, theta, *, smoothing=0.0, weight=None, decay=0.0):
        n, (d, c) = len(phi), theta.shape
        weight = np.ones(n) if weight is None else weight
        rows = np.eye(c)[y] * (1 - smoothing) + smoothing / c

        def derivatives(at):
            u = phi @ at
            p = np.exp(u - u.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            r = (p - rows + decay * u) * weight[:, None]
            k = p[:, :, None] * np.eye(c) - p[:, :, None] * p[:, None, :] + decay * np.eye(c)
            k *= weight[:, None, None]
            h = np.einsum("nab,nd,ne->adbe", k, phi, phi, optimize=True).reshape(c * d, c * d) / n
            return r, k, h + DAMPING * np.eye(c * d)

        self.phi, self.theta, self.n, self.c = phi, theta, n, c
        self.r, self.k, self.h = derivatives(theta)
        self.expanded = theta + STEP * phi.T @ self.r / n
        self.r_expanded, _, self.h_expanded = derivatives(self.expanded)

    def solved(self, h, matrices):
        flat = matrices.transpose(0, 2, 1).reshape(len(matrices), -1)
        if self.c * DAMPING and not np.any(self.k.sum(axis=2) > 1e-6):  # nor is it in what is looked for
            common = flat.reshape(len(flat), self.c, -1)
            flat = (common - common.mean(axis=1, keepdims=True)).reshape(flat.shape)
        found = np.linalg.solve(h, flat.T).T.reshape(len(flat), self.c, -1)
        return found.transpose(0, 2, 1)

    def expansion(self, phi_t, outputs):
        q = phi_t[:, :, None] * np.eye(self.c)[outputs][:, None, :]
        own = np.einsum("td,dt->t", phi_t, self.expanded[:, outputs])
        gradients = np.einsum("nd,nc,tdc->tn", self.phi, self.r_expanded, self.solved(self.h_expanded, q))
        return (own[:, None] - gradients) / self.n

    def on_losses(self, phi_t, r_t):
        solved = self.solved(self.h, phi_t[:, :, None] * r_t[:, None, :])
        return np.einsum("nd,nc,tdc->tn", self.phi, self.r, solved) / self.n

    def without_each(self):
        gradients = self.phi[:, :, None] * self.r_expanded[:, None, :]
        moved = np.einsum("nd,ndc->nc", self.phi, self.solved(self.h_expanded, gradients))
        return self.phi @ self.theta + moved / self.n


class Case:
    """Features of sizes from 1e-2 to 1e3, none of them centred, in float32."""

    def __init__(self, loss=None, **reference):
        rng = np.random.default_rng(5)
        scale = np.logspace(-2, 3, D)
        x = ((rng.normal(size=(N, D)) + 3) * scale).astype(np.float32)
        kernel = (rng.normal(size=(D, C)) / scale[:, None]).astype(np.float32)
        self.y = (x @ kernel + rng.gumbel(size=(N, C))).argmax(axis=1)
        self.x, self.kernel, self.loss = x, kernel, loss or SoftmaxCrossEntropy()
        self.some = x[:T], self.y[:T]
        self.reference = Softmax(x.astype(float), self.y, kernel.astype(float), **reference)

    def model(self):
        return whence.InfluenceModel(Dense(self.kernel, None, self.loss))

    def lje(self, factory=None, *more, **options):
        train = batches(self.x, self.y, *more, size=64)
        factory = factory or whence.ExactIHVPFactory(DAMPING)
        return whence.RepresenterPointLJE(self.model(), train, factory, progress=False, **options)

    @property
    def values(self):
        phi = self.x[:T].astype(float)
        return self.reference.expansion(phi, (phi @ self.kernel).argmax(axis=1))


def assert_right(values, expected):
    values = np.asarray(values, dtype=float)
    assert values.shape == expected.shape
    error = np.abs(values - expected).max(axis=-1) / np.abs(expected).max(axis=-1)
    assert (error <= PROMISED).all(), error


SOLVERS = {
    "exact": whence.ExactIHVPFactory(DAMPING),
    "Woodbury": whence.WoodburyIHVPFactory(DAMPING),
    "conjugate gradient": whence.CGDIHVPFactory(damping=DAMPING, tolerance=1e-10, n_cgd_iters=2000),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_all_outputs_share_costs_no_digits(solver):
    case = Case()
    lje = case.lje(SOLVERS[solver])
    found = lje.explain([case.some], k=5)
    assert_right(lje.influences([case.some]), case.values)
    for ids, values, right in zip(found.ids, found.values, case.values, strict=True):
        assert_right(values, right[ids])
        assert_right(np.sort(right)[::-1][:5], right[ids])
    assert_right(found.totals, case.values.sum(axis=1))


def test_samples_without_themselves():
    case = Case()
    lje = case.lje()
    without = case.reference.without_each()
    margins = [u[y] - np.delete(u, y).max() for u, y in zip(without, case.y, strict=True)]
    found = lje.suspects(k=None, score="leave_one_out")
    assert_right(-found.scores, np.asarray(margins)[found.ids])
    phi = case.x.astype(float)
    own = case.reference.expansion(phi, (phi @ case.kernel).argmax(axis=1))
    (batch,) = lje.compute_influence_values([(case.x, case.y)])
    assert_right(batch[1], np.abs(np.diag(own)))


@pytest.mark.parametrize("normalisation", [None, "loss"])
def test_influence_on_losses(normalisation):
    case = Case()
    factory = whence.ExactIHVPFactory(DAMPING)
    method = whence.InfluenceFunctions(
        case.model(), [(case.x, case.y)], factory, normalisation=normalisation, progress=False
    )
    right = case.reference.on_losses(case.x.astype(float), case.reference.r)
    scale = 1 if normalisation is None else np.sqrt(np.diag(right) * N)
    assert_right(method.influences([case.some]), (right / scale)[:T])


@pytest.mark.parametrize("kind", ["weights", "rows of probabilities", "known by its derivatives alone"])
def test_losses_that_do_not_see_a_shift_of_all_outputs(kind):
    if kind == "weights":
        weight = np.random.default_rng(1).integers(0, 3, N).astype(np.float32)
        case, more = Case(weight=weight.astype(float)), (weight,)
    elif kind == "rows of probabilities":
        case, more = Case(smoothing=0.25), ()
        case.y = (np.eye(C)[case.y] * 0.75 + 0.25 / C).astype(np.float32)
        case.some = case.x[:T], case.y[:T]
    else:
        case, more = Case(Differentiated(), smoothing=0.1), ()
    assert_right(case.lje(None, *more).influences([case.some]), case.values)


def test_a_loss_that_sees_a_shift_keeps_what_outputs_share():
    case = Case(Differentiated(0.125), smoothing=0.1, decay=0.125)
    assert not case.lje().layer.shift_invariant
    assert_right(case.lje().influences([case.some]), case.values)


def test_the_derivative_of_rows_that_do_not_sum_to_one_is_that_of_their_loss():
    loss, u, rows = SoftmaxCrossEntropy(), np.asarray([[0.3, -1.0, 2.0]]), np.asarray([[0.2, 0.4, 0.4005]])
    steps = 1e-6 * np.eye(3)
    by_differences = [(loss.value(u + s, rows) - loss.value(u - s, rows)) / 2e-6 for s in steps]
    assert np.allclose(loss.residual(u, rows), np.transpose(by_differences), atol=1e-9)
    assert abs(loss.residual(u, rows).sum()) < 1e-15


# ------------------------------------------------------- what float32 has no digits for, float64 has


class Sigmoid:
    """Features of two columns of which the third is the sum, in float32; questions off their span."""

    def __init__(self, damping=1e-6):
        rng = np.random.default_rng(2)
        x = rng.integers(-64, 65, size=(N, 3)).astype(np.float32) / 32
        x[:, 2] = x[:, 0] + x[:, 1]
        self.x, self.damping = x, damping
        self.kernel = np.asarray([[1.0], [-0.5], [0.25]], np.float32)
        self.y = (rng.random((N, 1)) < 0.5).astype(np.float32)
        self.some = rng.normal(size=(T, 3)).astype(np.float32), np.ones((T, 1), np.float32)

    def lje(self, **options):
        model = whence.InfluenceModel(Dense(self.kernel, None, BinaryCrossEntropy()))
        return whence.RepresenterPointLJE(
            model, batches(self.x, self.y, size=64), whence.ExactIHVPFactory(self.damping), **options
        )

    @property
    def values(self):
        """Of output 0, by eigenvectors, which tell the span from what lies across it."""
        phi, q = self.x.astype(float), self.some[0].astype(float)

        def derivatives(theta):
            p = 1 / (1 + np.exp(-phi @ theta))
            return p - self.y, p * (1 - p)

        r, _ = derivatives(self.kernel.astype(float))
        expanded = self.kernel + STEP * phi.T @ r / N
        r, k = derivatives(expanded)
        values, vectors = np.linalg.eigh((phi * k).T @ phi / N)
        kept = vectors[:, 1:]  # the first is (1, 1, -1), across the features
        similar = (phi @ kept) / (values[1:] + self.damping) @ (q @ kept).T
        return ((q @ expanded)[:, 0] - r * similar).T / N


def test_questions_off_the_span_of_collinear_features():
    case = Sigmoid()
    lje, right = case.lje(), case.values
    found = lje.explain([case.some], k=4)
    turned = np.where(case.some[0] @ case.kernel < 0, -1, 1)
    assert_right(lje.influences([case.some]), turned * right)
    for ids, values, of_sample in zip(found.ids, found.values, turned * right, strict=True):
        assert_right(values, of_sample[ids])
        assert_right(np.sort(of_sample)[::-1][:4], of_sample[ids])
    assert found.values.dtype == np.float32
    assert found.about["sum_error"] < 1e-5
    assert found.about["solver_error"] < 1e-5


def test_the_contract_has_the_digits_too():
    case = Sigmoid()
    lje, right = case.lje(), case.values
    train = batches(case.x, case.y, size=64)
    (scored,) = lje.estimate_influence_values_in_batches([case.some], train)
    assert_right(np.concatenate([values for _, values in scored[1]], axis=1), right)

    class Own(whence.BaseNearestNeighbors):
        def build(self, dataset, dot_product_fun, k, query_batch_size, d_type=np.float32, order=None):
            self.parts, self.scores, self.k = dataset, dot_product_fun, k

        def query(self, vector_to_find, batch_size=None):
            every = np.concatenate([self.scores(vector_to_find, part) for _, part in self.parts], axis=1)
            rows = np.argsort(-every, axis=1)[:, : self.k]
            return np.take_along_axis(every, rows, axis=1), rows

    for search in (None, Own()):
        (best,) = lje.top_k([case.some], train, k=4, nearest_neighbors=search)
        assert_right(best[1], -np.sort(-right, axis=1)[:, :4])


def test_a_part_of_a_shard_that_the_sample_missed_shows_in_the_sum(monkeypatch):
    monkeypatch.setattr("whence.search.scores.needs_double", lambda *given: False)
    case = Sigmoid()
    found = case.lje().explain([case.some], k=4)
    turned = np.where(case.some[0] @ case.kernel < 0, -1, 1)
    for ids, values, of_sample in zip(found.ids, found.values, turned * case.values, strict=True):
        assert_right(values, of_sample[ids])


@pytest.mark.parametrize("ask", ["explain", "influences", "top_k"])
def test_what_float64_has_no_digits_for_is_refused(ask):
    case = Sigmoid(damping=1e-15)
    case.x = case.x.astype(float) + 0.0
    case.x[:, 2] = case.x @ [0.1, 0.3, 0]  # dependent, but for rounding
    case.y = case.y.astype(float)
    lje = case.lje()
    more = (batches(case.x, case.y, size=64),) if ask == "top_k" else ()
    with pytest.raises(whence.WhenceError, match="a system that float64 solves"):
        getattr(lje, ask)([case.some], *more)


def test_queries_that_share_nothing_with_the_samples_that_are_tried_are_answered():
    """Of 200 samples at right angles, 64 are tried; a query knows one of the others alone."""
    rng = np.random.default_rng(0)
    x, _ = np.linalg.qr(rng.normal(size=(N, N)))
    y = (rng.random((N, 1)) < 0.5).astype(float)
    model = whence.InfluenceModel(Dense(rng.normal(size=(N, 1)), None, BinaryCrossEntropy()))
    method = whence.InfluenceFunctions(model, [(x, y)], whence.ExactIHVPFactory(1e-9), progress=False)
    values = method.influences([(x[1:3], y[1:3])])
    assert np.array_equal(np.argmax(np.abs(values), axis=1), [1, 2])


def test_sorted_training_samples():
    """The first 600 say that float32 is enough for the Hessian, and the rest that it is not."""
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=(600, 3)) * 1e-2, rng.normal(size=(600, 3)) * 10]).astype(
        np.float32
    )
    x[:, 2] = x[:, 0] + x[:, 1]
    y = (rng.random((len(x), 1)) < 0.5).astype(np.float32)
    kernel = np.asarray([[0.05], [-0.05], [0.025]], np.float32)

    def values(x, y, kernel):
        model = whence.InfluenceModel(Dense(kernel, None, BinaryCrossEntropy()))
        factory = whence.ExactIHVPFactory(1e-4)
        return whence.RepresenterPointLJE(model, [(x, y)], factory).influences([(x[-T:] + 1, y[-T:])])

    assert_right(values(x, y, kernel), values(*(a.astype(float) for a in (x, y, kernel))))
