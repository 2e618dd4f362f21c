"""What the elements of a batch are: inputs, labels, weights and ids, in tuples and in dicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from whence._errors import WhenceError, described
from whence.arrays.base import as_numpy

__all__ = ["BatchForm", "Parts"]

#: Where labels are looked for in batches that are dicts.
LABEL_KEYS = ("labels", "label")

#: What an element of a batch may be; ``None`` is something that is of no concern.
ROLES = ("x", "y", "weight", "id", None)


class Parts(NamedTuple):
    """A batch taken apart; ``None`` where it has no such part."""

    inputs: Any
    labels: Any = None
    weight: Any = None
    ids: np.ndarray | None = None


@dataclass(frozen=True)
class BatchForm:
    """What the elements of a batch are.

    Attributes
    ----------
    roles : tuple, dict or None
        For tuples, what each element is: ``"x"``, ``"y"``, ``"weight"``, ``"id"``, or None for one that is
        left out; several ``"x"`` make a tuple of inputs. For dicts, the key of each: ``{"y": "target",
        "id": "name"}``, with the inputs under all other keys unless ``"x"`` names one or several. ``None``
        takes ``(x, y)`` and ``(x, y, weight)``, or a dict with its labels under ``label_key``.
    label_key : str or None
        Where batches are dicts and ``roles`` does not say, the key of the labels.
    third_is_weight : bool
        Whether the third element of a tuple is taken for sample weights unless ``roles`` says what it is.
    """

    roles: Any = None
    label_key: str | None = None
    third_is_weight: bool = True

    def __post_init__(self) -> None:
        """Raise unless the roles are known."""
        roles = self.roles
        if roles is None:
            return
        names = list(roles) if isinstance(roles, Mapping | list | tuple) else ["?"]
        once = [name for name in names if name not in (None, "x")]
        if set(names) - set(ROLES) or len(once) != len(set(once)) or not names:
            raise WhenceError(
                "batch",
                "what the elements of a batch are, such as ('x', 'y', 'id') or, for dicts, {'id': 'name'}: "
                "'x', 'y', 'weight', 'id', or None for one to leave out",
                repr(roles),
                "Name each element once; several 'x' are several inputs.",
            )
        if not isinstance(roles, Mapping) and "x" not in names:
            raise WhenceError(
                "batch", "an 'x' among the elements", repr(roles), "Say which are the inputs."
            )
        if isinstance(roles, Mapping) and None in names:
            fix = "Leave them out: say which keys are the inputs: {'x': ['a', 'b'], ...}."
            raise WhenceError("batch", "keys of 'x', 'y', 'weight' and 'id'", repr(roles), fix)

    @property
    def names_samples(self) -> bool:
        """Whether batches bring the ids of their samples."""
        return self.roles is not None and "id" in self.roles

    def take_apart(self, element: Any, where: str, *, labels_are_needed: bool, arrays: bool) -> Parts:
        """Return the parts of a batch.

        Parameters
        ----------
        element : object
        where : str
            How messages call it.
        labels_are_needed : bool
        arrays : bool
            Whether it was cut from whole arrays, whose third is the weights whatever the framework.

        Raises
        ------
        WhenceError
            If it has another form.
        """
        parts = self._parts(element, where, labels_are_needed, arrays)
        _check_labels(parts.labels, where)
        return parts if parts.ids is None else parts._replace(ids=_as_ids(parts.ids, where))

    def _parts(self, element: Any, where: str, labels_are_needed: bool, arrays: bool) -> Parts:
        if isinstance(element, Mapping) and not isinstance(self.roles, list | tuple):
            return self._of_dict(element, where, labels_are_needed)
        if isinstance(element, list | tuple) and isinstance(self.roles, list | tuple):
            return self._of_tuple(element, where)
        if isinstance(element, list | tuple) and len(element) in (2, 3):
            weight = element[2] if len(element) == 3 else None
            if weight is not None and not (self.third_is_weight or arrays):
                raise WhenceError(
                    where,
                    "a tuple (inputs, labels), or to be told what a third element is",
                    "3 elements",
                    "Name them: InfluenceModel(..., batch=('x', 'y', 'id')), with 'weight' for a sample "
                    "weight, or None for something to leave out.",
                )
            return Parts(element[0], element[1], weight)
        if not labels_are_needed:
            single = isinstance(element, list | tuple) and len(element) == 1
            return Parts(element[0] if single else element)
        size = f" of length {len(element)}" if isinstance(element, list | tuple) else ""
        fix = "Give the labels with every batch."
        if isinstance(element, list | tuple) and len(element) > 3:
            fix = (
                "Name its elements: InfluenceModel(..., batch=('x', 'y', 'id', ...)); None leaves one out."
            )
        raise WhenceError(
            where,
            "a tuple (inputs, labels) or (inputs, labels, sample_weight)",
            f"{described(element)}{size}",
            fix,
        )

    def _of_tuple(self, element: Any, where: str) -> Parts:
        roles = tuple(self.roles)
        if len(element) != len(roles):
            if len(element) <= 2 and roles[: len(element)] == ("x", "y")[: len(element)]:
                return Parts(*element)
            raise WhenceError(
                where,
                f"as many elements as batch={roles} names",
                f"{len(element)}",
                "Give (x, y), or all of them.",
            )
        found: dict[str, Any] = {name: part for name, part in zip(roles, element, strict=True) if name}
        inputs = tuple(part for name, part in zip(roles, element, strict=True) if name == "x")
        return Parts(
            inputs[0] if len(inputs) == 1 else inputs,
            found.get("y"),
            found.get("weight"),
            found.get("id"),
        )

    def _of_dict(self, element: Mapping[str, Any], where: str, labels_are_needed: bool) -> Parts:
        keys = dict(self.roles or {})
        named = {role: key for role, key in keys.items() if role != "x"}
        if "y" not in named:
            usual = LABEL_KEYS if self.label_key is None else (self.label_key,)
            label = next((key for key in usual if key in element), None)
            if label is None and labels_are_needed:
                raise WhenceError(
                    where,
                    f"a dict that holds labels under {' or '.join(map(repr, usual))}",
                    f"the keys {', '.join(map(str, element))}",
                    "Name their key: InfluenceModel(..., batch={'y': ...}).",
                )
            named |= {} if label is None else {"y": label}
        missing = [key for role, key in named.items() if key not in element and role != "y"]
        if missing or (labels_are_needed and named.get("y") not in element):
            raise WhenceError(
                where,
                f"a dict with the keys that batch={keys} names",
                f"the keys {', '.join(map(str, element))}",
                "Name the keys that there are.",
            )
        if "x" in keys:
            inputs = _chosen(element, keys["x"], where)
        else:  # texts and the like may stand beside what the model takes
            others = set(named.values())
            inputs = {k: v for k, v in element.items() if k not in others and not is_texts(v)}
        parts = {role: element.get(key) for role, key in named.items()}
        return Parts(inputs, parts.get("y"), parts.get("weight"), parts.get("id"))


def _chosen(element: Mapping[str, Any], keys: Any, where: str) -> Any:
    """Return the one input that a key names, or a dict of those that several name."""
    wanted = [keys] if isinstance(keys, str) else list(keys)
    missing = [key for key in wanted if key not in element]
    if missing:
        got = f"the keys {', '.join(map(str, element))}"
        raise WhenceError(where, f"a dict with the key {missing[0]!r}", got, "Mend batch=...")
    return element[keys] if isinstance(keys, str) else {key: element[key] for key in wanted}


def is_texts(column: Any) -> bool:
    """Return whether a column of a batch is a list of texts."""
    return isinstance(column, list | tuple) and any(isinstance(part, str | None) for part in column)


def _check_labels(labels: Any, where: str) -> None:
    """Raise for labels that no framework takes: texts in a list, and None among them."""
    if not is_texts(labels):
        return
    first = next(part for part in labels if isinstance(part, str | None))
    fix = "Number the classes first, as the model was trained with them."
    if first is None:
        fix = "Leave out the samples without a label."
    raise WhenceError(f"labels in {where}", "an array of numbers", f"a list with {first!r} in it", fix)


def _as_ids(ids: Any, where: str) -> np.ndarray:
    """Return the ids of a batch as an array of texts or integers, one a sample."""
    names = np.asarray(ids) if isinstance(ids, Iterable) and not hasattr(ids, "shape") else as_numpy(ids)
    if names.ndim == 2 and names.shape[1] == 1:
        names = names[:, 0]
    if names.dtype.kind in "OS":  # TensorFlow's texts are bytes
        listed = [part.decode() if isinstance(part, bytes) else part for part in names.ravel().tolist()]
        names = np.asarray(listed).reshape(names.shape)
    if names.ndim != 1 or names.dtype.kind not in "iuU":
        raise WhenceError(
            f"ids in {where}",
            "a text or an integer for each sample",
            f"shape {names.shape}, dtype {names.dtype}",
            "Give one id a sample, or leave 'id' out of batch=.",
        )
    return names
