"""Wrapped models: one adapter a framework, picked by the model's type."""

from whence.models.adapter import Adapter, LossSpec, Weights, register_adapter
from whence.models.base import InfluenceModel

__all__ = ["Adapter", "InfluenceModel", "LossSpec", "Weights", "register_adapter"]
