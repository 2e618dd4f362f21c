"""Residuals and curvatures of losses with respect to the pre-activations.

A loss here is ``ell(u) = loss(y, tail(u))``, seen as a function of the ``C`` pre-activations ``u``
of the target layer: the softmax, sigmoid or identity after the layer belongs to it. Three functions
of ``u`` and the target are all that the rest of the library needs:

- ``value``      ``(n,)``       ``ell_i(u_i)``
- ``residual``   ``(n, C)``     ``r_i = d ell_i / d u_i``
- ``curvature``  ``K_i = d2 ell_i / d u_i2`` ``(C, C)``, as a :class:`~whence.layers.curvature.Curvature`

Targets come in two forms: class numbers ``(n,)`` of an integer dtype, or rows ``(n, C)`` of floats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import device as device_of

from whence._errors import WhenceError
from whence.arrays.base import Array, astype, namespace, one_hot
from whence.layers.curvature import Curvature
from whence.layers.names import known_as

__all__ = [
    "BinaryCrossEntropy",
    "Curvature",
    "Loss",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "log_softmax",
    "refuse_tags",
    "sigmoid",
    "softmax",
]


#: How far from 1 rows of probabilities may sum for that to be rounding.
ROUNDED_SUM = 1e-6

#: The label by which PyTorch and transformers say that there is none.
IGNORED = -100


def log_softmax(u: Array) -> Array:
    """Return ``log(softmax(u))`` over the last axis, without overflow.

    Examples
    --------
    >>> np.exp(log_softmax(np.asarray([[1000.0, 1000.0]])))
    array([[0.5, 0.5]])
    """
    xp = namespace(u)
    shifted = u - xp.max(u, axis=-1, keepdims=True)
    # The largest term of the sum is 1: what the others add to it would be lost beside it.
    return shifted - xp.log1p(_sum_of_others(xp.exp(shifted), u))


def softmax(u: Array) -> Array:
    """Return ``exp(u) / sum(exp(u))`` over the last axis, without overflow."""
    xp = namespace(u)
    exponentials = xp.exp(u - xp.max(u, axis=-1, keepdims=True))
    return exponentials / xp.sum(exponentials, axis=-1, keepdims=True)


def _sum_of_others(terms: Array, u: Array) -> Array:
    """Return the sum over the last axis of all ``terms`` but that of the largest ``u``; axis kept."""
    xp = namespace(u)
    return xp.sum(xp.where(_is_largest(u), xp.zeros_like(terms), terms), axis=-1, keepdims=True)


def _is_largest(u: Array) -> Array:
    """Return where the largest entry along the last axis is, the first among equals."""
    xp = namespace(u)
    classes = xp.arange(u.shape[-1], device=device_of(u))
    return classes == xp.expand_dims(xp.argmax(u, axis=-1), axis=-1)


def _softmax_and_rest(u: Array) -> tuple[Array, Array]:
    """Return ``p = softmax(u)`` and ``1 - p``, which keeps its digits where ``p`` is next to 1."""
    xp = namespace(u)
    terms = xp.exp(u - xp.max(u, axis=-1, keepdims=True))
    others = _sum_of_others(terms, u)
    p = terms / (1 + others)
    return p, xp.where(_is_largest(u), others / (1 + others), 1 - p)


def sigmoid(u: Array) -> Array:
    """Return ``1 / (1 + exp(-u))``, without overflow.

    Examples
    --------
    >>> sigmoid(np.asarray([-1e4, 0.0, 1e4]))
    array([0. , 0.5, 1. ])
    """
    xp = namespace(u)
    small = xp.exp(-xp.abs(u))
    return xp.where(u >= 0, 1 / (1 + small), small / (1 + small))


def softplus(u: Array) -> Array:
    """Return ``log(1 + exp(u))``, without overflow."""
    xp = namespace(u)
    return xp.maximum(u, xp.zeros_like(u)) + xp.log1p(xp.exp(-xp.abs(u)))


class Loss(ABC):
    """A loss as a function of the pre-activations; see the module's first lines.

    Subclass this to add a closed form. Anything without one is differentiated by its framework,
    which gives an object with the same methods.
    """

    #: How the loss is named in messages and stored manifests.
    name: str
    #: What usually turns pre-activations into what the loss compares: a key of ``models.tail.TAILS``.
    link: str = "identity"
    #: Whether ``K_i`` is diagonal for every ``u``: the Hessian falls into one block per output.
    outputs_are_independent: bool = False
    #: Whether ``K_i`` is the same multiple of the identity for every sample and output.
    curvature_is_constant: bool = False
    #: Whether ``K_i`` is any matrix, written out, so that blocks of samples are kept small.
    curvature_is_dense: bool = False
    #: Whether adding one number to all outputs changes nothing, as for softmax: residuals, and the rows of
    #: ``K_i``, sum to zero over the outputs.
    is_shift_invariant: bool = False
    #: Whether output ``j`` stands for class ``j``, so that there is a predicted and a given label.
    is_classification: bool = True
    #: Whether each of several outputs says yes or no by itself, so that a sample has any number of labels.
    outputs_are_tags: bool = False
    #: Whether ``margin`` compares outputs, so that it can be taken of any scores for them, also of votes.
    margin_compares_outputs: bool = True

    @abstractmethod
    def encode(self, labels: np.ndarray, n_outputs: int, where: str) -> np.ndarray:
        """Check ``labels`` of one batch and return them as targets ``(n,)`` or ``(n, C)``."""

    @abstractmethod
    def value(self, u: Array, target: Array) -> Array:
        """Return the loss of every sample, shape ``(n,)``."""

    @abstractmethod
    def residual(self, u: Array, target: Array) -> Array:
        """Return ``d ell_i / d u_i``, shape ``(n, C)``."""

    @abstractmethod
    def curvature(self, u: Array, target: Array) -> Curvature:
        """Return ``d2 ell_i / d u_i2``."""

    @abstractmethod
    def margin(self, u: Array, target: Array) -> Array:
        """Return how far ``u`` speaks for the target, shape ``(n,)``; negative if against it."""

    def with_margins(self, u: Array, target: Array) -> Array:
        """Return ``u`` with what the target brings along to be added to it; nothing for most losses."""
        return u

    def given_output(self, target: Array) -> Array:
        """Return the output that the target names, shape ``(n,)``, integers."""
        if target.ndim == 1:
            return target
        if self.label_kind(target.shape[1]) == "tags":
            refuse_tags(self.labels(target))
        return namespace(target).argmax(target, axis=1)

    def label_kind(self, n_outputs: int) -> str:
        """Return what the labels of a layer with ``n_outputs`` outputs are.

        Returns
        -------
        {"class", "tags", "value"}
            One class a sample, a yes or no for each output, or real values.
        """
        if not self.is_classification:
            return "value"
        return "tags" if n_outputs > 1 and self.outputs_are_tags else "class"

    def predictions(self, u: Array) -> Array:
        """Return what is predicted: classes ``(n,)``, tags ``(n, C)``, values ``(n,)`` or ``(n, C)``."""
        xp = namespace(u)
        if self.label_kind(u.shape[1]) == "value":
            return u[:, 0] if u.shape[1] == 1 else u
        if u.shape[1] == 1 or self.outputs_are_tags:
            said = astype(u > 0, xp.int64)
            return said[:, 0] if u.shape[1] == 1 else said
        return xp.argmax(u, axis=1)

    def labels(self, target: Array) -> Array:
        """Return targets in the form of :meth:`predictions`."""
        xp = namespace(target)
        if target.ndim == 1:
            return target
        kind = self.label_kind(target.shape[1])
        if kind == "class" and target.shape[1] > 1:
            return xp.argmax(target, axis=1)
        rows = target[:, 0] if target.shape[1] == 1 else target
        whole = kind != "value" and bool(xp.all(rows == xp.round(rows)))
        return astype(rows, xp.int64) if whole else rows

    def following(self, u: Array) -> tuple[Loss, Array]:
        """Return a loss and targets for which pre-activations ``u`` are the best: residuals are zero.

        Raises if nothing is known about the targets of the loss, as without a closed form.
        """
        raise WhenceError(
            f"loss {self.name!r}",
            "softmax or binary cross-entropy, or squared error, to take predictions for labels",
            "a loss without a closed form",
            "Use the given labels: fit_to='labels'.",
        )

    def fingerprint(self) -> str:
        """Return a text that two losses share only if they are the same function."""
        return self.name


@known_as("keras", "CategoricalCrossentropy", "SparseCategoricalCrossentropy", tail="softmax")
@known_as("torch", "CrossEntropyLoss")
@known_as("torch", "NLLLoss", tail="log_softmax")
@known_as("xgboost", "multi:softprob", "multi:softmax")
@known_as("lightgbm", "multiclass")
@known_as("whence", "categorical_crossentropy")
@dataclass(frozen=True)
class SoftmaxCrossEntropy(Loss):
    """Softmax cross-entropy on raw logits: ``ell(u) = -sum_c y_c log softmax(u)_c``.

    Parameters
    ----------
    label_smoothing : float, default=0.0
        ``s`` in ``y <- (1 - s) y + s / C``.
    class_weight : tuple of C floats, optional
        ``w`` in ``y_c <- w_c y_c``, after smoothing; all 1 by default.

    Notes
    -----
    With ``p = softmax(u)`` and ``t = sum_c y_c``, which is 1 unless classes are weighted or a row of
    probabilities sums to something else::

        d ell / d u_a       = sum_c y_c (p_a - [a = c])     = t p_a - y_a
        d2 ell / d u_a d u_b = t d p_a / d u_b              = t (p_a [a = b] - p_a p_b)

    Examples
    --------
    >>> loss = SoftmaxCrossEntropy()
    >>> u = np.asarray([[0.0, 0.0]])
    >>> loss.residual(u, np.asarray([0]))
    array([[-0.5,  0.5]])
    >>> loss.curvature(u, np.asarray([0])).matrices()[0]
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """

    label_smoothing: float = 0.0
    class_weight: tuple[float, ...] | None = None
    name = "softmax cross-entropy"
    link = "softmax"
    is_shift_invariant = True

    def encode(self, labels: np.ndarray, n_outputs: int, where: str) -> np.ndarray:
        labels = np.asarray(labels)
        if self.class_weight is not None and len(self.class_weight) != n_outputs:
            raise WhenceError(
                "class weights of the loss",
                f"{n_outputs}, one for each output of the layer",
                str(len(self.class_weight)),
                "Give a weight for every class, in the order of the outputs.",
            )
        if labels.ndim == 2 and labels.shape[1] == 1 and n_outputs > 1:
            labels = labels[:, 0]
        if labels.ndim == 1:
            return _class_numbers(labels, n_outputs, where)
        rows = _label_rows(labels, n_outputs, where)
        totals = rows.sum(axis=1)
        if (rows < 0).any():
            got = f"a row that holds {rows.min():.4g}"
        elif np.abs(totals - 1).max(initial=0) > 1e-3:
            got = f"a row that sums to {totals[np.argmax(np.abs(totals - 1))]:.4g}"
        else:
            return rows
        raise WhenceError(
            f"labels in {where}",
            "one class a sample: rows that are non-negative and sum to 1",
            got,
            "Use binary cross-entropy for several labels a sample, or normalise the rows.",
        )

    def _rows(self, u: Array, target: Array) -> Array:
        n_classes = u.shape[1]
        rows = one_hot(target, n_classes, u.dtype) if target.ndim == 1 else astype(target, u.dtype)
        if self.label_smoothing:
            rows = rows * (1 - self.label_smoothing) + self.label_smoothing / n_classes
        if self.class_weight is not None:
            columns = [rows[:, c] * weight for c, weight in enumerate(self.class_weight)]
            rows = namespace(u).stack(columns, axis=1)
        return rows

    def value(self, u: Array, target: Array) -> Array:
        return -namespace(u).sum(self._rows(u, target) * log_softmax(u), axis=1)

    def residual(self, u: Array, target: Array) -> Array:
        rows = self._rows(u, target)
        p, rest = _softmax_and_rest(u)
        total: Any = 1
        if self._rows_are_scaled(target):
            total = namespace(u).sum(rows, axis=1, keepdims=True)
        return (total - rows) * p - rows * rest  # t p - y, without the difference of two near ones

    def curvature(self, u: Array, target: Array) -> Curvature:
        p = softmax(u)
        one = Curvature(diagonal=p, root=p, rows_sum_to_zero=True)
        if not self._rows_are_scaled(target):
            return one
        return one.scaled(namespace(u).sum(self._rows(u, target), axis=1))

    def _rows_are_scaled(self, target: Array) -> bool:
        """Whether the rows of targets may sum to anything but 1."""
        if self.class_weight is not None:
            return True
        if target.ndim == 1:
            return False
        xp = namespace(target)
        return bool(xp.any(xp.abs(xp.sum(target, axis=1) - 1) > ROUNDED_SUM))

    def margin(self, u: Array, target: Array) -> Array:
        xp = namespace(u)
        given = one_hot(self.given_output(target), u.shape[1], xp.bool)
        lowest = xp.full_like(u, -xp.inf)
        mine = xp.max(xp.where(given, u, lowest), axis=1)
        if u.shape[1] == 1:
            return mine
        return mine - xp.max(xp.where(given, lowest, u), axis=1)

    def following(self, u: Array) -> tuple[Loss, Array]:
        return SoftmaxCrossEntropy(), softmax(u)

    def fingerprint(self) -> str:
        weights = "" if self.class_weight is None else f", class_weight={self.class_weight}"
        return f"{self.name}, label_smoothing={self.label_smoothing:g}{weights}"


@known_as("keras", "BinaryCrossentropy", tail="sigmoid")
@known_as("torch", "BCEWithLogitsLoss")
@known_as("torch", "BCELoss", tail="sigmoid")
@known_as("xgboost", "binary:logistic", "binary:logitraw", "reg:logistic")
@known_as("lightgbm", "binary", "cross_entropy", "multiclassova")
@known_as("sklearn.linear_model", "log_loss")
@known_as("whence", "binary_crossentropy")
@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """Sigmoid binary cross-entropy on raw logits, averaged over the ``C`` outputs.

    Parameters
    ----------
    label_smoothing : float, default=0.0
        ``s`` in ``y <- (1 - s) y + s / 2``.
    one_against_rest : bool, default=False
        Whether several outputs are those of classes of which a sample has one; else they are tags, of
        which it has any number.

    Notes
    -----
    With ``p = sigmoid(u)``, ``ell(u) = (1/C) sum_c softplus(u_c) - y_c u_c``::

        d ell / d u_a        = (p_a - y_a) / C
        d2 ell / d u_a d u_b = [a = b] p_a (1 - p_a) / C

    For one output, the usual case, the factor is 1.

    Examples
    --------
    >>> loss = BinaryCrossEntropy()
    >>> u = np.asarray([[0.0]])
    >>> loss.residual(u, np.asarray([[1.0]]))
    array([[-0.5]])
    >>> loss.curvature(u, np.asarray([[1.0]])).matrices()[0]
    array([[0.25]])
    """

    label_smoothing: float = 0.0
    one_against_rest: bool = False
    name = "binary cross-entropy"
    link = "sigmoid"
    outputs_are_independent = True

    @property
    def outputs_are_tags(self) -> bool:  # type: ignore[override]
        return not self.one_against_rest

    def encode(self, labels: np.ndarray, n_outputs: int, where: str) -> np.ndarray:
        rows = _label_rows(_as_column(labels, n_outputs), n_outputs, where)
        if rows.min(initial=0) < 0 or rows.max(initial=1) > 1:
            bad = float(rows.max() if rows.max() > 1 else rows.min())
            raise WhenceError(
                f"labels in {where}",
                "numbers from 0 to 1 for binary cross-entropy",
                f"{bad:g}",
                "Map the two classes to 0 and 1.",
            )
        return rows

    def _rows(self, u: Array, target: Array) -> Array:
        rows = astype(target, u.dtype)
        return rows * (1 - self.label_smoothing) + self.label_smoothing / 2

    def value(self, u: Array, target: Array) -> Array:
        return namespace(u).mean(softplus(u) - self._rows(u, target) * u, axis=1)

    def residual(self, u: Array, target: Array) -> Array:
        rows = self._rows(u, target)
        # sigmoid(-u) keeps the digits that p - 1 loses where p is near 1.
        return ((1 - rows) * sigmoid(u) - rows * sigmoid(-u)) / u.shape[1]

    def curvature(self, u: Array, target: Array) -> Curvature:
        p = sigmoid(u)
        # sigmoid(-u) keeps the digits that 1 - p loses where p is near 1.
        return Curvature(diagonal=p * sigmoid(-u) / u.shape[1])

    def margin(self, u: Array, target: Array) -> Array:
        xp = namespace(u)
        return xp.min((2 * astype(target, u.dtype) - 1) * u, axis=1)

    def following(self, u: Array) -> tuple[Loss, Array]:
        return BinaryCrossEntropy(), sigmoid(u)

    def fingerprint(self) -> str:
        return f"{self.name}, label_smoothing={self.label_smoothing:g}"


@known_as("keras", "MeanSquaredError")
@known_as("torch", "MSELoss")
@known_as("xgboost", "reg:squarederror", "reg:linear")
@known_as("lightgbm", "regression")
@known_as("sklearn.ensemble", "squared_error")
@known_as("whence", "squared_error")
@dataclass(frozen=True)
class SquaredError(Loss):
    """Squared error, averaged over the ``C`` outputs: ``ell(u) = (1/C) sum_c (u_c - y_c)^2``.

    Notes
    -----
    ::

        d ell / d u_a        = 2 (u_a - y_a) / C
        d2 ell / d u_a d u_b = 2 [a = b] / C

    Examples
    --------
    >>> loss = SquaredError()
    >>> loss.residual(np.asarray([[3.0]]), np.asarray([[1.0]]))
    array([[4.]])
    """

    name = "squared error"
    outputs_are_independent = True
    curvature_is_constant = True
    is_classification = False
    margin_compares_outputs = False

    def encode(self, labels: np.ndarray, n_outputs: int, where: str) -> np.ndarray:
        return _label_rows(_as_column(labels, n_outputs), n_outputs, where)

    def value(self, u: Array, target: Array) -> Array:
        return namespace(u).mean((u - astype(target, u.dtype)) ** 2, axis=1)

    def residual(self, u: Array, target: Array) -> Array:
        return 2 * (u - astype(target, u.dtype)) / u.shape[1]

    def curvature(self, u: Array, target: Array) -> Curvature:
        return Curvature(diagonal=namespace(u).full_like(u, 2 / u.shape[1]))

    def margin(self, u: Array, target: Array) -> Array:
        return -self.value(u, target)

    def following(self, u: Array) -> tuple[Loss, Array]:
        return self, u


def refuse_tags(labels: Array) -> None:
    """Raise unless every row has one tag, so that it names one output."""
    xp = namespace(labels)
    n_tags = xp.sum(astype(labels == 1, xp.int64), axis=1)
    if bool(xp.all(n_tags == 1)):
        return
    raise WhenceError(
        "label",
        "'predicted', since a sample may have no tag or several, and one output is explained",
        f"'given', and a sample with {int(n_tags[int(xp.argmax(astype(n_tags != 1, xp.int64)))])} tags",
        "Name the outputs yourself: explain(..., outputs=...).",
    )


def _as_column(labels: Any, n_outputs: int) -> np.ndarray:
    labels = np.asarray(labels)
    return labels[:, None] if labels.ndim == 1 and n_outputs == 1 else labels


def _class_numbers(labels: np.ndarray, n_outputs: int, where: str) -> np.ndarray:
    _check_numbers(labels, where)
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.rint(labels)):
        raise WhenceError(
            f"labels in {where}",
            f"class numbers from 0 to {n_outputs - 1}, or rows of {n_outputs} probabilities",
            f"fractions such as {labels[labels != np.rint(labels)][0]:g}",
            "Use a regression loss for real-valued targets.",
        )
    # Before the cast, in which a number too large for an integer would become another one.
    if labels.size and (labels.min() < 0 or labels.max() >= n_outputs):
        bad = labels.min() if labels.min() < 0 else labels.max()
        raise WhenceError(
            f"labels in {where}",
            f"class numbers from 0 to {n_outputs - 1} (the layer has {n_outputs} outputs)",
            f"class {int(bad)}",
            "Leave out the samples that have no label, which the loss ignores."
            if bad == IGNORED
            else "Number the classes from 0, or choose the layer that has one output a class.",
        )
    return labels.astype(np.int64)


def _label_rows(labels: np.ndarray, n_outputs: int, where: str) -> np.ndarray:
    _check_numbers(labels, where)
    if labels.ndim != 2 or labels.shape[1] != n_outputs:
        raise WhenceError(
            f"labels in {where}",
            f"shape (batch, {n_outputs}), one column for each output of the layer",
            f"shape {tuple(labels.shape)}",
            "Give labels of the loss's kind, or choose the layer that has one output a label.",
        )
    return labels.astype(np.float64 if labels.dtype == np.float64 else np.float32)


def _check_numbers(labels: np.ndarray, where: str) -> None:
    if labels.dtype.kind not in "iufb":
        got, fix = f"dtype {labels.dtype}", "Encode the labels as numbers."
    elif labels.dtype.kind == "f" and not np.isfinite(labels).all():
        got, fix = f"{labels[~np.isfinite(labels)][0]:g}", "Clean or drop the samples."
    else:
        return
    raise WhenceError(f"labels in {where}", "finite numbers", got, fix)
