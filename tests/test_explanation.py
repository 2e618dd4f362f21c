"""What ``explain`` and ``suspects`` return, as arrays and as frames."""

import dataclasses
import sys

import numpy as np
import pytest

import whence

T, K = 3, 2


def explanation(**changes):
    rng = np.random.default_rng(0)
    values = np.sort(rng.normal(size=(T, 2 * K)), axis=1)[:, ::-1]
    ids = rng.permuted(np.tile(np.arange(2 * K), (T, 1)), axis=1)
    parts = {
        "ids": ids[:, :K],
        "values": values[:, :K],
        "opponent_ids": ids[:, : -K - 1 : -1],
        "opponent_values": values[:, : -K - 1 : -1],
        "sample_ids": np.asarray(["x", "y", "z"]),
        "outputs": np.asarray([1, 0, 1]),
        "signs": np.ones(T),
        "predictions": np.asarray([1, 0, 1]),
        "labels": np.asarray([1, 1, 0]),
        "pre_activations": rng.normal(size=T),
        "totals": values.sum(axis=1),
        "training_labels": ids[:, :K] % 2,
        "opponent_labels": ids[:, : -K - 1 : -1] % 2,
        "about": {"method": "RepresenterPointLJE"},
    }
    return whence.Explanation(**(parts | changes))


def suspects():
    return whence.Suspects(
        ids=np.asarray([4, 2]),
        scores=np.asarray([0.5, -0.1]),
        score="leave_one_out",
        labels=np.asarray([0, 1]),
        predictions=np.asarray([1, 1]),
    )


def test_a_frame_names_each_pair_of_samples_once_strongest_first():
    given = explanation()
    frame = given.to_frame()
    assert list(frame.columns) == [
        "sample",
        "prediction",
        "label",
        "output",
        "side",
        "rank",
        "training_id",
        "training_label",
        "value",
    ]
    assert len(frame) == 2 * T * K
    assert frame["sample"].tolist() == np.repeat(["x", "y", "z"], 2 * K).tolist()
    assert frame["side"].tolist() == (["supporter"] * K + ["opponent"] * K) * T
    assert frame["rank"].tolist() == [1, 2] * 2 * T
    for t, sample in enumerate("xyz"):
        rows = frame[frame["sample"] == sample]
        assert rows["training_id"].tolist() == [*given.ids[t], *given.opponent_ids[t]]
        assert rows["value"].tolist() == [*given.values[t], *given.opponent_values[t]]
        assert rows["training_label"].tolist() == [*given.training_labels[t], *given.opponent_labels[t]]
        for column, values in (
            ("prediction", given.predictions),
            ("label", given.labels),
            ("output", given.outputs),
        ):
            assert rows[column].unique().tolist() == [values[t]]


def test_a_frame_without_labels_has_no_column_of_them():
    assert "label" not in explanation(labels=None).to_frame()


def test_suspects_as_a_frame():
    given = suspects()
    frame = given.to_frame()
    assert list(frame.columns) == ["id", "score", "label", "prediction"]
    assert frame["id"].tolist() == [4, 2]
    assert frame["score"].tolist() == [0.5, -0.1]
    assert frame["label"].tolist() == [0, 1]
    assert frame["prediction"].tolist() == [1, 1]
    assert len(given) == 2


@pytest.mark.parametrize("answer", [explanation, suspects])
def test_answers_cannot_be_changed_by_accident(answer):
    given = answer()
    with pytest.raises(dataclasses.FrozenInstanceError):
        given.ids = np.zeros(1)
    assert len(given) in (T, 2)


@pytest.mark.parametrize("answer", [explanation, suspects])
def test_a_frame_without_pandas_says_what_to_install(answer, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(whence.MissingExtraError, match=r"pandas.*pip install 'whence\[report\]'"):
        answer().to_frame()
