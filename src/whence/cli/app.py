"""The commands, their options and their help."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from whence._errors import WhenceError
from whence._paths import as_path
from whence._version import __version__
from whence.cli.notes import note, say
from whence.cli.options import (
    DATA,
    METHOD,
    MODEL,
    BatchSize,
    Classes,
    Data,
    Debug,
    Dir,
    Id,
    ImageSize,
    Imports,
    Inputs,
    Json,
    Label,
    Layer,
    Loss,
    MethodName,
    Pixels,
    Quiet,
    RegLambda,
    Report,
    Trust,
    WeightDecay,
    Weights,
    option,
)

__all__ = ["application"]


def application(settings: dict[str, bool]) -> Any:
    """Return the command line; ``settings["debug"]`` is set when it is asked for."""
    app = typer.Typer(
        help="Which training samples does this prediction come from, and how much from each?",
        epilog="Exit codes: 0 done, 1 no answer, 2 wrong command line, 3 a fault of whence, 130 stopped.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )

    def common(
        _: Annotated[
            bool,
            typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave."),
        ] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show where an error arose.")] = False,
    ) -> None:
        settings["debug"] = debug

    app.callback()(common)
    for command in (demo, index, explain, suspects):
        app.command()(_stoppable(command, settings))
    return app


def _version(show: bool) -> None:
    if show:
        print(f"whence {__version__}")
        raise typer.Exit


def _stoppable(command: Callable[..., None], settings: dict[str, bool]) -> Callable[..., None]:
    """Return a command that leaves with a word when it is stopped, and heeds ``--debug``."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        settings["debug"] |= arguments.get("debug", False)
        for name, value in arguments.items():
            if isinstance(value, Path):
                arguments[name] = as_path(value)
        if str(arguments.get("model") or "").startswith("~"):
            arguments["model"] = str(as_path(arguments["model"]))
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # of TensorFlow's start no one needs to read
        try:
            command(**arguments)
        except KeyboardInterrupt:
            kept = (
                f" What is complete is kept in {arguments['to']}: run the same again to go on."
                if (arguments.get("to") is not None)
                else ""
            )
            start = "\n" if sys.stderr.isatty() else ""  # the terminal's ^C stands behind a bar
            print(start, end="", file=sys.stderr)
            say(f"Stopped.{kept}")
            raise typer.Exit(130) from None

    return run


def _asked(quiet: bool, trusted: bool = False) -> Any:
    from whence.cli.indexing import RunOptions

    return RunOptions(
        (lambda step: None) if quiet else lambda step: say(f"{step} …"), False if quiet else None, trusted
    )


def _names(classes: str | None) -> list[str] | None:
    return None if classes is None else [name.strip() for name in classes.split(",")]


def _frame(size: str | None) -> Any:
    from whence.cli.images import Frame

    if size is None:
        return None
    height, _, width = size.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise WhenceError("--image-size", "height and width, such as 224x224", repr(size), "Write it so.")
    return Frame(int(height), int(width), None, True)


# ----------------------------------------------------------------------------------------- commands


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The HTML file to write.", dir_okay=False)
    ] = Path("whence-demo.html"),
    seed: Annotated[int, typer.Option(help="Of the split, the wrong labels and the training.", min=0)] = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a small network on images with some wrong labels, and explain it.

    Takes about half a minute. Example: whence demo --output demo.html
    """
    from whence.cli.show import print_demo
    from whence.demo.run import run

    asked = _asked(quiet)
    print_demo(run(output, seed=seed, progress=asked.progress, say=asked.say))


def index(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A .keras, .joblib, XGBoost (.json, .ubj) or LightGBM (.txt) file, or module:factory for "
            "PyTorch.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="The training set: .npz, .csv, .parquet, or a folder with one folder of images for each "
            "class.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path,
        typer.Option(
            "--to", metavar="DIR", file_okay=False, help="The folder to make.", show_default=False
        ),
    ],
    weights: Weights = None,
    loss: Loss = None,
    layer: Layer = None,
    weight_decay: WeightDecay = None,
    reg_lambda: RegLambda = None,
    imports: Imports = [],  # noqa: B006  (typer takes a list)
    trust_model: Trust = False,
    label: Label = None,
    id: Id = None,
    inputs: Inputs = [],  # noqa: B006
    weight: Annotated[
        str | None, option("--weight", panel=DATA, help="Column or array of sample weights.")
    ] = None,
    classes: Classes = None,
    image_size: ImageSize = None,
    pixels: Pixels = None,
    batch_size: BatchSize = 256,
    solver: Annotated[
        str,
        option(
            "--solver", panel=METHOD, show_default=True, help="By its name, as under 'Choose a solver'."
        ),
    ] = "exact",
    damping: Annotated[
        float | None,
        option(
            "--damping",
            panel=METHOD,
            min=0,
            help="Added to the Hessian's diagonal. By default the solver's.",
        ),
    ] = None,
    hessian_samples: Annotated[
        int | None,
        option(
            "--hessian-samples",
            panel=METHOD,
            min=1,
            help="Samples for the Hessian, drawn at random. All by default.",
        ),
    ] = None,
    seed: Annotated[int, option("--seed", panel=METHOD, min=0, help="Of that draw.")] = 0,
    feature_dtype: Annotated[
        str | None,
        option("--feature-dtype", panel=METHOD, help="float16 or float32: what features are stored as."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Store what a model sees of its training set. Stopped by Ctrl-C, the same command goes on.

    Example: whence index model.keras train.npz --to train.index
    """
    from whence.cli import indexing, show
    from whence.cli.data import DataSpec
    from whence.cli.models import ModelSpec
    from whence.ihvp import SOLVERS

    if solver not in SOLVERS:
        raise WhenceError("--solver", f"one of {', '.join(SOLVERS)}", repr(solver), "Choose one.")
    start = time.perf_counter()
    frame = _frame(image_size)
    reading = DataSpec(
        label, id, weight, list(inputs) or None, **({} if frame is None else {"frame": frame})
    )
    spec = ModelSpec(
        model,
        None if weights is None else str(weights),
        os.getcwd(),
        tuple(imports),
        loss,
        "-1" if layer is None else layer,
        weight_decay,
        reg_lambda,
        pixels,
    )
    options = {"n_samples_for_hessian": hessian_samples, "seed": seed, "feature_dtype": feature_dtype}
    asked = _asked(quiet, trust_model)
    indexed = indexing.index(
        spec,
        data,
        to,
        reading,
        _names(classes),
        {"name": solver, "arguments": {} if damping is None else {"damping": damping}, "options": options},
        batch_size,
        asked,
    )
    if indexed.agreement is not None and indexed.agreement < 0.5:
        note(
            f"the model predicts only {indexed.agreement:.1%} of the labels. Are they its own, and the "
            "classes in the order of its outputs? See --label and --classes."
        )
    content = show.index_content(to, indexed, time.perf_counter() - start)
    if json:
        show.print_json(content)
    else:
        show.print_index(content, indexed.runs_code)


def explain(
    dir: Dir,
    samples: Annotated[
        Path,
        typer.Argument(
            metavar="SAMPLES",
            help="What to explain: a file or folder such as the training set, labels not needed, or one "
            "image. Features of the layer, if DIR does not know its model and none is named.",
            show_default=False,
        ),
    ],
    k: Annotated[
        int,
        option(
            "--k", "-k", panel=METHOD, min=1, show_default=True, help="Training samples of either sign."
        ),
    ] = 5,
    output: Annotated[
        int | None,
        option("--output", panel=METHOD, min=0, help="Which output. By default the predicted class."),
    ] = None,
    method: MethodName = None,
    only: Annotated[
        list[str], option("--only", panel=DATA, help="The id of a sample, once for each.")
    ] = [],  # noqa: B006
    limit: Annotated[
        int | None, option("--limit", panel=DATA, min=1, help="So many samples at most.")
    ] = None,
    label: Label = None,
    id: Id = None,
    inputs: Inputs = [],  # noqa: B006
    classes: Classes = None,
    image_size: ImageSize = None,
    data: Data = None,
    model: Annotated[
        str | None, option("--model", panel=MODEL, help="The model, if it is not where it was.")
    ] = None,
    weights: Weights = None,
    loss: Loss = None,
    imports: Imports = [],  # noqa: B006
    trust_model: Trust = False,
    report: Report = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show the training samples that speak most for and against each prediction.

    Example: whence explain train.index test.npz --k 5 --report out.html
    """
    from whence.cli import asking, show

    changes: dict[str, Any] = {
        "model": model,
        "weights": None if weights is None else str(weights),
        "loss": loss,
        "imports": tuple(imports),
        "label": label,
        "id": id,
        "inputs": list(inputs) or None,
        "frame": _frame(image_size),
        "classes": _names(classes),
    }
    if model is not None:
        changes["folder"] = os.getcwd()
    answer = asking.explain(
        dir,
        samples,
        changes,
        k=k,
        output=output,
        only=only,
        limit=limit,
        method=method,
        data=data,
        report=report,
        asked=_asked(quiet, trust_model),
    )
    show.print_json(show.explanation_content(answer)) if json else show.print_explanation(answer)


def suspects(
    dir: Dir,
    k: Annotated[
        int, option("--k", "-k", panel=METHOD, min=1, show_default=True, help="How many to list.")
    ] = 20,
    all: Annotated[bool, option("--all", panel=METHOD, help="List all.")] = False,
    score: Annotated[
        str | None,
        option(
            "--score",
            panel=METHOD,
            help="label_noise, ridge, leave_one_out, self_influence or loss; by default what suits.",
        ),
    ] = None,
    method: MethodName = None,
    classes: Classes = None,
    data: Data = None,
    trust_model: Trust = False,
    report: Report = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rank the training samples by how doubtful their labels are.

    Example: whence suspects train.index --k 50 --report suspects.html
    """
    from whence.cli import asking, show

    answer = asking.suspects(
        dir,
        k=None if all else k,
        score=score,
        classes=_names(classes),
        method=method,
        data=data,
        report=report,
        asked=_asked(quiet, trust_model),
    )
    show.print_json(show.suspects_content(answer)) if json else show.print_suspects(answer)
