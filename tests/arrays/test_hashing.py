"""Cells of any kind share a digest only if they are the same."""

import datetime
import decimal
import itertools

import numpy as np
import pandas as pd
import pytest

import whence
from whence.arrays.hashing import cell_digests
from whence.data.base import Batch, fingerprints

LONG = np.zeros(5000)
OTHER = LONG.copy()
OTHER[2500] = 1e-9


class Text(str):
    """A text whose ``repr`` says nothing."""

    def __repr__(self):
        return "Text"


class Point:
    def __init__(self, x):
        self.x = x

    def __repr__(self):
        return "Point"


KINDS = [
    *(
        1,
        1.0,
        "1",
        True,
        None,
        b"1",
        np.datetime64("2024-01-01"),
        decimal.Decimal("1"),
        decimal.Decimal("1.0"),
    ),
    *(LONG, OTHER, LONG.astype(np.float32), LONG.reshape(2, -1), LONG.tolist(), OTHER.tolist()),
    *([[1, 2], [3]], [[1], [2, 3]], (1, 2), [1, 2], ["a", "bc"], ["ab", "c"], ["a, b"], ["a', 'b"]),
    *({"a": LONG}, {"a": OTHER}, {"b": LONG}, {1, 2}, {1, 3}, Text("a"), Text("b"), Point(1), Point(2)),
    *(pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-01", tz="UTC"), datetime.date(2024, 1, 1)),
    *(pd.NaT, pd.NA, float("nan"), b"\x00", b"", bytearray(b""), 1j, np.asarray([{"a": LONG}, None])),
]


def cells(values):
    column = np.empty((len(values), 1), dtype=object)
    column[:, 0] = values
    return column


def test_cells_of_every_kind_are_told_apart():
    digests = {bytes(row) for row in cell_digests(cells(KINDS))}
    assert len(digests) == len(KINDS)
    np.testing.assert_array_equal(cell_digests(cells(KINDS)), cell_digests(cells(KINDS)))


def test_what_differs_in_the_middle_of_a_long_cell_is_seen_in_frames_and_arrays():
    frame = pd.DataFrame({"signal": [LONG, OTHER, LONG.copy()], "row": [0, 0, 0]})
    for inputs in (frame, frame["signal"], frame["signal"].to_numpy(), frame.to_numpy()):
        one, other, same = fingerprints(Batch(inputs, np.zeros(3), None, 0))
        assert one == same != other


def test_the_order_of_a_dict_does_not_matter():
    one, other = cell_digests(cells([{"a": 1, "b": 2}, {"b": 2, "a": 1}]))
    np.testing.assert_array_equal(one, other)


def test_a_cell_that_has_no_bytes_is_refused():
    with pytest.raises(whence.WhenceError, match="cells that can be told apart by their bytes"):
        cell_digests(cells([(i for i in range(3))]))


def test_samples_with_long_cells_keep_their_own_answers():
    linear_model = pytest.importorskip("sklearn.linear_model")
    pipeline = pytest.importorskip("sklearn.pipeline")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    rng = np.random.default_rng(0)
    signals = np.zeros((30, 1200))
    signals[:, 5:25] = rng.normal(size=(30, 20))  # the ends, which a short repr shows, are all zero
    labels = rng.integers(0, 2, 30)
    stack = preprocessing.FunctionTransformer(lambda frame: np.stack(frame["signal"].tolist())[:, :25])
    frame = pd.DataFrame({"signal": list(signals)})
    pipe = pipeline.make_pipeline(stack, linear_model.LogisticRegression()).fit(frame, labels)
    plain = linear_model.LogisticRegression().fit(signals[:, :25], labels)

    def values(model, inputs):
        lje = whence.RepresenterPointLJE(
            whence.InfluenceModel(model), (inputs, labels), whence.ExactIHVPFactory(), progress=False
        )
        return np.concatenate(
            list(itertools.chain(v for _, v in lje.compute_influence_values((inputs, labels))))
        )

    np.testing.assert_allclose(values(pipe, frame), values(plain, signals[:, :25]), rtol=1e-5)
