"""What factories, paths, indices, pages, evaluation and the command line refuse: rows of the table."""

import json

import numpy as np
import tensorflow as tf
from refusals import ONES, TESTED, TRAIN, D, N, X, Y, batches, made

import whence
from whence import CACHE, InfluenceModel, WhenceError
from whence.cli import main
from whence.evaluation import detection_curve, flip_labels, roc_auc
from whence.ihvp import WoodburyIHVPFactory

RANGE = "Pass a value in that range"


def rows_of_numbers():
    """Every number of every factory, each once beyond its range."""
    factories = {
        whence.ExactIHVPFactory: ["damping"],
        whence.CGDIHVPFactory: ["damping", "tolerance", "n_cgd_iters"],
        whence.LissaIHVPFactory: ["damping", "tolerance", "n_opt_iters", "batch_size", "seed"],
        whence.KroneckerIHVPFactory: ["damping"],
        WoodburyIHVPFactory: ["damping"],
    }
    for factory, names in factories.items():
        for name in names:
            kind = "a number" if name in ("damping", "tolerance") else "an integer"
            for value in (-1, np.nan, "1", True, 10**400):
                if value == 10**400 and kind == "an integer":
                    continue
                message = (name, kind, repr(value)[:50], RANGE)
                yield (
                    f"factory, {factory.__name__}({name}={repr(value)[:6]})",
                    (lambda world, f=factory, n=name, v=value: f(**{n: v}), message),
                )


def edit(world, change, file="manifest.json"):
    """Change a record of the index, which is then part of what must stay as it is."""
    path = world.index / file
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    world.remember()


def loaded(change, file="manifest.json"):
    def call(world):
        edit(world, change, next(iter(sorted(world.index.glob(file)))).relative_to(world.index))
        return whence.load_index(world.index)

    return call


def stamp_of(content):
    return content["shards"][0]["files"]["features"]


def said(*arguments):
    """Run the command line and raise what it said, in the parts of an error."""

    def call(world):
        code = main([str(a).format(here=world.path) for a in arguments])
        (line,) = [x for x in world.capsys.readouterr().err.splitlines() if not x.startswith("Loading")]
        assert code == 1
        assert line.startswith("whence: ")
        argument, _, rest = line.removeprefix("whence: ").strip().partition(": expected ")
        expected, _, rest = rest.partition(", got ")
        got, _, fix = rest.partition(". ")
        raise WhenceError(argument, expected, got, fix)

    return call


NO_PATH = ("as text or a pathlib.Path", "3", "Pass its name")
NO_INDEX = ("a saved index", "no manifest.json", "that an index was saved to")
UNUSABLE = ("a path that can be used", "one that cannot", "Choose another path")
OPTION = ("one that such a model has", "3", "Leave it out")
DAMAGED = "an index as it was written"
AGAIN = "Make the method again with index_path="
NOT_WRITTEN = "manifest.json as it was written"

ROWS = dict(rows_of_numbers()) | {
    "factory, a tolerance of 1": (
        lambda w: whence.CGDIHVPFactory(tolerance=1.0),
        ("tolerance", "a number below 1", "1.0", RANGE),
    ),
    "factory, an unknown curvature": (
        lambda w: whence.ExactIHVPFactory(curvature="fisher"),
        ("curvature", "'hessian' or 'gauss_newton'", "'fisher'", "Choose one"),
    ),
    "factory, an unknown preconditioner": (
        lambda w: whence.CGDIHVPFactory(preconditioner="jacobi"),
        ("preconditioner", "'kronecker' or None", "'jacobi'", "Choose one"),
    ),
    "factory, an unknown way to fail": (
        lambda w: whence.CGDIHVPFactory(on_failure="ignore"),
        ("on_failure", "'raise' or 'warn'", "'ignore'", "Choose one"),
    ),
    "factory, a build that is no function": (
        lambda w: made(factory=type("Mine", (), {"build": 1})()),
        ("ihvp_calculator_factory", "Factory", "a Mine", "ExactIHVPFactory()"),
    ),
    "factory, a build that gives nothing": (
        lambda w: made(factory=type("Mine", (), {"build": lambda *_: None})()),
        ("ihvp_calculator_factory.build", "an InverseHessianVectorProduct", "a NoneType", "Subclass"),
    ),
    # ---- more of datasets
    "dataset, lists of numbers": (
        lambda w: made((X.tolist(), Y.tolist())),
        ("dataset", "arrays (x, y) of one length", "shapes ()", "np.asarray(x)"),
    ),
    "dataset, masked entries": (
        lambda w: made([(np.ma.masked_array(X, X > 1), Y)]),
        ("batch 0 of dataset", "without masked entries", "a masked array", "Drop or fill"),
    ),
    "dataset, one without end": (
        lambda w: made(batches(X, Y).repeat()),
        ("dataset", "a dataset that ends", "repeats for ever", "Leave out repeat()"),
    ),
    "dataset, rows of several lengths": (
        lambda w: made(batches(tf.ragged.constant([[1.0], [2.0, 3.0]] * (N // 2)), Y)),
        ("dataset", "dense tensors", "a RaggedTensor", "x.to_tensor()"),
    ),
    "dataset, sparse tensors": (
        lambda w: made(batches(tf.sparse.from_dense(X), Y)),
        ("dataset", "dense tensors", "a SparseTensor", "tf.sparse.to_dense"),
    ),
    "dataset, weights that are all zero": (
        lambda w: made(batches(X, Y, 0 * ONES)),
        ("sample weights of dataset", "one that is not 0", "zeros only", "Leave weights out"),
    ),
    "dataset, weights that are texts": (
        lambda w: made([(X, Y, np.full(N, "a"))]),
        ("sample weights in batch 0", "numbers", "dtype <U1", "Clean them"),
    ),
    "dataset, four parts": (
        lambda w: made([(X, Y, ONES, ONES)]),
        (
            "batch 0 of dataset",
            "(inputs, labels",
            "a tuple of length 4",
            "InfluenceModel(..., batch=",
        ),
    ),
    "dataset, a batch that is None": (
        lambda w: made([None]),
        ("batch 0 of dataset", "(inputs, labels)", "a NoneType", "Give the labels"),
    ),
    "dataset, a generator": (
        lambda w: made(batch for batch in [(X, Y)]),
        ("dataset", "tf.data.Dataset", "a generator", "batch them"),
    ),
    # ---- more of numbers and choices
    "ids, a number": (
        lambda w: made(ids=3),
        ("ids", "strings or integers", "an int", "in the order"),
    ),
    "ids, of unequal length": (
        lambda w: made(ids=[[1], [2, 3]] * 10),
        ("ids", "strings or integers", "lists of unequal length", "in the order"),
    ),
    "seed, a text": (lambda w: made(seed="a"), ("seed", "an integer >= 0", "'a'", RANGE)),
    "seed, negative": (lambda w: made(seed=-1), ("seed", "an integer >= 0", "-1", RANGE)),
    "seed, None": (lambda w: made(seed=None), ("seed", "an integer >= 0", "None", RANGE)),
    "step, beyond floats": (lambda w: made(step_size=10**400), ("step_size", "a number", "1000", RANGE)),
    "feature dtype, unknown": (
        lambda w: made(feature_dtype="quarter"),
        ("feature_dtype", "float16, float32", "'quarter'", "Choose one"),
    ),
    "outputs, more than samples": (
        lambda w: w.lje.explain(TESTED, outputs=[0] * 9),
        ("outputs", "one for each of the 4", "9", "in the order"),
    ),
    "outputs, of unequal length": (
        lambda w: w.lje.explain(TESTED, outputs=[[0], [1, 2], [0], [0]]),
        ("outputs", "an output from 0 to 2", "lists of unequal length", "Number the outputs"),
    ),
    "positions, where there are none": (
        lambda w: w.lje.explain(TESTED, positions=0),
        ("positions", "None for a layer", "0", "Leave it out"),
    ),
    "groups, a number far beyond N": (
        lambda w: w.lje.influences(TESTED, groups=np.full(N, 10**9)),
        ("groups", "from 0 to N - 1", "1000000000", "Number the groups"),
    ),
    "groups, a negative number that is not -1": (
        lambda w: w.lje.influences(TESTED, groups=np.full(N, -2)),
        ("groups", "or -1 for none", "-2", "Number the groups"),
    ),
    "groups, too few": (
        lambda w: w.lje.influences(TESTED, groups=[0, 1]),
        ("groups", f"{N} integers", "shape (2,)", "in the order"),
    ),
    "values, that half precision cannot hold": (
        lambda w: made(step_size=1e12).top_k(TESTED, TRAIN, d_type=np.float16),
        ("d_type", "finite values", "infinite", "np.float32"),
    ),
    # ---- options of another kind of model
    "option, of no model": (
        lambda w: InfluenceModel(w.lje.influence_model.model, reg_lambda=3),
        ("option 'reg_lambda'", *OPTION),
    ),
    # ---- paths
    "path, a number for the index": (lambda w: made(index_path=3), ("path", *NO_PATH)),
    "path, a number to load": (lambda w: whence.load_index(3), ("path", *NO_PATH)),
    "path, a number for vectors": (lambda w: w.lje.compute_influence_vector(TRAIN, 3), ("path", *NO_PATH)),
    "path, a number for answers": (
        lambda w: w.lje.top_k(TESTED, TRAIN, save_top_k_ds_path=3),
        ("path", *NO_PATH),
    ),
    "path, a number for a page": (lambda w: w.lje.explain(TESTED).save_html(3), ("path", *NO_PATH)),
    "path, below a file": (lambda w: made(index_path=w.thesis / "index"), ("thesis.txt", *UNUSABLE)),
    "path, a name too long": (lambda w: made(index_path=w.path / ("x" * 300)), ("xxx", *UNUSABLE)),
    "path, half a character": (
        lambda w: made(index_path="a\0b"),
        ("path", "a folder, as text", "a\\x00b", "Pass its name"),
    ),
    "path, a page in no folder": (
        lambda w: w.lje.explain(TESTED).save_html(w.path / "nowhere" / "page.html"),
        ("path", "a file in a folder that exists", "nowhere", "Make the folder first"),
    ),
    "path, a page in place of a folder": (
        lambda w: w.lje.explain(TESTED).save_html(w.path),
        ("path", "a file", "the folder", "Name a file in it"),
    ),
    "cache, on a disk without a path": (
        lambda w: w.lje.top_k(TESTED, TRAIN, influence_vector_in_cache=CACHE.DISK),
        ("influence_vector_in_cache", "a path", "neither", "load_ or save_"),
    ),
    # ---- indices
    "index, nowhere": (lambda w: whence.load_index(w.path / "nowhere"), ("nowhere", *NO_INDEX)),
    "index, a file": (lambda w: whence.load_index(w.thesis), ("thesis.txt", *NO_INDEX)),
    "index, of another format": (
        loaded(lambda c: c.update(format="another")),
        ("index", "an index of whence", "another file of that name", "Delete manifest.json"),
    ),
    "index, of another version": (
        loaded(lambda c: c.update(format_version=99)),
        ("index", "format version 1", "version 99", "Read it with that version"),
    ),
    "index, that names a file elsewhere": (
        loaded(lambda c: stamp_of(c).update(file="../thesis.txt")),
        ("index", NOT_WRITTEN, "../thesis.txt", "Delete manifest.json"),
    ),
    "index, without a key": (
        loaded(lambda c: c.pop("order")),
        ("index", NOT_WRITTEN, "order is missing", "Delete manifest.json"),
    ),
    "index, without shards": (
        loaded(lambda c: c.update(shards=[])),
        ("index", DAMAGED, "shards of 0 samples", AGAIN),
    ),
    "index, of another length": (
        loaded(lambda c: stamp_of(c).update(bytes=1)),
        ("index", DAMAGED, "instead of 1", AGAIN),
    ),
    "index, of another content": (
        loaded(lambda c: stamp_of(c).update(crc32=1)),
        ("index", DAMAGED, "CRC-32", AGAIN),
    ),
    "index, a method without its record": (
        loaded(lambda c: c.clear(), "method-*/method.json"),
        ("index", "a method as it was written", "about is missing", "Delete that folder"),
    ),
    "index, a solver that is not ours": (
        loaded(lambda c: c["settings"]["factory"].update(module="os"), "method-*/method.json"),
        ("path", "of this version of whence", "os.ExactIHVPFactory", "Read it with the version"),
    ),
    "index, a method of no such name": (
        lambda w: whence.load_index(w.index, method="mine"),
        ("method", "one of the methods that the index holds", "'mine'", "method-"),
    ),
    "index, of another training set": (
        lambda w: made((X[::-1], Y[::-1]), w.lje.influence_model, index_path=w.index),
        ("index", "the same training set in the same order", "another order", "without a shuffle"),
    ),
    "index, other ids": (
        lambda w: made(model=w.lje.influence_model, index_path=w.index, ids=range(7, 7 + N)),
        ("ids", "that the index in", "where it has none", "Leave ids out"),
    ),
    "index, other features to explain": (
        lambda w: whence.load_index(w.index).explain(np.zeros((2, D + 9), np.float32)),
        ("features of layer", "shape (2, 5)", "shape (2, 13)", "Choose"),
    ),
    "index, no features to explain": (
        lambda w: whence.load_index(w.index).explain(np.zeros(5)),
        ("samples", "features of shape (n, 5)", "shape (5,)", "one row of features"),
    ),
    # ---- pages and figures
    "page, too few samples": (
        lambda w: w.lje.explain(TESTED).save_html(w.path / "page.html", samples=["a"]),
        ("samples", "the 4 explained samples", "1 samples", "a dict from id"),
    ),
    "page, samples that are a number": (
        lambda w: w.lje.explain(TESTED).save_html(w.path / "page.html", samples=3),
        ("samples", "a sequence of samples", "an int", "what a person should see"),
    ),
    "page, samples that no one can see": (
        lambda w: w.lje.explain(TESTED).save_html(w.path / "page.html", samples=[None] * 4),
        ("samples", "texts, rows, or images", "a NoneType", "what a person should see"),
    ),
    "page, training samples missing": (
        lambda w: w.lje.explain(TESTED).save_html(w.path / "page.html", training_samples={}),
        ("training_samples", "a sample of id", "0 samples without it", "Pass every sample"),
    ),
    "page, class names that are none": (
        lambda w: w.lje.explain(TESTED).save_html(w.path / "page.html", class_names=3),
        ("class_names", "a name for every class", "an int", "Pass a list"),
    ),
    # ---- evaluation
    "evaluation, a share beyond 1": (
        lambda w: flip_labels(Y, 1.5),
        ("labels and share", "a share of them", "share 1.5", "Number the classes"),
    ),
    "evaluation, nothing to find": (
        lambda w: roc_auc(np.arange(3.0), np.zeros(3, bool)),
        ("is_wrong", "both right and wrong labels", "only one kind", "Flip some"),
    ),
    "evaluation, scores of another length": (
        lambda w: detection_curve(np.arange(3.0), np.asarray([True, False])),
        ("scores and is_wrong", "two arrays (N,)", "shapes (3,) and (2,)", "in the order"),
    ),
    # ---- the command line
    "command, no such model": (
        said("index", "{here}/none.keras", "{here}/data.csv", "--to", "{here}/new"),
        ("MODEL", "a file", "nothing there", "Check the path"),
    ),
    "command, a model of no kind": (
        said("index", "{here}/thesis.txt.doc", "{here}/data.csv", "--to", "{here}/new"),
        ("MODEL", "a file that ends in .keras", "something else", "whence index --help"),
    ),
    "command, a pickle that nobody vouched for": (
        said("index", "{here}/model.pkl", "{here}/data.csv", "--to", "{here}/new"),
        ("MODEL", "your word that you trust it", "none", "--trust-model"),
    ),
    "command, no such index": (
        said("suspects", "{here}/nowhere"),
        ("nowhere", "a saved index", "no manifest.json", "saved to"),
    ),
    "command, a page in no folder": (
        said("demo", "--output", "{here}/missing/page.html"),
        ("path", "a file in a folder that exists", "missing", "Make the folder first"),
    ),
}
