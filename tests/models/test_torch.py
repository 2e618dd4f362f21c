"""PyTorch modules: any linear layer, any loss, any form of batch, and everything left as it was."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from reference import Dense, LocalJacobianExpansion, softmax_cross_entropy
from tolerances import SOLVE, assert_close

import whence
from whence.layers.losses import BinaryCrossEntropy, SoftmaxCrossEntropy, SquaredError
from whence.models.differentiated import DifferentiatedLoss

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
Data = torch.utils.data

N, D, HIDDEN, C = 24, 4, 5, 3
RNG = np.random.default_rng(0)
X = torch.tensor(RNG.normal(size=(N, D)))
INTS = torch.tensor(RNG.integers(0, C, N))
ONE_HOT = F.one_hot(INTS, C).double()
REALS = torch.tensor(RNG.normal(size=(N, C)))
EXACT = whence.ExactIHVPFactory(damping=1e-2)


def net(*tail, outputs=C, hidden=HIDDEN):
    torch.manual_seed(1)
    layers = nn.Linear(D, hidden), nn.Tanh(), nn.Dropout(0.5), nn.Linear(hidden, outputs), *tail
    return nn.Sequential(*layers).double()


def wrap(model, loss=None, layer="3", **options):
    loss = nn.CrossEntropyLoss() if loss is None else loss
    return whence.InfluenceModel(model, layer, loss_function=loss, **options)


def fitted(wrapped, dataset, **options):
    return whence.RepresenterPointLJE(wrapped, dataset, EXACT, progress=False, **options)


def loader(*arrays, size=7, **options):
    return Data.DataLoader(Data.TensorDataset(*arrays), size, **options)


# ------------------------------------------------------------------------------------ the numbers


@pytest.fixture(scope="module")
def lje():
    return fitted(wrap(net()), loader(X, INTS))


def test_numbers_are_those_of_the_reference(lje):
    model = net().eval()
    with torch.no_grad():
        hidden = torch.tanh(model[0](X)).numpy()
    phi = np.concatenate([hidden, np.ones((N, 1))], axis=1)
    theta = np.concatenate([model[3].weight.detach().numpy().T, model[3].bias.detach().numpy()[None]])
    dense = Dense(theta, phi, INTS.numpy(), softmax_cross_entropy, lam=1e-2)
    expected = LocalJacobianExpansion(dense)
    assert_close(lje.theta_dagger, expected.theta_dagger, SOLVE)
    outputs = (phi @ theta).argmax(axis=1)
    every = lje.influences((X, INTS), progress=False)
    wanted = expected.influences(phi)[np.arange(N), :, outputs]
    assert_close(every, wanted, SOLVE)
    values = torch.cat([v for _, v in lje.compute_influence_values(loader(X, INTS))])
    assert_close(values, expected.self_influences(outputs), SOLVE)
    assert_close(every.sum(axis=1), (phi @ lje.theta_dagger)[np.arange(N), outputs], SOLVE)


def test_leave_one_out_is_retraining_on_a_convex_head():
    torch.manual_seed(0)
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.randint(0, 3, (40,))
    model = nn.Sequential(nn.Linear(3, 3)).double()
    dense = Dense(
        np.zeros((4, 3)), np.c_[x.numpy(), np.ones(40)], y.numpy(), softmax_cross_entropy, lam=0.5
    )
    with torch.no_grad():
        theta = torch.tensor(dense.refit())
        model[0].weight.copy_(theta[:-1].T)
        model[0].bias.copy_(theta[-1])
    wrapped = whence.InfluenceModel(model, loss_function=nn.CrossEntropyLoss(), weight_decay=0.5)
    lje = whence.RepresenterPointLJE(
        wrapped, (x, y), whence.ExactIHVPFactory(damping=1e-12), step_size=0.0, progress=False
    )
    (shard,) = lje.index.shards
    moved = np.asarray(lje.rule.leave_one_out(shard.block)) - dense.phi @ theta.numpy()
    retrained = np.stack([dense.phi[i] @ (dense.without(i).refit() - theta.numpy()) for i in range(12)])
    # First order in 1 / N, and a leave-one-out mean over N - 1 where the library keeps N.
    assert np.corrcoef(moved[:12].ravel(), retrained.ravel())[0, 1] > 0.99


# ------------------------------------------------------------------------------------- the losses


def focal(output, target):
    p = output.softmax(dim=1)
    return -(F.one_hot(target, C) * (1 - p) ** 2 * p.log()).sum(dim=1)


WEIGHT = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
LOSSES = {
    "cross-entropy": (nn.CrossEntropyLoss(), INTS, (), SoftmaxCrossEntropy),
    "cross-entropy, summed": (nn.CrossEntropyLoss(reduction="sum"), INTS, (), SoftmaxCrossEntropy),
    "cross-entropy, not reduced": (nn.CrossEntropyLoss(reduction="none"), INTS, (), SoftmaxCrossEntropy),
    "weights, smoothing and an ignored class": (
        nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1, ignore_index=1, reduction="sum"),
        INTS,
        (),
        DifferentiatedLoss,
    ),
    "a function of torch": (F.cross_entropy, INTS, (), SoftmaxCrossEntropy),
    "class weights and smoothing": (
        nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1),
        INTS,
        (),
        SoftmaxCrossEntropy,
    ),
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHT), INTS, (), SoftmaxCrossEntropy),
    "probabilities": (nn.CrossEntropyLoss(weight=WEIGHT), REALS.softmax(1), (), SoftmaxCrossEntropy),
    "an ignored class": (nn.CrossEntropyLoss(ignore_index=1), INTS, (), DifferentiatedLoss),
    "log probabilities": (nn.NLLLoss(weight=WEIGHT), INTS, (nn.LogSoftmax(1),), SoftmaxCrossEntropy),
    "several labels": (nn.BCEWithLogitsLoss(), ONE_HOT, (), BinaryCrossEntropy),
    "sigmoid": (nn.BCELoss(), ONE_HOT, (nn.Sigmoid(),), BinaryCrossEntropy),
    "positive weights": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), ONE_HOT, (), DifferentiatedLoss),
    "squared error": (nn.MSELoss(), REALS, (), SquaredError),
    "squared error, summed": (nn.MSELoss(reduction="sum"), REALS, (), DifferentiatedLoss),
    "huber": (nn.HuberLoss(delta=0.7), REALS, (), DifferentiatedLoss),
    "soft margin": (nn.SoftMarginLoss(), 2 * ONE_HOT - 1, (), DifferentiatedLoss),
    "divergence": (nn.KLDivLoss(reduction="batchmean"), ONE_HOT, (nn.LogSoftmax(1),), DifferentiatedLoss),
    "a function": (focal, INTS, (), DifferentiatedLoss),
    "more layers": (nn.MSELoss(), REALS[:, :2], (nn.GELU(), nn.Linear(C, 2).double()), DifferentiatedLoss),
    "normalisation": (nn.MSELoss(), REALS, (nn.BatchNorm1d(C).double(), nn.Softplus()), DifferentiatedLoss),
}


def derivatives(model, loss, y):
    """Gradient and Hessian of the sum of the samples' losses, output by output, the bias last."""

    def total(flat):
        theta = flat.reshape(C, HIDDEN + 1)
        weights = {"3.weight": theta[:, :-1], "3.bias": theta[:, -1]}
        output = torch.func.functional_call(model, weights, X)
        return sum(loss(output[i : i + 1], y[i : i + 1]).sum() for i in range(N))

    layer = model[3]
    flat = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().reshape(-1)
    jacobian = torch.autograd.functional.jacobian(total, flat)
    return jacobian / N, torch.autograd.functional.hessian(total, flat) / N


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_derivatives_are_those_of_the_whole_model(name):
    loss, y, tail, kind = LOSSES[name]
    model = net(*tail)
    wrapped = wrap(model, loss)
    index = wrapped.index((X, y), progress=False)
    assert type(wrapped.loss) is kind
    per_sample = loss
    if getattr(loss, "reduction", "") == "mean" and getattr(loss, "weight", None) is not None:
        per_sample = lambda o, t: plain_weighted(loss, o, t)  # noqa: E731
    gradient, hessian = derivatives(model.eval(), per_sample, y)
    got = np.asarray(wrapped.layer.mean_gradient(index)).T.ravel()
    assert_close(got, gradient, 1e-9)
    assert_close(wrapped.layer.hessian(index).matrix(), hessian, 1e-9)


def plain_weighted(loss, output, target):
    """Without the division by the sum of the classes' weights, which a batch of one would undo."""
    if isinstance(loss, nn.NLLLoss):
        return F.nll_loss(output, target, loss.weight, reduction="none")
    smoothing = loss.label_smoothing
    return F.cross_entropy(output, target, loss.weight, reduction="none", label_smoothing=smoothing)


def test_single_output_that_is_squeezed():
    y = (INTS > 0).double()
    flat = fitted(wrap(net(nn.Flatten(0), outputs=1), nn.BCEWithLogitsLoss()), (X, y))
    plain = fitted(wrap(net(outputs=1), nn.BCEWithLogitsLoss()), (X, y[:, None]))
    assert isinstance(flat.influence_model.loss, BinaryCrossEntropy)
    assert_close(flat.explain((X, y)).values, plain.explain((X, y[:, None])).values, 1e-12)


# ------------------------------------------------------------------------------------- the layers


class Two(nn.Module):
    """Calls its layers in another order than it defines them."""

    def __init__(self):
        super().__init__()
        self.head, self.body, self.unused = nn.Linear(5, C), nn.Linear(D, 5), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def test_layers_by_index_in_the_order_of_calls():
    model = Two().double()
    for index, name in {-1: "head", 0: "body", 1: "head", "body": "body"}.items():
        wrapped = wrap(model, layer=index)
        wrapped.index((X, INTS), progress=False)
        assert wrapped.layer_name == name
    other = whence.RepresenterPointLJE(
        wrap(model, layer=-1), (X, INTS), whence.ExactIHVPFactory(damping=1.0), target_layer="body"
    )
    assert other.layer.theta.shape == (D + 1, 5)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(D, D), nn.Linear(D, C)

    def forward(self, x):
        return self.head(self.body(self.body(x)))


class Skipping(Two):
    def forward(self, x):
        return super().forward(x) + x[:, :C]


class Drawing(Two):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(D, D), nn.Linear(D, D)
        self.head.weight = self.body.weight

    def forward(self, x):
        return self.head(self.body(x))


class Pair(Two):
    def forward(self, x):
        return super().forward(x), x


def on_two_devices():
    model = net()
    model[3].to("meta")
    return model


BAD_MODELS = {
    "two calls": (Twice, "body", "2 calls"),
    "no call": (Two, "unused", "no call"),
    "no such name": (Two, "middle", "linear layers are: head, body, unused"),
    "not linear": (net, "1", "a torch.nn.Linear"),
    "no linear layer": (lambda: nn.Sequential(nn.Tanh()), -1, "at least one torch.nn.Linear"),
    "no such index": (Two, 2, "from -2 to 1"),
    "no index": (Two, 1.0, "an index or a name"),
    "skip connection": (Skipping, "head", "skip connection"),
    "random in eval mode": (Drawing, "head", "random ones"),
    "shared weights": (Tied, "head", "weights shared with body"),
    "two outputs": (Pair, "head", "one output"),
    "two devices": (on_two_devices, "3", "one device"),
    "never called": (lambda: nn.Sequential(nn.LazyLinear(C)), -1, "never called"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_models_without_an_answer(name):
    make, layer, message = BAD_MODELS[name]
    model = make()
    with pytest.raises(whence.WhenceError, match=message):
        wrap(model, layer=layer).index((X.float() if name != "not linear" else X, INTS), progress=False)


BAD_LOSSES = {
    "none": (None, "Pass loss_function"),
    "a class": (nn.CrossEntropyLoss, "the class CrossEntropyLoss"),
    "three arguments": (nn.TripletMarginLoss(), "Wrap it"),
    "reduced": (lambda o, t: F.cross_entropy(o, t), "a single number for the whole batch"),
    "a text": ("cross_entropy", "a str"),
    "no second derivative": (nn.MultiMarginLoss(p=2), "with second derivatives in PyTorch"),
}


@pytest.mark.parametrize("name", BAD_LOSSES)
def test_losses_without_an_answer(name):
    loss, message = BAD_LOSSES[name]
    with pytest.raises(whence.WhenceError, match=message):
        whence.InfluenceModel(net(), "3", loss_function=loss).index((X, INTS), progress=False)


def test_contradicted_losses():
    for loss, y, tail in (
        (nn.CrossEntropyLoss(), INTS, nn.Softmax(1)),
        (nn.NLLLoss(), INTS, nn.Identity()),
        (nn.BCEWithLogitsLoss(), ONE_HOT, nn.Sigmoid()),
    ):
        with pytest.raises(whence.WhenceError, match="pre-activations"):
            wrap(net(tail), loss).index((X, y), progress=False)


# --------------------------------------------------------------------------- left as it was


def test_nothing_of_the_model_changes():
    model = net()
    model.train()
    model[2].eval()  # a module that is frozen by hand stays so
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(X).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    fitted(wrap(model, nn.HuberLoss()), (X, REALS)).explain([(X, REALS)])
    assert model.training
    assert model[0].training
    assert not model[2].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    kept = [p.grad for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(gradients, kept, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_go_when_the_model_fails():
    model = net()
    with pytest.raises(whence.WhenceError, match="a batch that the model accepts"):
        wrap(model).index((X[:, :2], INTS), progress=False)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Failing(Two):
    """Fails in the pass of that number, before, in or behind its last layer."""

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error, self.passes = at, error, itertools.count(1)

    def forward(self, x):
        result = super().forward(x)
        if next(self.passes) >= self.at:
            raise self.error
        return result


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.HuberLoss()], ids=["closed", "differentiated"])
def test_hooks_go_at_whatever_pass_the_model_fails(error, loss):
    y = INTS if isinstance(loss, nn.CrossEntropyLoss) else REALS
    passes = 0
    while True:
        passes += 1
        model = Failing(passes, error).double()
        try:
            wrap(model, loss, layer=-1).index((X, y), progress=False)
        except (whence.WhenceError, ValueError, KeyboardInterrupt):
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
            assert all(m.training for m in model.modules())
            assert all(p.grad is None for p in model.parameters())
        else:
            break
    assert passes > 5


def test_dropout_in_train_mode_draws_nothing(lje):
    again = fitted(wrap(net().train()), loader(X, INTS))
    assert_close(again.theta_dagger, lje.theta_dagger, 1e-15)


def test_wrapped_modules(lje):
    for wrapper in (nn.DataParallel, lambda m: torch.compile(m, backend="eager")):
        again = fitted(wrap(wrapper(net())), loader(X, INTS))
        assert_close(again.theta_dagger, lje.theta_dagger, 1e-15)


def test_mixed_precision(lje):
    model = net().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        index = wrap(model).index((X.float(), INTS), progress=False)
    assert index.dtype == np.float32
    assert_close(index.shards[0].phi, lje.index.shards[0].phi, 0.02)
    half = fitted(wrap(net().bfloat16()), (X.float(), INTS))
    assert_close(half.index.shards[0].phi, lje.index.shards[0].phi, 0.02)


# ----------------------------------------------------------------------------------- the datasets


class Named(Two):
    def forward(self, inputs, scale=None, labels=None):
        return {"logits": super().forward(inputs * (1 if scale is None else scale))}


def as_dict(rows):
    x, y = zip(*rows, strict=True)
    return {"inputs": torch.stack(x), "target": torch.stack(y), "text": ["a"] * len(x)}


def test_dict_batches_and_the_key_of_labels():
    torch.manual_seed(0)
    model = Named().double()
    data = Data.DataLoader(Data.TensorDataset(X, INTS), 7, collate_fn=as_dict)
    lje = fitted(wrap(model, layer="head", label_key="target"), data)
    plain = fitted(wrap(model, layer="head"), loader(X, INTS))
    assert_close(lje.theta_dagger, plain.theta_dagger, 1e-15)
    ((element, values, samples),) = lje.top_k([as_dict(list(zip(X, INTS, strict=True)))], data, k=2)
    assert element["inputs"].shape == X.shape
    assert samples["inputs"].shape == (N, 2, D)
    assert values.shape == (N, 2)
    with pytest.raises(whence.WhenceError, match="Name their key"):
        fitted(wrap(model, layer="head"), data)


class WithLoss(Two):
    """Computes its own loss, and returns it in one of the usual ways."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x, labels=None):
        logits = super().forward(x)
        if labels is None:
            return self.how(None, logits)
        return self.how(F.cross_entropy(logits, labels, label_smoothing=0.1), logits)


@pytest.mark.parametrize(
    "how",
    [
        lambda loss, logits: SimpleNamespace(loss=loss, logits=logits),
        lambda loss, logits: {"logits": logits} if loss is None else {"loss": loss, "logits": logits},
        lambda loss, logits: (logits,) if loss is None else (loss, logits),
    ],
    ids=["attribute", "key", "tuple"],
)
def test_models_that_return_their_loss(how):
    torch.manual_seed(0)
    model = WithLoss(how).double()
    own = fitted(whence.InfluenceModel(model), loader(X, INTS))
    assert own.influence_model.loss == SoftmaxCrossEntropy(0.1)
    plain = Two().double()
    plain.load_state_dict(model.state_dict())
    given = fitted(wrap(plain, nn.CrossEntropyLoss(label_smoothing=0.1), layer="head"), loader(X, INTS))
    assert_close(own.theta_dagger, given.theta_dagger, 1e-14)
    np.testing.assert_array_equal(own.explain((X, INTS)).ids, given.explain((X, INTS)).ids)


def test_a_model_that_takes_labels_and_returns_no_loss():
    model = WithLoss(lambda loss, logits: logits).double()
    with pytest.raises(whence.WhenceError, match="Pass it as loss_function"):
        whence.InfluenceModel(model).index((X, INTS), progress=False)


def test_several_inputs():
    class Sum(Two):
        def forward(self, a, b):
            return super().forward(a + b)

    lje = fitted(wrap(Sum().double(), layer="head"), ((X / 2, X / 2), INTS))
    assert lje.explain(((X, X), INTS), k=2).ids.shape == (N, 2)


def test_loader_in_loader_out(lje):
    data = loader(X, INTS)
    values = lje.compute_influence_values(data)
    assert isinstance(values, Data.DataLoader)
    assert len(values) == len(data) == 4
    first, second = (torch.cat([v for _, v in values]) for _ in range(2))
    assert torch.equal(first, second)
    assert first.device.type == "cpu"
    for batch, nested in lje.estimate_influence_values_in_batches(loader(X[:5], INTS[:5], size=3), data):
        assert isinstance(nested, Data.DataLoader)
        assert torch.cat([s for _, s in nested], dim=1).shape == (len(batch[0]), N)
    for (x, _), found, samples in lje.top_k(loader(X[:5], INTS[:5], size=3), data, k=4):
        assert found.shape == (len(x), 4)
        assert samples.shape == (len(x), 4, D)
    samples, values = lje.compute_top_k_from_training_dataset(data, 3)
    assert samples.shape == (3, D)
    assert values.shape == (3,)


def test_shuffled_loader_is_recognised(lje):
    mixed = loader(X, INTS, shuffle=True, generator=torch.Generator().manual_seed(0))
    in_order = dict(
        zip(
            map(tuple, X.tolist()),
            torch.cat([v for _, v in lje.compute_influence_values(loader(X, INTS))]).tolist(),
            strict=True,
        )
    )
    seen = 0
    for (x, _), values in lje.compute_influence_values(mixed):
        assert [in_order[tuple(row)] for row in x.tolist()] == values.tolist()
        seen += len(x)
    assert seen == N
    with pytest.raises(whence.WhenceError, match="samples of the constructor's dataset"):
        lje.suspects(loader(X + 1, INTS))


def test_streams_and_datasets_without_batches(lje):
    class Stream(Data.IterableDataset):
        def __iter__(self):
            return iter(zip(X, INTS, strict=True))

    stream = Data.DataLoader(Stream(), 7)
    assert_close(fitted(wrap(net()), stream).theta_dagger, lje.theta_dagger, 1e-15)
    assert_close(fitted(wrap(net()), Data.TensorDataset(X, INTS)).theta_dagger, lje.theta_dagger, 1e-15)
    for single in (Stream(), loader(X, INTS, size=None)):
        with pytest.raises(whence.WhenceError, match="single samples"):
            fitted(wrap(net()), single)


def test_batches_without_labels(lje):
    with pytest.raises(whence.WhenceError, match="labels"):
        fitted(wrap(net()), loader(X))
    assert lje.explain(loader(X), k=2).labels is None


# ------------------------------------------------------------------------------ on a device


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.HuberLoss()], ids=["closed", "differentiated"])
def test_tensors_all_the_way(loss):
    """The CPU as a device: tensors in place of NumPy arrays, and none made on the default device."""
    y = INTS if isinstance(loss, nn.CrossEntropyLoss) else REALS
    data = [(X[:15].numpy(), y[:15].numpy()), (X[15:].numpy(), y[15:].numpy())]
    model = net()
    plain = fitted(wrap(model, loss), data)
    torch.set_default_device("meta")  # whatever is made without a device cannot be computed with
    try:
        there = fitted(wrap(model, loss, device="cpu"), data)
        assert isinstance(there.index.shards[0].phi, torch.Tensor)
        assert isinstance(there.ihvp._matrices[0], torch.Tensor)
        assert_close(there.theta_dagger, plain.theta_dagger, SOLVE)
        one, other = there.explain(data, k=3), plain.explain(data, k=3)
        np.testing.assert_array_equal(one.ids, other.ids)
        assert_close(one.values, other.values, SOLVE)
        for score in ("leave_one_out", "self_influence", "loss"):
            one, other = (m.suspects(data, None, score=score) for m in (there, plain))
            np.testing.assert_array_equal(one.ids, other.ids)
            assert_close(one.scores, other.scores, SOLVE)
        (_, one), (_, other) = (next(iter(m.compute_influence_vector(data))) for m in (there, plain))
        for a, b in zip(one, other, strict=True):
            assert_close(a, b, SOLVE)
    finally:
        torch.set_default_device(None)


def test_devices_that_are_not_there():
    for device, message in (("tpu", "a device of PyTorch"), ("cuda:9", "CUDA"), ("mps", "float64")):
        with pytest.raises(whence.WhenceError, match=message):
            wrap(net(), device=device)
    with pytest.raises(whence.WhenceError, match="the device that the model is on"):
        wrap(net(), device="meta")


def test_device_of_the_contract(lje):
    ((_, values), *_) = lje.compute_influence_values(loader(X, INTS), device="cpu")
    assert len(values) == 7
    with pytest.raises(whence.WhenceError, match="device"):
        lje.compute_influence_values(loader(X, INTS), device="cuda:9")


@pytest.mark.parametrize(
    "solver",
    [
        whence.CGDIHVPFactory(damping=1e-2),
        whence.LissaIHVPFactory(damping=1e-2),
        whence.KroneckerIHVPFactory(damping=1e-2),
        whence.ExactIHVPFactory(damping=0),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_every_solver_on_a_device(solver):
    """As above: tensors of the CPU where the default device has none."""
    data = [(X[:15].numpy(), INTS[:15].numpy()), (X[15:].numpy(), INTS[15:].numpy())]
    model = net()

    def answers(**options):
        wrapped = wrap(model, **options)
        lje = whence.RepresenterPointLJE(wrapped, data, solver, progress=False)
        influence = whence.InfluenceFunctions(wrapped, data, solver, progress=False)
        yield lje.influences(data, progress=False)
        yield np.concatenate([values for _, values in lje.compute_influence_values(data)])
        yield lje.suspects(data, None).scores
        yield lje.suspects(data, None, score="leave_one_out").scores
        yield influence.influences(data, progress=False)
        yield np.concatenate([values for _, values in influence.compute_influence_values(data)])

    plain = list(answers())
    torch.set_default_device("meta")
    try:
        there = list(answers(device="cpu"))
    finally:
        torch.set_default_device(None)
    for one, other in zip(there, plain, strict=True):
        assert_close(one, other, 1e-5 if "Lissa" in type(solver).__name__ else 1e-6)
