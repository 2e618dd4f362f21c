"""The reference holds every public name, and every docstring every parameter."""

import enum
import inspect
import re
from pathlib import Path

import pytest

import whence
import whence.evaluation
from whence.indexing.options import KEYWORDS

#: What users call or subclass. Of the layers below them, the index and the linear layer, methods of one
#: line say in it what they take.
WITH_EVERY_METHOD = (
    whence.Attribution,
    whence.BaseNearestNeighbors,
    whence.Explanation,
    whence.InverseHessianVectorProduct,
    whence.InverseHessianVectorProductFactory,
    whence.Suspects,
)
PAGE = Path(__file__).parents[1] / "docs" / "api.md"
SECTIONS = r"Parameters|Attributes|Returns|Yields|Raises|Notes|Examples|References|See Also|Warns"


def public():
    """Every public object by its whole name; ``LabelErrors`` only where scikit-learn is installed."""
    for module in (whence, whence.evaluation):
        for name in module.__all__:
            if name == "LabelErrors":
                pytest.importorskip("sklearn")
            yield f"{module.__name__}.{name}", getattr(module, name)


def entries():
    """Every public function and constructor by its whole name, with its docstring."""
    for name, thing in public():
        if not (inspect.isclass(thing) and issubclass(thing, enum.Enum | Exception)):
            yield name, thing, [inspect.getdoc(thing)]


def methods():
    """Every method of these classes, with the docstrings that it has and inherits."""
    for name, thing in public():
        if not inspect.isclass(thing) or not issubclass(thing, WITH_EVERY_METHOD):
            continue
        for member, value in inspect.getmembers(thing, inspect.isroutine):
            owners = [c for c in thing.__mro__ if member in vars(c)]
            if member.startswith("_") or owners[0].__module__.split(".")[0] != "whence":
                continue
            yield f"{name}.{member}", value, [inspect.getdoc(vars(owner)[member]) for owner in owners]


def documented(docstring):
    """The names that the sections on parameters and attributes describe."""
    parts = re.split(rf"^({SECTIONS})\n-+$", docstring, flags=re.MULTILINE)
    names = set()
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        if title in ("Parameters", "Attributes"):
            for line in re.findall(r"^[*\w][\w, *]*(?= : |$)", text, flags=re.MULTILINE):
                names.update(name.strip(" *") for name in line.split(","))
    return names


def test_the_page_holds_every_public_name():
    page = PAGE.read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: (whence[\w.]*)$", page, flags=re.MULTILINE))
    block = page.split("::: whence.evaluation\n")[1].split(":::")[0]
    shown |= {f"whence.evaluation.{name}" for name in re.findall(r"^ +- (\w+)$", block, flags=re.MULTILINE)}
    names = {f"{m.__name__}.{name}" for m in (whence, whence.evaluation) for name in m.__all__}
    assert not names - shown, "not in docs/api.md"
    assert not shown - names - {"whence.evaluation", "whence.models", "whence.report.measures"}, (
        "in docs/api.md, but not public"
    )


@pytest.mark.parametrize("things", [entries, methods])
def test_every_parameter_is_described(things):
    missing = {}
    count = 0
    for name, function, docstrings in things():
        assert docstrings[0], f"{name} has no docstring"
        parameters = set(inspect.signature(function).parameters) - {"self"}
        count += len(parameters)
        described = set().union(*(documented(text) for text in docstrings if text))
        if "options" in described and "index_options" in parameters:
            described |= {*KEYWORDS, "index_options"}  # each is described by IndexOptions
        refers = any(":meth:" in text for text in docstrings if text)
        if not refers and (absent := parameters - described):
            missing[name] = sorted(absent)
    assert count > 90
    assert not missing


def test_attributes_of_answers_are_described():
    for answer in (whence.Explanation, whence.Suspects, whence.Solution):
        assert set(answer.__dataclass_fields__) <= documented(inspect.getdoc(answer))


def test_defaults_are_the_documented_ones():
    """Where a docstring says ``default=X``, the signature does too."""
    differing, count = {}, 0
    for name, function, docstrings in [*entries(), *methods()]:
        described = dict(re.findall(r"^(\w+) : .*default=(\S+)$", docstrings[0] or "", flags=re.MULTILINE))
        for parameter in inspect.signature(function).parameters.values():
            default = parameter.default
            if parameter.name in described and type(default) in (bool, float, int, str, type(None)):
                count += 1
                said = described[parameter.name]
                is_number = type(default) in (int, float)
                if float(said) != default if is_number else said != _written(default):
                    differing[f"{name}({parameter.name})"] = said, default
    assert count > 80
    assert not differing


def test_what_the_library_adds_is_given_by_name():
    for name, kind in public():
        if inspect.isclass(kind) and issubclass(kind, whence.Attribution):
            parameters = inspect.signature(kind).parameters
            assert parameters["influence_model"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD, name
            for option in {"label", "ids", "progress", "seed", "engine"} & set(parameters):
                assert parameters[option].kind is inspect.Parameter.KEYWORD_ONLY, (name, option)


def _written(default):
    return f'"{default}"' if isinstance(default, str) else repr(default)
