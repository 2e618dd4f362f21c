"""The blocks of an index on a Dask cluster here: overhead beside threads, and what goes over the wire.

    python benchmarks/cluster.py

Features of a layer of 256 x 10 (and a bias), the workload of ``scale.py`` at ``--samples`` samples, lie in
an index in a temporary folder. One, two and four workers (processes with one thread each) and as many
threads assemble the exact Hessian, multiply it with 100 right-hand sides, and find the top 5 of 100
samples, in blocks of 64 MiB of features. BLAS has one thread everywhere, so that one worker and one
thread are the same work. What workers send to each other for a block is read from their own counters, and
stands beside the least and the most that the plan of ``docs/howto/laptop-to-cluster.md`` has.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from _common import N_QUERIES, parser
from distributed import Client, LocalCluster
from scale import C, D, blocks
from threadpoolctl import threadpool_limits

import whence
from whence.answers.reading import Vectors
from whence.engine import base as engine
from whence.engine.cluster import Cluster
from whence.index import Method, StoredIndex, Writer, shard
from whence.layers.losses import SoftmaxCrossEntropy
from whence.search.scores import LinearNearestNeighbors, Queries, scores
from whence.search.top_k import ORDER

BLOCK_BYTES = 64 * 2**20
TOP = 5


def built(n_samples: int, folder: Path, layer: whence.LinearLayer) -> StoredIndex:
    """Return an index of so many samples, with the coefficients of a method."""
    writer = Writer(folder / "index")
    writer.begin({"layer": "dense"})
    for features, labels, fingerprint in blocks(n_samples):
        writer.append(features, labels, None, fingerprint)
    index = writer.finish()
    index = index.with_coefficients(layer.residuals, lambda: Method({}, {}, np.zeros(1)))
    return index


def steps(index: StoredIndex, layer: whence.LinearLayer, where: engine.Engine) -> dict[str, Callable]:
    """Return what is timed."""
    vectors = np.random.default_rng(2).standard_normal((N_QUERIES, D + 1, C)).astype(np.float32)
    queries = Queries(vectors, np.zeros(N_QUERIES, dtype=np.float32))
    index.engine = where
    search = LinearNearestNeighbors()
    search.build(Vectors(index), scores, TOP, N_QUERIES)
    both = (ORDER.DESCENDING, ORDER.ASCENDING)
    return {
        "hessian": lambda: layer.hessian(index).blocks,
        "100 products": lambda: layer.hessian_product(index, vectors),
        "top 5 of 100": lambda: [best.rows for best in search.query_orders(queries, both)],
    }


class Timed:
    """The median of some calls: seconds, and seconds of processors here and of a client's workers."""

    def __init__(self, function: Callable[[], Any], repeats: int, client: Client | None = None) -> None:
        self.result = function()  # not counted
        times, processors = [], []
        for _ in range(repeats):
            before, start = processor_seconds(client), time.perf_counter()
            self.result = function()
            times.append(time.perf_counter() - start)
            processors.append(processor_seconds(client) - before)
        self.seconds = statistics.median(times)
        self.processors = statistics.median(processors)


def processor_seconds(client: Client | None) -> float:
    """Return the processor time that this process and the workers have taken so far."""
    return time.process_time() + (0 if client is None else sum(client.run(time.process_time).values()))


def bytes_sent(dask_worker: Any) -> int:
    """Return the bytes of data that a worker has sent to others so far."""
    return int(dask_worker.transfer_outgoing_bytes_total)


class Counted:
    """What workers send to each other, and what comes to the client, during some work."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __call__(self, function: Callable[[], Any]) -> tuple[int, Any]:
        before = self.client.run(bytes_sent)
        result = function()
        after = self.client.run(bytes_sent)
        return sum(after[worker] - before[worker] for worker in after), result


def plan(name: str, n_blocks: int, n_workers: int) -> tuple[float, float]:
    """Return the most and the least bytes a block that the plan has workers send.

    A sum goes up the tree in ``n_blocks - 1`` additions; each moves one sum from one worker to another,
    none where both are there already, and two if the scheduler gives it to a third worker that is idle.
    The last sum goes to the client. What a function refers to goes once to each worker, to the first by
    the client.
    """
    size = (D + 1) * C
    vectors = 4 * size * N_QUERIES
    one_sum = {"hessian": 4 * size**2, "100 products": vectors, "top 5 of 100": 0}[name]
    function = 0 if name == "hessian" else vectors
    least = function * (n_workers - 1) + one_sum
    most = least + (2 * one_sum * (n_blocks - 1) if n_workers > 1 else 0)
    return most / n_blocks, least / n_blocks


def same(left: Any, right: Any) -> bool:
    """Return whether two results are equal to the last bit."""
    lists = isinstance(left, list)
    return all(map(np.array_equal, left, right)) if lists else np.array_equal(left, right)


def main() -> None:
    """Print one line for each step and number of workers."""
    options = parser(__doc__)
    options.add_argument("--samples", type=int, default=500_000)
    options.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    options.add_argument("--folder", help="where temporary files lie")
    chosen = options.parse_args()
    n_samples = 8_000 if chosen.smoke else chosen.samples
    workers = [2] if chosen.smoke else chosen.workers
    repeats = 1 if chosen.smoke else chosen.repeats
    row_bytes = 4 * (D + 1)
    block_bytes = BLOCK_BYTES
    if chosen.smoke:
        block_bytes = shard.SHARD_BYTES = BLOCK_BYTES // 32
    engine.PART_ROWS = block_bytes // row_bytes * 95 // 100
    rng = np.random.default_rng(1)
    theta = (rng.standard_normal((D + 1, C)) / np.sqrt(D)).astype(np.float32)
    layer = whence.LinearLayer(theta, SoftmaxCrossEntropy(), has_bias=True)
    folder = Path(tempfile.mkdtemp(dir=chosen.folder))
    limits = threadpool_limits(1, user_api="blas")  # as Dask's own settings are for its workers
    engine._fewer_blas_threads = lambda n_threads: nullcontext()  # which would give one thread all
    try:
        index = built(n_samples, folder, layer)
        n_blocks = len(list(index.parts()))
        mib = n_samples * row_bytes / n_blocks / 2**20
        print(f"{n_samples:,} samples in {n_blocks} blocks of {mib:.0f} MiB, {os.cpu_count()} processors")
        print(
            f"{'':45s}{'seconds':>20s}{'processor seconds':>27s}{'MiB sent a block':>26s}\n"
            f"{'step':14s}{'workers':>8s}{'here':>12s}{'threads':>11s}{'workers':>10s}{'ratio':>10s}"
            f"{'threads':>9s}{'workers':>9s}{'ratio':>9s}{'measured':>12s}{'plan':>14s}{'bits':>8s}"
        )
        here = {name: Timed(step, repeats) for name, step in steps(index, layer, engine.Serial()).items()}
        for n_workers in workers:
            cluster = LocalCluster(
                n_workers=n_workers, threads_per_worker=1, dashboard_address=":0", silence_logs=50
            )
            with cluster, Client(cluster) as client:
                client.wait_for_workers(n_workers)
                of_threads = steps(index, layer, engine.Threads(n_workers))
                threads = {name: Timed(step, repeats) for name, step in of_threads.items()}
                for name, step in steps(index, layer, Cluster(client)).items():
                    sent, _ = Counted(client)(step)
                    found, beside = Timed(step, repeats, client), threads[name]
                    most, least = plan(name, n_blocks, n_workers)
                    equal = all(same(r.result, here[name].result) for r in (found, beside))
                    print(
                        f"{name:14s}{n_workers:8d}{here[name].seconds:12.2f}{beside.seconds:11.2f}"
                        f"{found.seconds:10.2f}{found.seconds / beside.seconds:10.2f}"
                        f"{beside.processors:9.2f}{found.processors:9.2f}"
                        f"{found.processors / beside.processors:9.2f}{sent / n_blocks / 2**20:12.2f}"
                        f"{least / 2**20:7.2f} -{most / 2**20:6.2f}{'same' if equal else 'differ':>8s}",
                        flush=True,
                    )
    finally:
        limits.restore_original_limits()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
