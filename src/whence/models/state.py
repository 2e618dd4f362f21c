"""Whether a model is still what it was when a training set went through it.

Everything that shapes its features is compared: the weights and buffers, by digests that are computed again
only where an array may have changed; and what it makes of two samples that are kept, in which all else
shows, such as an attribute of a module, a mode, or a step of a pipeline that holds no arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy
from whence.index.store import COUNTER

__all__ = ["Digests", "Part", "Watch", "Watched"]

#: In how many sums the words of an array are added up: no round number, which rows could be multiples of.
LANES = 1021


class Part(NamedTuple):
    """Something that a model computes with.

    Attributes
    ----------
    content : callable
        ``content()`` is it as it is now: an array of any framework.
    mark : object, optional
        Changes when the framework writes the array. ``None``: nothing tells but the content.
    is_settled : bool, default=False
        Whether the content cannot change while the mark does not.
    may_count : bool, default=False
        Whether it may be a counter or a seed, which changes with each use and shapes nothing.
    is_portable : bool, default=True
        Whether another process finds the same content in the same model.
    """

    content: Callable[[], Any]
    mark: Any = None
    is_settled: bool = False
    may_count: bool = False
    is_portable: bool = True


class _Known(NamedTuple):
    part: Part  # holds the array, so that no other takes its place in memory
    total: bytes
    digest: str


class Digests:
    """Digests of what a model computes with, each kept until its part may have changed.

    Parameters
    ----------
    parts : callable
        ``parts()`` gives the :class:`Part` s by name.

    Examples
    --------
    >>> weights = np.ones(3)
    >>> digests = Digests(lambda: {"weights": Part(lambda: weights)})
    >>> before = digests()
    >>> weights[0] = 2
    >>> digests() == before
    False
    """

    def __init__(self, parts: Callable[[], Mapping[str, Part]]) -> None:
        self._parts = parts
        self._known: dict[str, _Known] = {}
        #: Counters and seeds, which are left out.
        self.counters: set[str] = set()

    def __call__(self, *, thoroughly: bool = True) -> dict[str, str]:
        """Return the digest of each part.

        Parameters
        ----------
        thoroughly : bool, default=True
            Whether to read every array. Else marks are believed, where there are any, and parts without
            one are taken to be what they were.
        """
        return {name: known.digest for name, known in self._looked_at(thoroughly).items()}

    def portable(self) -> dict[str, str]:
        """Return the digests that another process finds too."""
        known = self._looked_at(True)
        return {name: one.digest for name, one in known.items() if one.part.is_portable}

    def leave_out_counters(self, use: Callable[[], Any]) -> Any:
        """Return ``use()``, and leave out from here on the counters and seeds that it changes."""
        before = self(thoroughly=True)
        result = use()
        for name, known in self._looked_at(True).items():
            if known.part.may_count and before.get(name) != known.digest:
                self.counters.add(name)
        return result

    def _looked_at(self, thoroughly: bool) -> dict[str, _Known]:
        found = {}
        for name, part in self._parts().items():
            if name in self.counters:
                continue
            known = self._known.get(name)
            same_mark = known is not None and known.part.mark == part.mark
            if known is None or not same_mark or (thoroughly and not part.is_settled):
                known = _read(part, known)
                self._known[name] = known
            found[name] = known
        return found


def _read(part: Part, known: _Known | None) -> _Known:
    array = part.content()
    total = _total(array)
    if known is not None and total == known.total:
        return _Known(part, total, known.digest)
    host = _bytes_of(array)
    digest = hashlib.sha256(f"{host.dtype} {host.shape}".encode())
    digest.update(np.ascontiguousarray(host).reshape(-1).view(np.uint8).data)
    return _Known(part, total, f"{COUNTER if part.may_count else ''}{digest.hexdigest()[:32]}")


def _bytes_of(array: Any) -> np.ndarray:
    """Return an array on the host, of a dtype that NumPy has."""
    if hasattr(array, "detach"):
        array = array.detach().contiguous()
        array = (
            array.reshape(-1).view(_torch().uint8) if array.numel() else array.new_zeros(0).cpu().float()
        )
        return as_numpy(array.cpu())
    return as_numpy(array)


def _total(array: Any) -> bytes:
    """Return sums over the words of an array, at the speed of memory: enough to see that it changed."""
    if hasattr(array, "detach") and array.device.type != "cpu":
        return _total_on_device(array)
    host = np.ascontiguousarray(_bytes_of(array)).reshape(-1).view(np.uint8)
    n_words = host.size // 8 // LANES * LANES
    sums = host[: 8 * n_words].view(np.uint64).reshape(-1, LANES).sum(axis=0, dtype=np.uint64)
    return _joined(sums, host[8 * n_words :], array)


def _total_on_device(tensor: Any) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1).view(_torch().uint8)
    n_words = flat.numel() // 8 // LANES * LANES
    sums = flat[: 8 * n_words].view(_torch().int64).reshape(-1, LANES).sum(dim=0)
    return _joined(as_numpy(sums.cpu()), as_numpy(flat[8 * n_words :].cpu()), tensor)


def _joined(sums: np.ndarray, rest: np.ndarray, array: Any) -> bytes:
    digest = hashlib.blake2b(f"{array.dtype} {tuple(array.shape)}".encode(), digest_size=16)
    digest.update(sums.tobytes())
    digest.update(np.ascontiguousarray(rest).data)
    return digest.digest()


def _torch() -> Any:
    import torch  # there is a tensor of it

    return torch


class Watched(Protocol):
    """A wrapped model, as :class:`Watch` needs it."""

    @property
    def digests(self) -> Digests:
        """Of all that it computes with."""

    @property
    def kept_rows(self) -> Any:
        """Inputs and labels of some samples; ``None`` before a batch was seen."""

    @property
    def probe_tolerance(self) -> float:
        """How far two passes of the same samples may differ, relative to the largest number."""

    def probe(self, rows: Any) -> list[np.ndarray]:
        """Return what the model makes of samples."""

    def short_identity(self) -> str:
        """Return a text that changes with the layer's weights and the loss."""


class Watch:
    """Tells whether a model is as it was when this was made.

    Parameters
    ----------
    model : Watched
    before : dict, optional
        The digests of before something went through it; those of now by default.
    """

    def __init__(self, model: Watched, before: Mapping[str, str] | None = None) -> None:
        self._model = model
        self._digests = dict(model.digests() if before is None else before)
        self._short = model.short_identity()
        self._rows: Any = None
        self._seen: list[np.ndarray] = []
        self._keep_rows()

    def difference(self, *, thoroughly: bool = True) -> str | None:
        """Return what of the model is not what it was, or None.

        Parameters
        ----------
        thoroughly : bool, default=True
            Whether to read every weight and to put the kept samples through the model; else only to
            look at what tells by itself that it was changed.
        """
        now = self._model.digests(thoroughly=thoroughly)
        changed = [name for name, digest in self._digests.items() if now.get(name) != digest]
        if self._rows is None:  # not yet known which of them count
            changed = [name for name in changed if not self._digests[name].startswith(COUNTER)]
        if changed or self._model.short_identity() != self._short:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            which = f" ({changed[0]}{more})" if changed else ""
            return f"one with other weights, such as after more training{which}"
        if not thoroughly:
            return None
        if self._rows is None:  # opened without a batch: the first that comes is kept
            self._keep_rows()
            return None
        return self._difference_of_rows()

    def _keep_rows(self) -> None:
        rows = self._model.kept_rows
        if rows is None:
            return
        try:
            seen, again = self._model.digests.leave_out_counters(
                lambda: (self._model.probe(rows), self._model.probe(rows))
            )
        except Exception:  # a model that takes batches of one size alone: there is nothing to compare
            return
        counted = self._model.digests.counters
        self._digests = {name: digest for name, digest in self._digests.items() if name not in counted}
        if not self._agree(seen, again):
            raise WhenceError(
                "model",
                "a model that gives the same features for the same inputs in inference",
                "random ones, or a model that is being changed",
                "Let layers such as dropout act in training only, and let training come to an end.",
            )
        self._rows, self._seen = rows, seen

    def _difference_of_rows(self) -> str | None:
        try:
            now = self._model.probe(self._rows)
        except Exception as error:
            return f"one that no longer takes a sample that it took ({type(error).__name__}: {error})"
        if self._agree(self._seen, now):
            return None
        return "one that makes something else of the same samples: an attribute or a step of it was changed"

    def _agree(self, before: list[np.ndarray], now: list[np.ndarray]) -> bool:
        return len(before) == len(now) and all(
            one.shape == other.shape and _is_close(one, other, self._model.probe_tolerance)
            for one, other in zip(before, now, strict=True)
        )


def _is_close(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    if one.dtype.kind not in "fc" or other.dtype.kind not in "fc":
        return bool(np.array_equal(one, other))
    finite = np.abs(one[np.isfinite(one)])
    scale = float(finite.max(initial=0.0))
    return bool(np.allclose(other, one, rtol=0, atol=tolerance * scale, equal_nan=True))
