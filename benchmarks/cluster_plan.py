"""What a job on 200 workers takes, from this machine's rates: arithmetic, and a simulation with stragglers.

    python benchmarks/cluster_plan.py

One core's rates are measured first, by its own processor time, with BLAS on one thread: symmetric updates
and products in single precision, and reading shards with their checksums. The arithmetic of the steps is
that of ``docs/howto/laptop-to-cluster.md``; ``--network`` and ``--storage`` (bytes a second of one worker)
are assumptions. Then the parts of each step are simulated on a queue, as Dask's scheduler deals them out:
each takes its time at random (10 % standard deviation), one worker in fifty is three times slower than the
others, one part in a hundred takes five times as long, and one worker in a hundred is lost halfway and its
part done again. Sums go up the tree of ``whence.engine.base.Fold``.
"""

from __future__ import annotations

import heapq
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg
from _common import parser
from threadpoolctl import threadpool_limits

from whence.engine.base import BRANCHES, MAX_PARTS, PART_ROWS, Fold
from whence.index.files import check_checksum, open_array, write_array
from whence.index.shard import SHARD_BYTES

WORKERS = 200


@dataclass(frozen=True)
class Rates:
    """What one core does in a second."""

    update: float
    product: float
    read: float


@dataclass(frozen=True)
class Job:
    """A training set and the questions about it."""

    name: str
    n: int
    d: int
    c: int
    queries: int
    iterations: int

    @property
    def parts(self) -> int:
        """In how many parts the work is dealt out."""
        rows = max(1, SHARD_BYTES // (4 * self.d))
        shards_a_part = max(-(-PART_ROWS // rows), -(-self.n // (rows * MAX_PARTS)))
        return -(-self.n // (rows * shards_a_part))


JOBS = [
    Job("ImageNet", 1_300_000, 2_049, 1_000, 100, 67),
    Job("a billion", 1_000_000_000, 1_025, 10, 100, 30),
]


@dataclass(frozen=True)
class Step:
    """One map over the parts of a job, or one sum.

    Attributes
    ----------
    seconds : float
        The work of one core on all of it.
    sum_bytes : float
        What an addition moves; 0 for a map.
    sent_bytes : float
        What each worker is sent before.
    times : int
        How often the step is done.
    """

    name: str
    seconds: float
    sum_bytes: float = 0
    sent_bytes: float = 0
    times: int = 1


def cpu_seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the least processor time of a call: that of a machine which does nothing else."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def measured(repeats: int, size: int) -> Rates:
    """Measure one core."""
    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    with threadpool_limits(1), tempfile.TemporaryDirectory() as name:
        update = size**3 / cpu_seconds(lambda: scipy.linalg.blas.ssyrk(1.0, a.T, lower=1), repeats)
        product = 2 * size**3 / cpu_seconds(lambda: a @ a, repeats)
        stamp = write_array(Path(name) / "a.npy", a)

        def read() -> None:
            check_checksum(Path(name), stamp)
            open_array(Path(name) / "a.npy", stamp).sum()

        return Rates(update, product, a.nbytes / cpu_seconds(read, repeats))


def steps(job: Job, rates: Rates, network: float, storage: float) -> list[Step]:
    """Return the steps of a job and what they cost; every one reads the features once."""
    n, d, c, t = job.n, job.d, job.c, job.queries
    weights = d * c
    features = 4.0 * n * d
    reading = features / min(storage, rates.read)
    coefficients = reading * c / d
    at_once = max(1, min(t, 2**30 // (64 * weights)))  # right-hand sides of one product
    batches = -(-t // at_once)
    rows_at_product = 4.0 * n * weights * at_once / rates.product
    found = [
        Step("mean gradient", reading + 4.0 * n * weights / rates.product, 8.0 * weights),
        Step("coefficients", reading + coefficients + 2.0 * n * weights / rates.product),
    ]
    if weights <= 12_000:
        found.append(Step("exact Hessian", reading + n * weights**2 / rates.update, 4.0 * weights**2))
    else:
        double = 2 * (n * d**2 / rates.update + n * c**2 / rates.update + 2.0 * n * d**2 / rates.product)
        found.append(Step("Kronecker factors", 3 * reading + double, 8.0 * d**2))
    product = Step(
        f"CG product, {at_once} at once",
        reading + rows_at_product,
        4.0 * weights * at_once,
        4.0 * weights * at_once,
        job.iterations * batches,
    )
    search = reading + coefficients + 2.0 * n * weights * t / rates.product
    return [*found, product, Step(f"top 5 of {t}", search, 0, 4.0 * weights * t)]


def tree_depth(n_parts: int) -> int:
    """Return how many additions follow one another after the last part is there."""
    fold = Fold(lambda left, right: (max(left, right)) + 1)
    for _ in range(n_parts):
        fold.push(0)
    return int(fold.result() or 0)


def simulated(step: Step, n_parts: int, network: float, rng: np.random.Generator, calm: bool) -> float:
    """Return the makespan of a step: sending, parts from a queue, and what is left to add."""
    spread = np.ones(n_parts) if calm else np.maximum(rng.normal(1, 0.1, n_parts), 0.5)
    slow = np.zeros(WORKERS, dtype=bool)
    if not calm:
        spread[rng.random(n_parts) < 0.01] *= 5
        slow[rng.choice(WORKERS, WORKERS // 50, replace=False)] = True
    durations = step.seconds / n_parts * spread
    lost = set() if calm else set(rng.choice(WORKERS, WORKERS // 100, replace=False).tolist())
    free = [(0.0, worker) for worker in range(WORKERS)]
    waiting = list(durations[::-1])
    last = 0.0
    half = durations.sum() / WORKERS / 2
    while waiting:
        start, worker = heapq.heappop(free)
        taken = waiting.pop()
        end = start + taken * (3 if slow[worker] else 1)
        if worker in lost and end > half:  # gone: the part goes back to the queue, the worker does not
            waiting.append(taken)
            lost.discard(worker)
            continue
        last = max(last, end)
        heapq.heappush(free, (end, worker))
    sending = step.sent_bytes / network * np.ceil(np.log2(WORKERS))  # from worker to worker
    adding = step.sum_bytes / network * tree_depth(n_parts)
    return sending + last + adding


def main() -> None:
    """Print a table for each job."""
    options = parser(__doc__)
    options.add_argument("--network", type=float, default=1.25e9, help="bytes a second (10 Gbit/s)")
    options.add_argument("--storage", type=float, default=2e8, help="bytes a second that a worker reads")
    chosen = options.parse_args()
    rates = measured(1 if chosen.smoke else chosen.repeats, 256 if chosen.smoke else 2048)
    print(
        f"one core: {rates.update / 1e9:.0f} and {rates.product / 1e9:.0f} GFLOP/s (updates, products), "
        f"{rates.read / 1e9:.1f} GB/s read and checked; assumed: {chosen.network / 1e9:.2f} GB/s network, "
        f"{chosen.storage / 1e9:.2f} GB/s storage for each of {WORKERS} workers"
    )
    rounds = 3 if chosen.smoke else 50
    for job in JOBS:
        print(
            f"\n{job.name}: {job.n:,} x {job.d:,} x {job.c:,}, {4 * job.n * job.d / 1e12:.3g} TB of "
            f"features, {job.parts} parts of {4 * job.n * job.d / job.parts / 2**20:.0f} MiB, "
            f"sums in {tree_depth(job.parts)} additions one after another ({BRANCHES} branches)"
        )
        print(
            f"{'step':24s}{'times':>7s}{'ideal s':>10s}{'calm':>9s}{'stragglers':>12s}{'to ideal':>10s}"
            f"{'moved a part':>14s}{'all of it':>12s}"
        )
        for step in steps(job, rates, chosen.network, chosen.storage):
            ideal = step.seconds / WORKERS
            rng = np.random.default_rng(0)
            calm = simulated(step, job.parts, chosen.network, rng, calm=True)
            rough = float(
                np.median([simulated(step, job.parts, chosen.network, rng, False) for _ in range(rounds)])
            )
            print(
                f"{step.name:24s}{step.times:7d}{ideal:10.2f}{calm:9.2f}{rough:12.2f}{rough / ideal:10.2f}"
                f"{step.sum_bytes / 2**20:10.1f} MiB{rough * step.times / 60:8.1f} min"
            )


if __name__ == "__main__":
    main()
