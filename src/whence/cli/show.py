"""Results as a person reads them on a terminal, and as a program reads them."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
from rich.table import Table

from whence._version import __version__
from whence.answers.explanation import Explanation
from whence.answers.suspects import Suspects
from whence.cli.asking import Answer
from whence.cli.indexing import Indexed
from whence.cli.terminal import Terminal
from whence.report.html import how_to_read
from whence.report.labels import Wording
from whence.report.numbers import number, percentage

__all__ = ["print_explanation", "print_index", "print_json", "print_suspects"]

#: Samples that are printed; all are in the report and in JSON.
N_PRINTED = 10
#: The longest bar beside a value.
BAR_WIDTH = 12


def print_json(content: dict[str, Any]) -> None:
    """Write one JSON document to stdout; what is no number becomes null."""
    whole = _plain({"schema": 1, "whence": __version__, **content})
    text = json.dumps(whole, allow_nan=False, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:  # the same document, its letters as escapes
        text = json.dumps(whole, allow_nan=False)
    print(text)


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


# ------------------------------------------------------------------------------------------ index


def index_content(folder: Any, indexed: Indexed, seconds: float) -> dict[str, Any]:
    """Return what ``whence index`` says of an index."""
    return {
        "command": "index",
        "index": str(folder),
        "n_samples": indexed.method.index.n_samples,
        "classes": indexed.form.classes,
        "agreement": indexed.agreement,
        "about": indexed.method.about(),
        "seconds": round(seconds, 3),
    }


def print_index(content: dict[str, Any], runs_code: bool) -> None:
    """Print what was indexed, and what to do next."""
    terminal, about, folder = Terminal(), content["about"], content["index"]
    terminal.line(
        (f"{content['n_samples']:,} samples", "bold"),
        f" indexed in {folder} after {content['seconds']:.1f} s: layer {about['layer']}, "
        f"{about['n_features']:,} features × {about['n_outputs']:,} outputs, loss {about['loss']}.",
    )
    if content["classes"] is not None:
        terminal.line(f"Classes, in the order of the outputs: {', '.join(content['classes'])}.")
    if content["agreement"] is not None:
        terminal.line(f"The model predicts {percentage(content['agreement'], sign=False)} of the labels.")
    trust = " --trust-model" if runs_code else ""
    terminal.line((f"Next: whence explain {folder} SAMPLES{trust}, or whence suspects {folder}", "dim"))


# ---------------------------------------------------------------------------------------- explain


def explanation_content(answer: Answer) -> dict[str, Any]:
    """Return an explanation as JSON has it."""
    found: Explanation = answer.found
    predictions = []
    for t in range(len(found)):
        predictions.append(
            {
                "id": found.sample_ids[t],
                "prediction": found.predictions[t],
                "label": None if found.labels is None else found.labels[t],
                "output": found.outputs[t],
                "pre_activation": found.pre_activations[t],
                "total": found.totals[t],
                "supporters": _contributions(found.ids[t], found.training_labels[t], found.values[t]),
                "opponents": _contributions(
                    found.opponent_ids[t], found.opponent_labels[t], found.opponent_values[t]
                ),
            }
        )
    return {
        "command": "explain",
        "classes": answer.class_names,
        "report": None if answer.report is None else str(answer.report.resolve()),
        "about": found.about,
        "predictions": predictions,
    }


def _contributions(ids: Any, labels: Any, values: Any) -> list[dict[str, Any]]:
    return [
        {"id": i, "label": label, "value": value}
        for i, label, value in zip(ids, labels, values, strict=True)
    ]


def print_explanation(answer: Answer) -> None:
    """Print the supporters and opponents of the first predictions."""
    terminal, found = Terminal(), answer.found
    wording = Wording.of(found, answer.class_names)
    for t in range(min(len(found), N_PRINTED)):
        terminal.line(*_prediction_line(found, t, wording))
        terminal.table(_prediction_table(terminal, found, t, wording))
        terminal.line()
    left = len(found) - N_PRINTED
    if left > 0:
        rest = "is in the report" if answer.report else "goes into --report FILE and --json"
        terminal.line((f"… and {left:,} more: everything {rest}.", "dim"))
    terminal.line((how_to_read(found, briefly=True), "dim"))
    _print_report(terminal, answer)


def _prediction_line(found: Explanation, t: int, wording: Wording) -> list[tuple[str, str | None]]:
    predicted = wording.text(found.predictions[t])
    parts: list[tuple[str, str | None]] = [
        (f"{found.sample_ids[t]}", "bold"),
        (": predicted ", None),
        (predicted, "bold"),
    ]
    if found.labels is not None:
        is_other = wording.text(found.labels[t]) != predicted
        parts.append((f", {wording.given(found.labels[t])}", "yellow" if is_other else None))
    output = wording.explained(found, t)
    if output:
        parts.append((f"; explained: {output}", None))
    sums = f"; sum of all values {number(found.totals[t], digits=2)}, "
    own = f"model's own {number(found.pre_activations[t], digits=2)}"
    return [*parts, ((sums if found.decomposes_prediction else "; ") + own, "dim")]


def _prediction_table(terminal: Terminal, found: Explanation, t: int, wording: Wording) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, width=BAR_WIDTH)
    table.add_column("training sample", overflow="fold")
    table.add_column(wording.word, overflow="fold")
    every = np.concatenate([found.values[t], found.opponent_values[t]])
    longest = float(np.abs(every).max(initial=0.0)) or 1.0
    for ids, labels, values, color in (
        (found.ids[t], found.training_labels[t], found.values[t], "green"),
        (found.opponent_ids[t], found.opponent_labels[t], found.opponent_values[t], "red"),
    ):
        for training_id, label, value in zip(ids, labels, values, strict=True):
            bar = "█" * max(1, round(BAR_WIDTH * abs(float(value)) / longest))
            texts = (number(value, sign=True), (bar, color), str(training_id), wording.text(label))
            table.add_row(*(terminal.text(text) for text in texts))
    return table


# --------------------------------------------------------------------------------------- suspects


def suspects_content(answer: Answer) -> dict[str, Any]:
    """Return suspects as JSON has them."""
    found: Suspects = answer.found
    listed = [
        {
            "rank": rank + 1,
            "id": found.ids[rank],
            "score": found.scores[rank],
            "label": found.labels[rank],
            "prediction": found.predictions[rank],
        }
        for rank in range(len(found))
    ]
    return {
        "command": "suspects",
        "score": found.score,
        "n_suspects": found.n_suspects,
        "interval": found.interval,
        "classes": answer.class_names,
        "report": None if answer.report is None else str(answer.report.resolve()),
        "about": found.about,
        "suspects": listed,
    }


def print_suspects(answer: Answer) -> None:
    """Print the ranked labels."""
    terminal, found = Terminal(), answer.found
    wording = Wording.of(found, answer.class_names)
    first = f"The {len(found):,} of {found.about['n_samples']:,} labels to look at first"
    terminal.line((f"{first}, by {found.score.replace('_', '-')}:", "bold"))
    if found.n_suspects is not None:
        terminal.line((f"{found.estimate[0].upper()}{found.estimate[1:]}.", "dim"))
    table = Table(box=None, pad_edge=False)
    for heading in ("", "score"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("training sample", wording.word, "model says"):
        table.add_column(heading, overflow="fold")
    for rank in range(len(found)):
        given, said = (wording.text(one[rank]) for one in (found.labels, found.predictions))
        table.add_row(
            terminal.text(str(rank + 1)),
            terminal.text(number(found.scores[rank], digits=2)),
            terminal.text(str(found.ids[rank])),
            terminal.text(given),
            terminal.text((said, None if said == given else "yellow")),
        )
    terminal.table(table)
    terminal.line()
    terminal.line(("Rare but right samples are doubtful too: look before you correct.", "dim"))
    _print_report(terminal, answer)


def _print_report(terminal: Terminal, answer: Answer) -> None:
    if answer.report is not None:
        terminal.line(f"Report: {answer.report.resolve()}", wrap=False)


# ------------------------------------------------------------------------------------------- demo


def print_demo(result: Any) -> None:
    """Print what the demo found."""
    from whence.demo.report import CHECKED, DEMO_SCORES

    terminal, gaps = Terminal(), result.completeness
    table = Table(
        title=f"Wrong labels found, of {result.n_wrong} among {result.n_training:,} training images",
        title_justify="left",
    )
    table.add_column("ranked by")
    for share, n_checked in zip(CHECKED, result.n_checked, strict=True):
        table.add_column(f"first {share:.0%}\n({n_checked})", justify="right")
    for score, name in DEMO_SCORES.items():
        table.add_row(name, *(f"{n} ({n / result.n_wrong:.0%})" for n in result.found[score]))
    terminal.line()
    terminal.table(table)
    terminal.line()
    terminal.line(
        f"Test accuracy {result.n_right / result.n_test:.1%}. The values of all training images add up, "
        f"to within {gaps.largest_sum_gap:.0e}, to what the last layer predicts after one Newton step. "
        f"That is {gaps.mean_gap:.2f} away from what the model predicts, which is "
        f"{gaps.mean_prediction:.2f} (averages over {result.n_test} test images, before the softmax)."
    )
    terminal.line()
    terminal.line(f"Report, after {result.seconds:.0f} s: {result.path.resolve()}", wrap=False)
