"""Explained rows of a table above their neighbours, as frames that notebooks show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whence.answers.explanation import Explanation
from whence.answers.views import VIEWS
from whence.arrays.base import import_extra
from whence.report.notebook import html_table, html_text
from whence.report.tables import TOLERANCE, Comparison, kept_columns, shown

__all__ = ["Neighbours", "neighbours_of"]

#: How an entry that differs is set apart, on light and dark pages.
MARK = "background:#fdf0d2;color:#7a4b00"


@dataclass(frozen=True)
class Neighbours:
    """Explained rows, each above the training rows that speak for and against it.

    Attributes
    ----------
    frame : pandas.DataFrame
        The data's own columns. The index names the rows: ``sample`` (the explained one), ``side``
        (``explained``, ``supporter`` or ``opponent``), ``rank`` (from 1; 0 for the explained row itself),
        ``id``, and ``value``, what the training sample adds to the prediction.
    differs : pandas.DataFrame
        Of the same form: whether an entry differs from the explained row's.

    Examples
    --------
    In a notebook it shows itself with the differing entries marked; elsewhere, those entries alone are
    ``neighbours.frame.where(neighbours.differs)``.
    """

    frame: Any
    differs: Any

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.frame)

    def __repr__(self) -> str:
        """Show the rows with a star beside what differs."""
        texts = self.frame.map(shown)
        return repr(texts.where(~self.differs, texts + " *"))

    def _repr_html_(self) -> str:
        """Show the rows in a notebook, with what differs set apart."""
        kept = kept_columns(self.differs.to_numpy().sum(axis=0))
        rows = []
        for place, name in enumerate(self.frame.index):
            values, marks = self.frame.iloc[place, kept], self.differs.iloc[place, kept]
            cells = [html_text("" if part != part else shown(part)) for part in name]
            rows.append([*cells, *(_cell(*one) for one in zip(values, marks, strict=True))])
        left = self.frame.shape[1] - len(kept)
        more = f"; {left} more columns, in which fewer differ, are not shown" if left else ""
        heads = [*self.frame.index.names, *self.frame.columns[kept]]
        return html_table(f"What differs from the explained rows is marked{more}", heads, rows, len(rows))


@VIEWS.register("explanation:neighbours")
def neighbours_of(
    explanation: Explanation,
    samples: Any,
    training_samples: Any,
    *,
    column_names: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
) -> Neighbours:
    """Return explained rows with their neighbours; see :meth:`whence.Explanation.neighbours`."""
    pandas = import_extra("pandas", "report")
    comparison = Comparison(samples, training_samples, column_names=column_names, tolerance=tolerance)
    explained = comparison.explained.in_order(explanation.sample_ids)
    rows, differs, index = [], [], []
    for t, row in enumerate(explained):
        name = explanation.sample_ids[t]
        rows.append(row)
        differs.append([False] * len(row))
        index.append((name, "explained", 0, name, math.nan))
        for side, ids, values in (
            ("supporter", explanation.ids[t], explanation.values[t]),
            ("opponent", explanation.opponent_ids[t], explanation.opponent_values[t]),
        ):
            for rank, (training_id, value) in enumerate(zip(ids, values, strict=True), 1):
                other = comparison.training.row(training_id)
                rows.append(other)
                differs.append(comparison.differs(row, other))
                index.append((name, side, rank, training_id, float(value)))
    names = comparison.training.names
    levels = pandas.MultiIndex.from_tuples(index, names=["sample", "side", "rank", "id", "value"])
    frame = pandas.DataFrame(rows, columns=list(names), index=levels)
    return Neighbours(frame, pandas.DataFrame(differs, columns=list(names), index=levels, dtype=bool))


def _cell(value: Any, differs: bool) -> str:
    text = html_text(shown(value))
    return f'<span style="{MARK}">{text}</span>' if differs else text
