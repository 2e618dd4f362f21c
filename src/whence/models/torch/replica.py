"""A module in inference mode that no other thread sees: its own modes and hooks, the same weights.

``torch.nn.DataParallel`` runs modules likewise, on copies of the tree that share what they hold. Whether a
module can be run so is tried once: where its code reaches the user's own modules past the tree, as by a
closure, these are run themselves, one thread at a time, and switched to inference mode meanwhile.
"""

from __future__ import annotations

import copy
import functools
import sys
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Running", "inference", "running", "try_replica"]

#: One lock for each module, which several adapters and threads may run.
_LOCKS: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
#: Whether a module can be run by a replica, once that was tried.
_STANDS_IN: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
_GUARD = threading.Lock()
#: What each thread runs in the place of which module.
_THREAD = threading.local()

#: Containers in a module's attributes longer than this hold data, not modules.
LONG = 10_000


class Running:
    """A module as it is run: a replica, or the module itself.

    Attributes
    ----------
    model : torch.nn.Module
    """

    def __init__(self, model: Any, twins: dict[int, Any] | None = None) -> None:
        self.model = model
        self._twins = twins or {}

    def __getitem__(self, module: Any) -> Any:
        """Return what is run in the place of one of the user's modules."""
        return self._twins.get(id(module), module)


@contextmanager
def inference(torch: Any, model: Any) -> Iterator[Running]:
    """Yield a model to run in eval mode, without gradients or compilation, and to set hooks on."""
    current = _current().get(id(model))
    if current is not None:  # inside of another
        with torch.no_grad():
            yield current
        return
    if _STANDS_IN.get(model, False):
        twins = _twins_of(torch, model)
        with (
            torch.no_grad(),
            _eager(torch),
            _as_current(model, Running(twins[id(model)], twins)) as current,
        ):
            yield current
        return
    with _GUARD:
        lock = _LOCKS.setdefault(model, threading.RLock())
    with lock:
        modes = [(module, module.training) for module in model.modules()]
        try:
            for module, _ in modes:
                module.training = False
            with torch.no_grad(), _eager(torch), _as_current(model, Running(model)) as current:
                yield current
        finally:
            for module, training in modes:
                module.training = training


def running(model: Any) -> Any:
    """Return what is run in the place of a module where :func:`inference` is, in this thread: or itself."""
    current = _current().get(id(model))
    return model if current is None else current.model


def _current() -> dict[int, Running]:
    if not hasattr(_THREAD, "current"):
        _THREAD.current = {}
    current: dict[int, Running] = _THREAD.current
    return current


@contextmanager
def _as_current(model: Any, run: Running) -> Iterator[Running]:
    _current()[id(model)] = run
    try:
        yield run
    finally:
        del _current()[id(model)]


def try_replica(torch: Any, model: Any, run: Callable[[], Any]) -> None:
    """Find out whether a replica can be run, by ``run()``, which takes what is :func:`running`."""
    if model in _STANDS_IN:
        return
    try:
        twins = _twins_of(torch, model)
        theirs = {id(module) for module in model.modules()}
        replica = Running(twins[id(model)], twins)
        with torch.no_grad(), _eager(torch), _as_current(model, replica):
            reached = _reached(theirs, run)
    except Exception:  # whatever the user's code raises; it is then run itself, and may say it again
        reached = True
    _STANDS_IN[model] = not reached


def _reached(modules: set[int], run: Callable[[], Any]) -> bool:
    """Whether some of the modules are called when ``run()`` is; seen by this thread's profiler alone."""
    found = False

    def look(frame: Any, event: str, _: Any) -> None:
        nonlocal found
        calls = event == "call" and frame.f_code.co_name in ("_wrapped_call_impl", "_call_impl", "forward")
        if calls and id(frame.f_locals.get("self")) in modules:
            found = True
            raise _ReachedError  # before it is run: it may be in training mode

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        run()
    except _ReachedError:
        pass
    finally:
        sys.setprofile(before)
    return found


class _ReachedError(Exception):
    """One of the user's own modules is about to be run."""


def _twins_of(torch: Any, model: Any) -> dict[int, Any]:
    """Return a copy of every module in a tree, by the ``id`` of the module; they refer to each other."""
    modules = list(model.modules())
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        raise TypeError("scripted modules cannot be copied so")
    twins: dict[int, Any] = {}
    for module in modules:
        twins[id(module)] = object.__new__(type(module))
    for module in modules:
        if hasattr(module, "_orig_mod"):  # compiled for the user's own module
            twins[id(module)] = twins[id(module._orig_mod)]
    for module in modules:
        if not hasattr(module, "_orig_mod"):
            state = {key: _rewired(value, twins) for key, value in list(vars(module).items())}
            state |= {"training": False, "_compiled_call_impl": None}
            vars(twins[id(module)]).update(state)
    return twins


def _rewired(value: Any, twins: dict[int, Any], depth: int = 0) -> Any:
    """Return an attribute with twins in the place of modules; lists and dicts are copied in any case."""
    if id(value) in twins:
        return twins[id(value)]
    kind = type(value)
    if kind in (dict, OrderedDict) and len(value) <= LONG:
        other = copy.copy(value)
        if depth < 3:
            other.update({key: _rewired(part, twins, depth + 1) for key, part in list(value.items())})
        return other
    if kind in (list, tuple) and len(value) <= LONG and depth < 3:
        return kind(_rewired(part, twins, depth + 1) for part in value)
    if kind is types.MethodType and id(value.__self__) in twins:
        return types.MethodType(value.__func__, twins[id(value.__self__)])
    if kind is functools.partial and depth < 3:
        args = (_rewired(part, twins, depth + 1) for part in value.args)
        keywords = {key: _rewired(part, twins, depth + 1) for key, part in value.keywords.items()}
        return functools.partial(_rewired(value.func, twins, depth + 1), *args, **keywords)
    return value


# ---------------------------------------------------------------------------------------- compilation

_eager_count = 0
_eager_before: Any = None


@contextmanager
def _eager(torch: Any) -> Iterator[None]:
    """Leave out compilation inside this context, which any number of threads may be in."""
    global _eager_count, _eager_before
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None or "torch._dynamo" not in sys.modules:  # nothing was compiled
        yield
        return
    with _GUARD:
        if not _eager_count:
            _eager_before = stance("force_eager")
            _eager_before.__enter__()
        _eager_count += 1
    try:
        yield
    finally:
        with _GUARD:
            _eager_count -= 1
            if not _eager_count:
                _eager_before.__exit__(None, None, None)
