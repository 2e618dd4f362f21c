"""Wrapped models: one adapter a framework, picked by the model's type."""

from whence.models.base import Adapter, InfluenceModel, LossSpec

__all__ = ["Adapter", "InfluenceModel", "LossSpec"]
