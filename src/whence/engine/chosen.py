"""The engine that a user's ``engine=`` means."""

from __future__ import annotations

from typing import Any

from whence._errors import WhenceError, described
from whence.engine.base import Engine, Serial, Threads
from whence.engine.cluster import Cluster

__all__ = ["as_engine"]


def as_engine(engine: Any) -> Engine:
    """Return the engine that a user's ``engine=`` means.

    Raises
    ------
    WhenceError
        If it means none.

    Examples
    --------
    >>> type(as_engine(None)).__name__, as_engine(2).n_threads
    ('Serial', 2)
    """
    if engine is None:
        return Serial()
    if isinstance(engine, Engine):
        return engine
    if isinstance(engine, int) and not isinstance(engine, bool):
        return Threads(engine)
    if any(f"{base.__module__}.".startswith("distributed.") for base in type(engine).__mro__):
        return Cluster(engine)
    raise WhenceError(
        "engine",
        "None, a number of threads, a dask.distributed.Client, or an engine of whence",
        described(engine),
        "Pass Client(...), or leave it out.",
    )
