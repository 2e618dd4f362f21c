"""Batches of every kind of dataset, the fingerprints of their samples, and the way back.

A dataset comes in as whatever the user's framework calls one and results go out as the same kind.
Each kind is a subclass of :class:`Dataset`; :func:`open_dataset` picks it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from whence._errors import WhenceError, described
from whence._registry import Registry
from whence.arrays.base import as_numpy
from whence.arrays.hashing import cell_digests, hashed_rows
from whence.data.form import BatchForm, Parts
from whence.data.tables import is_table, join_tables, table_bytes, table_rows

__all__ = [
    "Batch",
    "BatchList",
    "Dataset",
    "concatenate",
    "fingerprints",
    "open_dataset",
    "register_dataset",
    "take_rows",
]

#: Rows of a batch where arrays come in whole and no batch size is given.
ARRAY_BATCH_ROWS = 256

#: Samples of which a second look is taken, to see that a dataset gives them in the same order again.
LOOKED_AT = 64


#: Tensors of TensorFlow that are no arrays, and what to do about them.
UNEVEN = {
    "RaggedTensor": "Batch samples of one length together, so that nothing is padded; or pad them for a "
    "model that masks: dataset.map(lambda x, y: (x.to_tensor(), y)).",
    "SparseTensor": "Make it dense: dataset.map(lambda x, y: (tf.sparse.to_dense(x), y)).",
}


class Batch(NamedTuple):
    """One batch, its leaves still arrays of the user's framework.

    Attributes
    ----------
    inputs : array, or tuple or dict of arrays
        What the model takes.
    labels : array or None
        Leading axis as long as that of the inputs.
    weight : array of shape (n,) or None
        Sample weights.
    number : int
        Which batch of the dataset it is, from 0.
    argument : str, default="dataset"
        What messages call the dataset.
    ids : array of shape (n,), optional
        What the samples are called, where they bring it.
    """

    inputs: Any
    labels: Any
    weight: Any
    number: int
    argument: str = "dataset"
    ids: np.ndarray | None = None

    @property
    def where(self) -> str:
        """How messages call this batch."""
        return f"batch {self.number} of {self.argument}"

    @property
    def n_samples(self) -> int:
        """The length of the leading axis."""
        return int(leaves(self.inputs)[0].shape[0])


def leaves(tree: Any) -> list[Any]:
    """Return the arrays of an array, or of a tuple, list or dict of arrays, in a fixed order."""
    if isinstance(tree, Mapping):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    if isinstance(tree, list | tuple):
        return [leaf for part in tree for leaf in leaves(part)]
    return [] if tree is None else [tree]


def map_leaves(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply ``function`` to each array of a tree (and of others of its form), keeping the form."""
    if isinstance(tree, Mapping):
        return {key: map_leaves(function, tree[key], *(o[key] for o in others)) for key in tree}
    if isinstance(tree, list | tuple):
        parts = [map_leaves(function, *part) for part in zip(tree, *others, strict=True)]
        return tuple(parts)
    return None if tree is None else function(tree, *others)


def take_rows(tree: Any, rows: Any) -> Any:
    """Return rows of every leaf of a tree: of arrays as NumPy arrays, of tables as such."""
    return map_leaves(lambda leaf: _cut_rows(leaf, rows, as_numpy), tree)


def _cut_rows(leaf: Any, rows: Any, convert: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
    return table_rows(leaf, rows) if is_table(leaf) else convert(leaf)[rows]


def concatenate(trees: Sequence[Any]) -> Any:
    """Join trees of the same form along the leading axis; other axes are padded with zeros."""

    def join(*parts: Any) -> Any:
        return join_tables(parts) if is_table(parts[0]) else np.concatenate(_padded(parts))

    return map_leaves(join, *trees)


def _padded(parts: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Pad what differs in length, such as sentences that were padded batch by batch."""
    if len({part.shape[1:] for part in parts}) == 1:
        return parts
    longest = np.max([part.shape[1:] for part in parts], axis=0)
    widths = [[(0, 0), *((0, int(gap)) for gap in longest - part.shape[1:])] for part in parts]
    return [np.pad(part, width) for part, width in zip(parts, widths, strict=True)]


def fingerprints(batch: Batch) -> np.ndarray:
    """Return a 64-bit hash of each sample of a batch, over the raw bytes of input, label and weight.

    Samples are recognised by it when a training set is iterated again, in whatever order.

    Returns
    -------
    array of shape (n,), uint64

    Examples
    --------
    >>> x = np.asarray([[1.0], [2.0], [1.0]])
    >>> a, b, c = fingerprints(Batch(x, np.asarray([0, 0, 0]), None, 0))
    >>> a == c, a == b
    (np.True_, np.False_)
    """
    inputs = batch.inputs
    if isinstance(inputs, Mapping) and "attention_mask" in inputs:
        inputs = _without_padding(inputs)
    columns = [_row_bytes(leaf) for leaf in leaves((inputs, batch.labels, batch.weight))]
    return hashed_rows(columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1))


def _without_padding(inputs: Mapping[str, Any]) -> list[Any]:
    """Return for each sample what its attention mask shows: padding differs from batch to batch."""
    mask = as_numpy(inputs["attention_mask"]).astype(bool)
    rest, shown = [], []
    for key in sorted(inputs):
        array = as_numpy(inputs[key])
        if array.shape == mask.shape:
            shown.append(array)
        else:
            rest.append(array)
    texts = np.empty(len(mask), dtype=object)
    texts[:] = [[array[i][row].tolist() for array in shown] for i, row in enumerate(mask)]
    return [texts, *rest]


def _row_bytes(leaf: Any) -> np.ndarray:
    """Return the bytes of each sample, shape ``(n, n_bytes)``."""
    if is_table(leaf):
        return table_bytes(leaf)
    array = as_numpy(leaf)
    if array.dtype.hasobject:  # strings of variable length: a digest of each stands for it
        return cell_digests(array)
    rows = np.ascontiguousarray(array).reshape(array.shape[0], -1)
    return rows.view(np.uint8)


class Dataset(ABC):
    """A batched dataset of any kind, seen the same way: iterate it for :class:`Batch` es."""

    #: What the argument is called in messages.
    argument: str = "dataset"
    #: Whether a batch without labels is an error.
    labels_are_needed: bool = True
    #: What the elements of a batch are.
    form: BatchForm = BatchForm()
    #: Whether batches are cut from whole arrays.
    of_arrays: bool = False
    #: The object that the user passed.
    given: Any = None
    #: What it does, for a message, where its order cannot be known, so that positions mean nothing.
    unordered: str | None = None
    #: Whether only a second look can tell that the order stays.
    may_vary: bool = False
    #: Where the samples stand in the user's own dataset, ascending; ``None``: from 0 on, all of them.
    positions: np.ndarray | None = None
    #: How many samples that one holds, where ``positions`` are some of them.
    n_in_dataset: int = 0
    #: What to say once, where positions are quoted.
    note: str | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, checked for their form."""
        empty = True
        for number, element in enumerate(self.elements()):
            empty = False
            yield self.batch(element, number)
        if empty:
            raise WhenceError(
                self.argument,
                "at least one batch",
                "an empty dataset",
                "Check the paths and filters that it is made from.",
            )

    def prepare(self) -> None:
        """Find out about the order of the samples, once the form of batches is known."""
        return None

    @property
    @abstractmethod
    def native(self) -> Any:
        """The user's own object."""

    @abstractmethod
    def elements(self) -> Iterator[Any]:
        """Yield the batches as the user's framework gives them."""

    @property
    def n_batches(self) -> int | None:
        """How many batches there are, if that is known without a pass."""
        try:
            return len(self.native)
        except TypeError:
            return None

    def reader(self, engine: Any) -> Any:
        """Return what reads parts of it in other processes, a ``Reader``; None if it must be iterated.

        ``engine`` may be asked to look into it first.
        """
        return None

    @abstractmethod
    def pair_with(self, function: Callable[[Batch], Any]) -> Any:
        """Return a dataset of the user's kind: ``(batch, function(batch))``, computed as it is iterated.

        ``function`` returns an array whose leading axis is the batch's, or a tuple of such.
        """

    def results(self, function: Callable[[Batch], Any]) -> Any:
        """Return a dataset of the user's kind: ``function(batch)``, computed as it is iterated."""
        paired = self.pair_with(function)
        return BatchList(len(paired), lambda number: paired[number][1])

    @abstractmethod
    def from_elements(self, elements: Sequence[tuple[Any, ...]]) -> Any:
        """Return a dataset of the user's kind that yields ``elements``, tuples of trees of arrays."""

    @abstractmethod
    def nested(self, outer: Sequence[Any], function: Callable[[int, Batch], np.ndarray]) -> Any:
        """Return a dataset of ``(outer[i], dataset of (batch, function(i, batch)))``."""

    def probe(self, function: Callable[[Batch], Any]) -> Any:
        """Return what ``function`` gives for the first batch: its form, and any error at once."""
        return function(next(iter(self)))

    def batch(self, element: Any, number: int) -> Batch:
        """Split one element into inputs, labels and weights, and check that it is a batch."""
        inputs, labels, weight, ids = self.split(element, f"batch {number} of {self.argument}")
        batch = Batch(inputs, labels, weight, number, self.argument, ids)
        self._check_batched(batch)
        return batch

    def split(self, element: Any, where: str) -> Parts:
        """Return inputs, labels, weights and ids of an element."""
        return self.form.take_apart(
            element, where, labels_are_needed=self.labels_are_needed, arrays=self.of_arrays
        )

    def _check_batched(self, batch: Batch) -> None:
        if not leaves(batch.inputs):
            raise WhenceError(batch.where, "inputs", "None", "Give what the model takes with every batch.")
        parts = leaves((batch.inputs, batch.labels, batch.weight, batch.ids))
        shapes = [tuple(getattr(leaf, "shape", ())) for leaf in parts]
        lengths = {shape[0] if shape else None for shape in shapes}
        if isinstance(batch.labels, list | tuple | Mapping):
            raise WhenceError(
                f"labels in {batch.where}",
                "one array",
                f"a {type(batch.labels).__name__} of {len(leaves(batch.labels))}",
                "Explain one output of a model at a time. A tuple is taken as whole arrays (x, y): give "
                "batches as a list.",
            )
        uneven = next((leaf for leaf in parts if type(leaf).__name__ in UNEVEN), None)
        if uneven is not None:
            raise WhenceError(
                batch.where,
                "arrays, whose rows have one length",
                f"a {type(uneven).__name__}",
                UNEVEN[type(uneven).__name__],
            )
        if batch.labels is None and self.labels_are_needed:
            raise WhenceError(batch.where, "labels", "None", "Give the labels with every batch.")
        if lengths == {0}:
            raise WhenceError(
                batch.where, "at least one sample", "an empty batch", "Leave out empty batches."
            )
        if any(np.ma.is_masked(leaf) for leaf in parts):  # what is hidden would be taken for data
            raise WhenceError(
                batch.where, "arrays without masked entries", "a masked array", "Drop or fill them."
            )
        if len(lengths) == 1 and None not in lengths:
            return
        raise WhenceError(
            self.argument,
            "a batched dataset: inputs, labels and weights with a common leading axis",
            f"leaves of shapes {', '.join(map(str, shapes))} in {batch.where}",
            "Batch it, e.g. dataset.batch(64).",
        )


class BatchList(Sequence[Any]):
    """Batches that can be iterated again and again, each made when it is asked for."""

    def __init__(self, length: int, make: Callable[[int], Any]) -> None:
        self._length = length
        self._make = make

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(self._length))]
        if not -self._length <= item < self._length:
            raise IndexError(item)
        return self._make(item % self._length)


def length_of(batches: Any, argument: str) -> int:
    """Return how many batches there are, or raise where there is no end to them."""
    try:
        length = len(batches) if hasattr(batches, "__len__") else batches.num_batches
        if isinstance(length, int | np.integer) and length >= 0:
            return int(length)
        got = f"one of {length} batches"
    except Exception as error:  # a length is the user's own code
        got = f"one whose length is not known ({type(error).__name__}: {error})"
    raise WhenceError(argument, "a dataset that ends", got, "Say how many batches there are: __len__.")


def batch_at(batches: Any, number: int, argument: str) -> Any:
    """Return a batch by its number, or say that there are fewer than was said."""
    try:
        return batches[number]
    except LookupError as error:
        raise WhenceError(
            argument,
            f"{length_of(batches, argument)} batches, as its length says",
            f"{type(error).__name__} at batch {number}: {error}",
            "Mend its __len__, or its __getitem__.",
        ) from error


class SequenceDataset(Dataset):
    """Batches that can be asked for by number: a list of batches, a ``keras.utils.PyDataset``."""

    def __init__(self, batches: Any, argument: str) -> None:
        self._batches = batches
        self.argument = argument
        self._length = length_of(batches, argument)
        self.may_vary = not isinstance(batches, list | tuple | BatchList)
        if self.may_vary and getattr(batches, "shuffle", None) is True:
            self.unordered = "shuffles: it has shuffle=True"

    @property
    def native(self) -> Any:
        return self._batches

    @property
    def n_batches(self) -> int:
        return self._length

    def elements(self) -> Iterator[Any]:
        for number in range(self._length):
            yield batch_at(self._batches, number, self.argument)

    def reader(self, engine: Any) -> Any:
        from whence.data.readers import BatchReader

        return BatchReader(self._batches, self.argument)

    def pair_with(self, function: Callable[[Batch], Any]) -> Any:
        self.probe(function)
        return self._paired(function)

    def _paired(self, function: Callable[[Batch], Any]) -> Any:
        def make(number: int) -> Any:
            element = batch_at(self._batches, number, self.argument)
            return element, function(self.batch(element, number))

        return BatchList(self._length, make)

    def from_elements(self, elements: Sequence[tuple[Any, ...]]) -> Any:
        return BatchList(len(elements), lambda number: elements[number])

    def nested(self, outer: Sequence[Any], function: Callable[[int, Batch], np.ndarray]) -> Any:
        def make(i: int) -> Any:
            return outer[i], self._paired(lambda batch: function(i, batch))

        self.probe(lambda batch: function(0, batch))
        return BatchList(len(outer), make)


class ArraysDataset(SequenceDataset):
    """A tuple ``(x, y)`` or ``(x, y, sample_weight)`` of whole arrays, cut into batches."""

    of_arrays = True

    def __init__(self, arrays: tuple[Any, ...], argument: str) -> None:
        self._arrays = arrays
        parts = leaves(arrays)
        for leaf in parts:
            if hasattr(leaf, "collect"):  # a polars LazyFrame, which has no rows yet
                got = f"a {type(leaf).__name__}"
                raise WhenceError(argument, "arrays or frames (x, y)", got, "Call .collect() on it first.")
        shapes = [tuple(getattr(leaf, "shape", ())) for leaf in parts]
        lengths = {shape[0] for shape in shapes if shape}
        if len(lengths) > 1 or not all(shapes):
            some = ", ".join(map(str, shapes[:5])) + (", …" if len(shapes) > 5 else "")
            raise WhenceError(
                argument,
                "arrays (x, y) of one length",
                f"leaves of shapes {some}",
                "Give one label a sample, and lists of numbers as arrays: np.asarray(x).",
            )
        n_batches = -(-lengths.pop() // ARRAY_BATCH_ROWS) if lengths else 0
        super().__init__(BatchList(n_batches, self._cut), argument)

    def reader(self, engine: Any) -> Any:
        from whence.data.readers import ArraysReader

        return ArraysReader(self._arrays, self.argument)

    def _cut(self, number: int) -> Any:
        rows = slice(number * ARRAY_BATCH_ROWS, (number + 1) * ARRAY_BATCH_ROWS)
        return map_leaves(lambda leaf: _cut_rows(leaf, rows), self._arrays)


class Kind(NamedTuple):
    """A kind of dataset: how it is known, and what opens it."""

    accepts: Callable[[Any], bool]
    open: Callable[[Any, str], Dataset]


#: Kinds of datasets by what messages call them. Lists of batches and tuples of arrays come last.
DATASETS: Registry[Kind] = Registry("dataset kind", "whence.data")


def register_dataset(name: str, accepts: Callable[[Any], bool]) -> Callable[[Any], Any]:
    """Return a decorator that lets datasets of another kind be given wherever a dataset is taken.

    Parameters
    ----------
    name : str
        What messages call it, such as ``"a pyarrow.dataset.Dataset"``.
    accepts : callable
        ``accepts(dataset)`` says whether a user's object is of this kind. It is asked about every object,
        so it should import nothing.

    Returns
    -------
    callable
        For what opens it: a subclass of :class:`~whence.data.base.Dataset`, or a function, called as
        ``open(dataset, argument)`` and returning one.

    Examples
    --------
    >>> class Twice:
    ...     batch = np.ones((2, 1)), np.zeros(2)
    >>> @register_dataset("a Twice", lambda dataset: type(dataset).__name__ == "Twice")
    ... def open_twice(dataset, argument):
    ...     return SequenceDataset([dataset.batch] * 2, argument)
    >>> [batch.n_samples for batch in open_dataset(Twice())]
    [2, 2]
    """
    if not callable(accepts):
        raise WhenceError(
            "accepts",
            "a function that says whether a dataset is of the kind",
            described(accepts),
            "Pass one.",
        )

    def keep(opens: Any) -> Any:
        DATASETS.add(name, Kind(accepts, opens), opens)
        return opens

    return keep


def open_dataset(dataset: Any, argument: str = "dataset", form: BatchForm | None = None) -> Dataset:
    """Return ``dataset`` as a :class:`Dataset`.

    Parameters
    ----------
    dataset : dataset
        A ``tf.data.Dataset``, a ``torch.utils.data.DataLoader`` or the dataset behind it, a
        ``datasets.Dataset``, a ``keras.utils.PyDataset``, a list of batches, or a tuple of arrays. Batches
        are ``(x, y)`` or ``(x, y, sample_weight)``, or dicts that hold the labels too.
    argument : str
        What messages call it.
    form : BatchForm, optional
        What the elements of a batch are.

    Raises
    ------
    WhenceError
        If it is none of these.
    """
    form = BatchForm() if form is None else form
    opened = _open(dataset, argument, form.roles if isinstance(form.roles, list | tuple) else ())
    opened.given = dataset
    opened.form = form
    opened.prepare()
    return opened


def _open(dataset: Any, argument: str, roles: Sequence[Any]) -> Dataset:
    # What somebody adds comes before the kinds of this library.
    for kind in sorted(DATASETS.values(), key=lambda kind: kind.open.__module__.startswith("whence.")):
        if kind.accepts(dataset):
            return kind.open(dataset, argument)
    if isinstance(dataset, tuple) and len(dataset) in (2, 3, len(roles)):
        named = _with_names_as_array(dataset, roles) if len(dataset) == len(roles) else dataset
        return ArraysDataset(named, argument)
    is_sized = hasattr(dataset, "__len__") or hasattr(dataset, "num_batches")
    if is_sized and hasattr(dataset, "__getitem__") and not _is_array(dataset):
        return SequenceDataset(dataset, argument)
    raise WhenceError(
        argument,
        f"{', '.join(DATASETS)}, a keras.utils.PyDataset, a list of batches, or arrays (x, y)",
        f"a {type(dataset).__name__}",
        "Wrap arrays as (x, y), or (x,) where there are no labels; or batch them with your framework.",
    )


def _with_names_as_array(arrays: tuple[Any, ...], roles: Sequence[Any]) -> tuple[Any, ...]:
    """Return whole arrays with the ids, which may be a list of texts, as one too."""
    pairs = zip(arrays, roles, strict=True)
    return tuple(
        np.asarray(part) if role == "id" and isinstance(part, list) else part for part, role in pairs
    )


def _is_array(dataset: Any) -> bool:
    return hasattr(dataset, "shape") or isinstance(dataset, str | bytes | Mapping)
