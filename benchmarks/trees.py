"""Time and memory of indexing and searching the leaves of a large ensemble.

    python benchmarks/trees.py

LightGBM on synthetic data, 100,000 rows, 500 trees of 63 leaves by default. Memory is the peak of this
process, with what training took and LightGBM keeps; ``entries`` are the features that are not zero.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from _common import parser, peak_megabytes

import whence

N_COLUMNS, N_EXPLAINED = 20, 5


def timed(name: str, function: Callable[[], Any]) -> Any:
    """Call a function and print what it took."""
    start = time.perf_counter()
    result = function()
    print(f"{name:34s}{time.perf_counter() - start:10.1f} s{peak_megabytes():10.0f} MB", flush=True)
    return result


def main() -> None:
    """Print one line for each step."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--trees", type=int, default=500)
    options.add_argument("--disk", action="store_true", help="index into a temporary folder too")
    chosen = options.parse_args()
    n, n_trees = (2000, 20) if chosen.smoke else (chosen.rows, chosen.trees)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, N_COLUMNS)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] + x[:, 2] + rng.normal(size=n) > 0).astype(np.int64)
    booster = lightgbm.LGBMClassifier(n_estimators=n_trees, num_leaves=63, verbose=-1, n_jobs=1)
    timed("training", lambda: booster.fit(x, y))
    model = whence.InfluenceModel(booster)
    index = timed("index", lambda: model.index((x, y), progress=False))
    entries = sum(shard.features.matrix.nnz for shard in index.shards)
    held = sum(shard.features.nbytes for shard in index.shards) / 2**20
    print(f"  {n} rows, {index.n_features} features, {entries} entries, held in {held:.0f} MB")
    print(f"  {held * 2**20 / entries:.2f} bytes an entry", flush=True)
    del index
    if chosen.disk or chosen.smoke:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "leaves"
            timed("index on disk", lambda: model.index((x, y), path=place, progress=False))
            written = sum(file.stat().st_size for file in place.iterdir()) / 2**20
            print(f"  written {written:.0f} MB, {written * 2**20 / entries:.2f} bytes an entry", flush=True)
    factory = whence.CGDIHVPFactory(preconditioner=None, damping=1e-2, tolerance=1e-4)
    lje = timed(
        "index and expansion", lambda: whence.RepresenterPointLJE(model, (x, y), factory, progress=False)
    )
    queries = x[:N_EXPLAINED], y[:N_EXPLAINED]
    timed(f"explanation of {N_EXPLAINED}", lambda: lje.explain(queries, k=5, progress=False))


if __name__ == "__main__":
    main()
