"""Functions of the user that run a PyTorch model and compute its losses: against autograd."""

import itertools

import numpy as np
import pytest
from tolerances import SOLVE, assert_close

import whence

torch = pytest.importorskip("torch")
from torch_reference import lje_values  # noqa: E402

nn, F = torch.nn, torch.nn.functional
N, D, C = 20, 4, 3
RNG = np.random.default_rng(0)
X = torch.tensor(RNG.normal(size=(N, D)))
Y = torch.tensor(RNG.integers(0, C, N))
COST = torch.tensor(RNG.random((N, C)))
LAM = 1.0


class Net(nn.Module):
    """Returns two tensors, of which no rule can know which counts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(D, 3), nn.Linear(3, C)
        self.double().eval()

    def forward(self, x, scale):
        features = torch.tanh(self.body(x)) * scale
        return features, self.head(features)


def forward(model, batch):
    return model(batch["x"], 0.5)[1]


def cost_sensitive(outputs, batch):
    """Cross-entropy plus what the expected class costs, which stands in the batch."""
    costs = (outputs.softmax(dim=1) * batch["cost"]).sum(dim=1)
    return F.cross_entropy(outputs, batch["labels"], reduction="none") + costs


def batches(*cuts):
    edges = [0, *cuts, N]
    return [{"x": X[i:j], "cost": COST[i:j], "labels": Y[i:j]} for i, j in itertools.pairwise(edges)]


def fitted(model, data, **options):
    wrapped = whence.InfluenceModel(model, **options)
    return whence.RepresenterPointLJE(wrapped, data, whence.ExactIHVPFactory(damping=LAM), progress=False)


@pytest.mark.parametrize("cuts", [(), (7,), (1, 2)], ids=str)
def test_what_the_loss_reads_of_the_batch_is_stored(cuts):
    model = Net()
    lje = fitted(model, batches(*cuts), forward=forward, loss=cost_sensitive, classes=True)

    def sample_losses(call):
        outputs = call(X, 0.5)[1]
        return cost_sensitive(outputs, {"labels": Y, "cost": COST})

    phi = model(X[:3], 0.5)[0].detach()
    expected = lje_values(model, "head", sample_losses, phi, [1, 1, 1], LAM)
    assert_close(lje.influences([{"x": X[:3]}], outputs=1, progress=False), expected, SOLVE)
    explanation = lje.explain(batches(), k=3)
    np.testing.assert_array_equal(explanation.labels, Y)
    np.testing.assert_array_equal(explanation.predictions, model(X, 0.5)[1].argmax(dim=1))
    assert len(lje.suspects(batches(), k=3)) == 3


def test_forward_alone_and_tuples():
    model = Net()
    own = fitted(
        model,
        [(X, Y)],
        forward=lambda m, batch: m(batch[0], 0.5)[1],
        loss_function=nn.CrossEntropyLoss(),
    )
    other = fitted(
        model,
        [(X, Y)],
        forward=lambda m, batch: m(batch[0], 0.5)[1],
        loss=lambda outputs, batch: F.cross_entropy(outputs, batch[1], reduction="none"),
        classes=True,
    )
    assert_close(own.theta_dagger, other.theta_dagger, 1e-9)


def test_loss_alone_along_a_sequence():
    rows, words = torch.tensor(RNG.normal(size=(N, 5, D))), torch.tensor(RNG.integers(0, C, (N, 5)))
    torch.manual_seed(0)
    model = nn.Linear(D, C).double()
    options = (
        {"loss_function": nn.CrossEntropyLoss()},
        {"loss": lambda o, b: F.cross_entropy(o.transpose(1, 2), b[1], reduction="none")},
    )
    results = [fitted(model, [(rows, words)], **option).theta_dagger for option in options]
    assert_close(*results, 1e-9)


def some_batches(outputs, batch):
    """Reads the costs where labels are large."""
    losses = F.cross_entropy(outputs, batch["labels"], reduction="none")
    return losses + (outputs * batch["cost"]).sum(dim=1) if batch["labels"].max() == 2 else losses


REFUSED = {
    "two losses": ({"loss": cost_sensitive, "loss_function": nn.CrossEntropyLoss()}, "one of the two"),
    "no function": ({"loss": 3, "forward": forward}, "loss.outputs, batch"),
    "three arguments": ({"forward": lambda a, b, c: a, "loss": cost_sensitive}, "forward.model, batch"),
    "two outputs": ({"forward": lambda m, b: m(b["x"], 1.0), "loss": cost_sensitive}, "one output"),
    "a single number": (
        {"forward": forward, "loss": lambda o, b: F.cross_entropy(o, b["labels"])},
        "one number a sample|single number",
    ),
    "samples that mix": (
        {"forward": forward, "loss": lambda o, b: cost_sensitive(o, b) / b["cost"].mean()},
        "depends on it alone",
    ),
    "other parts of other batches": ({"forward": forward, "loss": some_batches}, "first|refused"),
    "no gradient": (
        {"forward": forward, "loss": lambda o, b: (o.argmax(1) == b["labels"]).double()},
        "without a gradient",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_functions_without_an_answer(name):
    options, message = REFUSED[name]
    data = sorted(batches(*range(1, N)), key=lambda batch: int(batch["labels"].max()))
    with pytest.raises(whence.WhenceError, match=message):
        fitted(Net(), data, **options)
