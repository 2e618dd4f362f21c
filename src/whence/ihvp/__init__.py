"""Inverse-Hessian-vector products: one damped system, several solvers."""

from whence.ihvp.base import (
    SOLVERS,
    InverseHessianVectorProduct,
    InverseHessianVectorProductFactory,
    Solution,
)
from whence.ihvp.conjugate_gradient import CGDIHVP, CGDIHVPFactory
from whence.ihvp.exact import Condition, ExactIHVP, ExactIHVPFactory
from whence.ihvp.kronecker import KroneckerIHVP, KroneckerIHVPFactory
from whence.ihvp.lissa import LissaIHVP, LissaIHVPFactory
from whence.ihvp.woodbury import WoodburyIHVP, WoodburyIHVPFactory

__all__ = [
    "CGDIHVP",
    "SOLVERS",
    "CGDIHVPFactory",
    "Condition",
    "ExactIHVP",
    "ExactIHVPFactory",
    "InverseHessianVectorProduct",
    "InverseHessianVectorProductFactory",
    "KroneckerIHVP",
    "KroneckerIHVPFactory",
    "LissaIHVP",
    "LissaIHVPFactory",
    "Solution",
    "WoodburyIHVP",
    "WoodburyIHVPFactory",
]
