"""Estimators whose scores are sums over training samples: of kernels, neighbours, and leaves."""

from whence.models.sklearn.duals.base import Dual, open_dual

__all__ = ["Dual", "open_dual"]
