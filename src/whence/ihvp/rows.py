"""The Gauss-Newton matrix of several layers, given by rows, and what its solvers share.

``H = (1/N) sum_m z_m z_m^T`` with curvature rows ``z_m`` (:mod:`whence.layers.roots`); ``Lambda`` is the
damping plus each weight's own L2. A vector of all weights is the layers' matrices one after another: ``D``
numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whence._errors import NotPositiveDefiniteError, WhenceError
from whence.arrays.base import Array, as_numpy, like, namespace
from whence.ihvp.base import InverseHessianVectorProduct, Solution
from whence.layers.products import combined, inner, inner_by_pairs, squared_norms
from whence.layers.rows import Matrices, Rows

__all__ = ["CurvatureRows", "RowsIHVP", "as_vectors", "from_vectors", "minus"]


@dataclass(frozen=True)
class CurvatureRows:
    """What the Gauss-Newton matrix of several layers is made of.

    Attributes
    ----------
    rows : Rows
        ``z_m``, ``M`` of them.
    n_samples : int
        ``N``: of how many training samples they are.
    l2 : mapping of str to array of shape (d,)
        Second derivative of each layer's own L2 regulariser, by its inputs.
    share_kept : float
        The share of the trace of ``H`` that the rows hold; 1 if none were left out.
    n_candidates : int
        How many rows there would be without leaving any out.
    is_drawn : bool
        Whether rows were drawn, so that ``H`` is an estimate.
    """

    rows: Rows
    n_samples: int
    l2: Mapping[str, Array]
    share_kept: float = 1.0
    n_candidates: int = 0
    is_drawn: bool = False

    @property
    def n_rows(self) -> int:
        """``M``."""
        return self.rows.n_samples

    @property
    def n_weights(self) -> int:
        """``D``."""
        return self.rows.n_weights

    # What solvers of one layer know it by: one input for each weight, one output.
    n_outputs = 1

    @property
    def n_features(self) -> int:
        """``D``."""
        return self.n_weights

    def damped(self, damping: float) -> dict[str, Array]:
        """Return ``Lambda`` of each layer, by its inputs ``(d,)``."""
        return {name: like(l2 + damping, self.rows.like) for name, l2 in self.l2.items()}

    def linear_system(self, dataset: Any) -> Any:
        """Raise: what asks for one layer and its samples cannot solve for several."""
        raise refuse_one_layer("solver of this kind")

    def only(self, layers: list[str]) -> CurvatureRows:
        """Return the part of some layers alone."""
        l2 = {name: self.l2[name] for name in layers}
        return replace(self, rows=self.rows.only(layers), l2=l2)


class RowsIHVP(InverseHessianVectorProduct):
    """Solves ``(H + Lambda) X = B`` for several layers at once.

    Parameters
    ----------
    system : CurvatureRows
    damping : float
        Added to the L2 of every weight.
    """

    #: How results call the form of the system that is solved.
    form: str

    def __init__(self, system: CurvatureRows, damping: float) -> None:
        self.system = system
        self.layer: Any = system
        self.damping = float(damping)
        self.curvature = "gauss_newton"
        self._relative_residual: float | None = None

    @abstractmethod
    def solve_rows(self, rows: Rows) -> Rows:
        """Return ``(H + Lambda)^{-1} x_i`` of rows, written out, in float64."""

    def inner_products(self, left: Rows, right: Rows) -> Array:
        """Return ``<x_i, (H + Lambda)^{-1} y_i>`` for each pair, shape ``(n,)``, in float64."""
        parts = []
        for rows in right.blocks():
            parts.append(inner_by_pairs(left[rows], self.solve_rows(right[rows])))
        return namespace(parts[0]).concat(parts, axis=0)

    def product_of_rows(self, rows: Rows) -> Rows:
        """Return ``(H + Lambda) x_i``, written out."""
        z = self.system.rows
        images = combined(z, inner(rows, z) / self.system.n_samples)
        own = rows.astype(namespace(rows.like).float64).scaled(self.system.damped(self.damping))
        return _sum(images, own)

    def measured(self, right: Rows, solution: Rows) -> float:
        """Return ``|B - (H + Lambda) X| / |B|`` of a random combination; measured on the first call."""
        if self._relative_residual is None:
            signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(1, right.n_samples))
            mix = like(signs, right.like)
            mixed, solved = combined(right, mix), combined(solution, mix)
            gap = minus(mixed, self.product_of_rows(solved))
            norm = float(squared_norms(mixed)[0]) ** 0.5
            self._relative_residual = float(squared_norms(gap)[0]) ** 0.5 / norm if norm else 0.0
        return self._relative_residual

    @property
    def relative_residual(self) -> float:
        """What the first solve left of a random combination of its right-hand sides."""
        return self._relative_residual or 0.0

    def solve(self, right: Array) -> Solution:
        """Solve for a stack of vectors of all weights ``(m, D, 1)``; see the base class."""
        expected = (self.system.n_weights, 1)
        if getattr(right, "ndim", None) != 3 or tuple(right.shape[1:]) != expected:
            raise WhenceError(
                "right-hand sides",
                f"shape (m, {expected[0]}, 1): the weights of all layers, one after another",
                f"shape {tuple(getattr(right, 'shape', ()))}",
                "Flatten the layers' gradients.",
            )
        solved = self.solve_rows(from_vectors(right[:, :, 0], self.system.rows))
        return Solution(as_vectors(solved)[:, :, None], True, 0, self.relative_residual)

    def product(self, vectors: Array) -> Array:
        """Return ``(H + Lambda) V`` for vectors ``(m, D, 1)``."""
        rows = from_vectors(vectors[:, :, 0], self.system.rows)
        return as_vectors(self.product_of_rows(rows))[:, :, None]

    def about(self) -> dict[str, Any]:
        return super().about() | {
            "form": self.form,
            "curvature_kept": self.system.share_kept,
            "n_curvature_rows": self.system.n_rows,
            "curvature_is_drawn": self.system.is_drawn,
        }

    def _refuse_without_damping(self, why: str) -> None:
        lam = self.system.damped(self.damping).values()
        if all(bool(namespace(part).all(part > 0)) for part in lam):
            return
        raise NotPositiveDefiniteError(0.0, self.damping, f"Pass damping > 0, e.g. 1e-3: {why}.")


def refuse_one_layer(solver: str) -> WhenceError:
    """Return the error for a solver of one layer that is given several."""
    return WhenceError(
        "ihvp_calculator_factory",
        "a solver for several layers: ExactIHVPFactory, KroneckerIHVPFactory or CGDIHVPFactory",
        f"a {solver}, which solves for one",
        "Take one of these, or explain one layer.",
    )


def minus(left: Rows, right: Rows) -> Rows:
    """Return ``x_i - y_i``, written out."""
    return Rows({name: (Matrices(left.matrices(name) - right.matrices(name)),) for name in left.layers})


def _sum(left: Rows, right: Rows) -> Rows:
    return Rows({name: (Matrices(left.matrices(name) + right.matrices(name)),) for name in left.layers})


def as_vectors(rows: Rows) -> Array:
    """Return rows as vectors of all weights, ``(n, D)``, in float64."""
    xp = namespace(rows.like)
    wide = rows.astype(xp.float64)
    parts = [xp.reshape(wide.matrices(name), (rows.n_samples, -1)) for name in rows.layers]
    return xp.concat(parts, axis=1)


def from_vectors(vectors: Array, like_rows: Rows) -> Rows:
    """Undo :func:`as_vectors` for the layers of ``like_rows``."""
    xp = namespace(vectors)
    layers, start = {}, 0
    for name, (g, d, c) in like_rows.shapes.items():
        part = vectors[:, start : start + g * d * c]
        layers[name] = (Matrices(xp.reshape(part, (vectors.shape[0], g, d, c))),)
        start += g * d * c
    return Rows(layers)


def sizes_refused(solver: str, needed: str, available: float) -> WhenceError:
    """Return the error for a system that does not fit into memory."""
    return WhenceError(
        "ihvp_calculator_factory",
        f"a system that fits into memory ({available / 2**30:.0f} GiB here)",
        needed,
        "Keep fewer curvature rows, choose fewer layers, or take KroneckerIHVPFactory, which is "
        "approximate, or CGDIHVPFactory, which forms no matrix.",
    )


def host(array: Array) -> np.ndarray:
    """Return an array on the host, in float64."""
    return np.asarray(as_numpy(array), dtype=np.float64)
