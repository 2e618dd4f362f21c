"""A model that is no longer what it was when its training set was stored, and what changes nothing."""

import shutil
import threading

import numpy as np
import pytest

import whence

torch = pytest.importorskip("torch")

N, D, C = 24, 5, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype("float32")
Y = RNG.integers(0, C, N)
NEW = (X[:3] + 1, Y[:3])


class Net(torch.nn.Module):
    """A head on a body of several kinds of state, and a counter that shapes nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Linear(D, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.register_buffer("shift", torch.zeros(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.scale = 1.0
        self.plain = torch.ones(4)
        self.head = torch.nn.Linear(4, C)
        self.temperature = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        self.calls += 1
        hidden = torch.tanh(self.norm(self.body(x)) * self.scale * self.plain + self.shift)
        return self.head(hidden) / self.temperature


def wrapped(net):
    return whence.InfluenceModel(net, "head", loss_function=torch.nn.CrossEntropyLoss())


def made(net, data=(X, Y), **options):
    return whence.RepresenterPointLJE(
        wrapped(net), data, whence.ExactIHVPFactory(damping=0.01), progress=False, **options
    )


def in_training(net):
    net.train()
    net(torch.tensor(X))
    net.eval()


@torch.no_grad()
def write(tensor, how=lambda t: t.add_(0.3)):
    how(tensor)


CHANGES = {
    "a weight": lambda net: write(net.body.weight),
    "a weight behind the back of PyTorch": lambda net: net.body.weight.data.numpy().__iadd__(0.3),
    "one number": lambda net: write(net.body.weight[0, 0]),
    "another tensor": lambda net: setattr(net.body, "weight", torch.nn.Parameter(net.body.weight + 1)),
    "the head": lambda net: write(net.head.bias),
    "statistics": in_training,
    "a buffer": lambda net: write(net.shift),
    "an attribute": lambda net: setattr(net, "scale", 1.5),
    "a tensor that is no buffer": lambda net: write(net.plain),
    "what is behind the layer": lambda net: write(net.temperature),
    "a method": lambda net: setattr(net, "forward", lambda x: net.head(torch.relu(net.body(x)))),
}

QUESTIONS = {
    "explain": lambda m: m.explain(NEW, k=2),
    "influences": lambda m: m.influences(NEW),
    "suspects": lambda m: m.suspects(k=2),
    "values": lambda m: m.compute_influence_values((X, Y)),
    "vectors": lambda m: m.compute_influence_vector((X, Y)),
    "most influential": lambda m: m.compute_top_k_from_training_dataset((X, Y), 2),
    "in batches": lambda m: m.estimate_influence_values_in_batches(NEW, (X, Y)),
    "top k": lambda m: m.top_k(NEW, (X, Y), 2),
}

OTHER = "influence_model: expected a model that is.*as it was when the training set was stored"


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_shapes_an_answer_is_noticed_when_it_changes(name, tmp_path):
    net = Net().eval()
    method = made(net, index_path=tmp_path / "index")
    method.explain(NEW, k=2)
    CHANGES[name](net)
    with pytest.raises(whence.WhenceError, match=OTHER):
        method.explain(NEW, k=2)


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_asks_whether_the_model_is_the_same(name):
    net = Net().eval()
    method = made(net)
    QUESTIONS[name](method)
    write(net.body.weight)
    with pytest.raises(whence.WhenceError, match=OTHER):
        QUESTIONS[name](method)


def test_what_shapes_nothing_may_change():
    net = Net().train()
    method = made(net)
    before = method.influences(NEW)
    net.eval()
    net.calls += 5
    net.norm.num_batches_tracked += 1
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    write(net.body.weight)
    net.load_state_dict(weights)  # and back
    torch.optim.Adam(net.parameters())
    net.requires_grad_(False)
    np.testing.assert_array_equal(method.influences(NEW), before)


@pytest.mark.parametrize(
    "name",
    ["a weight", "one number", "statistics", "a buffer", "another tensor", "what is behind the layer"],
)
def test_a_stored_index_is_of_one_state_of_the_model(name, tmp_path):
    net = Net().eval()
    expected = made(net, index_path=tmp_path).influences(NEW)
    again = whence.load_index(tmp_path, influence_model=wrapped(net), progress=False)
    np.testing.assert_allclose(again.influences(NEW), expected, rtol=1e-5)
    CHANGES[name](net)
    for run in (
        lambda: made(net, index_path=tmp_path),
        lambda: whence.load_index(tmp_path, influence_model=wrapped(net), progress=False),
        lambda: again.explain(NEW, k=2),
    ):
        with pytest.raises(whence.WhenceError, match=r"other weights|as it was|index with loss"):
            run()


class Meanwhile:
    """Batches; before one of them is given, something happens to the model."""

    def __init__(self, net, at, change):
        self.net, self.at, self.change = net, at, change

    def __len__(self):
        return N // 4

    def __getitem__(self, number):
        if not 0 <= number < len(self):
            raise IndexError(number)
        if number == self.at:
            self.change(self.net)
        rows = slice(4 * number, 4 * number + 4)
        return X[rows], Y[rows]


@pytest.mark.parametrize("path", [False, True], ids=["in memory", "on disk"])
@pytest.mark.parametrize("name", ["a weight", "a weight behind the back of PyTorch", "an attribute"])
def test_a_model_that_changes_while_it_is_indexed(name, path, tmp_path, monkeypatch):
    monkeypatch.setattr("whence.index.shard.SHARD_BYTES", 5 * 4 * 5)
    net = Net().eval()
    options = {"index_path": tmp_path} if path else {}
    stays = "stays as it is while the training set goes through it"
    with pytest.raises(whence.WhenceError, match=stays):
        made(net, Meanwhile(net, 3, CHANGES[name]), **options)
    if path and name == "an attribute":  # of which the folder knows nothing: begun anew
        options = {"index_path": tmp_path / "other"}
    if path and name != "an attribute":
        with pytest.raises(whence.WhenceError, match="other weights before the layer"):
            made(net, **options)
        options = {"index_path": tmp_path / "other"}
    np.testing.assert_allclose(made(net, **options).influences(NEW), made(net).influences(NEW), rtol=1e-5)


def test_what_a_failed_pass_left_is_not_used_when_the_model_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr("whence.index.shard.SHARD_BYTES", 5 * 4 * 5)
    net = Net().eval()
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(whence.WhenceError, match="stays as it is"):
        made(net, Meanwhile(net, 3, CHANGES["a weight behind the back of PyTorch"]), index_path=tmp_path)
    net.load_state_dict(weights)
    stored = made(net, index_path=tmp_path).index
    phi = np.concatenate([shard.phi for shard in stored.shards])
    np.testing.assert_allclose(phi, np.concatenate([s.phi for s in made(net).index.shards]), rtol=1e-5)


# ---- pipelines and ensembles --------------------------------------------------------------------


def fitted_pipeline():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    steps = StandardScaler(), FunctionTransformer(np.tanh), LogisticRegression()
    return make_pipeline(*steps).fit(X, Y)


STEPS = {
    "fitted again": lambda pipe: pipe[0].fit(X * 3 + 1),
    "written to": lambda pipe: pipe[0].mean_.__iadd__(1),
    "a parameter": lambda pipe: pipe[0].set_params(with_mean=False),
    "a function": lambda pipe: pipe[1].set_params(func=np.sin),
    "the model": lambda pipe: pipe[2].coef_.__iadd__(1),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_of_a_pipeline_are_part_of_the_model(name, tmp_path):
    pipe = fitted_pipeline()
    model = whence.InfluenceModel(pipe)
    arguments = (X, Y), whence.ExactIHVPFactory(damping=0.01)
    options = {"progress": False, "index_path": tmp_path}
    method = whence.RepresenterPointLJE(model, *arguments, **options)
    again = whence.load_index(tmp_path, influence_model=whence.InfluenceModel(pipe), progress=False)
    pipe[0].set_params(copy=False)  # which shapes nothing
    again.explain(NEW, k=2)
    STEPS[name](pipe)
    for run in (
        lambda: method.explain(NEW, k=2),
        lambda: method.suspects(k=2),
        lambda: again.explain(NEW, k=2),
        lambda: whence.RepresenterPointLJE(whence.InfluenceModel(pipe), *arguments, **options),
    ):
        with pytest.raises(whence.WhenceError, match=r"other weights|as it was|with model_weights"):
            run()


def xgboost_on(pytest):
    return pytest.importorskip("xgboost").XGBClassifier(n_estimators=3, max_depth=2, n_jobs=1).fit(X, Y)


def lightgbm_on(pytest):
    options = {"n_estimators": 3, "min_child_samples": 2, "verbose": -1, "n_jobs": 1}
    return pytest.importorskip("lightgbm").LGBMClassifier(**options).fit(X, Y)


def forest_on(pytest):
    from sklearn.ensemble import GradientBoostingClassifier

    return GradientBoostingClassifier(n_estimators=3, warm_start=True).fit(X, Y)


@pytest.mark.parametrize("fitted", [xgboost_on, lightgbm_on, forest_on])
def test_an_ensemble_that_grows_or_is_fitted_again(fitted):
    model = fitted(pytest)
    method = whence.RepresenterPointLJE(
        whence.InfluenceModel(model), (X, Y), whence.ExactIHVPFactory(), progress=False
    )
    method.explain(NEW, k=2)
    model.set_params(n_estimators=4).fit(X, Y)
    for ask in (method.explain, lambda samples: method.suspects()):
        with pytest.raises(whence.WhenceError, match=OTHER):
            ask(NEW)


# ---- the index ----------------------------------------------------------------------------------


def test_a_reader_notices_that_the_index_was_built_anew(tmp_path):
    net = Net().eval()

    made(net, index_path=tmp_path / "i")
    opened = whence.load_index(tmp_path / "i", influence_model=wrapped(net), progress=False)
    readers = [opened, made(net, index_path=tmp_path / "i")]
    for file in (tmp_path / "i").rglob("*.json"):  # written again, with the same content
        file.write_bytes(file.read_bytes())
    before = [reader.explain(NEW, k=3).values for reader in readers]
    np.testing.assert_array_equal(before[0], before[1])
    shutil.rmtree(tmp_path / "i")
    with pytest.raises(whence.WhenceError, match=r"no manifest.json any more\. Open it again"):
        readers[0].explain(NEW, k=3)
    made(net, (X + 1, Y), index_path=tmp_path / "i")
    for reader in readers:
        for ask in (lambda r: r.explain(NEW, k=3), lambda r: r.suspects(), lambda r: r.influences(NEW)):
            with pytest.raises(whence.WhenceError, match="it was built anew since"):
                ask(reader)


# ---- threads ------------------------------------------------------------------------------------


class Busy(torch.nn.Module):
    """Dropout, statistics, a module that is found in a list, and attention."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        layer = torch.nn.TransformerEncoderLayer(8, 2, 8, dropout=0.5, batch_first=True)
        self.body = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.norm = torch.nn.BatchNorm1d(8)
        self.head = torch.nn.Linear(8, C)
        self.order = [self.norm, torch.nn.functional.relu]

    def forward(self, x):
        hidden = self.body(x).mean(1)
        for step in self.order:
            hidden = step(hidden)
        return self.head(hidden)


class Reaching(Busy):
    """A module whose code finds its parts past the tree."""

    def __init__(self):
        super().__init__()
        self.run = lambda x: Busy.forward(self, x)

    def forward(self, x):
        return self.run(x)


SEQUENCES = RNG.normal(size=(N, 4, 8)).astype("float32")


def in_threads(ask, meanwhile, n_threads=8):
    """Run ``ask`` in threads while another one goes on with ``meanwhile``; return what they gave."""
    ended, given = threading.Event(), []

    def asked():
        try:
            given.append(ask())
        except Exception as error:
            given.append(error)

    def on_and_on():
        while not ended.is_set():
            meanwhile()

    other = threading.Thread(target=on_and_on)
    askers = [threading.Thread(target=asked) for _ in range(n_threads)]
    for thread in (other, *askers):
        thread.start()
    for thread in askers:
        thread.join()
    ended.set()
    other.join()
    return given


def test_answers_while_another_thread_uses_the_model_in_training_mode():
    net = Busy().train()
    net.norm.track_running_stats = True
    method = made(net, (SEQUENCES, Y))
    asked = (SEQUENCES[:4], Y[:4])
    expected = method.influences(asked)
    modes, hooked = [], []
    x = torch.tensor(SEQUENCES)

    @torch.no_grad()
    def meanwhile():
        modes.append(all(module.training for module in net.modules()))
        hooked.append(len(net.head._forward_pre_hooks) + len(net.head._forward_hooks))
        net.head(net.body(x).mean(1))  # statistics stay what they are

    for values in in_threads(lambda: method.influences(asked), meanwhile):
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-8)
    assert all(modes)
    assert not any(hooked)


def test_answers_while_another_thread_trains_are_right_or_refused():
    net = Busy().train()
    method = made(net, (SEQUENCES, Y))
    asked = (SEQUENCES[:4], Y[:4])
    expected = method.influences(asked)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = torch.tensor(SEQUENCES), torch.tensor(Y)

    def meanwhile():
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()

    for given in in_threads(lambda: method.influences(asked), meanwhile):
        if isinstance(given, whence.WhenceError):
            assert "as it was when the training set was stored" in str(given)
        else:
            np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-8)
    with pytest.raises(whence.WhenceError, match=OTHER):
        method.influences(asked)
    assert all(module.training for module in net.modules())


def test_a_module_that_reaches_its_parts_past_the_tree_gives_the_same_numbers():
    method, plain = made(Reaching().train(), (SEQUENCES, Y)), made(Busy().train(), (SEQUENCES, Y))
    asked = (SEQUENCES[:4], Y[:4])
    expected = plain.influences(asked)
    np.testing.assert_allclose(method.influences(asked), expected, rtol=1e-5, atol=1e-8)
    for values in in_threads(lambda: method.influences(asked), lambda: None, n_threads=3):
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-8)
    assert all(module.training for module in method.influence_model.model.modules())


# ---- samples that the constructor did not see -----------------------------------------------------


def softmax_head():
    torch.manual_seed(2)
    return torch.nn.Sequential(torch.nn.Linear(D, C)).double()


def by_hand(net, seen):
    """Gradients ``(N, P)`` of all samples, and the damped Hessian of those seen, by autograd."""
    weight = torch.cat([net[0].weight.T, net[0].bias[None]]).detach()
    phi = torch.cat([torch.tensor(X).double(), torch.ones(N, 1)], dim=1)
    y = torch.tensor(Y)

    def losses(theta):
        return torch.nn.functional.cross_entropy(phi @ theta, y, reduction="none")

    gradients = torch.autograd.functional.jacobian(losses, weight).reshape(N, -1)
    hessian = torch.autograd.functional.hessian(lambda theta: losses(theta)[seen].mean(), weight)
    return gradients.numpy(), hessian.reshape(weight.numel(), -1).numpy() + 0.1 * np.eye(weight.numel())


def test_samples_that_the_constructor_did_not_see_are_computed_beside_its_hessian():
    net, seen = softmax_head(), np.arange(10)
    data = X.astype(float), Y
    method = whence.InfluenceFunctions(
        whence.InfluenceModel(net, loss_function=torch.nn.CrossEntropyLoss()),
        (data[0][seen], Y[seen]),
        whence.ExactIHVPFactory(damping=0.1),
        progress=False,
    )
    gradients, hessian = by_hand(net, seen)
    pairs = gradients @ np.linalg.solve(hessian, gradients.T)
    batches = [(data[0][i : i + 7], Y[i : i + 7]) for i in range(0, N, 7)]
    values = np.concatenate([np.asarray(v) for _, v in method.compute_influence_values(batches)])
    np.testing.assert_allclose(values, np.diag(pairs), rtol=1e-6)
    _, found = method.compute_top_k_from_training_dataset(batches, 5)
    np.testing.assert_allclose(np.asarray(found), np.sort(np.diag(pairs))[::-1][:5], rtol=1e-6)
    asked = (data[0][20:23], Y[20:23])
    expected = pairs[20:23] / len(seen)
    nested = method.estimate_influence_values_in_batches(asked, batches)
    scores = np.concatenate([np.concatenate([np.asarray(v) for _, v in d], axis=1) for _, d in nested])
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-9)
    ((_, values, samples),) = method.top_k(asked, batches, k=3)
    best = np.argsort(-expected, axis=1)[:, :3]
    np.testing.assert_allclose(np.asarray(values), np.take_along_axis(expected, best, 1), rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(samples), data[0][best])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ((X.astype(float), Y), "inputs of dtype float64, where they were float32"),
        ((X, Y.astype("int32")), "labels of dtype int32, where they were int64"),
        ((X, (Y + 1) % C), "has the features of sample 0 and another label"),
    ],
    ids=["dtype of inputs", "dtype of labels", "label"],
)
def test_where_ids_are_needed_it_is_said_what_differs(data, says, tmp_path):
    method = made(Net().eval())
    data = [tuple(data)]
    for ask in (method.suspects, lambda d: method.top_k(NEW, d, 2, save_top_k_ds_path=tmp_path / "k")):
        with pytest.raises(whence.WhenceError, match=says):
            ask(data)


def test_the_loss_behind_a_hidden_layer_can_be_asked_about():
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(D, 4), torch.nn.Tanh(), torch.nn.Linear(4, C)).double()
    model = whence.InfluenceModel(net, "0", loss_function=torch.nn.CrossEntropyLoss())
    data = X.astype(float), Y
    factory = whence.ExactIHVPFactory(damping=0.5)
    method = whence.InfluenceFunctions(model, data, factory, progress=False)
    phi = torch.cat([torch.tensor(data[0]), torch.ones(N, 1)], dim=1)
    theta = torch.cat([net[0].weight.T, net[0].bias[None]]).detach()

    def losses(theta):
        return torch.nn.functional.cross_entropy(net[1:](phi @ theta), torch.tensor(Y), reduction="none")

    gradients = torch.autograd.functional.jacobian(losses, theta).reshape(N, -1).detach().numpy()
    hessian = torch.autograd.functional.hessian(lambda t: losses(t).mean(), theta).reshape(
        len(gradients[0]), -1
    )
    hessian = hessian.numpy() + 0.5 * np.eye(len(hessian))
    expected = gradients @ np.linalg.solve(hessian, gradients.T) / N
    np.testing.assert_allclose(method.influences(data), expected, rtol=1e-5, atol=1e-9)
    assert method.explain(data, k=2).values.shape == (N, 2)
