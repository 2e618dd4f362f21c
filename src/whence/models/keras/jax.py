"""Derivatives of a loss with respect to the pre-activations, and compiled forward passes, by JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy, import_extra
from whence.data.base import map_leaves

__all__ = ["JaxDerivatives", "JaxForward", "jax_output"]

#: What is computed in: the second where code in the model or the loss fixes float32.
PRECISIONS = ("float64", "float32")


class JaxForward:
    """A function of a tree of inputs, compiled once for each form of batch.

    Parameters
    ----------
    function : callable
        Runs a Keras model.
    variables : callable
        ``variables()`` gives the model's variables: their values are read anew in each call.
    """

    def __init__(self, function: Callable[[Any], Any], variables: Callable[[], Sequence[Any]]) -> None:
        self._variables = variables
        self._compiled = import_extra("jax", "jax").jit(_stateless(function, variables))

    def __call__(self, inputs: Any) -> Any:
        """Return the function of ``inputs``."""
        values = [variable.value for variable in self._variables()]
        return self._compiled(values, map_leaves(as_numpy, inputs))


class JaxDerivatives:
    """``ell``, ``r`` and ``K`` of every sample of a batch; see ``differentiated.Derivatives``.

    Parameters
    ----------
    loss : callable
        ``loss(u, y, precision)`` gives ``ell (n,)`` for arrays ``u (n, C)`` and ``y (n, ...)``.
        Sample ``i`` must depend on row ``i`` alone.
    described : str
        How messages call the loss.
    variables : callable
        See :class:`JaxForward`; their values are those of now.

    Attributes
    ----------
    precision : str or None
        The dtype that was settled on; ``None`` before the first call.
    """

    def __init__(
        self,
        loss: Callable[[Any, Any, str], Any],
        described: str,
        variables: Callable[[], Sequence[Any]],
    ) -> None:
        self._loss = loss
        self._described = described
        self._values = [variable.value for variable in variables()]
        self._variables = variables
        self._compiled: dict[Any, Any] = {}
        self.precision: str | None = None

    def __call__(self, u: Any, target: Any, order: int) -> np.ndarray:
        """Return ``ell (n,)``, ``r (n, C)`` or ``K (n, C, C)``, for order 0, 1 or 2."""
        u, target = as_numpy(u), as_numpy(target)
        # Rows up to a power of two: each form is compiled anew, and blocks come in many lengths.
        n_rows = u.shape[0]
        rows = np.minimum(np.arange(1 << max(1, n_rows - 1).bit_length()), n_rows - 1)
        precisions = PRECISIONS if self.precision is None else (self.precision,)

        def run(precision: str) -> Any:
            if (order, precision) not in self._compiled:
                self._compiled[order, precision] = _jitted(
                    lambda u, y: self._derivative(u, y, precision, order), self._variables
                )
            return self._compiled[order, precision](self._values, u[rows].astype(precision), target[rows])

        result, self.precision = _in_first(precisions, run)
        return result[:n_rows]

    def _derivative(self, u: Any, y: Any, precision: str, order: int) -> Any:
        jax = import_extra("jax", "jax")
        if order == 0:
            return self._loss(u, y, precision)

        def residual(u: Any) -> Any:  # of the sum, in which each row occurs in one term
            return jax.grad(lambda v: self._loss(v, y, precision).sum())(u)

        if order == 1:
            return residual(u)
        units = jax.numpy.eye(u.shape[1], dtype=u.dtype)
        columns = jax.vmap(
            lambda unit: jax.jvp(residual, (u,), (jax.numpy.broadcast_to(unit, u.shape),))[1]
        )
        return jax.numpy.moveaxis(columns(units), 0, 2)


def jax_output(
    output: Callable[[Any, str], Any], variables: Callable[[], Sequence[Any]]
) -> Callable[[Any], np.ndarray]:
    """Return ``output(u, precision)`` compiled, from and to NumPy arrays."""
    values = [variable.value for variable in variables()]
    settled: list[str] = []
    compiled: dict[str, Any] = {}

    def run(precision: str, u: np.ndarray) -> Any:
        if precision not in compiled:
            compiled[precision] = _jitted(lambda u: output(u, precision), variables)
        return compiled[precision](values, u.astype(precision))

    def computed(u: Any) -> np.ndarray:
        result, precision = _in_first(settled or PRECISIONS, lambda p: run(p, as_numpy(u)))
        settled[:] = [precision]
        return result

    return computed


def _jitted(function: Callable[..., Any], variables: Callable[[], Sequence[Any]]) -> Any:
    return import_extra("jax", "jax").jit(_stateless(function, variables))


def _stateless(function: Callable[..., Any], variables: Callable[[], Sequence[Any]]) -> Callable[..., Any]:
    """Return ``function`` with the values of a Keras model's variables as its first argument."""
    keras = import_extra("keras", "jax")

    def called(values: list[Any], *args: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables(), values, strict=True))):
            return function(*args)

    return called


def _in_first(precisions: Sequence[str], run: Callable[[str], Any]) -> tuple[np.ndarray, str]:
    """Return the result in the first precision in which the user's code can be traced."""
    failure: Exception | None = None
    for precision in precisions:
        try:
            with _double(precision == "float64"):
                return as_numpy(run(precision)), precision
        except WhenceError:
            raise
        except Exception as error:  # whatever the user's layers and functions raise
            failure = failure or error
    assert failure is not None
    raise failure


def _double(allowed: bool) -> AbstractContextManager[Any]:
    """Let JAX compute in float64, which it does not by default, inside this context."""
    jax = import_extra("jax", "jax")
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(allowed)
    from jax.experimental import enable_x64  # before JAX 0.8

    return enable_x64(allowed)
