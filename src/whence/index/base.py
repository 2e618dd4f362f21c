"""The store of a training set: features, targets and coefficients of every sample, in shards.

What any method needs of a training sample ``i`` is ``(id, phi_i, r_i)``: ``d + C`` numbers in place of
the ``d * C`` of its gradient. Targets and weights stand beside them, so that residuals can be taken at
other weights, and a fingerprint, so that a sample is recognised when the training set is iterated again.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from whence._errors import WhenceError, described
from whence.arrays.base import Array, as_array, as_numpy, namespace
from whence.data.order import no_positions
from whence.engine.base import Engine, Serial, cut
from whence.ihvp.collected import CurvaturePart
from whence.index.narrowing import Narrowing
from whence.index.shard import (
    RowBuffer,
    Shard,
    check_feature_dtype,
    joined,
    joined_weights,
    shard_rows,
)
from whence.layers.linear_layer import Block
from whence.layers.rows import Rows

__all__ = ["CACHE", "Index", "IndexPart", "check_ids", "shuffle_buffer_sample"]


class CACHE(Enum):
    """Where the influence vectors of the training set are kept between calls.

    ``MEMORY`` keeps them in memory, ``DISK`` in the folder of the ``save_*`` or ``load_*`` path,
    ``NO_CACHE`` nowhere: they are computed again for each call. The features that they are computed
    from are the index's in every case; the training set goes through the model once.
    """

    MEMORY = 0
    DISK = 1
    NO_CACHE = 2


class IndexPart:
    """Some consecutive shards of an index; iterating it yields their blocks.

    Attributes
    ----------
    shards : sequence of Shard
    first : int
        The number of the first of them in the index.
    row : int
        The row of their first sample.
    """

    def __init__(self, shards: Sequence[Shard], first: int, row: int) -> None:
        self.shards = shards
        self.first = first
        self.row = row

    def __iter__(self) -> Iterator[Block]:
        for shard in self.shards:
            yield shard.block

    def starts(self) -> Iterator[tuple[int, Shard]]:
        """Yield each shard with the row of its first sample."""
        row = self.row
        for shard in self.shards:
            yield row, shard
            row += shard.n_samples


class Index:
    """The stored training set; iterating it yields :class:`~whence.layers.linear_layer.Block` s.

    Rows are numbered in the order in which samples were added; ``ids`` are the names that results use.

    Parameters
    ----------
    feature_dtype : {None, "float16", "float32"}, default=None
        What features are stored as; arithmetic is in single precision at least.

    Examples
    --------
    >>> index = Index()
    >>> index.append(np.ones((2, 3)), np.asarray([0, 1]), None, np.asarray([7, 8], dtype=np.uint64))
    >>> index = index.finish()
    >>> index.n_samples, index.ids.tolist(), index.rows_of(np.asarray([8], dtype=np.uint64)).tolist()
    (2, [0, 1], [1])
    """

    shards: Sequence[Shard]

    def __init__(self, feature_dtype: Any = None) -> None:
        self._feature_dtype = check_feature_dtype(feature_dtype)
        self._narrowing = Narrowing(self._feature_dtype)
        self.shards = []
        self._buffer = RowBuffer()
        self._shard_rows = 0
        self._ids: np.ndarray | None = None
        self._lookup = _Lookup()
        #: What the training set does, where its order is not known, so that positions name nothing.
        self.unordered: str | None = None
        #: What the features belong to: the layer, its weights, the loss.
        self.identity: dict[str, Any] = {}
        #: Where work on the shards is done.
        self.engine: Engine = Serial()
        #: Whether passes over them show a bar; see :func:`whence.progress.track`.
        self.progress: bool | None = False
        #: Who sees whether the model is still the one that the features are of, where there is a model.
        self.watch: Any = None
        #: The dataset that it was made from, as the user gave it.
        self.source: Any = None

    # ------------------------------------------------------------------ building

    def begin(self, identity: dict[str, Any]) -> None:
        """Say what the features belong to, before the first batch is added."""
        self.identity = identity

    def holds(self, fingerprint: np.ndarray) -> bool:
        """Whether the next samples are stored already, by a run that was interrupted: never here."""
        return False

    def append(
        self,
        phi: Array,
        target: Array,
        weight: Array | None,
        fingerprint: Any,
        gradients: Rows | None = None,
        curvature: CurvaturePart | None = None,
    ) -> None:
        """Add a batch of samples; with rows of several layers where these are explained."""
        assert isinstance(self.shards, list)
        self._shard_rows = self._shard_rows or shard_rows(phi, gradients)
        features = self._narrowing(phi)
        batch = Shard(features, target, weight, as_numpy(fingerprint), None, gradients, curvature)
        self._buffer.add(batch)
        while self._buffer.n_rows >= self._shard_rows:
            self.shards.append(self._buffer.take(self._shard_rows))

    def finish(self, ids: Any = None) -> Index:
        """Close the index, name its samples (positions by default) and return it.

        Raises
        ------
        WhenceError
            If there are not as many ids as samples, an id occurs twice, or one is neither a string nor
            an integer.
        """
        assert isinstance(self.shards, list)
        self._narrowing.check()
        if self._buffer.n_rows:
            self.shards.append(self._buffer.take(self._buffer.n_rows))
        self._ids = check_ids(ids, self.n_samples)
        return self

    def check_current(self) -> None:
        """Raise if the index is no longer what it was when it was opened: never in memory."""

    def forget(self) -> None:
        """Let go of what was added since the beginning, as of no use."""
        self.shards = []

    def close(self) -> None:
        """Let go of what building holds, if it is not finished: nothing here."""

    def with_coefficients(
        self, function: Callable[[Block], Array], method: Any, engine: Engine | None = None
    ) -> Index:
        """Return the same index with ``function(block)``, shape ``(n, C)``, beside every shard's features.

        The index itself stays as it is: each method has coefficients of its own. ``method()`` says what
        they are of, and ``engine`` where they are computed, where they are stored: in memory neither plays
        a part.
        """
        other = copy.copy(self)
        other.shards = [replace(shard, coefficients=function(shard.block)) for shard in self.shards]
        return other

    def check(self, identity: dict[str, Any], order: str | None = None) -> None:
        """Raise unless the index is of this layer and loss."""
        differing = [key for key in identity if self.identity.get(key) != identity[key]]
        if differing:
            raise WhenceError(
                "dataset",
                "an index with " + ", ".join(f"{key} {identity[key]!r}" for key in differing),
                "one with " + ", ".join(f"{key} {self.identity.get(key)!r}" for key in differing),
                "Index the training set with this model: model.index(train).",
            )

    @property
    def has_positions(self) -> bool:
        """Whether the layer is applied along a sequence."""
        return self.shards[0].phi.ndim == 3

    # ------------------------------------------------------------------- reading

    @property
    def n_samples(self) -> int:
        """``N``."""
        return sum(self.counts)

    @property
    def counts(self) -> list[int]:
        """How many samples each shard holds."""
        return [shard.n_samples for shard in self.shards]

    @property
    def n_features(self) -> int:
        """``d``, with the constant of the bias."""
        return int(self.shards[0].features.shape[-1])

    @property
    def dtype(self) -> Any:
        """The dtype that features are stored in."""
        return self.shards[0].features.dtype

    @property
    def ids(self) -> np.ndarray:
        """The names of the samples, shape ``(N,)``."""
        return np.asarray(self.names(np.arange(self.n_samples)))

    def check_named(self) -> None:
        """Raise if positions would be the names, and the order of the training set is not known."""
        if self._ids is None and self.unordered is not None:
            raise no_positions("the training set", self.unordered)

    def names(self, rows: np.ndarray) -> np.ndarray:
        """Return the names of some rows, of any shape."""
        self.check_named()
        return rows.copy() if self._ids is None else np.asarray(self._ids[rows])

    def __iter__(self) -> Iterator[Block]:
        for shard in self.shards:
            yield shard.block

    def starts(self) -> Iterator[tuple[int, Shard]]:
        """Yield each shard with the row of its first sample."""
        return IndexPart(self.shards, 0, 0).starts()

    @property
    def n_parts(self) -> int:
        """How many parts :meth:`parts` yields."""
        return len(cut(self.counts))

    def parts(self) -> Iterator[IndexPart]:
        """Yield the index in the parts that work is divided into; see :mod:`whence.engine.base`."""
        counts = self.counts
        rows = np.cumsum([0, *counts])
        for some in cut(counts):
            yield IndexPart(self.shards[some.start : some.stop], some.start, int(rows[some.start]))

    @property
    def order(self) -> str:
        """A text that changes with the training set, its order included."""
        if self._lookup.order is None:
            digest = hashlib.blake2b(digest_size=16)
            for shard in self.shards:
                digest.update(np.ascontiguousarray(shard.fingerprint).tobytes())
            self._lookup.order = digest.hexdigest()
        return self._lookup.order

    def rows_of(self, fingerprint: np.ndarray) -> np.ndarray:
        """Return the row of each fingerprint, or -1 where the index does not hold it.

        Samples that are equal to the last bit share a row, the first: their influences are equal too.
        """
        if self._lookup.by_fingerprint is None:
            every = self._fingerprint()
            order = np.argsort(every, kind="stable")
            self._lookup.by_fingerprint = every[order], order
        values, order = self._lookup.by_fingerprint
        position = np.minimum(np.searchsorted(values, fingerprint), values.size - 1)
        return np.where(values[position] == fingerprint, order[position], -1)

    def first_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return for each row the first row that holds the same sample."""
        return self.rows_of(self.gather("fingerprint", rows))

    def with_equals(self, rows: np.ndarray) -> np.ndarray:
        """Return ``rows`` and every row that holds the same sample as one of them, ascending."""
        every = self._fingerprint()
        return np.flatnonzero(np.isin(every, every[rows]))

    def _fingerprint(self) -> np.ndarray:
        return np.concatenate([shard.fingerprint for shard in self.shards])

    def gather(self, name: str, rows: np.ndarray) -> Any:
        """Return the given rows ``(m,)`` of one array of the shards, in the given order.

        ``None`` where no shard has that array; shards without weights count 1.
        """
        starts = np.cumsum([0, *self.counts])
        owner = np.searchsorted(starts, rows, side="right") - 1
        pieces, places = [], []
        for number in np.unique(owner):
            wanted = np.flatnonzero(owner == number)
            shard = self.shards[int(number)]
            array = getattr(shard, name)
            at = rows[wanted] - starts[number]
            if array is not None:
                xp = namespace(array)
                array = xp.take(array, xp.asarray(at), axis=0)
            shape = (at.size, *shard.features.shape[1:-1]) if name == "weight" else (at.size,)
            pieces.append((array, shape))  # no map of the whole is kept
            places.append(wanted)
        if name == "weight":
            result = joined_weights(pieces)
        else:
            result = None if pieces[0][0] is None else joined([piece[0] for piece in pieces])
        if result is None or len(pieces) == 1:
            return result
        xp = namespace(result)
        back = np.argsort(np.concatenate(places), kind="stable")
        return xp.take(result, xp.asarray(back), axis=0)

    def take(self, rows: np.ndarray) -> Shard:
        """Return the given rows as one shard, in the given order."""
        names = ("features", "target", "weight", "fingerprint", "coefficients")
        arrays = {name: self.gather(name, rows) for name in names}
        gradients, curvature = self._several_layers(rows)
        return Shard(**arrays, gradients=gradients, curvature=curvature)

    def _several_layers(self, rows: np.ndarray) -> tuple[Rows | None, CurvaturePart | None]:
        """Return what is known of several layers at some rows; of curvature only if these are distinct."""
        if self.shards[0].gradients is None:
            return None, None
        starts = np.cumsum([0, *self.counts])
        owner = np.searchsorted(starts, rows, side="right") - 1
        order = np.argsort(owner, kind="stable")
        is_distinct = len(np.unique(rows)) == len(rows)
        gradients, curvature = [], []
        for number in np.unique(owner):
            shard, at = self.shards[int(number)], rows[order][owner[order] == number] - starts[number]
            assert shard.gradients is not None  # as of the first shard
            gradients.append(shard.gradients.take(at))
            if shard.curvature is not None and is_distinct:
                curvature.append(shard.curvature.taken(at))
        back = np.argsort(order, kind="stable")
        together = CurvaturePart.joined(curvature).taken(back) if curvature else None
        return Rows.joined(gradients).take(back), together

    def subset(self, rows: np.ndarray) -> Index:
        """Return an index of some rows only, in memory."""
        part = Index()
        part.shards = [self.take(rows)]
        part.progress = self.progress
        return part


@dataclass
class _Lookup:
    """What is computed of an index on the first call, shared by all that share its samples."""

    by_fingerprint: tuple[np.ndarray, np.ndarray] | None = None
    order: str | None = None


def check_ids(ids: Any, n_samples: int) -> np.ndarray | None:
    """Return the names of the training samples as an array, or raise if they are no names."""
    if ids is None:
        return None
    expected = "strings or integers, one for each training sample"
    fix = "Give them in the order of the dataset."
    names = as_array(ids, "ids", expected, fix)
    if names.ndim == 0:
        raise WhenceError("ids", expected, described(ids), fix)
    listed = [] if isinstance(ids, np.ndarray) else [i for i in ids if not isinstance(i, str)]
    if names.dtype.kind == "O" and all(isinstance(name, str) for name in names.ravel()):
        names = names.astype(str)
    if names.dtype.kind not in "iuU" or (names.dtype.kind == "U" and listed):
        raise WhenceError(
            "ids",
            "strings or integers",
            f"such as {listed[0]!r}" if listed else f"dtype {names.dtype}",
            "Name every training sample by a string, or every one by an integer.",
        )
    if names.shape != (n_samples,):
        raise WhenceError(
            "ids",
            f"one id for each of the {n_samples} training samples",
            f"shape {names.shape}",
            fix,
        )
    unique, counts = np.unique(names, return_counts=True)
    if unique.shape != names.shape:
        raise WhenceError(
            "ids", "distinct ids", f"{unique[counts > 1][0].item()!r} twice", "Make them unique."
        )
    return names


def shuffle_buffer_sample(
    n_rows: int, n_drawn: int, buffer_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw rows as a shuffle buffer would that holds ``buffer_size`` rows of the stream at a time.

    With a buffer at least as large as the stream every subset is equally likely; a smaller one
    favours the beginning.

    Returns
    -------
    array of shape (n_drawn,), int64
        Distinct rows, in ascending order.
    """
    buffer = list(range(min(buffer_size, n_rows)))
    upcoming = len(buffer)
    drawn = []
    for _ in range(min(n_drawn, n_rows)):
        place = int(rng.integers(len(buffer)))
        drawn.append(buffer[place])
        if upcoming < n_rows:
            buffer[place] = upcoming
            upcoming += 1
        else:
            buffer[place] = buffer[-1]
            buffer.pop()
    return np.sort(np.asarray(drawn, dtype=np.int64))
