#!/usr/bin/env python3
"""Build wheel and sdist, install them into clean environments, and look at what is there.

    .ci/packaging.py                      everything
    .ci/packaging.py core types lowest    some of it
    .ci/packaging.py --lean               what .ci/run does: everything but the large extras

- core     the wheel alone on every supported Python: nothing but what it needs is installed, importing it
           imports no framework, missing extras are named, the tests of the mathematics pass
- types    the public interface in the eyes of mypy --strict and of pyright --verifytypes
- lowest   the tests with every dependency at its lower bound
- extras   each extra installs, and what it is for works

It needs the standard library and pip alone. Interpreters that are missing are left out, and named.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
PARTS = ("core", "types", "lowest", "extras")

CORE = {"array-api-compat", "numpy", "scipy", "whence"}
#: What NumPy itself imports where it happens to be installed (``numpy.f2py``).
TAKEN_BY_CORE = {"charset-normalizer"}
#: Tests that need no package beyond the core, but pytest and hypothesis.
CORE_TESTS = [
    "tests/ihvp/test_exact.py",
    "tests/ihvp/test_woodbury.py",
    "tests/index/test_store.py",
    "tests/arrays/test_base.py",
    "tests/test_errors.py",
    "tests/test_imports.py",
    "tests/arrays/test_symmetric.py",
    "tests/layers/test_linear_layer.py",
    "tests/layers/test_linear_layer_sequence.py",
    "tests/layers/test_losses.py",
    "tests/layers/test_margin_losses.py",
    "tests/test_missing_extras.py",
    "tests/search/test_scores.py",
]
TOOLS = ("hypothesis", "psutil", "pytest", "threadpoolctl")
#: What the lower bounds are tried on, besides these: the adapters, the answers and the command line.
LOWEST_TESTS = [
    "tests/attribution/test_explain.py",
    "tests/attribution/test_l2.py",
    "tests/cli/test_commands.py",
    "tests/cli/test_main.py",
    "tests/ihvp/test_solvers.py",
    "tests/models/test_any_loss.py",
    "tests/models/test_keras.py",
    "tests/models/test_sklearn.py",
    "tests/models/test_trees.py",
    "tests/report",
    "tests/data/test_base.py",
    "tests/evaluation/test_evaluation.py",
    "tests/answers/test_explanation.py",
    "tests/test_label_errors.py",
    "tests/test_progress.py",
    "tests/arrays/test_sparse.py",
]
#: Importing whence may take this share of what its dependencies take.
OWN_SHARE = 1 / 3
#: The only build of torch without a GPU that the index offers to pip is asked for by number.
TORCH = "torch==2.13.0"
#: Extras that take minutes and gigabytes.
LARGE = {"demo", "jax", "tensorflow", "torch", "transformers"}
FOR_WORK = {"browser", "dev", "docs", "mutants", "test"}

EXPLANATION = """
import numpy as np, whence
one, row = np.ones((1, 1)), np.zeros(1, dtype=np.int64)
rows = row[:, None]
answer = whence.Explanation(rows, one, rows, -one, row, row, one[0], row, None, one[0], one[0], rows, rows)
"""
ARRAYS = """
import numpy as np, whence
x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
y = (x[:, 0] > 0).astype(np.int64)
def explained(model, **options):
    wrapped = whence.InfluenceModel(model, **options)
    answer = whence.RepresenterPointLJE(wrapped, (x, y), whence.ExactIHVPFactory()).explain((x[:2],), k=3)
    assert answer.ids.shape == (2, 3) and np.isfinite(answer.values).all()
"""
KERAS = """
import keras
net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
net.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
explained(net)
"""
#: What each extra is for, in a few lines. ``OUT`` is a folder.
USES = {
    "cli": "from whence.cli import main; assert main(['--version']) == 0",
    "demo": "from whence.cli import main; assert main(['demo', '-q', '-o', OUT + '/demo.html']) == 0",
    "distributed": ARRAYS
    + "import dask.distributed, upath\n"
    + "from whence.engine.chosen import as_engine\n"
    + "with dask.distributed.Client(processes=False, n_workers=1, dashboard_address=None) as client:\n"
    + "    as_engine(client)\n"
    + "from whence._paths import as_path\n"
    + "assert str(as_path('memory://folder')).startswith('memory:')",
    "jax": "import os; os.environ['KERAS_BACKEND'] = 'jax'" + ARRAYS + KERAS,
    "parquet": EXPLANATION + "answer.to_parquet(OUT + '/answer.parquet')",
    "polars": EXPLANATION + "assert answer.to_frame('polars').height == 2",
    "report": EXPLANATION
    + "import matplotlib; matplotlib.use('Agg')\n"
    + "answer.plot(); answer.save_html(OUT + '/answer.html'); assert len(answer.to_frame()) == 2",
    "sklearn": ARRAYS
    + "from sklearn.linear_model import LogisticRegression as L\n"
    + "explained(L().fit(x, y)); assert whence.LabelErrors(L()).fit(x, y).scores_.shape == (40,)",
    "tensorflow": ARRAYS + KERAS,
    "torch": ARRAYS
    + "import torch\n"
    + "explained(torch.nn.Linear(3, 2), loss_function=torch.nn.CrossEntropyLoss())",
    "transformers": "import datasets, transformers, whence",
    "trees": ARRAYS
    + "import lightgbm, xgboost\n"
    + "explained(xgboost.XGBClassifier(n_estimators=3).fit(x, y))\n"
    + "explained(lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(x, y))",
}


#: Prints which installed packages are there after ``import whence``.
LOADED = """
import sys, whence
from importlib.metadata import packages_distributions
found = packages_distributions()
names = {name.split('.')[0] for name in sys.modules} & set(found) - {'_distutils_hack'}
print(*{dist.lower().replace('-', '_') for name in names for dist in found[name]})
"""


class Failed(Exception):
    """Something that must hold does not."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:4.0f}s] {text}", flush=True)


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Failed(what)


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Return what a command prints, or fail with all of it."""
    words = [str(word) for word in command]
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "WHENCE_REQUIRE_ALL")  # most packages are missing here
    clean = {k: v for k, v in os.environ.items() if k not in left_out}
    done = subprocess.run(
        words,
        cwd=cwd,
        env=clean | {"MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "3"} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        shown = " ".join(words) if len(words) < 30 else " ".join([*words[:30], "..."])
        raise Failed(f"{shown}\n{done.stdout}")
    return done.stdout


def interpreter(version: str) -> str | None:
    """Return Python ``version``: this one, one on PATH, or one that pyenv or uv knows."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    candidates = [[f"python{version}"]]
    if shutil.which("pyenv"):
        bare = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True).stdout
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
        known = [name for name in bare.split() if name.startswith(f"{version}.")]
        candidates += [[f"{root}/versions/{name}/bin/python"] for name in reversed(known)]
    for command in candidates:
        try:
            look = [*command, "-c", "import sys; print(sys.version_info[:2], sys.executable, sep='|')"]
            found = subprocess.run(look, capture_output=True, text=True)
        except FileNotFoundError:
            continue
        numbers, _, path = found.stdout.strip().partition("|")
        if found.returncode == 0 and numbers == str(tuple(map(int, version.split(".")))):
            return path
    return None


class Environment:
    """A clean virtual environment."""

    def __init__(self, python: str, folder: Path) -> None:
        run(python, "-m", "venv", folder)
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        self.bin = self.python.parent

    def install(self, *what: object) -> None:
        """Install from wheels alone, and check that what is there fits together."""
        run(self.python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *what)
        run(self.python, "-m", "pip", "check")

    def packages(self) -> dict[str, str]:
        listed = run(self.python, "-m", "pip", "list", "--format", "json")
        names = json.loads(listed[listed.index("[") : listed.rindex("]") + 1])
        return {p["name"].lower().replace("_", "-"): p["version"] for p in names}

    def test(self, source: Path, *arguments: str) -> str:
        """Run tests of the unpacked sdist on the installed wheel; return pytest's last line."""
        where = run(self.python, "-c", "import whence; print(whence.__file__)", cwd=source).strip()
        check("site-packages" in where, f"the tests would run on {where}, not on the installed wheel")
        out = run(self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, cwd=source)
        return out.strip().splitlines()[-1]


class Package:
    """Wheel and sdist, and the sources in the latter."""

    def __init__(self, scratch: Path) -> None:
        say("Build wheel and sdist")
        tools = Environment(sys.executable, scratch / "tools")
        tools.install("build", "twine")
        run(tools.python, "-m", "build", "--outdir", scratch / "dist", ROOT)
        (self.wheel,) = (scratch / "dist").glob("*.whl")
        (sdist,) = (scratch / "dist").glob("*.tar.gz")
        run(tools.bin / "twine", "check", "--strict", self.wheel, sdist)
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch / "sdist", filter="data")
        (self.source,) = (scratch / "sdist").iterdir()
        project = tomllib.loads((self.source / "pyproject.toml").read_text())["project"]
        self.dependencies: list[str] = project["dependencies"]
        self.extras: dict[str, list[str]] = project["optional-dependencies"]
        say(f"    {self.wheel.name}, {sdist.name}")

    def with_extras(self, *extras: str) -> str:
        return f"whence[{','.join(extras)}] @ {self.wheel.as_uri()}"

    def lowest(self, file: Path) -> Path:
        """Write constraints that hold every dependency at its lower bound."""
        lines = [*self.dependencies, *(line for extra in self.extras.values() for line in extra)]
        others = (re.sub(r"\[.*\]", "", line) for line in lines if not line.startswith("whence["))
        file.write_text("\n".join(sorted({line.replace(">=", "==") for line in others})) + "\n")
        return file


def import_times(env: Environment, folder: Path) -> tuple[float, float]:
    """Return seconds of whence's own modules and of all, the quickest of three imports."""
    best = (float("inf"), float("inf"))
    for _ in range(3):
        text = run(env.python, "-X", "importtime", "-c", "import whence", cwd=folder)
        rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", text)
        own = sum(int(us) for us, name in rows if name.split(".")[0] == "whence") / 1e6
        best = min(best, (own, sum(int(us) for us, _ in rows) / 1e6), key=lambda pair: pair[1])
    return best


def test_core(package: Package, pythons: dict[str, str], scratch: Path, lean: bool) -> None:
    for version, python in pythons.items():
        say(f"Core alone on Python {version}")
        env = Environment(python, scratch / f"core-{version}")
        env.install(package.wheel)
        there = set(env.packages()) - {"pip", "setuptools"}
        check(there == CORE, f"with the core come {sorted(there)}, not {sorted(CORE)}")
        empty = scratch / "empty"
        empty.mkdir(exist_ok=True)
        own, total = import_times(env, empty)
        say(f"    {', '.join(sorted(there))}; import {total:.2f} s, of which whence itself {own:.2f} s")
        check(own <= OWN_SHARE * (total - own), "whence itself takes too long to import")
        done = subprocess.run([env.bin / "whence", "--version"], capture_output=True, text=True, cwd=empty)
        check(done.returncode == 1 and "pip install 'whence[cli]'" in done.stderr, f"whence: {done.stderr}")
        if lean and version != PYTHONS[-1]:
            continue  # .ci/run has tested on the first; what both pass is not tried on those between
        env.install(*TOOLS)
        say("    " + env.test(package.source, *CORE_TESTS))


def test_types(package: Package, pythons: dict[str, str], scratch: Path, lean: bool) -> None:
    version, python = list(pythons.items())[-1]
    say(f"Types, on Python {version}")
    env = Environment(python, scratch / "types")
    env.install(package.wheel, "mypy", "pyright")
    consumer = package.source / "tests" / "typing" / "consumer.py"
    empty = scratch / "no-settings"
    empty.mkdir()
    out = run(env.python, "-m", "mypy", "--strict", "--config-file=", consumer, cwd=empty)
    say("    mypy --strict on a user's script: " + out.strip().splitlines()[-1])
    try:
        run(env.bin / "pyright", "--version", cwd=empty)
    except Failed as failure:
        say(f"    pyright could not be started, and was left out: {failure}".splitlines()[0])
        return
    verify = [env.bin / "pyright", "--pythonpath", env.python, "--verifytypes", "whence"]
    done = subprocess.run(
        [*map(str, verify), "--ignoreexternal", "--outputjson"],
        capture_output=True,
        text=True,
        cwd=empty,
        env=os.environ | {"PATH": f"{env.bin}{os.pathsep}{os.environ['PATH']}"},
    )
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    names = run(env.python, "-c", PUBLIC, cwd=empty).split()
    public = [s for s in symbols if any(s["name"] == n or s["name"].startswith(f"{n}.") for n in names)]
    unknown = sorted(s["name"] for s in public if not s["isTypeKnown"])
    check(len(public) > 100, f"pyright sees {len(public)} symbols of the public interface")
    check(not unknown, f"types that pyright cannot tell: {unknown}")
    say(f"    pyright --verifytypes: all {len(public)} symbols of the public interface are known")


#: Prints where every public name is defined, and the classes of whence that it inherits from.
#: ``LabelErrors`` stands on scikit-learn's classes, of which nothing is known without that.
PUBLIC = """
import inspect, whence, whence.evaluation
for module in (whence, whence.evaluation):
    for name in set(module.__all__) - {'LabelErrors'}:
        thing = getattr(module, name)
        for one in thing.__mro__ if inspect.isclass(thing) else [thing]:
            if one.__module__.split('.')[0] == 'whence':
                print(one.__module__ + '.' + one.__qualname__)
"""


def test_lowest(package: Package, pythons: dict[str, str], scratch: Path, lean: bool) -> None:
    if PYTHONS[0] not in pythons:
        say(f"Lower bounds: left out, they are those of Python {PYTHONS[0]}")
        return
    say(f"Every dependency at its lower bound, on Python {PYTHONS[0]}")
    moved = [test for test in (*CORE_TESTS, *LOWEST_TESTS) if not (ROOT / test).exists()]
    check(not moved, f"no longer where they were: {moved}")  # also where few of them are run
    env = Environment(pythons[PYTHONS[0]], scratch / "lowest")
    limits = package.lowest(scratch / "lowest.txt")
    # Old versions of other packages use what newer ones deprecate: no matter here.
    tests = ["-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning", *CORE_TESTS]
    if lean:
        env.install("--constraint", limits, package.wheel, *TOOLS)
    else:
        env.install("--constraint", limits, package.with_extras("test", "sklearn"))
        tests += LOWEST_TESTS
    packages = env.packages()
    bounds = dict(re.findall(r"^([\w.-]+)==([\w.]+)", limits.read_text(), flags=re.MULTILINE))
    held = {name: packages[name] for name in sorted(bounds) if name in packages}
    off = [name for name, version in held.items() if not version.startswith(bounds[name])]
    check(not off, f"not at their lower bounds: {off}")
    say("    " + ", ".join(f"{name} {version}" for name, version in held.items()))
    say("    " + env.test(package.source, *tests))
    if not lean:
        say("    torch, jax and transformers: left out; pip finds no build of torch 2.4 for CPUs")


def test_extras(package: Package, pythons: dict[str, str], scratch: Path, lean: bool) -> None:
    names = sorted(set(package.extras) - FOR_WORK - (LARGE if lean else set()))
    # Where time is short the small ones share an environment; else each has its own.
    for extras in [names] if lean else [[name] for name in names]:
        heavy = any("torch" in line for extra in extras for line in package.extras[extra])
        version = PYTHONS[0] if heavy and PYTHONS[0] in pythons else list(pythons)[-1]
        say(f"whence[{','.join(extras)}] on Python {version}")
        folder, out = scratch / "extra", scratch / "out"
        env = Environment(pythons[version], folder)
        env.install(package.with_extras(*extras), *([TORCH] if heavy else []))
        out.mkdir()
        for extra in extras:
            run(env.python, "-c", f"OUT = {str(out)!r}\n{USES[extra]}", cwd=out)
        loaded = set(run(env.python, "-c", LOADED, cwd=out).split())
        allowed = {name.replace("-", "_") for name in CORE | TAKEN_BY_CORE}
        check(loaded <= allowed, f"import whence brings in {loaded}")
        say(f"    {len(env.packages())} packages, and they do what they are for")
        shutil.rmtree(folder)
        shutil.rmtree(out)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check what is built and installed.")
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--lean", action="store_true", help="leave out what takes minutes")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part is named {', '.join(unknown)}")
    pythons = {}
    for version in PYTHONS:
        python = interpreter(version)
        if python is None:
            say(f"Python {version}: no interpreter found; left out")
        else:
            pythons[version] = python
    if not pythons:
        say(f"None of Python {', '.join(PYTHONS)} was found")
        return 1
    with tempfile.TemporaryDirectory(prefix="whence-packaging-") as folder:
        scratch = Path(folder)
        try:
            package = Package(scratch)
            for part in given.parts or PARTS:
                globals()[f"test_{part}"](package, pythons, scratch, given.lean)
        except Failed as failure:
            say(f"FAILED: {failure}")
            return 1
    say("Packaging holds")
    return 0


STARTED = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
