"""Answers as notebooks show them: small tables in the colours of the page that they stand on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from whence.answers.explanation import Explanation
from whence.answers.suspects import Suspects
from whence.answers.views import VIEWS
from whence.report.colors import AGAINST, FOR
from whence.report.labels import SCORE_NAMES, Wording
from whence.report.names import visible
from whence.report.numbers import number

__all__ = ["explanation_html", "html_table", "html_text", "suspects_html"]

#: Rows of a table, and training samples named in one of its cells.
ROWS_SHOWN = 10
SAMPLES_NAMED = 3
#: How many characters of a name are shown.
N_CHARACTERS = 60

# Text has the colour of the notebook, light or dark; only bars have colours of their own.
CELL = "text-align:left;vertical-align:top;padding:.3em .9em .3em 0"


@VIEWS.register("explanation:notebook")
def explanation_html(explanation: Explanation) -> str:
    """Return the first predictions of an explanation, each with its strongest training samples."""
    wording = Wording.of(explanation, None)
    heads = ["sample"] + ["position"] * (explanation.positions is not None) + ["predicted"]
    outputs = [wording.explained(explanation, t) for t in range(min(len(explanation), ROWS_SHOWN))]
    heads += ["label"] * (explanation.labels is not None) + ["explained"] * any(outputs)
    heads += [side[0].lower() + side[1:] for side in wording.sides()] + [
        "sum of all",
        "model's own",
    ]
    rows = []
    for t in range(len(outputs)):
        values = [*explanation.values[t, :SAMPLES_NAMED], *explanation.opponent_values[t, :SAMPLES_NAMED]]
        longest = float(np.abs(values).max(initial=0.0)) or 1.0
        cells = [html_text(explanation.sample_ids[t])]
        if explanation.positions is not None:
            cells.append(html_text(explanation.positions[t]))
        cells.append(html_text(wording.text(explanation.predictions[t])))
        if explanation.labels is not None:
            cells.append(html_text(wording.text(explanation.labels[t])))
        if any(outputs):
            cells.append(html_text(outputs[t] or wording.output(explanation.outputs[t])))
        for ids, of_side, labels in (
            (explanation.ids[t], explanation.values[t], explanation.training_labels[t]),
            (explanation.opponent_ids[t], explanation.opponent_values[t], explanation.opponent_labels[t]),
        ):
            named = list(zip(ids, of_side, labels, strict=True))[:SAMPLES_NAMED]
            cells.append("<br>".join(_contribution(*one, longest, wording) for one in named))
        cells += [number(explanation.totals[t], digits=2), number(explanation.pre_activations[t], digits=2)]
        rows.append(cells)
    return html_table(repr(explanation), heads, rows, len(explanation))


@VIEWS.register("suspects:notebook")
def suspects_html(suspects: Suspects) -> str:
    """Return the first suspects."""
    score = SCORE_NAMES.get(suspects.score, suspects.score)
    wording = Wording.of(suspects, None)
    rows = [
        [
            html_text(suspects.ids[rank]),
            html_text(wording.text(suspects.labels[rank])),
            html_text(wording.text(suspects.predictions[rank])),
            number(suspects.scores[rank], digits=2),
        ]
        for rank in range(min(len(suspects), ROWS_SHOWN))
    ]
    return html_table(repr(suspects), ["id", "given label", "model says", score], rows, len(suspects))


def _contribution(training_id: Any, value: float, label: Any, longest: float, wording: Wording) -> str:
    """Return one training sample: a bar, its value, its id and its label."""
    width = 2.5 * abs(float(value)) / longest
    bar = (
        f'<span style="display:inline-block;width:{width:.2f}em;height:.6em;margin-right:.4em;'
        f'background:{FOR if value >= 0 else AGAINST}"></span>'
    )
    return f"{bar}{number(value, sign=True)} {html_text(training_id)} ({html_text(wording.given(label))})"


def html_text(value: Any) -> str:
    """Return a text as HTML, cut and escaped."""
    text = visible(value)
    return escape(text if len(text) <= N_CHARACTERS else text[: N_CHARACTERS - 1] + "…")


def html_table(caption: str, heads: Iterable[str], rows: Sequence[Sequence[str]], n_all: int) -> str:
    """Return a table; its cells are HTML already, and dollars in them no formula of MathJax's."""
    more = f"; the first {len(rows)}" if len(rows) < n_all else ""
    head = "".join(
        f'<th scope="col" style="{CELL};font-weight:600">{html_text(name)}</th>' for name in heads
    )
    body = "".join(
        "<tr>" + "".join(f'<td style="{CELL}">{cell}</td>' for cell in cells) + "</tr>" for cells in rows
    )
    return (
        '<table class="tex2jax_ignore mathjax_ignore" '
        'style="color:inherit;background:none;border-collapse:collapse">'
        '<caption style="color:inherit;text-align:left;padding-bottom:.4em">'
        f"{escape(caption + more)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
