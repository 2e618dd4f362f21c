"""Tree ensembles as a dense layer over leaf indicators, exactly.

``phi_i`` is the 0/1 vector of the leaves that sample ``i`` falls into, one in each tree, and a last 1 for
the base score. ``theta (leaves, C)`` holds the leaf values, each in the column of the class that its tree
is for, and the base score as last row. ``u_i = theta^T phi_i`` is then the library's own raw margin, which
is checked on the first batch, to 1e-6: an ensemble that does something else yields no numbers.

``lam`` is what regularised the leaf values. Boosters write their own L2 next to the sum of the losses,
``sum_i ell_i + reg_lambda / 2 * sum(leaf**2)``, so it is ``reg_lambda / N`` for the mean, on leaf values as
they stand in the ensemble; twice that for squared error, which boosters halve. A small learning rate and
stopping after some rounds hold the values back much further than ``reg_lambda`` does: ``lam`` is then the
strength at which they would be the optimum, see :meth:`~whence.LinearLayer.implied_l2`; for a booster that
converged that is ``reg_lambda / N`` again. The base score is not regularised.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse

from whence._errors import WhenceError
from whence.arrays.base import Array
from whence.arrays.sparse import SparseRows
from whence.layers.base_margins import WithBaseMargins
from whence.layers.losses import Loss, SquaredError
from whence.models.adapter import Reading, Weights
from whence.models.sklearn.base_margins import BaseMargins, Labelled
from whence.models.sklearn.class_weights import Counted
from whence.models.sklearn.estimators import EstimatorAdapter, Pipe

__all__ = ["Leaves", "TreeAdapter", "on_leaves"]

#: How far rebuilt margins may be from the library's own, in units of the largest margin, or of 1.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Leaves:
    """The leaves of an ensemble, numbered through all trees.

    Parameters
    ----------
    nodes : sequence of arrays of shape (n_leaves,), integers
        For each tree the numbers by which the library names its leaves.
    values : sequence of arrays of shape (n_leaves, C)
        What each leaf adds to the margins.

    Examples
    --------
    Two trees, whose leaves are nodes 1 and 2 of the one and node 0 of the other:

    >>> nodes = [np.asarray([1, 2]), np.asarray([0])]
    >>> leaves = Leaves(nodes, [np.asarray([[5.0], [6.0]]), np.ones((1, 1))])
    >>> leaves.columns(np.asarray([[2, 0], [1, 0]]))
    array([[1, 2],
           [0, 2]])
    >>> leaves.theta.ravel()
    array([5., 6., 1.])
    """

    nodes: Sequence[np.ndarray]
    values: Sequence[np.ndarray]
    theta: np.ndarray = field(init=False)
    _table: np.ndarray = field(init=False)
    _starts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        sizes = [int(nodes.max()) + 1 for nodes in self.nodes]
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        table = np.full(sum(sizes), -1, dtype=np.int64)
        table[np.concatenate([n + s for n, s in zip(self.nodes, starts, strict=True)])] = np.arange(
            sum(len(nodes) for nodes in self.nodes)
        )
        object.__setattr__(self, "theta", np.concatenate(list(self.values)).astype(np.float64))
        object.__setattr__(self, "_table", table)
        object.__setattr__(self, "_starts", starts)

    @property
    def n_trees(self) -> int:
        """How many trees there are."""
        return len(self.nodes)

    def columns(self, reached: np.ndarray) -> np.ndarray:
        """Return the features that are 1, shape ``(n, T)``, ascending, for leaf names ``(n, T)``."""
        return self._table[np.asarray(reached, dtype=np.int64) + self._starts]

    def margins(self, columns: np.ndarray, base: np.ndarray, dtype: Any) -> np.ndarray:
        """Return ``u (n, C)``, summed in tree order in the precision of the library."""
        theta = self.theta.astype(dtype)
        total = np.tile(base.astype(dtype), (len(columns), 1))
        for tree in range(self.n_trees):
            total += theta[columns[:, tree]]
        return total


class TreeAdapter(EstimatorAdapter):
    """Reads an ensemble of trees; a subclass knows the library.

    Parameters
    ----------
    name : str
        What messages call the model.
    leaves : Leaves
    pipe, loss, classes, one_against_rest, by_class
        See :class:`EstimatorAdapter`.
    l2_of_sum, l1_of_sum, was_held_back
        See :class:`Weights`. Leaves that an L1 penalty holds at 0 are no features.
    precision : dtype
        In which the library sums leaf values.
    n_features_in : int
        Columns of the data.
    base_margin : str, sequence of str, True or None
        See :class:`~whence.models.sklearn.base_margins.BaseMargins`. They take the place of the base score.
    """

    layer_name = "leaves"
    has_base = True

    def __init__(
        self,
        name: str,
        leaves: Leaves,
        pipe: Pipe,
        loss: Loss,
        classes: np.ndarray | None = None,
        *,
        n_features_in: int,
        one_against_rest: bool = False,
        by_class: np.ndarray | Counted | None = None,
        l2_of_sum: float = 0.0,
        l1_of_sum: float = 0.0,
        was_held_back: bool = False,
        precision: Any = np.float64,
        base_margin: Any = None,
    ) -> None:
        n_outputs = leaves.theta.shape[1]
        self._margins = None if base_margin is None else BaseMargins(base_margin, n_outputs)
        if self._margins is not None:
            loss = WithBaseMargins(loss, n_outputs)
        super().__init__(pipe, loss, classes, one_against_rest, by_class)
        self._name = name
        self._leaves = leaves
        self._l2_of_sum = l2_of_sum
        self._l1_of_sum = l1_of_sum
        self._was_held_back = was_held_back
        self._precision = precision
        self._n_features_in = n_features_in
        self._was_checked = False
        self._base = np.zeros(n_outputs)
        if self.has_base:
            self._base = self._find_base()

    @abstractmethod
    def _reached(self, x: Any) -> np.ndarray:
        """Return the name of the leaf that each sample reaches in each tree, shape ``(n, T)``."""

    @abstractmethod
    def _margin(self, x: Any) -> np.ndarray:
        """Return the library's own margins, shape ``(n, C)``."""

    def _any_row(self) -> Any:
        """Return one row that the library takes."""
        return np.zeros((1, self._n_features_in))

    def _find_base(self) -> np.ndarray:
        """Return the base score ``(C,)``: what its leaves leave of the margin of any row."""
        row = self._any_row()
        columns = self._leaves.columns(self._reached(row))
        return (self._margin(row) - self._leaves.margins(columns, self._base, np.float64))[0]

    def weights(self) -> Weights:
        """Return leaf values and base score."""
        base = self._base if self.has_base and self._margins is None else None
        return Weights(
            self._leaves.theta,
            base,
            l2_of_sum=self._l2_of_sum,
            l1_of_sum=self._l1_of_sum,
            was_held_back=self._was_held_back,
        )

    def probe(self, inputs: Any, labels: Any) -> list[np.ndarray]:
        """Return the library's own margins too: those of all the trees that there are now."""
        x, _ = self._split(inputs)
        margins = self._margin(self._pipe(x)) if self._is_current() else np.empty(0)
        return [*super().probe(inputs, labels), margins]

    def _is_current(self) -> bool:
        """Whether the trees that were read are still those of the user's model."""
        return True

    def _split(self, inputs: Any) -> tuple[Any, np.ndarray | None]:
        """Return the model's own inputs, and the base margins beside them, or None."""
        return (inputs, None) if self._margins is None else self._margins.split(inputs)

    def check_inputs(self, inputs: Any, where: str) -> None:
        super().check_inputs(self._split(inputs)[0], where)

    def read(self, inputs: Any, labels: Any) -> Reading:
        """Return what there is to know of a batch, base margins beside its labels."""
        reading = super().read(inputs, labels)
        _, margins = self._split(inputs)
        if margins is None:
            return reading
        if labels is None:
            fix = "Give the labels with the samples."
            raise WhenceError("labels", "labels, beside which base margins are read", "none", fix)
        return reading._replace(labels=Labelled(labels, margins))

    def encode_labels(self, labels: Any, where: str) -> np.ndarray:
        """Return labels as the loss takes them; with base margins as rows that end in these."""
        if not isinstance(labels, Labelled):
            return super().encode_labels(labels, where)
        given = super().encode_labels(labels.labels, where)
        return np.column_stack([given.reshape(len(given), -1), labels.margins])

    def class_weights(self, target: np.ndarray) -> np.ndarray | None:
        if self._margins is not None and target.ndim == 2:
            target = target[:, : -self._leaves.theta.shape[1]]
        return super().class_weights(target)

    def features(self, inputs: Any) -> Array:
        """Return leaf indicators ``(n, leaves)``, sparse: one a tree, unless L1 holds a leaf at 0."""
        x, given = self._split(inputs)
        x = self._pipe(x)
        columns = self._leaves.columns(self._reached(x))
        if not self._was_checked:
            self._check_margins(x, columns)
            if given is not None:
                self._check_base_margins(x, given, columns)
            self._was_checked = True
        n, n_trees = columns.shape
        ends = np.arange(0, n * n_trees + 1, n_trees)
        shape = (n, len(self._leaves.theta))
        if self._l1_of_sum:
            moves: np.ndarray = np.any(self._leaves.theta, axis=1, keepdims=True)[:, 0][columns]
            ends = np.concatenate([[0], np.cumsum(moves.sum(axis=1))])
            columns = columns[moves]
        ones = np.ones(columns.size)
        return SparseRows(scipy.sparse.csr_array((ones, columns.ravel(), ends), shape=shape))

    def _check_base_margins(self, x: Any, given: np.ndarray, columns: np.ndarray) -> None:
        """Raise unless base margins add to the leaves and take the place of the base score."""
        return None

    def _check_margins(self, x: Any, columns: np.ndarray) -> None:
        """Raise unless the leaves give the library's own margins."""
        expected = self._margin(x)
        got = self._leaves.margins(columns, self._base, self._precision)
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        gap = float(np.abs(got - expected).max(initial=0)) if (columns >= 0).all() else np.inf
        if gap <= TOLERANCE * scale:
            return
        raise WhenceError(
            "model",
            "an ensemble whose margin is the base score plus one value a tree",
            f"{self._name}, whose own margins differ from that sum by up to {gap:.2g}",
            "Train it without what changes predictions beyond its leaves.",
        )


def on_leaves(strength: float, loss: Loss, n_outputs: int, one_against_rest: bool) -> float:
    """Return a penalty's strength, ``strength / 2 * sum(leaf**2)`` or its L1, in the scale of ``loss``.

    Examples
    --------
    Squared error is halved by boosters, not by :class:`~whence.layers.losses.SquaredError`:

    >>> on_leaves(1.0, SquaredError(), 1, False)
    2.0
    """
    if isinstance(loss, SquaredError):
        return 2 * strength
    return strength / n_outputs if one_against_rest else strength
