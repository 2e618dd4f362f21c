"""The results of the demo, and their page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from whence.answers.explanation import Explanation
from whence.answers.suspects import Suspects
from whence.demo.digits import Digits
from whence.report.html import explanation_page
from whence.report.numbers import number
from whence.report.page import Column, Fact, Page, Section, Table

__all__ = ["CHECKED", "DEMO_SCORES", "Completeness", "DemoResult", "demo_page"]

#: Scores that rank the training set, and their names on the page. The loss is the baseline.
DEMO_SCORES = {
    "leave_one_out": "whence, leave-one-out",
    "self_influence": "LJE self-influence",
    "loss": "Training loss (baseline)",
}
#: Shares of the training set that somebody might check by hand.
CHECKED = (0.05, 0.10, 0.15)


@dataclass(frozen=True)
class Completeness:
    """How well the values add up over some predictions.

    Attributes
    ----------
    mean_sum_gap, largest_sum_gap : float
        The difference between the summed values of all training samples and the prediction of the
        layer after one Newton step. Rounding only.
    mean_gap, largest_gap : float
        Between that prediction and the model's own.
    mean_prediction : float
        The mean of the model's own, for comparison.
    correlation : float
        Between that prediction and the model's own.
    """

    mean_sum_gap: float
    largest_sum_gap: float
    mean_gap: float
    largest_gap: float
    mean_prediction: float
    correlation: float


@dataclass(frozen=True)
class DemoResult:
    """The results of the demo.

    Attributes
    ----------
    path : Path
        The report.
    n_training, n_wrong, n_test, n_right : int
        Training images, wrong labels among them, test images, and how many are classified right.
    n_memorised : int
        How many of the wrong labels the model gives back when shown the image.
    n_checked : tuple of int
        How many training images are checked at each share.
    found : dict from score to tuple of int
        How many wrong labels are among those checked.
    completeness : Completeness
    seconds : float
    """

    path: Path
    n_training: int
    n_wrong: int
    n_test: int
    n_right: int
    n_memorised: int
    n_checked: tuple[int, ...]
    found: dict[str, tuple[int, ...]]
    completeness: Completeness
    seconds: float


def demo_page(
    result: DemoResult, digits: Digits, explanation: Explanation, suspects: Suspects, seed: int
) -> Page:
    """Return the page that the demo writes."""
    paper = 1 - digits.train_images  # ink on paper, as a person would see it
    notes = {int(i): f"was {digits.true_labels[i]}" for i in np.flatnonzero(digits.is_wrong).tolist()}
    page = explanation_page(
        explanation,
        samples=(1 - digits.test_images)[explanation.sample_ids],
        training_samples=paper,
        suspects=suspects[: result.n_checked[1]],
        notes=notes,
        title="Which training images do these predictions come from?",
        sample_noun="test image",
        training_noun="training image",
    )
    predictions, doubtful = page.sections
    which = (
        f"The first half of these {len(explanation)} are the test images on which the network decides most "
        "narrowly, the second half were drawn at random. Where the demo changed the label of a training "
        "image, a mark says what it was before."
    )
    lead = (
        f"A small convolutional network learned to read digits from {result.n_training:,} images. Before "
        f"the training, {result.n_wrong} of their labels, one in ten, were replaced by wrong ones. This "
        "page shows what its predictions come from, and how many of the wrong labels come to light."
    )
    return replace(
        page,
        lead=[lead],
        facts=_facts(result),
        sections=[
            replace(predictions, paragraphs=[*predictions.paragraphs, which], notes=()),
            _detection_section(result, doubtful),
            _completeness_section(result),
        ],
        about=explanation.about | {"seed": seed},
    )


def _facts(result: DemoResult) -> list[Fact]:
    ours, baseline = result.found["leave_one_out"][1], result.found["loss"][1]
    gaps = result.completeness
    return [
        Fact(
            "Test images read right",
            f"{result.n_right / result.n_test:.1%}",
            f"{result.n_right} of {result.n_test}, judged by their right labels",
        ),
        Fact(
            "Wrong labels found",
            f"{ours} of {result.n_wrong}",
            f"in the first 10% checked; {baseline} if ranked by training loss",
        ),
        Fact(
            "All values add up to within",
            number(gaps.largest_sum_gap),
            f"in each of {result.n_test} predictions: rounding",
        ),
        Fact(
            "Distance to the model itself",
            number(gaps.mean_gap, digits=2),
            f"on average; its own values are {number(gaps.mean_prediction, digits=2)} on average",
        ),
    ]


def _detection_section(result: DemoResult, doubtful: Section) -> Section:
    def row(name: str, counts: Sequence[int]) -> list[str]:
        return [name, *(f"{count} ({count / result.n_wrong:.0%})" for count in counts)]

    by_chance = [round(n * result.n_wrong / result.n_training) for n in result.n_checked]
    rows = [row(name, result.found[score]) for score, name in DEMO_SCORES.items()]
    rows.append(row("In any order (expected)", by_chance))
    rows.append(row("The most there can be", [min(n, result.n_wrong) for n in result.n_checked]))
    heads = [f"First {part:.0%} ({n})" for part, n in zip(CHECKED, result.n_checked, strict=True)]
    caption = f"How many of the {result.n_wrong} wrong labels are among the training images checked first"
    return Section(
        "Labels to look at first",
        [
            "If the last layer had not been shown an image, how far would it be from the label given? "
            "That is the leave-one-out score: the pre-activation of the strongest other class minus that "
            "of the given one, to first order. Above zero, the layer would decide against the label.",
            "The training loss of each image needs no inverse and is a strong baseline: as long as a "
            "network has not learned its wrong labels by heart, expect about the same from both. This one "
            f"gives back {result.n_memorised} of its {result.n_wrong} wrong labels.",
        ],
        tables=[
            Table(
                caption,
                [Column("Ranked by"), *(Column(head, numeric=True) for head in heads)],
                rows,
            ),
            *doubtful.tables,
        ],
    )


def _completeness_section(result: DemoResult) -> Section:
    gaps = result.completeness
    table = Table(
        f"Over all {result.n_test} test images, in units of the pre-activation of the predicted class",
        [Column("Comparison"), Column("Mean", numeric=True), Column("Largest", numeric=True)],
        [
            [
                "Sum of all values against the layer after one Newton step",
                number(gaps.mean_sum_gap),
                number(gaps.largest_sum_gap),
            ],
            [
                "The layer after one Newton step against the model itself",
                number(gaps.mean_gap),
                number(gaps.largest_gap),
            ],
        ],
    )
    return Section(
        "How complete this is",
        [
            f"The values of all {result.n_training:,} training images add up to a prediction, and the "
            "first line of the table shows how exactly. But it is the prediction that the last layer "
            "would make after one Newton step towards the optimum of its loss, not quite that of the "
            "model as it was trained. The second line says how far apart the two are; their correlation "
            f"is {number(gaps.correlation, digits=2)}, and the model's own predictions are "
            f"{number(gaps.mean_prediction, digits=2)} on average.",
            "Only the last layer is taken apart. What the layers below it learned from whom is not "
            "attributed, and no value says what a network trained without that image would do.",
        ],
        tables=[table],
    )
