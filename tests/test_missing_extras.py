"""What is not installed is named, with the extra that brings it; and that extra does bring it."""

import ast
import inspect
import itertools
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import whence
import whence.evaluation
from whence.cli import main
from whence.evaluation import EstimatorRetraining

#: Packages by the name that is installed, where it is not the one that is imported.
INSTALLED_AS = {
    "PIL": "pillow",
    "cloudpickle": "dask",
    "distributed": "dask",
    "joblib": "scikit-learn",
    "sklearn": "scikit-learn",
}


def explanation():
    one, row = np.ones((1, 1)), np.zeros(1, dtype=np.int64)
    rows = row[:, None]
    return whence.Explanation(
        rows, one, rows, -one, row, row, one[0], row, None, one[0], one[0], rows, rows, {"method": "x"}
    )


def suspects():
    row = np.zeros(1, dtype=np.int64)
    return whence.Suspects(row, np.ones(1), "loss", row, row)


#: What is called: the package without which it must name an extra, and that extra.
CALLS = {
    "LabelErrors": (lambda path: whence.LabelErrors, "sklearn", "sklearn"),
    "Explanation.to_frame": (lambda path: explanation().to_frame(), "pandas", "report"),
    "Explanation.to_frame, polars": (lambda path: explanation().to_frame("polars"), "polars", "polars"),
    "Explanation.to_parquet": (lambda path: explanation().to_parquet(path), "pyarrow", "parquet"),
    "Explanation.save_html": (lambda path: explanation().save_html(path), "jinja2", "report"),
    "Explanation.plot": (lambda path: explanation().plot(), "matplotlib", "report"),
    "Suspects.to_frame": (lambda path: suspects().to_frame(), "pandas", "report"),
    "Suspects.to_frame, polars": (lambda path: suspects().to_frame("polars"), "polars", "polars"),
    "Suspects.to_parquet": (lambda path: suspects().to_parquet(path), "pyarrow", "parquet"),
    "Suspects.save_html": (lambda path: suspects().save_html(path), "jinja2", "report"),
    "Suspects.plot": (lambda path: suspects().plot(), "matplotlib", "report"),
    "EstimatorRetraining": (
        lambda path: EstimatorRetraining(object(), np.ones((2, 1)), np.ones(2), ask=len).full,
        "sklearn",
        "sklearn",
    ),
}
#: These say so before anything else, even before they look at what they are given.
FRAMES = [
    "completeness",
    "detection_curve",
    "label_error_detection",
    "leave_group_out",
    "leave_one_out",
    "linear_datamodeling_score",
    "stability",
    "subset_removal",
]


def without(monkeypatch, package):
    for name in [package, *(n for n in sys.modules if n.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)


def named(package, extra):
    return re.escape(f"package {package!r}, which is not installed. Run: pip install 'whence[{extra}]'")


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_package_is_named_with_its_extra(call, monkeypatch, tmp_path):
    function, package, extra = CALLS[call]
    without(monkeypatch, package)
    with pytest.raises(whence.MissingExtraError, match=named(package, extra)):
        function(tmp_path / "answer")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FRAMES)
def test_measures_that_return_frames_say_so_before_they_begin(name, monkeypatch):
    without(monkeypatch, "pandas")
    function = getattr(whence.evaluation, name)
    required = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    by_name = {p.name: None for p in required if p.kind is p.KEYWORD_ONLY}
    with pytest.raises(whence.MissingExtraError, match=named("pandas", "report")):
        function(*(None for p in required if p.kind is not p.KEYWORD_ONLY), **by_name)


def test_the_command_line_says_so_in_one_line(monkeypatch, capsys):
    without(monkeypatch, "typer")
    assert main(["--help"]) == 1
    assert capsys.readouterr().err == (
        "whence: This needs the package 'typer', which is not installed. Run: pip install 'whence[cli]'\n"
    )


# ------------------------------------------------------------------------- messages and metadata


def _requirements():
    """What each extra brings: ``{extra: {package}}``, extras of whence within it followed."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]

    def whole(extra):
        for requirement in extras[extra]:
            name, nested = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement).groups()
            if name == "whence":
                yield from itertools.chain.from_iterable(map(whole, nested.split(",")))
            else:
                yield name.removesuffix("-cpu")

    return {extra: set(whole(extra)) for extra in extras}


def _demands():
    """Every ``import_extra(module, extra)`` with both written out: ``(where, module, extra)``."""
    root = Path(whence.__file__).parent
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "import_extra":
                values = [a.value for a in node.args if isinstance(a, ast.Constant)]
                if len(values) == 2:
                    yield f"{file.relative_to(root)}:{node.lineno}", *values


def test_every_extra_that_a_message_names_brings_the_package():
    requirements = _requirements()
    demands = list(_demands())
    assert len(demands) > 20
    for where, module, extra in demands:
        package = module.split(".")[0]
        package = INSTALLED_AS.get(package, package)
        assert package in requirements[extra], f"{where}: whence[{extra}] does not bring {package}"
