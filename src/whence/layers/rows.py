"""Rows: the gradient of one number a sample with respect to the weights of any layers, in small factors.

Take a number ``s`` that a model computes for each sample, and a layer ``W`` that is linear in its weights.
Then, with ``a_p`` the layer's input at position ``p`` and ``delta_p`` the derivative of ``s`` with respect
to its output there,

    ``ds/dW = sum_p outer(a_p, delta_p)``,

so that one backward pass gives the gradient of every sample with respect to every layer, and none of them
is ever written out. What ``a_p`` is depends on the layer: its input and a constant 1 for the bias (dense),
the patch under the kernel (convolution, :mod:`whence.layers.patches`), the unit vector of a token
(embedding, of which the token's number is kept). Channels that a layer keeps apart (groups of a
convolution, the scales of a normalisation) are ``G`` dense layers beside each other.

======== ============= ===============================================================
symbol   shape         meaning
======== ============= ===============================================================
``n``                  samples
``G``                  groups, 1 unless a layer keeps channels apart
``P``                  positions
``a``    (n, G, P, d)  inputs, the constant of the bias among them
``delta``(n, G, P, C)  derivatives with respect to outputs
======== ============= ===============================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from array_api_compat import device as device_of

from whence.arrays.base import WORKSPACE_BYTES, Array, astype, itemsize, namespace

__all__ = ["Factors", "Matrices", "Rows", "Term", "Tokens", "scaled_rows"]


@dataclass(frozen=True)
class Factors:
    """Gradients ``sum_p outer(a_p, delta_p)``.

    Attributes
    ----------
    left : array of shape (n, G, P, d)
    right : array of shape (n, G, P, C)
    """

    left: Array
    right: Array

    @property
    def n_samples(self) -> int:
        """``n``."""
        return int(self.left.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(G, d, C)``."""
        return int(self.left.shape[1]), int(self.left.shape[3]), int(self.right.shape[3])

    @property
    def n_positions(self) -> int:
        """``P``."""
        return int(self.left.shape[2])

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays, each with a row for each sample."""
        return self.left, self.right

    def of(self, arrays: Sequence[Array]) -> Factors:
        """Return the same with other arrays."""
        return Factors(*arrays)

    def matrices(self) -> Array:
        """Return the gradients written out, shape ``(n, G, d, C)``."""
        xp = namespace(self.left)
        if self.n_positions == 1:
            return self.left[:, :, 0, :, None] * self.right[:, :, 0, None, :]
        return xp.matmul(xp.matrix_transpose(self.left), self.right)

    def scaled(self, by_input: Array) -> Factors:
        """Return the gradients with row ``a`` times ``by_input (d,)[a]``."""
        return replace(self, left=self.left * astype(by_input, self.left.dtype))

    def smallest(self) -> Factors | Matrices:
        """Return itself, or the gradients written out if these are fewer numbers."""
        _, d, n_outputs = self.shape
        as_factors = self.n_positions * (d + n_outputs)
        return self if as_factors <= d * n_outputs else Matrices(self.matrices())


@dataclass(frozen=True)
class Tokens:
    """Gradients ``sum_p outer(e_{tokens_p}, delta_p)`` of an embedding.

    Attributes
    ----------
    tokens : array of shape (n, P), integers
    right : array of shape (n, P, C)
    n_tokens : int
        ``d``, how many tokens there are.
    """

    tokens: Array
    right: Array
    n_tokens: int

    @property
    def n_samples(self) -> int:
        """``n``."""
        return int(self.tokens.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(G, d, C)``."""
        return 1, self.n_tokens, int(self.right.shape[2])

    @property
    def n_positions(self) -> int:
        """``P``."""
        return int(self.tokens.shape[1])

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays, each with a row for each sample."""
        return self.tokens, self.right

    def of(self, arrays: Sequence[Array]) -> Tokens:
        """Return the same with other arrays."""
        tokens, right = arrays
        return Tokens(tokens, right, self.n_tokens)

    def matrices(self) -> Array:
        """Return the gradients written out, shape ``(n, 1, d, C)``: most entries are zero."""
        xp = namespace(self.right)
        numbers = xp.arange(self.n_tokens, dtype=self.tokens.dtype, device=device_of(self.tokens))
        units = astype(self.tokens[:, :, None] == numbers, self.right.dtype)
        return xp.matmul(xp.matrix_transpose(units), self.right)[:, None, :, :]

    def scaled(self, by_input: Array) -> Tokens:
        """Return the gradients with row ``a`` times ``by_input (d,)[a]``."""
        xp = namespace(self.right)
        flat = xp.take(astype(by_input, self.right.dtype), xp.reshape(self.tokens, (-1,)))
        return replace(self, right=self.right * xp.reshape(flat, (*self.tokens.shape, 1)))

    def smallest(self) -> Tokens:
        """Return itself: token by token nothing is smaller."""
        return self


@dataclass(frozen=True)
class Matrices:
    """Gradients, or any other vectors of a layer's weights, written out.

    Attributes
    ----------
    values : array of shape (n, G, d, C)
    """

    values: Array

    @property
    def n_samples(self) -> int:
        """``n``."""
        return int(self.values.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(G, d, C)``."""
        _, n_groups, d, n_outputs = self.values.shape
        return int(n_groups), int(d), int(n_outputs)

    @property
    def n_positions(self) -> int:
        """1: positions are summed up."""
        return 1

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays, each with a row for each sample."""
        return (self.values,)

    def of(self, arrays: Sequence[Array]) -> Matrices:
        """Return the same with other arrays."""
        return Matrices(*arrays)

    def matrices(self) -> Array:
        """Return the gradients written out, shape ``(n, G, d, C)``."""
        return self.values

    def scaled(self, by_input: Array) -> Matrices:
        """Return the gradients with row ``a`` times ``by_input (d,)[a]``."""
        return Matrices(self.values * astype(by_input, self.values.dtype)[:, None])

    def smallest(self) -> Matrices:
        """Return itself."""
        return self


Term = Factors | Tokens | Matrices


@dataclass(frozen=True)
class Rows:
    """The gradients of ``n`` samples with respect to some layers.

    Attributes
    ----------
    layers : mapping of str to tuple of Term
        For each layer the terms whose sum is the gradient: one, or one for each use of weights that are
        used in more than one way, such as those that an embedding shares with an output layer.

    Examples
    --------
    A dense layer with input 2 and derivative 3:

    >>> import numpy as np
    >>> rows = Rows({"fc": (Factors(np.full((1, 1, 1, 1), 2.0), np.full((1, 1, 1, 1), 3.0)),)})
    >>> rows.n_samples, rows.n_weights, rows.matrices("fc").tolist()
    (1, 1, [[[[6.0]]]])
    """

    layers: Mapping[str, tuple[Term, ...]]

    @property
    def n_samples(self) -> int:
        """``n``."""
        return next(iter(self.layers.values()))[0].n_samples

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """``(G, d, C)`` of every layer."""
        return {name: terms[0].shape for name, terms in self.layers.items()}

    @property
    def n_weights(self) -> int:
        """How many weights the layers have together."""
        return sum(g * d * c for g, d, c in self.shapes.values())

    @property
    def n_bytes(self) -> int:
        """What the arrays take in memory."""
        arrays = (array for terms in self.layers.values() for term in terms for array in term.arrays)
        return sum(_n_bytes(array) for array in arrays)

    @property
    def like(self) -> Array:
        """One of the arrays, for its library, device and precision."""
        return next(iter(self.layers.values()))[0].arrays[-1]

    def matrices(self, layer: str) -> Array:
        """Return the gradients with respect to one layer written out, shape ``(n, G, d, C)``."""
        first, *others = self.layers[layer]
        result = first.matrices()
        for term in others:
            result = result + term.matrices()
        return result

    def of(self, change: Any) -> Rows:
        """Return the rows with ``change(term)`` in place of each term."""
        return Rows({name: tuple(change(term) for term in terms) for name, terms in self.layers.items()})

    def only(self, layers: Sequence[str]) -> Rows:
        """Return the rows of some layers."""
        return Rows({name: self.layers[name] for name in layers})

    def __getitem__(self, rows: slice) -> Rows:
        return self.of(lambda term: term.of([array[rows, ...] for array in term.arrays]))

    def take(self, places: Array) -> Rows:
        """Return the rows at some places ``(m,)``, in their order."""
        xp = namespace(self.like)
        places = xp.asarray(places)
        return self.of(lambda term: term.of([xp.take(array, places, axis=0) for array in term.arrays]))

    def astype(self, dtype: Any) -> Rows:
        """Return the rows in another precision; tokens stay numbers."""

        def change(term: Term) -> Term:
            arrays = [_as_float(array, dtype) for array in term.arrays]
            return term.of(arrays)

        return self.of(change)

    def smallest(self) -> Rows:
        """Return each term in factors or written out, whichever are fewer numbers."""
        return self.of(lambda term: term.smallest())

    def scaled(self, by_input: Mapping[str, Array]) -> Rows:
        """Return the gradients with the row of input ``a`` of a layer times ``by_input[layer] (d,)[a]``."""
        return Rows(
            {
                name: tuple(term.scaled(by_input[name]) for term in terms)
                for name, terms in self.layers.items()
            }
        )

    def blocks(self, n_bytes: int = WORKSPACE_BYTES) -> Iterator[slice]:
        """Yield slices of samples whose gradients, written out, take about so many bytes."""
        at_once = max(1, n_bytes // max(1, self.n_weights * itemsize(self.like)))
        for start in range(0, self.n_samples, at_once):
            yield slice(start, min(start + at_once, self.n_samples))

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Return several rows one after another; shorter sequences are filled up with zeros."""
        if len(parts) == 1:
            return parts[0]
        layers = {}
        for name, terms in parts[0].layers.items():
            layers[name] = tuple(
                _joined([part.layers[name][number] for part in parts]) for number in range(len(terms))
            )
        return cls(layers)


def scaled_rows(rows: Rows, by_sample: Array) -> Rows:
    """Return the gradient of each sample times ``by_sample (n,)``."""

    def change(term: Term) -> Term:
        *others, last = term.arrays
        xp = namespace(last)
        factor = xp.reshape(astype(by_sample, last.dtype), (-1, *[1] * (last.ndim - 1)))
        return term.of([*others, last * factor])

    return rows.of(change)


def _joined(terms: Sequence[Term]) -> Term:
    if len({type(term) for term in terms}) > 1:  # some written out, as of longer sequences
        terms = [Matrices(term.matrices()) for term in terms]
    arrays = []
    for parts in zip(*(term.arrays for term in terms), strict=True):
        xp = namespace(parts[0])
        if not isinstance(terms[0], Matrices):
            axis = 1 if isinstance(terms[0], Tokens) else 2
            longest = max(part.shape[axis] for part in parts)
            parts = tuple(_filled(part, axis, longest) for part in parts)
        arrays.append(xp.concat(parts, axis=0))
    return terms[0].of(arrays)


def _filled(array: Array, axis: int, length: int) -> Array:
    missing = length - array.shape[axis]
    if missing == 0:
        return array
    xp = namespace(array)
    shape = (*array.shape[:axis], missing, *array.shape[axis + 1 :])
    return xp.concat([array, xp.zeros(shape, dtype=array.dtype, device=device_of(array))], axis=axis)


def _as_float(array: Array, dtype: Any) -> Array:
    return array if namespace(array).isdtype(array.dtype, "integral") else astype(array, dtype)


def _n_bytes(array: Array) -> int:
    xp = namespace(array)
    kind = xp.iinfo if xp.isdtype(array.dtype, "integral") else xp.finfo
    size = 1
    for length in array.shape:
        size *= int(length)
    return size * int(kind(array.dtype).bits) // 8
