"""The answer of ``suspects``: training samples with doubtful labels, as arrays, frames and pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from whence.answers.frames import (
    by_method,
    frame_cells,
    is_named,
    label_kind,
    named_classes,
    pluralised,
    rows_by_id,
    to_frame,
    write_parquet,
)
from whence.answers.views import view_of

__all__ = ["Suspects"]

#: What there is one of for each suspect.
BY_ROW = ("ids", "scores", "labels", "predictions", "is_suspect", "suggestions", "tag_scores")


@dataclass(frozen=True)
class Suspects:
    """Training samples whose given label is doubtful, the most doubtful first.

    Attributes
    ----------
    ids : array of shape (k,)
        Training ids.
    scores : array of shape (k,)
        How doubtful each label is; larger is more.
    score : str
        The score that ranks them.
    labels, predictions : array of shape (k,), (k, C) or (k, L)
        The given label, and what the model predicts: a class or value, or a row of ``C`` tags or values;
        along a sequence those of each position, with -1 (NaN among real values) where a position does not
        count.
    about : dict
        How they were computed: method, layer, loss, N, ...
    n_suspects : int or None
        How many of all ranked labels are wrong, by estimate. This and what follows is there where the
        score is ``"label_noise"``, and None elsewhere.
    interval : (int, int) or None
        An interval for it: what all models of label noise say, and their uncertainty.
    is_suspect : array of shape (k,), booleans, or None
        Whether a sample is among the first ``n_suspects`` of the ranking: where to stop.
    suggestions : array of shape (k,) or (k, C), or None
        The likeliest label apart from the given one.
    noise : array of shape (C, C), or (C, 2, 2) of tags, or None
        The share of the samples of each true class (row) that were given each label (column).
    tag_scores : array of shape (k, C), or None
        How doubtful each tag is, where samples have several, yes or no.
    """

    ids: np.ndarray
    scores: np.ndarray
    score: str
    labels: np.ndarray
    predictions: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)
    n_suspects: int | None = None
    interval: tuple[int, int] | None = None
    is_suspect: np.ndarray | None = None
    suggestions: np.ndarray | None = None
    noise: np.ndarray | None = None
    tag_scores: np.ndarray | None = None

    def __len__(self) -> int:
        """Return how many samples are listed."""
        return int(self.ids.shape[0])

    def __getitem__(self, key: Any) -> Suspects:
        """Return one suspect by its id, several by a list of ids, or a slice of the ranking."""
        rows = rows_by_id(key, self.ids, "suspects", "a listed sample")
        given = ((name, getattr(self, name)) for name in BY_ROW)
        return replace(self, **{name: value[rows] for name, value in given if value is not None})

    def __iter__(self) -> Iterator[Suspects]:
        """Iterate over the suspects, the most doubtful first."""
        return (self[place : place + 1] for place in range(len(self)))

    def __contains__(self, sample_id: Any) -> bool:
        return any(is_named(name, sample_id) for name in self.ids)

    def __repr__(self) -> str:
        found = f"Suspects: {pluralised(len(self), 'label')} ranked by {self.score}{by_method(self.about)}"
        return found if self.n_suspects is None else f"{found}; {self.estimate}"

    def _repr_html_(self) -> str:
        text: str = view_of("suspects", "notebook")(self)
        return text

    @property
    def label_kind(self) -> str:
        """The kind of predictions and labels: ``"class"``, ``"tags"`` (rows of 0 and 1) or ``"value"``."""
        return label_kind(self.about, self.predictions)

    @property
    def estimate(self) -> str:
        """How many labels are wrong, in words; empty where no model of label noise says it."""
        if self.n_suspects is None or self.interval is None:
            return ""
        lowest, highest = self.interval
        return f"about {self.n_suspects:,} of all labels are wrong ({lowest:,} to {highest:,})"

    def to_frame(self, library: str = "pandas") -> Any:
        """Return one row a suspect, as a data frame: ``id``, ``score``, ``label``, ``prediction``.

        Ranked by ``"label_noise"`` also ``is_suspect`` and ``suggestion``, the likeliest other label.

        Parameters
        ----------
        library : {"pandas", "polars"}, default="pandas"
        """
        return to_frame(self._columns(), library)

    def to_parquet(self, path: str | Path) -> Path:
        """Write the rows of :meth:`to_frame` to a Parquet file; see :meth:`Explanation.to_parquet`."""
        return write_parquet(self._columns(), self.about | {"score": self.score}, path)

    def _columns(self) -> dict[str, Any]:
        columns = {
            "id": frame_cells(self.ids),
            "score": self.scores,
            "label": frame_cells(named_classes(self.labels, self.about)),
            "prediction": frame_cells(named_classes(self.predictions, self.about)),
        }
        if self.is_suspect is None or self.suggestions is None:
            return columns
        suggested = named_classes(self.suggestions, self.about)
        return columns | {"is_suspect": self.is_suspect, "suggestion": frame_cells(suggested)}

    def save_html(
        self,
        path: str | Path,
        *,
        training_samples: Any = None,
        class_names: Sequence[str] | None = None,
        notes: Mapping[Any, str] | None = None,
        title: str = "Labels to look at first",
    ) -> Path:
        """Write a self-contained HTML page with the suspects as a table to sort, filter and export.

        Parameters
        ----------
        path : path
            The file to write. An older page of whence is replaced; any other file is left alone.
        training_samples : array, sequence or mapping, optional
            The training samples as a person should see them: in the order of the training set where ids
            are positions, else a mapping by id.
        class_names : sequence of str, optional
        notes : mapping, optional
            A few words on some training samples, by id, in a column of their own.
        title : str

        Returns
        -------
        Path
            The file.
        """
        page = view_of("suspects", "html")(
            self, training_samples=training_samples, class_names=class_names, notes=notes, title=title
        )
        return page.save(path)

    def plot(self, k: int = 20, *, class_names: Sequence[str] | None = None, ax: Any = None) -> Any:
        """Draw the scores of the first ``k`` suspects as bars.

        Parameters
        ----------
        k : int, default=20
        class_names : sequence of str, optional
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        matplotlib Axes
        """
        return view_of("suspects", "plot")(self, k, class_names=class_names, ax=ax)
