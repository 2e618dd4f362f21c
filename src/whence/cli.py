"""The command ``whence``."""

import sys
from pathlib import Path
from typing import Annotated, Any

from whence._arrays import import_extra
from whence._errors import MissingExtraError, WhenceError

__all__ = ["main"]

#: Exit codes: what went wrong, and stopped by the user (as a shell has it).
FAILED, STOPPED = 1, 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : list of str, optional
        Those of the process by default.
    """
    settings = {"debug": False}
    try:
        typer = import_extra("typer", "cli")
        import_extra("rich", "cli")
        _application(typer, settings)(args=arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED
    except (MissingExtraError, WhenceError) as error:
        if settings["debug"]:
            raise
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    print(f"whence: {message}", file=sys.stderr)
    return FAILED


def _application(typer: Any, settings: dict[str, bool]) -> Any:
    """Return the command line; ``typer`` is an extra, so nothing of it is imported above."""
    app = typer.Typer(
        help="Which training samples does this prediction come from, and how much from each?",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )

    def version(show: bool) -> None:
        if show:
            from whence import __version__

            print(f"whence {__version__}")
            raise typer.Exit

    def common(
        _: Annotated[
            bool,
            typer.Option("--version", callback=version, is_eager=True, help="Show the version and leave."),
        ] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show where an error arose.")] = False,
    ) -> None:
        settings["debug"] = debug

    def demo(
        output: Annotated[
            Path, typer.Option("--output", "-o", help="The HTML file to write.", dir_okay=False)
        ] = Path("whence-demo.html"),
        seed: Annotated[
            int, typer.Option(help="Of the split, the wrong labels and the training.", min=0)
        ] = 0,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    ) -> None:
        """Train a small network on images with some wrong labels, and explain it.

        Takes about half a minute. Example: whence demo --output demo.html
        """
        try:
            _demo(output, seed, quiet)
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)
            raise typer.Exit(STOPPED) from None

    app.callback()(common)
    app.command()(demo)
    return app


def _demo(output: Path, seed: int, quiet: bool) -> None:
    from rich.console import Console

    from whence.demo import run

    console = Console(highlight=False)
    result = run(
        output,
        seed=seed,
        progress=False if quiet else None,
        say=(lambda step: None) if quiet else (lambda step: console.print(f"[dim]{step} …[/dim]")),
    )
    _print_result(console, result)


def _print_result(console: Any, result: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    from whence.demo_report import CHECKED, DEMO_SCORES

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
