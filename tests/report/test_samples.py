"""What is given to be seen of samples: shown as single samples, or refused in a word that helps."""

import dataclasses

import numpy as np
import pytest

import whence
from whence import WhenceError
from whence.report.samples import checked_samples, listed_names

T, K = 4, 2
X = np.random.default_rng(0).normal(size=(T, 3))


@pytest.fixture
def explanation():
    ids = np.tile(np.arange(K), (T, 1))
    return whence.Explanation(
        ids=ids, values=np.ones((T, K)), opponent_ids=ids + K, opponent_values=-np.ones((T, K)),
        sample_ids=np.arange(T), outputs=np.zeros(T, int), signs=np.ones(T), predictions=np.zeros(T, int),
        labels=None, pre_activations=np.ones(T), totals=np.ones(T), training_labels=0 * ids,
        opponent_labels=0 * ids,
    )  # fmt: skip


@pytest.fixture
def suspects():
    return whence.Suspects(np.arange(T), np.arange(T)[::-1], "loss", np.zeros(T, int), np.ones(T, int))


class Raising:
    def __len__(self):
        return T

    def __getitem__(self, place):
        raise RuntimeError("no such file")


def pairs():
    torch = pytest.importorskip("torch")
    return torch.utils.data.TensorDataset(torch.tensor(X), torch.arange(T))


def loader():
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(pairs(), batch_size=2)


def tf_batches():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(X).batch(2)


REFUSED = {
    "a number": lambda: 3,
    "a text": lambda: "abcd",
    "a class": lambda: int,
    "a set": lambda: {1, 2, 3, 4},
    "a generator": lambda: (row for row in X),
    "inputs and labels": lambda: (X, np.arange(T)),
    "batches": lambda: [(X[:2], np.arange(2)), (X[2:], np.arange(2))] * 2,
    "no axis": lambda: np.asarray(3),
    "what raises": Raising,
    "None": lambda: [None] * T,
    "a dataset of pairs": pairs,
    "a loader": loader,
    "tf.data": tf_batches,
}


@pytest.mark.parametrize("given", REFUSED.values(), ids=REFUSED)
def test_what_is_no_collection_of_samples(given, explanation, suspects, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib").use("Agg")
    for show in (
        lambda given: explanation.save_html(tmp_path / "page.html", samples=given),
        lambda given: explanation.save_html(tmp_path / "page.html", training_samples=given),
        lambda given: suspects.save_html(tmp_path / "page.html", training_samples=given),
        lambda given: explanation.neighbours(given, given),
        lambda given: explanation.plot(training_samples=given),
    ):
        with pytest.raises(WhenceError, match=r"^(training_)?samples: expected"):
            show(given())
    assert list(tmp_path.iterdir()) == []


def test_datasets_of_single_samples_are_shown(explanation, tmp_path):
    pytest.importorskip("jinja2")
    torch = pytest.importorskip("torch")

    class Texts(torch.utils.data.Dataset):
        def __len__(self):
            return T

        def __getitem__(self, place):
            return f"text {place}"

    page = explanation.save_html(tmp_path / "a.html", samples=Texts(), training_samples=Texts())
    assert page.read_text(encoding="utf-8").count("text 3") == 1 + T
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["u", "v", "w", "x"]})
    page = explanation.save_html(tmp_path / "a.html", samples=rows, training_samples=rows)
    assert "<td>w" in page.read_text(encoding="utf-8").replace("</td>", "")


@pytest.mark.parametrize(
    "bad", ["ab", b"ab", 3, {"cat", "dog"}, (name for name in "ab"), np.asarray("a"), {1: "a", 2: "b"}, int]
)
def test_class_names_that_are_no_list(bad, explanation, suspects):
    pytest.importorskip("matplotlib").use("Agg")
    for show in (explanation.plot, suspects.plot):
        with pytest.raises(WhenceError, match="class_names: expected a name for every class"):
            show(class_names=bad)


def test_names_in_every_form_of_a_list():
    pandas = pytest.importorskip("pandas")
    for names in (
        ["a", "b"],
        ("a", "b"),
        np.asarray(["a", "b"]),
        pandas.Series(["a", "b"], index=[5, 6]),
        pandas.Index(["a", "b"]),
        {1: "b", 0: "a"},
    ):
        assert listed_names(names, "class_names", "every class") == ["a", "b"]
    assert checked_samples(None, "samples") is None


def test_other_arguments_that_are_wrong(explanation, suspects, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib").use("Agg")
    for call, message in (
        (lambda: explanation.plot(ax=3), "ax: expected Axes of matplotlib, got an int"),
        (lambda: suspects.plot(ax="ax"), "ax: expected Axes of matplotlib"),
        (lambda: explanation.save_html(tmp_path / "a.html", suspects=3), "suspects: expected what"),
        (lambda: explanation.to_frame(["pandas"]), "library: expected 'pandas' or 'polars'"),
        (lambda: explanation[True], "expected the id of an explained sample"),
        (lambda: explanation[(0, 1)], "expected the id of an explained sample"),
        (lambda: explanation[[True, False]], "expected 4 truth values"),
        (lambda: explanation[np.zeros((2, 2))], "expected the id of an explained sample"),
    ):
        with pytest.raises(WhenceError, match=message):
            call()
    assert True not in explanation
    assert np.arange(3) not in explanation
    assert explanation[np.asarray([True, False, False, True])].sample_ids.tolist() == [0, 3]
    assert explanation[[1, 0]].sample_ids.tolist() == [1, 0]


# ---- markup ---------------------------------------------------------------------------------------

MARKUP = '<img src=x onerror="alert(1)">'


def test_markup_in_notebooks_is_text(explanation):
    pandas = pytest.importorskip("pandas")
    rows = pandas.DataFrame({MARKUP: [MARKUP] * T, "b": [1.5, 2.5, 3.5, None]})
    hostile = with_ids(explanation, MARKUP)
    names = {name: row for name, row in zip(hostile.sample_ids, rows.to_dict("records"), strict=True)}
    shown = [
        hostile.neighbours(rows, names)._repr_html_(),
        explanation.neighbours(rows, rows)._repr_html_(),
        hostile._repr_html_(),
        whence.Suspects(
            hostile.sample_ids, np.arange(T), MARKUP, hostile.sample_ids, hostile.sample_ids
        )._repr_html_(),
    ]
    for html in shown:
        assert "<img" not in html
        assert "&lt;img" in html
        assert "tex2jax_ignore" in html  # nor is a dollar a formula


def with_ids(explanation, name):
    ids = np.asarray([f"{name}{i}" for i in range(T)], dtype=object)
    return dataclasses.replace(
        explanation, sample_ids=ids, ids=ids[explanation.ids], opponent_ids=ids[explanation.opponent_ids]
    )


def test_dollars_and_controls_on_plots_are_text(explanation, suspects):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    name = r"$\frac{1}$ _x^ $"
    hostile = with_ids(explanation, name)
    texts = [f"{name} {i}" for i in range(T)]
    for ax in (
        hostile.plot(
            class_names=[name, name], training_samples=dict(zip(hostile.sample_ids, texts, strict=True))
        ),
        whence.Suspects(hostile.sample_ids, np.arange(T), name, np.zeros(T, int), np.ones(T, int)).plot(
            class_names=[name, name]
        ),
    ):
        ax.figure.canvas.draw()  # would raise for a broken formula
        pyplot.close(ax.figure)
    ax = with_ids(explanation, "a\nb\x1b").plot()
    assert all("\n" not in label.get_text() for label in ax.get_yticklabels())
    pyplot.close("all")
