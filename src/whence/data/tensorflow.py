"""Batched ``tf.data.Dataset`` s."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.arrays.base import as_numpy, import_extra
from whence.data.base import Batch, Dataset, leaves, map_leaves, register_dataset

__all__ = ["TensorFlowDataset"]

#: ``tf.data.INFINITE_CARDINALITY``.
INFINITE = -1


#: What a dataset may be made from whose order only Python knows: generators.
MAY_VARY = ("_FlatMapDataset", "_GeneratorDataset", "_InterleaveDataset", "_ParallelInterleaveDataset")


def _is_of_tensorflow(dataset: Any) -> bool:
    return type(dataset).__module__.startswith("tensorflow.") and hasattr(dataset, "element_spec")


def _refuse_composites(dataset: Any, argument: str) -> None:
    """Raise for tensors that are no arrays: rows of several lengths, and sparse ones."""
    for spec in leaves(dataset.element_spec):
        kind = type(spec).__name__
        if kind in ("RaggedTensorSpec", "SparseTensorSpec"):
            fix = "Give arrays: dataset.map(lambda x, y: (x.to_tensor(), y)), and mask padding."
            if kind.startswith("Sparse"):
                fix = "Give arrays: dataset.map(lambda x, y: (tf.sparse.to_dense(x), y))."
            raise WhenceError(argument, "dense tensors", f"a {kind.removesuffix('Spec')}", fix)


@register_dataset("a batched tf.data.Dataset", _is_of_tensorflow)
class TensorFlowDataset(Dataset):
    """A batched ``tf.data.Dataset``."""

    def __init__(self, dataset: Any, argument: str) -> None:
        if int(dataset.cardinality()) == INFINITE:
            raise WhenceError(
                argument, "a dataset that ends", "one that repeats for ever", "Leave out repeat()."
            )
        _refuse_composites(dataset, argument)
        self._dataset = dataset
        self.argument = argument
        self.unordered, self.note = _order_of(dataset)
        self.may_vary = self.unordered is None and any(
            type(part).__name__.startswith(MAY_VARY) for part in _parts(dataset)
        )

    @property
    def native(self) -> Any:
        return self._dataset

    def elements(self) -> Iterator[Any]:
        yield from self._dataset

    @property
    def n_batches(self) -> int | None:
        count = int(self._dataset.cardinality())
        return count if count >= 0 else None

    def pair_with(self, function: Callable[[Batch], Any]) -> Any:
        return self._map(function, self.probe(function))

    def results(self, function: Callable[[Batch], Any]) -> Any:
        return self.pair_with(function).map(lambda element, result: result)

    def _map(self, function: Callable[..., Any], example: Any, *leading: Any) -> Any:
        """Map ``function(*leading, batch)`` over the dataset outside TensorFlow's graph."""
        tf = import_extra("tensorflow", "tensorflow")
        several = isinstance(example, tuple)
        parts = list(example) if several else [example]
        dtypes = [tf.as_dtype(part.dtype) for part in parts]

        def call(number: Any, *flat: Any) -> Any:
            extra, rest = flat[: len(leading)], flat[len(leading) :]
            element = tf.nest.pack_sequence_as(self._dataset.element_spec, list(rest))
            inputs, labels, weight, ids = self.split(element, self.argument)
            batch = Batch(inputs, labels, weight, int(number), self.argument, ids)
            result = function(*[int(e) for e in extra], batch)
            return [np.asarray(part) for part in (result if several else [result])]

        def mapped(number: Any, element: Any) -> Any:
            flat = tf.nest.flatten(element)
            results = tf.numpy_function(call, [number, *leading, *flat], dtypes, stateful=False)
            length = flat[0].shape[0]
            for part, like in zip(results, parts, strict=True):
                part.set_shape([length, *like.shape[1:]] if not leading else [None, length])
            return element, tuple(results) if several else results[0]

        numbered = self._dataset.enumerate()
        return numbered.map(tf.autograph.experimental.do_not_convert(mapped))

    def from_elements(self, elements: Sequence[tuple[Any, ...]]) -> Any:
        tf = import_extra("tensorflow", "tensorflow")

        def spec(leaf: Any) -> Any:
            array = as_numpy(leaf)
            dtype = tf.string if array.dtype.hasobject else tf.as_dtype(array.dtype)
            return tf.TensorSpec((None, *array.shape[1:]), dtype)

        signature = map_leaves(spec, elements[0])
        specs = tf.nest.flatten(signature)
        plain = [tf.nest.flatten(map_leaves(as_numpy, element)) for element in elements]

        def mapped(number: Any) -> Any:
            dtypes = [leaf.dtype for leaf in specs]
            arrays = tf.numpy_function(lambda i: plain[int(i)], [number], dtypes, stateful=False)
            for array, leaf in zip(arrays, specs, strict=True):
                array.set_shape(leaf.shape)
            return tf.nest.pack_sequence_as(signature, arrays)

        # Not from_generator: it has TensorFlow hand memory back to the system at every turn, process-wide,
        # which makes all that NumPy does afterwards slower.
        numbered = tf.data.Dataset.range(len(plain))
        return numbered.map(tf.autograph.experimental.do_not_convert(mapped))

    def nested(self, outer: Sequence[Any], function: Callable[[int, Batch], np.ndarray]) -> Any:
        example = self.probe(lambda batch: function(0, batch))
        wrapped = self.from_elements([(element,) for element in outer]).enumerate()

        def mapped(i: Any, element: Any) -> Any:
            return element[0], self._map(function, example, i)

        tf = import_extra("tensorflow", "tensorflow")
        return wrapped.map(tf.autograph.experimental.do_not_convert(mapped))


def _order_of(dataset: Any) -> tuple[str | None, str | None]:
    """Return what makes the order of a dataset unknown, or what is to be said of one that stays."""
    if dataset.options().deterministic is False:
        return "may come in any order: its options say deterministic=False", None
    note = None
    for part in _parts(dataset):
        name = type(part).__name__
        if "Shuffle" in name:
            if not _stays(part):
                return "shuffles: there is a shuffle() in it that differs from pass to pass", None
            note = (
                "positions are those of the order that its shuffle() makes, which its seed and "
                "reshuffle_each_iteration=False keep"
            )
        if getattr(part, "_deterministic", None) == "false" or _is_sloppy(part):
            return f"may come in any order: {name.strip('_')} with deterministic=False", None
        if name == "_RandomDataset":
            return "draws at random from others", None
        inner = next((op for op in _inner_operations(part) if "Shuffle" in op), None)
        if inner is not None:
            return "shuffles: there is a shuffle() in what it maps", None
    return None, note


def _parts(dataset: Any) -> Iterator[Any]:
    """Yield a dataset, and all that it is made from."""
    waiting, seen = [dataset], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting.extend(part._inputs())
        if hasattr(part, "_dataset"):  # wrappers of version 1
            waiting.append(part._dataset)


def _stays(shuffle: Any) -> bool:
    """Return whether a shuffle gives the same order in each pass, and in other processes."""
    if getattr(shuffle, "_reshuffle_each_iteration", True) in (True, None):
        return False
    seeds: list[Any] = [getattr(shuffle, name, None) for name in ("_seed", "_seed2")]
    return all(seed is not None for seed in seeds) and any(int(seed) != 0 for seed in seeds)


def _is_sloppy(part: Any) -> bool:
    """Return whether an interleave need not keep its order, which only its graph says."""
    if getattr(part, "_sloppy", False) is True:
        return True
    if type(part).__name__ != "_ParallelInterleaveDataset":
        return False
    tf = import_extra("tensorflow", "tensorflow")
    graph = tf.compat.v1.GraphDef.FromString(part._as_serialized_graph().numpy())
    return any(node.attr["deterministic"].s == b"false" for node in graph.node if "Interleave" in node.op)


def _inner_operations(part: Any) -> list[str]:
    """Return the types of the operations in the function that a dataset maps, also in those it calls."""
    function = getattr(getattr(part, "_map_func", None), "function", None)
    if function is None:
        return []
    definition = function.graph.as_graph_def()
    nodes = [*definition.node, *(node for f in definition.library.function for node in f.node_def)]
    return [node.op for node in nodes]
