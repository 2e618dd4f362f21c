"""What a ridge regression of the labels on the layer's inputs says of each sample without it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, one_hot
from whence.arrays.memory import memory_bytes
from whence.arrays.symmetric import cholesky
from whence.engine.base import engine_of, parts_of, total
from whence.index import Index
from whence.layers.linear_layer import Block, LinearLayer

__all__ = ["Ridge", "has_rows", "target_rows"]

#: Features up to which the regression is cheap enough to be a default: it costs ``N d^2 + d^3``.
FEATURES = 10_000
#: Directions that samples have to spread over for them to tell classes apart: below, distances do.
DIRECTIONS = 3
#: Samples that tell whether features are indicators.
INDICATOR_ROWS = 256
#: Spread of a feature, and distance of a sample from the mean, that is taken for rounding.
NEGLIGIBLE = 1e-6


def target_rows(target: Array, n_outputs: int) -> np.ndarray:
    """Return targets as rows ``(n, C)``, in float64.

    Examples
    --------
    >>> target_rows(np.asarray([1, 0]), 2)
    array([[0., 1.],
           [1., 0.]])
    """
    given = as_numpy(target)
    if given.ndim == 2:
        return given.astype(np.float64)
    if n_outputs == 1:
        return given.astype(np.float64)[:, None]
    return one_hot(given, n_outputs, np.float64)


def has_rows(layer: LinearLayer, index: Index) -> bool:
    """Whether targets are classes, or one value for each output, of samples with one row of features."""
    shard = index.shards[0]
    return shard.features.ndim == 2 and np.shape(shard.target)[1:] in ((), (layer.n_outputs,))


class Ridge:
    """What a ridge regression without the sample says of each sample, in closed form.

    With the features ``phi`` (the constant of the bias left out), their means and standard deviations,
    targets ``y_i`` as rows, sample weights ``w_i`` and ``W = sum_i w_i``::

        x_i     = s_i / |s_i|,   s_i = (phi_i - mean phi) / std phi
        v_i     = y_i - mean y
        A       = (1/W) sum_i w_i x_i x_i^T
        lam     = (1/W^2) sum_ik w_i w_k (x_i^T x_k)^2 = |A|^2
        B       = (A + lam)^{-1} (1/W) sum_i w_i x_i v_i^T
        h_i     = (w_i/W) x_i^T (A + lam)^{-1} x_i
        f_i     = (B^T x_i - h_i v_i) / (1 - h_i)

    ``f_i`` is the regression on all samples but ``i``, read off at ``i``: how far they speak for each
    output, more than for a sample of which nothing is known. Means, deviations and ``lam`` are those of
    all samples. The weights of the layer and its loss play no part.

    ``lam`` is the mean squared cosine between two samples, one over the number of directions that they
    spread over. It is far more than what would predict labels
    best, on purpose: the layer's inputs were learned from the labels, wrong ones among them, so that a
    strength chosen by the error on samples left out trusts them too much.

    Parameters
    ----------
    layer : LinearLayer
    index : Index
        The stored training set.

    Raises
    ------
    WhenceError
        If samples have several rows of features, labels are no classes or the loss has no closed form, no
        sample counts, or a matrix of features by features would not fit into memory.

    Examples
    --------
    One feature, so that every ``x_i`` is a sign, ``A = lam = 1`` and every ``h_i`` is 1/8. The labels'
    mean is 1/4, that of ``x_i v_i`` too, and ``B`` half of it. Of the first sample, the others say
    ``(-1/8 + 1/32) / (7/8)``; of the last, ``(1/8 + 1/32) / (7/8)``, and its label is 0:

    >>> from whence.layers.losses import BinaryCrossEntropy
    >>> index = Index()
    >>> phi, y = np.asarray([[-1.0], [-1.0], [1.0], [1.0]]), np.asarray([[0.0], [0.0], [1.0], [0.0]])
    >>> index.append(phi, y, None, np.arange(4, dtype=np.uint64))
    >>> layer = LinearLayer(np.asarray([[1.0]]), BinaryCrossEntropy())
    >>> Ridge(layer, index.finish()).left_out().ravel().round(4)
    array([-0.1071, -0.1071,  0.0357,  0.1786])
    """

    def __init__(self, layer: LinearLayer, index: Index) -> None:
        if not _is_answerable(layer, index):
            raise WhenceError(
                "score",
                "'leave_one_out', 'self_influence' or 'loss', unless labels are classes, the loss has a "
                "closed form, and the layer is applied once a sample",
                f"'ridge' with loss {layer.loss.name!r} and labels of shape "
                f"{np.shape(index.shards[0].target)}",
                "Leave score out.",
            )
        d, available = layer.n_features, memory_bytes()
        if 32 * d**2 > 0.8 * available:
            raise WhenceError(
                "score",
                f"features whose second moments fit into memory ({available / 2**30:.0f} GiB here)",
                f"'ridge' with {d} of them",
                "Pass score='leave_one_out' or score='loss'.",
            )
        self._index = index
        self._units = units = _Units.of(layer, index)

        def moments(part: Iterable[Block]) -> tuple[np.ndarray, np.ndarray]:
            second = np.zeros((units.n_features, units.n_features))
            first = np.zeros((units.n_features, layer.n_outputs))
            for x, v, w in map(units, part):
                second += x.T @ (x * w)
                first += x.T @ (v * w)
            return second, first

        self._second, self._first = total(index, moments)
        #: The strength.
        self.lam = float((self._second**2).sum())

    @classmethod
    def where_it_suits(cls, layer: LinearLayer, index: Index) -> Ridge | None:
        """Return the regression if it is what doubtful labels are best ranked by, unless told otherwise.

        Not for features that are all 0 or 1, as the leaves of trees, where the layer itself is often
        better, nor where samples spread over fewer than three directions, since nothing but directions
        is compared; nor for labels that are no classes, nor for layers so wide that it takes minutes.
        """
        if not _is_answerable(layer, index) or layer.n_features > FEATURES:
            return None
        if _are_indicators(index.shards[0].rows(0, INDICATOR_ROWS).phi):
            return None
        ridge = cls(layer, index)
        return ridge if 0 < ridge.lam * DIRECTIONS <= 1 else None

    def left_out(self) -> np.ndarray:
        """Return ``f_i`` of every sample, shape ``(N, C)``, in float64."""
        damped = self._second + max(self.lam, NEGLIGIBLE) * np.eye(len(self._second))
        inverse = cholesky(damped).inverse()
        slope = inverse @ self._first
        units = self._units

        def of_part(part: Iterable[Block]) -> list[np.ndarray]:
            found = []
            for x, v, w in map(units, part):
                h = w * ((x @ inverse) * x).sum(axis=1, keepdims=True)
                found.append((x @ slope - h * v) / (1 - h))
            return found

        steps = engine_of(self._index).map(of_part, parts_of(self._index))
        return np.concatenate([rows for found in steps for rows in found])


def _is_answerable(layer: LinearLayer, index: Index) -> bool:
    """Whether labels are classes, and how far a vote speaks for them can be said."""
    return has_rows(layer, index) and layer.loss.margin_compares_outputs


def _are_indicators(phi: Array) -> bool:
    """Whether features are all 0 or 1."""
    some = as_numpy(phi)
    return bool(((some == 0) | (some == 1)).all())


@dataclass(frozen=True)
class _Units:
    """Takes a block to ``(x, v, w / W)``, in float64 on the host."""

    n_features: int
    n_outputs: int
    weight: float
    mean: np.ndarray
    mean_target: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, layer: LinearLayer, index: Index) -> _Units:
        """Return them for a training set, by two passes over it."""
        n_features, n_outputs = layer.n_features - int(layer.has_bias), layer.n_outputs
        nothing = np.zeros(n_features)
        raw = cls(n_features, n_outputs, 1.0, nothing, np.zeros(n_outputs), nothing)

        def sums(part: Iterable[Block]) -> tuple[float, np.ndarray, np.ndarray]:
            weight, of_phi, of_y = 0.0, np.zeros(n_features), np.zeros(n_outputs)
            for phi, y, w in map(raw.rows, part):
                weight += float(w.sum())
                of_phi += (phi * w).sum(axis=0)
                of_y += (y * w).sum(axis=0)
            return weight, of_phi, of_y

        weight, of_phi, of_y = total(index, sums)
        if not weight > 0:
            raise WhenceError(
                "sample_weight", "samples that count", "weights of which none is positive", "Leave it out."
            )
        centred = replace(raw, weight=weight, mean=of_phi / weight, mean_target=of_y / weight)

        def spread(part: Iterable[Block]) -> np.ndarray:
            variance = np.zeros(n_features)
            for phi, _, w in map(centred.rows, part):
                variance += ((phi - centred.mean) ** 2 * w).sum(axis=0)
            return variance

        variance = total(index, spread)
        # A feature that never changes is left out, and so are changes that are nothing but rounding.
        changes = variance > (NEGLIGIBLE * centred.mean) ** 2
        return replace(centred, scale=np.where(changes, 1 / np.sqrt(np.where(changes, variance, 1)), 0.0))

    def __call__(self, block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        phi, y, w = self.rows(block)
        standard = (phi - self.mean) * self.scale
        norms = np.sqrt((standard**2).sum(axis=1, keepdims=True))
        far = norms > NEGLIGIBLE
        x = np.where(far, standard / np.where(far, norms, 1.0), 0.0)
        return x, y - self.mean_target, w

    def rows(self, block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return features without the constant, targets as rows, and shares in the weight as a column."""
        phi, target, weight = block
        wide = np.asarray(as_numpy(phi), dtype=np.float64)[:, : self.n_features]
        counts = np.ones(len(wide)) if weight is None else np.asarray(as_numpy(weight), np.float64)
        return wide, target_rows(target, self.n_outputs), counts[:, None] / self.weight
