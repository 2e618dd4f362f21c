"""What the methods refuse: rows of the table of bad inputs."""

import numpy as np
from refusals import ONES, TESTED, TRAIN, UNBATCHED, X, Y, batches, with_value

import whence
from whence import CACHE


def nested(lje, *args, **kwargs):
    return lje.estimate_influence_values_in_batches(*args, **kwargs)


OTHER = batches(X[:, :2], Y)
BAD_K = ("k", "an integer >= 1")
EMPTY = ("at least one batch", "an empty dataset", "Check")
DEVICE = ("device", "one of CPU:0", "'GPU:7'", "Leave it out")
ORDER_MESSAGE = ("order", "ORDER.ASCENDING or ORDER.DESCENDING")
OTHER_WIDTH = ("batch 0 of train_set", "the model accepts", "shapes (8, 2)", "model's own inputs")
UNKNOWN = ("batch 0 of train_set", "samples of the constructor's dataset (N = 20)")

METHODS = {
    # ---- k and order
    "k = 0": (lambda m: m.top_k(TESTED, TRAIN, k=0), (*BAD_K, "0", "Pass a value")),
    "k < 0": (lambda m: m.explain(TESTED, -1), (*BAD_K, "-1", "Pass a value")),
    "k a fraction": (lambda m: m.suspects(TRAIN, 1.5), (*BAD_K, "1.5", "Pass a value")),
    "k a text": (
        lambda m: m.compute_top_k_from_training_dataset(TRAIN, "5"),
        (*BAD_K, "'5'", "Pass a value"),
    ),
    "order a text": (
        lambda m: m.top_k(TESTED, TRAIN, order="descending"),
        (*ORDER_MESSAGE, "'descending'", "Import ORDER"),
    ),
    "order a number": (
        lambda m: m.compute_top_k_from_training_dataset(TRAIN, 2, 1),
        (*ORDER_MESSAGE, "1", "Import ORDER"),
    ),
    # ---- devices and caches
    "device, values": (lambda m: m.compute_influence_values(TRAIN, device="GPU:7"), DEVICE),
    "device, vectors": (lambda m: m.compute_influence_vector(TRAIN, device="GPU:7"), DEVICE),
    "device, in batches": (lambda m: nested(m, TESTED, TRAIN, device="GPU:7"), DEVICE),
    "device, top k": (lambda m: m.top_k(TESTED, TRAIN, device="GPU:7"), DEVICE),
    "cache a number": (
        lambda m: m.top_k(TESTED, TRAIN, influence_vector_in_cache=1),
        ("influence_vector_in_cache", "CACHE.MEMORY", "1", "Import CACHE"),
    ),
    "disk without a path": (
        lambda m: nested(m, TESTED, TRAIN, CACHE.DISK),
        ("influence_vector_in_cache", "a path", "neither", "load_ or save_"),
    ),
    # ---- datasets of the methods
    "unbatched, evaluated": (
        lambda m: m.top_k(UNBATCHED, TRAIN),
        ("dataset_to_evaluate", "a batched dataset", "(4,), ()", "Batch it"),
    ),
    "unbatched, training": (
        lambda m: m.compute_influence_values(UNBATCHED),
        ("train_set", "a batched dataset", "(4,), ()", "Batch it"),
    ),
    "unbatched, explained": (
        lambda m: m.explain(UNBATCHED),
        ("samples", "a batched dataset", "(4,), ()", "Batch it"),
    ),
    "empty, evaluated": (lambda m: m.top_k(TRAIN.take(0), TRAIN), ("dataset_to_evaluate", *EMPTY)),
    "empty, in batches": (lambda m: nested(m, TESTED, TRAIN.take(0)), ("train_set", *EMPTY)),
    "empty, values": (lambda m: m.compute_influence_values(TRAIN.take(0)), ("train_set", *EMPTY)),
    "empty, vectors": (lambda m: m.compute_influence_vector([]), ("train_set", *EMPTY)),
    "empty, explained": (lambda m: m.explain(TRAIN.take(0)), ("samples", *EMPTY)),
    "empty, suspects": (lambda m: m.suspects([]), ("train_set", *EMPTY)),
    "NaN, evaluated": (
        lambda m: m.top_k(batches(with_value(X, np.nan), Y), TRAIN),
        ("inputs", "batch 1 of dataset_to_evaluate", "4 NaN", "Clean or drop"),
    ),
    "NaN, explained": (
        lambda m: m.explain(batches(with_value(X, np.nan), Y)),
        ("inputs", "batch 1 of samples", "4 NaN", "Clean or drop"),
    ),
    "other features, values": (
        lambda m: m.compute_influence_values(OTHER),
        OTHER_WIDTH,
    ),
    "other features, vectors": (
        lambda m: m.compute_influence_vector(OTHER),
        OTHER_WIDTH,
    ),
    "other features, in batches": (
        lambda m: nested(m, TESTED, OTHER),
        OTHER_WIDTH,
    ),
    "other features, top k": (
        lambda m: m.top_k(TESTED, OTHER),
        OTHER_WIDTH,
    ),
    "other features, most influential": (
        lambda m: m.compute_top_k_from_training_dataset(OTHER, 2),
        OTHER_WIDTH,
    ),
    "other features, suspects": (
        lambda m: m.suspects([(X[:, :2], Y)]),
        (*UNKNOWN, "20 of 20 samples", "Pass the same training set"),
    ),
    "one other sample": (
        lambda m: m.suspects(batches(with_value(X, 0), Y)),
        ("batch 1 of train_set", "constructor's dataset", "1 of 8 samples", "augmentation"),
    ),
    "other weights": (
        lambda m: m.suspects(batches(X, Y, ONES)),
        (*UNKNOWN, "8 of 8 samples", "Pass the same training set"),
    ),
    "other features, evaluated": (
        lambda m: m.top_k(OTHER, TRAIN),
        ("batch 0 of dataset_to_evaluate", "the model accepts", "shapes (8, 2)", "model's own inputs"),
    ),
    "other features, explained": (
        lambda m: m.explain(OTHER),
        ("batch 0 of samples", "the model accepts", "shapes (8, 2)", "model's own inputs"),
    ),
    # ---- what is explained
    "an unknown score": (
        lambda m: m.suspects(TRAIN, score="best"),
        ("score", "ridge, leave_one_out, self_influence, loss", "'best'", "Choose one"),
    ),
    "no such output": (
        lambda m: m.explain(TESTED, outputs=7),
        ("outputs", "an output from 0 to 2", "7", "Number the outputs"),
    ),
    "too few outputs": (
        lambda m: m.explain(TESTED, outputs=[0, 1]),
        ("outputs", "one for all samples or one each", "[0, 1]", "Number the outputs"),
    ),
    "too few ids": (lambda m: m.explain(TESTED, ids=["a"]), ("ids", "4 ids", "shape (1,)", "in the order")),
    # ---- top k's own
    "a class for a search": (
        lambda m: m.top_k(TESTED, TRAIN, nearest_neighbors=whence.LinearNearestNeighbors),
        ("nearest_neighbors", "a BaseNearestNeighbors", "the class Linear", "leave it out"),
    ),
    "integers for values": (
        lambda m: m.top_k(TESTED, TRAIN, d_type=np.int32),
        ("d_type", "a floating-point dtype", "int32", "np.float32"),
    ),
    "no dtype": (
        lambda m: m.top_k(TESTED, TRAIN, d_type="single precision"),
        ("d_type", "a floating-point dtype", "'single precision'", "np.float32"),
    ),
}


def _asked(call):
    return lambda world: call(world.lje)


ROWS = {f"method, {name}": (_asked(call), message) for name, (call, message) in METHODS.items()}
