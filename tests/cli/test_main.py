"""The command itself: help, version, exit codes, errors on one line, and the demo."""

import subprocess
import sys

import pytest

import whence
import whence.demo.report
import whence.demo.run
from whence.cli import main


@pytest.fixture
def result(tmp_path):
    return whence.demo.report.DemoResult(
        path=tmp_path / "page.html",
        n_training=1000,
        n_wrong=100,
        n_test=50,
        n_right=49,
        n_memorised=3,
        n_checked=(50, 100, 150),
        found={"leave_one_out": (48, 91, 97), "self_influence": (30, 60, 80), "loss": (47, 92, 98)},
        completeness=whence.demo.report.Completeness(1e-7, 2e-6, 0.25, 0.75, 3.5, 0.9),
        seconds=12.3,
    )


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"whence {whence.__version__}\n"


COMMANDS = ["demo", "index", "explain", "suspects"]


def test_help(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)
    assert "Exit codes" in out


def test_nothing_but_the_name_shows_the_help(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert "Usage" in shown.out + shown.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_holds_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Example: whence {command} " in " ".join(out.split())


@pytest.mark.parametrize("width", [40, 60])
@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_a_narrow_terminal(command, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["--help"] if command is None else [command, "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= width


def test_help_loads_no_framework():
    code = (
        "import sys; from whence.cli import main; main(['--help']); "
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert {"typer", "whence"} <= loaded
    heavy = {
        "jax",
        "joblib",
        "keras",
        "lightgbm",
        "pandas",
        "PIL",
        "sklearn",
        "tensorflow",
        "torch",
        "xgboost",
    }
    assert not loaded & heavy


def test_wrong_option(capsys):
    assert main(["demo", "--sed", "1"]) == 2
    assert "No such option" in capsys.readouterr().err


def test_negative_seed(capsys):
    assert main(["demo", "--seed", "-1"]) == 2
    assert "--seed" in capsys.readouterr().err


def test_demo_prints_a_table(monkeypatch, capsys, result, tmp_path):
    asked = {}

    def run(output, **keywords):
        asked.update(keywords, output=output)
        keywords["say"]("Loading Keras")
        return result

    monkeypatch.setattr(whence.demo.run, "run", run)
    assert main(["demo", "-o", str(tmp_path / "page.html"), "--seed", "3"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "Loading Keras …\n"
    for expected in ("48 (48%)", "92 (92%)", "of 100 among 1,000", "98.0%", "0.25"):
        assert expected in shown.out, expected
    assert str(tmp_path / "page.html") in shown.out
    assert asked["output"] == tmp_path / "page.html"
    assert asked["seed"] == 3
    assert asked["progress"] is None


def test_quiet(monkeypatch, capsys, result):
    asked = {}

    def run(output, **keywords):
        asked.update(keywords)
        keywords["say"]("Loading Keras")
        return result

    monkeypatch.setattr(whence.demo.run, "run", run)
    assert main(["demo", "-q"]) == 0
    assert asked["progress"] is False
    assert capsys.readouterr().err == ""


def test_errors_take_one_line(capsys, tmp_path):
    assert main(["demo", "--output", str(tmp_path / "missing" / "page.html")]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("whence: path: expected a file in a folder that exists")
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err


def test_debug_shows_where(tmp_path):
    with pytest.raises(whence.WhenceError, match="folder that exists"):
        main(["--debug", "demo", "--output", str(tmp_path / "missing" / "page.html")])


@pytest.mark.parametrize("arguments", [["--debug", "demo"], ["demo", "--debug"]])
def test_debug_stands_anywhere(arguments, monkeypatch):
    def run(output, **keywords):
        raise KeyError("digits")

    monkeypatch.setattr(whence.demo.run, "run", run)
    with pytest.raises(KeyError, match="digits"):
        main(arguments)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            KeyError("digits"),
            3,
            "whence: an error that should not be, KeyError: 'digits'. Run it with --debug",
        ),
        (PermissionError(13, "Permission denied", "a.html"), 1, "whence: PermissionError: [Errno 13]"),
        (MemoryError(), 1, "whence: MemoryError\n"),
        (
            whence.WhenceError("damping", "two\nlines", "one", ""),
            1,
            "whence: --damping: expected two lines",
        ),
    ],
)
def test_other_errors_take_one_line_too(error, code, line, monkeypatch, capsys):
    def run(output, **keywords):
        raise error

    monkeypatch.setattr(whence.demo.run, "run", run)
    assert main(["demo"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert shown.count("\n") == 1


def test_stopped(monkeypatch, capsys):
    def run(output, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(whence.demo.run, "run", run)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "Stopped.\n"


@pytest.mark.parametrize(
    ("package", "extra"), [("typer", "cli"), ("rich", "cli"), ("tensorflow", "demo"), ("jinja2", "demo")]
)
def test_missing_packages(monkeypatch, capsys, tmp_path, package, extra):
    for name in (package, "tensorflow", "keras"):  # none of them is really loaded here
        monkeypatch.setitem(sys.modules, name, None if name == package else whence)
    assert main(["demo", "-q", "-o", str(tmp_path / "page.html")]) == 1
    assert capsys.readouterr().err == (
        f"whence: This needs the package {package!r}, which is not installed. "
        f"Run: pip install 'whence[{extra}]'\n"
    )
    assert not (tmp_path / "page.html").exists()
