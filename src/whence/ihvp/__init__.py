"""Inverse-Hessian-vector products: one damped system, several solvers."""

from whence.ihvp.base import (
    InverseHessianVectorProduct,
    InverseHessianVectorProductFactory,
    Solution,
)
from whence.ihvp.exact import Condition, ExactIHVP, ExactIHVPFactory

__all__ = [
    "Condition",
    "ExactIHVP",
    "ExactIHVPFactory",
    "InverseHessianVectorProduct",
    "InverseHessianVectorProductFactory",
    "Solution",
]
