"""What the JSON files of an index must hold before anything is done with it.

An index may come from somewhere else. Its records are compared with their form first, so that a file that
was changed is refused in words; names of files are names, which lead nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

__all__ = ["METHOD", "PLAN", "SHARD", "WHOLE", "difference"]

#: A form: a function that says whether a value is right, one form for each entry of a list, a form for
#: each value of a dict (key ``...``), or forms for some of its keys.
Form = Any


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_record(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number_of_something(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value, re.ASCII) is not None


def _is_stamp_or_none(value: Any) -> bool:
    return value is None or difference(value, STAMP) is None


#: What is said of a value that a function refuses.
NOUNS: dict[Callable[[Any], bool], str] = {
    _is_text: "a text",
    _is_record: "a record",
    _is_count: "a number of bytes",
    _is_number_of_something: "a number from 1 on",
    _is_file_name: "the name of a file in the folder",
    _is_stamp_or_none: "null or the record of a file",
}

STAMP: Form = {"file": _is_file_name, "bytes": _is_count, "crc32": _is_count}

#: ``shard-*.json``.
SHARD: Form = {"n_samples": _is_count, "n_features": _is_number_of_something, "files": {...: STAMP}}

#: ``begun.json``.
PLAN: Form = {
    "identity": _is_record,
    "feature_dtype": _is_text,
    "n_features": _is_number_of_something,
    "shard_rows": _is_number_of_something,
}

#: ``manifest.json``.
WHOLE: Form = PLAN | {
    "n_samples": _is_number_of_something,
    "order": _is_text,
    "ids": _is_stamp_or_none,
    "shards": [SHARD],
}

#: ``method.json``.
METHOD: Form = {
    "about": _is_record,
    "settings": _is_record,
    "state": [_is_text],
    "files": {...: STAMP},
    "coefficients": [STAMP],
}


def difference(value: Any, form: Form, where: str = "") -> str | None:
    """Return what of a record does not have its form, or None.

    Examples
    --------
    >>> difference({"file": "../x", "bytes": 3, "crc32": 4}, STAMP)
    "file is '../x', not the name of a file in the folder"
    >>> difference({"file": "a.npy", "bytes": 3}, STAMP)
    'crc32 is missing'
    """
    if callable(form):
        return None if form(value) else f"{where or 'it'} is {value!r:.60}, not {NOUNS[form]}"
    kind = type(form)
    if not isinstance(value, kind):
        return f"{where or 'it'} is {value!r:.60}, not a {'list' if kind is list else 'record'}"
    if kind is list:
        parts = [(f"{where}[{i}]", part, form[0]) for i, part in enumerate(value)]
    elif ... in form:
        parts = [(f"{where}.{key}", part, form[...]) for key, part in value.items()]
    else:
        missing = next((key for key in form if key not in value), None)
        if missing is not None:
            return f"{where}.{missing} is missing".lstrip(".")
        parts = [(f"{where}.{key}", value[key], one) for key, one in form.items()]
    wrong = (difference(part, one, place.lstrip(".")) for place, part, one in parts)
    return next((text for text in wrong if text is not None), None)
