"""What the wrapped model and the methods' constructors refuse: rows of the table of bad inputs."""

import numpy as np
from refusals import (
    BINARY,
    LISTING,
    ONES,
    TRAIN,
    UNBATCHED,
    C,
    N,
    X,
    Y,
    batches,
    keras,
    made,
    net,
    overflowing,
    tf,
    with_value,
)

from whence import ExactIHVPFactory, InfluenceModel, RepresenterPointLJE

layers, losses = keras.layers, keras.losses


# name: (what the constructor is given, argument, expected, got, fix)
CONSTRUCTOR = {
    # ---- datasets
    "unbatched": (
        {"dataset": UNBATCHED},
        ("dataset", "a batched dataset", "shapes (4,), () in batch 0", "dataset.batch(64)"),
    ),
    "unbatched list": (
        {"dataset": list(zip(X, Y, strict=True))},
        ("dataset", "a batched dataset", "shapes (4,), ()", "Batch it"),
    ),
    "empty": ({"dataset": TRAIN.take(0)}, ("dataset", "at least one batch", "an empty dataset", "Check")),
    "empty list": ({"dataset": []}, ("dataset", "at least one batch", "an empty dataset", "Check")),
    "empty arrays": (
        {"dataset": (X[:0], Y[:0])},
        ("dataset", "at least one batch", "an empty dataset", "Check"),
    ),
    "empty batch": (
        {"dataset": [(X, Y), (X[:0], Y[:0])]},
        ("batch 1 of dataset", "at least one sample", "an empty batch", "Leave out"),
    ),
    "no labels": (
        {"dataset": batches(X).map(lambda x: x)},
        ("batch 0 of dataset", "(inputs, labels)", "EagerTensor", "Give the labels"),
    ),
    "no labels, in a tuple": (
        {"dataset": batches(X)},
        ("batch 0 of dataset", "(inputs, labels)", "a tuple of length 1", "Give the labels"),
    ),
    "labels None": (
        {"dataset": [(X, None)]},
        ("batch 0 of dataset", "labels", "None", "Give the labels"),
    ),
    "an array": ({"dataset": X}, ("dataset", "tf.data.Dataset", "a ndarray", "Wrap arrays as (x, y)")),
    "a number": ({"dataset": 3}, ("dataset", "tf.data.Dataset", "int", "batch them")),
    "a tuple of batches": (
        {"dataset": ((X, Y), (X, Y))},
        ("labels in batch 0", "one array", "a tuple of 2", "give batches as a list"),
    ),
    "arrays of two lengths": (
        {"dataset": (X, Y[:5])},
        ("dataset", "of one length", "(20, 4), (5,)", "one label a sample"),
    ),
    # ---- not finite; all in the second batch
    "NaN in inputs": (
        {"dataset": batches(with_value(X, np.nan), Y)},
        ("inputs", "finite values in batch 1 of dataset", "4 NaN or infinite", "Clean or drop"),
    ),
    "infinity in inputs": (
        {"dataset": batches(with_value(X, -np.inf), Y)},
        ("inputs", "finite values in batch 1 of dataset", "4 NaN or infinite", "Clean or drop"),
    ),
    "infinity in features": (
        {"model": overflowing},
        ("the input of layer 'head'", "finite values in batch 0", "NaN or infinite", "overflows"),
    ),
    "NaN in class numbers": (
        {"dataset": batches(X, with_value(Y, np.nan))},
        ("labels", "finite values in batch 1 of dataset", "1 NaN or infinite", "Clean or drop"),
    ),
    "infinity in values": (
        {"dataset": batches(X, with_value(Y, np.inf)), "model": lambda: net("mse", 1)},
        ("labels", "finite values in batch 1 of dataset", "1 NaN or infinite", "Clean or drop"),
    ),
    "NaN in weights": (
        {"dataset": batches(X, Y, with_value(ONES, np.nan))},
        ("sample weights", "finite values in batch 1 of dataset", "1 NaN or infinite", "Clean"),
    ),
    "negative weights": (
        {"dataset": batches(X, Y, with_value(ONES, -1))},
        ("sample weights in batch 1", "numbers >= 0", "-1", "less than nothing"),
    ),
    "weights of another shape": (
        {"dataset": batches(X, Y, np.ones((N, 3)))},
        ("sample weights in batch 0", "one number a sample", "shape (8, 3)", "shape (batch,)"),
    ),
    # ---- labels
    "a class too many": (
        {"dataset": batches(X, with_value(Y, 3))},
        ("labels in batch 1", "class numbers from 0 to 2", "class 3", "Number the classes from 0"),
    ),
    "a negative class": (
        {"dataset": batches(X, with_value(Y, -1).astype(int))},
        ("labels in batch 1", "class numbers from 0 to 2", "class -1", "Number the classes from 0"),
    ),
    "one-hot of another width": (
        {"dataset": batches(X, np.eye(4)[Y])},
        ("labels in batch 0", "shape (batch, 3)", "shape (8, 4)", "labels of the loss's kind"),
    ),
    "values where classes are meant": (
        {"dataset": batches(X, with_value(Y, 0.5))},
        ("labels in batch 1", "class numbers from 0 to 2", "fractions such as 0.5", "regression loss"),
    ),
    "several labels where one is meant": (
        {"dataset": batches(X, np.ones((N, C)))},
        ("labels in batch 0", "sum to 1", "sums to 3", "binary cross-entropy"),
    ),
    "texts": (
        {"dataset": batches(X, np.asarray(["a"] * N))},
        ("labels in batch 0", "numbers", "dtype object", "Encode the labels as numbers"),
    ),
    "classes where 0 and 1 are meant": (
        {"dataset": batches(X, with_value(Y * 0, 2)), "model": lambda: net(BINARY, 1)},
        ("labels in batch 1", "from 0 to 1", "2", "Map the two classes to 0 and 1"),
    ),
    "-1 where 0 is meant": (
        {"dataset": batches(X, with_value(Y * 0, -1)), "model": lambda: net(BINARY, 1)},
        ("labels in batch 1", "from 0 to 1", "-1", "Map the two classes to 0 and 1"),
    ),
    "classes where values are meant": (
        {"dataset": batches(X, Y), "model": lambda: net("mse")},
        ("labels in batch 0", "shape (batch, 3)", "shape (8,)", "labels of the loss's kind"),
    ),
    # ---- loss and tail
    "logits taken for probabilities": (
        {"model": lambda: net("sparse_categorical_crossentropy")},
        ("at layer 'head'", "the softmax of", "the identity", "from_logits=True if and only if"),
    ),
    "probabilities taken for logits": (
        {"model": lambda: net(activation="softmax")},
        ("at layer 'head'", "the identity of", "the softmax", "from_logits=True if and only if"),
    ),
    "a loss of the whole batch": (
        {"model": lambda: InfluenceModel(net(), loss_function=lambda y, p: tf.reduce_mean(p))},
        ("loss <lambda> in batch 0", "the loss of each sample", "a single number", "Leave out"),
    ),
    "a metric": (
        {"model": lambda: InfluenceModel(net(), loss_function=keras.metrics.Accuracy())},
        ("loss Accuracy", "the loss of each sample", "a single number", "Leave out"),
    ),
    # ---- numbers and choices
    "negative epsilon": ({"epsilon": -1e-5}, ("epsilon", "a number >= 0", "-1e-05", "Pass a value")),
    "negative step": ({"step_size": -1e-4}, ("step_size", "a number >= 0", "-0.0001", "Pass a value")),
    "infinite step": ({"step_size": np.inf}, ("step_size", "a number >= 0", "inf", "Pass a value")),
    "no samples for the Hessian": (
        {"n_samples_for_hessian": 0},
        ("n_samples_for_hessian", "an integer >= 1", "0", "Pass a value"),
    ),
    "no buffer": (
        {"shuffle_buffer_size": 0},
        ("shuffle_buffer_size", "an integer >= 1", "0", "Pass a value"),
    ),
    "an unknown decomposition": (
        {"decomposition": "both"},
        ("decomposition", "'exact' or 'elementwise'", "'both'", "Choose one"),
    ),
    "an unknown label": ({"label": "true"}, ("label", "'predicted' or 'given'", "'true'", "Choose one")),
    "a class for a factory": (
        {"factory": ExactIHVPFactory},
        ("ihvp_calculator_factory", "Factory", "the class ExactIHVPFactory itself", "ExactIHVPFactory()"),
    ),
    "a text for a factory": (
        {"factory": "exact"},
        ("ihvp_calculator_factory", "Factory", "a str", "ExactIHVPFactory()"),
    ),
    "too few ids": ({"ids": ["a"]}, ("ids", "each of the 20", "shape (1,)", "in the order")),
    "an id twice": ({"ids": ["a"] * N}, ("ids", "distinct ids", "'a'", "Make them unique")),
    # ---- the layer, named in the constructor
    "another layer": (
        {"target_layer": "nope"},
        ("target layer", "the name of one layer", "'nope'", LISTING),
    ),
}

#: name: (what makes the model and which layer, argument, expected, got, fix)
MODEL = {
    "no such name": ((net, "nope"), ("target layer", "the name of one layer", "'nope'", LISTING)),
    "no such index": ((net, 9), ("target layer", "an index from -4 to 3", "9", LISTING)),
    "no index": ((net, 1.5), ("target layer", "an index or a name", "1.5", LISTING)),
    "not dense, by name": (
        (net, "norm"),
        ("target layer", "a dense layer", "a BatchNormalization", LISTING),
    ),
    "not dense, by index": ((net, 2), ("target layer", "a dense layer", "a BatchNormalization", LISTING)),
    "no weights, by name": ((net, "dropped"), ("target layer", "a dense layer", "a Dropout", LISTING)),
    "never built": (
        (lambda: keras.Sequential([layers.Dense(3)], name="mine"),),
        ("model", "a built model", "'mine', which has no weights yet", "Train it"),
    ),
    "no model": ((lambda: None,), ("model", "keras", "NoneType", "the model itself")),
    "a path": ((lambda: "model.keras",), ("model", "keras", "str", "not its predictions or its path")),
    "a layer": ((lambda: layers.Dense(3),), ("model", "a keras.Model", "a Dense", "Wrap it")),
    "no loss": (
        (lambda: keras.Sequential([keras.Input((2,)), layers.Dense(3)]),),
        ("loss_function", "not compiled", "None", "Pass loss_function="),
    ),
}

LOSS = {
    "an unknown name": ("hubert", ("loss_function", "a loss that Keras knows", "'hubert'", "keras.losses")),
    "a number": (3, ("loss_function", "one loss", "int", "one output")),
    "a class": (
        losses.MeanSquaredError,
        ("loss_function", "one loss: an object", "the class MeanSquaredError", "MeanSquaredError()"),
    ),
}


def _made(options):
    """Return the call of a row of ``CONSTRUCTOR``."""

    def call(world):
        makes = options.get("model")
        return made(**options | {"model": makes() if makes else world.lje.influence_model})

    return call


def _wrapped(make, *layer):
    return lambda world: InfluenceModel(make(), *layer)


def _with_loss(loss):
    return lambda world: InfluenceModel(net(), loss_function=loss)


ROWS = {
    f"constructor, {name}": (_made(options), message) for name, (options, message) in CONSTRUCTOR.items()
}
ROWS |= {f"model, {name}": (_wrapped(*made), message) for name, (made, message) in MODEL.items()}
ROWS |= {f"loss, {name}": (_with_loss(loss), message) for name, (loss, message) in LOSS.items()}
ROWS["constructor, a model that is not wrapped"] = (
    lambda world: RepresenterPointLJE(net(), TRAIN, ExactIHVPFactory()),
    ("influence_model", "a whence.InfluenceModel", "a Sequential", "InfluenceModel(model)"),
)
