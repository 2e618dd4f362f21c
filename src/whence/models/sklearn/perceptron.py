"""Rows of scikit-learn's multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.layers.perceptron import inputs_of_layers, perceptron_rows
from whence.layers.rows import Rows

__all__ = ["PerceptronRows", "layers_of"]

#: Samples whose rows are taken at a time.
AT_ONCE = 4096


def layers_of(model: Any, wanted: Any) -> list[str]:
    """Return the layers of a perceptron that are wanted, in their order, or raise if there is no such."""
    names = [f"coefs_[{place}]" for place in range(len(model.coefs_))]
    if isinstance(wanted, str):
        return names
    chosen = []
    for layer in wanted:
        is_place = isinstance(layer, int) and -len(names) <= layer < len(names)
        if not is_place and layer not in names:
            raise WhenceError(
                "layers", f"names or indices among {', '.join(names)}", repr(layer), "Choose."
            )
        name = names[layer] if is_place else layer
        if name in chosen:
            raise WhenceError("layers", "each layer once", f"{name!r} twice", "Leave one out.")
        chosen.append(name)
    return [name for name in names if name in chosen]


class _Recorded:
    def __init__(self, owner: PerceptronRows, x: np.ndarray) -> None:
        self._owner = owner
        model = owner.model
        self._inputs = inputs_of_layers(x, model.coefs_, model.intercepts_, model.activation)

    def rows(self, by_output: np.ndarray) -> Rows:
        """Return the rows of ``<by_output_i, u_i>``."""
        model = self._owner.model
        delta = np.asarray(by_output, dtype=model.coefs_[-1].dtype)
        every = perceptron_rows(self._inputs, model.coefs_, model.activation, delta, self._owner.names)
        return every.only(list(self._owner.layers))


class PerceptronRows:
    """Records rows of the chosen layers; see :class:`whence.models.several.RowSource`.

    Parameters
    ----------
    model : MLPClassifier or MLPRegressor
    wanted : "all" or tuple of str or int
    first : callable
        ``first(inputs)`` gives what the first layer takes in.
    l2 : float, default=0.0
    l2_of_sum : float, default=0.0
        See :class:`whence.models.adapter.Weights`.
    """

    def __init__(
        self,
        model: Any,
        wanted: Any,
        first: Callable[[Any], np.ndarray],
        l2: float = 0.0,
        l2_of_sum: float = 0.0,
    ) -> None:
        self.model = model
        self._first = first
        self._l2, self._l2_of_sum = l2, l2_of_sum
        self.names: list[str] = layers_of(model, "all")
        chosen = layers_of(model, wanted)
        shapes = {name: model.coefs_[self.names.index(name)].shape for name in chosen}
        self.layers: dict[str, Any] = {n: _Layer((1, d + 1, c)) for n, (d, c) in shapes.items()}
        self.left_out: dict[str, str] = {n: "not chosen" for n in self.names if n not in chosen}

    def learn(self, inputs: Any, n_samples: int) -> None:
        """Do nothing: the layers are known."""

    @contextmanager
    def record(self, inputs: Any, n_samples: int) -> Iterator[_Recorded]:
        """Run the perceptron on samples."""
        yield _Recorded(self, self._first(inputs))

    def samples_at_once(self) -> int:
        """Return how many samples to record at a time."""
        return AT_ONCE

    def weights(self) -> Mapping[str, np.ndarray]:
        """Return the weights of the layers as they are now, by name."""
        found = {}
        for name in self.layers:
            place = self.names.index(name)
            found[name] = self.model.coefs_[place]
            found[f"intercepts_[{place}]"] = self.model.intercepts_[place]
        return found

    def l2(self, n_samples: int) -> Mapping[str, np.ndarray]:
        """Return the second derivative of each layer's own L2 regulariser, by its inputs ``(d,)``."""
        strength = self._l2 + self._l2_of_sum / n_samples
        return {
            n: np.append(np.full(layer.shape[1] - 1, strength), 0.0) for n, layer in self.layers.items()
        }


class _Layer:
    """What is known of a layer: ``(G, d, C)``."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
