"""The solver of a rule, built on its layer and training set."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from whence._errors import WhenceError, described
from whence.arrays.base import Array, check_number, check_seed, like
from whence.arrays.sparse import SparseRows
from whence.ihvp import InverseHessianVectorProduct, Solution
from whence.ihvp.rows import CurvatureRows, RowsIHVP, refuse_one_layer
from whence.index import Index, shuffle_buffer_sample
from whence.layers.linear_layer import LinearLayer

__all__ = ["Drawn", "build_solver", "check_factory", "factory_arguments"]


@dataclass(frozen=True)
class Drawn:
    """Which training samples a Hessian is computed from: all, or some drawn through a shuffle buffer.

    Attributes
    ----------
    n_samples_for_hessian : int or None
    shuffle_buffer_size : int
    seed : int
    """

    n_samples_for_hessian: int | None = None
    shuffle_buffer_size: int = 10000
    seed: int = 0

    def check(self) -> Drawn:
        """Return itself, or raise if the numbers make no sense."""
        if self.n_samples_for_hessian is not None:
            check_number(self.n_samples_for_hessian, "n_samples_for_hessian", minimum=1, integer=True)
        check_number(self.shuffle_buffer_size, "shuffle_buffer_size", minimum=1, integer=True)
        check_seed(self.seed)
        return self

    def samples(self, index: Index) -> Index:
        """Return the index, or one of the samples that are drawn."""
        n_drawn = self.n_samples_for_hessian
        if n_drawn is None or n_drawn >= index.n_samples:
            return index
        rng = np.random.default_rng(self.seed)
        return index.subset(shuffle_buffer_sample(index.n_samples, n_drawn, self.shuffle_buffer_size, rng))

    def arguments(self) -> dict[str, Any]:
        """Return it as arguments of a method."""
        return asdict(self)


def check_factory(factory: Any) -> None:
    """Raise unless ``factory`` builds solvers; before any work is done."""
    if isinstance(factory, type) or not callable(getattr(factory, "build", None)):
        raise WhenceError(
            "ihvp_calculator_factory",
            "an InverseHessianVectorProductFactory",
            described(factory),
            "Pass an object with a build method, e.g. ExactIHVPFactory().",
        )


def factory_arguments(factory: Any) -> dict[str, Any]:
    """Return the arguments that a factory was made with, as far as it keeps them by their names."""
    options = getattr(factory, "options", None)
    names = [name for name in inspect.signature(type(factory).__init__).parameters if name != "self"]
    return {name: getattr(factory, name, getattr(options, name, None)) for name in names}


def build_solver(
    factory: Any, index: Index, layer: LinearLayer, drawn: Drawn
) -> InverseHessianVectorProduct:
    """Build a rule's solver on the stored training set, at the weights of ``layer``."""
    phi = index.shards[0].phi
    ihvp = factory.build(layer.at(like(layer.theta, phi)), drawn.samples(index))
    if not isinstance(ihvp, InverseHessianVectorProduct):
        raise WhenceError(
            "ihvp_calculator_factory.build",
            "an InverseHessianVectorProduct",
            f"a {type(ihvp).__name__}",
            "Subclass InverseHessianVectorProduct.",
        )
    ihvp.progress = index.progress
    return ihvp if isinstance(phi, np.ndarray | SparseRows) else _FromHost(ihvp, phi)


def build_for_rows(factory: Any, system: CurvatureRows) -> RowsIHVP:
    """Build a method's solver for several layers, or raise if a factory makes none for these."""
    try:
        ihvp = factory.build(system, None)
    except (AttributeError, TypeError):  # of a factory that takes one layer for granted
        ihvp = None
    if not isinstance(ihvp, RowsIHVP):
        raise refuse_one_layer(type(factory).__name__)
    return ihvp


class _FromHost(InverseHessianVectorProduct):
    """A solver on a device for right-hand sides of the host, whose solutions come back to the host.

    Features and coefficients of training samples are on the device already.
    """

    def __init__(self, solver: InverseHessianVectorProduct, phi: Array) -> None:
        super().__init__(solver.layer, solver.blocks, solver.damping, solver.curvature)
        self._solver = solver
        self.is_direct = solver.is_direct
        self._phi = phi

    def __getattr__(self, name: str) -> Any:
        return getattr(self._solver, name)

    def solve(self, right: Array) -> Solution:
        solution = self._solver.solve(like(right, self._phi))
        return replace(solution, value=like(solution.value, right))

    def about(self) -> dict[str, Any]:
        return self._solver.about()

    def self_products(self, phi: Array, r: Array, outputs: Array | None = None) -> Array:
        outputs = None if outputs is None else like(outputs, self._phi)
        moved = self._solver.self_products(like(phi, self._phi), like(r, self._phi), outputs)
        return like(moved, phi)

    def leverages(self, phi: Array) -> Array:
        return like(self._solver.leverages(like(phi, self._phi)), phi)
