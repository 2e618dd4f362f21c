"""What ``explain`` and ``suspects`` return: ids, values, labels, as arrays and as frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from whence._arrays import import_extra

__all__ = ["Explanation", "Suspects"]


@dataclass(frozen=True)
class Explanation:
    """The training samples that speak most for and most against some predictions.

    ``T`` predictions are explained by the ``k`` strongest training samples of either sign. Positive
    values speak for the class in question, negative against it; summed over the whole training set they
    give ``totals``.

    Where the layer is applied along a sequence and the mean over positions is explained, a sample has an
    output, a sign, a prediction and a label for each of ``L`` positions: these arrays get another axis,
    ``(T, L)`` or ``(T, k, L)``, with -1 (NaN among real values) where a position does not count.

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
    predictions : array of shape (T,)
        Predicted class, or predicted value for regression.
    labels : array of shape (T,) or None
        Given labels of the explained samples, if there were any.
    pre_activations : array of shape (T,)
        The model's own pre-activation of the output, turned like the values.
    totals : array of shape (T,)
        The sum of the values over all training samples.
    training_labels, opponent_labels : array of shape (T, k)
        Given labels of the training samples named.
    about : dict
        What was computed and how: method, layer, loss, N, damping, ...

    Examples
    --------
    >>> one = np.ones((1, 1))
    >>> explanation = Explanation(
    ...     ids=np.asarray([[7]]), values=2 * one, opponent_ids=np.asarray([[4]]), opponent_values=-one,
    ...     sample_ids=np.asarray([0]), outputs=np.asarray([1]), signs=np.ones(1),
    ...     predictions=np.asarray([1]), labels=None, pre_activations=np.ones(1), totals=np.ones(1),
    ...     training_labels=np.asarray([[1]]), opponent_labels=np.asarray([[0]]),
    ... )
    >>> len(explanation)
    1
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

    def __len__(self) -> int:
        """Return how many predictions are explained."""
        return int(self.ids.shape[0])

    def to_frame(self) -> Any:
        """Return one row for each explained sample and training sample, as a pandas DataFrame.

        Columns: ``sample``, ``prediction``, ``label`` (if given), ``output``, ``side`` (``supporter`` or
        ``opponent``), ``rank`` (from 1), ``training_id``, ``training_label``, ``value``.

        Raises
        ------
        MissingExtraError
            If pandas is not installed.
        """
        pandas = import_extra("pandas", "report")
        frames = []
        for side, ids, values, labels in (
            ("supporter", self.ids, self.values, self.training_labels),
            ("opponent", self.opponent_ids, self.opponent_values, self.opponent_labels),
        ):
            k = ids.shape[1]
            columns: dict[str, Any] = {
                "sample": np.repeat(self.sample_ids, k),
                "prediction": _cells(np.repeat(self.predictions, k, axis=0)),
            }
            if self.labels is not None:
                columns["label"] = _cells(np.repeat(self.labels, k, axis=0))
            columns |= {
                "output": _cells(np.repeat(self.outputs, k, axis=0)),
                "side": side,
                "rank": np.tile(np.arange(1, k + 1), len(self)),
                "training_id": ids.ravel(),
                "training_label": _cells(labels.reshape(ids.size, *labels.shape[2:])),
                "value": values.ravel(),
            }
            frames.append(pandas.DataFrame(columns))
        order = np.repeat(np.arange(len(self)), self.ids.shape[1])
        both = pandas.concat(frames, ignore_index=True)
        return both.iloc[np.argsort(np.tile(order, 2), kind="stable")].reset_index(drop=True)

    def save_html(
        self,
        path: str | Path,
        *,
        samples: Any = None,
        training_samples: Any = None,
        class_names: Sequence[str] | None = None,
        title: str = "Where these predictions come from",
    ) -> Path:
        """Write a self-contained HTML page: each prediction with its supporters and opponents.

        Parameters
        ----------
        path : path
            The file to write. An existing one is replaced.
        samples : array, sequence or mapping, optional
            What to show of the explained samples, in their order, or a mapping by id. Texts are shown as
            text, images as images, rows as their values; without it, ids have to do.
        training_samples : array, sequence or mapping, optional
            What to show of the training samples: in the order of the training set where ids are
            positions, else a mapping by id.
        class_names : sequence of str, optional
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
            If the file cannot be written there, or there is no sample of an id.
        """
        from whence.report.html import explanation_page  # a page is only made of answers that ask for it

        page = explanation_page(
            self, samples=samples, training_samples=training_samples, class_names=class_names, title=title
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

        Parameters
        ----------
        sample : int, default=0
            Which prediction, by its place in the explanation.
        training_samples : array, sequence or mapping, optional
            As for :meth:`save_html`; images are drawn beside their bars.
        class_names : sequence of str, optional
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        matplotlib Axes
        """
        from whence.report.plots import plot_explanation

        return plot_explanation(
            self, sample, training_samples=training_samples, class_names=class_names, ax=ax
        )


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
        What they were ranked by.
    labels, predictions : array of shape (k,) or (k, L)
        The given label, and what the model predicts; along a sequence those of each position, with -1
        (NaN among real values) where a position does not count.
    about : dict
        What was computed and how.
    """

    ids: np.ndarray
    scores: np.ndarray
    score: str
    labels: np.ndarray
    predictions: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return how many samples are listed."""
        return int(self.ids.shape[0])

    def to_frame(self) -> Any:
        """Return one row a suspect, as a pandas DataFrame: ``id``, ``score``, ``label``, ``prediction``."""
        pandas = import_extra("pandas", "report")
        return pandas.DataFrame(
            {
                "id": self.ids,
                "score": self.scores,
                "label": _cells(self.labels),
                "prediction": _cells(self.predictions),
            }
        )

    def save_html(
        self,
        path: str | Path,
        *,
        training_samples: Any = None,
        class_names: Sequence[str] | None = None,
        title: str = "Labels to look at first",
    ) -> Path:
        """Write a self-contained HTML page with the suspects as a table.

        Parameters
        ----------
        path : path
            The file to write. An existing one is replaced.
        training_samples : array, sequence or mapping, optional
            What to show of the training samples: in the order of the training set where ids are
            positions, else a mapping by id.
        class_names : sequence of str, optional
        title : str

        Returns
        -------
        Path
            The file.
        """
        from whence.report.html import suspects_page

        page = suspects_page(self, training_samples=training_samples, class_names=class_names, title=title)
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
        from whence.report.plots import plot_suspects

        return plot_suspects(self, k, class_names=class_names, ax=ax)


def _cells(values: np.ndarray) -> Any:
    """Return one cell of a frame for each row: a number, or the list of those of all positions."""
    return values if values.ndim == 1 else values.tolist()
