"""How pages call labels, ids and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from whence._errors import WhenceError, described
from whence.report.page import number

__all__ = ["SCORE_NAMES", "label_text"]

SCORE_NAMES = {
    "ridge": "ridge score",
    "leave_one_out": "leave-one-out score",
    "self_influence": "self-influence",
    "loss": "training loss",
}

#: Labels of a sequence that are written out.
LABELS_SHOWN = 12


def label_text(label: Any, class_names: Sequence[str] | None) -> str:
    """Return a label as text: the name of a class, or the number itself.

    The labels of a sequence are listed, without positions that do not count: -1 or NaN.

    Examples
    --------
    >>> label_text(1, ["cat", "dog"]), label_text(3, None), label_text(0.12345, None)
    ('dog', '3', '0.123')
    >>> label_text(np.asarray([1, 0, -1]), ["cat", "dog"])
    'dog cat'
    """
    if isinstance(label, np.ndarray) and label.ndim:
        counted = label[label >= 0] if label.dtype.kind in "iu" else label[~np.isnan(label)]
        texts = [label_text(one, class_names) for one in counted[:LABELS_SHOWN]]
        return " ".join(texts + ["…"] * (counted.size > LABELS_SHOWN))
    if isinstance(label, float | np.floating):
        return number(float(label))
    if class_names is None:
        return str(label)
    if not hasattr(class_names, "__len__") or isinstance(class_names, str):
        raise WhenceError(
            "class_names", "a name for every class", described(class_names), "Pass a list of texts."
        )
    if not 0 <= int(label) < len(class_names):
        raise WhenceError(
            "class_names", "a name for every class", f"{len(class_names)} names and class {label}"
        )
    return str(class_names[int(label)])
