"""Attribute predictions to training samples: which ones they come from, and how much from each."""

from typing import TYPE_CHECKING, Any

from whence._errors import (
    MissingExtraError,
    NotConvergedError,
    NotPositiveDefiniteError,
    WhenceError,
)
from whence._version import __version__ as __version__
from whence.answers.average import Average, average
from whence.answers.baselines import FeatureSimilarity, TrainingLoss
from whence.answers.contract import Attribution
from whence.answers.duals import DualRepresenters
from whence.answers.explanation import Explanation
from whence.answers.gradients import GradientCosine, GradientDotProduct, InfluenceFunctions
from whence.answers.loading import load_index
from whence.answers.representers import RepresenterPointL2, RepresenterPointLJE
from whence.answers.suspects import Suspects
from whence.answers.views import VIEWS
from whence.arrays.base import import_extra
from whence.data.base import register_dataset
from whence.data.readers import Sharded
from whence.engine.base import Threads
from whence.engine.cluster import Cluster
from whence.ihvp import (
    CGDIHVPFactory,
    ExactIHVPFactory,
    InverseHessianVectorProduct,
    InverseHessianVectorProductFactory,
    KroneckerIHVPFactory,
    LissaIHVPFactory,
    Solution,
    WoodburyIHVPFactory,
)
from whence.index import CACHE, Index
from whence.indexing.options import IndexOptions
from whence.layers.linear_layer import LinearLayer
from whence.methods import Rule
from whence.models import InfluenceModel, register_adapter
from whence.search.scores import BaseNearestNeighbors, LinearNearestNeighbors
from whence.search.top_k import ORDER

if TYPE_CHECKING:
    from whence.label_errors import LabelErrors

VIEWS.look_in("whence.report")  # answers are drawn by what stands above them

__all__ = [
    "CACHE",
    "ORDER",
    "Attribution",
    "Average",
    "BaseNearestNeighbors",
    "CGDIHVPFactory",
    "Cluster",
    "DualRepresenters",
    "ExactIHVPFactory",
    "Explanation",
    "FeatureSimilarity",
    "GradientCosine",
    "GradientDotProduct",
    "Index",
    "IndexOptions",
    "InfluenceFunctions",
    "InfluenceModel",
    "InverseHessianVectorProduct",
    "InverseHessianVectorProductFactory",
    "KroneckerIHVPFactory",
    "LabelErrors",
    "LinearLayer",
    "LinearNearestNeighbors",
    "LissaIHVPFactory",
    "MissingExtraError",
    "NotConvergedError",
    "NotPositiveDefiniteError",
    "RepresenterPointL2",
    "RepresenterPointLJE",
    "Rule",
    "Sharded",
    "Solution",
    "Suspects",
    "Threads",
    "TrainingLoss",
    "WhenceError",
    "WoodburyIHVPFactory",
    "average",
    "load_index",
    "register_adapter",
    "register_dataset",
]


def __getattr__(name: str) -> Any:
    """Import what needs scikit-learn when it is first asked for."""
    if name != "LabelErrors":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_extra("sklearn", "sklearn")
    from whence.label_errors import LabelErrors

    return LabelErrors
