"""PyTorch modules that return their own loss, whatever it is: against autograd on the whole module."""

import numpy as np
import pytest
from tolerances import SOLVE, assert_close

import whence
from whence.layers.losses import SoftmaxCrossEntropy, SquaredError
from whence.models.differentiated import DifferentiatedLoss

torch = pytest.importorskip("torch")
from torch_reference import lje_values  # noqa: E402

nn, F = torch.nn, torch.nn.functional

N, D, C, L = 20, 4, 3, 5
RNG = np.random.default_rng(0)
X = torch.tensor(RNG.normal(size=(N, D)))
INTS = torch.tensor(RNG.integers(0, C, N))
REALS = torch.tensor(20 + 10 * RNG.normal(size=N))
ROWS = torch.tensor(RNG.normal(size=(N, L, D)))
WORDS = torch.tensor(RNG.integers(0, C, (N, L)))
LAM = 1e-2
SHIFT = torch.tensor([0.0, 1.0, 2.0]).double()
WEIGHT = torch.tensor([1.0, 2.0, 0.5]).double()


class Own(nn.Module):
    """Returns the loss that the test says of its output and labels."""

    def __init__(self, loss, outputs=C, parts=1):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Linear(D, 4), nn.Linear(4, outputs)
        self.other = nn.Linear(4, 2)
        self.loss = loss
        self.double().eval()

    def features(self, inputs):
        return torch.tanh(self.body(inputs))

    def forward(self, inputs, labels=None):
        logits = self.head(self.features(inputs))
        if labels is None:
            return {"logits": logits}
        return {"loss": self.loss(logits, labels), "logits": logits}


def arcface(z, y):
    """A margin on the angle to the label's class: what cross-entropy is on hinges on the label."""
    cosines = F.normalize(z, dim=1)
    return F.cross_entropy(4 * (cosines - 0.3 * F.one_hot(y, C)), y)


def focal(z, y):
    p = z.softmax(dim=1).gather(1, y[:, None])[:, 0]
    return (-((1 - p) ** 2) * p.log()).mean()


CLASSES = {
    "plain": (lambda z, y: F.cross_entropy(z, y), SoftmaxCrossEntropy),
    "smoothed": (lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1), SoftmaxCrossEntropy),
    "summed": (lambda z, y: F.cross_entropy(z, y, reduction="sum"), SoftmaxCrossEntropy),
    "reduced outside": (lambda z, y: F.cross_entropy(z, y, reduction="none").mean(), SoftmaxCrossEntropy),
    "divided by the batch": (
        lambda z, y: F.cross_entropy(z, y, reduction="sum") / len(y),
        SoftmaxCrossEntropy,
    ),
    "renumbered": (lambda z, y: F.cross_entropy(z, 2 - y), SoftmaxCrossEntropy),
    "a constant beside it": (lambda z, y: F.cross_entropy(z, y) + 3.0, SoftmaxCrossEntropy),
    "tripled": (lambda z, y: 3 * F.cross_entropy(z, y), DifferentiatedLoss),
    "temperature": (lambda z, y: F.cross_entropy(z / 0.3, y), DifferentiatedLoss),
    "logit adjustment": (lambda z, y: F.cross_entropy(z + SHIFT, y), DifferentiatedLoss),
    "margins": (arcface, DifferentiatedLoss),
    "focal": (focal, DifferentiatedLoss),
    "by hand": (lambda z, y: -z.log_softmax(1).gather(1, y[:, None]).sum(), DifferentiatedLoss),
    "a penalty on the output": (
        lambda z, y: F.cross_entropy(z, y) + 0.1 * z.logsumexp(1).pow(2).mean(),
        DifferentiatedLoss,
    ),
    "two losses": (
        lambda z, y: F.cross_entropy(z, y) + F.mse_loss(z, F.one_hot(y, C).to(z.dtype)),
        DifferentiatedLoss,
    ),
    "a loop over values": (
        lambda z, y: sum(F.softplus(-r[int(t)]) for r, t in zip(z, y, strict=True)) / len(y),
        DifferentiatedLoss,
    ),
}
VALUES = {
    "squared error": (lambda z, y: F.mse_loss(z.squeeze(), y), SquaredError),
    "standardised": (lambda z, y: F.mse_loss(z.squeeze(-1), (y - 20) / 10), SquaredError),
    "standardised rows": (lambda z, y: F.mse_loss(z, (y[:, None] - 20) / 10), SquaredError),
    "huber": (lambda z, y: F.huber_loss(z[:, 0], y, delta=25), DifferentiatedLoss),
    "scaled output": (lambda z, y: F.mse_loss(10 * z[:, 0] + 20, y), DifferentiatedLoss),
    "in its own words": (lambda z, y: ((z[:, 0] - y) ** 4).mean() / 1e4, DifferentiatedLoss),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", [*CLASSES, *VALUES])
def test_values_are_those_of_the_loss_that_the_module_computes(name):
    loss, kind = {**CLASSES, **VALUES}[name]
    y, outputs = (INTS, C) if name in CLASSES else (REALS, 1)
    model = Own(loss, outputs)
    lam = 50.0 if name == "margins" else LAM  # its Hessian is indefinite
    batches = [{"inputs": X[i:j], "labels": y[i:j]} for i, j in ((0, 9), (9, 10), (10, N))]
    lje = whence.RepresenterPointLJE(
        whence.InfluenceModel(model), batches, whence.ExactIHVPFactory(damping=lam), progress=False
    )
    assert isinstance(lje.influence_model.loss, kind)
    assert lje.influence_model.layer_name == "head"
    got = lje.influences([{"inputs": X[:3]}], outputs=0, progress=False)

    def sample_losses(call):
        return torch.stack([call(X[i : i + 1], y[i : i + 1])["loss"] for i in range(N)])

    expected = lje_values(model, "head", sample_losses, model.features(X[:3]).detach(), [0] * 3, lam)
    assert_close(got, expected, SOLVE)
    classes = lje.influence_model.loss.is_classification
    assert classes == (name in CLASSES)


def test_class_weights_count_as_where_the_loss_is_given():
    own = whence.InfluenceModel(Own(lambda z, y: F.cross_entropy(z, y, weight=WEIGHT)))
    given = whence.InfluenceModel(
        Own(None), "head", loss_function=nn.CrossEntropyLoss(weight=WEIGHT), forward=lambda m, b: m(b[0])
    )
    assert_close(*(mean_gradient(wrapped) for wrapped in (own, given)), 1e-12)


def mean_gradient(wrapped):
    index = wrapped.index((X, INTS), progress=False)
    return wrapped.layer.mean_gradient(index)


def shifted(z, y):
    return F.cross_entropy(z[:, :-1].reshape(-1, C), y[:, 1:].reshape(-1))


def padded(z, y):
    """As transformers shift labels."""
    after = F.pad(y, (0, 1), value=-100)[:, 1:]
    return F.cross_entropy(z.reshape(-1, C), after.reshape(-1), ignore_index=-100)


ALONG = {
    "each position": (lambda z, y: F.cross_entropy(z.reshape(-1, C), y.reshape(-1)), SoftmaxCrossEntropy),
    "classes second": (lambda z, y: F.cross_entropy(z.transpose(1, 2), y), SoftmaxCrossEntropy),
    "shifted": (shifted, SoftmaxCrossEntropy),
    "shifted and padded": (padded, SoftmaxCrossEntropy),
    "shifted, classes second": (
        lambda z, y: F.cross_entropy(z[:, :-1].transpose(1, 2), y[:, 1:]),
        SoftmaxCrossEntropy,
    ),
    "shifted, with a temperature": (lambda z, y: shifted(z / 2, y), DifferentiatedLoss),
    "backwards": (
        lambda z, y: F.cross_entropy(z[:, 1:].reshape(-1, C), y[:, :-1].reshape(-1)),
        SoftmaxCrossEntropy,
    ),
}


@pytest.mark.parametrize("name", ALONG)
def test_losses_along_a_sequence(name):
    loss, kind = ALONG[name]
    model = Own(loss)
    labels = WORDS.clone()
    labels[3, 2:] = -100
    batches = [{"inputs": ROWS[i:j], "labels": labels[i:j]} for i, j in ((0, 9), (9, 10), (10, N))]
    wrapped = whence.InfluenceModel(model)
    products = whence.GradientDotProduct(wrapped, batches, effect_on="pre_activation", progress=False)
    assert isinstance(wrapped.loss, kind)
    got = products.influences([{"inputs": ROWS[:2]}], outputs=1, positions=3, progress=False)
    phi = torch.cat([model.features(ROWS[:2, 3]), torch.ones(2, 1).double()], dim=1).detach()
    expected = np.zeros((2, N))
    for i in range(N):
        model.zero_grad()
        model(ROWS[i : i + 1], labels[i : i + 1])["loss"].backward()
        gradient = torch.cat([model.head.weight.grad[1], model.head.bias.grad[1:2]])
        expected[:, i] = -(phi @ gradient) / N
    assert_close(got, expected, 1e-9)


class WithHead(Own):
    """Adds a term that the target layer has no part in, or that its weights enter by themselves."""

    def __init__(self, term):
        super().__init__(lambda z, y: F.cross_entropy(z, y))
        self.term = term

    def forward(self, inputs, labels=None):
        result = super().forward(inputs, labels)
        if labels is not None:
            result["loss"] = result["loss"] + self.term(self, inputs)
        return result


def test_terms_that_the_layer_has_no_part_in_change_nothing():
    model = WithHead(lambda m, x: 0.01 * m.other(m.features(x)).pow(2).mean())
    plain = whence.InfluenceModel(Own(lambda z, y: F.cross_entropy(z, y)))
    wrapped = whence.InfluenceModel(model)
    assert_close(*(mean_gradient(w) for w in (wrapped, plain)), 1e-12)
    assert wrapped.layer_name == "head"


def test_terms_of_the_layers_weights_are_refused():
    model = WithHead(lambda m, x: 0.01 * m.head.weight.pow(2).sum())
    with pytest.raises(whence.WhenceError, match="weight_decay"):
        whence.InfluenceModel(model).index((X, INTS), progress=False)


def by_share(z, y):
    counts = torch.bincount(y, minlength=C).to(z.dtype)
    return F.cross_entropy(z, y, weight=len(y) / counts.clamp(min=1))


def by_share_by_hand(z, y):
    weight = len(y) / torch.bincount(y, minlength=C).clamp(min=1)
    return (weight[y] * F.cross_entropy(z, y, reduction="none")).mean()


@pytest.mark.parametrize("loss", [by_share, by_share_by_hand])
def test_batches_of_one_sample_do_not_hide_that_samples_mix(loss):
    with pytest.raises(
        whence.WhenceError, match=r"weighted by the batch|hinges on the batch|same settings"
    ):
        whence.InfluenceModel(Own(loss)).index(
            list(zip(X.split(1), INTS.split(1), strict=True)), progress=False
        )


def test_a_loss_that_is_another_one_in_training_is_refused():
    class Smoothing(Own):
        def forward(self, inputs, labels=None):
            smoothing = 0.1 if self.training else 0.0
            self.loss = lambda z, y: F.cross_entropy(self.drawn(z), y, label_smoothing=smoothing)
            return super().forward(inputs, labels)

    model = Smoothing(None)
    model.drawn = nn.Dropout(0.5)
    before = torch.random.get_rng_state()
    for training in (True, False):
        model.train(training)
        with pytest.raises(whence.WhenceError, match="in training as in eval mode"):
            whence.InfluenceModel(model, "head").index((X, INTS), progress=False)
        assert model.training == model.drawn.training == training
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_module_that_squeezes_its_output_is_not_run_on_labels_of_another_shape(recwarn):
    model = Own(lambda z, y: F.mse_loss(z.squeeze(), y), outputs=1)
    whence.InfluenceModel(model).index([(X[:12], REALS[:12]), (X[12:], REALS[12:])], progress=False)
    assert not recwarn.list


def test_a_loss_alone_is_refused():
    class Bare(Own):
        def forward(self, inputs, labels=None):
            return super().forward(inputs, labels)["logits" if labels is None else "loss"]

    model = Bare(F.cross_entropy)
    with pytest.raises(whence.WhenceError, match="loss_function"):
        whence.InfluenceModel(model).index((X, INTS), progress=False)
    whence.InfluenceModel(model, loss_function=F.cross_entropy).index((X, INTS), progress=False)


def clip(z, y):
    return F.cross_entropy(z @ z.T, torch.arange(len(z)))


REFUSED = {
    "classes weighted by their share": (by_share, X, INTS, C, "weighted by the batch|same settings"),
    "pairs in the batch": (clip, X, INTS, C, "depend on each other|depends on it alone"),
    "the same, of a small scale": (
        lambda z, y: 1e-5 * by_share_by_hand(z, y),
        X,
        INTS,
        C,
        "weighted by the batch|same settings",
    ),
    "targets less their mean": (
        lambda z, y: F.mse_loss(z[:, 0], y - y.mean()),
        X,
        REALS,
        1,
        "depend on each other",
    ),
    "the same, of small targets": (
        lambda z, y: F.mse_loss(1e-4 * z[:, 0], 1e-4 * (y - y.mean())),
        X,
        REALS,
        1,
        "depend on each other",
    ),
    "labels counted from the lowest": (
        lambda z, y: F.cross_entropy(z, y - y.min()),
        X,
        INTS,
        C,
        "depend on each other",
    ),
    "a broadcast": (lambda z, y: F.mse_loss(z, y), X, REALS, 1, "depend on each other"),
    "a sequence, in its own words": (
        lambda z, y: -z.log_softmax(-1).gather(-1, y[..., None]).mean(),
        ROWS,
        WORDS,
        C,
        "one number for each position",
    ),
    "none": (lambda z, y: None, X, INTS, C, "got None"),
    "none of one number": (lambda z, y: F.cross_entropy(z, y, reduction="none"), X, INTS, C, "shape"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_losses_without_an_answer(name):
    loss, x, y, outputs, message = REFUSED[name]
    with pytest.raises(whence.WhenceError, match=message):
        whence.InfluenceModel(Own(loss, outputs)).index(
            [(x[:12], y[:12]), (x[12:], y[12:])], progress=False
        )
