"""``whence index``: what a model sees of its training set, stored in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence.answers.representers import RepresenterPointLJE
from whence.cli.data import Batches, DataSpec, Samples, check_path, read_samples
from whence.cli.forms import InputSpec, are_padded, is_text
from whence.cli.models import ModelSpec, OpenedModel, code_of, open_model
from whence.cli.record import Record, check_record, write_record
from whence.data.base import Batch
from whence.ihvp import SOLVERS
from whence.index.store import BEGUN, check_folder, holds_index

__all__ = ["Indexed", "RunOptions", "check_classes", "index", "made"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunOptions:
    """How a command works, whatever it does.

    Attributes
    ----------
    say : callable
        Called with a sentence as each step begins.
    progress : bool or None
        As everywhere in the library.
    trusted : bool
        Whether code that comes with a model may be run.
    """

    say: Say = lambda step: None
    progress: bool | None = None
    trusted: bool = False


@dataclass(frozen=True)
class Indexed:
    """A training set that was indexed.

    Attributes
    ----------
    method : RepresenterPointLJE
    form : InputSpec
    agreement : float or None
        The share of training labels that the model predicts.
    runs_code : bool
        Whether to load the model again takes trust.
    """

    method: RepresenterPointLJE
    form: InputSpec
    agreement: float | None
    runs_code: bool


def index(
    spec: ModelSpec,
    data: Path,
    folder: Path,
    reading: DataSpec,
    classes: list[str] | None,
    solver: dict[str, Any],
    batch_size: int,
    asked: RunOptions,
) -> Indexed:
    """Index a training set in a folder, or go on where an earlier run stopped.

    ``solver``: ``name`` (a key of ``SOLVERS``), ``arguments`` of its factory and ``options`` of the
    method.
    """
    check_folder(folder)
    check_record(folder)
    check_path(data, "DATA")
    _check_images(data, spec, reading)
    asked.say(f"Loading {spec.model}")
    # A factory that is named here is asked for by its name; a pickle is not, unless it is trusted.
    opened = open_model(spec, trusted=asked.trusted)
    asked.say(f"Reading {data}")
    samples, form = _training_set(data, reading, classes, opened, asked)
    going_on = (folder / BEGUN).is_file() and not holds_index(folder)
    asked.say(f"{'Going on with' if going_on else 'Indexing'} {len(samples):,} samples in {folder}")
    method = made(opened, samples, form, folder, solver, batch_size, asked)
    used = getattr(method.index, "method", None)
    record = Record(
        spec,
        opened.digest,
        str(data.absolute()),
        samples.reading,
        form,
        batch_size,
        solver,
        None if used is None else used.folder.name,
    )
    write_record(folder, record)
    return Indexed(method, form, _agreement(method), bool(code_of(spec)))


def _agreement(method: RepresenterPointLJE) -> float | None:
    """Return the share of training labels that the model predicts; None for real values."""
    loss = method.layer.loss
    if not loss.is_classification:
        return None
    n_equal = n_labels = 0
    for shard in method.index.shards:
        rows = shard.block.rows()
        labels = np.asarray(loss.labels(rows.target))
        n_equal += int((labels == np.asarray(loss.predictions(rows.phi @ method.layer.theta))).sum())
        n_labels += labels.size
    return n_equal / n_labels


def _check_images(data: Path, spec: ModelSpec, reading: DataSpec) -> None:
    """Raise for options of images where there are none, and of tables where there are images."""
    for_tables = {
        "--label": reading.label,
        "--id": reading.id,
        "--weight": reading.weight,
        "--inputs": reading.inputs,
    }
    for_images = {"--image-size": reading.frame.height, "--pixels": spec.pixels}
    options, needed = (for_tables, "a file") if data.is_dir() else (for_images, "a folder of images")
    for option, value in options.items():
        if value is not None:
            got = f"{'the folder' if data.is_dir() else 'the file'} {str(data)!r}"
            raise WhenceError(option, f"{needed} for DATA", got, "Leave it out.")


def made(
    opened: OpenedModel,
    samples: Samples,
    form: InputSpec,
    folder: Path,
    solver: Mapping[str, Any],
    batch_size: int,
    asked: RunOptions,
) -> RepresenterPointLJE:
    """Return the method, its index in a folder; nothing is computed that is there already."""
    return RepresenterPointLJE(
        opened.wrapped,
        Batches(samples, form, batch_size, "DATA"),
        SOLVERS[solver["name"]](**solver["arguments"]),
        index_path=folder,
        ids=samples.ids,
        progress=asked.progress,
        **solver["options"],
    )


def _training_set(
    data: Path, reading: DataSpec, classes: list[str] | None, opened: OpenedModel, asked: RunOptions
) -> tuple[Samples, InputSpec]:
    """Return the training set, and the model's form with the classes known."""
    form = opened.form
    if reading.frame.height is None and form.image_shape is not None:
        height, width, channels = form.image_shape
        known = height is not None and width is not None
        frame = replace(reading.frame, height=height, width=width, channels=channels, resize=known)
        reading = replace(reading, frame=frame)
    elif form.image_shape is not None:
        reading = replace(reading, frame=replace(reading.frame, channels=form.image_shape[2]))
    samples = read_samples(data, reading, form, "DATA", progress=asked.progress)
    return samples, _with_classes(form, samples, classes, opened)


def _with_classes(
    form: InputSpec, samples: Samples, given: list[str] | None, opened: OpenedModel
) -> InputSpec:
    """Return the form with names of the classes in the order of the outputs, as many as there are."""
    assert samples.labels is not None
    inputs = form.inputs(samples.source.take(np.arange(min(8, len(samples)))), samples.source.are_images)
    opened.wrapped.features(Batch(inputs, None, None, 0, "DATA"))  # which decides about layer and loss
    identity, loss = opened.wrapped.identity(), opened.wrapped.loss
    named = given is not None or form.classes is not None
    text = is_text(samples.labels) and (named or not are_padded(samples.labels))
    if text and not loss.is_classification:
        raise WhenceError(
            "--label",
            f"numbers, which the loss {loss.name} takes",
            f"texts such as {samples.labels.ravel()[0]!r}",
            "Name the column of the values.",
        )
    if not loss.is_classification:
        return form
    names = given or samples.classes
    if form.classes is not None and given is None:
        return form  # the model knows them
    if names is None and text:
        names = sorted({str(name) for name in samples.labels.ravel()})
    if names is None:
        return form
    check_classes(
        names,
        identity["n_outputs"],
        "--classes" if given else f"classes in {samples.reading.label or 'the folders of DATA'}",
    )
    return replace(form, classes=list(names))


def check_classes(names: list[str], n_outputs: int, where: str) -> None:
    """Raise unless there is one name for each class of a model with so many outputs."""
    n_classes = max(2, n_outputs)
    if len(names) != n_classes or len(set(names)) != len(names):
        raise WhenceError(
            where,
            f"{n_classes} different names, as many as the model has classes",
            f"{len(names)}: {', '.join(names[:10])}",
            "Name all classes in the order of the outputs: --classes cat,dog",
        )
