"""Rows of a multi-layer perceptron in closed form: dense layers with an activation between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whence.arrays.base import Array, astype, namespace
from whence.layers.losses import sigmoid
from whence.layers.rows import Factors, Rows

__all__ = ["ACTIVATIONS", "inputs_of_layers", "perceptron_rows"]

#: Activations by name: the function, and its slope by what the function gave.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "identity": (lambda u: u, lambda h: namespace(h).ones_like(h)),
    "logistic": (sigmoid, lambda h: h * (1 - h)),
    "tanh": (lambda u: namespace(u).tanh(u), lambda h: 1 - h**2),
    "relu": (
        lambda u: namespace(u).maximum(u, namespace(u).zeros_like(u)),
        lambda h: astype(h > 0, h.dtype),
    ),
}


def inputs_of_layers(
    x: Array, kernels: Sequence[Array], biases: Sequence[Array], activation: str
) -> list[Array]:
    """Return the input of every layer, ``(n, d_l)`` each.

    Parameters
    ----------
    x : array of shape (n, d_0)
    kernels : sequence of array of shape (d_l, C_l)
    biases : sequence of array of shape (C_l,)
    activation : str
        Between the layers: a key of ``ACTIVATIONS``.
    """
    function, _ = ACTIVATIONS[activation]
    inputs = [x]
    for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
        inputs.append(function(inputs[-1] @ kernel + bias))
    return inputs


def perceptron_rows(
    inputs: Sequence[Array],
    kernels: Sequence[Array],
    activation: str,
    by_output: Array,
    names: Sequence[str],
) -> Rows:
    """Return the rows of ``<by_output_i, u_i>`` with respect to every layer, biases as last inputs.

    ``delta_l = (W_{l+1} delta_{l+1}) * act'(h_l)``, from ``delta = by_output`` at the last layer on.

    Parameters
    ----------
    inputs, kernels, activation
        See :func:`inputs_of_layers`.
    by_output : array of shape (n, C)
    names : sequence of str
        What the layers are called.

    Examples
    --------
    Two layers with weights 2 and 3 and the identity between them, ``u = 3 (2 x + 0) + 0`` at ``x = 5``:

    >>> import numpy as np
    >>> kernels, biases = [np.asarray([[2.0]]), np.asarray([[3.0]])], [np.zeros(1), np.zeros(1)]
    >>> seen = inputs_of_layers(np.asarray([[5.0]]), kernels, biases, "identity")
    >>> rows = perceptron_rows(seen, kernels, "identity", np.ones((1, 1)), ["first", "second"])
    >>> rows.matrices("first").ravel().tolist(), rows.matrices("second").ravel().tolist()
    ([15.0, 3.0], [10.0, 1.0])
    """
    _, slope = ACTIVATIONS[activation]
    delta, layers = by_output, {}
    for place in reversed(range(len(kernels))):
        a = inputs[place]
        xp = namespace(a)
        wide = xp.concat([a, xp.ones_like(a[:, :1])], axis=1)
        layers[names[place]] = (Factors(wide[:, None, None, :], delta[:, None, None, :]),)
        if place:
            delta = (delta @ kernels[place].T) * slope(a)
    return Rows({name: layers[name] for name in names})
