"""What a PyTorch model does with its layer's output, and losses that mix samples: against autograd."""

import numpy as np
import pytest
from tolerances import SOLVE, assert_close

import whence

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


@pytest.mark.parametrize("loss", [balanced, normalised, contrastive, centred])
@pytest.mark.parametrize("sizes", [[24], [1, 23], [1] * 24, [8, 8, 8]], ids=str)
def test_losses_that_mix_samples_are_refused(loss, sizes):
    torch.manual_seed(0)
    batches = list(zip(X.split(sizes), INTS.split(sizes), strict=True))
    with pytest.raises(whence.WhenceError, match="depends on it alone"):
        fitted(nn.Linear(D, 3).double(), batches, loss, layer="")


def test_a_function_that_broadcasts_is_refused():
    torch.manual_seed(0)
    with pytest.raises(whence.WhenceError, match="outputs and labels of one shape"):
        fitted(nn.Linear(D, 1).double(), (X, REALS), lambda o, t: (o - t) ** 2, layer="")
