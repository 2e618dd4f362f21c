"""The solver that a method is given, built on its layer and training set."""

from __future__ import annotations

from typing import Any

import numpy as np

from whence._arrays import check_number
from whence._errors import WhenceError, described
from whence.attribution.base import Scorer
from whence.ihvp import InverseHessianVectorProduct
from whence.index import shuffle_buffer_sample
from whence.linear_layer import Blocks, LinearLayer

__all__ = ["build_solver", "check_factory"]


def check_factory(factory: Any, n_samples_for_hessian: int | None, shuffle_buffer_size: int) -> None:
    """Raise unless ``factory`` builds solvers and the numbers make sense; before any work is done."""
    if n_samples_for_hessian is not None:
        check_number(n_samples_for_hessian, "n_samples_for_hessian", minimum=1, integer=True)
    check_number(shuffle_buffer_size, "shuffle_buffer_size", minimum=1, integer=True)
    if isinstance(factory, type) or not hasattr(factory, "build"):
        raise WhenceError(
            "ihvp_calculator_factory",
            "an InverseHessianVectorProductFactory",
            described(factory),
            "Pass an object with a build method, e.g. ExactIHVPFactory().",
        )


def build_solver(
    factory: Any,
    method: Scorer,
    layer: LinearLayer,
    n_samples_for_hessian: int | None,
    shuffle_buffer_size: int,
    seed: int,
) -> InverseHessianVectorProduct:
    """Build a method's solver, on all training samples or on some drawn through a shuffle buffer."""
    index = method.index
    samples: Blocks = index
    if n_samples_for_hessian is not None and n_samples_for_hessian < index.n_samples:
        rng = np.random.default_rng(seed)
        rows = shuffle_buffer_sample(index.n_samples, n_samples_for_hessian, shuffle_buffer_size, rng)
        samples = index.subset(rows)
    ihvp = factory.build(layer, samples)
    if not isinstance(ihvp, InverseHessianVectorProduct):
        raise WhenceError(
            "ihvp_calculator_factory.build",
            "an InverseHessianVectorProduct",
            f"a {type(ihvp).__name__}",
            "Subclass InverseHessianVectorProduct.",
        )
    ihvp.progress = method.progress
    if ihvp.influence_model is None:
        ihvp.influence_model = method.influence_model
    return ihvp
