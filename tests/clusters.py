"""Local Dask clusters for tests, and training sets in many small parts for them."""

import contextlib
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from whence.engine import base as engine
from whence.index import shard

SOURCE = str(Path(engine.__file__).parents[2])


@contextlib.contextmanager
def cluster(n_workers, config=None, **options):
    """A client of a cluster of processes here, with one thread each, that import what this one does."""
    distributed = pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([SOURCE, str(Path(__file__).parent), before])
    quiet = {
        "distributed.worker.memory.terminate": False,
        "distributed.admin.log-format": "",
        "distributed.comm.timeouts.connect": "60s",
        **(config or {}),
    }
    try:
        with warnings.catch_warnings(), dask.config.set(quiet):
            warnings.simplefilter("ignore")  # what Dask says of ports and of workers that come late
            local = distributed.LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                dashboard_address=":0",
                silence_logs=50,
                **options,
            )
            client = distributed.Client(local, set_as_default=False)
            client.wait_for_workers(n_workers, timeout=120)
        try:
            yield client
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                client.close()
                local.close()
    finally:
        os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def small_parts(n_features, rows=40):
    """Shards of ``rows`` rows, each a part of its own, so that a small training set has many."""
    before = engine.PART_ROWS, shard.SHARD_BYTES
    engine.PART_ROWS, shard.SHARD_BYTES = rows, rows * n_features * 8
    try:
        yield
    finally:
        engine.PART_ROWS, shard.SHARD_BYTES = before


def worker_pids(client):
    """The processes of the workers, but not of their nannies."""
    return [info["pid"] for info in client.run(_pid).values()]


def _pid():
    return {"pid": os.getpid()}


def kill(pid):
    """End a process as the kernel ends one that has taken all memory."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def by_value(module_name):
    """Have what a test module defines sent to workers whole: they cannot import it."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[module_name])


def contents(folder):
    """Every file of a folder but the lock."""
    files = (file for file in Path(folder).rglob("*") if file.is_file() and file.name != "lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def samples(n=600, d=5, n_classes=3, seed=0):
    """Features and labels that a linear model learns something of."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    y = (x[:, :n_classes] + rng.gumbel(size=(n, n_classes))).argmax(axis=1)
    return x, y
