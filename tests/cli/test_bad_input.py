"""Whatever is wrong is said on one line that names it, with the exit code for it and nothing on stdout."""

import json
import shutil
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from cli_files import COLUMNS, problem

import whence

X, Y, X_NEW, Y_NEW = problem()
MODEL = "{files}/model.joblib"
TRAIN = "{files}/train.csv"
NEW = "{files}/new.csv"
PHOTOS, ARRAYS = "{files}/photos.joblib", "{files}/arrays.joblib"
TRUST = "--trust-model"


def broken_files():
    """Write files that are not what their names say."""
    Path("text.npz").write_text("no zip")
    Path("text.parquet").write_text("no parquet")
    Path("empty.csv").write_text("")
    Path("header.csv").write_text("a,b,label\n")
    Path("ragged.csv").write_text("a,b\n1,2\n1,2,3,4\n")
    Path("bytes.csv").write_bytes(b"a,b\n\xff\xfe,\xfa\n")
    Path("text.json").write_text("{}")
    Path("text.ubj").write_text("no booster")
    Path("text.txt").write_text("no booster")
    Path("text.joblib").write_text("no pickle")
    Path("text.keras").write_text("no model")
    Path("weights.pt").write_text("no tensors")
    Path("model.h5").write_text("")
    Path("model.onnx").write_text("")
    Path("data.xlsx").write_text("")
    Path("bare").write_text("")
    np.savez("objects.npz", x=X, y=np.asarray([{"a": 1}] * len(X), dtype=object), allow_pickle=True)
    np.savez("lengths.npz", x=X, y=Y[:-1])
    np.savez("scalar.npz", x=X, y=np.float64(3))
    np.savez("many.npz", a=X, b=X, y=Y)
    np.savez("two_labels.npz", x=X, y=Y, label=Y)
    np.savez("nothing.npz", y=Y)
    np.savez("twice.npz", x=X, y=Y, id=np.zeros(len(X), dtype=int))
    whole = Path("lengths.npz").read_bytes()
    Path("cut.npz").write_bytes(whole[: len(whole) // 2])
    pd.DataFrame(X, columns=COLUMNS).assign(label=[None, *["ant"] * (len(X) - 1)]).to_csv("gap.csv")
    pd.DataFrame(X[:, :2], columns=COLUMNS[:2]).assign(label="ant").to_csv("narrow.csv")
    pd.DataFrame({"label": ["ant"] * 3}).to_csv("labels_only.csv", index=False)
    pd.DataFrame(X, columns=COLUMNS).assign(label="yak").to_csv("unknown.csv")
    Path("no_images/cat").mkdir(parents=True)
    Path("one_empty").mkdir()
    shutil.copytree("photos", "one_empty/dark")
    Path("one_empty/light").mkdir()
    Path("loose").mkdir()
    shutil.copy("photos/03.png", "loose")
    Path("mixed/cat").mkdir(parents=True)
    shutil.copy("photos/03.png", "mixed/cat")
    shutil.copy("photos/03.png", "mixed")
    Path("no_png/dark").mkdir(parents=True)
    Path("no_png/dark/1.png").write_text("no picture")


@pytest.fixture
def here(files, tmp_path):
    shutil.copytree(files / "photos" / "light", "photos")
    broken_files()
    return files


def refused(whence_, arguments, files, code=1):
    done = whence_(*(str(a).format(files=files) for a in arguments), "--quiet")
    assert done.code == code, (done.out, done.err)
    assert done.out == ""
    assert "Traceback" not in done.err
    if code == 1:
        assert done.err.startswith("whence: ")
        assert done.err.count("\n") == 1
        assert " expected " in done.err
        assert ", got " in done.err
    return done.err


INDEX = {
    "no such model": (["no.joblib", TRAIN, TRUST], "MODEL 'no.joblib': expected a file, got nothing there"),
    "a folder for a model": (["photos", TRAIN], "module:factory"),
    "an unknown model": (["data.xlsx", TRAIN], "ends in .keras"),
    "an old Keras model": (["model.h5", TRAIN], "Save the model as .keras"),
    "an ONNX model": (["model.onnx", TRAIN], "a .onnx file"),
    "weights for a model": (["weights.pt", TRAIN], "module:factory --weights FILE"),
    "a pickle without a word": ([MODEL, TRAIN], "--trust-model"),
    "no pickle": (["text.joblib", TRAIN, TRUST], "a model saved with joblib"),
    "no booster, json": (["text.json", TRAIN], "a model saved by XGBoost"),
    "no booster, ubj": (["text.ubj", TRAIN], "a model saved by XGBoost"),
    "no booster, txt": (["text.txt", TRAIN], "a model saved by LightGBM"),
    "no such module": (["no_module:net", TRAIN], "ModuleNotFoundError"),
    "no such name": (["json:net", TRAIN], "MODEL: expected a name in json, got 'net'"),
    "no function": (["math:pi", TRAIN], "a function that returns the model"),
    "no model comes back": (["time:time", TRAIN], "one that returns a float"),
    "weights beside a file": ([MODEL, TRAIN, "--weights", "weights.pt", TRUST], "--weights: expected"),
    "a module that is not there": ([MODEL, TRAIN, "--import", "no_module", TRUST], "--import: expected"),
    "a loss where there is one": ([MODEL, TRAIN, "--loss", "squared_error", TRUST], "--loss: expected"),
    "another layer": ([MODEL, TRAIN, "--layer", "dense", TRUST], "--layer: expected"),
    "weight decay": ([MODEL, TRAIN, "--weight-decay", "1", TRUST], "--weight-decay: expected"),
    "lambda": ([MODEL, TRAIN, "--reg-lambda", "1", TRUST], "--reg-lambda: expected a booster"),
    "no such data": ([MODEL, "no.csv", TRUST], "DATA 'no.csv': expected"),
    "an unknown file": ([MODEL, "data.xlsx", TRUST], "one that ends in '.xlsx'"),
    "a file without a suffix": ([MODEL, "bare", TRUST], "one without such an ending"),
    "an empty table": ([MODEL, "empty.csv", TRUST], "EmptyDataError"),
    "a table without rows": ([ARRAYS, "header.csv", TRUST], "an empty file"),
    "a ragged table": ([MODEL, "ragged.csv", TRUST], "ParserError"),
    "bytes": ([MODEL, "bytes.csv", TRUST], "UnicodeDecodeError"),
    "no parquet": ([MODEL, "text.parquet", TRUST], "a parquet file"),
    "no npz": ([MODEL, "text.npz", TRUST], "arrays of numpy.savez"),
    "half an npz": ([MODEL, "cut.npz", TRUST], "arrays of numpy.savez"),
    "objects": ([MODEL, "objects.npz", TRUST], "It holds Python objects"),
    "other lengths": ([MODEL, "lengths.npz", TRUST], "x (60, 4), y (59,)"),
    "a scalar": ([MODEL, "scalar.npz", TRUST], "y ()"),
    "several arrays": ([MODEL, "many.npz", TRUST], "--inputs: expected which of the arrays in many.npz"),
    "no array for the model": ([MODEL, "nothing.npz", TRUST], "--inputs: expected"),
    "two labels": ([MODEL, "two_labels.npz", TRUST], "--label: expected which of label, y"),
    "ids twice": ([MODEL, "twice.npz", TRUST, "--id", "id"], "--id id: expected another id for every"),
    "a label that is missing": ([MODEL, "gap.csv", TRUST], "1 missing, first in row 0"),
    "columns that are missing": ([MODEL, "narrow.csv", TRUST], "without tail length, mass"),
    "no columns": ([ARRAYS, "labels_only.csv", TRUST], "none beside the labels"),
    "a class that is unknown": ([MODEL, "unknown.csv", TRUST], "'yak'"),
    "no such label": ([MODEL, TRAIN, TRUST, "--label", "color"], "--label: expected one of animal, legs"),
    "no such id": ([MODEL, TRAIN, TRUST, "--id", "color"], "--id: expected one of"),
    "no such weight": ([MODEL, TRAIN, TRUST, "--weight", "color"], "--weight: expected one of"),
    "no such input": ([MODEL, TRAIN, TRUST, "--inputs", "color"], "--inputs: expected one of"),
    "no label at all": ([MODEL, "{files}/new.npz", TRUST], "Name them with --label"),
    "texts for numbers": (["{files}/ridge.joblib", TRAIN, TRUST], "--label: expected numbers"),
    "texts for features": ([ARRAYS, TRAIN, TRUST], "columns animal: expected numbers"),
    "another width": ([ARRAYS, TRAIN, TRUST, "--inputs", "legs"], "as at fit"),
    "a name too few": ([MODEL, TRAIN, TRUST, "--classes", "ant,bee"], "--classes: expected 3"),
    "a name twice": ([MODEL, TRAIN, TRUST, "--classes", "ant,bee,bee"], "--classes: expected 3 different"),
    "no classes in a folder": ([PHOTOS, "loose", TRUST], "images outside of such"),
    "no images": ([PHOTOS, "no_images", TRUST], "a folder without any"),
    "a class without images": ([PHOTOS, "one_empty", TRUST], "none in light"),
    "images beside folders": ([PHOTOS, "mixed", TRUST], "such as cat and 03.png"),
    "a broken image": ([PHOTOS, "no_png", TRUST], "image 'no_png/dark/1.png'"),
    "a label of images": ([PHOTOS, "{files}/photos", TRUST, "--label", "y"], "--label: expected a file"),
    "pixels of a table": ([MODEL, TRAIN, TRUST, "--pixels", "0..1"], "--pixels: expected a folder of"),
    "a size of a table": ([MODEL, TRAIN, TRUST, "--image-size", "3x3"], "--image-size: expected a folder"),
    "no size": ([PHOTOS, "{files}/photos", TRUST, "--image-size", "3"], "such as 224x224"),
    "no range": ([PHOTOS, "{files}/photos", TRUST, "--pixels", "0..2"], "--pixels: expected one"),
    "another size": ([PHOTOS, "{files}/photos", TRUST, "--image-size", "3x3"], "as at fit"),
    "no solver": ([MODEL, TRAIN, TRUST, "--solver", "best"], "--solver: expected one of cg, exact"),
    "no dtype": ([MODEL, TRAIN, TRUST, "--feature-dtype", "int8"], "--feature-dtype: expected"),
    "a folder of others": ([MODEL, TRAIN, TRUST, "--to", "photos"], "a folder with other files in it"),
}  # fmt: skip


@pytest.mark.parametrize("case", INDEX)
def test_index_refuses(case, here, whence_, monkeypatch):
    arguments, part = INDEX[case]
    if "boosters" not in case and arguments[0].endswith((".json", ".ubj", ".txt")):
        pytest.importorskip("lightgbm" if arguments[0].endswith(".txt") else "xgboost")
    if "parquet" in case:
        pytest.importorskip("pyarrow")
    where = [] if "--to" in arguments else ["--to", "new.index"]
    assert part in refused(whence_, ["index", *arguments, *where], here)
    assert not Path("new.index/command.json").exists()


EXPLAIN = {
    "no index": (["no.index", NEW], "no manifest.json there"),
    "a file for an index": (["empty.csv", NEW], "expected a saved index"),
    "no samples": (["an.index", "no.csv"], "SAMPLES 'no.csv'"),
    "no word for a pickle": (["an.index", NEW], "--trust-model"),
    "another model": (["an.index", NEW, "--model", "{files}/other.joblib", TRUST], "one that has changed"),
    "a damaged table": (["an.index", "ragged.csv", TRUST], "SAMPLES 'ragged.csv'"),
    "columns that are missing": (["an.index", "narrow.csv", TRUST], "--inputs: expected one of"),
    "no such method": (["an.index", NEW, TRUST, "--method", "best"], "--method: expected the name"),
    "no such output": (["an.index", NEW, TRUST, "--output", "7"], "--output: expected an output"),
    "no such sample": (["an.index", NEW, TRUST, "--only", "new9"], "--only: expected ids"),
    "no such label": (["an.index", NEW, TRUST, "--label", "color"], "--label: expected one of"),
    "a report nowhere": (["an.index", NEW, TRUST, "--report", "no/out.html"], "a folder that exists"),
    "classes": (["an.index", NEW, TRUST, "--classes", "a,b"], "--classes: expected 3"),
    "weights": (["an.index", NEW, TRUST, "--weights", "weights.pt"], "--weights: expected"),
}  # fmt: skip


@pytest.mark.parametrize("case", EXPLAIN)
def test_explain_refuses(case, index, here, whence_):
    arguments, part = EXPLAIN[case]
    assert part in refused(whence_, ["explain", *arguments], here)


SUSPECTS = {
    "no index": (["no.index"], "no manifest.json there"),
    "no such score": (["an.index", "--score", "best"], "--score: expected one of"),
    "no such method": (["an.index", "--method", "best"], "--method: expected the name"),
    "a report that is a folder": (["an.index", "--report", "photos"], None),
}


@pytest.mark.parametrize("case", SUSPECTS)
def test_suspects_refuses(case, index, here, whence_):
    arguments, part = SUSPECTS[case]
    said = refused(whence_, ["suspects", *arguments], here, 2 if part is None else 1)
    assert part is None or part in said


USAGE = [
    ["index"],
    ["index", MODEL],
    ["index", MODEL, TRAIN],
    ["index", MODEL, TRAIN, "--to", "i", "--damping", "-1"],
    ["index", MODEL, TRAIN, "--to", "i", "--batch-size", "0"],
    ["index", MODEL, TRAIN, "--to", "i", "--hessian-samples", "many"],
    ["index", MODEL, TRAIN, "--to", "i", "--no-such-option"],
    ["explain"],
    ["explain", "i"],
    ["explain", "i", TRAIN, "--k", "0"],
    ["explain", "i", TRAIN, "--limit", "0"],
    ["suspects"],
    ["suspects", "i", "--k", "-1"],
    ["list"],
]


@pytest.mark.parametrize("arguments", USAGE)
def test_a_wrong_command_line(arguments, files, whence_):
    assert "Usage: whence" in refused(whence_, arguments, files, 2)


CROSS = "--loss", "CrossEntropyLoss"
TORCH = {
    "no loss": (["my_nets:small", "--weights", "small.pt"], "--loss: expected a loss, since a module"),
    "an unknown loss": (["my_nets:one", "--loss", "BestLoss"], "--loss: expected a loss of torch.nn"),
    "no loss at all": (["my_nets:one", "--loss", "Linear"], "--loss: expected a loss of torch.nn"),
    "a loss that is not there": (["my_nets:one", "--loss", "my_nets:mine"], "--loss: expected a name in"),
    "no such weights": (
        ["my_nets:small", *CROSS, "--weights", "no.pt"],
        "--weights 'no.pt': expected a file",
    ),
    "no weights": (["my_nets:small", *CROSS, "--weights", "weights.pt"], "a state dict of tensors"),
    "a pickled model": (["my_nets:small", *CROSS, "--weights", "whole.pt"], "a whole pickled model is not"),
    "other weights": (["my_nets:one", *CROSS, "--weights", "small.pt"], "of the Linear that the factory"),
    "a factory that fails": (["my_nets:broken", *CROSS], "RuntimeError: no such layer"),
    "a factory of a text": (["my_nets:a_text", *CROSS], "one that returns a str"),
    "no factory": (["my_nets:a_number", *CROSS], "a function that returns the model, got an int"),
    "no weights yet": (["my_nets:small", *CROSS], "Give the trained weights: --weights FILE"),
    "another width": (["my_nets:wide", *CROSS], "a batch that the model accepts"),
    "lambda": (["my_nets:one", *CROSS, "--reg-lambda", "1"], "--reg-lambda: expected a booster"),
}


@pytest.mark.parametrize("case", TORCH)
def test_index_refuses_what_is_wrong_with_a_factory(case, nets, files, whence_):
    torch = pytest.importorskip("torch")
    Path("weights.pt").write_text("no tensors")
    torch.save(nets, "whole.pt")
    arguments, part = TORCH[case]
    said = refused(
        whence_, ["index", arguments[0], "{files}/train.npz", *arguments[1:], "--to", "i"], files
    )
    assert part in said


# -------------------------------------------------------------------- what an index must not be made to do


def changed(index, change):
    """Change what an index remembers of how it was made."""
    file = index / "command.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", "json:dumps"), ("imports", ["antigravity"]), ("loss", "json:dumps"), ("model", "bad.pkl")],
)
def test_an_index_runs_no_code_that_it_names(name, value, files, index, whence_, monkeypatch):
    """A folder from somebody else could name anything: it is run only on the word of whoever asks."""

    def change(record):
        record["model"] |= {"model": "model.keras", name: value}

    changed(index, change)
    before = set(sys.modules)
    said = refused(whence_, ["explain", index, NEW], files)
    assert "--trust-model" in said
    assert "antigravity" not in set(sys.modules) - before
    if name != "model":  # to name another model is no word for the rest
        assert "--trust-model" in refused(
            whence_, ["explain", index, NEW, "--model", "{files}/model.joblib"], files
        )


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "whence command", "format_version": 99}'])
def test_a_record_of_another_version(content, files, index, whence_):
    (index / "command.json").write_text(content)
    for command in (["suspects", index], ["explain", index, NEW]):
        assert "Run whence index again" in refused(whence_, command, files)


def test_a_damaged_index(files, index, whence_):
    features = index / "features-00000.npy"
    features.write_bytes(features.read_bytes()[:-8])
    assert "features-00000" in refused(whence_, ["suspects", index], files)


def test_an_index_of_another_training_set(files, index, whence_):
    pd.read_csv(files / "train.csv")[::-1].to_csv("turned.csv", index=False)
    arguments = ["index", MODEL, "turned.csv", "--to", index, "--id", "animal", TRUST]
    assert "in the same order" in refused(whence_, arguments, files)


def test_an_index_of_another_model(files, index, whence_):
    arguments = ["index", "{files}/other.joblib", TRAIN, "--to", index, "--id", "animal", TRUST]
    assert "model_weights" in refused(whence_, arguments, files)


def test_features_of_another_width(files, whence_):
    whence.RepresenterPointLJE(
        whence.InfluenceModel(joblib.load(files / "arrays.joblib")), (X, Y), whence.ExactIHVPFactory(),
        index_path="python.index", progress=False,
    )  # fmt: skip
    np.savez("wide.npz", x=np.ones((3, 9)))
    assert "shape" in refused(whence_, ["explain", "python.index", "wide.npz"], files)
    assert "--data" in refused(whence_, ["suspects", "python.index", "--data", "wide.npz"], files)


def test_images_of_several_sizes(files, whence_):
    images = pytest.importorskip("PIL.Image")
    shutil.copytree(files / "photos", "photos")
    images.fromarray(np.zeros((9, 6), np.uint8)).save("photos/light/99.png")
    arguments = ["index", PHOTOS, "photos", "--to", "i", TRUST]
    assert "6 × 6 pixels, as of the other images, got 6 × 9" in refused(whence_, arguments, files)
    images.fromarray(np.zeros((6, 6), np.uint16)).save("photos/light/99.png")
    assert "8 bits a channel" in refused(whence_, arguments, files)


@pytest.mark.parametrize("missing", ["pandas", "PIL.Image", "joblib"])
def test_missing_packages(missing, files, whence_, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    data, model = (TRAIN, MODEL) if missing != "PIL.Image" else ("{files}/photos", PHOTOS)
    arguments = [a.format(files=files) for a in ("index", model, data, "--to", "i", TRUST, "-q")]
    done = whence_(*arguments)
    assert done.code == 1
    assert f"needs the package {missing.split('.')[0]!r}" in done.err
    assert done.err.count("\n") == 1
