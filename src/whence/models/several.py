"""Several layers of a model: which they are, and their rows for a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, astype, namespace, row_slices
from whence.data.base import take_rows
from whence.ihvp.collected import CurvaturePart, curvature_of, is_drawn
from whence.indexing.observation import Observation
from whence.layers.linear_layer import Block, LinearLayer
from whence.layers.rows import Rows

__all__ = ["Recorded", "RowSource", "SeveralLayers", "layers_wanted"]

#: The share of the curvature's trace that is kept of each batch.
BATCH_SHARE = 0.998
#: How many curvature rows a sample gets that has too many outputs for all of them.
N_DRAWS = 16


class Recorded(Protocol):
    """A pass forward, from which rows follow."""

    def rows(self, by_output: Array) -> Rows:
        """Return the rows of ``<by_output_i, u_i>``, ``u_i`` the pre-activations of the output layer."""


class RowSource(Protocol):
    """What a framework gives of several layers; known after the first batch."""

    @property
    def layers(self) -> Mapping[str, Any]:
        """The layers by name, in the order of their calls."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """Weights that no row is of, each with the reason."""

    def learn(self, inputs: Any, n_samples: int) -> None:
        """Look at the first batch, to see which layers there are."""

    def record(self, inputs: Any, n_samples: int) -> AbstractContextManager[Recorded]:
        """Run the model on samples; inside the context rows can be asked for."""

    def samples_at_once(self) -> int:
        """Return how many samples to record at a time."""

    def weights(self) -> Mapping[str, np.ndarray]:
        """Return the weights of the layers as they are now, by name."""

    def l2(self, n_samples: int) -> Mapping[str, np.ndarray]:
        """Return the second derivative of each layer's own L2 regulariser, by its inputs ``(d,)``.

        Next to the mean of the losses of so many training samples.
        """


class SeveralLayers:
    """Layers that are explained together, and how their rows are recorded.

    Parameters
    ----------
    chosen : "all" or tuple of str or int
    source : RowSource
    """

    def __init__(self, chosen: str | tuple[str | int, ...], source: RowSource) -> None:
        self.chosen = chosen
        self.source = source
        self.is_drawn: bool = False
        self._rng = np.random.default_rng(0)

    def rows(self, inputs: Any, by_output: Array) -> Rows:
        """Return the rows of ``<by_output_i, u_i>`` for samples.

        Parameters
        ----------
        inputs : tree of arrays
        by_output : array of shape (n, C) or (n, L, C)
        """
        parts = []
        for some in self._runs(len(by_output)):
            with self.source.record(take_rows(inputs, some), some.stop - some.start) as recorded:
                parts.append(recorded.rows(by_output[some, ...]))
        return Rows.joined(parts)

    def training_rows(self, layer: LinearLayer, seen: Observation) -> tuple[Rows, CurvaturePart]:
        """Return gradient and curvature rows of a batch.

        Parameters
        ----------
        layer : LinearLayer
            The output layer.
        seen : Observation
            What it sees of the batch, and the batch's inputs.
        """
        layer = replace(layer, gauss_newton=True)
        block = Block(_double(seen.phi), seen.target, None if seen.weight is None else _double(seen.weight))
        self.is_drawn = self.is_drawn or is_drawn(layer, block)
        r = layer.residuals(block)
        gradients, curvature = [], []
        for some in self._runs(int(r.shape[0])):
            inputs = take_rows(seen.inputs, some)
            part = Block(*(None if array is None else array[some, ...] for array in block))
            with self.source.record(inputs, some.stop - some.start) as recorded:
                gradients.append(recorded.rows(r[some, ...]))
                curvature.append(curvature_of(layer, part, recorded.rows, BATCH_SHARE, N_DRAWS, self._rng))
        return Rows.joined(gradients), CurvaturePart.joined(curvature)

    def _runs(self, n_samples: int) -> Any:
        """Yield slices of as many samples as are recorded at once."""
        yield from row_slices(n_samples, self.source.samples_at_once())

    def identity(self) -> dict[str, Any]:
        """Return what stored rows belong to: the layers, and a digest of their weights."""
        digest = hashlib.blake2b(digest_size=16)
        for array in self.source.weights().values():
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(str({name: l2.tolist() for name, l2 in self.source.l2(1).items()}).encode())
        return {"layers": list(self.source.layers), "layer_weights": digest.hexdigest()}


def layers_wanted(start_layer: Any) -> str | tuple[str | int, ...] | None:
    """Return which layers are meant where these are several: "all" or their names; None for one layer.

    Raises
    ------
    WhenceError
        For a list that is empty, names a layer twice, or holds what is neither a name nor an index.

    Examples
    --------
    >>> layers_wanted(-1), layers_wanted("fc"), layers_wanted("all"), layers_wanted(["fc1", "fc2"])
    (None, None, 'all', ('fc1', 'fc2'))
    """
    if isinstance(start_layer, str):
        return "all" if start_layer == "all" else None
    if not isinstance(start_layer, list | tuple):
        return None
    expected, fix = "'all', or a list of layers by name or index", "Name each layer once."
    if not start_layer:
        raise WhenceError("layers", expected, "an empty list", fix)
    for layer in start_layer:
        if isinstance(layer, bool) or not isinstance(layer, str | int | np.integer):
            raise WhenceError("layers", expected, f"{layer!r} in it", fix)
    twice = [layer for place, layer in enumerate(start_layer) if layer in start_layer[:place]]
    if twice:
        raise WhenceError("layers", "each layer once", f"{twice[0]!r} twice", fix)
    return tuple(layer if isinstance(layer, str) else int(layer) for layer in start_layer)


def _double(array: Array) -> Array:
    xp = namespace(array)
    if hasattr(array, "matrix"):  # sparse rows
        return as_numpy(array)
    return astype(array, xp.float64)
