"""What a method of attribution is: its mathematics, over arrays and a solver alone.

Every method scores a training sample ``i`` for a question ``t`` as

    ``v(i, t) = offset_t + <outer(phi_i, a_i), S_t>``

with coefficients ``a_i`` of the sample, and a matrix ``S_t`` of the question. A rule says what these are,
and what a sample's influence on itself is. It holds neither model nor training set nor answers: those who
hold it search, store, explain and report by it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np

from whence._errors import WhenceError
from whence._registry import Registry
from whence.arrays.base import Array, as_numpy, astype
from whence.engine.base import total
from whence.ihvp import InverseHessianVectorProduct
from whence.index import Index, IndexPart
from whence.layers.linear_layer import Block, LinearLayer
from whence.methods.question import Question
from whence.search.scores import Queries

__all__ = ["RULES", "Rule", "coefficients_as_stored", "sum_of_products"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rule(ABC):
    """A method's mathematics. Subclass it, as a frozen dataclass, to write a method.

    A rule is made once, of a layer and the stored training set, and never changes. It goes to threads and
    to the workers of a cluster as it is, so its fields must be such as can be pickled.

    Parameters
    ----------
    layer : LinearLayer
        The layer with the model's own weights.
    n_samples : int
        ``N``.
    solver : InverseHessianVectorProduct, optional
        What solves with the Hessian, for methods that do.
    factory : InverseHessianVectorProductFactory, optional
        What built it.

    Attributes
    ----------
    name : str
        What results call the method.
    asks_about_loss : bool
        Whether questions are about the loss of samples: these then need labels.
    decomposes_prediction : bool
        Whether the values of all training samples sum to a prediction of the layer.
    prefers_ridge : bool
        Whether doubtful labels are ranked by a ridge regression where one suits, rather than by this rule.
    coefficients_need_solver : bool
        Whether :meth:`coefficients` solves.
    """

    name: ClassVar[str] = "Rule"
    prefers_ridge: ClassVar[bool] = False

    layer: LinearLayer
    n_samples: int
    solver: InverseHessianVectorProduct | None = None
    factory: Any = None

    @classmethod
    def of(cls, layer: LinearLayer, index: Index, *args: Any, **arguments: Any) -> Rule:
        """Make the rule of a layer and the stored training set.

        Parameters
        ----------
        layer : LinearLayer
        index : Index
            Iterating it yields blocks of features, targets and weights.
        *args, **arguments
            Settings of the rule, as its class takes them; by default its other fields, by name.
        """
        return cls(*args, layer=layer, n_samples=index.n_samples, **arguments)

    # ------------------------------------------------------------------------- the mathematics

    @abstractmethod
    def coefficients(self, block: Block) -> Array:
        """Return what each sample's features are weighed with, shape ``(n, C)`` or ``(n, L, C)``."""

    @abstractmethod
    def queries(self, question: Question) -> Queries:
        """Return what a question asks of the training samples: ``S_t`` and the offsets."""

    @abstractmethod
    def self_influence(self, block: Block, question: Question) -> Array:
        """Return the influence of training samples on what is asked about themselves, shape ``(n,)``."""

    def leave_one_out(self, block: Block) -> Array:
        """Return the pre-activations of training samples without themselves, in the shape of ``u``.

        A rule that cannot say raises.
        """
        raise WhenceError(
            "score",
            f"'loss' or 'self_influence' for {self.name}, which leaves no sample out",
            "'leave_one_out'",
            "Pass score='loss', or ask another method.",
        )

    def totals(self, question: Question) -> np.ndarray | None:
        """Return the sum of the scores over the training set, shape ``(T,)``, if it is known otherwise.

        None: it is what the coefficients and the queries sum to.
        """
        return None

    def weighted_features(self) -> np.ndarray | None:
        """Return ``sum_i outer(phi_i, a_i)`` over the training set, ``(d, C)``, if it is known already."""
        return None

    def question(
        self, phi: Array, outputs: np.ndarray, weight: np.ndarray | None, target: Array | None
    ) -> Question:
        """Return what is asked about samples: the outputs in question, times the weights."""
        return Question(phi, outputs, weight)

    # ------------------------------------------------------------------- what it is and says

    @property
    def asks_about_loss(self) -> bool:
        """Whether questions are about the loss of samples."""
        return False

    @property
    def decomposes_prediction(self) -> bool:
        """Whether the values of all training samples sum to a prediction."""
        return False

    @property
    def solves_queries(self) -> bool:
        """Whether ``S_t`` is ``-H^{-1} Q_t / N``, solved for; answers then say how exactly."""
        return False

    @property
    def coefficients_need_solver(self) -> bool:
        """Whether coefficients are computed with the solver."""
        return False

    def about(self) -> dict[str, Any]:
        """Return the settings and the solver, for results; two rules that say the same are the same."""
        return self.arguments() | ({} if self.solver is None else self.solver.about())

    def measured(self) -> dict[str, Any]:
        """Return numbers that came out on the way, for results."""
        return {}

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that :meth:`of` makes the rule again with, but for the factory."""
        own = {field.name for field in fields(self) if field.init} - {f.name for f in fields(Rule)}
        return {name: getattr(self, name) for name in sorted(own)}

    def check_numbers(self, block: Block) -> np.ndarray:
        """Return numbers that change with anything that the rule computes, given some training samples."""
        return np.asarray(as_numpy(coefficients_as_stored(self, block)), dtype=np.float64)

    def for_workers(self, *, with_solver: bool) -> Rule | None:
        """Return the rule as it is sent to threads and workers, without training samples.

        None if its solver needs them: then the work is done where they are.
        """
        if self.solver is None or not with_solver:
            return replace(self, solver=None, factory=None)
        solver = self.solver.for_samples()
        return None if solver is None else replace(self, solver=solver, factory=None)


#: Rules by the names of their methods, which ``load_index`` makes again.
RULES: Registry[type[Rule]] = Registry("rule", "whence.methods")


def coefficients_as_stored(rule: Rule, block: Block) -> Array:
    """Return the coefficients of a block, computed in float64, in the precision of its features."""
    return astype(rule.coefficients(block.in_double()), block.phi.dtype)


def sum_of_products(index: Index, coefficients: Callable[[Block], Array] | None) -> np.ndarray:
    """Return ``sum_i outer(phi_i, a_i)`` over the stored samples, shape ``(d, C)``, in float64.

    Parameters
    ----------
    index : Index
    coefficients : callable or None
        Gives them for a block; ``None`` takes those that are stored.
    """

    def of_part(part: IndexPart) -> np.ndarray:
        result = None
        for shard in part.shards:
            phi = np.asarray(as_numpy(shard.phi), dtype=np.float64).reshape(-1, shard.phi.shape[-1])
            weights = shard.coefficients if coefficients is None else coefficients(shard.block)
            product = phi.T @ as_numpy(weights).reshape(len(phi), -1)
            result = product if result is None else result + product
        assert result is not None  # a part holds at least one shard
        return result

    return total(index, of_part)
