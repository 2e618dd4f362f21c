"""What a PyTorch model does with its layer's output, and losses that mix samples: against autograd."""

import functools

import numpy as np
import pytest
from tolerances import SOLVE, assert_close

import whence
from whence.data.base import open_dataset
from whence.layers.margin_losses import Poisson

torch = pytest.importorskip("torch")
from torch_reference import lje_values  # noqa: E402

nn, F = torch.nn, torch.nn.functional

N, D = 24, 4
RNG = np.random.default_rng(0)
X = torch.tensor(RNG.normal(size=(N, D)))
INTS = torch.tensor(RNG.integers(0, 3, N))
REALS = torch.tensor(RNG.normal(size=N))
BITS = (INTS > 0).double()
LAM = 1e-2


def fitted(model, dataset, loss=None, lam=LAM, layer=-1, **options):
    wrapped = whence.InfluenceModel(model, layer, loss_function=loss, **options)
    return whence.RepresenterPointLJE(
        wrapped, dataset, whence.ExactIHVPFactory(damping=lam), progress=False
    )


class Single(nn.Module):
    """One output, as the test says: a column, or squeezed away."""

    def __init__(self, squeeze):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.squeeze = nn.Linear(D, 3), nn.Linear(3, 1), squeeze
        self.double().eval()

    def forward(self, x):
        return self.squeeze(self.head(torch.tanh(self.body(x))))


SQUEEZES = {
    "column": lambda z: z,
    "squeeze(1)": lambda z: z.squeeze(1),
    "squeeze()": torch.squeeze,
    "view(-1)": lambda z: z.view(-1),
}
SINGLE = {
    "positive weight": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(9.0).double()), BITS),
    "binary": (nn.BCEWithLogitsLoss(), BITS),
    "huber": (nn.HuberLoss(delta=0.7), REALS),
    "smooth L1": (nn.SmoothL1Loss(beta=0.5), REALS),
    "poisson": (nn.PoissonNLLLoss(), BITS + 1),
    "squared error": (nn.MSELoss(), REALS),
    "squared error, summed": (nn.MSELoss(reduction="sum"), REALS),
    "soft margin": (nn.SoftMarginLoss(), 2 * BITS - 1),
    "a function": (lambda o, t: (o.reshape(-1) - t.reshape(-1)) ** 4, REALS),
}


@pytest.mark.pairwise
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("name", SINGLE)
def test_a_single_output_however_it_is_shaped(name, squeeze):
    loss, y = SINGLE[name]
    model = Single(SQUEEZES[squeeze])
    plain = loss if callable(loss) and not isinstance(loss, nn.Module) else None

    def sample_losses(call):
        output = call(X).reshape(-1)
        if plain is not None:
            return plain(output, y)
        return torch.stack([loss(o[None], t[None]) for o, t in zip(output, y, strict=True)])

    phi = torch.tanh(model.body(X[:3])).detach()
    expected = lje_values(model, "head", sample_losses, phi, [0, 0, 0], LAM)
    if name in (
        "binary",
        "positive weight",
        "soft margin",
    ):  # turned to speak for the prediction
        expected *= np.sign(model.head(phi).detach().numpy())
    for labels in (y, y[:, None]):
        lje = fitted(model, [(X[:15], labels[:15]), (X[15:16], labels[15:16]), (X[16:], labels[16:])], loss)
        got = lje.influences((X[:3], labels[:3]), outputs=0, progress=False)
        assert_close(got, expected, SOLVE)


def balanced(output, target):
    """Weighs classes by how often they occur in the batch."""
    weight = len(target) / torch.bincount(target, minlength=3)[target].to(output.dtype)
    return weight * F.cross_entropy(output, target, reduction="none")


def normalised(output, target):
    return F.cross_entropy(output, target, reduction="none") / len(target)


def contrastive(output, target):
    alike = (target[:, None] == target[None]).to(output.dtype)
    scores = F.log_softmax(F.normalize(output, dim=1) @ F.normalize(output, dim=1).T, dim=1)
    return -(alike * scores).sum(dim=1) / alike.sum(dim=1)


def centred(output, target):
    return F.mse_loss(output[:, 0], target - target.to(output.dtype).mean(), reduction="none")


@pytest.mark.pairwise
@pytest.mark.parametrize("loss", [balanced, normalised, contrastive, centred])
@pytest.mark.parametrize("sizes", [[24], [1, 23], [1] * 24, [8, 8, 8]], ids=str)
def test_losses_that_mix_samples_are_refused(loss, sizes):
    torch.manual_seed(0)
    batches = list(zip(X.split(sizes), INTS.split(sizes), strict=True))
    with pytest.raises(whence.WhenceError, match="depends on it alone"):
        fitted(nn.Linear(D, 3).double(), batches, loss, layer="")


@pytest.mark.parametrize("loss", [balanced, centred])
@pytest.mark.parametrize("scale", [1e-8, 1e6])
def test_losses_of_any_scale_that_mix_samples_are_refused(loss, scale):
    torch.manual_seed(0)
    with pytest.raises(whence.WhenceError, match="depends on it alone"):
        fitted(nn.Linear(D, 3).double(), (X, INTS), lambda o, t: scale * loss(o, t), layer="")


def test_what_is_said_of_probabilities_and_of_missing_labels_helps():
    torch.manual_seed(0)
    net, labels = nn.Sequential(nn.Linear(D, 3), nn.Softmax(1)).double(), INTS.clone()
    with pytest.raises(whence.WhenceError, match="pass it as a function"):
        fitted(net, (X, labels), nn.CrossEntropyLoss(), layer="0")
    model = whence.InfluenceModel(net, loss_function=lambda o, t: F.cross_entropy(o, t, reduction="none"))
    model.index((X, labels), progress=False)
    labels[3] = -100
    with pytest.raises(whence.WhenceError, match="Leave out the samples that have no label"):
        fitted(net[:1], (X, labels), nn.CrossEntropyLoss(), layer="0")


def test_a_branch_around_the_layer_is_seen_at_any_scale():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(D, 1)
            self.double()

        def forward(self, x):
            return 1e-6 * (self.head(x) + x[:, :1])

    with pytest.raises(whence.WhenceError, match="skip connection"):
        fitted(Around(), (X, 1e-6 * REALS), nn.HuberLoss(), layer="head")


def test_a_function_that_broadcasts_is_refused():
    torch.manual_seed(0)
    with pytest.raises(whence.WhenceError, match="outputs and labels of one shape"):
        fitted(nn.Linear(D, 1).double(), (X, REALS), lambda o, t: (o - t) ** 2, layer="")


# ----------------------------------------------------------------- what happens to positions


class Along(nn.Module):
    """A head on every position, and what the test does with its output."""

    def __init__(self, after, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.after = nn.Linear(D, 3), nn.Linear(3, 3, bias=bias), after
        self.double().eval()

    def features(self, x):
        return torch.tanh(self.body(x))

    def forward(self, x):
        return self.after(self.head(self.features(x)), x)


ROWS = torch.tensor(RNG.normal(size=(N, 5, D)))
IMAGES = torch.tensor(RNG.normal(size=(N, 2, 3, D)))
LABELS = {3: torch.tensor(RNG.integers(0, 3, (N, 5))), 4: torch.tensor(RNG.integers(0, 3, (N, 2, 3)))}
MOVED = {
    "classes second": (ROWS, lambda z, x: z.transpose(1, 2), nn.CrossEntropyLoss()),
    "classes second, of images": (IMAGES, lambda z, x: z.permute(0, 3, 1, 2), nn.CrossEntropyLoss()),
    "classes second, smoothed": (
        ROWS,
        lambda z, x: z.transpose(1, 2),
        nn.CrossEntropyLoss(label_smoothing=0.2),
    ),
    "classes second, ignoring": (ROWS, lambda z, x: z.transpose(1, 2), nn.CrossEntropyLoss(ignore_index=1)),
    "classes second, in its own words": (
        ROWS,
        lambda z, x: z.transpose(1, 2),
        lambda o, t: -(o.log_softmax(1) * F.one_hot(t, 3).transpose(1, 2)).sum(1),
    ),
    "a temperature, classes second": (ROWS, lambda z, x: 2 * z.transpose(1, 2), nn.CrossEntropyLoss()),
}


@pytest.mark.parametrize("name", MOVED)
def test_outputs_with_classes_on_the_second_axis(name):
    x, after, loss = MOVED[name]
    model, y = Along(after), LABELS[x.ndim]
    wrapped = whence.InfluenceModel(model, loss_function=loss)
    assert_close(*gradients_of(wrapped, model, loss, x, y), 1e-9)


def gradients_of(wrapped, model, loss, x, y):
    """The mean gradient, the library's and by autograd: of means over the positions that count."""
    index = wrapped.index([(x[:9], y[:9]), (x[9:], y[9:])], progress=False)
    got = np.asarray(wrapped.layer.mean_gradient(index))
    model.zero_grad()
    sum(loss(model(x[i : i + 1]), y[i : i + 1]).mean() / N for i in range(N)).backward()
    expected = model.head.weight.grad.T
    if model.head.bias is not None:
        expected = torch.cat([expected, model.head.bias.grad[None]])
    return got, expected


def test_values_with_units_on_the_second_axis():
    model = Along(lambda z, x: z.transpose(1, 2))
    y = torch.tensor(RNG.normal(size=(N, 3, 5)))
    for loss in (nn.MSELoss(), nn.HuberLoss(delta=0.5), lambda o, t: (o - t) ** 4):
        wrapped = whence.InfluenceModel(model, loss_function=loss)
        assert_close(*gradients_of(wrapped, model, loss, ROWS, y), 1e-9)


def last(z, x):
    """At the last place where the first input is above zero."""
    places = torch.arange(z.shape[1]) * (x[..., 0] > 0)
    return z[torch.arange(len(z)), places.argmax(dim=1)]


def masked_mean(z, x):
    mask = (x[..., 0] > 0).to(z.dtype)
    mask[:, 0] = 1
    return (z * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def focal(output, target):
    p = output.softmax(dim=1).gather(1, target[:, None])[:, 0]
    return -((1 - p) ** 2) * p.log()


POOLED = {
    "last": last,
    "first": lambda z, x: z[:, 0],
    "mean": lambda z, x: z.mean(dim=1),
    "masked mean": masked_mean,
    "last, then probabilities": lambda z, x: last(z, x).log_softmax(dim=1).exp().log(),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), focal], ids=["closed", "other"])
def test_positions_that_are_brought_together_behind_the_head(name, bias, loss):
    model, y = Along(POOLED[name], bias), LABELS[3][:, 0]
    wrapped = whence.InfluenceModel(model, loss_function=loss)
    assert_close(*gradients_of(wrapped, model, loss, ROWS, y), 1e-9)


def test_positions_that_are_brought_together_otherwise_are_refused():
    for after in (lambda z, x: z.amax(dim=1), lambda z, x: (z.softmax(dim=1) * z).sum(dim=1)):
        with pytest.raises(whence.WhenceError, match="brought together otherwise"):
            whence.InfluenceModel(Along(after), "head", loss_function=nn.CrossEntropyLoss()).index(
                (ROWS, LABELS[3][:, 0]), progress=False
            )


def test_sums_over_positions_of_one_length_alone():
    wrapped = whence.InfluenceModel(
        Along(lambda z, x: z.sum(dim=1)), "head", loss_function=nn.CrossEntropyLoss()
    )
    y = LABELS[3][:, 0]
    assert_close(*gradients_of(wrapped, wrapped.model, nn.CrossEntropyLoss(), ROWS, y), 1e-9)
    with pytest.raises(whence.WhenceError, match="as in the first batch"):
        wrapped.index([(ROWS, y), (ROWS[:, :3], y)], progress=False)


# ------------------------------------------------------------------- which layer it comes from


class Ended(nn.Module):
    """A linear layer, and an end that is none that the library knows."""

    def __init__(self, end, parts):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(D, 3)
        self.end, self.parts = end, parts
        self.double().eval()

    def forward(self, x):
        return self.end(self.parts, torch.tanh(self.first(x)))


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 1)
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
        self.table = nn.Embedding(3, 3)
        self.matrix = nn.Parameter(torch.randn(3, 3))
        self.norm = nn.BatchNorm1d(3)
        self.aside = nn.Linear(3, 2)
        self.last = nn.Linear(3, 3)


HIDDEN = {
    "a convolution": (lambda p, h: p.conv(h[..., None])[..., 0], "parts.conv.*Conv1d"),
    "F.linear": (lambda p, h: F.linear(h, p.matrix), "parts"),
    "a cosine": (lambda p, h: F.linear(F.normalize(h), F.normalize(p.matrix)), "parts"),
    "attention": (lambda p, h: p.attention(h[:, None], h[:, None], h[:, None])[0][:, 0], "parts.attention"),
    "tied weights": (lambda p, h: h @ p.table.weight.T, "parts.table.*Embedding"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_layer_is_not_taken_for_the_last(name):
    end, message = HIDDEN[name]
    model = Ended(end, Parts())
    loss = nn.CrossEntropyLoss()
    with pytest.raises(whence.WhenceError, match=rf"{message}[\s\S]*start_layer='first'"):
        whence.InfluenceModel(model, loss_function=loss).index((X, INTS), progress=False)
    wrapped = whence.InfluenceModel(model, "first", loss_function=loss)
    index = wrapped.index((X, INTS), progress=False)
    model.zero_grad()
    loss(model(X), INTS).backward()
    expected = torch.cat([model.first.weight.grad.T, model.first.bias.grad[None]])
    assert_close(wrapped.layer.mean_gradient(index), expected, 1e-9)


def aside(parts, h):
    logits = parts.last(h)
    parts.aside(h)
    return logits


@pytest.mark.parametrize(
    "end",
    [
        lambda p, h: p.last(h).softmax(dim=1),
        lambda p, h: p.last(h) / 0.3,
        lambda p, h: p.norm(p.last(h)),
        lambda p, h: p.last(h).cumsum(dim=1),
        lambda p, h: torch.tanh(p.last(h)),
        aside,
    ],
    ids=["softmax", "temperature", "normalised", "sums", "tanh", "a layer aside"],
)
def test_the_last_layer_is_the_one_that_the_output_comes_from(end):
    wrapped = whence.InfluenceModel(Ended(end, Parts()), loss_function=focal)
    wrapped.index((X, INTS), progress=False)
    assert wrapped.layer_name == "parts.last"


@pytest.mark.parametrize(
    "value", [-1.0, float("nan"), float("inf"), "0.1", None, True, (0.1, -1.0), (1.0, 2.0, 3.0)]
)
def test_weight_decay_is_checked(value):
    with pytest.raises(whence.WhenceError, match="weight_decay"):
        whence.InfluenceModel(nn.Linear(2, 2), loss_function=nn.CrossEntropyLoss(), weight_decay=value)


def test_weight_decay_of_two_groups():
    torch.manual_seed(0)
    model, loss = nn.Linear(D, 3).double(), nn.CrossEntropyLoss()
    wrapped = whence.InfluenceModel(model, loss_function=loss, weight_decay=(0.3, 0.0))
    index = wrapped.index((X, INTS), progress=False)
    plain = whence.InfluenceModel(model, loss_function=loss)
    undamped = plain.index((X, INTS), progress=False)
    penalties = np.tile([0.3] * D + [0.0], 3)
    both = [np.eye(15)[None].reshape(15, 3, 5).transpose(0, 2, 1)]
    got, bare = (
        w.layer.hessian_product(i, both[0]).transpose(0, 2, 1).reshape(15, 15)
        for w, i in ((wrapped, index), (plain, undamped))
    )
    assert_close(got - bare, np.diag(penalties), 1e-9)


@pytest.mark.parametrize("n_weights", [2, 4])
def test_class_weights_of_another_length(n_weights):
    weight = torch.ones(n_weights)
    for loss in (nn.CrossEntropyLoss(weight), nn.CrossEntropyLoss(weight, ignore_index=1)):
        with pytest.raises(whence.WhenceError, match="weight"):
            whence.InfluenceModel(nn.Linear(D, 3).double(), loss_function=loss).index(
                (X, INTS), progress=False
            )


class Exp(nn.Module):
    def forward(self, u):
        return torch.exp(u)


POISSON = {
    "of logarithms": (nn.PoissonNLLLoss(), nn.Identity(), True),
    "of means": (nn.PoissonNLLLoss(log_input=False, eps=1e-3), Exp(), True),
    "of means by softplus": (nn.PoissonNLLLoss(log_input=False), nn.Softplus(), False),
    "with Stirling's term": (nn.PoissonNLLLoss(full=True), nn.Identity(), False),
    "summed": (nn.PoissonNLLLoss(reduction="sum"), nn.Identity(), False),
    "a function": (functools.partial(nn.functional.poisson_nll_loss, log_input=False), Exp(), True),
}


@pytest.mark.parametrize("case", POISSON)
def test_poisson_has_a_closed_form_where_it_is_one(case):
    loss, tail, is_closed = POISSON[case]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), tail).double()
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.arange(18.0, dtype=torch.float64).reshape(9, 2) % 4
    wrapped = whence.InfluenceModel(net, loss_function=loss)
    (batch,) = open_dataset((x, y))
    seen = wrapped.observe(batch)
    assert isinstance(wrapped.loss, Poisson) == is_closed
    u = (np.hstack([x.numpy(), np.ones((9, 1))]) @ wrapped.theta()).astype(np.float64)
    alone = [float(loss(net(x[i : i + 1]), y[i : i + 1]).detach()) for i in range(9)]
    np.testing.assert_allclose(wrapped.loss.value(u, np.asarray(seen.target)), alone, rtol=1e-6)
    weights = net[0].weight
    of_first = torch.autograd.grad(loss(net(x[:1]), y[:1]), weights)[0].numpy()
    r = wrapped.loss.residual(u[:1], np.asarray(seen.target)[:1])
    np.testing.assert_allclose(np.outer(r[0], x[0].numpy()), of_first, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(wrapped.loss.predictions(u), net(x).detach().numpy(), rtol=1e-6)
