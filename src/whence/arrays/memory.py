"""How much memory there is."""

from __future__ import annotations

import math
import os

__all__ = ["memory_bytes"]


def memory_bytes() -> float:
    """Return the bytes of memory of this machine; infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf
