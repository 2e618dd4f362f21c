"""The options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "DATA",
    "METHOD",
    "MODEL",
    "OUTPUT",
    "BatchSize",
    "Classes",
    "Data",
    "Debug",
    "Dir",
    "Id",
    "ImageSize",
    "Imports",
    "Inputs",
    "Json",
    "Label",
    "Layer",
    "Loss",
    "MethodName",
    "Pixels",
    "Quiet",
    "RegLambda",
    "Report",
    "Trust",
    "WeightDecay",
    "Weights",
    "option",
]

MODEL, DATA, METHOD, OUTPUT = "Model", "Data", "Method", "Output"


def option(*names: str, panel: str, help: str, **more: Any) -> Any:
    """Return an option that stands in a panel of the help, without its default unless that is asked for."""
    return typer.Option(
        *names, help=help, rich_help_panel=panel, show_default=more.pop("show_default", False), **more
    )


Weights = Annotated[
    Path | None,
    option("--weights", panel=MODEL, help="State dict (.pt, .pth, .safetensors) for module:factory."),
]
Loss = Annotated[
    str | None,
    option(
        "--loss",
        panel=MODEL,
        help="The loss of the training: of torch.nn (CrossEntropyLoss), a name that Keras knows, or "
        "module:name. By default the one that the model holds.",
    ),
]
Layer = Annotated[
    str | None,
    option("--layer", panel=MODEL, help="Which dense layer, by name or index. By default the last."),
]
WeightDecay = Annotated[
    float | None,
    option("--weight-decay", panel=MODEL, min=0, help="Of the optimiser, for PyTorch."),
]
RegLambda = Annotated[
    float | None,
    option("--reg-lambda", panel=MODEL, min=0, help="L2 on leaf values in place of the booster's own."),
]
Imports = Annotated[
    list[str],
    option("--import", panel=MODEL, help="A module to import first, such as one that registers layers."),
]
Trust = Annotated[
    bool,
    option(
        "--trust-model",
        panel=MODEL,
        help="Load the model though that runs code: pickles, or what an index names.",
    ),
]
Label = Annotated[
    str | None,
    option(
        "--label",
        panel=DATA,
        help="Column or array of the labels. By default label, labels, y, target or class.",
    ),
]
Id = Annotated[
    str | None,
    option("--id", panel=DATA, help="Column or array that names the samples. By default positions from 0."),
]
Inputs = Annotated[
    list[str],
    option(
        "--inputs", panel=DATA, help="Column or array for the model, once for each. By default all others."
    ),
]
ImageSize = Annotated[
    str | None,
    option(
        "--image-size", panel=DATA, metavar="HxW", help="Size that images are brought to, e.g. 224x224."
    ),
]
Pixels = Annotated[
    str | None,
    option(
        "--pixels",
        panel=DATA,
        metavar="RANGE",
        help="What the model takes of images: 0..255 (default), 0..1 (default with PyTorch) or -1..1.",
    ),
]
Classes = Annotated[
    str | None,
    option(
        "--classes",
        panel=DATA,
        metavar="A,B,…",
        help="Names of the classes, in the order of the outputs. By default alphabetical, where labels are "
        "names.",
    ),
]
Data = Annotated[
    Path | None,
    option("--data", panel=DATA, help="Where the training set is now; the report shows it."),
]
BatchSize = Annotated[
    int,
    option(
        "--batch-size",
        panel=DATA,
        min=1,
        show_default=True,
        help="Samples that go through the model at once.",
    ),
]
MethodName = Annotated[
    str | None,
    option("--method", panel=METHOD, help="Which method, where DIR holds several: the name of its folder."),
]
Report = Annotated[
    Path | None,
    option("--report", "-o", panel=OUTPUT, dir_okay=False, help="Write an HTML page, one file."),
]
Json = Annotated[
    bool, option("--json", panel=OUTPUT, help="Print one JSON document, and nothing else, on stdout.")
]
Quiet = Annotated[bool, option("--quiet", "-q", panel=OUTPUT, help="Show no progress.")]
Debug = Annotated[bool, option("--debug", panel=OUTPUT, help="Show where an error arose.")]
Dir = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of an index.", show_default=False)]
