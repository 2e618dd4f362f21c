"""Figures of the answers, drawn by matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from whence._errors import WhenceError, described
from whence.answers.explanation import Explanation
from whence.answers.suspects import Suspects
from whence.answers.views import VIEWS
from whence.arrays.base import check_number, import_extra
from whence.report.colors import AGAINST, FOR
from whence.report.labels import SCORE_NAMES, Wording
from whence.report.names import plain_line, visible
from whence.report.pictures import Gallery
from whence.report.samples import checked_samples
from whence.report.tables import Rows, is_tabular, shown

__all__ = ["LITERAL", "check_axes", "plot_cumulative", "plot_explanation", "plot_suspects"]

#: Height of one bar without and with something to see beside it, and of a title and an axis, in inches.
BAR, TALL_BAR, FRAME = 0.38, 0.52, 1.3
#: Of texts of the user's: dollars are no formula, and nothing is set by TeX.
LITERAL: dict[str, Any] = {"parse_math": False, "usetex": False}
#: Height of the curve below the bars, in inches.
CURVE = 2.2
#: How much of a text, and how many values of a row and characters of each, stand beside a bar.
N_LINES, LINE_CHARACTERS, N_VALUES, N_VALUE_CHARACTERS = 2, 62, 5, 9


@VIEWS.register("explanation:plot")
def plot_explanation(
    explanation: Explanation,
    sample: int = 0,
    *,
    training_samples: Any = None,
    class_names: Sequence[str] | None = None,
    ax: Any = None,
) -> Any:
    """Draw one prediction's contributions; see :meth:`whence.Explanation.plot`."""
    check_number(sample, "sample", minimum=0, integer=True)
    if sample >= len(explanation):
        raise WhenceError("sample", f"a place below {len(explanation)}", str(sample), "They count from 0.")
    wording = Wording.of(explanation, class_names)
    # Strongest supporter at the top, strongest opponent at the bottom.
    values = np.concatenate([explanation.values[sample], explanation.opponent_values[sample][::-1]])
    ids = np.concatenate([explanation.ids[sample], explanation.opponent_ids[sample][::-1]])
    labels = np.concatenate(
        [explanation.training_labels[sample], explanation.opponent_labels[sample][::-1]]
    )
    names = [
        f"{training_id}, {wording.given(label)}" for training_id, label in zip(ids, labels, strict=True)
    ]
    seen = _seen(training_samples, ids)
    below = None
    if ax is None:
        ax, beside, below = _panels(len(values), seen, explanation.decomposes_prediction)
    else:
        beside = check_axes(ax)
    _bars(ax, values, names, [FOR if value >= 0 else AGAINST for value in values])
    ax.axvline(0, color="0.4", linewidth=0.8)
    ax.set_xlabel("contribution to the pre-activation" if explanation.decomposes_prediction else "score")
    ax.set_title(plain_line(_title(explanation, sample, wording)), loc="left", **LITERAL)
    _show_samples(beside, seen, 1.02 if beside is ax else 0.0)
    if below is not None:
        plot_cumulative(explanation[sample : sample + 1], ax=below)
    return ax


def _title(explanation: Explanation, sample: int, wording: Wording) -> str:
    """Return which prediction is drawn, and which output where that is not the predicted class."""
    position = "" if explanation.positions is None else f", position {explanation.positions[sample]}"
    output = wording.explained(explanation, sample)
    asked = f"; explained: {output}" if output else ""
    predicted = wording.text(explanation.predictions[sample])
    return f"Sample {explanation.sample_ids[sample]}{position}: predicted {predicted}{asked}"


@VIEWS.register("explanation:cumulative")
def plot_cumulative(explanation: Explanation, *, ax: Any = None) -> Any:
    """Draw how much of predictions is explained; see :meth:`whence.Explanation.plot_cumulative`."""
    if not explanation.decomposes_prediction:
        raise WhenceError(
            "explanation",
            "one whose values sum to a prediction",
            f"one by {explanation.about.get('method', 'an unknown method')}",
            "Explain by RepresenterPointLJE or RepresenterPointL2.",
        )
    ax = _axes(ax, 6)
    first = np.arange(explanation.ids.shape[1] + 1)
    sides = {"supporters": explanation.shares, "opponents": explanation.opponent_shares}
    lines = {name: _cumulated(shares) for name, shares in sides.items()}
    lines["both"] = lines["supporters"] + lines["opponents"]
    for (name, shares), color in zip(lines.items(), (FOR, AGAINST, "0.35"), strict=True):
        mean = np.nanmean(shares, axis=0) if np.isfinite(shares).any() else np.full(len(first), np.nan)
        style = ":" if name == "both" else "-"
        ax.plot(first, 100 * mean, color=color, linestyle=style, marker="o", markersize=3, label=name)
    ax.axhline(0, color="0.4", linewidth=0.8)
    ax.set_xlabel("first samples of either sign")
    ax.set_ylabel("% of the prediction" if len(explanation) == 1 else "% of the prediction, mean")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left")
    return ax


def _cumulated(shares: np.ndarray) -> np.ndarray:
    """Return the sums of the first shares, from none of them on, shape ``(T, k + 1)``."""
    return np.concatenate([np.zeros((len(shares), 1)), np.cumsum(shares, axis=1)], axis=1)


@VIEWS.register("suspects:plot")
def plot_suspects(
    suspects: Suspects, k: int = 20, *, class_names: Sequence[str] | None = None, ax: Any = None
) -> Any:
    """Draw the scores of the first suspects; see :meth:`whence.Suspects.plot`."""
    check_number(k, "k", minimum=1, integer=True)
    k = min(k, len(suspects))
    wording = Wording.of(suspects, class_names)
    names = [
        f"{sample_id}, {wording.given(label)}, model says {wording.text(said)}"
        for sample_id, label, said in zip(
            suspects.ids[:k], suspects.labels[:k], suspects.predictions[:k], strict=True
        )
    ]
    ax = _axes(ax, k)
    _bars(ax, suspects.scores[:k], names, [AGAINST] * k)
    score = SCORE_NAMES.get(suspects.score, suspects.score)
    ax.set_xlabel(plain_line(score), **LITERAL)
    ax.set_title("Labels to look at first", loc="left")
    if suspects.is_suspect is not None:
        n_wrong = int(suspects.is_suspect[:k].sum())
        if n_wrong < k:
            ax.axhline(n_wrong - 0.5, color=AGAINST, linestyle="--", linewidth=1)
        ax.annotate(
            suspects.estimate, (1, 1), xycoords="axes fraction", ha="right", va="bottom", fontsize=8
        )
    return ax


def check_axes(ax: Any) -> Any:
    """Return axes that were given, or raise if they are none."""
    if hasattr(ax, "barh") and hasattr(ax, "set_yticks"):
        return ax
    fix = "Pass one of those that matplotlib.pyplot.subplots() returns, or leave it out."
    raise WhenceError("ax", "Axes of matplotlib", described(ax), fix)


def _axes(ax: Any, n_bars: int) -> Any:
    """Return axes to draw on, those given or those of a new figure."""
    if ax is not None:
        return check_axes(ax)
    pyplot = import_extra("matplotlib.pyplot", "report")
    _, ax = pyplot.subplots(figsize=(7, FRAME + BAR * n_bars), layout="constrained")
    return ax


def _panels(n_bars: int, seen: Sequence[Any], has_curve: bool) -> tuple[Any, Any, Any]:
    """Return axes for the bars, for the samples beside them, and for the curve below or None."""
    pyplot = import_extra("matplotlib.pyplot", "report")
    kinds = {type(one) for one in seen}
    width = 0.0 if not seen else 0.6 if kinds == {np.ndarray} else 5.0
    heights = [FRAME + (TALL_BAR if seen else BAR) * n_bars] + [CURVE] * has_curve
    figure = pyplot.figure(figsize=(7 + width, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(
        len(heights), 2 if seen else 1, height_ratios=heights, width_ratios=[7, width] if seen else [1]
    )
    ax = figure.add_subplot(grid[0, 0])
    beside = figure.add_subplot(grid[0, 1], sharey=ax) if seen else ax
    below = figure.add_subplot(grid[1, 0]) if has_curve else None
    return ax, beside, below


def _bars(ax: Any, values: np.ndarray, names: list[str], colors: list[str]) -> None:
    places = np.arange(len(values))
    ax.barh(places, values, color=colors, height=0.6)
    ax.set_yticks(places)
    ax.set_yticklabels([plain_line(name) for name in names], **LITERAL)
    ax.set_ylim(len(values) - 0.5, -0.5)  # the first at the top
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _seen(training_samples: Any, ids: np.ndarray) -> list[Any]:
    """Return what is seen of each sample: pixels, a text, or a row by name. Nothing if none were given."""
    training_samples = checked_samples(training_samples, "training_samples")
    if training_samples is None:
        return []
    if is_tabular(training_samples):
        rows = Rows(training_samples, "training_samples")
        return [dict(zip(rows.names, map(shown, rows.row(one)), strict=True)) for one in ids]
    gallery = Gallery(training_samples, "training_samples")
    seen: list[Any] = []
    for one in ids:
        pixels, picture = gallery.pixels(one), None
        if pixels is None:
            picture = gallery.picture(one, "")
        if picture is not None:
            seen.append(picture.text if picture.kind == "text" else dict(picture.values))
        else:
            seen.append(pixels)
    return seen


def _show_samples(ax: Any, seen: Sequence[Any], left: float) -> None:
    """Draw samples in the rows of their bars, from ``left`` on, in shares of the width of the axes."""
    if not seen:
        return
    if left == 0.0:
        ax.set_axis_off()
    across = ax.get_yaxis_transform()
    if isinstance(seen[0], dict):
        _rows(ax, seen, left, across)
        return
    for place, one in enumerate(seen):
        if isinstance(one, str):
            text = " ".join(one.split())
            lines = textwrap.wrap(text, LINE_CHARACTERS, max_lines=N_LINES, placeholder=" …")
            _write(ax, left, place, "\n".join(lines), across)
        else:
            _thumbnail(ax, one, left + 0.02, place, across)


def _rows(ax: Any, rows: Sequence[dict[str, str]], left: float, across: Any) -> None:
    """Draw rows as one table, its columns named above the first bar."""
    names = list(rows[0])[:N_VALUES]
    step = 1.0 / (len(names) + (len(rows[0]) > N_VALUES))
    for column, name in enumerate(names):
        x = left + column * step
        _write(ax, x, -0.75, _short(name), across, weight="bold")
        for place, row in enumerate(rows):
            _write(ax, x, place, _short(row.get(name, "")), across)
    if len(rows[0]) > N_VALUES:
        _write(ax, left + len(names) * step, -0.75, f"+ {len(rows[0]) - N_VALUES}", across)


def _short(text: str) -> str:
    return text if len(text) <= N_VALUE_CHARACTERS else text[: N_VALUE_CHARACTERS - 1] + "…"


def _write(ax: Any, x: float, y: float, text: str, transform: Any, **style: Any) -> None:
    ax.text(
        x,
        y,
        visible(text, "\n"),
        transform=transform,
        va="center",
        fontsize=8,
        clip_on=False,
        **LITERAL,
        **style,
    )


def _thumbnail(ax: Any, pixels: np.ndarray, x: float, y: float, transform: Any) -> None:
    offsetbox = import_extra("matplotlib.offsetbox", "report")
    image = offsetbox.OffsetImage(pixels, zoom=24 / max(pixels.shape[:2]), cmap="gray")
    image.image.set_clim(0, 255)
    box = offsetbox.AnnotationBbox(
        image, (x, y), xycoords=transform, frameon=False, annotation_clip=False, box_alignment=(0, 0.5)
    )
    ax.add_artist(box)
