"""Small indices for tests: samples in batches, shards of a few rows, folders to compare byte by byte.

Run as a script, it builds an index in a process that can be killed: ``python making.py FOLDER LAYOUT``.
"""

import sys

import numpy as np
import scipy.sparse

from whence.arrays.sparse import SparseRows
from whence.index import Writer, shard

N, D = 400, 5
BATCH = 7
SHARD_ROWS = 20
#: What features are: ``dense`` arrays or ``sparse`` rows.
LAYOUT = "dense"
IDENTITY = {"layer": "dense", "model_weights": "0123", "loss": "squared error"}


def batches(n=N, batch=BATCH, seed=0, order=None):
    """Batches of features, targets, weights and fingerprints; the same samples for a seed."""
    rng = np.random.default_rng(seed)
    phi = rng.standard_normal((N, D)).astype(np.float32)
    if LAYOUT == "sparse":
        phi = SparseRows(scipy.sparse.csr_array(np.where(rng.random((N, D)) < 0.5, phi, 0)))
    target = rng.integers(0, 3, N)
    weight = rng.uniform(0.5, 2.0, N).astype(np.float32)
    fingerprint = rng.integers(0, 2**63, N).astype(np.uint64)
    rows = np.arange(n) if order is None else np.asarray(order)
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        yield phi[some], target[some], weight[some], fingerprint[some]


def small_shards():
    """Make shards of ``SHARD_ROWS`` rows from here on; return how large they were."""
    before = shard.SHARD_BYTES
    shard.SHARD_BYTES = SHARD_ROWS * D * 4
    return before


def build(folder, given=None, *, ids=None, identity=IDENTITY, feature_dtype=None, computed=None):
    """Build an index as a model does; ``computed`` collects how many samples were given features."""
    writer = Writer(folder, feature_dtype)
    try:
        for number, (phi, target, weight, fingerprint) in enumerate(batches() if given is None else given):
            if number > 0 and writer.holds(fingerprint):
                continue
            if number == 0:
                writer.begin(identity)
            if computed is not None:
                computed.append(len(phi))
            writer.append(phi, target, weight, fingerprint)
        return writer.finish(ids)
    finally:
        writer.close()


def contents(folder):
    """Every file of a folder but the lock, which is nobody's when it is empty."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


if __name__ == "__main__":
    small_shards()
    LAYOUT = sys.argv[2]
    print("building", flush=True)
    build(sys.argv[1])
    print("built", flush=True)
