"""``whence explain`` and ``whence suspects``: what an index answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from whence._errors import WhenceError
from whence._files import check_file
from whence.answers.explanation import Explanation
from whence.answers.loading import load_index
from whence.answers.suspects import Suspects
from whence.cli.data import Batches, DataSpec, Samples, check_path, read_samples
from whence.cli.forms import InputSpec
from whence.cli.indexing import RunOptions, check_classes, made
from whence.cli.models import ModelSpec, OpenedModel, code_of, is_factory, open_model
from whence.cli.notes import note
from whence.cli.record import Record, read_record
from whence.data.base import Batch, fingerprints
from whence.index import StoredIndex
from whence.index.store import holds_index
from whence.report.page import PAGE

__all__ = ["Answer", "explain", "suspects"]

#: Samples that are brought into the model's form at once where nobody said how many.
BATCH_SIZE = 256
#: Parts of a model that run code when it is loaded, and the option of each.
OPTION_OF = {"model": "--model", "imports": "--import", "loss": "--loss"}


@dataclass(frozen=True)
class Answer:
    """The answer of a command, and its report.

    Attributes
    ----------
    found : Explanation or Suspects
    class_names : list of str or None
    report : Path or None
        The page that was written.
    """

    found: Any
    class_names: list[str] | None
    report: Path | None


def explain(
    folder: Path,
    path: Path,
    changes: Mapping[str, Any],
    *,
    k: int,
    output: int | None,
    only: list[str],
    limit: int | None,
    method: str | None,
    data: Path | None,
    report: Path | None,
    asked: RunOptions,
) -> Answer:
    """Explain samples by an index.

    ``changes``: what a person says about model and samples this time, by the names of the attributes of
    :class:`ModelSpec` and :class:`DataSpec`; ``None`` where it is as it was.
    """
    file = None if report is None else _report_file(report, folder)
    check_path(path, "SAMPLES")
    record = _record_of(folder, data)
    opened, form = _reopened(record, changes, asked)
    asked.say(f"Opening {folder}")
    answers = _opened_method(folder, record, opened, method, asked)
    names = _class_names(form.classes, answers)
    asked.say(f"Reading {path}")
    reading, remembered = _reading(record, changes, path)
    samples = read_samples(path, reading, form, "SAMPLES", remembered=remembered, progress=asked.progress)
    samples = _chosen(samples, only, limit)
    size = BATCH_SIZE if record is None else record.batch_size
    batches = Batches(samples, form, size, "SAMPLES")
    found: Explanation = answers.explain(
        batches, k=k, outputs=output, ids=samples.names, progress=asked.progress
    )
    if file is not None:
        asked.say(f"Writing {file}")
        ids = np.concatenate([found.ids.ravel(), found.opponent_ids.ravel()])
        training = _training_samples(ids, answers, record)
        found.save_html(file, **_shown(samples, training, ids, answers), class_names=names)
    return Answer(found, names, file)


def _report_file(report: Path, folder: Path) -> Path:
    """Return the file of a report, which is neither another file that is there nor in the index."""
    if folder.resolve() in report.resolve().parents:
        got = f"{str(report)!r}, inside of it"
        raise WhenceError("--report", "a file outside of the index", got, "Choose another path.")
    return check_file(report, PAGE)


def _record_of(folder: Path, data: Path | None) -> Record | None:
    """Return how an index was made, the training set where a person says that it is now."""
    if not holds_index(folder):
        StoredIndex(folder)  # which says what is wrong
    record = read_record(folder)
    if data is None:
        return record
    if record is None:
        got = "an index that was made from Python"
        raise WhenceError("--data", "an index that whence index made", got, "Leave it out.")
    return replace(record, data=str(data.absolute()))


def _reading(
    record: Record | None, changes: Mapping[str, Any], path: Path
) -> tuple[DataSpec, frozenset[str]]:
    """Return where things stand in the samples, and what of that nobody said of these."""
    said = {name: changes[name] for name in DataSpec.__dataclass_fields__ if changes.get(name) is not None}
    if record is None:
        return DataSpec(**said), frozenset()
    reading = replace(record.reading, weight=None)  # what a sample counts plays no part here
    if (path.suffix.lower() == ".npz") != (Path(record.data).suffix.lower() == ".npz"):
        reading = replace(reading, inputs=None)  # columns are no arrays
    return replace(reading, **said), frozenset({"label", "id"} - said.keys())


def _reopened(
    record: Record | None, changes: Mapping[str, Any], asked: RunOptions
) -> tuple[OpenedModel | None, InputSpec]:
    """Return the model that an index was made with, and the form of what it is given."""
    said = {name: changes[name] for name in ModelSpec.__dataclass_fields__ if changes.get(name)}
    classes = changes.get("classes")
    if record is None and "model" not in said:  # samples are features
        return None, InputSpec("flat", None, classes=classes)
    spec = ModelSpec(**said) if record is None else replace(record.model, **said)
    if "weights" not in said and not is_factory(spec.model):
        spec = replace(spec, weights=None)
    from_record = [] if record is None else [name for name in code_of(spec) if name not in said]
    if from_record and not asked.trusted:
        raise WhenceError(
            f"{from_record[0]} {getattr(spec, from_record[0])}",
            "your word that you trust it, since the folder of the index names it and loading it runs code",
            "none",
            f"Add --trust-model, or say it yourself with {OPTION_OF[from_record[0]]}.",
        )
    asked.say(f"Loading {spec.model}")
    opened = open_model(spec, trusted=asked.trusted)
    if record is None:
        return opened, opened.form if classes is None else replace(opened.form, classes=classes)
    if opened.digest != record.digest:
        raise WhenceError(
            f"model {spec.model}",
            "the model that the index was made with",
            "one that has changed since, or another",
            "Name the one that it was made with by --model, or make a new index of this one.",
        )
    return opened, record.form if classes is None else replace(record.form, classes=classes)


def _opened_method(
    folder: Path, record: Record | None, opened: OpenedModel | None, method: str | None, asked: RunOptions
) -> Any:
    """Return the method that an index was made with."""
    name = method or (record.method if record else None)
    try:
        return load_index(
            folder, method=name, influence_model=opened.wrapped if opened else None, progress=asked.progress
        )
    except WhenceError as error:
        # A loss without a closed form cannot be made from what is stored: the model and the training set
        # are needed once more.
        if record is None or "closed form" not in error.expected:
            raise
        if opened is None:
            opened, _ = _reopened(record, {}, asked)
        asked.say(f"Reading {record.data}, since the loss has no closed form")
        samples = read_samples(
            Path(record.data),
            record.reading,
            record.form,
            "DATA",
            progress=asked.progress,
        )
        assert opened is not None
        return made(opened, samples, record.form, folder, record.solver, record.batch_size, asked)


def _chosen(samples: Samples, only: list[str], limit: int | None) -> Samples:
    """Return the samples that are asked for by name, in that order, or the first ones."""
    if only:
        rows = {str(name): row for row, name in enumerate(samples.names.tolist())}
        unknown = [name for name in only if name not in rows]
        if unknown:
            raise WhenceError(
                "--only",
                f"ids of the samples, such as {', '.join(list(rows)[:3])}",
                ", ".join(unknown[:5]),
                "Ids are positions from 0, the column of --id, or the paths of images.",
            )
        samples = samples.select(np.asarray([rows[name] for name in only]))
    if limit is not None and limit < len(samples):
        samples = samples.select(np.arange(limit))
    return samples


def _class_names(classes: list[str] | None, answers: Any) -> list[str] | None:
    """Return the names of the classes, checked for their number; None where there are none."""
    loss, n_outputs = answers.layer.loss, answers.layer.n_outputs
    if classes is None or not loss.is_classification:
        return None
    check_classes(classes, n_outputs, "--classes")
    return classes


# --------------------------------------------------------------------------------------- suspects


def suspects(
    folder: Path,
    *,
    k: int | None,
    score: str | None,
    classes: list[str] | None,
    method: str | None,
    data: Path | None,
    report: Path | None,
    asked: RunOptions,
) -> Answer:
    """List the training samples whose labels are most doubtful."""
    file = None if report is None else _report_file(report, folder)
    record = _record_of(folder, data)
    asked.say(f"Opening {folder}")
    answers = _opened_method(folder, record, None, method, asked)
    names = _class_names(classes or (record.form.classes if record else None), answers)
    asked.say(f"Ranking {answers.index.n_samples:,} labels")
    options = {} if score is None else {"score": score}
    found: Suspects = answers.suspects(k=k, progress=asked.progress, **options)
    if file is not None:
        asked.say(f"Writing {file}")
        training = _training_samples(found.ids, answers, record)
        pictures = None if training is None else _pictures(training, found.ids, answers)
        found.save_html(file, training_samples=pictures, class_names=names)
    return Answer(found, names, file)


# ---------------------------------------------------------------------------------------- reports


def _shown(samples: Samples, training: Samples | None, ids: np.ndarray, answers: Any) -> dict[str, Any]:
    """Return what a report shows of samples and training samples, as the arguments of ``save_html``."""
    if training is None:
        return {"samples": [samples.source.shown(row) for row in range(len(samples))]}
    rows, training_rows = samples.table(), training.table()
    if rows is not None and training_rows is not None:  # shown side by side
        return {"samples": rows, "training_samples": training_rows.set_axis(answers.index.ids, axis=0)}
    return {
        "samples": [samples.source.shown(row) for row in range(len(samples))],
        "training_samples": _pictures(training, ids, answers),
    }


def _pictures(training: Samples, ids: np.ndarray, answers: Any) -> dict[Any, Any]:
    """Return what a person sees of some training samples, by id."""
    names = answers.index.ids.tolist()
    return {names[row]: training.source.shown(row) for row in _rows_of(ids, answers).tolist()}


def _rows_of(ids: np.ndarray, answers: Any) -> np.ndarray:
    place = {name: row for row, name in enumerate(answers.index.ids.tolist())}
    return np.unique(np.asarray([place[name] for name in ids.ravel().tolist()]))


def _training_samples(ids: np.ndarray, answers: Any, record: Record | None) -> Samples | None:
    """Return the training set, to show some samples of it; None if these are not what they were."""
    if record is None:
        return None
    try:
        samples = read_samples(Path(record.data), record.reading, record.form, "DATA", progress=False)
        same = len(samples) == answers.index.n_samples
        if not same or not _are_stored(samples, _rows_of(ids, answers), answers, record):
            got = f"other samples in {record.data}"
            raise WhenceError("DATA", "the training set of the index", got, "Say where it is with --data.")
    except WhenceError as error:
        note(f"the report goes without the training samples themselves: {error}")
        return None
    return samples


def _are_stored(samples: Samples, rows: np.ndarray, answers: Any, record: Record) -> bool:
    """Return whether samples are those that the index holds in these rows, by their bytes."""
    for start in range(0, len(rows), record.batch_size):
        some = rows[start : start + record.batch_size]
        inputs, labels, *weight = samples.batch(some, record.form, "DATA")
        batch = Batch(inputs, labels, weight[0] if weight else None, 0, "DATA")
        if not np.array_equal(fingerprints(batch), answers.index.gather("fingerprint", some)):
            return False
    return True
