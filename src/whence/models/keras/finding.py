"""Which layer of a Keras model is explained, and what it is called whenever the model is built anew."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from whence._errors import WhenceError

__all__ = [
    "applied_layer",
    "find_layer",
    "lasting_name",
    "layers_with_weights",
    "with_lasting_name",
    "without_number",
]


def _leaf_layers(keras: Any, container: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and object of every layer without layers of its own, in order.

    A dense layer is one of them, even if its activation is a layer.
    """
    for layer in getattr(container, "layers", None) or getattr(container, "_layers", []):
        path = f"{prefix}{layer.name}"
        is_dense = isinstance(layer, keras.layers.Dense)
        inner = [] if is_dense else list(_leaf_layers(keras, layer, f"{path}/"))
        if inner:
            yield from inner
        else:
            yield path, layer


def layers_with_weights(keras: Any, model: Any) -> dict[str, Any]:
    """Return the layers that have weights of their own, by their paths."""
    return {path: layer for path, layer in _leaf_layers(keras, model) if layer.weights}


def find_layer(keras: Any, model: Any, wanted: int | str) -> tuple[Any, str]:
    """Return a dense layer and its path, by its path, its name or an index.

    Raises
    ------
    WhenceError
        If there is no such layer, or it is not dense.
    """
    every = list(_leaf_layers(keras, model))
    listing = ", ".join(f"{path} ({type(layer).__name__})" for path, layer in every)
    if isinstance(wanted, str):
        found = [(p, x) for p, x in every if wanted in (p, x.name)]
        if len(found) != 1:
            raise WhenceError(
                "target layer",
                "the name of one layer of the model",
                f"{wanted!r}, which is the name of {len(found) or 'none'}",
                f"The layers are: {listing}.",
            )
        path, layer = found[0]
        return _check_dense(keras, layer, path, every), path
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        raise WhenceError("target layer", "an index or a name", repr(wanted), f"Layers: {listing}.")
    top = model.layers
    if not -len(top) <= wanted < len(top):
        raise WhenceError(
            "target layer",
            f"an index from {-len(top)} to {len(top) - 1}",
            repr(wanted),
            f"The layers are: {listing}.",
        )
    last = top[wanted]
    paths = {id(layer): path for path, layer in every}
    inside = [last, *(x for _, x in _leaf_layers(keras, last))]
    end = max(i for i, (_, x) in enumerate(every) if any(x is y for y in inside))
    for _, layer in reversed(every[: end + 1]):
        if layer.weights or isinstance(layer, keras.layers.Dense):
            return _check_dense(keras, layer, paths[id(layer)], every), paths[id(layer)]
    raise WhenceError(
        "target layer",
        "a dense layer",
        f"no layer with weights up to {wanted}",
        f"Layers: {listing}.",
    )


def _check_dense(keras: Any, layer: Any, path: str, every: list[tuple[str, Any]]) -> Any:
    if not isinstance(layer, keras.layers.Dense):
        dense = [path for path, layer in every if isinstance(layer, keras.layers.Dense)]
        listing = ", ".join(f"{path} ({type(layer).__name__})" for path, layer in every)
        fix = f"Name one of {', '.join(map(repr, dense))}. " if dense else ""
        raise WhenceError(
            "target layer",
            "a dense layer",
            f"{path!r}, a {type(layer).__name__}",
            f"{fix}The layers are: {listing}.",
        )
    if not layer.built:
        raise WhenceError(
            "target layer",
            "a layer with weights",
            f"{path!r}, never built",
            "Call the model first.",
        )
    return layer


def applied_layer(keras: Any, model: Any, layer: Any) -> Any:
    """Return what the model calls to apply a layer: a ``TimeDistributed`` around it, or itself."""
    for other in model._flatten_layers(include_self=False):
        if isinstance(other, keras.layers.TimeDistributed) and other.layer is layer:
            return other
    return layer


def _automatic_name(layer: Any) -> str:
    """Return the name that Keras gives the first layer of such a class: its class in snake case."""
    name = re.sub(r"\W+", "", type(layer).__name__)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _is_automatic(layer: Any) -> bool:
    return re.fullmatch(rf"{re.escape(_automatic_name(layer))}(_\d+)?", layer.name) is not None


def without_number(model: Any) -> str:
    """Return the name of a model, without the number that Keras counts up where it has none of its own."""
    return _automatic_name(model) if _is_automatic(model) else str(model.name)


def _lasting_names(keras: Any, model: Any) -> dict[str, str]:
    """Return for the path of each layer the one that it would have in a process that built nothing else.

    Keras numbers layers without a name through a process: ``dense_1`` is ``dense_7`` where the same model
    is built again. Here they are numbered through the model.
    """
    counts: Counter[str] = Counter()

    def lasting(layer: Any) -> str:
        if not _is_automatic(layer):
            return str(layer.name)
        automatic = _automatic_name(layer)
        counts[automatic] += 1
        number = counts[automatic] - 1
        return f"{automatic}_{number}" if number else automatic

    def walk(container: Any, prefix: str, its: str) -> Iterator[tuple[str, str]]:
        for layer in getattr(container, "layers", None) or getattr(container, "_layers", []):
            path, name = f"{prefix}{layer.name}", f"{its}{lasting(layer)}"
            is_dense = isinstance(layer, keras.layers.Dense)
            inner = [] if is_dense else list(walk(layer, f"{path}/", f"{name}/"))
            yield from inner or [(path, name)]

    return dict(walk(model, "", ""))


def lasting_name(keras: Any, model: Any, path: str) -> str:
    """Return what to call a layer in files: its path, without the numbers that Keras counts up."""
    return _lasting_names(keras, model)[path]


def with_lasting_name(keras: Any, model: Any, name: str) -> str:
    """Return the path of the layer that :func:`lasting_name` calls so; ``name`` itself if there is none."""
    found = [path for path, lasting in _lasting_names(keras, model).items() if lasting == name]
    return found[0] if len(found) == 1 else name
