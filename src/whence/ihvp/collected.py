"""Curvature rows gathered batch by batch, the largest of them kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import Array, as_numpy, assign, namespace
from whence.ihvp.rows import CurvatureRows
from whence.layers.linear_layer import Block, LinearLayer
from whence.layers.products import squared_norms
from whence.layers.roots import MOST_COLUMNS, drawn_roots, roots
from whence.layers.rows import Rows

__all__ = ["CurvaturePart", "cotangents", "curvature_of", "gathered", "is_drawn"]

#: Bytes of rows that are held before the smallest of them are let go.
HELD_BYTES = 2**30
#: Rows a sample that are kept in any case, and rows in all.
FEW_ROWS, FEW_IN_ALL = 4, 2000


def is_drawn(layer: LinearLayer, block: Block) -> bool:
    """Whether samples have so many outputs, over all positions, that their curvature rows are drawn."""
    n_positions = 1 if block.phi.ndim == 2 else int(block.phi.shape[1])
    return n_positions * layer.n_outputs > MOST_COLUMNS


def cotangents(layer: LinearLayer, block: Block, n_draws: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield what the outputs of some samples are weighed with, for the curvature rows of these.

    Parameters
    ----------
    layer : LinearLayer
        The output layer, its curvature without negative parts.
    block : Block
        What it sees of the samples.
    n_draws : int
        How many rows a sample gets if they are drawn; see :func:`is_drawn`.
    rng : numpy.random.Generator

    Yields
    ------
    array of shape (n, C) or (n, L, C)
        Columns of the roots of ``K_i``, or draws; sample weights are in them.
    """
    curvature = layer.curvatures(block)
    if is_drawn(layer, block):
        for drawn in drawn_roots(curvature, n_draws, rng):
            yield block.from_rows(drawn)
        return
    columns = roots(curvature)
    for number in range(columns.shape[2]):
        column = block.from_rows(columns[:, :, number])
        if block.phi.ndim == 2:
            yield column
            continue
        for place in range(int(block.phi.shape[1])):
            alone = namespace(column).zeros_like(column)
            yield assign(alone, (slice(None), place), column[:, place, :])


@dataclass(frozen=True)
class CurvaturePart:
    """Curvature rows of some training samples, the largest of each batch.

    Attributes
    ----------
    rows : Rows or None
        ``m`` rows; None if every one was zero.
    samples : array of shape (m,), integers
        Which sample each is of.
    sizes : array of shape (m,)
        ``|z_m|^2``.
    trace : array of shape (n,)
        The sum of ``|z|^2`` over all rows of each sample, those that were left out too.
    candidates : array of shape (n,), integers
        How many of them were not zero.
    """

    rows: Rows | None
    samples: np.ndarray
    sizes: np.ndarray
    trace: np.ndarray
    candidates: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Rows], n_samples: int, share: float) -> CurvaturePart:
        """Return what is kept of rows, each of them one for every sample.

        Parameters
        ----------
        rows : iterable of Rows
            Each of ``n_samples`` samples.
        n_samples : int
        share : float
            What share of the trace the rows kept must hold.
        """
        part = cls(None, *(np.empty(0, kind) for kind in (int, float, float, int)))
        part = replace(part, trace=np.zeros(n_samples), candidates=np.zeros(n_samples, dtype=int))
        for some in rows:
            sizes = _host(squared_norms(some))
            counts = np.flatnonzero(sizes > 0)
            part = replace(
                part, trace=part.trace + sizes, candidates=part.candidates + (sizes > 0).astype(int)
            )
            if counts.size:
                more = replace(part, rows=some.take(counts), samples=counts, sizes=sizes[counts])
                part = part._with(more)
            if part.rows is not None and part.rows.n_bytes > HELD_BYTES:
                part = part.largest(share)
        return part.largest(share, least=FEW_ROWS * n_samples)

    def _with(self, other: CurvaturePart) -> CurvaturePart:
        """Return the rows of both, of the same samples."""
        if self.rows is None or other.rows is None:
            return other if self.rows is None else self
        return replace(
            self,
            rows=Rows.joined([self.rows, other.rows]),
            samples=np.concatenate([self.samples, other.samples]),
            sizes=np.concatenate([self.sizes, other.sizes]),
        )

    def between(self, start: int, stop: int) -> CurvaturePart:
        """Return the part of samples ``start`` to ``stop``."""
        part = self._chosen(np.flatnonzero((self.samples >= start) & (self.samples < stop)))
        return replace(
            part,
            samples=part.samples - start,
            trace=self.trace[start:stop],
            candidates=self.candidates[start:stop],
        )

    def taken(self, samples: np.ndarray) -> CurvaturePart:
        """Return the part of some distinct samples, in their order."""
        place = np.full(len(self.trace), -1)
        place[samples] = np.arange(len(samples))
        part = self._chosen(np.flatnonzero(place[self.samples] >= 0))
        return replace(
            part,
            samples=place[part.samples],
            trace=self.trace[samples],
            candidates=self.candidates[samples],
        )

    def largest(self, share: float, most: int | None = None, least: int = 0) -> CurvaturePart:
        """Return the largest rows that hold a share of the trace: at least and at most so many."""
        order = np.argsort(-self.sizes, kind="stable")
        wanted = share * float(self.trace.sum()) * (1 - 1e-12)
        enough = int(np.searchsorted(np.cumsum(self.sizes[order]), wanted)) + 1
        enough = max(enough, least)
        return self._chosen(np.sort(order[: enough if most is None else min(enough, most)]))

    def _chosen(self, places: np.ndarray) -> CurvaturePart:
        if places.size == self.sizes.size:
            return self
        rows = None if self.rows is None or not places.size else self.rows.take(places)
        return replace(self, rows=rows, samples=self.samples[places], sizes=self.sizes[places])

    @classmethod
    def joined(cls, parts: Sequence[CurvaturePart]) -> CurvaturePart:
        """Return the parts of samples that stand one after another."""
        starts = np.cumsum([0, *(len(part.trace) for part in parts)])
        rows = [part.rows for part in parts if part.rows is not None]
        pairs = zip(parts, starts, strict=False)
        return cls(
            Rows.joined(rows) if rows else None,
            np.concatenate([part.samples + start for part, start in pairs]),
            *(np.concatenate([getattr(part, name) for part in parts]) for name in _BY_SAMPLE),
        )


_BY_SAMPLE = ("sizes", "trace", "candidates")


def curvature_of(
    layer: LinearLayer,
    block: Block,
    record: Callable[[Array], Rows],
    share: float,
    n_draws: int,
    rng: np.random.Generator,
) -> CurvaturePart:
    """Return the curvature rows of a batch.

    Parameters
    ----------
    layer : LinearLayer
        The output layer, its curvature without negative parts.
    block : Block
        What it sees of the batch.
    record : callable
        ``record(by_output)`` gives the rows of ``<by_output_i, u_i>``.
    share : float
    n_draws : int
    rng : numpy.random.Generator
    """
    weighed = cotangents(layer, block, n_draws, rng)
    return CurvaturePart.of(map(record, weighed), int(block.phi.shape[0]), share)


def gathered(
    parts: Iterable[CurvaturePart],
    l2: Mapping[str, Array],
    share: float,
    most: int,
    is_drawn: bool = False,
) -> CurvatureRows:
    """Return the Gauss-Newton matrix of all samples of some parts.

    Parameters
    ----------
    parts : iterable of CurvaturePart
    l2 : mapping of str to array of shape (d,)
    share : float
        What share of the trace of ``H`` its rows must hold; few rows are kept in any case.
    most : int
        The most rows to keep, whatever they hold.
    is_drawn : bool
        Whether rows were drawn.

    Examples
    --------
    Squares of 9, 1 and 0: nine tenths of the trace are in one row.

    >>> from whence.layers.rows import Matrices
    >>> rows = Rows({"fc": (Matrices(np.asarray([3.0, 1.0, 0.0]).reshape(3, 1, 1, 1)),)})
    >>> part = CurvaturePart.of([rows], n_samples=3, share=1.0)
    >>> kept = gathered([part], {"fc": np.zeros(1)}, share=0.9, most=1)
    >>> kept.n_rows, kept.share_kept, kept.n_candidates, kept.n_samples
    (1, 0.9, 2, 3)
    """
    held: list[CurvaturePart] = []
    for part in parts:
        held.append(part)
        if sum(one.rows.n_bytes for one in held if one.rows is not None) > HELD_BYTES:
            # What is let go by the way is half of what may be.
            held = [CurvaturePart.joined(held).largest((1 + share) / 2, most)]
    every = CurvaturePart.joined(held)
    kept = every.largest(share, most, min(most, FEW_IN_ALL))
    if kept.rows is None:
        raise WhenceError(
            "loss",
            "one with curvature at some training sample",
            "zeros only",
            "Explain one layer, or take a loss that bends, such as cross-entropy.",
        )
    trace, n_candidates = float(every.trace.sum()), int(every.candidates.sum())
    return CurvatureRows(
        kept.rows,
        n_samples=len(every.trace),
        l2=l2,
        share_kept=1.0 if len(kept.sizes) == n_candidates else min(1.0, float(kept.sizes.sum()) / trace),
        n_candidates=n_candidates,
        is_drawn=is_drawn,
    )


def _host(array: Array) -> np.ndarray:
    return np.asarray(as_numpy(array), dtype=np.float64)
