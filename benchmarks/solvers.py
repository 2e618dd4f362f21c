"""Time, iterations, error and memory of every solver, for 100 right-hand sides.

    python benchmarks/solvers.py

Softmax layers of 640 to 2,048,000 weights, fitted by a few steps of L-BFGS, every solver with its
defaults (damping 1e-3). Right-hand sides are those of explanations, ``phi_t (x) e_j``. One process for
each line.

``error`` is relative to the exact solver, in the norm of the damped Hessian, where there is one.
``residual`` is the largest relative residual, measured in float64. ``products`` is what the solve's
products with the Hessian alone would take, ``4 n d C`` operations for each right-hand side that is not
yet solved, at the rate of products of this machine measured in between; ``ratio`` is the solve's
time over it. ``peak MB`` is the process's, NumPy and training set included. ``self`` is the time
for the leave-one-out predictions of all samples, on the digits.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass

import numpy as np
import scipy.optimize
from _common import (
    N_QUERIES,
    Workload,
    data_of,
    in_process,
    median_seconds,
    parser,
    peak_megabytes,
)

import whence
from whence.ihvp.operator import DampedHessian
from whence.layers.linear_layer import Block, LinearLayer
from whence.layers.losses import SoftmaxCrossEntropy

CASES = [
    Workload("W1", 1437, 64, 10),
    Workload("640", 10_000, 63, 10),
    Workload("5120", 10_000, 511, 10),
    Workload("51200", 10_000, 511, 100),
    Workload("2048000", 5_000, 2047, 1000),
]
SMOKE = [Workload("smoke", 500, 16, 4)]

SOLVERS = {
    "exact": whence.ExactIHVPFactory,
    "CG": whence.CGDIHVPFactory,
    "CG, plain": lambda: whence.CGDIHVPFactory(preconditioner=None, on_failure="warn"),
    "LiSSA": whence.LissaIHVPFactory,
    "LiSSA, batches": lambda: whence.LissaIHVPFactory(batch_size=256),
    "EK-FAC": whence.KroneckerIHVPFactory,
    "K-FAC": lambda: whence.KroneckerIHVPFactory(eigenvalues="product"),
}
#: What is run on the largest layers; the exact solver refuses them by itself.
LARGE = ["exact", "CG", "EK-FAC"]


@dataclass
class Blocks:
    """A training set of one block."""

    block: Block

    @property
    def n_samples(self) -> int:
        return self.block.phi.shape[0]

    def __iter__(self):
        yield self.block


def fitted(work: Workload) -> tuple[LinearLayer, Blocks]:
    """Return a softmax layer with a bias after 20 steps of L-BFGS, and its training set."""
    x, y = data_of(work)
    phi = np.concatenate([x, np.ones((len(x), 1), dtype=np.float32)], axis=1)
    blocks = Blocks(Block(phi, y))
    shape = (phi.shape[1], work.c)

    def slope(flat: np.ndarray) -> tuple[float, np.ndarray]:
        layer = LinearLayer(flat.reshape(shape), SoftmaxCrossEntropy(), has_bias=True)
        mean = float(layer.losses(blocks.block).mean())
        return mean, layer.mean_gradient(blocks).ravel()

    found = scipy.optimize.minimize(
        slope, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 20}
    )
    return LinearLayer(found.x.reshape(shape), SoftmaxCrossEntropy(), has_bias=True), blocks


class Meter:
    """Counts products with the Hessian, and measures the rate of matrix products in between.

    Others may be at work on the machine: what it could do is measured while the solver runs, every
    few products, and left out of the solver's time.
    """

    EVERY = 5

    def __init__(self, size: int) -> None:
        matrix = np.random.default_rng(0).standard_normal((size, size))
        self.matrices = {"float32": matrix.astype(np.float32), "float64": matrix}
        self.vectors = dict.fromkeys(self.matrices, 0)
        self.probes: dict[str, list[float]] = {dtype: [] for dtype in self.matrices}
        self.plain_product = DampedHessian.__call__
        self.product = lambda operator, vectors: self._count(operator, vectors)
        self.calls = 0

    def _count(self, operator: DampedHessian, vectors: np.ndarray) -> np.ndarray:
        self.vectors[str(vectors.dtype)] += vectors.shape[0]
        self.calls += 1
        if self.calls % self.EVERY == 0:
            self.probe()
        return self.plain_product(operator, vectors)

    def probe(self) -> None:
        """Time one product in each precision."""
        for dtype, matrix in self.matrices.items():
            start = time.perf_counter()
            matrix @ matrix
            self.probes[dtype].append(time.perf_counter() - start)

    def seconds_probing(self) -> float:
        """Return what the probes took."""
        return sum(map(sum, self.probes.values()))

    def rate(self, dtype: str) -> float:
        """Return operations a second, over all probes."""
        size = self.matrices[dtype].shape[0]
        return 2 * size**3 * len(self.probes[dtype]) / sum(self.probes[dtype])

    def floor(self, flops: float) -> float:
        """Return what the counted products take at these rates, ``flops`` for each vector."""
        return sum(flops * n / self.rate(dtype) for dtype, n in self.vectors.items())


def run(name: str, solver: str, n_right: int) -> dict:
    """Build one solver, solve, and say what it took."""
    work = next(w for w in [*CASES, *SMOKE] if w.name == name)
    layer, blocks = fitted(work)
    block = blocks.block
    d, c = layer.theta.shape
    classes = np.arange(n_right) % c
    right = block.phi[:n_right, :, None].astype(np.float64) * np.eye(c)[classes][:, None, :]
    meter = Meter(256 if name == "smoke" else 2048)
    start = time.perf_counter()
    try:
        ihvp = SOLVERS[solver]().build(layer, blocks)
    except whence.WhenceError as error:
        return {"refused": str(error)}
    build = time.perf_counter() - start
    meter.probe()
    DampedHessian.__call__ = meter.product
    start, probing = time.perf_counter(), meter.seconds_probing()
    try:
        solution = ihvp.solve(right)
    except whence.NotConvergedError as error:
        return {"refused": str(error)}
    solve = time.perf_counter() - start - (meter.seconds_probing() - probing)
    DampedHessian.__call__ = meter.plain_product
    peak = peak_megabytes()
    meter.probe()
    result = {
        "build": build,
        "solve": solve,
        "iterations": solution.iterations,
        "residual": solution.relative_residual,
        "converged": solution.converged,
        "products": meter.floor(4 * work.n * d * c) if solver.startswith("CG") else None,
        "peak": peak,
        "gflops": meter.rate("float32") / 1e9,
    }
    if work.size <= 6000:
        exact = whence.ExactIHVPFactory().build(layer, blocks)
        gap = solution.value - exact.solve(right).value
        energies = [np.sqrt(np.sum(v * exact.product(v), axis=(1, 2))) for v in (gap, solution.value)]
        result["error"] = float(np.max(energies[0] / energies[1]))
    if name in ("W1", "smoke"):
        r = layer.residuals(block)
        result["self"] = median_seconds(lambda: ihvp.self_products(block.phi, r), 1)
    return result


def main() -> None:
    """Print one line for each layer and solver."""
    options = parser(__doc__)
    options.add_argument("--one", nargs=2, help="(run one layer and solver in this process)")
    options.add_argument("--layers", nargs="*", help="which layers, by number of weights, or W1")
    options.add_argument("--solvers", nargs="*", help="which solvers, e.g. CG")
    options.add_argument("--right", type=int, default=N_QUERIES, help="right-hand sides")
    chosen = options.parse_args()
    n_right = min(chosen.right, 20) if chosen.smoke else chosen.right
    if chosen.one:
        print(json.dumps(run(*chosen.one, n_right)))
        return
    cases = SMOKE if chosen.smoke else CASES
    if chosen.layers:
        cases = [case for case in CASES if case.name in chosen.layers]
    columns = ("build s", "solve s", "its", "error", "residual", "products", "ratio", "peak MB", "self s")
    print(f"{'layer':22s}{'solver':16s}" + "".join(f"{column:>10s}" for column in columns))
    for case in cases:
        label = f"{case.n}x{case.d + 1}x{case.c}"
        for solver in chosen.solvers or (SOLVERS if case.size < 10**6 else LARGE):
            result = in_process(sys.argv[0], "--one", case.name, solver, "--right", str(n_right))
            print(f"{label:22s}{solver:16s}" + line(result), flush=True)
            label = ""


def line(result: dict) -> str:
    """Return the figures of one run as text."""
    if "refused" in result:
        return "  no answer: " + result["refused"]
    products = result["products"]
    cells = [
        f"{result['build']:.2f}",
        f"{result['solve']:.2f}",
        f"{result['iterations']}" + ("" if result["converged"] else "!"),
        f"{result['error']:.1e}" if "error" in result else "",
        f"{result['residual']:.1e}",
        f"{products:.2f}" if products else "",
        f"{result['solve'] / products:.2f}" if products else "",
        f"{result['peak']:.0f}",
        f"{result['self']:.2f}" if "self" in result else "",
    ]
    return "".join(f"{cell:>10s}" for cell in cells)


if __name__ == "__main__":
    main()
