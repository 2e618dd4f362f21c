"""What the benchmarks share: workloads, clocks, and the machine's rates."""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import scipy.linalg


@dataclass(frozen=True)
class Workload:
    """A training set of ``n`` samples with ``d`` features (bias apart) and ``c`` classes."""

    name: str
    n: int
    d: int
    c: int

    @property
    def size(self) -> int:
        """Number of weights, bias included."""
        return (self.d + 1) * self.c


WORKLOADS = [
    Workload("W1", 1437, 64, 10),
    Workload("W2", 10_000, 128, 10),
    Workload("W3", 10_000, 512, 10),
    Workload("W4", 50_000, 512, 10),
]
SMOKE = [Workload("smoke", 500, 16, 4)]

N_QUERIES = 100
BATCH = 256


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--smoke", action="store_true", help="a tiny run that shows it works")
    options.add_argument("--repeats", type=int, default=5, help="timings are medians of this many")
    return options


def data_of(work: Workload, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features and labels: the digits for W1, else ReLU features and a linear teacher."""
    rng = np.random.default_rng(seed)
    if work.name == "W1":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return (x[: work.n] / 16).astype(np.float32), y[: work.n].astype(np.int64)
    x = np.maximum(rng.standard_normal((work.n, work.d), dtype=np.float32), 0)
    teacher = rng.standard_normal((work.d, work.c), dtype=np.float32)
    noise = rng.gumbel(size=(work.n, work.c)).astype(np.float32)
    return x, np.argmax(x @ teacher + 2 * noise, axis=1).astype(np.int64)


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Return the median wall-clock time of ``function``."""
    times = []
    for _ in range(repeats):
        gc.collect()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_megabytes() -> float:
    """Return the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass(frozen=True)
class Rates:
    """Operations a second of this machine, as measured: products, rank-k updates, Cholesky factors."""

    gemm32: float
    gemm64: float
    syrk32: float
    potrf64: float
    potri64: float


def measured_rates(repeats: int = 5, size: int = 2048) -> Rates:
    """Measure the rates on matrices large enough for BLAS to be at its best."""
    rng = np.random.default_rng(0)
    a64 = rng.standard_normal((size, size))
    a32 = a64.astype(np.float32)
    spd = np.asfortranarray(a64 @ a64.T + size * np.eye(size))
    factor = scipy.linalg.lapack.dpotrf(spd, lower=1)[0]
    blas = scipy.linalg.blas

    def rate(operations: float, function: Callable[[], Any]) -> float:
        function()
        return operations / median_seconds(function, repeats)

    return Rates(
        gemm32=rate(2 * size**3, lambda: a32 @ a32),
        gemm64=rate(2 * size**3, lambda: a64 @ a64),
        syrk32=rate(size**3, lambda: blas.ssyrk(1.0, a32.T, lower=1)),
        potrf64=rate(size**3 / 3, lambda: scipy.linalg.lapack.dpotrf(spd, lower=1)),
        potri64=rate(2 * size**3 / 3, lambda: scipy.linalg.lapack.dpotri(factor, lower=1)),
    )


@dataclass(frozen=True)
class Floor:
    """The least time each step can take on this machine."""

    constructor: float
    self_influence: float
    top_k: float


def floor_of(work: Workload, rates: Rates, forward: float, forward_queries: float, reading: float) -> Floor:
    """Return the forward pass plus the matrix products of the method at the measured rates.

    Constructor: one forward pass, the softmax Hessian as one symmetric rank-k update in float32, its
    Cholesky factor in float64. Self-influence: the inverse, and one block row of it for each sample.
    Top-k: two triangular solves for each query, and one pass over the stored features. The last two
    return training samples, so that reading the training set once belongs to each.
    """
    n, d, c, m = work.n, work.d + 1, work.c, work.size
    hessian = n * m**2 / rates.syrk32
    factor = m**3 / 3 / rates.potrf64
    inverse = 2 * m**3 / 3 / rates.potri64
    block_rows = 2 * n * c * d**2 / rates.gemm64
    solves = 2 * m**2 * N_QUERIES / rates.gemm64
    search = 2 * n * d * c * N_QUERIES / rates.gemm32
    return Floor(
        constructor=forward + hessian + factor,
        self_influence=reading + inverse + block_rows,
        top_k=reading + forward_queries + solves + search,
    )


def in_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script of this folder in a process of its own and return the JSON of its last line."""
    result = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])
