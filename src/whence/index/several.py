"""How the rows of several layers lie in the files of a shard.

::

    gradients-0-0-factors-0-00000.npy       layer 0, its first term, the first array of its factors
    gradients-1-0-tokens500-1-00000.npy     layer 1, an embedding of 500 tokens, its second array
    curvature-0-0-matrices-0-00000.npy      the same of curvature rows
    curvature-samples-00000.npy             whose they are; -sizes-, -trace-, -candidates-
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whence.arrays.base import as_numpy
from whence.ihvp.collected import CurvaturePart
from whence.index.shard import Shard
from whence.layers.rows import Factors, Matrices, Rows, Term, Tokens

__all__ = ["arrays_of_layers", "curvature_in", "gradients_in", "layers_misfit"]

#: What stands beside the rows of the curvature.
BESIDE = ("samples", "sizes", "trace", "candidates")
_NAME = re.compile(r"(gradients|curvature)-(\d+)-(\d+)-(factors|matrices|tokens)(\d*)-(\d)")


def arrays_of_layers(shard: Shard) -> dict[str, np.ndarray]:
    """Return what is written of several layers, by the names of the files; nothing for one layer."""
    if shard.gradients is None:
        return {}
    arrays = _arrays("gradients", shard.gradients)
    if shard.curvature is not None:
        part = shard.curvature
        if part.rows is not None:
            arrays |= _arrays("curvature", part.rows)
        arrays |= {f"curvature-{name}": np.asarray(getattr(part, name)) for name in BESIDE}
    return arrays


def _arrays(what: str, rows: Rows) -> dict[str, np.ndarray]:
    arrays = {}
    for layer, terms in enumerate(rows.layers.values()):
        for number, term in enumerate(terms):
            kind = type(term).__name__.lower()
            kind += str(term.n_tokens) if isinstance(term, Tokens) else ""
            for place, array in enumerate(term.arrays):
                arrays[f"{what}-{layer}-{number}-{kind}-{place}"] = as_numpy(array)
    return arrays


def gradients_in(record: Mapping[str, Any], open_file: Callable[[Any], np.ndarray]) -> Rows | None:
    """Return the gradients of a shard by its record, or None; ``open_file(stamp)`` opens each file."""
    return _rows("gradients", record, open_file)


def curvature_in(record: Mapping[str, Any], open_file: Callable[[Any], np.ndarray]) -> CurvaturePart | None:
    """Return the curvature rows of a shard by its record, or None."""
    files = record["files"]
    if "curvature-trace" not in files:
        return None
    beside = [open_file(files[f"curvature-{name}"]) for name in BESIDE]
    return CurvaturePart(_rows("curvature", record, open_file), *beside)


def _rows(what: str, record: Mapping[str, Any], open_file: Callable[[Any], np.ndarray]) -> Rows | None:
    found: dict[tuple[int, int], tuple[str, str, list[np.ndarray]]] = {}
    for name in sorted(record["files"]):
        match = _NAME.fullmatch(name)
        if match is None or match[1] != what:
            continue
        key = int(match[2]), int(match[3])
        found.setdefault(key, (match[4], match[5], []))[2].append(open_file(record["files"][name]))
    if not found:
        return None
    layers: dict[str, list[Term]] = {}
    for (layer, _), (kind, n_tokens, arrays) in sorted(found.items()):
        layers.setdefault(str(record["layers"][layer]), []).append(_term(kind, n_tokens, arrays))
    return Rows({name: tuple(terms) for name, terms in layers.items()})


def _term(kind: str, n_tokens: str, arrays: Sequence[np.ndarray]) -> Term:
    if kind == "factors":
        left, right = arrays
        return Factors(left, right)
    if kind == "tokens":
        tokens, right = arrays
        return Tokens(tokens, right, int(n_tokens))
    (values,) = arrays
    return Matrices(values)


def layers_misfit(name: str, stored: Rows | CurvaturePart | None, n_samples: int) -> str | None:
    """Return what is wrong with the rows of a shard, or None."""
    if stored is None:
        return None
    if isinstance(stored, CurvaturePart):
        sizes = {len(stored.samples), len(stored.sizes)}
        if stored.rows is not None:
            sizes.add(stored.rows.n_samples)
        places = np.asarray(stored.samples)
        inside = not places.size or (places.min() >= 0 and places.max() < n_samples)
        if len(sizes) > 1 or {len(stored.trace), len(stored.candidates)} != {n_samples} or not inside:
            return f"{name} that do not fit the {n_samples} samples"
        return None if stored.rows is None else _of_terms(name, stored.rows, len(places))
    return _of_terms(name, stored, n_samples)


def _of_terms(name: str, rows: Rows, n_rows: int) -> str | None:
    axes = {Factors: 4, Matrices: 4}
    for layer, terms in rows.layers.items():
        for term in terms:
            wrong = any(len(array) != n_rows for array in term.arrays)
            if isinstance(term, Tokens):
                tokens, right = term.arrays
                wrong = wrong or tokens.ndim != 2 or right.ndim != 3 or right.shape[:2] != tokens.shape
                wrong = wrong or tokens.dtype.kind not in "iu" or right.dtype.kind != "f"
                wrong = wrong or bool(tokens.size and (tokens.min() < 0 or tokens.max() >= term.n_tokens))
            else:
                wrong = wrong or any(a.ndim != axes[type(term)] or a.dtype.kind != "f" for a in term.arrays)
                if isinstance(term, Factors):
                    wrong = wrong or term.left.shape[:3] != term.right.shape[:3]
            if wrong:
                return f"{name} of layer {layer} that do not fit the {n_rows} rows"
    return None
