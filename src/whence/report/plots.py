"""Figures of the answers, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from whence._arrays import check_number, import_extra
from whence._errors import WhenceError
from whence.report.labels import SCORE_NAMES, label_text
from whence.report.pictures import Gallery

if TYPE_CHECKING:
    from whence.explanation import Explanation
    from whence.suspects import Suspects

__all__ = ["plot_explanation", "plot_suspects"]

#: Blue and orange that stay apart for every kind of colour vision.
FOR, AGAINST = "#1f6f8b", "#c8662b"
#: Height of one bar, and of a title and an axis, in inches.
BAR, FRAME = 0.38, 1.3


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
    # Strongest supporter at the top, strongest opponent at the bottom.
    values = np.concatenate([explanation.values[sample], explanation.opponent_values[sample][::-1]])
    ids = np.concatenate([explanation.ids[sample], explanation.opponent_ids[sample][::-1]])
    labels = np.concatenate(
        [explanation.training_labels[sample], explanation.opponent_labels[sample][::-1]]
    )
    names = [
        f"{training_id}, labelled {label_text(label, class_names)}"
        for training_id, label in zip(ids, labels, strict=True)
    ]
    ax = _axes(ax, len(values))
    _bars(ax, values, names, [FOR if value >= 0 else AGAINST for value in values])
    ax.axvline(0, color="0.4", linewidth=0.8)
    ax.set_xlabel("contribution to the pre-activation")
    prediction = label_text(explanation.predictions[sample], class_names)
    ax.set_title(f"Sample {explanation.sample_ids[sample]}: predicted {prediction}", loc="left")
    _thumbnails(ax, Gallery(training_samples, "training_samples"), ids)
    return ax


def plot_suspects(
    suspects: Suspects, k: int = 20, *, class_names: Sequence[str] | None = None, ax: Any = None
) -> Any:
    """Draw the scores of the first suspects; see :meth:`whence.Suspects.plot`."""
    check_number(k, "k", minimum=1, integer=True)
    k = min(k, len(suspects))
    names = [
        f"{sample_id}, labelled {label_text(label, class_names)}, "
        f"model says {label_text(said, class_names)}"
        for sample_id, label, said in zip(
            suspects.ids[:k], suspects.labels[:k], suspects.predictions[:k], strict=True
        )
    ]
    ax = _axes(ax, k)
    _bars(ax, suspects.scores[:k], names, [AGAINST] * k)
    score = SCORE_NAMES.get(suspects.score, suspects.score)
    ax.set_xlabel(score)
    ax.set_title("Labels to look at first", loc="left")
    return ax


def _axes(ax: Any, n_bars: int) -> Any:
    """Return axes to draw on, those given or those of a new figure."""
    if ax is not None:
        return ax
    pyplot = import_extra("matplotlib.pyplot", "report")
    _, ax = pyplot.subplots(figsize=(7, FRAME + BAR * n_bars), layout="constrained")
    return ax


def _bars(ax: Any, values: np.ndarray, names: list[str], colors: list[str]) -> None:
    places = np.arange(len(values))
    ax.barh(places, values, color=colors, height=0.6)
    ax.set_yticks(places, names)
    ax.set_ylim(len(values) - 0.5, -0.5)  # the first at the top
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _thumbnails(ax: Any, gallery: Gallery, ids: np.ndarray) -> None:
    """Draw the images among the samples at the right end of their bars' rows."""
    offsetbox = import_extra("matplotlib.offsetbox", "report")
    for place, training_id in enumerate(ids):
        pixels = gallery.pixels(training_id)
        if pixels is None:
            continue
        image = offsetbox.OffsetImage(pixels, zoom=22 / max(pixels.shape[:2]), cmap="gray")
        image.image.set_clim(0, 255)
        at_end = ax.get_yaxis_transform()
        box = offsetbox.AnnotationBbox(
            image, (1.04, place), xycoords=at_end, frameon=False, annotation_clip=False
        )
        ax.add_artist(box)
