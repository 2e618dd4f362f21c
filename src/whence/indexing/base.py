"""One pass of a training set through a model, into an index: here in order, or in shares elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from whence._errors import WhenceError, check_choice
from whence.arrays.base import as_numpy
from whence.data.base import Dataset, fingerprints
from whence.data.order import SampleNames
from whence.engine.chosen import as_engine
from whence.index import Index, Writer
from whence.indexing.extraction import fill, refuse_changed
from whence.indexing.observation import Observer, Watcher
from whence.indexing.options import IndexOptions
from whence.progress import track

__all__ = ["index_of"]


def index_of(model: Observer, dataset: Any, argument: str, options: IndexOptions) -> Index:
    """Return the index of a training set; see :meth:`whence.InfluenceModel.index`."""
    path, progress, feature_dtype = options.path, options.progress, options.feature_dtype
    engine = as_engine(options.engine)
    check_choice(options.on_error, "on_error", "raise", "skip")
    if options.on_error == "skip" and path is None:
        fix = "Give a folder, or on_error='raise'."
        raise WhenceError("index_path", "a folder, since on_error='skip' records there", "None", fix)
    if engine.is_remote and path is None:
        raise WhenceError(
            "index_path",
            "a folder that all workers reach, since they share the index through it",
            "None",
            "Give one on a shared file system, or in an object store: 's3://bucket/train.index'.",
        )
    opened = model.open(dataset, argument)
    names = SampleNames(opened, options.ids)
    if opened.note is not None:
        model.warn_once(f"{argument}: {opened.note}", dataset)
    if path is None:
        return _filled_in_order(model, Index(feature_dtype), opened, names, progress)
    by_shares = engine.is_remote or options.on_error == "skip"
    writer = Writer(path, feature_dtype, verify=not by_shares)
    try:
        if by_shares:
            return fill(model, writer, opened, names, progress, engine, options.on_error)
        return _filled_in_order(model, writer, opened, names, progress)
    finally:
        writer.close()


def _filled_in_order(
    model: Observer, index: Index, opened: Dataset, names: SampleNames, progress: bool | None
) -> Index:
    steps = track(opened, "features of the training set", opened.n_batches, progress)
    theta: np.ndarray | None = None
    watch: Watcher | None = None
    counts = False
    n_samples = 0
    before = model.state()
    for batch in steps:
        names.add(batch)
        n_samples += batch.n_samples
        fingerprint = fingerprints(batch)
        # The first batch decides about the loss, and shows whether stored features are this model's.
        if batch.number > 0 and index.holds(fingerprint):
            counts = True
            continue
        seen = model.observe(batch)
        if theta is None:  # not before a batch was seen, on which some adapters choose the layer
            theta = model.theta()
        model.check_losses(seen, theta, batch.where)
        if watch is None:
            watch = model.watch(before)
            refuse_changed(watch, index)
            index.begin(model.identity())
        refuse_changed(watch, index, thoroughly=False)
        counts = counts or seen.weight is None or bool(as_numpy(seen.weight).any())
        index.append(seen.phi, seen.target, seen.weight, fingerprint, *model.training_rows(seen))
    if not counts:
        fix = "Leave weights out to count every sample once."
        raise WhenceError(f"sample weights of {opened.argument}", "one that is not 0", "zeros only", fix)
    assert watch is not None  # an empty dataset is refused
    refuse_changed(watch, index)
    index.unordered = names.unordered
    index = index.finish(names.names(n_samples))
    index.watch = watch
    return index
