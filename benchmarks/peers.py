"""Scores of all training samples for 100 queries, beside other libraries on the same layer.

    python benchmarks/peers.py --environments FOLDER

The model is one linear layer on given features (the last of which is a constant 1, so that it needs no
bias), trained with cross-entropy on labels of which 10 % are flipped; every library gets it whole, so that
each computes on the same layer. Timed is fit, scores of all N training samples for 100 queries, and
self-influence of all, each method in a process of its own and after a first run on 500 samples. With the
default of one thread, CPU time is work done, not waiting for others. ``peak`` is the memory of the process
above what it held before.

``spearman`` is the mean rank correlation of the scores with a dense float64 solution of the same quantity,
``self`` that of self-influence; ``auc`` the area under the ROC curve of finding the flipped labels by
self-influence; ``complete`` how far the scores of a query are from summing to what they claim to
decompose, relative to the largest, where a method claims it.

Peers: Captum 0.9 (TracInCPFast without a Hessian, Arnoldi), pyDVL 0.10 (direct, conjugate gradient),
dattri 0.3 (explicit; representer points with L2, which have no reference here), kronfluence 1.0 (EK-FAC)
and influenciae 0.3.0 (Python 3.10, TensorFlow below 2.10). Each is run by FOLDER/NAME/bin/python with NAME
captum, pydvl, dattri, kronfluence or influenciae, or here if it is installed here; one that is not found is
left out, and so is what takes over ``--limit`` seconds or ``--memory`` GiB, with the reason. To make one::

    python -m venv FOLDER/captum && FOLDER/captum/bin/pip install torch captum
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
import scipy.stats
from _common import N_QUERIES, SMOKE, WORKLOADS, Workload, data_of, parser
from _peers import DAMPING, METHODS

FLIPPED = 0.1
STEP_SIZE = 1e-4


def setting_of(work: Workload) -> tuple[dict[str, Any], np.ndarray]:
    """Return features, labels and trained weights, and which labels were flipped."""
    import torch

    x, y = data_of(work)
    x = np.concatenate([x, np.ones((len(x), 1), dtype=np.float32)], axis=1)
    rng = np.random.default_rng(1)
    flipped = rng.permutation(len(y)) < FLIPPED * len(y)
    y = np.where(flipped, (y + rng.integers(1, work.c, len(y))) % work.c, y)
    inputs, labels = torch.tensor(x), torch.tensor(y)
    theta = torch.zeros(x.shape[1], work.c, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(inputs @ theta, labels)
        loss = loss + DAMPING / 2 * (theta**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    arrays = {"x": x, "y": y, "theta": theta.detach().numpy()}
    return arrays | {"n_queries": min(N_QUERIES, work.n // 5)}, flipped


class Dense:
    """What methods are compared with: dense, in float64, from the definitions."""

    def __init__(self, x: np.ndarray, y: np.ndarray, theta: np.ndarray, n_queries: int) -> None:
        self.x, self.y, self.t = x.astype(np.float64), y, n_queries
        self.theta = theta.astype(np.float64)
        self.n, self.d = x.shape
        self.c = theta.shape[1]

    def _residuals(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = scipy.special.softmax(self.x @ theta, axis=1)
        return p - np.eye(self.c)[self.y], p

    def _factor(self, p: np.ndarray) -> Any:
        rows = (p[:, :, None] * self.x[:, None, :]).reshape(self.n, -1)
        hessian = rows.T @ rows
        np.negative(hessian, out=hessian)
        for a in range(self.c):
            here = slice(a * self.d, (a + 1) * self.d)
            hessian[here, here] += (self.x * p[:, a, None]).T @ self.x
        hessian /= self.n
        hessian[np.diag_indices_from(hessian)] += DAMPING
        return scipy.linalg.cho_factor(hessian, lower=True, overwrite_a=True)

    def _products(self, solved: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Return ``<S_t, g_i>`` for ``S (T, c * d)``."""
        images = np.einsum("nd,tcd->tnc", self.x, solved.reshape(-1, self.c, self.d), optimize=True)
        return (images * r).sum(axis=2)

    def gradient(self) -> tuple[np.ndarray, np.ndarray]:
        r, _ = self._residuals(self.theta)
        scores = (self.x[: self.t] @ self.x.T) * (r[: self.t] @ r.T)
        return scores, (self.x**2).sum(axis=1) * (r**2).sum(axis=1)

    def influence(self) -> tuple[np.ndarray, np.ndarray]:
        r, p = self._residuals(self.theta)
        factor = self._factor(p)
        g = (r[:, :, None] * self.x[:, None, :]).reshape(self.n, -1)
        scores = self._products(scipy.linalg.cho_solve(factor, g[: self.t].T).T, r)
        white = scipy.linalg.solve_triangular(factor[0], g.T, lower=True, overwrite_b=True)
        return scores, (white**2).sum(axis=0)

    def expansion(self) -> tuple[np.ndarray, np.ndarray]:
        """Local Jacobian expansion of each sample's predicted output."""
        r, _ = self._residuals(self.theta)
        theta = self.theta + STEP_SIZE * self.x.T @ r / self.n
        r, p = self._residuals(theta)
        factor = self._factor(p)
        outputs = (self.x @ self.theta).argmax(axis=1)
        units = np.eye(self.c)[outputs[: self.t]]
        asked = (units[:, :, None] * self.x[: self.t, None, :]).reshape(self.t, -1)
        products = self._products(scipy.linalg.cho_solve(factor, asked.T).T, r)
        under = (self.x @ theta)[np.arange(self.n), outputs]
        own = np.empty(self.n)
        for a in range(self.c):
            unit = np.zeros((self.c * self.d, self.d))
            unit[a * self.d : (a + 1) * self.d] = np.eye(self.d)
            block_row = scipy.linalg.cho_solve(factor, unit).reshape(self.c, self.d, self.d)
            rows = np.flatnonzero(outputs == a)
            moved = np.einsum("nd,cde,ne->nc", self.x[rows], block_row, self.x[rows], optimize=True)
            own[rows] = (moved * r[rows]).sum(axis=1)
        return (under[: self.t, None] - products) / self.n, np.abs(under - own) / self.n


def rank_correlation(scores: np.ndarray, expected: np.ndarray) -> float:
    """Return Spearman's coefficient, the mean over queries."""
    pairs = zip(np.atleast_2d(scores), np.atleast_2d(expected), strict=True)
    return float(np.mean([scipy.stats.spearmanr(a, b)[0] for a, b in pairs]))


def area(scores: np.ndarray, flipped: np.ndarray) -> float:
    """Return the area under the ROC curve of finding what was flipped by the largest scores."""
    ranks = scipy.stats.rankdata(scores)[flipped]
    n_flipped, n_others = flipped.sum(), (~flipped).sum()
    return float((ranks.sum() - n_flipped * (n_flipped + 1) / 2) / (n_flipped * n_others))


def judged(found: Any, expected: tuple[np.ndarray, np.ndarray] | None, flipped: np.ndarray) -> dict:
    """Return how close a method's answers are to the dense ones, and how good at finding flips."""
    figures = {}
    if expected is not None:
        figures["spearman"] = rank_correlation(found["scores"], expected[0])
    if "own" in found:
        own = found["own"].ravel().astype(np.float64)
        if expected is not None:
            figures["self"] = rank_correlation(own, expected[1])
        figures["auc"] = area(own, flipped)
    if "claimed" in found:
        claimed = found["claimed"]
        gap = np.abs(found["scores"].sum(axis=1, dtype=np.float64) - claimed).max()
        figures["complete"] = float(gap / np.abs(claimed).max())
    return figures


def interpreter(package: str, environments: Path | None) -> str | None:
    """Return the Python that has a package: of its own environment, or this one."""
    own = environments / package.split(".")[-1] / "bin" / "python" if environments else None
    if own is not None and own.exists():
        return str(own)
    try:
        return sys.executable if importlib.util.find_spec(package) else None
    except ModuleNotFoundError:
        return None


def run(method: str, python: str, folder: Path, options: Any) -> dict[str, float] | str:
    """Run one method in a process of its own; return its times and memory, or why there are none."""
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    environment = os.environ | dict.fromkeys(counts, str(options.threads))
    environment |= {"PEERS_FOLDER": str(folder), "PEERS_MEMORY": str(options.memory)}
    if package_of(method) != "whence":
        environment.pop("PYTHONPATH", None)
    script = str(Path(__file__).with_name("_peers.py"))
    command = [python, script, str(folder / "setting.npz"), method, str(folder / "result.npz")]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=options.limit, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"over {options.limit:.0f} s"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"])[-1]
        if package_of(method) in ("whence", "torch"):
            raise SystemExit(f"{method} failed:\n{done.stderr[-3000:]}")
        return f"failed: {last[:120]}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def package_of(method: str) -> str:
    return METHODS[method][0]


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--environments", type=Path, help="a folder with an environment for each peer")
    options.add_argument("--limit", type=float, default=600.0, help="seconds that one method may take")
    options.add_argument("--memory", type=float, default=8.0, help="GiB that one method may take")
    options.add_argument("--threads", type=int, default=1, help="threads of each method")
    options.add_argument("--only", nargs="*", help="workloads, e.g. W2 W3")
    options.add_argument("--methods", nargs="*", help="names, or beginnings of names, of methods")
    given = options.parse_args()
    chosen = SMOKE if given.smoke else [w for w in WORKLOADS if w.name in (given.only or ["W2", "W3"])]
    for work in chosen:
        print(f"\n{work.name}: {work.n} x {work.d} x {work.c}", flush=True)
        names = ("cpu", "wall", "peak", "spearman", "self", "auc", "complete")
        print(f"{'':29}" + "".join(f"{name:>10}" for name in names), flush=True)
        arrays, flipped = setting_of(work)
        dense = Dense(**{key: arrays[key] for key in ("x", "y", "theta", "n_queries")})
        expected: dict[str, Any] = {"": None}
        for method, (package, quantity, _) in METHODS.items():
            if given.methods and not any(method.startswith(name) for name in given.methods):
                continue
            python = interpreter(package, given.environments)
            if python is None:
                print(f"{method:29}left out: {package} is not installed", flush=True)
                continue
            with tempfile.TemporaryDirectory() as folder:
                np.savez(Path(folder) / "setting.npz", **arrays)
                figures = run(method, python, Path(folder), given)
                if isinstance(figures, str):
                    print(f"{method:29}{figures}", flush=True)
                    continue
                if quantity not in expected:
                    expected[quantity] = getattr(dense, quantity)()
                with np.load(Path(folder) / "result.npz") as found:
                    figures |= judged(found, expected[quantity], flipped)
            cells = (f"{figures[name]:10.4g}" if name in figures else f"{'':>10}" for name in names)
            print(f"{method:29}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
