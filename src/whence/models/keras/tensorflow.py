"""Derivatives of a loss with respect to the pre-activations, by TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy, import_extra
from whence.data.base import leaves, map_leaves

__all__ = ["CompiledForward", "TensorFlowDerivatives", "compiled_output"]

#: What is computed in: the second where code in the model or the loss fixes float32.
PRECISIONS = ("float64", "float32")


class CompiledForward:
    """A function of a tree of inputs, compiled once for batches of any size.

    An axis other than the batch's is taken as fixed until it changes, and as free from then on.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._tf = import_extra("tensorflow", "tensorflow")
        self._function = self._tf.function(function, autograph=False)
        self._shapes: dict[Any, list[list[int | None]]] = {}
        self._compiled: dict[Any, Any] = {}

    def __call__(self, inputs: Any) -> Any:
        """Return the function of ``inputs``, computed by the compiled graph."""
        tf = self._tf
        inputs = map_leaves(tf.convert_to_tensor, inputs)
        parts = leaves(inputs)
        form = tuple((part.dtype, len(part.shape)) for part in parts)
        shapes = self._shapes.get(form)
        fits = shapes is not None and all(
            free is None or free == size
            for shape, part in zip(shapes, parts, strict=True)
            for free, size in zip(shape, part.shape, strict=True)
        )
        if not fits:
            sizes = [[None, *part.shape[1:]] for part in parts]
            if shapes is not None:
                sizes = [
                    [a if a == b else None for a, b in zip(old, new, strict=True)]
                    for old, new in zip(shapes, sizes, strict=True)
                ]
            self._shapes[form] = sizes
            specs = iter([tf.TensorSpec(s, p.dtype) for s, p in zip(sizes, parts, strict=True)])
            signature = _fill(inputs, specs)
            self._compiled[form] = self._function.get_concrete_function(signature)
        return self._compiled[form](inputs)


def _fill(tree: Any, values: Any) -> Any:
    """Return a tree of the form of ``tree`` with ``values`` as its leaves, in leaf order."""
    if isinstance(tree, dict):
        filled = {key: _fill(tree[key], values) for key in sorted(tree)}
        return {key: filled[key] for key in tree}
    if isinstance(tree, list | tuple):
        return tuple(_fill(part, values) for part in tree)
    return next(values)


class TensorFlowDerivatives:
    """``ell``, ``r`` and ``K`` of every sample of a batch; see ``differentiated.Derivatives``.

    Compiled once for each order and form of labels, for batches of any size.

    Parameters
    ----------
    loss : callable
        ``loss(u, y, precision)`` gives ``ell (n,)`` for tensors ``u (n, C)`` and ``y (n, ...)``.
        Sample ``i`` must depend on row ``i`` alone.
    described : str
        How messages call the loss.

    Attributes
    ----------
    precision : str or None
        The dtype that was settled on; ``None`` before the first call.
    """

    def __init__(self, loss: Callable[[Any, Any, str], Any], described: str) -> None:
        self._tf = import_extra("tensorflow", "tensorflow")
        self._loss = loss
        self._described = described
        self._compiled: dict[Any, Any] = {}
        self.precision: str | None = None

    def __call__(self, u: Any, target: Any, order: int) -> np.ndarray:
        """Return ``ell (n,)``, ``r (n, C)`` or ``K (n, C, C)``, for order 0, 1 or 2."""
        u, target = as_numpy(u), as_numpy(target)
        key = (order, u.shape[1], target.dtype, target.shape[1:])
        if key not in self._compiled:
            self._compiled[key], self.precision = _compile(
                lambda u, y, precision: self._derivative(u, y, precision, order),
                PRECISIONS if self.precision is None else (self.precision,),
                u.shape[1],
                self._tf.TensorSpec((None, *target.shape[1:]), target.dtype),
            )
        constant = self._tf.constant
        return as_numpy(self._compiled[key](constant(u, self.precision), constant(target)))

    def _derivative(self, u: Any, y: Any, precision: str, order: int) -> Any:
        tf = self._tf
        if order == 0:
            return self._loss(u, y, precision)
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(u)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(u)
                value = self._loss(u, y, precision)
            r = inner.gradient(value, u)  # of the sum, in which each row occurs in one term
            if r is None:
                raise WhenceError(
                    f"loss {self._described}",
                    "a loss that depends on the layer and can be differentiated",
                    "one without a gradient with respect to the layer's pre-activations",
                    "Choose a layer that the output depends on, and a loss that is not a metric.",
                )
            r = tf.convert_to_tensor(r)  # rows that are gathered have slices for a gradient
        if order == 1:
            return r
        zero = tf.UnconnectedGradients.ZERO
        return outer.batch_jacobian(r, u, unconnected_gradients=zero)


def compiled_output(output: Callable[[Any, str], Any], n_outputs: int) -> Callable[[Any], np.ndarray]:
    """Return ``output(u, precision)`` compiled for any number of rows, from and to NumPy arrays."""
    tf = import_extra("tensorflow", "tensorflow")
    compiled, precision = _compile(output, PRECISIONS, n_outputs)
    return lambda u: as_numpy(compiled(tf.constant(as_numpy(u), precision)))


def _compile(
    function: Callable[..., Any], precisions: Sequence[str], n_outputs: int, *more: Any
) -> tuple[Any, str]:
    """Compile ``function(u, ..., precision)`` in the first precision that it can be traced in."""
    tf = import_extra("tensorflow", "tensorflow")
    failure: Exception | None = None
    for precision in precisions:

        def traced(*tensors: Any, precision: str = precision) -> Any:
            return function(*tensors, precision)

        signature = [tf.TensorSpec((None, n_outputs), precision), *more]
        try:
            compiled = tf.function(traced, input_signature=signature, autograph=False)
            return compiled.get_concrete_function(), precision
        except WhenceError:
            raise
        except Exception as error:  # whatever the user's layers and functions raise
            failure = error
    assert failure is not None
    raise failure
