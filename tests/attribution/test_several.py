"""Methods over several layers, against every weight written out: gradients by autograd, dense solves."""

import numpy as np
import pytest
import tolerances

import whence
from whence import WhenceError
from whence.methods.label_noise import LabelNoise
from whence.methods.ridge import Ridge

torch = pytest.importorskip("torch")
nn = torch.nn

N, T, C, DAMPING, DECAY = 25, 4, 3, 0.05, 0.01


class Small(nn.Module):
    """A convolution, a skip connection, two dense layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 2)
        self.first = nn.Linear(9, 4)
        self.skip = nn.Linear(8, 4, bias=False)
        self.last = nn.Linear(4, C)

    def forward(self, x):
        hidden = torch.tanh(self.first(torch.relu(self.conv(x)).flatten(1)))
        return self.last(hidden + self.skip(x.flatten(1)))


class Tagger(nn.Module):
    """An output at every position of a sequence of tokens."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.last = nn.Linear(4, C)

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.last(torch.tanh(self.mix(x)) + x.mean(dim=1, keepdim=True))


class Case:
    """A model, its data, and the arrays that the formulas of the methods are made of."""

    def __init__(self, name):
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        self.has_positions = name == "tagger"
        self.net = (Tagger() if self.has_positions else Small()).double()
        self.x = (
            rng.integers(0, 7, size=(N + T, 5)) if self.has_positions else rng.normal(size=(N + T, 2, 4))
        )
        self.y = rng.integers(0, C, size=(N + T, 5) if self.has_positions else N + T)
        self.train, self.test = (self.x[:N], self.y[:N]), (self.x[N:], self.y[N:])
        u = self.net(torch.tensor(self.x))
        flat = u.reshape(len(u), -1)
        rows = []
        for row in flat:
            jacobian = []
            for value in row:
                parts = torch.autograd.grad(value, list(self.net.parameters()), retain_graph=True)
                jacobian.append(torch.cat([part.reshape(-1) for part in parts]))
            rows.append(torch.stack(jacobian))
        self.j = torch.stack(rows).numpy()  # (N + T, L C, D)
        self.u = u.detach().numpy().reshape(N + T, -1, C)
        n_positions = self.u.shape[1]
        p = np.exp(self.u) / np.exp(self.u).sum(axis=2, keepdims=True)
        y = self.y.reshape(N + T, -1)
        self.r = ((p - np.eye(C)[y]) / n_positions).reshape(N + T, -1)
        k = (p[..., None] * np.eye(C) - p[..., None] * p[..., None, :]) / n_positions
        self.k = np.zeros((N + T, n_positions * C, n_positions * C))
        for place in range(n_positions):
            here = slice(place * C, place * C + C)
            self.k[:, here, here] = k[:, place]
        self.g = np.einsum("njd,nj->nd", self.j, self.r)
        self.predicted = np.argmax(self.u, axis=2)

    def hessian(self, rows=slice(0, N)):
        j, k = self.j[rows], self.k[rows]
        matrix = np.einsum("nad,nab,nbe->de", j, k, j) / len(j)
        return matrix + (DAMPING + DECAY) * np.eye(matrix.shape[0])

    def asked(self, outputs):
        """Return the mean over positions of one output each: its rows and its values."""
        units = np.eye(C)[outputs] / outputs.shape[1]
        by = units.reshape(len(outputs), -1)
        return by

    def model(self, layers="all", **options):
        loss = nn.CrossEntropyLoss()
        return whence.InfluenceModel(self.net, layers, loss_function=loss, weight_decay=DECAY, **options)


@pytest.fixture(scope="module", params=["small", "tagger"])
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def small():
    return Case("small")


def lje(case, factory=None, **options):
    factory = whence.ExactIHVPFactory(DAMPING) if factory is None else factory
    return whence.RepresenterPointLJE(case.model(), case.train, factory, **options)


def expected_lje(case, outputs, rows=slice(N, N + T), hessian=None):
    by = case.asked(outputs)
    q = np.einsum("tj,tjd->td", by, case.j[rows])
    f = (by * case.u[rows].reshape(len(by), -1)).sum(axis=1)
    solved = np.linalg.solve(case.hessian() if hessian is None else hessian, q.T).T
    values = (f[:, None] - solved @ case.g[:N].T) / N
    return values, f - solved @ case.g[:N].mean(axis=0)


def test_the_expansion_is_the_formula_with_every_weight_written_out(case):
    method = lje(case)
    values, totals = expected_lje(case, case.predicted[N:])
    tolerances.assert_close(method.influences(case.test), values, tolerances.SOLVE)
    explanation = method.explain(case.test, k=5)
    tolerances.assert_close(explanation.totals, totals, tolerances.SOLVE)
    order = np.argsort(-values, axis=1)[:, :5]
    assert np.array_equal(explanation.ids, order)
    tolerances.assert_close(explanation.values, np.take_along_axis(values, order, 1), tolerances.SOLVE)
    assert np.array_equal(explanation.opponent_ids, np.argsort(values, axis=1)[:, :5])
    about = explanation.about
    assert about["n_weights"] == case.j.shape[2]
    assert about["left_out"] == {}
    assert (about["curvature_kept"], about["step_size"]) == (1.0, 0.0)
    assert about["relative_residual"] < 1e-10


FACTORIES = {
    "exact": whence.ExactIHVPFactory(DAMPING),
    "kronecker": whence.KroneckerIHVPFactory(DAMPING),
    "conjugate gradient": whence.CGDIHVPFactory(damping=DAMPING),
    "plain": whence.CGDIHVPFactory(n_cgd_iters=500, damping=DAMPING, preconditioner=None),
}


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("layers", ["all", ["first", "conv"], [0, -1]])
def test_values_sum_to_the_prediction_after_a_newton_step(small, name, layers):
    method = whence.RepresenterPointLJE(small.model(layers), small.train, FACTORIES[name])
    totals = method.explain(small.test, k=1).totals
    sums = method.influences(small.test).sum(axis=1)
    tolerances.assert_close(sums, totals, tolerances.FLOAT64)
    assert method.explain(small.test, k=1).about["decomposes_prediction"]


def test_layers_are_chosen_by_the_model_or_by_the_method(small):
    chosen = ["first", "conv"]
    one = whence.RepresenterPointLJE(small.model(chosen), small.train, whence.ExactIHVPFactory())
    other = whence.RepresenterPointLJE(
        small.model(), small.train, whence.ExactIHVPFactory(), target_layer=chosen
    )
    assert np.array_equal(one.influences(small.test), other.influences(small.test))
    assert one.explain(small.test).about["layers"] == ["conv", "first"]
    assert one.explain(small.test).about["left_out"] == dict.fromkeys(
        ["skip.weight", "last.weight", "last.bias"], "not chosen"
    )


@pytest.mark.parametrize("layer", ["last", -1])
def test_a_list_of_one_dense_layer_is_that_layer_bit_for_bit(small, layer):
    methods = [
        whence.RepresenterPointLJE(small.model(layers), small.train, whence.ExactIHVPFactory())
        for layers in (layer, [layer])
    ]
    one, other = (method.influences(small.test) for method in methods)
    assert np.array_equal(one, other)
    assert methods[0].explain(small.test).about == methods[1].explain(small.test).about


def test_the_output_layer_alone_over_rows_is_that_layer(small):
    model = small.model(["last", "conv"])
    source = model
    method = whence.InfluenceFunctions(source, small.train, whence.ExactIHVPFactory(DAMPING))
    dense = whence.InfluenceFunctions(small.model("last"), small.train, whence.ExactIHVPFactory(DAMPING))
    rows = method.index.shards[0].gradients.only(["last"])
    tolerances.assert_close(
        rows.matrices("last")[:, 0], dense.layer.gradients(dense.index.shards[0].block), tolerances.FLOAT64
    )


@pytest.mark.parametrize("normalisation", [None, "loss", "parameters"])
@pytest.mark.parametrize("effect_on", ["loss", "pre_activation"])
def test_influence_functions(case, normalisation, effect_on):
    method = whence.InfluenceFunctions(
        case.model(), case.train, whence.ExactIHVPFactory(DAMPING),
        effect_on=effect_on, normalisation=normalisation,
    )  # fmt: skip
    g, inverse = case.g[:N], np.linalg.inv(case.hessian())
    scale = {
        None: np.ones(N),
        "loss": np.sqrt(np.einsum("nd,de,ne->n", g, inverse, g)),
        "parameters": np.linalg.norm(g @ inverse, axis=1),
    }[normalisation]
    if effect_on == "loss":
        q, own = -case.g[N:], np.einsum("nd,de,ne->n", g, inverse, g)
    else:
        q = np.einsum("tj,tjd->td", case.asked(case.predicted[N:]), case.j[N:])
        mine = np.einsum("tj,tjd->td", case.asked(case.predicted[:N]), case.j[:N])
        own = np.abs(np.einsum("nd,de,ne->n", mine, inverse, g)) / N
    expected = -(q @ inverse @ g.T) / N / scale
    tolerances.assert_close(method.influences(case.test), expected, tolerances.SOLVE)
    tolerances.assert_close(method.explain(case.test).totals, expected.sum(axis=1), tolerances.SOLVE)
    values = method.suspects(k=None, score="self_influence")
    tolerances.assert_close(values.scores, (own / scale)[values.ids], tolerances.SOLVE)


@pytest.mark.parametrize("effect_on", ["loss", "pre_activation"])
@pytest.mark.parametrize("name", ["GradientDotProduct", "GradientCosine"])
def test_gradients_compared_as_they_are(case, name, effect_on):
    method = getattr(whence, name)(case.model(), case.train, effect_on=effect_on)
    g, norms = case.g[:N], np.linalg.norm(case.g[:N], axis=1)
    q = -case.g[N:]
    if effect_on == "pre_activation":
        q = np.einsum("tj,tjd->td", case.asked(case.predicted[N:]), case.j[N:])
    expected = -(q @ g.T) / N
    if name == "GradientCosine":
        expected = -(q @ g.T) / np.linalg.norm(q, axis=1)[:, None] / norms
    tolerances.assert_close(method.influences(case.test), expected, tolerances.FLOAT64)
    tolerances.assert_close(method.explain(case.test).totals, expected.sum(axis=1), tolerances.FLOAT64)


def test_self_influence_and_leaving_samples_out(case):
    method = lje(case)
    inverse = np.linalg.inv(case.hessian())
    values, _ = expected_lje(case, case.predicted[:N], slice(0, N))
    found = method.suspects(k=None, score="self_influence")
    tolerances.assert_close(found.scores, np.abs(np.diag(values))[found.ids], tolerances.SOLVE)
    moved = np.einsum("njd,de,ne->nj", case.j[:N], inverse, case.g[:N]) / N
    u = case.u[:N] + moved.reshape(case.u[:N].shape)
    given = np.take_along_axis(u, case.y[:N].reshape(N, -1, 1), axis=2)[..., 0]
    others = np.where(np.eye(C, dtype=bool)[case.y[:N].reshape(N, -1)], -np.inf, u).max(axis=2)
    margins = (given - others).mean(axis=1)
    left_out = method.suspects(k=None, score="leave_one_out")
    tolerances.assert_close(left_out.scores, -margins[left_out.ids], tolerances.SOLVE)
    if u.shape[1] == 1:  # one row of outputs a sample
        ridge = Ridge.where_it_suits(method.layer, method.index)
        evidence = [u[:, 0]] if ridge is None else [ridge.left_out(), u[:, 0]]
        noise = LabelNoise.of(evidence, case.y[:N].reshape(N), centred=ridge is not None)
        by_noise = method.suspects(k=None, score="label_noise")
        assert by_noise.n_suspects is not None
        tolerances.assert_close(by_noise.scores, noise.scores[by_noise.ids], tolerances.SOLVE)


def test_groups_outputs_and_given_labels(case):
    method = lje(case)
    groups = np.arange(N) % 3
    every = method.influences(case.test)
    expected = np.stack([every[:, groups == group].sum(axis=1) for group in range(3)], axis=1)
    tolerances.assert_close(method.influences(case.test, groups=groups), expected, tolerances.FLOAT64)
    second = np.full_like(case.predicted[N:], 2)
    tolerances.assert_close(
        method.influences(case.test, outputs=2), expected_lje(case, second)[0], tolerances.SOLVE
    )
    given = lje(case, label="given").influences(case.test)
    labels = case.y[N:].reshape(T, -1)
    tolerances.assert_close(given, expected_lje(case, labels)[0], tolerances.SOLVE)


def test_one_position_of_a_sequence():
    case = Case("tagger")
    places = np.asarray([4, 0, 2, 1])
    got = lje(case).influences(case.test, positions=places)
    by = np.zeros((T, 5, C))
    by[np.arange(T), places, case.predicted[N:][np.arange(T), places]] = 1
    q = np.einsum("tj,tjd->td", by.reshape(T, -1), case.j[N:])
    f = (by * case.u[N:]).sum(axis=(1, 2))
    expected = (f[:, None] - q @ np.linalg.solve(case.hessian(), case.g[:N].T)) / N
    tolerances.assert_close(got, expected, tolerances.SOLVE)


def test_sample_weights_and_a_hessian_of_some_samples(small):
    weight = np.random.default_rng(1).uniform(0.5, 2, size=N)
    method = whence.RepresenterPointLJE(
        small.model(batch=("x", "y", "weight")), [(*small.train, weight)], FACTORIES["exact"]
    )
    weighted = Case("small")
    weighted.g = weighted.g * np.append(weight, np.ones(T))[:, None]
    weighted.k = weighted.k * np.append(weight, np.ones(T))[:, None, None]
    values, _ = expected_lje(weighted, small.predicted[N:])
    tolerances.assert_close(method.influences(small.test), values, tolerances.SOLVE)
    some = lje(small, n_samples_for_hessian=10, shuffle_buffer_size=N, seed=3)
    rows = whence.index.shuffle_buffer_sample(N, 10, N, np.random.default_rng(3))
    values, _ = expected_lje(small, small.predicted[N:], hessian=small.hessian(rows))
    tolerances.assert_close(some.influences(small.test), values, tolerances.SOLVE)


def test_batches_and_their_order_change_nothing(small):
    order = np.random.default_rng(0).permutation(N)
    batches = [(small.x[rows], small.y[rows]) for rows in np.array_split(order, 4)]
    method = whence.RepresenterPointLJE(small.model(), batches, whence.ExactIHVPFactory(DAMPING))
    values, _ = expected_lje(small, small.predicted[N:])
    tolerances.assert_close(method.influences(small.test), values[:, order], tolerances.SOLVE)


def test_an_index_on_disk_gives_the_same_answers(case, tmp_path):
    method = lje(case, index_path=tmp_path / "index")
    values, totals = expected_lje(case, case.predicted[N:])
    tolerances.assert_close(method.influences(case.test), values, tolerances.SOLVE)
    tolerances.assert_close(method.explain(case.test).totals, totals, tolerances.SOLVE)
    again = lje(case, index_path=tmp_path / "index")
    assert np.array_equal(again.influences(case.test), method.influences(case.test))
    with pytest.raises(WhenceError, match="an index with"):
        case.model(["last", 0]).index(case.train, path=tmp_path / "index")


def test_an_index_on_disk_is_resumed(small, tmp_path, monkeypatch):
    monkeypatch.setattr("whence.index.shard.SHARD_BYTES", 1)  # a shard for each sample
    seen = []

    class Samples(torch.utils.data.Dataset):
        def __init__(self, stop=None):
            self.stop = stop

        def __len__(self):
            return N

        def __getitem__(self, i):
            if i == self.stop:
                raise RuntimeError("killed")
            return small.x[i], small.y[i]

    def batches(stop=None):
        return torch.utils.data.DataLoader(Samples(stop), batch_size=5)

    small.net.conv.register_forward_hook(lambda *parts: seen.append(len(parts[1][0])))
    with pytest.raises(RuntimeError, match="killed"):
        small.model().index(batches(15), path=tmp_path / "index")
    seen.clear()
    index = small.model().index(batches(), path=tmp_path / "index")
    counted = sum(seen)
    seen.clear()
    small.model().index(batches(), path=tmp_path / "again")
    small.net.conv._forward_hooks.clear()
    assert counted < sum(seen) - 5  # 10 of the 25 samples were stored
    method = whence.RepresenterPointLJE(
        small.model(), batches(), FACTORIES["exact"], index_path=index.folder
    )
    values, _ = expected_lje(small, small.predicted[N:])
    tolerances.assert_close(method.influences(small.test), values, tolerances.SOLVE)


def test_the_contract(small):
    method = lje(small)
    batches = [(small.x[:10], small.y[:10]), (small.x[10:N], small.y[10:N])]
    values = np.concatenate([part for _, part in method.compute_influence_values(batches)])
    own = np.abs(np.diag(expected_lje(small, small.predicted[:N], slice(0, N))[0]))
    tolerances.assert_close(values, own, tolerances.SOLVE)
    vectors = [vector for _, vector in method.compute_influence_vector(batches)]
    assert set(vectors[0]) == {"conv", "first", "skip", "last"}
    samples, _ = method.compute_top_k_from_training_dataset(batches, 3)
    assert np.array_equal(np.asarray(samples), small.x[np.argsort(-own)[:3]])
    expected, _ = expected_lje(small, small.predicted[N:])
    for cache in (whence.CACHE.MEMORY, whence.CACHE.NO_CACHE):
        pairs = method.estimate_influence_values_in_batches([small.test], batches, cache)
        ((_, nested),) = list(pairs)
        scores = np.concatenate([np.asarray(part) for _, part in nested], axis=1)
        tolerances.assert_close(scores, expected, tolerances.SOLVE)
    ((_, best, found),) = list(method.top_k([small.test], batches, k=2, d_type=np.float64))
    order = np.argsort(-expected, axis=1)[:, :2]
    tolerances.assert_close(best, np.take_along_axis(expected, order, 1), tolerances.SOLVE)
    assert np.array_equal(np.asarray(found), small.x[order])


def test_a_model_that_was_trained_further_is_refused():
    case = Case("small")
    method = lje(case)
    with torch.no_grad():
        case.net.conv.weight += 1  # not the output layer's
    with pytest.raises(WhenceError, match="as it was when the training set was stored"):
        method.explain(case.test)


REFUSED = [
    (["first", "nothing"], "names of named_modules.., got 'nothing'"),
    (["first", "last", "first"], "each layer once, got 'first' twice"),
    ([0, -3], "each layer once, got 'first' twice"),
    ([], "an empty list"),
    (["first", 1.5], "1.5 in it"),
    ([0, 7], "an index from -3 to 2, got 7"),
]


@pytest.mark.parametrize(("layers", "message"), REFUSED)
def test_lists_that_name_no_layers_are_refused(small, layers, message):
    with pytest.raises(WhenceError, match=message):
        small.model(layers).index(small.train)


def test_what_is_for_one_layer_is_refused(small, tmp_path):
    model, exact = small.model(), whence.ExactIHVPFactory(DAMPING)
    for factory in (whence.LissaIHVPFactory(), whence.WoodburyIHVPFactory(0.1)):
        with pytest.raises(WhenceError, match="a solver for several layers"):
            whence.RepresenterPointLJE(model, small.train, factory)
    with pytest.raises(WhenceError, match="'exact' for several layers"):
        whence.RepresenterPointLJE(model, small.train, exact, decomposition="elementwise")
    with pytest.raises(WhenceError, match="False for several layers"):
        whence.InfluenceFunctions(model, small.train, exact, leverage=True)
    method = whence.InfluenceFunctions(model, small.train, exact)
    with pytest.raises(WhenceError, match="one dense layer, to predict"):
        method.loss_changes(small.test)
    for name in ("RepresenterPointL2", "FeatureSimilarity", "TrainingLoss"):
        with pytest.raises(WhenceError, match="one dense layer"):
            getattr(whence, name)(model, small.train)


def test_other_models_take_one_layer():
    sklearn = pytest.importorskip("sklearn.linear_model")
    model = sklearn.LogisticRegression().fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(WhenceError, match="the only layer of a LogisticRegression, got 'all'"):
        whence.InfluenceModel(model, "all")


def test_an_index_is_shared_by_models_and_methods(small, tmp_path):
    index = small.model().index(small.train)
    expected, _ = expected_lje(small, small.predicted[N:])
    method = whence.RepresenterPointLJE(small.model(), index, FACTORIES["exact"])
    tolerances.assert_close(method.influences(small.test), expected, tolerances.SOLVE)
    with pytest.raises(WhenceError, match="an index of layer 'last', got one of several: conv"):
        whence.RepresenterPointLJE(small.model("last"), index, FACTORIES["exact"])
    with pytest.raises(WhenceError, match="an index with layers"):
        whence.RepresenterPointLJE(small.model(["conv", "last"]), index, FACTORIES["exact"])
    one = small.model("last").index(small.train)
    with pytest.raises(WhenceError, match="an index with layers"):
        whence.RepresenterPointLJE(small.model(), one, FACTORIES["exact"])
    small.model().index(small.train, path=tmp_path / "index")
    stored = whence.index.StoredIndex(tmp_path / "index")
    with pytest.raises(WhenceError, match="seen on its first batch"):
        whence.RepresenterPointLJE(small.model(), stored, FACTORIES["exact"])


class InNewOrder(torch.utils.data.IterableDataset):
    """Training samples with their numbers, in another order in each pass."""

    def __init__(self, train):
        self.train, self.passes = train, 0

    def __iter__(self):
        self.passes += 1
        for i in np.random.default_rng(self.passes).permutation(N):
            yield self.train[0][i], self.train[1][i], i


def test_training_samples_are_recognised_in_any_order(small):
    loader = torch.utils.data.DataLoader(InNewOrder(small.train), batch_size=7)
    model = small.model(batch=("x", "y", "id"))
    method = whence.RepresenterPointLJE(model, loader, FACTORIES["exact"])
    values, _ = expected_lje(small, small.predicted[:N], slice(0, N))
    found = method.suspects(k=None, score="self_influence")
    tolerances.assert_close(found.scores, np.abs(np.diag(values))[found.ids], tolerances.SOLVE)


def test_tensors_on_a_device_give_the_same_answers(small):
    expected, totals = expected_lje(small, small.predicted[N:])
    for factory in FACTORIES.values():
        method = whence.RepresenterPointLJE(small.model(device="cpu"), small.train, factory)
        plain = whence.RepresenterPointLJE(small.model(), small.train, factory)
        got, wanted = method.influences(small.test), plain.influences(small.test)
        tolerances.assert_close(got, wanted, tolerances.SOLVE)
    exact = whence.RepresenterPointLJE(small.model(device="cpu"), small.train, FACTORIES["exact"])
    tolerances.assert_close(exact.influences(small.test), expected, tolerances.SOLVE)
    tolerances.assert_close(exact.explain(small.test).totals, totals, tolerances.SOLVE)
