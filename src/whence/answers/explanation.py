"""The answer of ``explain``: the training samples behind predictions, as arrays, frames and pages."""

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
from whence.answers.suspects import Suspects
from whence.answers.views import view_of

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation:
    """The training samples that speak most for and most against some predictions.

    ``T`` predictions are explained by the ``k`` strongest training samples of either sign. Positive
    values speak for the class in question, negative against it; summed over the whole training set they
    give ``totals``.

    ``explanation[id]`` is the explanation of one sample, ``explanation[[id, id]]`` of some, and
    ``explanation[2:5]`` of those in these places.

    Where the layer is applied along a sequence and the mean over positions is explained, a sample has an
    output, a sign, a prediction and a label for each of ``L`` positions: these arrays get another axis,
    ``(T, L)`` or ``(T, k, L)``, with -1 (NaN among real values) where a position does not count.

    Where each of ``C`` outputs says yes or no by itself (multi-label), predictions and labels are rows of
    0 and 1; where a regression has ``C > 1`` outputs, they are rows of values: they get a last axis of
    length ``C``.

    Attributes
    ----------
    ids, values : array of shape (T, k)
        The strongest supporters, strongest first: training ids, and how much each adds.
    opponent_ids, opponent_values : array of shape (T, k)
        The strongest opponents, strongest first.
    sample_ids : array of shape (T,)
        The explained samples.
    outputs : array of shape (T,), integers
        Which output of the layer is decomposed.
    signs : array of shape (T,)
        ``-1`` where the values were turned so that positive speaks for the predicted class 0 of a
        single output, else ``1``.
    predictions : array of shape (T,) or (T, C)
        Predicted class, tags of 0 and 1, or predicted values. Classes are numbers from 0, in the order of
        the outputs, here and in labels; ``about["class_names"]`` are the model's own names for them, where
        it has others. Frames and pages give those.
    labels : array of shape (T,) or (T, C), or None
        Given labels of the explained samples, if there were any.
    pre_activations : array of shape (T,)
        The model's own pre-activation of the output, turned like the values.
    totals : array of shape (T,)
        The sum of the values over all training samples.
    training_labels, opponent_labels : array of shape (T, k) or (T, k, C)
        Given labels of the training samples named.
    about : dict
        How it was computed: method, layer, loss, N, damping, ...
    positions : array of shape (T,) or None
        Which position of each sample is explained; ``None`` where that is the sample as a whole.

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> explanation = Explanation(
    ...     ids=np.asarray([[7]]), values=2 * one, opponent_ids=np.asarray([[4]]), opponent_values=-one,
    ...     sample_ids=np.asarray([0]), outputs=np.asarray([1]), signs=np.ones(1),
    ...     predictions=np.asarray([1]), labels=None, pre_activations=np.ones(1), totals=np.ones(1),
    ...     training_labels=np.asarray([[1]]), opponent_labels=np.asarray([[0]]),
    ... )
    >>> explanation
    Explanation of 1 prediction by the 1 strongest training samples of either sign
    >>> explanation[0].opponent_ids.tolist()
    [[4]]
    >>> explanation[3]
    Traceback (most recent call last):
        ...
    whence._errors.WhenceError: explanation[3]: expected the id of an explained sample, got one that is
    not there. The ids are 0.
    """

    ids: np.ndarray
    values: np.ndarray
    opponent_ids: np.ndarray
    opponent_values: np.ndarray
    sample_ids: np.ndarray
    outputs: np.ndarray
    signs: np.ndarray
    predictions: np.ndarray
    labels: np.ndarray | None
    pre_activations: np.ndarray
    totals: np.ndarray
    training_labels: np.ndarray
    opponent_labels: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)
    positions: np.ndarray | None = None

    def __len__(self) -> int:
        """Return how many predictions are explained."""
        return int(self.ids.shape[0])

    def __getitem__(self, key: Any) -> Explanation:
        """Return the explanation of a sample by its id, of several by a list, or of a slice of places."""
        rows = rows_by_id(key, self.sample_ids, "explanation", "an explained sample")
        arrays = {n: v for n, v in vars(self).items() if n != "about" and v is not None}
        return replace(self, **{name: array[rows] for name, array in arrays.items()})

    def __iter__(self) -> Iterator[Explanation]:
        """Iterate over explanations of one sample each."""
        return (self[place : place + 1] for place in range(len(self)))

    def __contains__(self, sample_id: Any) -> bool:
        return any(is_named(name, sample_id) for name in self.sample_ids)

    def __repr__(self) -> str:
        return (
            f"Explanation of {pluralised(len(self), 'prediction')} by the {self.ids.shape[1]} strongest "
            f"training samples of either sign{by_method(self.about)}"
        )

    def _repr_html_(self) -> str:
        text: str = view_of("explanation", "notebook")(self)
        return text

    @property
    def decomposes_prediction(self) -> bool:
        """Whether the values of all training samples sum to a prediction, so that each has a share in it.

        So it is for local Jacobian expansion and for representer points; influences and similarities
        sum to nothing of interest.
        """
        return bool(self.about.get("decomposes_prediction", False))

    @property
    def label_kind(self) -> str:
        """The kind of predictions and labels: ``"class"``, ``"tags"`` (rows of 0 and 1) or ``"value"``."""
        return label_kind(self.about, self.predictions)

    @property
    def shares(self) -> np.ndarray:
        """The supporters' values over the size of the sum of all values, ``value / |total|``, ``(T, k)``.

        NaN where that sum is zero, or is not a prediction.
        """
        return self._shares(self.values)

    @property
    def opponent_shares(self) -> np.ndarray:
        """The same of the opponents, shape ``(T, k)``."""
        return self._shares(self.opponent_values)

    def _shares(self, values: np.ndarray) -> np.ndarray:
        size = np.abs(np.asarray(self.totals, dtype=np.float64))[:, None]
        is_known = np.broadcast_to((size > 0) & self.decomposes_prediction, values.shape)
        return np.divide(values, size, where=is_known, out=np.full(values.shape, np.nan))

    def to_frame(self, library: str = "pandas") -> Any:
        """Return one row for each explained sample and training sample, as a data frame.

        Columns: ``sample``, ``position`` (if single positions are explained), ``prediction``, ``label``
        (if given), ``output``, ``side`` (``supporter`` or ``opponent``), ``rank`` (from 1),
        ``training_id``, ``training_label``, ``value``, ``share`` (see :attr:`shares`). Tags, values of
        several outputs and labels along a sequence are lists.

        Parameters
        ----------
        library : {"pandas", "polars"}, default="pandas"
            Whose ``DataFrame`` to return.

        Raises
        ------
        MissingExtraError
            If it is not installed.
        """
        return to_frame(self._columns(), library)

    def to_parquet(self, path: str | Path) -> Path:
        """Write the rows of :meth:`to_frame` to a Parquet file; :attr:`about` is in its metadata.

        Parameters
        ----------
        path : path
            The file to write. An older one that whence wrote is replaced; any other is left alone.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        MissingExtraError
            If pyarrow is not installed.
        WhenceError
            If the file cannot be written there, or another one would be lost.
        """
        return write_parquet(self._columns(), self.about, path)

    def _columns(self) -> dict[str, Any]:
        n_samples, k = self.ids.shape

        def each(values: np.ndarray) -> Any:
            return frame_cells(np.repeat(values, 2 * k, axis=0))

        def both(supporters: np.ndarray, opponents: np.ndarray) -> Any:
            joined = np.concatenate([supporters, opponents], axis=1)
            return frame_cells(joined.reshape(2 * n_samples * k, *joined.shape[2:]))

        columns = {"sample": each(self.sample_ids)}
        if self.positions is not None:
            columns["position"] = each(self.positions)
        columns["prediction"] = each(named_classes(self.predictions, self.about))
        if self.labels is not None:
            columns["label"] = each(named_classes(self.labels, self.about))
        sides = np.repeat(np.asarray(["supporter", "opponent"], dtype=object), k)
        return columns | {
            "output": each(self.outputs),
            "side": frame_cells(np.tile(sides, n_samples)),
            "rank": np.tile(np.arange(1, k + 1), 2 * n_samples),
            "training_id": both(self.ids, self.opponent_ids),
            "training_label": both(
                *(named_classes(some, self.about) for some in (self.training_labels, self.opponent_labels))
            ),
            "value": both(self.values, self.opponent_values),
            "share": both(self.shares, self.opponent_shares),
        }

    def neighbours(
        self,
        samples: Any,
        training_samples: Any,
        *,
        column_names: Sequence[str] | None = None,
        tolerance: float = 0.1,
    ) -> Any:
        """Return the explained rows of a table side by side with their neighbours.

        Parameters
        ----------
        samples : frame, array, sparse matrix, or rows as dicts
            The explained rows, in their order.
        training_samples : frame, array, sparse matrix, or rows as dicts
            Those of the training set: a pandas frame with the ids as its index, a mapping by id, or a table
            in the order of the training set where ids are positions.
        column_names : sequence of str, optional
            The columns of arrays; numbers by default.
        tolerance : float, default=0.1
            Numbers with a fraction differ where they are further apart than this share of their column's
            standard deviation in the training samples; everything else where it is not the same.

        Returns
        -------
        Neighbours
            ``frame`` with the rows and ``differs`` with truth values of the same form, both of pandas.

        Raises
        ------
        MissingExtraError
            If pandas is not installed.
        WhenceError
            If the tables have other columns than each other, or no row of an id.
        """
        return view_of("explanation", "neighbours")(
            self, samples, training_samples, column_names=column_names, tolerance=tolerance
        )

    def save_html(
        self,
        path: str | Path,
        *,
        samples: Any = None,
        training_samples: Any = None,
        class_names: Sequence[str] | None = None,
        column_names: Sequence[str] | None = None,
        suspects: Suspects | None = None,
        notes: Mapping[Any, str] | None = None,
        title: str = "Where these predictions come from",
    ) -> Path:
        """Write a self-contained HTML page: each prediction with its supporters and opponents.

        Parameters
        ----------
        path : path
            The file to write. An older page of whence is replaced; any other file is left alone.
        samples : array, sequence or mapping, optional
            The explained samples as a person should see them, in their order, or a mapping by id: texts are
            shown as text, images as images, rows as their values. Without it, ids have to do.
        training_samples : array, sequence or mapping, optional
            The training samples likewise: in the order of the training set where ids are positions, else a
            mapping by id. Where both are tables (frames, arrays of rows, dicts of
            values), each prediction is shown side by side with its neighbours; see :meth:`neighbours`.
        class_names : sequence of str, optional
        column_names : sequence of str, optional
            The columns of arrays of rows.
        suspects : Suspects, optional
            Doubtful labels of the same training set, as a table below the predictions.
        notes : mapping, optional
            A few words on some training samples, by id, set apart as marks.
        title : str

        Returns
        -------
        Path
            The file.

        Raises
        ------
        MissingExtraError
            If jinja2 is not installed.
        WhenceError
            If the file cannot be written there, another one would be lost, or there is no sample of an id.
        """
        page = view_of("explanation", "html")(
            self,
            samples=samples,
            training_samples=training_samples,
            class_names=class_names,
            column_names=column_names,
            suspects=suspects,
            notes=notes,
            title=title,
        )
        return page.save(path)

    def plot(
        self,
        sample: int = 0,
        *,
        training_samples: Any = None,
        class_names: Sequence[str] | None = None,
        ax: Any = None,
    ) -> Any:
        """Draw the supporters and opponents of one prediction as signed bars.

        In a figure of its own, the share of the prediction that the first of them explain is drawn below;
        see :meth:`plot_cumulative`.

        Parameters
        ----------
        sample : int, default=0
            Which prediction, by its place in the explanation. By its id: ``explanation[id].plot()``.
        training_samples : array, sequence, frame or mapping, optional
            As for :meth:`save_html`; beside the bars stand images, texts, or the first values of rows.
        class_names : sequence of str, optional
        ax : matplotlib Axes, optional
            Where to draw the bars; a new figure by default.

        Returns
        -------
        matplotlib Axes
            That of the bars.
        """
        return view_of("explanation", "plot")(
            self, sample, training_samples=training_samples, class_names=class_names, ax=ax
        )

    def plot_cumulative(self, *, ax: Any = None) -> Any:
        """Draw the share of the prediction that the first 1, 2, ... k supporters and opponents explain.

        Shares are :attr:`shares`, summed from the strongest on; of several predictions the mean is drawn.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        WhenceError
            If the values do not sum to a prediction; see :attr:`decomposes_prediction`.
        """
        return view_of("explanation", "cumulative")(self, ax=ax)

    def view(self, name: str, **options: Any) -> Any:
        """Draw the explanation by a view of its name: those that methods have, and those that are added.

        Parameters
        ----------
        name : str
            ``"html"``, ``"plot"``, ``"cumulative"``, ``"neighbours"``, ``"notebook"``, or one of your own,
            registered as ``whence.answers.views.VIEWS.register("explanation:name")``.
        **options
            As the view takes them.

        Raises
        ------
        WhenceError
            If there is no view of that name.
        """
        return view_of("explanation", name)(self, **options)
