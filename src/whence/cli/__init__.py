"""The command ``whence``: thin over the library, so that everything it does can be done from Python."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from whence._errors import MissingExtraError, WhenceError
from whence.arrays.base import import_extra
from whence.cli.notes import note, one_line, say

__all__ = ["main"]

#: Exit codes. A wrong command line is 2, as of every program that parses its arguments.
FAILED, UNEXPECTED, STOPPED = 1, 3, 130

#: Argument of the library, as errors name it -> the option that sets it.
OPTIONS = {
    "classes": "--classes",
    "damping": "--damping",
    "feature_dtype": "--feature-dtype",
    "ids": "--id",
    "k": "--k",
    "loss_function": "--loss",
    "method": "--method",
    "n_samples_for_hessian": "--hessian-samples",
    "outputs": "--output",
    "reg_lambda": "--reg-lambda",
    "score": "--score",
    "target layer": "--layer",
    "weight_decay": "--weight-decay",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : list of str, optional
        Those of the process by default.

    Returns
    -------
    int
        0: done. 1: there is no answer, and the line on stderr says why. 2: a wrong command line.
        3: an error that should not be. 130: stopped by Ctrl-C.
    """
    settings = {"debug": False}
    if hasattr(sys.stdout, "reconfigure"):  # letters that its encoding lacks are written as escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            import_extra("typer", "cli")
            import_extra("rich", "cli")
            from whence.cli.app import application

            application(settings)(args=arguments, prog_name="whence")
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else FAILED
        except KeyboardInterrupt as stopped:
            return _fail(str(stopped) or "Stopped.", STOPPED, prefix="")
        except BrokenPipeError:  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        except Exception as error:
            if settings["debug"]:
                raise
            return _report(error)
    return 0


def _report(error: Exception) -> int:
    """Say on one line what went wrong, and return the exit code."""
    if isinstance(error, WhenceError):
        return _fail(_in_options(error), FAILED)
    if isinstance(error, MissingExtraError):
        return _fail(str(error), FAILED)
    reason = f"{type(error).__name__}: {one_line(error)}".rstrip(": ")
    if isinstance(error, OSError | MemoryError):
        return _fail(reason, FAILED)
    return _fail(f"an error that should not be, {reason}. Run it with --debug to see where.", UNEXPECTED)


def _in_options(error: WhenceError) -> str:
    """Return an error with the option in place of the library's argument."""
    option = OPTIONS.get(error.argument)
    text = one_line(error)
    return text if option is None else f"{option}{text.removeprefix(error.argument)}"


def _fail(message: str, code: int, prefix: str = "whence: ") -> int:
    say(f"{prefix}{message}")
    return code


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    note(message)
