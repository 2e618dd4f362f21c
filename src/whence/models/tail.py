"""Which loss a model has at its target layer: in closed form where its tail allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, namespace
from whence.data.base import map_leaves, take_rows
from whence.layers.losses import Loss, log_softmax, sigmoid, softmax
from whence.models.adapter import Adapter

__all__ = ["TAILS", "decide_loss"]

#: What may follow the pre-activations of a loss in closed form.
TAILS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda u: u,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "sigmoid": sigmoid,
    "exp": lambda u: namespace(u).exp(u),
}

#: Samples on which a tail is tried.
TRIED_ROWS = 8


def decide_loss(adapter: Adapter, inputs: Any, phi: Array, closed_form_was_used: bool) -> Loss:
    """Return the closed form if the model's tail is the one that it assumes, else the general loss.

    Some pre-activations of the test's own are put in place of the layer's, so that saturation or a
    kink that the data does not reach is seen as well.

    Parameters
    ----------
    adapter : Adapter
    inputs : tree of arrays
        A batch.
    phi : array of shape (n, d)
        The features that the adapter reads from it, with the constant of the bias.
    closed_form_was_used : bool
        Whether the closed form was taken for granted before, so that there is no way back.

    Raises
    ------
    WhenceError
        If the loss contradicts the tail, the layer is not linear in its weights, or the output does
        not come from the layer alone.
    """
    spec = adapter.loss_spec()
    # Two rows at least: models that squeeze their output lose the batch's axis with a single one.
    rows = np.arange(max(2, min(TRIED_ROWS, phi.shape[0]))) % phi.shape[0]
    inputs = take_rows(inputs, rows)
    pre_activations = as_numpy(phi)[rows] @ adapter.weights().theta()
    _check_layer(adapter, inputs, pre_activations)
    probe = np.random.default_rng(0).normal(scale=3, size=pre_activations.shape)
    probe = probe.astype(np.float32)
    output = _as_units(adapter.tail(inputs, probe), probe)
    found = [
        name
        for name, tail in TAILS.items()
        if output.shape == probe.shape and np.allclose(output, tail(probe), rtol=5e-5, atol=1e-5)
    ]
    if spec.loss is not None and spec.tail in found:
        return spec.loss
    mistaken = [name for name in found if name in spec.contradicted_by]
    if mistaken or closed_form_was_used:
        raise WhenceError(
            f"loss {spec.described} at layer {adapter.layer_name!r}",
            f"a model whose output is the {spec.tail} of the layer's pre-activations",
            f"the {mistaken[0]} of them" if mistaken else "something else behind the layer",
            spec.remedy or "Set from_logits=True if and only if nothing follows the last dense layer.",
        )
    _check_layer_is_all(adapter, inputs, probe, output)
    return adapter.differentiated(inputs)


def _as_units(output: np.ndarray, probe: np.ndarray) -> np.ndarray:
    """Return an output with an axis for the layer's single unit, where the model squeezed it away."""
    squeezed = probe.shape[-1] == 1 and output.shape == probe.shape[:-1]
    return output[..., None] if squeezed else output


def _check_layer(adapter: Adapter, inputs: Any, pre_activations: np.ndarray) -> None:
    """Raise unless the layer is linear in its weights, as the rest of the library takes it."""
    expected = adapter.output(inputs)
    if expected is None:
        return
    got = adapter.tail(inputs, pre_activations.astype(np.float32))
    scale = float(np.abs(expected).max(initial=0))
    # Wide enough for layers in half precision; a layer that does something else is far off.
    if got.shape == expected.shape and np.allclose(got, expected, rtol=0.02, atol=0.02 * scale):
        return
    raise WhenceError(
        f"layer {adapter.layer_name!r}",
        "a dense layer, whose pre-activations are its input times its kernel plus its bias",
        "a layer that computes something else from them",
        "Choose another layer, or write the layer as a plain dense one.",
    )


def _check_layer_is_all(adapter: Adapter, inputs: Any, probe: np.ndarray, output: np.ndarray) -> None:
    """Raise if the model's output depends on its inputs other than through the layer."""
    for change in (lambda leaf: np.roll(leaf, 1, axis=0), _weakened):
        try:
            again = _as_units(adapter.tail(map_leaves(change, inputs), probe), probe)
        except WhenceError:
            raise
        except Exception:  # inputs that the model does not take show nothing
            continue
        room = 1e-5 * np.abs(output).max(initial=0)
        if again.shape != output.shape or not np.allclose(again, output, rtol=1e-4, atol=room):
            raise WhenceError(
                f"layer {adapter.layer_name!r}",
                "a layer that everything in the model's output passes through",
                "an output that also depends on the inputs around it, as by a skip connection",
                "Choose a layer behind the place where the branches meet.",
            )


def _weakened(leaf: np.ndarray) -> np.ndarray:
    """Return other inputs that a model still takes: half of real ones, zeros for integers."""
    if leaf.dtype.kind == "f":
        return leaf * np.asarray(0.5, leaf.dtype)
    return np.zeros_like(leaf)
