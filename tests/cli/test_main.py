"""The command line: what a person types, sees and gets back as exit code."""

import sys

import pytest

import whence
import whence.cli
import whence.demo
import whence.demo_report
from whence.cli import main

pytest.importorskip("typer")
pytest.importorskip("rich")


@pytest.fixture(autouse=True)
def _keep_hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer replaces it


@pytest.fixture
def result(tmp_path):
    return whence.demo_report.DemoResult(
        path=tmp_path / "page.html",
        n_training=1000,
        n_wrong=100,
        n_test=50,
        n_right=49,
        n_memorised=3,
        n_checked=(50, 100, 150),
        found={"leave_one_out": (48, 91, 97), "self_influence": (30, 60, 80), "loss": (47, 92, 98)},
        completeness=whence.demo_report.Completeness(1e-7, 2e-6, 0.25, 0.75, 3.5, 0.9),
        seconds=12.3,
    )


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"whence {whence.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help(arguments, capsys):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "demo" in out
    assert "Usage" in out


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

    monkeypatch.setattr(whence.demo, "run", run)
    assert main(["demo", "-o", str(tmp_path / "page.html"), "--seed", "3"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for expected in ("Loading Keras", "48 (48%)", "92 (92%)", "of 100 among 1,000", "98.0%", "0.25"):
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

    monkeypatch.setattr(whence.demo, "run", run)
    assert main(["demo", "-q"]) == 0
    assert asked["progress"] is False
    assert "Loading Keras" not in capsys.readouterr().out


def test_errors_take_one_line(capsys, tmp_path):
    assert main(["demo", "--output", str(tmp_path / "missing" / "page.html")]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("whence: path: expected a file in a folder that exists")
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err


def test_debug_shows_where(tmp_path):
    with pytest.raises(whence.WhenceError, match="folder that exists"):
        main(["--debug", "demo", "--output", str(tmp_path / "missing" / "page.html")])


def test_stopped(monkeypatch, capsys):
    def run(output, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(whence.demo, "run", run)
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
