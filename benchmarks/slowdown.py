"""Whether the hot paths have become slower: each beside the same written out in NumPy.

    python benchmarks/slowdown.py

A hot path and its written-out form are timed in turn, in seconds of the processor with one thread of
BLAS, and the least of many repeats is taken, so that other work on the machine weighs little. The run
fails if a hot path takes 15 % more of its written-out form than is recorded in ``RECORDED``, so that a
slowdown of 20 % is noticed in spite of some noise; what looks so is measured twice more before it counts.
``--handicap 1.2`` pretends that every hot path were a fifth slower, to see that it would be noticed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
from _common import Workload, data_of, parser
from threadpoolctl import threadpool_limits

import whence
from whence.answers.reading import Vectors
from whence.arrays.hashing import hashed_rows
from whence.index import Index, Method
from whence.layers.losses import SoftmaxCrossEntropy
from whence.search.scores import LinearNearestNeighbors, Queries, scores
from whence.search.top_k import ORDER

WORK = Workload("W2", 10_000, 128, 10)
SMALL = Workload("smoke", 500, 16, 4)
N_QUERIES, TOP, DAMPING, TILE = 100, 5, 1e-3, 512

#: How many times its written-out form each hot path takes.
RECORDED = {
    "exact Hessian": 0.98,
    "Hessian, factor, 100 solves": 1.02,
    "100 Hessian products": 1.02,
    "top 5 of 100, both ends": 0.87,  # 0.78 before sums were added up and some samples tried in float64
    "self-influence": 1.22,
    "fingerprints": 0.60,
}
ALLOWED = 1.15


class Problem:
    """A softmax layer on a training set in memory, and everything written out."""

    def __init__(self, work: Workload) -> None:
        x, self.y = data_of(work)
        self.x = x
        self.phi = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
        self.n, self.d, self.c = *self.phi.shape, work.c
        rng = np.random.default_rng(1)
        self.theta = (rng.standard_normal((self.d, self.c)) / np.sqrt(self.d)).astype(np.float32)
        self.layer = whence.LinearLayer(self.theta, SoftmaxCrossEntropy(), has_bias=True)
        self.index = Index()
        for start in range(0, self.n, 256):
            rows = slice(start, start + 256)
            self.index.append(self.phi[rows], self.y[rows], None, hashed_rows(x[rows]))
        self.index.finish()
        self.index = self.index.with_coefficients(self.layer.residuals, lambda: Method({}, {}, np.zeros(1)))
        u = self.phi @ self.theta
        p = np.exp(u - u.max(axis=1, keepdims=True))
        self.p = p / p.sum(axis=1, keepdims=True)
        self.r = self.p.copy()
        self.r[np.arange(self.n), self.y] -= 1
        self.v = rng.standard_normal((N_QUERIES, self.d, self.c)).astype(np.float32)
        self.outputs = self.p.argmax(axis=1)
        self.search = LinearNearestNeighbors()
        self.search.build(Vectors(self.index), scores, TOP, N_QUERIES)
        self.solver = whence.ExactIHVPFactory(DAMPING).build(self.layer, self.index)
        self.inverse = np.linalg.inv(self.hessian().astype(np.float64) + DAMPING * np.eye(self.d * self.c))

    def hessian(self) -> np.ndarray:
        """``(1/N) sum_i (diag(p_i) - p_i p_i^T) (x) phi_i phi_i^T``: one symmetric update of rank ``n``."""
        size = self.d * self.c
        matrix = np.zeros((size, size), np.float32, order="F")
        for start in range(0, self.n, TILE):
            phi, p = self.phi[start : start + TILE], self.p[start : start + TILE]
            rows = (p[:, :, None] * phi[:, None, :]).reshape(len(phi), size)
            matrix = scipy.linalg.blas.ssyrk(-1.0 / self.n, rows.T, 1.0, matrix, lower=1, overwrite_c=1)
        matrix = np.tril(matrix) + np.tril(matrix, -1).T
        blocks = matrix.reshape(self.c, self.d, self.c, self.d)
        for a in range(self.c):
            blocks[a, :, a, :] -= blocks[a].sum(axis=1)
        return matrix

    def products(self) -> np.ndarray:
        """``H V`` for all right-hand sides: two products and what lies between them."""
        wide = self.v.transpose(1, 2, 0).reshape(self.d, -1)
        total = np.zeros_like(wide)
        for start in range(0, self.n, 4 * TILE):
            phi, p = self.phi[start : start + 4 * TILE], self.p[start : start + 4 * TILE]
            images = (phi @ wide).reshape(len(phi), self.c, N_QUERIES)
            images -= np.matmul(p[:, None, :], images)
            images *= p[:, :, None]
            total += phi.T @ images.reshape(len(phi), -1)
        return total / self.n

    def best(self) -> list[np.ndarray]:
        """The top of both ends of all scores."""
        wide = self.v.transpose(1, 2, 0).reshape(self.d, -1)
        found = []
        for start in range(0, self.n, 4 * TILE):
            phi, r = self.phi[start : start + 4 * TILE], self.r[start : start + 4 * TILE]
            images = (phi @ wide).reshape(len(phi), self.c, N_QUERIES)
            values = np.matmul(r[:, None, :], images)[:, 0].T
            ends = np.argpartition(values, [TOP, values.shape[1] - TOP], axis=1)
            found += [ends[:, :TOP], ends[:, -TOP:]]
        return found

    def own(self) -> np.ndarray:
        """``sum_c r_c phi^T Q_c,a phi`` for the predicted output ``a``, in float64."""
        result = np.empty(self.n)
        for a in range(self.c):
            rows = np.flatnonzero(self.outputs == a)
            phi, r = self.phi[rows].astype(np.float64), self.r[rows].astype(np.float64)
            block = self.inverse[:, a * self.d : (a + 1) * self.d]
            images = (phi @ block.T).reshape(len(rows), self.c, self.d)
            result[rows] = np.einsum("nc,nc->n", r, np.matmul(images, phi[:, :, None])[:, :, 0])
        return result

    def pairs(self) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
        """Return each hot path with its written-out form."""
        layer, index, both = self.layer, self.index, (ORDER.DESCENDING, ORDER.ASCENDING)
        queries = Queries(self.v, np.zeros(N_QUERIES, np.float32))
        right = self.v.astype(np.float64)
        flat = np.ascontiguousarray(right.transpose(2, 1, 0).reshape(self.d * self.c, N_QUERIES))

        def solved() -> Any:
            matrix = self.hessian().astype(np.float64)
            matrix[np.diag_indices_from(matrix)] += DAMPING
            return scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix, lower=True), flat)

        return {
            "exact Hessian": (lambda: layer.hessian(index).blocks, self.hessian),
            "Hessian, factor, 100 solves": (
                lambda: whence.ExactIHVPFactory(DAMPING).build(layer, index).solve(right),
                solved,
            ),
            "100 Hessian products": (lambda: layer.hessian_product(index, self.v), self.products),
            "top 5 of 100, both ends": (lambda: self.search.query_orders(queries, both), self.best),
            "self-influence": (lambda: self.solver.self_products(self.phi, self.r, self.outputs), self.own),
            "fingerprints": (lambda: hashed_rows(self.x), lambda: [row.tobytes() for row in self.x]),
        }


def ratio(ours: Callable[[], Any], plain: Callable[[], Any], repeats: int, handicap: float) -> float:
    """Return how many times its written-out form a hot path takes in processor time, both at their best."""
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        for which, function in enumerate((ours, plain)):
            start = time.process_time()
            function()
            taken = time.process_time() - start
            best[which] = min(best[which], taken)
    return best[0] * handicap / best[1]


def main() -> int:
    """Print one line for each hot path; return 1 if one has become slower."""
    options = parser(__doc__)
    options.add_argument("--handicap", type=float, default=1.0, help="how much slower to pretend to be")
    options.set_defaults(repeats=15)
    chosen = options.parse_args()
    slower = []
    with threadpool_limits(1, user_api="blas"):
        problem = Problem(SMALL if chosen.smoke else WORK)
        print(f"{'hot path':30s}{'ratio':>8s}{'recorded':>10s}{'of it':>8s}")
        for name, (ours, plain) in problem.pairs().items():
            recorded = RECORDED[name]
            limit = float("inf") if chosen.smoke else ALLOWED * recorded
            found = ratio(ours, plain, 2 if chosen.smoke else chosen.repeats, chosen.handicap)
            for _ in range(2):
                if found > limit:
                    found = min(found, ratio(ours, plain, chosen.repeats, chosen.handicap))
            print(f"{name:30s}{found:8.2f}{recorded:10.2f}{found / recorded:8.2f}", flush=True)
            if found > limit:
                slower.append(name)
    if slower:
        print(f"slower by more than {ALLOWED - 1:.0%}: {', '.join(slower)}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
