"""One network with one set of weights: every framework gives the numbers of a NumPy reference.

Keras runs on the backend that KERAS_BACKEND names, so that the file is run once for each of them.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from reference import Dense, LocalJacobianExpansion, softmax_cross_entropy
from tolerances import assert_close

import whence
from whence.linear_layer import Block, LinearLayer
from whence.losses import SoftmaxCrossEntropy
from whence.search import Queries, Vector, scores

keras = pytest.importorskip("keras")
BACKEND = keras.backend.backend()
if BACKEND == "jax":  # which refuses float64 by default
    pytest.importorskip("jax").config.update("jax_enable_x64", True)

N, D, HIDDEN, C = 30, 6, 5, 3
DAMPING = 1e-2
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)), RNG.integers(0, C, N)
REALS = RNG.normal(size=(N, C))
TEST_X, TEST_Y = RNG.normal(size=(8, D)), RNG.integers(0, C, 8)
WEIGHT = RNG.uniform(0.5, 2.0, N)
BODY, BODY_BIAS = RNG.normal(size=(D, HIDDEN)), RNG.normal(size=HIDDEN)
HEAD, HEAD_BIAS = RNG.normal(size=(HIDDEN, C)), RNG.normal(size=C)
THETA = np.concatenate([HEAD, HEAD_BIAS[None]])

#: Of numbers in the dtype that the model computes in, relative to the largest.
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def phi_of(x):
    hidden = np.tanh(x @ BODY + BODY_BIAS)
    return np.concatenate([hidden, np.ones((len(x), 1))], axis=1)


PHI, TEST_PHI = phi_of(X), phi_of(TEST_X)


def log_cosh_of_softplus(u, y):
    """The loss of one sample behind another tail, as one would write it on a blackboard."""
    return np.mean(np.log(np.cosh(np.log(1 + np.exp(u)) - y)))


def reference(loss=softmax_cross_entropy, y=Y, weight=None):
    dense = Dense(THETA, PHI, y, loss, weight, DAMPING)
    return LocalJacobianExpansion(dense)


# -------------------------------------------------------------------------------- the frameworks


def keras_model(dtype, tail="linear"):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((D,), dtype=dtype),
            layers.Dense(HIDDEN, activation="tanh", dtype=dtype),
            layers.Dropout(0.5, dtype=dtype),
            layers.Dense(C, activation=tail, dtype=dtype, name="head"),
        ]
    )
    model.set_weights([BODY, BODY_BIAS, HEAD, HEAD_BIAS])
    return model


def torch_model(dtype, tail=None):
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.drop = torch.nn.Linear(D, HIDDEN), torch.nn.Dropout(0.5)
            self.head = torch.nn.Linear(HIDDEN, C)

        def forward(self, x):
            u = self.head(self.drop(self.body(x).tanh()))
            return u if tail is None else tail(u)

    model = Net().to(getattr(torch, dtype))
    with torch.no_grad():
        for layer, kernel, bias in ((model.body, BODY, BODY_BIAS), (model.head, HEAD, HEAD_BIAS)):
            layer.weight.copy_(torch.tensor(kernel.T))
            layer.bias.copy_(torch.tensor(bias))
    return model


class Keras:
    """Keras on the backend of this process."""

    def tolerance(self, dtype):
        # On JAX and on torch, Keras's own operations compute in float32 whatever a layer's dtype.
        return TOLERANCE[dtype if BACKEND == "tensorflow" else "float32"]

    def classifier(self, dtype, **options):
        options = {"start_layer": "head"} | options
        loss = options.pop("loss_function", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return whence.InfluenceModel(keras_model(dtype), loss_function=loss, **options)

    def regressor(self, dtype):
        model = keras_model(dtype, "softplus")
        return whence.InfluenceModel(model, "head", loss_function=keras.losses.LogCosh())

    def contradicted(self):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return whence.InfluenceModel(keras_model("float32", "softmax"), loss_function=loss)

    def batches(self, *arrays, size=7):
        class Batches(keras.utils.PyDataset):
            def __len__(self):
                return -(-len(arrays[0]) // size)

            def __getitem__(self, i):
                return tuple(a[i * size : (i + 1) * size] for a in arrays)

        return Batches()

    def host(self, array):
        return keras.ops.convert_to_numpy(array)


class PyTorch:
    """A torch.nn.Module, with DataLoaders."""

    def tolerance(self, dtype):
        return TOLERANCE[dtype]

    def classifier(self, dtype, **options):
        import torch

        options = {"start_layer": "head", "loss_function": torch.nn.CrossEntropyLoss()} | options
        return whence.InfluenceModel(torch_model(dtype), **options)

    def regressor(self, dtype):
        import torch

        def log_cosh(output, target):
            return torch.log(torch.cosh(output - target)).mean(dim=1)

        model = torch_model(dtype, torch.nn.functional.softplus)
        return whence.InfluenceModel(model, "head", loss_function=log_cosh)

    def contradicted(self):
        import torch

        model = torch_model("float32", lambda u: u.softmax(dim=1))
        return whence.InfluenceModel(model, loss_function=torch.nn.CrossEntropyLoss())

    def batches(self, *arrays, size=7):
        import torch

        tensors = torch.utils.data.TensorDataset(*(torch.tensor(a) for a in arrays))
        return torch.utils.data.DataLoader(tensors, size)

    def host(self, array):
        return np.asarray(array)


@pytest.fixture(params=["keras", "pytorch"])
def framework(request):
    if request.param == "keras":
        return Keras()
    pytest.importorskip("torch")
    return PyTorch()


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


def fitted(wrapped, dataset, **options):
    solver = whence.ExactIHVPFactory(damping=DAMPING)
    return whence.RepresenterPointLJE(wrapped, dataset, solver, progress=False, **options)


def test_backend_is_the_one_asked_for():
    assert os.environ.get("KERAS_BACKEND", "tensorflow") == BACKEND


# ------------------------------------------------------------------------------------ the numbers


def check(method, expected, tolerance):
    """Features, residuals, Hessian and influences of a fitted method are those of the reference."""
    (shard,) = method.index.shards
    assert_close(shard.phi, PHI, tolerance)
    assert_close(method.expanded_layer.theta, expected.expanded.theta, tolerance)
    assert_close(method.expanded_layer.residuals(shard.block), expected.expanded.residuals, tolerance)
    hessian = method.expanded_layer.hessian(method.index).matrix()
    assert_close(hessian, expected.expanded.hessian, max(tolerance, 1e-9))  # differences, there
    solves = 10 * max(tolerance, 1e-9)  # what is solved with H carries its condition number
    assert_close(method.theta_dagger, expected.theta_dagger, solves)
    outputs = (TEST_PHI @ THETA).argmax(axis=1)
    values = expected.influences(TEST_PHI)[np.arange(8), :, outputs]
    return values, outputs, solves


def test_classifier(framework, dtype):
    lje = fitted(framework.classifier(dtype), framework.batches(X.astype(dtype), Y))
    expected = reference()
    values, outputs, solves = check(lje, expected, framework.tolerance(dtype))
    test = framework.batches(TEST_X.astype(dtype), TEST_Y, size=3)
    assert_close(lje.influences(test, progress=False), values, solves)
    explanation = lje.explain(test, k=4)
    order = np.argsort(-values, axis=1)
    np.testing.assert_array_equal(explanation.ids, order[:, :4])
    np.testing.assert_array_equal(explanation.opponent_ids, order[:, ::-1][:, :4])
    np.testing.assert_array_equal(explanation.outputs, outputs)
    assert_close(explanation.totals, values.sum(axis=1), solves)
    own = (PHI @ THETA).argmax(axis=1)
    parts = [
        framework.host(v) for _, v in lje.compute_influence_values(framework.batches(X.astype(dtype), Y))
    ]
    assert_close(np.concatenate(parts), expected.self_influences(own), solves)
    margins = expected.dense.leave_one_out()
    given = margins[np.arange(N), Y]
    margins[np.arange(N), Y] = -np.inf
    suspects = lje.suspects(framework.batches(X.astype(dtype), Y), 5)
    np.testing.assert_array_equal(suspects.ids, np.argsort(given - margins.max(axis=1))[:5])


def test_any_loss_and_tail(framework, dtype):
    wrapped = framework.regressor(dtype)
    reals = REALS.astype(dtype)
    solver = whence.ExactIHVPFactory(damping=DAMPING, curvature="gauss_newton")
    index = wrapped.index(framework.batches(X.astype(dtype), reals), progress=False)
    dense = Dense(THETA, PHI, reals, log_cosh_of_softplus, lam=DAMPING)
    (shard,) = index.shards
    tolerance = framework.tolerance(dtype)
    assert_close(wrapped.layer.residuals(shard.block), dense.residuals, tolerance)
    assert_close(wrapped.layer.hessian(index).matrix(), dense.hessian, max(tolerance, 1e-9))
    losses = [log_cosh_of_softplus(*pair) for pair in pairs(reals)]
    # Keras's LogCosh subtracts a log 2 that is rounded to float32.
    assert_close(wrapped.layer.losses(shard.block), losses, max(tolerance, 1e-8))
    lje = whence.RepresenterPointLJE(wrapped, (X.astype(dtype), reals), solver, progress=False)
    values = lje.influences((X[:3].astype(dtype), reals[:3]), progress=False)
    totals = lje.explain((X[:3].astype(dtype), reals[:3]), k=1).totals
    assert_close(values.sum(axis=1), totals, 100 * tolerance)


def pairs(y):
    return zip(PHI @ THETA, y, strict=True)


def test_plain_arrays_agree_too(dtype):
    """The mathematics alone, on arrays that no framework has touched."""
    expected = reference()
    block = Block(PHI.astype(dtype), Y)

    class Whole:
        n_samples = N

        def __iter__(self):
            yield block

    layer = LinearLayer(THETA, SoftmaxCrossEntropy(), has_bias=True)
    layer = layer.at(THETA + 1e-4 * layer.mean_gradient(Whole()))
    tolerance = TOLERANCE[dtype]
    assert_close(layer.residuals(block), expected.expanded.residuals, tolerance)
    assert_close(layer.hessian(Whole()).matrix(), expected.expanded.hessian, max(tolerance, 1e-9))
    ihvp = whence.ExactIHVPFactory(damping=DAMPING).build(layer, Whole())
    outputs = (TEST_PHI @ THETA).argmax(axis=1)
    solved = ihvp.solve(TEST_PHI[:, :, None] * np.eye(C)[outputs][:, None, :]).value
    own = (TEST_PHI @ layer.theta)[np.arange(8), outputs]
    values = scores(Queries(-solved / N, own / N), Vector(block.phi, layer.residuals(block)))
    wanted = expected.influences(TEST_PHI)[np.arange(8), :, outputs]
    assert_close(values, wanted, 10 * max(tolerance, 1e-9))
    np.testing.assert_array_equal(np.argsort(-values, axis=1)[:, :4], np.argsort(-wanted, axis=1)[:, :4])


# ------------------------------------------------------------------------------------ the datasets


def test_sample_weights(framework, dtype):
    arrays = X.astype(dtype), Y, WEIGHT.astype(dtype)
    lje = fitted(framework.classifier(dtype), framework.batches(*arrays))
    check(lje, reference(weight=WEIGHT), framework.tolerance(dtype))


def kinds_of_dataset(framework, *arrays):
    yield framework.batches(*arrays)
    yield framework.batches(*arrays, size=N)  # one batch
    yield framework.batches(*arrays, size=29)  # a last batch of one sample
    yield arrays
    yield [tuple(a[i : i + 11] for a in arrays) for i in range(0, N, 11)]
    yield Keras().batches(*arrays)
    yield PyTorch().batches(*arrays)


def test_every_kind_of_dataset(framework):
    pytest.importorskip("torch")
    wrapped = framework.classifier("float64")
    expected = reference().theta_dagger
    for dataset in kinds_of_dataset(framework, X, Y):
        lje = fitted(wrapped, dataset)
        assert_close(lje.theta_dagger, expected, 100 * framework.tolerance("float64"))
        ((_, values, samples), *_) = lje.top_k(dataset, dataset, k=2)
        assert tuple(values.shape[1:]) == (2,)
        assert tuple(samples.shape[1:]) == (2, D)


def test_ids_caches_and_order(framework, tmp_path):
    names = [f"sample {i}" for i in range(N)]
    train, test = framework.batches(X, Y), framework.batches(TEST_X, TEST_Y, size=8)
    lje = fitted(framework.classifier("float64"), train, ids=names)
    ids = lje.explain(test, k=3).ids
    values = reference().influences(TEST_PHI)[np.arange(8), :, (TEST_PHI @ THETA).argmax(axis=1)]
    assert ids[0].tolist() == [names[i] for i in np.argsort(-values[0])[:3]]
    mixed = np.random.default_rng(1).permutation(N)
    in_order, again = (
        np.concatenate([framework.host(v) for _, v in lje.compute_influence_values(dataset)])
        for dataset in (train, framework.batches(X[mixed], Y[mixed], size=4))
    )
    np.testing.assert_array_equal(in_order[mixed], again)
    for options in (
        {"influence_vector_in_cache": whence.CACHE.NO_CACHE},
        {"influence_vector_in_cache": whence.CACHE.DISK, "save_influence_vector_ds_path": tmp_path / "v"},
        {"influence_vector_in_cache": whence.CACHE.DISK, "load_influence_vector_ds_path": tmp_path / "v"},
    ):
        ((_, found, _),) = lje.top_k(test, train, k=3, **options)
        assert_close(
            framework.host(found),
            -np.sort(-values, axis=1)[:, :3],
            max(1e-6, 10 * framework.tolerance("float64")),
        )


# -------------------------------------------------------------------------------------- bad input


def with_(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


BAD_DATA = {
    "NaN in an input": ((with_(X, 9, np.nan), Y), "inputs: expected finite values in batch 1 of dataset"),
    "a class too large": (
        (X, with_(Y, 9, C)),
        "labels in batch 1 of dataset: expected class numbers from 0",
    ),
    "a negative class": (
        (X, with_(Y, 0, -1)),
        "labels in batch 0 of dataset: expected class numbers from 0",
    ),
    "a negative weight": ((X, Y, with_(WEIGHT, 3, -1.0)), "sample weights in batch 0 of dataset"),
    "another width": (
        (X[:, :4], Y),
        "inputs of batch 0 of dataset: expected a batch that the model accepts",
    ),
    "no labels": ((X,), "labels"),
    "an empty dataset": ((X[:0], Y[:0]), "empty dataset"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(framework, name):
    arrays, message = BAD_DATA[name]
    with pytest.raises(whence.WhenceError, match=message):
        fitted(framework.classifier("float64"), framework.batches(*arrays))


BAD_MODELS = {
    "another name": ({"start_layer": "neck"}, "target layer: expected"),
    "a large index": ({"start_layer": 7}, "target layer: expected an index from"),
    "a layer without weights": ({"start_layer": 1.5}, "target layer: expected an index or a name, got 1.5"),
    "not a loss": ({"loss_function": 3}, "loss_function: expected"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_models(framework, name):
    options, message = BAD_MODELS[name]
    with pytest.raises(whence.WhenceError, match=message):
        fitted(framework.classifier("float64", **options), framework.batches(X, Y))


def test_bad_calls(framework):
    lje = fitted(framework.classifier("float64"), framework.batches(X, Y))
    train, test = framework.batches(X, Y), framework.batches(TEST_X, TEST_Y)
    with pytest.raises(whence.WhenceError, match="k: expected an integer >= 1"):
        lje.explain(test, k=0)
    with pytest.raises(whence.WhenceError, match="samples of the constructor's dataset"):
        for _ in lje.compute_influence_values(test):
            pass
    with pytest.warns(UserWarning, match="asked for 99"):
        assert lje.explain(test, k=99).ids.shape == (8, N)
    with pytest.raises(whence.WhenceError, match="the softmax of them"):
        fitted(framework.contradicted(), train)


# ------------------------------------------------------------------------------------- the process


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_no_tensorflow_is_needed(backend):
    pytest.importorskip(backend)
    code = f"""
import sys
sys.modules["tensorflow"] = None  # importing it fails
import keras, numpy as np, whence
assert keras.backend.backend() == {backend!r}
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
data = np.ones((4, 3), "float32") * np.arange(4)[:, None], np.array([0, 1, 0, 1])
lje = whence.RepresenterPointLJE(whence.InfluenceModel(model), data, whence.ExactIHVPFactory())
print(lje.explain(data, k=2).ids.shape)
"""
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "(4, 2)", run.stderr
