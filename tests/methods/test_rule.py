"""A rule of one's own, as the page says to write one, through everything that answers by it."""

import re
from pathlib import Path

import numpy as np
import pytest
import reference

import whence
from whence.methods import RULES

linear_model = pytest.importorskip("sklearn.linear_model")
pytest.importorskip("jinja2")

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "write-a-method.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the code of the page makes, in a folder of its own."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    folder = tmp_path_factory.mktemp("page")
    made = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec("\n".join(blocks), made)
    yield made | {"folder": folder}
    RULES._things.pop("Kernel")


@pytest.fixture(scope="module")
def expected(page):
    """The formula written out, for the predicted class of each sample."""
    x, y, estimator = page["x"], page["y"], page["model"].model
    theta = np.vstack([estimator.coef_.T, estimator.intercept_])
    phi = np.hstack([x, np.ones((60, 1))])
    dense = reference.Dense(theta, phi, y, reference.softmax_cross_entropy)
    values = -dense.residuals[None, :, :] * (phi[:3] @ phi.T)[:, :, None] / 60
    outputs = np.argmax(phi[:3] @ theta, axis=1)
    return values[np.arange(3), :, outputs]


def test_values_and_answers(page, expected):
    np.testing.assert_allclose(page["method"].influences([page["x"][:3]]), expected, rtol=1e-6)
    explanation = page["explanation"]
    order = np.argsort(-expected, axis=1)[:, :5]
    np.testing.assert_array_equal(explanation.ids, order)
    np.testing.assert_allclose(explanation.totals, expected.sum(axis=1), rtol=1e-6)
    assert explanation.about["method"] == "Kernel"
    assert explanation.about["scale"] == 1.0
    assert "Kernel" in (page["folder"] / "kernel.html").read_text(encoding="utf-8")


def test_self_influence_and_what_it_cannot_say(page):
    doubtful, x, model = page["doubtful"], page["x"], page["model"].model
    theta = np.vstack([model.coef_.T, model.intercept_])
    phi = np.hstack([x, np.ones((60, 1))])
    dense = reference.Dense(theta, phi, page["y"], reference.softmax_cross_entropy)
    own = np.abs(dense.residuals[np.arange(60), np.argmax(phi @ theta, axis=1)]) * (phi**2).sum(axis=1) / 60
    np.testing.assert_array_equal(doubtful.ids, np.argsort(-own, kind="stable")[:10])
    with pytest.raises(whence.WhenceError, match="for Kernel, which leaves no sample out"):
        page["method"].suspects()


def test_it_is_read_from_disk_by_its_name(page, expected):
    again = page["again"]
    assert isinstance(again.rule, page["Kernel"])
    np.testing.assert_allclose(again.influences(page["x"][:3]), expected, rtol=1e-6)


def test_settings_are_kept(page, tmp_path, expected):
    from functools import partial

    rule = partial(page["Kernel"].of, scale=2.0)
    method = whence.Attribution(page["model"], (page["x"], page["y"]), rule, index_path=tmp_path / "index")
    np.testing.assert_allclose(method.influences([page["x"][:3]]), expected / 2, rtol=1e-6)
    assert whence.load_index(tmp_path / "index").rule.scale == 2.0


@pytest.fixture
def n_seen(monkeypatch):
    """How many samples went through a model, in a list of one number."""
    count, observe = [0], whence.InfluenceModel.observe

    def counted(self, batch):
        count[0] += batch.n_samples
        return observe(self, batch)

    monkeypatch.setattr(whence.InfluenceModel, "observe", counted)
    return count


def all_methods(model, data, **options):
    factory = whence.ExactIHVPFactory()
    return [
        whence.RepresenterPointLJE(model, data, factory, **options),
        whence.InfluenceFunctions(model, data, factory, effect_on="pre_activation", **options),
        whence.GradientDotProduct(model, data, **options),
        whence.GradientCosine(model, data, effect_on="pre_activation", **options),
        whence.RepresenterPointL2(model, data, **options),
        whence.FeatureSimilarity(model, data, **options),
        whence.TrainingLoss(model, data, **options),
    ]


@pytest.mark.parametrize("is_stored", [False, True])
def test_methods_on_one_index_read_the_training_set_once(page, tmp_path, n_seen, is_stored):
    x, y = page["x"], page["y"]
    model = whence.InfluenceModel(page["model"].model)
    index = model.index((x, y), path=tmp_path / "index" if is_stored else None)
    shared = all_methods(model, index)
    assert n_seen == [60]
    apart = all_methods(whence.InfluenceModel(page["model"].model), (x, y))
    asked = [(x[:3], y[:3])]
    for one, other in zip(shared, apart, strict=True):
        np.testing.assert_allclose(one.influences(asked), other.influences(asked), rtol=1e-5, atol=1e-12)
        np.testing.assert_array_equal(
            one.suspects(k=5, score="loss").ids, other.suspects(k=5, score="loss").ids
        )


def test_every_method_is_read_from_disk(page, tmp_path):
    x, y = page["x"], page["y"]
    made = all_methods(page["model"], (x, y), index_path=tmp_path / "index")
    for method in made:
        name = method.index.method.folder.name
        again = whence.load_index(tmp_path / "index", method=name)
        assert type(again) is type(method)
        asked = [(x[:3], y[:3])]
        np.testing.assert_allclose(again.influences(asked), method.influences(asked), rtol=1e-6, atol=1e-12)


def test_an_index_of_other_weights_is_refused(page):
    x, y = page["x"], page["y"]
    index = whence.InfluenceModel(linear_model.LogisticRegression(C=0.01).fit(x, y)).index((x, y))
    with pytest.raises(whence.WhenceError, match=r"dataset: expected an index with model_weights"):
        whence.GradientDotProduct(page["model"], index)


@pytest.mark.parametrize(
    ("option", "value"), [("index_path", "somewhere"), ("ids", list(range(60))), ("on_error", "skip")]
)
def test_options_of_an_index_that_is_there(page, option, value):
    index = page["model"].index((page["x"], page["y"]))
    with pytest.raises(whence.WhenceError, match=f"{option}: expected nothing, since the training set is"):
        whence.GradientDotProduct(page["model"], index, **{option: value})


def test_options_as_one_object(page, tmp_path):
    options = whence.IndexOptions(path=tmp_path / "index", ids=[f"s{i}" for i in range(60)], engine=2)
    method = whence.TrainingLoss(page["model"], (page["x"], page["y"]), index_options=options)
    assert method.suspects(k=1).ids[0].startswith("s")
    assert (tmp_path / "index" / "manifest.json").is_file()
    named = whence.TrainingLoss(page["model"], (page["x"], page["y"]), index_options=options, ids=None)
    assert named.index.method.folder == method.index.method.folder
    with pytest.raises(TypeError, match="unexpected keyword argument 'folder'"):
        whence.TrainingLoss(page["model"], (page["x"], page["y"]), folder=tmp_path)
    with pytest.raises(whence.WhenceError, match=r"index_options: expected a whence.IndexOptions"):
        whence.TrainingLoss(page["model"], (page["x"], page["y"]), index_options={"path": tmp_path})


@pytest.mark.parametrize("rule", [None, 3, whence.WhenceError, lambda layer, index: None])
def test_what_is_no_rule(page, rule):
    with pytest.raises((whence.WhenceError, TypeError), match=r"rule: expected a subclass|argument"):
        whence.Attribution(page["model"], (page["x"], page["y"]), rule)
