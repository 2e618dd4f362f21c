"""Figures of the measures in :mod:`whence.evaluation`, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from whence.arrays.base import import_extra
from whence.report.names import plain_line
from whence.report.plots import LITERAL, check_axes

__all__ = ["plot_agreement", "plot_detection", "plot_removal"]

#: Colours that stay apart for every kind of colour vision (Okabe and Ito).
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]


def plot_detection(curves: Mapping[str, Any], *, ax: Any = None) -> Any:
    """Draw how many wrong labels are found against how many were checked, a line a score.

    Parameters
    ----------
    curves : mapping
        From a score's name to a frame of :func:`whence.evaluation.detection_curve`, or to a list of
        them, one a seed: their mean is drawn, with the range that they span.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes
    """
    ax = _axes(ax)
    ax.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1, label="by chance")
    for number, (name, given) in enumerate(curves.items()):
        every = given if isinstance(given, list) else [given]
        found = np.stack([curve["found"].to_numpy() for curve in every])
        checked = every[0]["checked"].to_numpy()
        color = COLORS[number % len(COLORS)]
        ax.plot(checked, found.mean(axis=0), color=color, label=plain_line(name))
        if len(every) > 1:
            ends = found.min(axis=0), found.max(axis=0)
            ax.fill_between(checked, *ends, color=color, alpha=0.15, linewidth=0)
    ax.set_xlabel("share of the training set checked")
    ax.set_ylabel("share of wrong labels found")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    _legend(ax, loc="lower right")
    return ax


def plot_agreement(frame: Any, *, ax: Any = None) -> Any:
    """Draw predicted against actual changes, a point for each pair of samples.

    Parameters
    ----------
    frame : pandas.DataFrame
        From :func:`whence.evaluation.leave_one_out` or :func:`whence.evaluation.leave_group_out`.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    ax = _axes(ax)
    ax.scatter(frame["predicted"], frame["actual"], s=8, color=COLORS[0], alpha=0.5, linewidths=0)
    both = np.concatenate([frame["predicted"], frame["actual"]])
    ends = [both.min(), both.max()]
    ax.plot(ends, ends, color="0.5", linewidth=1, linestyle=":")
    ax.set_xlabel("predicted by the influence")
    ax.set_ylabel("actual, by training again")
    return ax


def plot_removal(frames: Mapping[str, Any], *, ax: Any = None) -> Any:
    """Draw how far predictions fall as their supporters are taken away, a line a method.

    Parameters
    ----------
    frames : mapping
        From a method's name to a frame of :func:`whence.evaluation.subset_removal`; means over the
        followed samples are drawn. Random subsets are those of the first.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    ax = _axes(ax)
    for number, (name, frame) in enumerate(frames.items()):
        falls = frame.groupby(["removed", "k"])["actual"].mean()
        if number == 0 and "random" in falls.index.get_level_values("removed"):
            ax.plot(falls["random"], color="0.5", linestyle=":", marker=".", label="at random")
        ax.plot(falls["supporters"], color=COLORS[number % len(COLORS)], marker=".", label=plain_line(name))
    ax.set_xlabel("training samples taken away")
    ax.set_ylabel("fall of what is asked, by training again")
    _legend(ax)
    return ax


def _legend(ax: Any, **options: Any) -> None:
    """Draw a legend; its texts are the user's: dollars are no formula."""
    for text in ax.legend(frameon=False, **options).get_texts():
        text.set(**LITERAL)


def _axes(ax: Any) -> Any:
    if ax is None:
        pyplot = import_extra("matplotlib.pyplot", "report")
        _, ax = pyplot.subplots(figsize=(5, 4), layout="constrained")
    check_axes(ax)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
