"""Numbers of the sibling methods beside those that other libraries compute, on one torch layer.

    python benchmarks/siblings.py

RepresenterPointL2 beside dattri 0.3.0 (RPSAttributor), InfluenceFunctions beside pyDVL 0.10.0
(DirectInfluence), GradientDotProduct beside Captum 0.9.0 (TracInCPFast). What is not installed is left out;
each peer may stand in an environment of its own, with whence's source on the PYTHONPATH:

    python -m venv peer && peer/bin/pip install dattri array-api-compat   # or pydvl, or captum
    PYTHONPATH=src peer/bin/python benchmarks/siblings.py

``ratio`` is the least-squares multiple of whence's values that the peer's are: what the two count
differently, such as N. ``off by`` is the largest difference that is left, as a share of the largest value.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import parser
from torch.utils.data import DataLoader, TensorDataset

DAMPING, L2 = 1e-2, 3e-3
N_QUERIES = 20


class Setting:
    """A linear classifier in float64, near its minimum, its training samples and some queries."""

    def __init__(self, smoke: bool, bias: bool) -> None:
        n, d, n_classes = (120, 8, 3) if smoke else (1500, 32, 5)
        rng = np.random.default_rng(0)
        x = rng.normal(size=(n + N_QUERIES, d))
        y = np.argmax(x @ rng.normal(size=(d, n_classes)) + rng.gumbel(size=(len(x), n_classes)), axis=1)
        x, y = torch.tensor(x), torch.tensor(y)
        self.train, self.queries = (x[:n], y[:n]), (x[n:], y[n:])
        self.n = n
        torch.manual_seed(0)
        self.model = torch.nn.Sequential()
        self.model.add_module("fc", torch.nn.Linear(d, n_classes, bias=bias, dtype=torch.float64))
        optimiser = torch.optim.Adam(self.model.parameters(), 1e-2)
        for _ in range(300):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(self.model(x[:n]), y[:n]).backward()
            optimiser.step()
        self.model.eval()

    def loader(self, arrays: Any, size: int = 256) -> DataLoader:
        return DataLoader(TensorDataset(*arrays), size)

    @property
    def wrapped(self) -> Any:
        import whence

        return whence.InfluenceModel(self.model, loss_function=torch.nn.CrossEntropyLoss())


def representer_points(smoke: bool) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield dattri's values and ours: from its own fit, and its formula at the weights of our fit."""
    from dattri.algorithm.rps import RPSAttributor
    from dattri.algorithm.utils import get_rps_weight
    from dattri.task import AttributionTask

    import whence

    setting = Setting(smoke, bias=False)  # dattri has no bias
    method = whence.RepresenterPointL2(setting.wrapped, setting.train, L2, progress=False)
    ours = method.influences(setting.queries, outputs=setting.queries[1].numpy())
    loss, state = torch.nn.functional.cross_entropy, setting.model.state_dict()
    task = AttributionTask(lambda u, y: loss(u, y), setting.model, state)
    theirs = RPSAttributor(task, "fc", l2_strength=L2)
    before = setting.model.fc.weight.detach().clone()
    theirs.cache(setting.loader(setting.train))
    values = theirs.attribute(setting.loader(setting.train), setting.loader(setting.queries))
    yield "RPS-L2, dattri's own fit", values.detach().numpy().T, ours
    theta = torch.from_numpy(method.refitted_layer.theta.T.copy())
    u = setting.train[0] @ before.T
    alpha = get_rps_weight(theta, loss, setting.train[0], u, setting.queries[1], L2)
    kernel = setting.train[0] @ setting.queries[0].T
    yield "RPS-L2, dattri's formula, our fit", (kernel * alpha).detach().numpy().T, ours


def influence_functions(smoke: bool) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield pyDVL's values and ours, and self-influence."""
    from pydvl.influence.torch import DirectInfluence

    import whence

    setting = Setting(smoke, bias=True)
    loss = torch.nn.functional.cross_entropy
    method = whence.InfluenceFunctions(
        setting.wrapped, setting.train, whence.ExactIHVPFactory(DAMPING), progress=False
    )
    theirs = DirectInfluence(setting.model, loss, regularization=DAMPING).fit(setting.loader(setting.train))
    with torch.no_grad():
        factors = theirs.influence_factors(*setting.queries)
        values = theirs.influences_from_factors(factors, *setting.train).numpy()
        own = theirs.influences_from_factors(theirs.influence_factors(*setting.train), *setting.train)
    yield "influence on losses", values, method.influences(setting.queries)
    ours = np.concatenate([v for _, v in method.compute_influence_values(setting.train)])
    yield "self-influence", own.diagonal().numpy(), ours


def gradients(smoke: bool) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield Captum's dot products of gradients and ours."""
    from captum.influence import TracInCPFast

    import whence

    setting = Setting(smoke, bias=False)  # Captum leaves the bias out
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "weights.pt")
        torch.save(setting.model.state_dict(), path)

        def load(model: Any, file: str) -> float:
            model.load_state_dict(torch.load(file, weights_only=True))
            return 1.0

        theirs = TracInCPFast(
            setting.model,
            "fc",
            setting.loader(setting.train),
            [path],
            load,
            torch.nn.CrossEntropyLoss(reduction="sum"),
            batch_size=None,
        )
        values = theirs.influence(setting.queries).numpy()
    method = whence.GradientDotProduct(setting.wrapped, setting.train, progress=False)
    yield "gradient dot product", values, method.influences(setting.queries)


PEERS: dict[str, Callable[[bool], Iterator[tuple[str, np.ndarray, np.ndarray]]]] = {
    "dattri": representer_points,
    "pydvl": influence_functions,
    "captum": gradients,
}


def main() -> None:
    """Print a line for each comparison."""
    options = parser(__doc__)
    smoke = options.parse_args().smoke
    print(f"{'peer':8s}{'value':36s}{'ratio':>12s}{'off by':>10s}{'Pearson':>10s}")
    for peer, compare in PEERS.items():
        if importlib.util.find_spec(peer) is None:
            print(f"{peer:8s}not installed")
            continue
        for name, theirs, ours in compare(smoke):
            theirs, ours = theirs.astype(np.float64).ravel(), np.asarray(ours, np.float64).ravel()
            ratio = (theirs @ ours) / (ours @ ours)
            off = np.abs(theirs - ratio * ours).max() / np.abs(theirs).max()
            pearson = np.corrcoef(theirs, ours)[0, 1]
            print(f"{peer:8s}{name:36s}{ratio:12.6g}{off:10.1e}{pearson:10.6f}")


if __name__ == "__main__":
    main()
