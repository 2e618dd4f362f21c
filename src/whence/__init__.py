"""Attribute predictions to training samples: which ones they come from, and how much from each."""

from whence._errors import (
    MissingExtraError,
    NotConvergedError,
    NotPositiveDefiniteError,
    WhenceError,
)
from whence.attribution import Attribution, RepresenterPointLJE
from whence.explanation import Explanation, Suspects
from whence.ihvp import (
    ExactIHVPFactory,
    InverseHessianVectorProduct,
    InverseHessianVectorProductFactory,
    Solution,
)
from whence.index import CACHE, Index
from whence.linear_layer import LinearLayer
from whence.models import InfluenceModel
from whence.search import ORDER, BaseNearestNeighbors, LinearNearestNeighbors

__version__ = "0.1.0.dev0"

__all__ = [
    "CACHE",
    "ORDER",
    "Attribution",
    "BaseNearestNeighbors",
    "ExactIHVPFactory",
    "Explanation",
    "Index",
    "InfluenceModel",
    "InverseHessianVectorProduct",
    "InverseHessianVectorProductFactory",
    "LinearLayer",
    "LinearNearestNeighbors",
    "MissingExtraError",
    "NotConvergedError",
    "NotPositiveDefiniteError",
    "RepresenterPointLJE",
    "Solution",
    "Suspects",
    "WhenceError",
]
