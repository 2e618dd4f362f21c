"""Scores of all training samples for 100 queries, beside other libraries on the same torch layer.

    python benchmarks/peers.py

The model is one ``torch.nn.Linear`` behind given features, trained with cross-entropy; every library
gets it whole, so that each computes on the same layer. Timed is the CPU time of fit, scores of all N
training samples for 100 queries, and self-influence of all. Each method runs in a process of its own;
peak memory is that of the process above what it held before the fit. ``spearman`` is the mean rank
correlation of its scores with the dense float64 solution (for ``gradient``: with its float64 product).

Peers: Captum (TracInCPFast: no Hessian, and no bias), pyDVL (DirectInfluence) and dattri
(IFAttributorExplicit). Those that are not installed are left out, and so is what takes over ``--limit``
seconds. They and whence go into an environment of their own:

    pip install -e '.[torch]' captum pydvl dattri
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from _common import BATCH, N_QUERIES, SMOKE, WORKLOADS, data_of, parser, peak_megabytes

DAMPING = 1e-3
Data = torch.utils.data


class Setting:
    """A trained layer, its training samples and the queries."""

    def __init__(self, name: str) -> None:
        self.work = next(w for w in [*WORKLOADS, *SMOKE] if w.name == name)
        x, y = data_of(self.work)
        self.x, self.y = torch.tensor(x), torch.tensor(y)
        self.n_queries = min(N_QUERIES, self.work.n // 5)
        torch.manual_seed(0)
        self.model = torch.nn.Sequential()
        self.model.add_module("fc", torch.nn.Linear(self.work.d, self.work.c))
        optimizer = torch.optim.Adam(self.model.parameters(), 1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.model(self.x), self.y).backward()
            optimizer.step()
        self.model.eval()

    @property
    def queries(self) -> tuple[Any, Any]:
        return self.x[: self.n_queries], self.y[: self.n_queries]

    def loader(self, size: int = BATCH) -> Any:
        return Data.DataLoader(Data.TensorDataset(self.x, self.y), size)

    def query_loader(self) -> Any:
        return Data.DataLoader(Data.TensorDataset(*self.queries), self.n_queries)

    def gradients(self) -> tuple[Any, Any]:
        """Return features with their constant and residuals, in float64."""
        with torch.no_grad():
            phi = torch.cat([self.x, torch.ones(len(self.x), 1)], dim=1).double()
            fc = self.model.fc
            u = phi @ torch.cat([fc.weight, fc.bias[:, None]], dim=1).double().T
            return phi, u.softmax(1) - torch.nn.functional.one_hot(self.y, self.work.c)


def reference(setting: Setting) -> tuple[Any, Any]:
    """Dense float64: blocks of the Hessian, Cholesky, scores and self-influence."""
    phi, r = setting.gradients()
    p = r + torch.nn.functional.one_hot(setting.y, setting.work.c)
    n, d, c = len(phi), phi.shape[1], setting.work.c
    hessian = torch.zeros(c * d, c * d, dtype=torch.float64)
    for a in range(c):
        for b in range(a + 1):
            k = p[:, a] * (float(a == b) - p[:, b])
            block = (phi * k[:, None]).T @ phi / n
            hessian[a * d : (a + 1) * d, b * d : (b + 1) * d] = block
            hessian[b * d : (b + 1) * d, a * d : (a + 1) * d] = block.T
    factor = torch.linalg.cholesky(hessian + DAMPING * torch.eye(c * d, dtype=torch.float64))
    t = setting.n_queries
    g = (r[:t, :, None] * phi[:t, None, :]).reshape(t, -1)
    solved = torch.cholesky_solve(g.T, factor).T.reshape(t, c, d)
    # <S_t, r_i (x) phi_i>
    images = (phi @ solved.permute(2, 0, 1).reshape(d, -1)).reshape(n, t, c)
    scores = (images * r[:, None, :]).sum(2).T
    own = []
    for rows in range(0, n, 1000):
        part = (r[rows : rows + 1000, :, None] * phi[rows : rows + 1000, None, :]).reshape(-1, c * d)
        own.append((torch.linalg.solve_triangular(factor, part.T, upper=False) ** 2).sum(0))
    return scores, torch.cat(own)


def dense_gradient(setting: Setting) -> tuple[Any, Any]:
    """The gradient product in float64, to compare those without a Hessian with."""
    phi, r = setting.gradients()
    t = setting.n_queries
    return (phi[:t] @ phi.T) * (r[:t] @ r.T), (phi**2).sum(1) * (r**2).sum(1)


def _whence(setting: Setting, make: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    import whence

    model = whence.InfluenceModel(setting.model, loss_function=torch.nn.CrossEntropyLoss())
    method = make(model, (setting.x, setting.y))
    scores = method.influences(setting.queries, progress=False)
    own = [values for _, values in method.compute_influence_values(setting.loader())]
    return torch.as_tensor(scores), torch.cat(own)


def whence_exact(setting: Setting) -> tuple[Any, Any]:
    import whence

    solver = whence.ExactIHVPFactory(damping=DAMPING)
    return _whence(setting, lambda m, data: whence.InfluenceFunctions(m, data, solver, progress=False))


def whence_kronecker(setting: Setting) -> tuple[Any, Any]:
    import whence

    solver = whence.KroneckerIHVPFactory(damping=DAMPING)
    return _whence(setting, lambda m, data: whence.InfluenceFunctions(m, data, solver, progress=False))


def whence_gradient(setting: Setting) -> tuple[Any, Any]:
    import whence

    return _whence(setting, lambda m, data: whence.GradientDotProduct(m, data, progress=False))


def captum_tracin_fast(setting: Setting) -> tuple[Any, Any]:
    from captum.influence import TracInCPFast

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "weights.pt")
        torch.save(setting.model.state_dict(), path)

        def load(model: Any, file: str) -> float:
            model.load_state_dict(torch.load(file))
            return 1.0

        loss = torch.nn.CrossEntropyLoss(reduction="sum")
        method = TracInCPFast(
            setting.model, "fc", setting.loader(), [path], load, loss, batch_size=None, vectorize=True
        )
        return method.influence(setting.queries), method.self_influence()


def pydvl_direct(setting: Setting) -> tuple[Any, Any]:
    from pydvl.influence.torch import DirectInfluence

    loss = torch.nn.functional.cross_entropy
    method = DirectInfluence(setting.model, loss, regularization=DAMPING).fit(setting.loader())
    scores, own = [], []
    with torch.no_grad():
        factors = method.influence_factors(*setting.queries)
        for x, y in setting.loader():
            scores.append(method.influences_from_factors(factors, x, y))
            mine = method.influence_factors(x, y)
            own.append(method.influences_from_factors(mine, x, y).diagonal())
    return torch.cat(scores, dim=1), torch.cat(own)


def dattri_explicit(setting: Setting) -> tuple[Any, Any]:
    from dattri.algorithm.influence_function import IFAttributorExplicit
    from dattri.task import AttributionTask

    def loss(parameters: Any, data: Any) -> Any:
        x, y = data
        output = torch.func.functional_call(setting.model, parameters, (x,))
        return torch.nn.functional.cross_entropy(output, y.long())

    task = AttributionTask(loss, setting.model, setting.model.state_dict())
    method = IFAttributorExplicit(task, regularization=DAMPING)
    method.cache(Data.DataLoader(Data.TensorDataset(setting.x, setting.y), len(setting.x)))
    with torch.no_grad():
        scores = method.attribute(setting.loader(), setting.query_loader())
        return scores.T, method.self_attribute(setting.loader(len(setting.x)))


METHODS: dict[str, tuple[str | None, Callable[[Setting], tuple[Any, Any]]]] = {
    "reference": (None, reference),
    "whence exact": (None, whence_exact),
    "whence kronecker": (None, whence_kronecker),
    "whence gradient": (None, whence_gradient),
    "captum TracInCPFast": ("captum", captum_tracin_fast),
    "pydvl DirectInfluence": ("pydvl", pydvl_direct),
    "dattri IFAttributorExplicit": ("dattri", dattri_explicit),
}
WITHOUT_HESSIAN = ("whence gradient", "captum TracInCPFast")


def run(workload: str, method: str) -> dict[str, Any]:
    """Run one method in this process."""
    warnings.simplefilter("ignore")
    setting = Setting(workload)
    compute = METHODS[method][1]
    compute(Setting("smoke"))  # imports and the first calls of everything
    before = peak_megabytes()
    wall, cpu = time.perf_counter(), time.process_time()
    scores, own = compute(setting)
    seconds = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    memory = peak_megabytes() - before
    exact, exact_own = (dense_gradient if method in WITHOUT_HESSIAN else reference)(setting)
    close = np.mean(
        [scipy.stats.spearmanr(a, b)[0] for a, b in zip(np.asarray(scores), np.asarray(exact), strict=True)]
    )
    result = {**seconds, "peak_mb": memory, "spearman": float(close)}
    own_close = scipy.stats.spearmanr(np.asarray(own).ravel(), np.asarray(exact_own))[0]
    return {**result, "spearman_self": float(own_close)}


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--limit", type=float, default=300.0, help="seconds that one method may take")
    options.add_argument("--only", nargs="*", help="workloads, e.g. W2 W3")
    options.add_argument("--run", nargs=2, help="a workload and a method, in this process")
    given = options.parse_args()
    if given.run:
        print(json.dumps(run(*given.run)))
        return
    workloads = ["smoke"] if given.smoke else given.only or ["W2", "W3"]
    for workload in workloads:
        print(f"\n{workload}: {next(w for w in [*WORKLOADS, *SMOKE] if w.name == workload)}")
        for method, (module, _) in METHODS.items():
            if module is not None and importlib.util.find_spec(module) is None:
                print(f"{method:28} skipped: {module} is not installed")
                continue
            command = [sys.executable, __file__, "--run", workload, method]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=given.limit)
            except subprocess.TimeoutExpired:
                print(f"{method:28} over {given.limit:.0f} s")
                continue
            if done.returncode and module is None:
                raise SystemExit(f"{method} failed:\n{done.stderr[-3000:]}")
            if done.returncode:
                print(f"{method:28} failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:120]}")
                continue
            figures = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"{method:28} " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)


if __name__ == "__main__":
    main()
