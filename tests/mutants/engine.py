"""Runs tests on faulty versions of the library: each in a fork of one process that has collected them.

A fault is a changed source of one module. In the fork the code of every function that differs is put into
the function that is already there, so that nothing is imported or collected again and a fault costs what
its tests cost. Needs ``os.fork``.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "whence"

#: A fault may take this many times what its tests take without it, and as many seconds more.
PATIENCE, GRACE = 10, 20
PLAIN = (bool, int, float, complex, str, bytes, tuple, frozenset, type(None))


@dataclass(frozen=True)
class Fault:
    """A faulty version of a file below ``src/whence``, and the tests that may notice; None for no fault."""

    name: str
    file: str
    source: str | None
    tests: Sequence[Any]
    seconds: float = 30.0
    #: Further tests, for a second try.
    more: Sequence[Any] = ()


@dataclass(frozen=True)
class Verdict:
    """What became of a fault: ``how`` is ``"survived"``, or what noticed it."""

    fault: Fault
    how: str
    seconds: float

    @property
    def survived(self) -> bool:
        return self.how == "survived"


# ---------------------------------------------------------------------------------------- grafting


def graft(file: str, source: str) -> int:
    """Put the functions, defaults and constants of a changed source in place; return how many differ."""
    name = "whence." + file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    module = sys.modules[name]
    fresh = types.ModuleType(name)
    fresh.__dict__.update(__file__=module.__file__, __package__=module.__package__)
    exec(compile(source, str(module.__file__), "exec"), fresh.__dict__)
    return _graft_into(vars(module), fresh.__dict__, name, _everywhere(module))


def _graft_into(old: Any, new: Any, module: str, put: Callable[[str, Any], None]) -> int:
    changed = 0
    for name, value in list(new.items()):
        if name.startswith("__") and not isinstance(value, types.FunctionType):
            continue
        there = old.get(name, _MISSING)
        if isinstance(value, type):
            if value.__module__ == module and isinstance(there, type) and value is not there:

                def put_attribute(attribute: str, thing: Any, owner: type = there) -> None:
                    setattr(owner, attribute, thing)

                changed += _graft_into(vars(there), vars(value), module, put_attribute)
        elif function := _function_of(value):
            target = _function_of(there)
            if function.__module__ != module:
                continue
            if target is None or type(value) is not type(there):  # such as a property no longer one
                put(name, value)
                changed += 1
            else:
                changed += _replace(target, function)
        elif isinstance(value, PLAIN) and isinstance(there, PLAIN):
            if value != there:
                put(name, value)
                changed += 1
        elif isinstance(value, dict) and isinstance(there, dict) and repr(value) != repr(there):
            there.clear()
            there.update(value)
            changed += 1
    return changed


_MISSING = object()


def _everywhere(module: types.ModuleType) -> Callable[[str, Any], None]:
    """Return what sets a global, in the modules that imported it too."""

    def put(name: str, value: Any) -> None:
        before = vars(module).get(name, _MISSING)
        for other in [m for n, m in sys.modules.items() if n.split(".")[0] == "whence"]:
            if before is not _MISSING and vars(other).get(name, _MISSING) is before:
                setattr(other, name, value)
        setattr(module, name, value)

    return put


def _function_of(value: Any) -> types.FunctionType | None:
    """Return the plain function that a function, method or property is made of."""
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, cached_property):
        value = value.func
    elif isinstance(value, staticmethod | classmethod):
        value = value.__func__
    while hasattr(value, "__wrapped__") and not isinstance(value, type):
        value = value.__wrapped__
    return value if isinstance(value, types.FunctionType) else None


def _replace(old: types.FunctionType, new: types.FunctionType) -> int:
    same = old.__code__ == new.__code__ and repr(old.__defaults__) == repr(new.__defaults__)
    same = same and repr(old.__kwdefaults__) == repr(new.__kwdefaults__)
    if same or len(old.__code__.co_freevars) != len(new.__code__.co_freevars):
        return 0
    old.__code__ = new.__code__
    old.__defaults__, old.__kwdefaults__ = new.__defaults__, new.__kwdefaults__
    return 1


# ----------------------------------------------------------------------------------------- forking


def run_items(items: Sequence[Any], each: Callable[[Any], None] | None = None) -> str | None:
    """Run collected tests one after another; return the first that fails."""
    from _pytest.runner import runtestprotocol

    for item, following in zip(items, [*items[1:], None], strict=False):
        if each is not None:
            each(item)
        reports = runtestprotocol(item, log=False, nextitem=following)
        if any(report.failed for report in reports):
            return str(item.nodeid)
    return None


def fork(work: Callable[[], str], seconds: float) -> tuple[int, int]:
    """Run ``work`` in a fork with so much processor time; return its id and a pipe with what it returns."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    os.close(reading)
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        limit = int(seconds * PATIENCE + GRACE)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        signal.alarm(2 * limit + 60)  # for what sleeps
        text = work()
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
    os.write(writing, text.encode(errors="replace")[:2000])
    os._exit(0)


def judge(faults: Iterable[Fault], jobs: int) -> Iterator[Verdict]:
    """Yield what becomes of each fault, ``jobs`` at a time, as they are done."""
    waiting = iter(faults)
    running: dict[int, tuple[Fault, int, float]] = {}
    while True:
        while len(running) < jobs and (fault := next(waiting, None)) is not None:
            process, pipe = fork(lambda fault=fault: _try(fault), fault.seconds)
            running[pipe] = fault, process, time.monotonic()
        if not running:
            return
        for pipe in select.select(list(running), [], [])[0]:
            fault, process, start = running.pop(pipe)
            parts = iter(lambda pipe=pipe: os.read(pipe, 4096), b"")
            how = b"".join(parts).decode(errors="replace")
            os.close(pipe)
            os.waitpid(process, 0)
            yield Verdict(fault, how or "it did not come to an end", time.monotonic() - start)


def _try(fault: Fault) -> str:
    if fault.source is None:
        return run_items(fault.tests) or "survived"
    try:
        changed = graft(fault.file, fault.source)
    except Exception as error:
        return f"it cannot be imported: {type(error).__name__}"
    if not changed:
        raise AssertionError("nothing was changed")
    return run_items(fault.tests) or "survived"


# -------------------------------------------------------------------------------------- collecting


class _InsteadOfRunning:
    """A plugin of pytest that does something else with the collected tests than to run them."""

    def __init__(self, work: Callable[[list[Any]], int]) -> None:
        self.work = work
        self.result = 2

    def pytest_configure(self, config: Any) -> None:
        import hypothesis  # not before pytest, which rewrites it

        hypothesis.settings.register_profile("mutants", deadline=None, derandomize=True, database=None)
        hypothesis.settings.load_profile("mutants")

    def pytest_runtestloop(self, session: Any) -> bool:
        if session.testsfailed:
            raise SystemExit("The tests could not be collected.")
        self.result = self.work(session.items)
        return True


def with_tests(files: Sequence[str], work: Callable[[list[Any]], int], *options: str) -> int:
    """Collect the tests of some files, and hand them to ``work``; return what it returns."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # before NumPy is imported: forks must not inherit threads
    import pytest

    sys.path.insert(0, str(SOURCE.parent))
    os.chdir(ROOT)
    plugin = _InsteadOfRunning(work)
    quiet = ["-qq", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", "--no-header"]
    pytest.main([*quiet, *options, *files], plugins=[plugin])
    return plugin.result
