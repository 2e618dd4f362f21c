"""Several labels a sample: rows of 0 and 1 in every answer, and no label for a sample without tags."""

import numpy as np
import pytest

import whence
from whence import WhenceError

torch = pytest.importorskip("torch")

N, D, C, L = 24, 5, 4, 3
RNG = np.random.default_rng(3)
X, NEW = RNG.normal(size=(N, D)), RNG.normal(size=(3, D))
TAGS = (RNG.random((N, C)) < 0.4).astype("float64")
TAGS[5] = 0
NEW_TAGS = np.asarray([[0.0, 0, 0, 0], [1, 0, 1, 1], [0, 1, 0, 0]])
nn = torch.nn

LOSSES = {
    "closed form": nn.BCEWithLogitsLoss(),
    "weighted": nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 2.0, 1.0, 4.0], dtype=torch.float64)),
    "soft margin": nn.MultiLabelSoftMarginLoss(),
}


def head(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, C)).double()


def tensors(*arrays):
    return tuple(torch.tensor(array) for array in arrays)


def method(net, loss, **options):
    model = whence.InfluenceModel(net, loss_function=loss)
    return whence.RepresenterPointLJE(
        model, tensors(X, TAGS), whence.ExactIHVPFactory(), progress=False, **options
    )


def said(net, inputs):
    with torch.no_grad():
        return (net(torch.tensor(inputs)) > 0).int().numpy()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_answers_give_tags(loss, tmp_path):
    net = head()
    lje = method(net, loss)
    found = lje.explain(tensors(NEW, NEW_TAGS), k=N)
    assert found.label_kind == "tags"
    np.testing.assert_array_equal(found.labels, NEW_TAGS)
    np.testing.assert_array_equal(found.predictions, said(net, NEW))
    np.testing.assert_array_equal(found.training_labels, TAGS[found.ids])
    np.testing.assert_array_equal(found.opponent_labels, TAGS[found.opponent_ids])
    suspects = lje.suspects(k=N, score="leave_one_out")
    np.testing.assert_array_equal(suspects.labels, TAGS[suspects.ids])
    np.testing.assert_array_equal(suspects.predictions, said(net, X)[suspects.ids])
    one = found[1]
    np.testing.assert_array_equal(one.labels, NEW_TAGS[1:2])
    for library in ("pandas", "polars"):
        pytest.importorskip(library)
        frame = found.to_frame(library)
        np.testing.assert_array_equal(np.stack(list(frame["training_label"])), TAGS[frame["training_id"]])
        np.testing.assert_array_equal(np.stack(list(frame["prediction"]))[:: 2 * N], said(net, NEW))
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(found.to_parquet(tmp_path / "found.parquet"))
    assert table["label"].to_pylist() == np.repeat(NEW_TAGS, 2 * N, axis=0).tolist()


def test_tags_survive_the_way_to_disk(tmp_path):
    lje = method(head(), LOSSES["closed form"], index_path=tmp_path / "index")
    again = whence.load_index(tmp_path / "index")
    here, there = lje.explain(tensors(NEW, NEW_TAGS), k=3), again.explain((NEW, NEW_TAGS), k=3)
    assert there.label_kind == "tags"
    for name in ("ids", "labels", "predictions", "training_labels"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))


def test_a_page_says_which_tags_and_which_of_them_is_explained(tmp_path):
    pytest.importorskip("jinja2")
    net = head()
    found = method(net, LOSSES["closed form"]).explain(tensors(NEW, NEW_TAGS), k=2, outputs=3)
    names = ["cat", "dog", "bird", "fish"]
    page = found.save_html(tmp_path / "page.html", class_names=names).read_text(encoding="utf-8")
    for row in said(net, NEW):
        listed = ", ".join(name for name, tag in zip(names, row, strict=True) if tag) or "no tags"
        assert f"Predicted {listed}" in page
    assert "Speaks for fish" in page
    assert "no tags" in page
    assert "tags cat, bird, fish" in page
    assert "labelled 0" not in page
    shown = found._repr_html_()
    assert "tag 3" in shown
    assert "no tags" in shown


def test_a_loss_of_ones_own_on_several_labels_is_not_taken_for_one_on_classes():
    def focal(output, target):
        return nn.functional.binary_cross_entropy_with_logits(output, target, reduction="none").mean(1) ** 2

    for classes in (True, False):
        model = whence.InfluenceModel(head(), loss_function=focal, classes=classes)
        lje = whence.RepresenterPointLJE(
            model, tensors(X, TAGS), whence.ExactIHVPFactory(damping=0.1, curvature="gauss_newton")
        )
        if classes:
            with pytest.raises(WhenceError, match=r"a row that sums to .* Leave out classes=True"):
                lje.explain(tensors(NEW, NEW_TAGS), k=2)
        else:
            found = lje.explain(tensors(NEW, NEW_TAGS), k=2)
            np.testing.assert_array_equal(found.labels, NEW_TAGS)
            np.testing.assert_array_equal(found.training_labels, TAGS[found.ids])


def test_a_given_output_is_not_made_up():
    lje = method(head(), LOSSES["closed form"], label="given")
    with pytest.raises(WhenceError, match=r"^label: expected 'predicted'.* with 0 tags"):
        lje.explain(tensors(NEW, NEW_TAGS), k=1)
    named = lje.explain(tensors(NEW, NEW_TAGS), k=1, outputs=2)
    np.testing.assert_array_equal(named.outputs, [2, 2, 2])


def test_tags_along_a_sequence():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, C)).double()
    inputs = RNG.normal(size=(N, L, D))
    tags = (RNG.random((N, L, C)) < 0.4).astype("float64")
    model = whence.InfluenceModel(net, loss_function=nn.BCEWithLogitsLoss())
    lje = whence.RepresenterPointLJE(
        model, tensors(inputs, tags), whence.ExactIHVPFactory(), progress=False
    )
    found = lje.explain(tensors(inputs[:2], tags[:2]), k=2)
    np.testing.assert_array_equal(found.labels, tags[:2])
    np.testing.assert_array_equal(found.predictions, said(net, inputs[:2]))
    np.testing.assert_array_equal(found.training_labels, tags[found.ids])
    at = lje.explain(tensors(inputs[:2], tags[:2]), k=2, positions=[2, 0])
    np.testing.assert_array_equal(at.positions, [2, 0])
    np.testing.assert_array_equal(at.labels, tags[[0, 1], [2, 0]])
    np.testing.assert_array_equal(at.predictions, said(net, inputs[:2])[[0, 1], [2, 0]])
    assert at.to_frame()["position"].tolist() == [2] * 4 + [0] * 4
    assert "position" in at._repr_html_()


def test_classes_one_against_the_rest_stay_classes():
    linear_model = pytest.importorskip("sklearn.linear_model")
    classes = np.asarray(["ant", "bee", "cow"])[RNG.integers(0, 3, N)]
    model = linear_model.SGDClassifier(loss="log_loss", random_state=0).fit(X, classes)
    lje = whence.RepresenterPointLJE(
        whence.InfluenceModel(model), (X, classes), whence.ExactIHVPFactory(), progress=False
    )
    found = lje.explain((NEW, model.predict(NEW)), k=2)
    assert found.label_kind == "class"
    np.testing.assert_array_equal(model.classes_[found.predictions], model.predict(NEW))
    np.testing.assert_array_equal(model.classes_[found.training_labels], classes[found.ids])


def test_several_values_a_sample_are_rows():
    torch.manual_seed(0)
    net, targets = nn.Linear(D, 2).double(), RNG.normal(size=(N, 2))
    model = whence.InfluenceModel(net, loss_function=nn.MSELoss())
    lje = whence.RepresenterPointLJE(model, tensors(X, targets), whence.ExactIHVPFactory(), progress=False)
    found = lje.explain(tensors(NEW, targets[:3]), k=2, outputs=1)
    assert found.label_kind == "value"
    np.testing.assert_array_equal(found.labels, targets[:3])
    with torch.no_grad():
        np.testing.assert_allclose(found.predictions, net(torch.tensor(NEW)).numpy(), rtol=1e-12)
    np.testing.assert_array_equal(found.training_labels, targets[found.ids])
    assert "raises it" in found._repr_html_()
    assert "output 1" in found._repr_html_()
