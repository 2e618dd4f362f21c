"""Classes are called what the model's user calls them, wherever a person reads them."""

import re

import numpy as np
import pandas as pd
import pytest

import whence

linear_model = pytest.importorskip("sklearn.linear_model")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 3))
NUMBERS = np.digitize(X[:, 1], [-0.5, 0.5])
NAMES = {
    "from one on": [1, 2, 3],
    "texts": ["ant", "<b>bee</b>", "cow"],
    "falling": np.asarray([30, 20, 10]),
    "signs": [-1, 1],
    "truth values": [False, True],
}


def asked(names, **options):
    names = np.asarray(names)
    labels = names[np.minimum(NUMBERS, len(names) - 1)]
    model = linear_model.LogisticRegression().fit(X, labels)
    method = whence.RepresenterPointLJE(
        whence.InfluenceModel(model), (X, labels), whence.ExactIHVPFactory(), progress=False, **options
    )
    return method, model, labels


@pytest.mark.parametrize("name", NAMES)
def test_frames_hold_the_users_own_labels(name, tmp_path):
    method, model, labels = asked(NAMES[name])
    found = method.explain((X[:3], labels[:3]), k=4)
    for frame in (found.to_frame(), pd.read_parquet(found.to_parquet(tmp_path / "found.parquet"))):
        np.testing.assert_array_equal(frame["training_label"], labels[frame["training_id"]])
        np.testing.assert_array_equal(frame["label"], labels[frame["sample"]])
        np.testing.assert_array_equal(frame["prediction"], model.predict(X)[frame["sample"]])
    np.testing.assert_array_equal(model.classes_[found.predictions], model.predict(X[:3]))
    suspects = method.suspects(k=None).to_frame()
    np.testing.assert_array_equal(suspects["label"], labels[suspects["id"]])
    np.testing.assert_array_equal(suspects["prediction"], model.predict(X)[suspects["id"]])


def test_pages_say_the_users_own_labels(tmp_path):
    method, _, labels = asked(NAMES["from one on"])
    found = method.explain((X[:1], labels[:1]), k=30)
    for page in (found.save_html(tmp_path / "page.html").read_text(), found._repr_html_()):
        text = re.sub("<[^>]+>", " ", page)
        said = [int(label) for label in re.findall(r"labelled (\d+)", text)]
        assert set(said) == {1, 2, 3}
        assert "labelled 0" not in text
    named = found.save_html(tmp_path / "named.html", class_names=["ant", "bee", "cow"]).read_text()
    assert "labelled ant" in named


def test_a_stored_index_keeps_what_classes_are_called(tmp_path):
    method, model, _ = asked(NAMES["texts"], index_path=tmp_path / "index")
    before = method.explain((X[:2], None), k=3).to_frame()
    after = whence.load_index(tmp_path / "index").explain(X[:2], k=3).to_frame()
    assert (
        after["prediction"].tolist()
        == before["prediction"].tolist()
        == [*np.repeat(model.predict(X[:2]), 6)]
    )


def test_classes_that_are_called_by_their_numbers_need_no_names():
    method, _, _ = asked([0, 1, 2])
    assert "class_names" not in method.explain((X[:1], None), k=1).about


def test_dual_representers_say_the_users_own_labels():
    svm = pytest.importorskip("sklearn.svm")
    labels = np.asarray(["ant", "bee", "cow"])[NUMBERS]
    model = svm.SVC().fit(X, labels)
    frame = whence.DualRepresenters(model, (X, labels)).explain((X[:3], labels[:3]), k=4).to_frame()
    np.testing.assert_array_equal(frame["training_label"], labels[frame["training_id"]])
    np.testing.assert_array_equal(frame["label"], labels[frame["sample"]])
    np.testing.assert_array_equal(frame["prediction"], model.predict(X)[frame["sample"]])
