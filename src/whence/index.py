"""The store of a training set: features, targets and coefficients of every sample, in shards.

What any method needs of a training sample ``i`` is ``(id, phi_i, r_i)``: ``d + C`` numbers in place of
the ``d * C`` of its gradient. Targets and weights stand beside them, so that residuals can be taken at
other weights, and a fingerprint, so that a sample is recognised when the training set is iterated again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from whence._arrays import Array, as_numpy, itemsize, namespace
from whence._errors import WhenceError
from whence.linear_layer import Block

__all__ = ["CACHE", "Index", "Shard", "shuffle_buffer_sample"]

#: Bytes of features that one shard holds.
SHARD_BYTES = 64 * 2**20

FORMAT_VERSION = 1


class CACHE(Enum):
    """Where the influence vectors of the training set are kept between calls.

    ``MEMORY`` keeps them in memory, ``DISK`` in the folder of the ``save_*`` or ``load_*`` path,
    ``NO_CACHE`` nowhere: they are computed again for each call.
    """

    MEMORY = 0
    DISK = 1
    NO_CACHE = 2


@dataclass
class Shard:
    """A run of consecutive training samples.

    Attributes
    ----------
    phi : array of shape (n, d), or (n, L, d) along a sequence
    target : array of shape (n,) or (n, C), or (n, L, ...)
    weight : array of shape (n,) or (n, L), or None
    fingerprint : array of shape (n,), uint64
    coefficients : array of shape (n, C) or (n, L, C), or None
        What each sample's features are weighed with: its residuals, for most methods.
    """

    phi: Array
    target: Array
    weight: Array | None
    fingerprint: np.ndarray
    coefficients: Array | None = None

    @property
    def block(self) -> Block:
        """What the linear layer sees of it."""
        return Block(self.phi, self.target, self.weight)


class Index:
    """The stored training set; iterating it yields :class:`~whence.linear_layer.Block` s.

    Rows are numbered in the order in which samples were added; ``ids`` are the names that results use.

    Examples
    --------
    >>> index = Index()
    >>> index.append(np.ones((2, 3)), np.asarray([0, 1]), None, np.asarray([7, 8], dtype=np.uint64))
    >>> index.finish()
    >>> index.n_samples, index.ids.tolist(), index.rows_of(np.asarray([8], dtype=np.uint64)).tolist()
    (2, [0, 1], [1])
    """

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self._pending: list[Shard] = []
        self._pending_bytes = 0
        self._ids: np.ndarray | None = None
        self._sorted: tuple[np.ndarray, np.ndarray] | None = None

    # ------------------------------------------------------------------ building

    def append(self, phi: Array, target: Array, weight: Array | None, fingerprint: Any) -> None:
        """Add a batch of samples."""
        self._pending.append(Shard(phi, target, weight, fingerprint))
        self._pending_bytes += math.prod(phi.shape) * itemsize(phi)
        if self._pending_bytes >= SHARD_BYTES:
            self._flush()

    def finish(self, ids: Sequence[Any] | None = None) -> None:
        """Close the index, and name its samples; positions are the names by default.

        Raises
        ------
        WhenceError
            If there are not as many ids as samples, or an id occurs twice.
        """
        self._flush()
        if ids is None:
            return
        names = np.asarray(ids)
        if names.shape != (self.n_samples,):
            raise WhenceError(
                "ids",
                f"one id for each of the {self.n_samples} training samples",
                f"shape {names.shape}",
                "Give them in the order of the dataset.",
            )
        unique, counts = np.unique(names, return_counts=True)
        if unique.shape != names.shape:
            raise WhenceError(
                "ids", "distinct ids", f"{unique[counts > 1][0]!r} twice", "Make them unique."
            )
        self._ids = names

    def _flush(self) -> None:
        if not self._pending:
            return
        parts, self._pending, self._pending_bytes = self._pending, [], 0
        weights = [part.weight for part in parts]
        if any(w is not None for w in weights):
            xp = namespace(parts[0].phi)
            weights = [
                xp.ones(p.phi.shape[0], dtype=p.phi.dtype) if p.weight is None else p.weight for p in parts
            ]
        self.shards.append(
            Shard(
                _join([part.phi for part in parts]),
                _join([part.target for part in parts]),
                None if weights[0] is None else _join(weights),
                np.concatenate([part.fingerprint for part in parts]),
            )
        )

    # ------------------------------------------------------------------- reading

    @property
    def n_samples(self) -> int:
        """``N``."""
        return sum(int(shard.phi.shape[0]) for shard in self.shards)

    @property
    def n_features(self) -> int:
        """``d``, with the constant of the bias."""
        return int(self.shards[0].phi.shape[-1])

    @property
    def dtype(self) -> Any:
        """The features' dtype."""
        return self.shards[0].phi.dtype

    @property
    def ids(self) -> np.ndarray:
        """The names of the samples, shape ``(N,)``."""
        return np.arange(self.n_samples) if self._ids is None else self._ids

    def __iter__(self) -> Iterator[Block]:
        for shard in self.shards:
            yield shard.block

    def starts(self) -> Iterator[tuple[int, Shard]]:
        """Yield each shard with the row of its first sample."""
        start = 0
        for shard in self.shards:
            yield start, shard
            start += int(shard.phi.shape[0])

    def rows_of(self, fingerprint: np.ndarray) -> np.ndarray:
        """Return the row of each fingerprint, or -1 where the index does not hold it.

        Samples that are equal to the last bit share a row, the first: their influences are equal too.
        """
        if self._sorted is None:
            every = self._fingerprint()
            order = np.argsort(every, kind="stable")
            self._sorted = every[order], order
        values, order = self._sorted
        position = np.minimum(np.searchsorted(values, fingerprint), values.size - 1)
        return np.where(values[position] == fingerprint, order[position], -1)

    def first_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return for each row the first row that holds the same sample."""
        return self.rows_of(self._fingerprint()[rows])

    def with_equals(self, rows: np.ndarray) -> np.ndarray:
        """Return ``rows`` and every row that holds the same sample as one of them, ascending."""
        every = self._fingerprint()
        return np.flatnonzero(np.isin(every, every[rows]))

    def _fingerprint(self) -> np.ndarray:
        return np.concatenate([shard.fingerprint for shard in self.shards])

    def take(self, rows: np.ndarray) -> Shard:
        """Return the given rows as one shard, in the given order."""
        shape = rows.shape
        owner = np.zeros(shape, dtype=np.int64)
        local = np.zeros(shape, dtype=np.int64)
        for number, (start, shard) in enumerate(self.starts()):
            inside = (rows >= start) & (rows < start + shard.phi.shape[0])
            owner[inside], local[inside] = number, rows[inside] - start
        pieces, places = [], []
        for number in np.unique(owner):
            wanted = np.flatnonzero(owner == number)
            shard, at = self.shards[number], local[wanted]
            places.append(wanted)
            pieces.append(_pick(shard, at))
        back = np.argsort(np.concatenate(places), kind="stable")
        return _pick(_join_shards(pieces), back)

    def subset(self, rows: np.ndarray) -> Index:
        """Return an index of some rows only."""
        part = Index()
        part.shards = [self.take(rows)]
        return part

    # ------------------------------------------------------------------- storing

    def save(self, path: str | Path, manifest: dict[str, Any]) -> None:
        """Write the index to a folder: one ``.npy`` file an array, and a JSON manifest, last.

        Raises
        ------
        WhenceError
            If the folder exists and holds something else.
        """
        folder = Path(path)
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for number, shard in enumerate(self.shards):
            for name in ("phi", "target", "weight", "fingerprint", "coefficients"):
                array = getattr(shard, name)
                if array is not None:
                    np.save(folder / f"{name}-{number:05d}.npy", as_numpy(array), allow_pickle=False)
        if self._ids is not None:
            np.save(folder / "ids.npy", self._ids, allow_pickle=False)
        content = {
            "format": "whence index",
            "format_version": FORMAT_VERSION,
            "n_samples": self.n_samples,
            "n_shards": len(self.shards),
            **manifest,
        }
        (folder / "manifest.json").write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, manifest: dict[str, Any]) -> Index:
        """Read an index back, memory-mapped, after checking that it is what ``manifest`` describes.

        Raises
        ------
        WhenceError
            If there is no index, or one of another model, loss or training set: the message names
            what differs.
        """
        folder = Path(path)
        content = read_manifest(folder)
        differing = [key for key, value in manifest.items() if content.get(key) != value]
        if differing:
            found = ", ".join(f"{key} {content.get(key)!r}" for key in differing)
            wanted = ", ".join(f"{key} {manifest[key]!r}" for key in differing)
            raise WhenceError(
                f"path {str(folder)!r}",
                f"an index with {wanted}",
                f"one with {found}",
                "Give the path of an index of this model and training set, or a new path.",
            )
        index = cls()
        for number in range(content["n_shards"]):
            arrays = {}
            for name in ("phi", "target", "weight", "fingerprint", "coefficients"):
                file = folder / f"{name}-{number:05d}.npy"
                exists = file.exists()
                arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False) if exists else None
            index.shards.append(Shard(**arrays))  # type: ignore[arg-type]
        ids = folder / "ids.npy"
        index._ids = np.load(ids, allow_pickle=False) if ids.exists() else None
        return index


def holds_index(path: str | Path) -> bool:
    """Return whether a folder holds a finished index."""
    return (Path(path) / "manifest.json").is_file()


def check_folder(folder: Path) -> None:
    """Raise if ``folder`` exists and is something that whence did not write."""
    if not folder.exists():
        return
    if folder.is_dir() and (not any(folder.iterdir()) or holds_index(folder)):
        return
    raise WhenceError(
        f"path {str(folder)!r}",
        "a new path, an empty folder, or a folder written by whence",
        "a file" if folder.is_file() else "a folder with other files in it",
        "Choose another path; nothing was written.",
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder, or say why there is none."""
    file = folder / "manifest.json"
    fix = "Give the path that an index was saved to."
    if not file.is_file():
        raise WhenceError(f"path {str(folder)!r}", "a saved index", "no manifest.json there", fix)
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise WhenceError(f"path {str(folder)!r}", "a JSON manifest", str(error), fix) from None
    if not isinstance(content, dict) or content.get("format") != "whence index":
        raise WhenceError(f"path {str(folder)!r}", "a saved index", "another manifest", fix)
    if content.get("format_version") != FORMAT_VERSION:
        raise WhenceError(
            f"path {str(folder)!r}",
            f"format version {FORMAT_VERSION}",
            f"version {content.get('format_version')!r}",
            "Read it with the version of whence that wrote it, or index again to a new path.",
        )
    return content


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


def _join(arrays: list[Any]) -> Any:
    """Join along the samples; shorter sequences are padded with zeros, of weight zero, too."""
    if len(arrays) == 1:
        return arrays[0]
    xp = namespace(arrays[0])
    if arrays[0].ndim > 1:
        longest = max(array.shape[1] for array in arrays)
        arrays = [_padded(array, longest) for array in arrays]
    return xp.concat(arrays, axis=0)


def _padded(array: Any, n_positions: int) -> Any:
    xp = namespace(array)
    n, length, *rest = array.shape
    if length == n_positions:
        return array
    return xp.concat([array, xp.zeros((n, n_positions - length, *rest), dtype=array.dtype)], axis=1)


def _join_shards(shards: list[Shard]) -> Shard:
    def join(name: str) -> Any:
        parts = [getattr(shard, name) for shard in shards]
        return None if parts[0] is None else _join(parts)

    return Shard(*(join(n) for n in ("phi", "target", "weight", "fingerprint", "coefficients")))


def _pick(shard: Shard, rows: np.ndarray) -> Shard:
    xp = namespace(shard.phi)
    at = xp.asarray(rows)

    def pick(array: Any) -> Any:
        return None if array is None else xp.take(array, at, axis=0)

    return Shard(
        pick(shard.phi),
        pick(shard.target),
        pick(shard.weight),
        shard.fingerprint[rows],
        pick(shard.coefficients),
    )
