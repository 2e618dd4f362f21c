"""Results as a person reads them on a terminal, and as a program reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from whence.answers.explanation import Explanation
from whence.answers.suspects import Suspects
from whence.cli.asking import Answer
from whence.cli.indexing import Indexed
from whence.report.html import how_to_read
from whence.report.labels import label_text
from whence.report.page import number

__all__ = ["print_explanation", "print_index", "print_json", "print_suspects", "result_console"]

#: Samples that are printed; all are in the report and in JSON.
N_PRINTED = 10
#: The longest bar beside a value.
BAR_WIDTH = 12


def result_console() -> Console:
    """Return the console of results; tests replace stdout, so it is not made before."""
    return Console(highlight=False)


def print_json(content: dict[str, Any]) -> None:
    """Write one JSON document to stdout; what is no number becomes null."""
    from whence import __version__

    whole = {"schema": 1, "whence": __version__, **content}
    print(json.dumps(_plain(whole), allow_nan=False, ensure_ascii=False))


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
        "about": indexed.method._about(),
        "seconds": round(seconds, 3),
    }


def print_index(content: dict[str, Any], runs_code: bool) -> None:
    """Print what was indexed, and what to do next."""
    console, about, folder = result_console(), content["about"], content["index"]
    console.print(
        Text.assemble(
            (f"{content['n_samples']:,} samples", "bold"),
            f" indexed in {folder} after {content['seconds']:.1f} s: layer {about['layer']}, "
            f"{about['n_features']:,} features × {about['n_outputs']:,} outputs, loss {about['loss']}.",
        )
    )
    if content["classes"] is not None:
        console.print(f"Classes, in the order of the outputs: {', '.join(content['classes'])}.")
    if content["agreement"] is not None:
        console.print(f"The model predicts {content['agreement']:.1%} of the labels.")
    trust = " --trust-model" if runs_code else ""
    console.print(Text(f"Next: whence explain {folder} SAMPLES{trust}, or whence suspects {folder}", "dim"))


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
    console, found = result_console(), answer.found
    for t in range(min(len(found), N_PRINTED)):
        console.print(_prediction_line(found, t, answer.class_names))
        console.print(_prediction_table(found, t, answer.class_names))
        console.print()
    left = len(found) - N_PRINTED
    if left > 0:
        rest = "is in the report" if answer.report else "goes into --report FILE and --json"
        console.print(Text(f"… and {left:,} more: everything {rest}.", "dim"))
    console.print(
        Text(how_to_read(found).split(". ")[0] + ". Plus speaks for it, minus against it.", "dim")
    )
    _print_report(console, answer)


def _prediction_line(found: Explanation, t: int, class_names: Sequence[str] | None) -> Text:
    predicted = label_text(found.predictions[t], class_names)
    title = Text.assemble((f"{found.sample_ids[t]}", "bold"), ": predicted ", (predicted, "bold"))
    if found.labels is not None:
        given = label_text(found.labels[t], class_names)
        title.append(f", labelled {given}", None if given == predicted else "yellow")
    title.append(
        f"; sum of all values {number(found.totals[t], digits=2)}, "
        f"model's own {number(found.pre_activations[t], digits=2)}",
        "dim",
    )
    return title


def _prediction_table(found: Explanation, t: int, class_names: Sequence[str] | None) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, width=BAR_WIDTH)
    table.add_column("training sample", overflow="fold")
    table.add_column("labelled", overflow="fold")
    longest = float(np.abs(np.concatenate([found.values[t], found.opponent_values[t]])).max()) or 1.0
    for ids, labels, values, color in (
        (found.ids[t], found.training_labels[t], found.values[t], "green"),
        (found.opponent_ids[t], found.opponent_labels[t], found.opponent_values[t], "red"),
    ):
        for training_id, label, value in zip(ids, labels, values, strict=True):
            bar = "█" * max(1, round(BAR_WIDTH * abs(float(value)) / longest))
            table.add_row(
                number(value, sign=True), Text(bar, color), str(training_id), label_text(label, class_names)
            )
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
        "classes": answer.class_names,
        "report": None if answer.report is None else str(answer.report.resolve()),
        "about": found.about,
        "suspects": listed,
    }


def print_suspects(answer: Answer) -> None:
    """Print the ranked labels."""
    console, found, names = result_console(), answer.found, answer.class_names
    console.print(
        f"The {len(found):,} of {found.about['n_samples']:,} labels to look at first, "
        f"by {found.score.replace('_', '-')}:",
        style="bold",
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("", "score"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("training sample", "labelled", "model says"):
        table.add_column(heading, overflow="fold")
    for rank in range(len(found)):
        given, said = (label_text(one[rank], names) for one in (found.labels, found.predictions))
        table.add_row(
            str(rank + 1),
            number(found.scores[rank], digits=2),
            str(found.ids[rank]),
            given,
            Text(said, "" if said == given else "yellow"),
        )
    console.print(table)
    console.print()
    console.print(Text("Rare but right samples are doubtful too: look before you correct.", "dim"))
    _print_report(console, answer)


def _print_report(console: Console, answer: Answer) -> None:
    if answer.report is not None:
        console.print(Text(f"Report: {answer.report.resolve()}"), soft_wrap=True)


# ------------------------------------------------------------------------------------------- demo


def print_demo(result: Any) -> None:
    """Print what the demo found."""
    from whence.demo.report import CHECKED, DEMO_SCORES

    console = result_console()
    table = Table(
        title=f"Wrong labels found, of {result.n_wrong} among {result.n_training:,} training images",
        title_justify="left",
    )
    table.add_column("ranked by")
    for share, n_checked in zip(CHECKED, result.n_checked, strict=True):
        table.add_column(f"first {share:.0%}\n({n_checked})", justify="right")
    for score, name in DEMO_SCORES.items():
        table.add_row(name, *(f"{n} ({n / result.n_wrong:.0%})" for n in result.found[score]))
    gaps = result.completeness
    console.print()
    console.print(table)
    console.print(
        f"\nTest accuracy {result.n_right / result.n_test:.1%}. The values of all training images add up, "
        f"to within {gaps.largest_sum_gap:.0e}, to what the last layer predicts after one Newton step. "
        f"That is {gaps.mean_gap:.2f} away from what the model predicts, which is "
        f"{gaps.mean_prediction:.2f} (averages over {result.n_test} test images, before the softmax)."
    )
    console.print(Text(f"\nReport, after {result.seconds:.0f} s: {result.path.resolve()}"), soft_wrap=True)
