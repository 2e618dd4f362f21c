"""An index on disk, larger than what one holds in memory: time per GiB, search, peak memory.

    python benchmarks/scale.py

Features of a layer of 256 x 10 (and a bias) are built from blocks, so that no model's time plays a part.
For each size, one process builds the index, scans it and makes a method on it; another opens it with
``load_index`` and asks for the top 5 of 100 samples. The same bytes as plain ``.npy`` files, and the matrix
products of the search at the rate measured right before and after it, stand beside it. Files lie in
a temporary folder (``--folder``) and are deleted.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from _common import N_QUERIES, in_process, parser, peak_megabytes

D, C = 256, 10
SIZES = (100_000, 300_000, 1_000_000)
BLOCK_ROWS = 8192
TOP = 5


def seconds(function: Callable[[], object]) -> float:
    """Return the wall-clock time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def blocks(n_samples: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield features with the bias's constant, labels and fingerprints; every block differs."""
    rng = np.random.default_rng(0)
    features = np.maximum(rng.standard_normal((BLOCK_ROWS, D + 1), dtype=np.float32), 0)
    features[:, -1] = 1
    labels = rng.integers(0, C, BLOCK_ROWS)
    for start in range(0, n_samples, BLOCK_ROWS):
        n = min(BLOCK_ROWS, n_samples - start)
        features[:, start // BLOCK_ROWS % D] *= 1.01
        yield features[:n].copy(), labels[:n], np.arange(start, start + n, dtype=np.uint64)


def plain(n_samples: int, folder: Path) -> dict:
    """Write and scan the features as plain ``.npy`` files of the same size."""
    rows = 32 * 2**20 // (4 * (D + 1))
    files, n_bytes, writing = [], 0, 0.0
    pending: list[np.ndarray] = []

    def write() -> None:
        file = folder / f"plain-{len(files):05d}.npy"
        with open(file, "wb") as handle:
            np.save(handle, np.concatenate(pending))
            handle.flush()
            os.fsync(handle.fileno())
        files.append(file)

    for features, _, _ in blocks(n_samples):
        pending.append(features)
        n_bytes += features.nbytes
        if sum(map(len, pending)) >= rows:
            writing += seconds(write)
            pending.clear()
    if pending:
        writing += seconds(write)
    scanning = seconds(lambda: [np.load(file, mmap_mode="r").sum() for file in files])
    return {"write": writing / (n_bytes / 2**30), "scan": scanning / (n_bytes / 2**30)}


def gemm_rate(size: int = 2048, at_least: float = 2.0) -> float:
    """Return float32 operations a second of large matrix products, the mean over some seconds.

    Not the best of them: a search takes as long, and has its share of what else the machine does.
    """
    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    a @ a
    n_products, spent = 0, 0.0
    while spent < at_least:
        spent += seconds(lambda: a @ a)
        n_products += 1
    return 2 * size**3 * n_products / spent


def build(n_samples: int, folder: Path) -> dict:
    """Build and scan an index, and make a method on it."""
    import whence
    from whence.index import StoredIndex, Writer
    from whence.layers.losses import SoftmaxCrossEntropy
    from whence.models.stored import StoredModel, describe_layer

    path = folder / "index"
    theta = np.random.default_rng(1).standard_normal((D + 1, C)) / np.sqrt(D)
    layer = whence.LinearLayer(theta, SoftmaxCrossEntropy(), has_bias=True)
    writer = Writer(path)
    writer.begin({"layer": "dense"})
    building = 0.0
    for features, labels, fingerprint in blocks(n_samples):
        start = time.perf_counter()
        writer.append(features, labels, None, fingerprint)
        building += time.perf_counter() - start
    building += seconds(writer.finish)
    index = StoredIndex(path, verify=False)
    scanning = seconds(lambda: [shard.features.sum() for shard in index.shards])
    description = describe_layer(layer, "dense", "features")
    assert description is not None
    model = StoredModel(index, description, theta)
    whence.RepresenterPointLJE(
        model,
        index,
        whence.ExactIHVPFactory(),
        n_samples_for_hessian=min(20_000, n_samples),
        progress=False,
    )
    gib = n_samples * (D + 1) * 4 / 2**30
    return {"gib": gib, "build": building / gib, "scan": scanning / gib, "peak": peak_megabytes()}


def search(n_samples: int, folder: Path) -> dict:
    """Open an index that is there and ask for the top 5 of 100 samples."""
    import whence

    opened: list[whence.Attribution] = []
    opening = seconds(lambda: opened.append(whence.load_index(folder / "index", progress=False)))
    queries = next(blocks(N_QUERIES))[0][:, :-1]
    opened[0].explain(queries[:1], k=TOP)  # the solver looks once at its residual
    answers, rates = [], [gemm_rate()]
    for _ in range(5):
        answers.append(seconds(lambda: opened[0].explain(queries, k=TOP)))
        rates.append(gemm_rate())
    # Each answer against the rate right before and after it: other work on the machine slows both.
    operations = 2 * n_samples * (D + 1) * C * N_QUERIES
    pairs = [
        (answer / (operations / ((before + after) / 2)), answer, (before + after) / 2)
        for answer, before, after in zip(answers, rates, rates[1:], strict=False)
    ]
    ratio, answer, rate = sorted(pairs)[len(pairs) // 2]
    return {
        "open": opening,
        "search": answer,
        "products": operations / rate,
        "ratio": ratio,
        "gflops": rate / 1e9,
        "peak": peak_megabytes(),
    }


def main() -> None:
    """Print one line for each size."""
    options = parser(__doc__)
    options.add_argument("--one", nargs=3, metavar=("STEP", "N", "FOLDER"), help="(in this process)")
    options.add_argument("--folder", help="where temporary files lie")
    chosen = options.parse_args()
    if chosen.one:
        step, n_samples, folder = chosen.one
        steps = {"plain": plain, "build": build, "search": search}
        print(json.dumps(steps[step](int(n_samples), Path(folder))))
        return
    sizes = (2_000, 6_000, 20_000) if chosen.smoke else SIZES
    needed = 4 * sizes[-1] * (D + 1 + C) * 4
    print(
        f"{'N':>10s}{'GiB':>7s}{'build s/GiB':>13s}{'plain':>7s}{'scan s/GiB':>12s}{'plain':>7s}"
        f"{'open s':>8s}{'top 5 s':>9s}{'products':>10s}{'ratio':>7s}{'GFLOP/s':>9s}"
        f"{'peak MB, building':>19s}{'searching':>11s}"
    )
    for n_samples in sizes:
        folder = tempfile.mkdtemp(dir=chosen.folder)
        try:
            if shutil.disk_usage(folder).free < needed:
                raise SystemExit(f"{folder}: {needed / 2**30:.1f} GiB of free space are needed.")
            beside, built, found = (
                in_process(sys.argv[0], "--one", step, str(n_samples), folder)
                for step in ("plain", "build", "search")
            )
        finally:
            shutil.rmtree(folder)
        print(
            f"{n_samples:10,d}{built['gib']:7.2f}{built['build']:13.2f}{beside['write']:7.2f}"
            f"{built['scan']:12.2f}{beside['scan']:7.2f}{found['open']:8.2f}{found['search']:9.2f}"
            f"{found['products']:10.2f}{found['ratio']:7.2f}{found['gflops']:9.0f}"
            f"{built['peak']:19.0f}{found['peak']:11.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
