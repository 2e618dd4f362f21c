"""index, explain and suspects over every kind of model and data, against the library called from Python."""

import json
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from cli_files import COLUMNS, NAMES, N, T, problem

import whence

X, Y, X_NEW, Y_NEW = problem()


def expected_of(model, train, new, *, ids=None, new_ids=None, k=5, **options):
    """What Python gives for the same question."""
    lje = whence.RepresenterPointLJE(
        whence.InfluenceModel(model, **options), train, whence.ExactIHVPFactory(), ids=ids, progress=False
    )
    return lje.explain(new, k=k, ids=new_ids), lje.suspects(train, k=20)


def check(found, ranked, explanation, suspects):
    """Compare what two commands print as JSON with the answers of the library."""
    assert found["command"] == "explain"
    assert found["schema"] == 1
    assert found["whence"] == whence.__version__
    assert len(found["predictions"]) == len(explanation)
    for t, said in enumerate(found["predictions"]):
        assert said["id"] == explanation.sample_ids[t]
        assert said["prediction"] == explanation.predictions[t]
        assert said["label"] == (None if explanation.labels is None else explanation.labels[t])
        assert said["output"] == explanation.outputs[t]
        assert said["total"] == pytest.approx(explanation.totals[t], rel=1e-6)
        assert said["pre_activation"] == pytest.approx(explanation.pre_activations[t], rel=1e-6)
        for side, ids, labels, values in (
            ("supporters", explanation.ids, explanation.training_labels, explanation.values),
            (
                "opponents",
                explanation.opponent_ids,
                explanation.opponent_labels,
                explanation.opponent_values,
            ),
        ):
            assert [one["id"] for one in said[side]] == ids[t].tolist()
            assert [one["label"] for one in said[side]] == labels[t].tolist()
            assert [one["value"] for one in said[side]] == pytest.approx(values[t].tolist(), rel=1e-5)
    assert ranked["command"] == "suspects"
    assert ranked["score"] == suspects.score
    rows = ranked["suspects"]
    assert [row["rank"] for row in rows] == list(range(1, len(suspects) + 1))
    assert [row["id"] for row in rows] == suspects.ids.tolist()
    assert [row["score"] for row in rows] == pytest.approx(suspects.scores.tolist(), rel=1e-5)
    assert [row["label"] for row in rows] == suspects.labels.tolist()
    assert [row["prediction"] for row in rows] == suspects.predictions.tolist()


def test_a_pipeline_on_a_table(files, answer):
    made = answer("index", files / "model.joblib", files / "train.csv", "--to", "i", "--id", "animal",
                  "--trust-model")  # fmt: skip
    assert made["command"] == "index"
    assert made["n_samples"] == N
    assert made["classes"] == list(NAMES)
    assert made["about"]["damping"] == 1e-3
    model = joblib.load(files / "model.joblib")
    table = pd.read_csv(files / "train.csv")
    assert made["agreement"] == pytest.approx(model.score(table[COLUMNS], table["class"]))
    found = answer("explain", "i", files / "new.csv", "--trust-model")
    assert found["classes"] == list(NAMES)
    new = pd.read_csv(files / "new.csv")
    want = expected_of(
        model,
        (table[COLUMNS], table["class"].to_numpy()),
        (new[COLUMNS], new["class"].to_numpy()),
        ids=table["animal"].to_numpy(),
        new_ids=new["animal"].to_numpy(),
    )
    check(found, answer("suspects", "i"), *want)


def test_a_regression(files, answer):
    made = answer("index", files / "ridge.joblib", files / "train.csv", "--label", "value", "--to", "i",
                  "--trust-model")  # fmt: skip
    assert made["classes"] is None
    assert made["agreement"] is None
    table = pd.read_csv(files / "train.csv")
    train = table[COLUMNS], table["value"].to_numpy()
    new = table[COLUMNS][:3], table["value"].to_numpy()[:3]
    found = answer("explain", "i", files / "train.csv", "--limit", 3, "--trust-model")
    check(found, answer("suspects", "i"), *expected_of(joblib.load(files / "ridge.joblib"), train, new))


def test_arrays_without_labels(files, answer):
    arguments = files / "arrays.joblib", files / "train.npz", "--to", "i", "--trust-model"
    answer("index", *arguments, "--id", "name")
    found = answer("explain", "i", files / "new.npz", "--trust-model", "-k", 2)
    names = [f"n{i}" for i in range(N)]
    want = expected_of(joblib.load(files / "arrays.joblib"), (X, Y), (X_NEW,), ids=names, k=2)
    check(found, answer("suspects", "i"), *want)


def test_images_in_folders(files, answer):
    made = answer("index", files / "photos.joblib", files / "photos", "--to", "i", "--trust-model")
    assert made["classes"] == ["dark", "light"]
    found = answer("explain", "i", files / "photos" / "light" / "03.png", "--trust-model", "-k", 3)
    (said,) = found["predictions"]
    assert said["id"] == "03.png"
    assert said["label"] is None
    images = pytest.importorskip("PIL.Image")
    paths = sorted((files / "photos").glob("*/*.png"))
    pixels = np.stack([np.asarray(images.open(path), dtype=float).ravel() for path in paths])
    names = np.asarray([path.parent.name for path in paths])
    ids = [f"{path.parent.name}/{path.name}" for path in paths]
    row = ids.index("light/03.png")
    want = expected_of(joblib.load(files / "photos.joblib"), (pixels, names), (pixels[[row]],), ids=ids,
                       new_ids=["03.png"], k=3)  # fmt: skip
    check(found, answer("suspects", "i"), *want)


@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_boosters_of_xgboost(files, answer, suffix):
    xgboost = pytest.importorskip("xgboost")
    table = pd.read_csv(files / "train.csv")
    matrix = xgboost.DMatrix(table[COLUMNS], Y)
    booster = xgboost.train({"objective": "multi:softprob", "num_class": 3, "max_depth": 2}, matrix, 5)
    booster.save_model(f"model.{suffix}")
    made = answer("index", f"model.{suffix}", files / "train.csv", "--to", "i")
    assert made["classes"] == list(NAMES)
    new = pd.read_csv(files / "new.csv")
    want = expected_of(booster, (table[COLUMNS], Y), (new[COLUMNS], Y_NEW))
    check(answer("explain", "i", files / "new.csv"), answer("suspects", "i"), *want)


def test_a_booster_of_lightgbm_with_blanks_in_its_columns(files, answer):
    lightgbm = pytest.importorskip("lightgbm")
    options = {
        "objective": "multiclass",
        "num_class": 3,
        "num_leaves": 4,
        "min_data_in_leaf": 2,
        "verbose": -1,
    }
    names = [column.replace(" ", "_") for column in COLUMNS]
    booster = lightgbm.train(options, lightgbm.Dataset(X, Y, feature_name=names), 5)
    booster.save_model("model.txt")
    answer("index", "model.txt", files / "train.csv", "--to", "i", "--reg-lambda", 0.5)
    want = expected_of(lightgbm.Booster(model_file="model.txt"), (X, Y), (X_NEW, Y_NEW), reg_lambda=0.5)
    check(answer("explain", "i", files / "new.csv"), answer("suspects", "i"), *want)


def test_parquet_keeps_the_names_of_its_rows(files, answer):
    pytest.importorskip("pyarrow")
    table = pd.read_csv(files / "train.csv").set_index("animal")
    table.to_parquet("train.parquet")
    answer("index", files / "model.joblib", "train.parquet", "--to", "i", "--trust-model")
    answer(
        "index", files / "model.joblib", files / "train.csv", "--id", "animal", "--to", "j", "--trust-model"
    )
    from_csv, from_parquet = (answer("suspects", folder)["suspects"] for folder in "ij")
    assert from_csv == from_parquet


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras, when it saves
def test_a_keras_model(files, answer):
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(6, activation="relu"), keras.layers.Dense(3)]
    )
    net.compile(keras.optimizers.Adam(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.fit(X, Y, epochs=40, verbose=0)
    net.save("model.keras")
    made = answer("index", "model.keras", files / "train.csv", *inputs(), "--label", "class", "--to", "i",
                  "--batch-size", 7)  # fmt: skip
    assert made["classes"] == list(NAMES)
    x = pd.read_csv(files / "train.csv")[COLUMNS].to_numpy("float32")
    new = pd.read_csv(files / "new.csv")[COLUMNS].to_numpy("float32")
    want = expected_of(net, (x, Y), (new, Y_NEW))
    check(answer("explain", "i", files / "new.csv"), answer("suspects", "i"), *want)


def inputs():
    return [word for column in COLUMNS for word in ("--inputs", column)]


NET = ("my_nets:small", "--weights", "small.pt", "--loss", "CrossEntropyLoss")


def test_a_torch_factory(nets, files, answer):
    torch = pytest.importorskip("torch")
    answer(
        "index", NET[0], files / "train.npz", "--to", "i", "--inputs", "x", *NET[1:], "--weight-decay", 0.01
    )
    want = expected_of(
        nets, [(X, Y)], [X_NEW], loss_function=torch.nn.CrossEntropyLoss(), weight_decay=0.01
    )
    check(answer("explain", "i", files / "new.npz", "--trust-model"), answer("suspects", "i"), *want)


def test_a_loss_without_a_closed_form(nets, files, answer):
    """What is stored does not answer by itself: model and training set are opened once more."""
    torch = pytest.importorskip("torch")
    y = (X @ np.asarray([1, 2, 0, -1])).astype(np.float32)[:, None]
    np.savez("values.npz", x=X, y=y)
    answer("index", "my_nets:one", "values.npz", "--to", "i", "--loss", "HuberLoss")
    torch.manual_seed(1)
    want = expected_of(
        torch.nn.Linear(4, 1), [(X, y)], [X_NEW], loss_function=torch.nn.HuberLoss(), new_ids=np.arange(T)
    )
    check(answer("explain", "i", files / "new.npz", "--trust-model"),
          answer("suspects", "i", "--trust-model"), *want)  # fmt: skip


def test_a_factory_that_draws_its_weights_is_noticed(nets, files, whence_):
    arguments = "index", "my_nets:drawn", files / "train.npz", "--inputs", "x", "--loss", "CrossEntropyLoss"
    assert whence_(*arguments, "--to", "i").code == 0
    done = whence_("explain", "i", files / "new.npz", "--trust-model")
    assert done.code == 1
    assert "one that has changed since" in done.err


# -------------------------------------------------------------------------------- what is remembered


def test_several_methods_on_one_index(index, files, answer):
    before = answer("explain", index, files / "new.csv", "--trust-model")
    made = answer("index", files / "model.joblib", files / "train.csv", "--to", index, "--id", "animal",
                  "--trust-model", "--damping", 0.5)  # fmt: skip
    assert made["about"]["damping"] == 0.5
    after = answer("explain", index, files / "new.csv", "--trust-model")
    assert after["about"]["damping"] == 0.5
    names = sorted(path.name for path in index.glob("method-*"))
    again = [
        answer("explain", index, files / "new.csv", "--trust-model", "--method", name) for name in names
    ]
    assert before in again
    assert after in again


@pytest.mark.parametrize("solver", ["exact", "cg", "kronecker"])
def test_solvers(files, answer, solver):
    arguments = files / "arrays.joblib", files / "train.npz", "--inputs", "x", "--trust-model"
    made = answer("index", *arguments, "--to", "i", "--solver", solver, "--damping", 0.02,
                  "--hessian-samples", 50, "--seed", 3, "--feature-dtype", "float32")  # fmt: skip
    assert made["about"]["damping"] == 0.02
    assert answer("suspects", "i")["about"]["solver"] == made["about"]["solver"]


def test_only_some_samples(index, files, answer):
    every = answer("explain", index, files / "new.csv", "--trust-model")["predictions"]
    some = answer("explain", index, files / "new.csv", "--trust-model", "--only", "new3", "--only", "new1")
    for one, same in zip(some["predictions"], [every[3], every[1]], strict=True):
        assert one["id"] == same["id"]
        assert one["total"] == pytest.approx(same["total"])
        assert [s["id"] for s in one["supporters"]] == [s["id"] for s in same["supporters"]]
    first = answer("explain", index, files / "new.csv", "--trust-model", "--limit", 2)
    assert [one["id"] for one in first["predictions"]] == [one["id"] for one in every[:2]]
    chosen = answer("explain", index, files / "new.csv", "--trust-model", "--output", 2, "--limit", 1)
    assert chosen["predictions"][0]["output"] == 2


def test_columns_in_another_order_and_others_between_them(index, files, answer):
    new = pd.read_csv(files / "new.csv")
    new["noise"] = "none"
    new[["mass", "noise", "class", "animal", *COLUMNS[:3]]].to_csv("turned.csv", index=False)
    want = answer("explain", index, files / "new.csv", "--trust-model")
    assert answer("explain", index, "turned.csv", "--trust-model") == want


def test_samples_without_labels_and_ids(index, files, answer):
    pd.read_csv(files / "new.csv")[COLUMNS].to_csv("bare.csv", index=False)
    predictions = answer("explain", index, "bare.csv", "--trust-model")["predictions"]
    assert [one["id"] for one in predictions] == list(range(T))
    assert {one["label"] for one in predictions} == {None}


def test_a_model_that_moved(index, files, answer, whence_):
    joblib.dump(joblib.load(files / "model.joblib"), "moved.joblib")
    record = json.loads((index / "command.json").read_text())
    record["model"]["model"] = "/nowhere/model.joblib"
    (index / "command.json").write_text(json.dumps(record))
    lost = whence_("explain", index, files / "new.csv", "--trust-model")
    assert lost.code == 1
    assert "nothing there" in lost.err
    moved = answer("explain", index, files / "new.csv", "--model", files / "model.joblib", "--trust-model")
    assert len(moved["predictions"]) == T


def test_all_labels_ranked(index, answer):
    ranked = answer("suspects", index, "--all", "--score", "loss")
    assert len(ranked["suspects"]) == N
    assert ranked["score"] == "loss"


# ------------------------------------------------------------------------- indices made from Python


@pytest.fixture
def python_index(files):
    model = joblib.load(files / "arrays.joblib")
    lje = whence.RepresenterPointLJE(
        whence.InfluenceModel(model),
        (X, Y),
        whence.ExactIHVPFactory(),
        index_path="python.index",
        progress=False,
    )
    return lje


def test_an_index_from_python_by_features(python_index, files, answer):
    np.savez("features.npz", x=X_NEW, y=Y_NEW)
    found = answer("explain", "python.index", "features.npz", "--classes", "ant,bee,cow")
    assert found["classes"] == list(NAMES)
    check(found, answer("suspects", "python.index"), python_index.explain((X_NEW, Y_NEW)),
          python_index.suspects(k=20))  # fmt: skip


def test_an_index_from_python_with_its_model(python_index, files, answer, whence_):
    arguments = "explain", "python.index", files / "new.npz", "--trust-model", "--model"
    found = answer(*arguments, files / "arrays.joblib")
    check(
        found,
        answer("suspects", "python.index"),
        python_index.explain([X_NEW]),
        python_index.suspects(k=20),
    )
    other = whence_(*arguments, files / "photos.joblib")
    assert other.code == 1
    assert "model_weights" in other.err


# -------------------------------------------------------------------------------------- what is seen


def test_what_a_person_sees(index, files, whence_, monkeypatch):
    made = whence_("index", files / "model.joblib", files / "train.csv", "--to", index, "--id", "animal",
                   "--trust-model")  # fmt: skip
    assert made.err.splitlines()[0].startswith("Loading ")
    assert f"{N} samples indexed in an.index" in made.out
    assert "ant, bee, cow" in made.out
    assert "Next: whence explain an.index SAMPLES --trust-model" in made.out
    shown = whence_("explain", index, files / "new.csv", "--trust-model", "--k", 2)
    assert shown.code == 0
    assert shown.out.count("training sample  labelled") == T
    assert "new4: predicted " in shown.out
    ranked = whence_("suspects", index, "--k", 4)
    assert ranked.out.startswith("The 4 of 60 labels to look at first, by label-noise:")
    assert "labels are wrong" in ranked.out
    assert "model says" in ranked.out


def test_what_is_not_printed_is_said(index, files, whence_):
    shown = whence_("explain", index, files / "train.csv", "--trust-model", "--quiet")
    assert shown.err == ""
    assert f"… and {N - 10} more" in shown.out


@pytest.mark.parametrize("width", [40, 200])
def test_answers_fit_the_terminal(index, files, whence_, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for arguments in (("explain", index, files / "new.csv", "--trust-model"), ("suspects", index)):
        shown = whence_(*arguments)
        assert shown.code == 0
        assert max(map(len, shown.out.splitlines())) <= width


@pytest.mark.filterwarnings("default:k. asked for")
def test_more_than_there_are(index, files, whence_):
    shown = whence_("suspects", index, "--k", 1000, "--json")
    assert shown.code == 0
    assert "whence: note: k: asked for 1000 training samples, and there are 60" in shown.err
    assert len(json.loads(shown.out)["suspects"]) == N


def test_classes_in_the_wrong_order_are_noticed(files, whence_):
    arguments = files / "photos.joblib", files / "photos", "--to", "i", "--trust-model", "--json"
    made = whence_("index", *arguments, "--classes", "light,dark")
    assert "whence: note: the model predicts only" in made.err
    assert json.loads(made.out)["agreement"] < 0.5


def test_who_stops_reading_gets_no_traceback(index):
    program = "from whence.cli import main; raise SystemExit(main())"
    command = f"{sys.executable} -c '{program}' suspects {index} --all --json | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == '{"schema":'
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


# ------------------------------------------------------------------------------------------ reports


def test_reports_show_the_samples(index, files, answer):
    pytest.importorskip("jinja2")
    said = answer("explain", index, files / "new.csv", "--trust-model", "--report", "out.html")
    assert said["report"].endswith("/out.html")
    page = Path("out.html").read_text(encoding="utf-8")
    assert "tail length" in page
    assert "labelled" in page
    answer("suspects", index, "--report", "suspects.html")
    assert "tail length" in Path("suspects.html").read_text(encoding="utf-8")


def test_reports_show_images(files, answer):
    pytest.importorskip("jinja2")
    answer("index", files / "photos.joblib", files / "photos", "--to", "i", "--trust-model")
    answer("explain", "i", files / "photos" / "dark", "--limit", 2, "-k", 2, "--report", "out.html",
           "--trust-model")  # fmt: skip
    assert Path("out.html").read_text(encoding="utf-8").count("data:image/png") >= 2 * 5


@pytest.mark.parametrize("change", ["gone", "rows", "values"])
def test_a_report_never_shows_other_training_samples(index, files, whence_, change):
    pytest.importorskip("jinja2")
    table = pd.read_csv(files / "train.csv")
    if change == "rows":
        table = table[:-1]
    if change == "values":
        table["mass"] += 1
    if change != "gone":
        table.to_csv("changed.csv", index=False)
    done = whence_("suspects", index, "--data", "changed.csv", "--report", "out.html")
    assert done.code == 0
    assert "goes without the training samples" in done.err
    assert "tail length" not in Path("out.html").read_text(encoding="utf-8")


def test_nothing_but_results_on_stdout(index, files, whence_):
    done = whence_("explain", index, files / "new.csv", "--trust-model", "--json", "--report", "out.html")
    assert json.loads(done.out)["command"] == "explain"
    assert done.err.splitlines()[-1] == "Writing out.html …"


def test_json_has_null_for_what_is_no_number(files, answer, monkeypatch, capsys):
    from whence.cli.show import print_json

    print_json(
        {"a": np.asarray([np.nan, 1.5]), "b": np.float32("inf"), "c": np.int64(3), "d": np.bool_(True)}
    )
    said = json.loads(capsys.readouterr().out)
    assert (said["a"], said["b"], said["c"], said["d"]) == ([None, 1.5], None, 3, True)
