"""Registries of what people add: a new solver, loss or adapter is one file, which its registry finds.

A thing is registered where it is defined. A registry that is first read imports the modules of its rooms,
so that what stands there is known; everything else is known once its module is imported.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from whence._errors import WhenceError

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Things of one kind by their names.

    Parameters
    ----------
    kind : str
        What messages call one of them.
    *rooms : str
        Packages whose modules define some.

    Examples
    --------
    >>> tools = Registry("tool")
    >>> @tools.register("hammer")
    ... def hit(): ...
    >>> list(tools), tools["hammer"] is hit
    (['hammer'], True)
    """

    def __init__(self, kind: str, *rooms: str) -> None:
        self._kind = kind
        self._unread = list(rooms)
        self._things: dict[str, T] = {}
        self._places: dict[str, str] = {}

    def look_in(self, room: str) -> None:
        """Import the modules of another room too, when the registry is next read."""
        self._unread.append(room)

    def register(self, name: str) -> Callable[[Any], Any]:
        """Return a decorator that keeps what it decorates under a name."""

        def keep(thing: Any) -> Any:
            self.add(name, thing, thing)
            return thing

        return keep

    def add(self, name: str, thing: T, made_by: Any) -> None:
        """Keep a thing under a name; only the same class or function may take it again."""
        place = f"{made_by.__module__}.{made_by.__qualname__}"
        if self._places.setdefault(name, place) != place:
            raise WhenceError(
                f"{self._kind} {name!r}",
                "a name that no other one has",
                f"that of {self._places[name]}",
                "Choose another name.",
            )
        self._things[name] = thing

    def _read(self) -> dict[str, T]:
        while self._unread:
            import_room(self._unread.pop())
        return self._things

    def __getitem__(self, name: str) -> T:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._read()))

    def __len__(self) -> int:
        return len(self._read())


def import_room(package: str) -> None:
    """Import every module of a package, its packages included, but for those that begin with ``_``.

    What has to derive from a framework's classes stands in such a module.
    """
    room = importlib.import_module(package)
    for module in pkgutil.walk_packages(room.__path__, f"{package}."):
        if not module.name.rpartition(".")[2].startswith("_"):
            importlib.import_module(module.name)
