"""Tables of ``datasets``: their own format and transforms, streams, columns of lists and of texts."""

import numpy as np
import pytest

import whence

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")

N, D = 30, 4
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
Y = np.arange(N) % 3
COLUMNS = {"x": X.tolist(), "labels": Y.tolist()}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(D, 3)

    def forward(self, x):
        return self.head(x)


def model(**options):
    torch.manual_seed(0)
    return whence.InfluenceModel(Net(), loss_function=torch.nn.CrossEntropyLoss(), **options)


def features_of(index):
    return index.gather("features", np.arange(index.n_samples))[:, :D]


def table(**more):
    return datasets.Dataset.from_dict(COLUMNS | more)


def halved(batch):
    return {"x": [torch.tensor(row) / 2 for row in batch["x"]], "labels": batch["labels"]}


def with_columns():
    ragged = table(junk=[[1] * (row % 3 + 1) for row in range(N)])
    ragged.set_format("numpy", columns=["x", "labels"])
    return ragged


SAME = {
    "as it is": table,
    "tensors": lambda: table().with_format("torch"),
    "some columns": with_columns,
    "a frame's format": lambda: table().with_format("pandas"),
    "beside texts": lambda: table(text=["a text"] * N),
    "a stream": lambda: table().to_iterable_dataset(),
    "a stream of tensors": lambda: table().to_iterable_dataset().with_format("torch"),
    "a stream that is mapped": lambda: table().to_iterable_dataset().map(lambda row: row),
    "a loader": lambda: torch.utils.data.DataLoader(table().with_format("torch"), 7),
    "a loader of a stream": lambda: torch.utils.data.DataLoader(
        table().to_iterable_dataset().with_format("torch"), 7
    ),
}


@pytest.mark.parametrize("made", SAME.values(), ids=SAME)
def test_rows_come_in_the_order_of_the_table(made):
    index = model().index(made(), progress=False)
    np.testing.assert_array_equal(features_of(index), X)
    np.testing.assert_array_equal(index.ids, np.arange(N))


def test_a_transform_is_what_the_model_sees():
    by_method = table().with_transform(halved)
    in_place = table()
    in_place.set_transform(halved)
    for given in (by_method, in_place, torch.utils.data.DataLoader(by_method, 7)):
        np.testing.assert_array_equal(features_of(model().index(given, progress=False)), X / 2)


def test_a_loader_that_shuffles_a_table():
    given = torch.utils.data.DataLoader(table().with_format("torch"), 7, shuffle=True)
    with pytest.warns(UserWarning, match="set aside"):
        np.testing.assert_array_equal(features_of(model().index(given, progress=False)), X)


def test_streams_that_shuffle_have_no_positions_but_may_bring_ids():
    numbers = list(range(100, 100 + N))
    stream = table(number=numbers).to_iterable_dataset(num_shards=3).shuffle(seed=0)
    for given in (stream, torch.utils.data.DataLoader(stream.with_format("torch"), 7)):
        index = model().index(given, progress=False)
        with pytest.raises(whence.WhenceError, match="a table that streams, after shuffle"):
            index.check_named()
        named = model(batch={"id": "number"}).index(given, progress=False)
        assert sorted(named.ids) == numbers
        np.testing.assert_array_equal(features_of(named), X[named.ids - 100])


def test_texts_name_samples():
    named = model(batch={"y": "labels", "id": "file"}).index(table(file=[f"{i}.png" for i in range(N)]))
    assert named.ids.tolist() == [f"{i}.png" for i in range(N)]


REFUSED = {
    "several tables": (lambda: datasets.DatasetDict(train=table()), r"Choose one: dataset\['train'\]"),
    "several streams": (
        lambda: datasets.IterableDatasetDict(train=table().to_iterable_dataset()),
        r"Choose one: dataset\['train'\]",
    ),
    "lists of uneven length": (
        lambda: table(junk=[[1] * (row % 3 + 1) for row in range(N)]),
        "column 'junk', whose rows differ in length",
    ),
    "lists in a loader": (lambda: torch.utils.data.DataLoader(table(), 7), "with_format"),
    "texts as labels": (lambda: table(labels=["abc"[label] for label in Y]), "a list with 'a' in it"),
    "no labels at all": (lambda: table(labels=[None] * N), "a list with None in it"),
    "None among arrays": (lambda: table(x=[None, *X.tolist()[1:]]), "Leave out rows with None"),
    "a transform that fails": (lambda: table().with_transform(lambda batch: batch["y"]), "KeyError"),
    "no such column": (lambda: table().remove_columns("labels"), "Name their key"),
    "no rows": (lambda: table().select([]), "an empty dataset"),
}


@pytest.mark.parametrize(("made", "words"), REFUSED.values(), ids=REFUSED)
def test_what_a_table_cannot_give_is_told(made, words):
    with pytest.raises(whence.WhenceError, match=words):
        model().index(made(), progress=False)
