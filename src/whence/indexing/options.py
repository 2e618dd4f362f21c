"""How a training set is stored and worked on: one object, which every method and ``model.index`` take."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from whence._errors import WhenceError, described

__all__ = ["KEYWORDS", "IndexKeywords", "IndexOptions", "changed", "options_of", "show_options"]


@dataclass(frozen=True)
class IndexOptions:
    """How a training set is stored and worked on.

    Parameters
    ----------
    path : path, optional
        A folder for what is stored of the training set, which may then be larger than memory. If it holds
        some of it already, as after an interruption, that is not computed again. See
        :func:`~whence.load_index`. Methods call it ``index_path``.
    engine : int or dask.distributed.Client or Engine, optional
        Where work on the training set is done: here, in so many threads, or on the workers of a Dask
        cluster, which share the index through its path. Results do not depend on it.
    ids : sequence, optional
        Names of the training samples, in the order of the dataset (of a DataLoader: of the dataset behind
        it); by default the ids that they bring (``batch=`` of the model), the index of a pandas frame, or
        positions.
    feature_dtype : {None, "float16", "float32"}, default=None
        What features are stored as; ``None`` leaves them as the model gives them.
    on_error : {"raise", "skip"}, default="raise"
        What to do about training samples that cannot be read or that the model does not take. ``"skip"``
        leaves them out, for an index with a path; its ``skipped`` lists them with their errors.
    progress : bool, optional
        ``None`` shows progress bars on a terminal, ``True`` always, ``False`` never.

    Examples
    --------
    >>> options = IndexOptions(path="train.index", engine=4)
    >>> options.given({"progress": False}).progress
    False
    """

    path: str | Path | None = None
    engine: Any = None
    ids: Any = None
    feature_dtype: Any = None
    on_error: str = "raise"
    progress: bool | None = None

    def given(self, keywords: Mapping[str, Any]) -> IndexOptions:
        """Return the options with some of them given by the names that methods have for them."""
        for name in keywords:
            if name not in KEYWORDS:
                raise TypeError(f"got an unexpected keyword argument {name!r}")
        named = {"path" if name == "index_path" else name: value for name, value in keywords.items()}
        return replace(self, **named)

    def differs_in(self, *names: str) -> list[str]:
        """Return which of some options are not as they are by default."""
        return [name for name in names if _is_set(name, getattr(self, name))]


class IndexKeywords(TypedDict, total=False):
    """The same as keyword arguments of methods; ``index_options`` is the object itself."""

    ids: Any
    progress: bool | None
    index_path: str | Path | None
    feature_dtype: Any
    engine: Any
    on_error: str
    index_options: IndexOptions | None


#: The keyword arguments by which methods take the options one by one.
KEYWORDS = tuple(name for name in IndexKeywords.__annotations__ if name != "index_options")


def options_of(keywords: Mapping[str, Any]) -> IndexOptions:
    """Return the options that a method was given: an object, some by name, or both; names win."""
    whole = keywords.get("index_options") or IndexOptions()
    if not isinstance(whole, IndexOptions):
        fix = "Pass IndexOptions(...), or its fields by name."
        raise WhenceError("index_options", "a whence.IndexOptions", described(whole), fix)
    return whole.given({name: value for name, value in keywords.items() if name != "index_options"})


def changed(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some keywords that are not as they are by default."""
    return {name: value for name, value in keywords.items() if _is_set(name, value)}


def _is_set(name: str, value: Any) -> bool:
    return value is not None and not (name == "on_error" and value == "raise")


def show_options(constructor: Any) -> None:
    """Let the signature of a constructor name every option in place of its ``**options``."""
    whole = inspect.signature(constructor)
    own = [p for p in whole.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if len(own) == len(whole.parameters):  # it has none, or shows them already
        return
    defaults = {"on_error": "raise"}
    names = [*KEYWORDS, "index_options"]
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, kind, default=defaults.get(name)) for name in names]
    constructor.__signature__ = whole.replace(parameters=[*own, *more])
