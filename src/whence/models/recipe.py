"""A wrapped model on its way to other processes."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from typing import Any

from whence._errors import WhenceError
from whence.arrays.base import import_extra

__all__ = ["Recipe"]


class Recipe:
    """A wrapped model on its way to other processes, where it is made once.

    Parameters
    ----------
    model : InfluenceModel
    make : callable, optional
        Makes the user's model there; ``None``: it is pickled.
    """

    def __init__(self, model: Any, make: Any = None) -> None:
        cloudpickle = import_extra("cloudpickle", "distributed")
        self._made_there = make is not None
        keras = sys.modules.get("keras")
        self._backend = None if keras is None else keras.backend.backend()
        try:
            with warnings.catch_warnings():
                # Keras 3.15 saves its variables by a way that NumPy 2 warns of.
                warnings.filterwarnings("ignore", "__array__", DeprecationWarning)
                what = make if self._made_there else model.model
                self._pickled = cloudpickle.dumps((type(model), what, model.arguments))
        except Exception as error:
            raise WhenceError(
                "influence_model",
                "a model that can be sent to other processes",
                f"one that cannot be pickled ({type(error).__name__}: {error})",
                "Say how to make it there: engine=Cluster(client, model=function that loads it).",
            ) from error

    @property
    def digest(self) -> str:
        """A text that two recipes share only if they are the same."""
        return hashlib.blake2b(self._pickled, digest_size=16).hexdigest()

    def wrapped(self) -> Any:
        """Return the model, in this process."""
        if self._backend is not None:
            found = os.environ.setdefault("KERAS_BACKEND", self._backend)
            if found != self._backend:
                raise WhenceError(
                    "engine",
                    f"workers with KERAS_BACKEND={self._backend}, as here",
                    f"KERAS_BACKEND={found}",
                    "Start them with that variable.",
                )
        cloudpickle = import_extra("cloudpickle", "distributed")
        wrap, model, (start_layer, loss_function, options) = cloudpickle.loads(self._pickled)
        model = model() if self._made_there else model
        return wrap(model, start_layer, loss_function=loss_function, **options)
