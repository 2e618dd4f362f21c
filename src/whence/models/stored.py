"""A layer and its loss without the model that they are of: what a stored index keeps of it."""

from __future__ import annotations

import dataclasses
import importlib
import json
from typing import Any

import numpy as np
import scipy.sparse

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy
from whence.arrays.sparse import SparseRows
from whence.data.base import Dataset
from whence.index import Index, StoredIndex
from whence.index.files import plain
from whence.layers.linear_layer import LinearLayer
from whence.layers.losses import Loss
from whence.models.adapter import Adapter, LossSpec, Weights
from whence.models.base import InfluenceModel

__all__ = ["StoredModel", "describe_layer", "describe_object", "made_from"]

#: Samples of an array that are explained at once.
BATCH_ROWS = 256

#: Where indices of version 0.1.0 say that a class stands, and where it stands now.
MOVED = {"whence.losses": "whence.layers.losses", "whence.margin_losses": "whence.layers.margin_losses"}


def describe_object(thing: Any, module: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Return what it takes to make an object of this library again, as JSON; None if that cannot be."""
    kind = type(thing)
    if not f"{kind.__module__}.".startswith(f"{module}."):
        return None
    try:
        arguments = json.loads(json.dumps(arguments, default=plain))
    except (TypeError, ValueError):
        return None
    return {"module": kind.__module__, "class": kind.__qualname__, "arguments": arguments}


def made_from(description: dict[str, Any], module: str, base: type) -> Any:
    """Return the object that :func:`describe_object` described, if it is one of this library's."""
    name = MOVED.get(str(description["module"]), str(description["module"]))
    kind = None
    if f"{name}.".startswith(f"{module}."):
        kind = getattr(importlib.import_module(name), description["class"], None)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise WhenceError(
            "path",
            f"an index that was made with a {base.__name__} of this version of whence",
            f"{name}.{description['class']}",
            "Read it with the version of whence that wrote it.",
        )
    arguments = {key: _frozen(value) for key, value in description["arguments"].items()}
    return kind(**arguments)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def describe_layer(
    layer: LinearLayer, name: str, model_name: str, class_names: list[Any] | None = None
) -> dict[str, Any] | None:
    """Return what it takes to make a layer again but for its weights; None for other losses than ours."""
    loss = layer.loss
    fields: tuple[Any, ...] = dataclasses.fields(loss) if dataclasses.is_dataclass(loss) else ()
    described = describe_object(loss, "whence", {f.name: getattr(loss, f.name) for f in fields if f.init})
    if described is None:
        return None
    return {
        "name": name,
        "model": model_name,
        "has_bias": layer.has_bias,
        "l2": float(layer.l2),
        "bias_l2": float(layer.bias_l2),
        "loss": described,
        **({} if class_names is None else {"class_names": class_names}),
    }


class StoredModel(InfluenceModel):
    """The target layer of a model whose inputs are its features, as a stored index keeps it.

    Parameters
    ----------
    index : StoredIndex
    description : dict
        See :func:`describe_layer`.
    theta : array of shape (d, C)
    """

    def __init__(self, index: StoredIndex, description: dict[str, Any], theta: np.ndarray) -> None:
        self.model = index
        self._stored = index
        self._model_name = str(description.get("model", "a stored index"))
        loss = made_from(description["loss"], "whence", Loss)
        self._open(_StoredLayer(description, np.asarray(theta), loss))
        self._loss = loss  # decided when the index was built

    @property
    def model_name(self) -> str:
        """What the model was called that the index is of."""
        return self._model_name

    def identity(self) -> dict[str, Any]:
        """Return what the stored features belong to."""
        return self._stored.identity

    def at_layer(self, target_layer: int | str) -> InfluenceModel:
        """Raise: there is one layer here."""
        raise WhenceError(
            "target_layer", "-1, the layer that the index is of", repr(target_layer), "Leave it out."
        )

    def index(self, dataset: Any, **options: Any) -> Index:
        """Return the stored training set, whatever is given."""
        return self._stored

    def open(self, dataset: Any, argument: str = "dataset") -> Dataset:
        """Return a dataset as batches of features: one array is cut into batches first."""
        if isinstance(dataset, np.ndarray) or (hasattr(dataset, "shape") and hasattr(dataset, "dtype")):
            array = dataset.tocsr() if scipy.sparse.issparse(dataset) else as_numpy(dataset)
            if array.ndim < 2 or not array.shape[0]:
                raise WhenceError(
                    argument,
                    f"features of shape (n, {self._adapter.weights().kernel.shape[0]})",
                    f"shape {array.shape}",
                    "Give one row of features for each sample: the input of the target layer.",
                )
            starts = range(0, array.shape[0], BATCH_ROWS)
            dataset = [array[start : start + BATCH_ROWS] for start in starts]
        return super().open(dataset, argument)


class _StoredLayer(Adapter):
    """The adapter of a layer by itself."""

    def __init__(self, description: dict[str, Any], theta: np.ndarray, loss: Loss) -> None:
        self.layer_name = description["name"]
        kernel, bias = (theta[:-1], theta[-1]) if description["has_bias"] else (theta, None)
        self._weights = Weights(kernel, bias, description["l2"], description["bias_l2"])
        self._loss = loss
        self._class_names: list[Any] | None = description.get("class_names")

    @property
    def class_names(self) -> list[Any] | None:
        return self._class_names

    def with_layer(self, layer: int | str) -> Adapter:
        return self

    def weights(self) -> Weights:
        return self._weights

    def loss_spec(self) -> LossSpec:
        return LossSpec(self._loss, "identity", self._loss.name)

    def features(self, inputs: Any) -> Array:
        if scipy.sparse.issparse(inputs):
            return SparseRows(scipy.sparse.csr_array(inputs, dtype=np.float64))
        array = as_numpy(inputs)
        return array if array.dtype.kind == "f" else array.astype(np.float32)

    def tail(self, inputs: Any, pre_activations: np.ndarray) -> np.ndarray:
        return pre_activations
