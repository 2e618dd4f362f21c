"""Attribution methods: each scores training samples for a prediction."""

from whence.attribution.average import Average, average
from whence.attribution.baselines import FeatureSimilarity, TrainingLoss
from whence.attribution.contract import Attribution
from whence.attribution.gradient import GradientCosine, GradientDotProduct
from whence.attribution.influence import InfluenceFunctions
from whence.attribution.l2 import RepresenterPointL2
from whence.attribution.lje import RepresenterPointLJE
from whence.attribution.loading import load_index

__all__ = [
    "Attribution",
    "Average",
    "FeatureSimilarity",
    "GradientCosine",
    "GradientDotProduct",
    "InfluenceFunctions",
    "RepresenterPointL2",
    "RepresenterPointLJE",
    "TrainingLoss",
    "average",
    "load_index",
]
