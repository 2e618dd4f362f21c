"""What the Keras adapter needs of the backend that Keras runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy, import_extra
from whence.data.base import map_leaves
from whence.models.differentiated import Derivatives
from whence.models.state import Part

__all__ = ["Backend", "backend_of"]


class Backend(NamedTuple):
    """What each backend does its own way.

    Attributes
    ----------
    forward : callable
        ``forward(function)`` compiles a function of the model's inputs, for batches of any size.
    derivatives : callable
        ``derivatives(loss, described)`` differentiates ``loss(u, y, precision)``.
    output : callable
        ``output(function, n_outputs)`` compiles ``function(u, precision)``, from and to NumPy arrays.
    part : callable
        ``part(variable)`` is a variable as what a model computes with, and what tells that it was changed.
    """

    forward: Callable[[Callable[[Any], Any]], Callable[[Any], Any]]
    derivatives: Callable[[Callable[..., Any], str], Derivatives]
    output: Callable[[Callable[..., Any], int], Callable[[Any], np.ndarray]]
    part: Callable[[Any], Part]


def backend_of(keras: Any, model: Any) -> Backend:
    """Return what the backend offers that a Keras model runs on.

    Raises
    ------
    WhenceError
        If Keras runs on another one than TensorFlow, JAX and PyTorch.
    """
    name = keras.backend.backend()
    if name == "tensorflow":
        from whence.models.keras.tensorflow import CompiledForward, TensorFlowDerivatives, compiled_output

        return Backend(CompiledForward, TensorFlowDerivatives, compiled_output, _unmarked)
    if name == "jax":
        from whence.models.keras.jax import JaxDerivatives, JaxForward, jax_output

        def variables() -> Any:
            return model.variables

        return Backend(
            lambda function: JaxForward(function, variables),
            lambda loss, described: JaxDerivatives(loss, described, variables),
            lambda function, n_outputs: jax_output(function, variables),
            _immutable,
        )
    if name == "torch":
        from whence.models.torch.derivatives import TorchDerivatives, torch_output
        from whence.models.torch.module import tensor_part

        torch = import_extra("torch", "torch")
        device = model.variables[0].value.device
        return Backend(
            lambda function: lambda inputs: torch.no_grad()(function)(map_leaves(as_numpy, inputs)),
            lambda loss, described: TorchDerivatives(loss, described, device),
            lambda function, n_outputs: torch_output(function, device),
            lambda variable: tensor_part(variable.value, may_count=True) or _unmarked(variable),
        )
    raise WhenceError(
        "Keras's backend",
        "tensorflow, jax or torch",
        name,
        "Set KERAS_BACKEND before keras is imported.",
    )


def _unmarked(variable: Any) -> Part:
    """Return a variable that is written in place, and that nothing but its value tells about."""
    return Part(lambda: as_numpy(variable.value), may_count="int" in str(variable.dtype))


def _immutable(variable: Any) -> Part:
    """Return a variable whose value is replaced when it changes, and never written to."""
    value = variable.value
    return Part(lambda: value, id(value), is_settled=True, may_count="int" in str(variable.dtype))
