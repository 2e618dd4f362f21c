"""Bad input to the methods: refused by a message that says what to do; no file is lost."""

import pytest
from refusals import (
    TESTED,
    TRAIN,
    N,
    X,
    Y,
    batches,
    check,
    keras,
    made,
    net,
    tf,
)

from whence import ExactIHVPFactory, InfluenceModel, RepresenterPointLJE, WhenceError


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return InfluenceModel(net())


@pytest.fixture(scope="module")
def lje(model):
    return RepresenterPointLJE(model, TRAIN, ExactIHVPFactory(), progress=False)


def nested(lje, *args, **kwargs):
    return lje.estimate_influence_values_in_batches(*args, **kwargs)


OTHER = batches(X[:, :2], Y)


def test_labels_are_needed_where_they_choose_the_output(model):
    given = made(model=model, label="given")
    check(lambda: given.explain([X]), "batch 0 of samples", "labels", "none", "outputs=")
    assert given.explain([X], k=2, outputs=1).outputs.tolist() == [1] * N


def test_samples_that_are_drawn_anew_in_each_pass_are_refused(model):
    drawn = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(N, seed=0).take(9).batch(4)
    lje = made(drawn, model)
    with pytest.raises(WhenceError, match=r"in every pass|did not hold"):
        lje.top_k(TESTED, drawn)

    class Shrinking(list):
        """A sequence that gives fewer batches in the second pass."""

    kept = Shrinking([(X[:10], Y[:10]), (X[10:], Y[10:])])
    lje = made(kept, model)
    kept.pop()
    check(
        lambda: lje.compute_top_k_from_training_dataset(kept, N),
        "train_set",
        "the same samples in every pass",
        "without some",
        "drawn anew",
    )


# ---- paths: nothing is lost and nothing half-written --------------------------------------------

SAVES = {
    "vectors": lambda m, path: m.compute_influence_vector(TRAIN, path),
    "vectors, in batches": lambda m, path: nested(m, TESTED, TRAIN, save_influence_vector_path=path),
    "values, in batches": lambda m, path: nested(m, TESTED, TRAIN, save_influence_value_path=path),
    "vectors, top k": lambda m, path: m.top_k(TESTED, TRAIN, save_influence_vector_ds_path=path),
    "answers, top k": lambda m, path: m.top_k(TESTED, TRAIN, save_top_k_ds_path=path),
}
LOADS = {
    "in batches": lambda m, path: nested(m, TESTED, TRAIN, load_influence_vector_path=path),
    "top k": lambda m, path: m.top_k(TESTED, TRAIN, load_influence_vector_ds_path=path),
}


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", SAVES)
def test_a_path_that_holds_something_else_is_left_alone(name, lje, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    check(
        lambda: SAVES[name](lje, tmp_path),
        str(tmp_path),
        "a new path, an empty folder",
        "a folder with other files",
        "nothing was written",
    )
    check(
        lambda: SAVES[name](lje, tmp_path / "thesis.txt"),
        "thesis.txt",
        "a new path",
        "a file",
        "nothing was written",
    )
    assert list(contents(tmp_path).values()) == [b"years of work"]


@pytest.mark.parametrize("name", LOADS)
def test_a_path_without_vectors_is_refused(name, lje, tmp_path):
    message = ("a saved index", "no manifest", "an index was saved to")
    check(lambda: LOADS[name](lje, tmp_path / "nowhere"), "nowhere", *message)
    check(lambda: LOADS[name](lje, tmp_path), str(tmp_path), *message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*LOADS, "vectors"])
def test_vectors_of_another_model_are_refused(name, lje, tmp_path):
    other = made(model=net())
    list(other.compute_influence_vector(TRAIN, tmp_path))
    before = contents(tmp_path)
    call = {**LOADS, **SAVES}[name]
    check(lambda: call(lje, tmp_path), str(tmp_path), "model", "model", "or a new path")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", SAVES)
def test_an_error_leaves_no_half_written_folder(name, lje, tmp_path):
    """Bad input beside a good path writes nothing, and the path can be used afterwards."""
    path = tmp_path / "saved"
    bad = {
        "vectors": lambda: lje.compute_influence_vector(OTHER, path),
        "vectors, in batches": lambda: nested(lje, OTHER, TRAIN, save_influence_vector_path=path),
        "values, in batches": lambda: nested(lje, OTHER, TRAIN, save_influence_value_path=path),
        "vectors, top k": lambda: lje.top_k(TESTED, OTHER, save_influence_vector_ds_path=path),
        "answers, top k": lambda: lje.top_k(OTHER, TRAIN, save_top_k_ds_path=path),
    }
    with pytest.raises(WhenceError):
        bad[name]()
    if path.exists():  # whole, if written before the error was found
        assert any(file.suffix == ".json" for file in path.iterdir())
    SAVES[name](lje, path)
    assert contents(path)
    assert not [p for p in tmp_path.iterdir() if p != path]  # no temporary left beside it
