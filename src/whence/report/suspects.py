"""Doubtful labels as a table that is sorted, filtered and exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from whence.answers.suspects import Suspects
from whence.data.tables import plain_id
from whence.report.export import Export
from whence.report.labels import SCORE_NAMES, Wording
from whence.report.names import visible
from whence.report.numbers import number
from whence.report.page import Cell, Column, Table
from whence.report.pictures import Gallery, Picture, picture_of
from whence.report.samples import check_notes, checked_samples
from whence.report.tables import Rows, is_tabular

__all__ = ["suspects_table"]


def suspects_table(
    suspects: Suspects,
    *,
    training_samples: Any = None,
    class_names: Sequence[str] | None = None,
    notes: Mapping[Any, str] | None = None,
    notes_title: str = "Note",
    caption: str | None = None,
    k: int | None = None,
) -> Table:
    """Return the ranked labels as a table, the first ``k`` of them or all.

    Parameters
    ----------
    suspects : Suspects
    training_samples, class_names, notes
        As for :func:`whence.report.html.prediction_cards`.
    notes_title : str
        Heads the column of notes.
    caption : str, optional
    k : int, optional
    """
    shown = len(suspects) if k is None else min(k, len(suspects))
    check_notes(notes)
    training_samples = checked_samples(training_samples, "training_samples")
    picture = _pictures(training_samples)
    score = SCORE_NAMES.get(suspects.score, suspects.score)
    wording = Wording.of(suspects, class_names)
    columns = [Column("Rank", numeric=True)]
    columns += [Column("Sample", sortable=False)] if training_samples is not None else []
    columns += [Column("Id", numeric=True), Column("Given label", choices=True)]
    columns += [Column("Model says", choices=True), Column("Score", numeric=True)]
    columns += [Column("Likeliest other"), Column("Wrong", choices=True)] * (
        suspects.n_suspects is not None
    )
    columns += [Column(notes_title)] if notes is not None else []
    rows, records = [], []
    for rank in range(shown):
        sample_id, value = suspects.ids[rank], float(suspects.scores[rank])
        given = wording.text(suspects.labels[rank])
        said = wording.text(suspects.predictions[rank])
        row, record = [Cell(str(rank + 1))], [rank + 1, plain_id(sample_id), given, said, value]
        if training_samples is not None:
            alt = f"training sample {visible(sample_id)}, {wording.given(suspects.labels[rank])}"
            row.append(Cell(picture=picture(sample_id, alt)))
        row += [Cell(visible(sample_id)), Cell(given), Cell(said), Cell(number(value, digits=2), key=value)]
        if suspects.suggestions is not None and suspects.is_suspect is not None:
            other = wording.text(suspects.suggestions[rank])
            wrong = "yes" if suspects.is_suspect[rank] else "no"
            row += [Cell(other), Cell(wrong)]
            record += [other, wrong]
        if notes is not None:
            note = notes.get(plain_id(sample_id), "")
            row.append(Cell(note or "–", mark=bool(note)))
            record.append(note)
        rows.append(row)
        records.append(record)
    n_samples = suspects.about.get("n_samples")
    of = f" of {n_samples:,}" if n_samples else ""
    caption = caption or f"The {shown:,}{of} labels most likely wrong, ranked by {score}"
    caption += f": {suspects.estimate}" * (suspects.n_suspects is not None)
    heads = ["rank", "id", "given label", "model says", score]
    heads += ["likeliest other", "wrong"] * (suspects.n_suspects is not None)
    heads += [notes_title] * (notes is not None)
    return Table(caption, columns, rows, Export("suspects.csv", heads, records))


def _pictures(training_samples: Any) -> Callable[[Any, str], Picture | None]:
    """Return what gives a training sample's picture by its id and a description."""
    if not is_tabular(training_samples):
        gallery = Gallery(training_samples, "training_samples")
        return lambda sample_id, alt: gallery.picture(sample_id, alt, "tiny")
    rows = Rows(training_samples, "training_samples")

    def row(sample_id: Any, alt: str) -> Picture:
        return picture_of(dict(zip(rows.names, rows.row(sample_id), strict=True)), alt)

    return row
