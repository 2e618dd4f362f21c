"""Keras 3 models, on every backend."""
