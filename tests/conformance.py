"""What must hold whatever a model is made with and wherever the work is done.

One network with one set of weights, in each framework and in plain NumPy, beside a reference that is
written out in closed form and float64 here. :class:`Conformance` holds the cases. A test file subclasses it
and says by the fixture ``options`` with what further arguments methods are made, such as an engine::

    class TestThere(Conformance):
        @pytest.fixture
        def options(self, engine):
            return {"engine": engine}

Keras runs on the backend that KERAS_BACKEND names, so that whoever wants all of them runs a file once for
each. No framework is imported before a case asks for it.
"""

import numpy as np
import pytest
from reference import Dense, LocalJacobianExpansion, ridge_without_each
from tolerances import assert_close

import whence
from whence.layers.losses import SoftmaxCrossEntropy
from whence.models.adapter import Adapter, LossSpec, Weights, register_adapter
from whence.models.differentiated import DifferentiatedLoss

__all__ = ["Conformance", "Keras", "Plain", "PyTorch", "reference"]

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
LOGITS, TEST_LOGITS = PHI @ THETA, TEST_PHI @ THETA


class SoftmaxDense(Dense):
    """The reference with derivatives written out: differences are good to 1e-9 only."""

    @property
    def _probabilities(self):
        exponentials = np.exp(self.phi @ self.theta)
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    @property
    def residuals(self):
        return self.weight[:, None] * (self._probabilities - self.target)

    @property
    def curvatures(self):
        p = self._probabilities
        return np.stack(
            [w * (np.diag(row) - np.outer(row, row)) for w, row in zip(self.weight, p, strict=True)]
        )


class LogCoshDense(Dense):
    """``mean_c log cosh(s_c - y_c)`` behind ``s = softplus(u)``, with its derivatives."""

    def _parts(self):
        u = self.phi @ self.theta
        gap, slope = np.log1p(np.exp(u)) - self.target, 1 / (1 + np.exp(-u))
        return gap, slope

    @property
    def losses(self):
        return np.log(np.cosh(self._parts()[0])).mean(axis=1)

    @property
    def residuals(self):
        gap, slope = self._parts()
        return np.tanh(gap) * slope / C

    @property
    def curvatures(self):
        gap, slope = self._parts()
        diagonal = ((1 - np.tanh(gap) ** 2) * slope**2 + np.tanh(gap) * slope * (1 - slope)) / C
        return diagonal[:, :, None] * np.eye(C)


def reference(weight=None, phi=PHI):
    """The expansion of the classifier, in float64."""
    phi = np.asarray(phi, dtype=np.float64)
    return LocalJacobianExpansion(SoftmaxDense(THETA, phi, Y, None, weight, DAMPING))


# -------------------------------------------------------------------------------- the frameworks


class Network:
    """A network in plain NumPy; its head gives logits, or their softmax, or their softplus."""

    def __init__(self, dtype, tail="identity"):
        arrays = BODY, BODY_BIAS, HEAD, HEAD_BIAS
        self.body, self.body_bias, self.head, self.head_bias = (a.astype(dtype) for a in arrays)
        self.tail = {
            "identity": lambda u: u,
            "softmax": lambda u: np.exp(u) / np.exp(u).sum(axis=-1, keepdims=True),
            "softplus": lambda u: np.log1p(np.exp(u)),
        }[tail]


@register_adapter(Network)
class NetworkAdapter(Adapter):
    """All that it takes to bring another kind of model."""

    layer_name = "head"

    def __init__(self, network, start_layer=-1, loss_function=None):
        self._network, self._loss = network, loss_function

    def with_layer(self, layer):
        return self

    def weights(self):
        return Weights(self._network.head, self._network.head_bias)

    def loss_spec(self):
        if self._loss == "log cosh":
            return LossSpec(None, "", self._loss)
        return LossSpec(SoftmaxCrossEntropy(), "identity", "cross-entropy", ("softmax",))

    def features(self, inputs):
        network = self._network
        return np.tanh(np.asarray(inputs).astype(network.body.dtype) @ network.body + network.body_bias)

    def tail(self, inputs, pre_activations):
        return self._network.tail(pre_activations)

    def differentiated(self, inputs):
        def derivatives(u, target, order):
            dense = LogCoshDense(np.eye(C), np.asarray(u, dtype=np.float64), target, None)
            return (dense.losses, dense.residuals, dense.curvatures)[order]

        return DifferentiatedLoss("log cosh", derivatives, self._network.tail, "log cosh", None, C)


class Plain:
    """Arrays that no framework has touched."""

    def tolerance(self, dtype):
        return TOLERANCE[dtype]

    def classifier(self, dtype, **options):
        return whence.InfluenceModel(Network(dtype), **options)

    def regressor(self, dtype):
        return whence.InfluenceModel(Network(dtype, "softplus"), loss_function="log cosh")

    def contradicted(self):
        return whence.InfluenceModel(Network("float32", "softmax"))

    def batches(self, *arrays, size=7):
        return [tuple(a[i : i + size] for a in arrays) for i in range(0, len(arrays[0]), size)]

    def host(self, array):
        return np.asarray(array)


class Keras:
    """Keras on the backend of this process."""

    def __init__(self):
        self.keras = pytest.importorskip("keras")
        self.backend = self.keras.backend.backend()
        if self.backend == "jax":  # which refuses float64 by default
            pytest.importorskip("jax").config.update("jax_enable_x64", True)

    def tolerance(self, dtype):
        # On torch, Keras's own matmul computes in float32 whatever the dtype of a layer.
        return TOLERANCE["float32" if self.backend == "torch" else dtype]

    def _model(self, dtype, tail="linear"):
        keras, layers = self.keras, self.keras.layers
        body_activation, activation = "tanh", tail
        if self.backend == "jax":  # where keras.ops.tanh, softplus and the like compute in float32 alone
            import jax

            body_activation = jax.numpy.tanh
            activation = jax.nn.softplus if tail == "softplus" else tail
        model = keras.Sequential(
            [
                keras.Input((D,), dtype=dtype),
                layers.Dense(HIDDEN, activation=body_activation, dtype=dtype),
                layers.Dropout(0.5, dtype=dtype),
                layers.Dense(C, activation=activation, dtype=dtype, name="head"),
            ]
        )
        model.set_weights([BODY, BODY_BIAS, HEAD, HEAD_BIAS])
        return model

    def classifier(self, dtype, **options):
        options = {"start_layer": "head"} | options
        losses = self.keras.losses
        loss = options.pop("loss_function", losses.SparseCategoricalCrossentropy(from_logits=True))
        return whence.InfluenceModel(self._model(dtype), loss_function=loss, **options)

    def regressor(self, dtype):
        loss = self.keras.losses.LogCosh()
        if self.backend == "jax":  # see _model
            import jax.numpy as jnp

            def loss(target, output):
                return jnp.log(jnp.cosh(output - target)).mean(axis=-1)

        return whence.InfluenceModel(self._model(dtype, "softplus"), "head", loss_function=loss)

    def contradicted(self):
        loss = self.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return whence.InfluenceModel(self._model("float32", "softmax"), loss_function=loss)

    def batches(self, *arrays, size=7):
        class Batches(self.keras.utils.PyDataset):
            def __len__(self):
                return -(-len(arrays[0]) // size)

            def __getitem__(self, i):
                return tuple(a[i * size : (i + 1) * size] for a in arrays)

        return Batches()

    def host(self, array):
        return self.keras.ops.convert_to_numpy(array)


class PyTorch:
    """A torch.nn.Module, with DataLoaders."""

    def __init__(self):
        self.torch = pytest.importorskip("torch")

    def tolerance(self, dtype):
        return TOLERANCE[dtype]

    def _model(self, dtype, tail=None):
        torch = self.torch

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

    def classifier(self, dtype, **options):
        loss = self.torch.nn.CrossEntropyLoss()
        options = {"start_layer": "head", "loss_function": loss} | options
        form = ("x", "y", "weight")  # a third element might be anything
        return whence.InfluenceModel(self._model(dtype), batch=form, **options)

    def regressor(self, dtype):
        torch = self.torch

        def log_cosh(output, target):
            return torch.log(torch.cosh(output - target)).mean(dim=1)

        model = self._model(dtype, torch.nn.functional.softplus)
        return whence.InfluenceModel(model, "head", loss_function=log_cosh)

    def contradicted(self):
        model = self._model("float32", lambda u: u.softmax(dim=1))
        return whence.InfluenceModel(model, loss_function=self.torch.nn.CrossEntropyLoss())

    def batches(self, *arrays, size=7):
        tensors = self.torch.utils.data.TensorDataset(*(self.torch.tensor(a) for a in arrays))
        return self.torch.utils.data.DataLoader(tensors, size)

    def host(self, array):
        return np.asarray(array)


FRAMEWORKS = {"plain": Plain, "keras": Keras, "pytorch": PyTorch}


# ------------------------------------------------------------------------------------- bad input


def with_(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


BAD_DATA = {
    "NaN in an input": ((with_(X, 9, np.nan), Y), "inputs: expected finite values in batch 1 of dataset"),
    "infinity in an input": (
        (with_(X, 29, np.inf), Y),
        "inputs: expected finite values in batch 4 of dataset",
    ),
    "a class too large": (
        (X, with_(Y, 9, C)),
        "labels in batch 1 of dataset: expected class numbers from 0",
    ),
    "a negative class": (
        (X, with_(Y, 0, -1)),
        "labels in batch 0 of dataset: expected class numbers from 0",
    ),
    "fractions for classes": ((X, Y + 0.5), "labels in batch 0 of dataset: expected class numbers from 0"),
    "a negative weight": ((X, Y, with_(WEIGHT, 3, -1.0)), "sample weights in batch 0 of dataset"),
    "NaN in a weight": (
        (X, Y, with_(WEIGHT, 8, np.nan)),
        "sample weights: expected finite values in batch 1",
    ),
    "another width": (
        (X[:, :4], Y),
        "inputs of batch 0 of dataset: expected a batch that the model accepts",
    ),
    "no labels": ((X,), "labels"),
    "an empty dataset": ((X[:0], Y[:0]), "empty dataset"),
}

BAD_MODELS = {
    "another name": ({"start_layer": "neck"}, "target layer: expected"),
    "a large index": ({"start_layer": 7}, "target layer: expected an index from"),
    "a layer without weights": ({"start_layer": 1.5}, "target layer: expected an index or a name, got 1.5"),
    "not a loss": ({"loss_function": 3}, "loss_function: expected"),
}


# ------------------------------------------------------------------------------------- the cases


class Conformance:
    """The cases; see the module's first lines."""

    @pytest.fixture
    def options(self):
        """What methods are given beyond the model and the data."""
        return {}

    @pytest.fixture(params=FRAMEWORKS)
    def framework(self, request):
        return FRAMEWORKS[request.param]()

    @pytest.fixture(params=TOLERANCE)
    def dtype(self, request):
        return request.param

    def fitted(self, wrapped, dataset, options, **more):
        solver = whence.ExactIHVPFactory(damping=DAMPING)
        return whence.RepresenterPointLJE(wrapped, dataset, solver, progress=False, **options, **more)

    def check(self, method, tolerance, dtype, weight=None):
        """Features, residuals, Hessian and solution are those of the reference; return the latter.

        Where features are less precise than their dtype, the reference goes on from them as they are.
        """
        phi = np.concatenate([np.asarray(block.phi) for block in method.index])
        assert_close(phi, PHI, tolerance)
        if tolerance > TOLERANCE[dtype]:
            tolerance, expected = TOLERANCE[dtype], reference(weight, phi)
        else:
            expected = reference(weight)
        residuals = [np.asarray(method.expanded_layer.residuals(block)) for block in method.index]
        assert_close(method.expanded_layer.theta, expected.expanded.theta, tolerance)
        assert_close(np.concatenate(residuals), expected.expanded.residuals, tolerance)
        hessian = method.expanded_layer.hessian(method.index).matrix()
        assert_close(hessian, expected.expanded.hessian, tolerance)
        assert_close(method.theta_dagger, expected.theta_dagger, tolerance)
        return expected

    # -------------------------------------------------------------------------------- the numbers

    def test_classifier(self, framework, dtype, options):
        train = framework.batches(X.astype(dtype), Y)
        test = framework.batches(TEST_X.astype(dtype), TEST_Y, size=3)
        lje = self.fitted(framework.classifier(dtype), train, options)
        tolerance = framework.tolerance(dtype)
        expected = self.check(lje, tolerance, dtype)
        outputs = TEST_LOGITS.argmax(axis=1)
        values = expected.influences(TEST_PHI)[np.arange(8), :, outputs]
        assert_close(lje.influences(test, progress=False), values, tolerance)
        explanation = lje.explain(test, k=4)
        order = np.argsort(-values, axis=1)
        np.testing.assert_array_equal(explanation.ids, order[:, :4])
        np.testing.assert_array_equal(explanation.opponent_ids, order[:, ::-1][:, :4])
        np.testing.assert_array_equal(explanation.outputs, outputs)
        assert_close(explanation.values, np.take_along_axis(values, order[:, :4], 1), tolerance)
        # Completeness: the terms sum to the prediction of the expanded layer.
        assert_close(explanation.totals, values.sum(axis=1), tolerance)
        assert_close(lje.influences(test, progress=False).sum(axis=1), explanation.totals, 10 * tolerance)
        own = LOGITS.argmax(axis=1)
        parts = [framework.host(scores) for _, scores in lje.compute_influence_values(train)]
        assert_close(np.concatenate(parts), expected.self_influences(own), tolerance)
        margins = expected.dense.leave_one_out()
        given = margins[np.arange(N), Y]
        margins[np.arange(N), Y] = -np.inf
        suspects = lje.suspects(train, 5, score="leave_one_out")
        np.testing.assert_array_equal(suspects.ids, np.argsort(given - margins.max(axis=1))[:5])
        votes = ridge_without_each(PHI[:, :-1], np.eye(C)[Y])
        given = votes[np.arange(N), Y]
        votes[np.arange(N), Y] = -np.inf
        suspects = lje.suspects(train, 5, score="ridge")
        np.testing.assert_array_equal(suspects.ids, np.argsort(given - votes.max(axis=1))[:5])
        assert lje.suspects(train, 5).score == "label_noise"

    def test_methods_of_the_contract_agree_with_each_other(self, framework, dtype, options):
        train = framework.batches(X.astype(dtype), Y)
        test = framework.batches(TEST_X.astype(dtype), TEST_Y, size=3)
        lje = self.fitted(framework.classifier(dtype), train, options)
        tolerance, start = framework.tolerance(dtype), 0
        every = lje.influences(test, progress=False)
        for (inputs, _), nested in lje.estimate_influence_values_in_batches(test, train):
            values = np.concatenate([framework.host(part) for _, part in nested], axis=1)
            assert_close(values, every[start : start + len(inputs)], tolerance)
            start += len(inputs)
        assert start == 8
        start = 0
        order = np.argsort(-every, axis=1)[:, :3]
        for (inputs, _), found, samples in lje.top_k(test, train, k=3):
            rows = order[start : start + len(inputs)]
            here = every[start : start + len(inputs)]
            assert_close(framework.host(found), np.take_along_axis(here, rows, 1), max(tolerance, 1e-6))
            assert_close(framework.host(samples), X.astype(dtype)[rows], 1e-7)
            start += len(inputs)
        own = np.concatenate([framework.host(v) for _, v in lje.compute_influence_values(train)])
        samples, found = lje.compute_top_k_from_training_dataset(train, 4)
        best = np.argsort(-own)[:4]
        assert_close(framework.host(found), own[best], tolerance)
        assert_close(framework.host(samples), X.astype(dtype)[best], 1e-7)

    def test_any_loss_and_tail(self, framework, dtype, options):
        wrapped = framework.regressor(dtype)
        x, reals = X.astype(dtype), REALS.astype(dtype)
        solver = whence.ExactIHVPFactory(damping=DAMPING, curvature="gauss_newton")
        index = wrapped.index(framework.batches(x, reals), progress=False)
        shard = index.take(np.arange(N))
        tolerance = framework.tolerance(dtype)
        # The labels as the model gets them: their rounding to float32 is not the library's.
        dense = LogCoshDense(THETA, PHI, reals.astype(np.float64), None, lam=DAMPING)
        assert_close(wrapped.layer.residuals(shard.block), dense.residuals, tolerance)
        assert_close(wrapped.layer.hessian(index).matrix(), dense.hessian, tolerance)
        # Keras's LogCosh subtracts a log 2 that is rounded to float32.
        assert_close(wrapped.layer.losses(shard.block), dense.losses, max(tolerance, 1e-8))
        lje = whence.RepresenterPointLJE(wrapped, (x, reals), solver, progress=False, **options)
        values = lje.influences((x[:3], reals[:3]), progress=False)
        totals = lje.explain((x[:3], reals[:3]), k=1).totals
        assert_close(values.sum(axis=1), totals, 10 * tolerance)

    # ------------------------------------------------------------------------------- the datasets

    def test_sample_weights(self, framework, dtype, options):
        arrays = X.astype(dtype), Y, WEIGHT.astype(dtype)
        lje = self.fitted(framework.classifier(dtype), framework.batches(*arrays), options)
        self.check(lje, framework.tolerance(dtype), dtype, arrays[2].astype(np.float64))

    def test_every_kind_of_dataset(self, framework, options):
        wrapped = framework.classifier("float64")
        expected = reference().theta_dagger
        kinds = [
            framework.batches(X, Y),
            framework.batches(X, Y, size=N),  # one batch
            framework.batches(X, Y, size=29),  # a last batch of one sample
            (X, Y),
            *(kind().batches(X, Y, size=11) for kind in FRAMEWORKS.values()),
        ]
        for dataset in kinds:
            lje = self.fitted(wrapped, dataset, options)
            assert_close(lje.theta_dagger, expected, framework.tolerance("float64"))
            ((_, values, samples), *_) = lje.top_k(dataset, dataset, k=2)
            assert tuple(values.shape[1:]) == (2,)
            assert tuple(samples.shape[1:]) == (2, D)

    def test_ids_caches_and_order(self, framework, options, tmp_path):
        names = [f"sample {i}" for i in range(N)]
        train, test = framework.batches(X, Y), framework.batches(TEST_X, TEST_Y, size=8)
        lje = self.fitted(framework.classifier("float64"), train, options, ids=names)
        values = reference().influences(TEST_PHI)[np.arange(8), :, TEST_LOGITS.argmax(axis=1)]
        best = np.argsort(-values, axis=1)[:, :3]
        np.testing.assert_array_equal(lje.explain(test, k=3).ids, np.asarray(names)[best])
        mixed = np.random.default_rng(1).permutation(N)
        in_order, again = (
            np.concatenate([framework.host(v) for _, v in lje.compute_influence_values(dataset)])
            for dataset in (train, framework.batches(X[mixed], Y[mixed], size=4))
        )
        np.testing.assert_array_equal(in_order[mixed], again)
        path = tmp_path / "vectors"
        for more in (
            {"influence_vector_in_cache": whence.CACHE.MEMORY},
            {"influence_vector_in_cache": whence.CACHE.NO_CACHE},
            {"influence_vector_in_cache": whence.CACHE.DISK, "save_influence_vector_ds_path": path},
            {"influence_vector_in_cache": whence.CACHE.DISK, "load_influence_vector_ds_path": path},
        ):
            ((_, found, samples),) = lje.top_k(test, train, k=3, d_type=np.float64, **more)
            wanted = np.take_along_axis(values, best, 1)
            assert_close(framework.host(found), wanted, framework.tolerance("float64"))
            assert_close(framework.host(samples), X[best], 1e-7)

    # ---------------------------------------------------------------------------------- bad input

    @pytest.mark.parametrize("name", BAD_DATA)
    def test_bad_data(self, framework, name, options):
        arrays, message = BAD_DATA[name]
        with pytest.raises(whence.WhenceError, match=message):
            self.fitted(framework.classifier("float64"), framework.batches(*arrays), options)

    @pytest.mark.parametrize("name", BAD_MODELS)
    def test_bad_models(self, framework, name, options):
        if isinstance(framework, Plain):
            return  # its adapter is this file's own, and has one layer
        given, message = BAD_MODELS[name]
        with pytest.raises(whence.WhenceError, match=message):
            self.fitted(framework.classifier("float64", **given), framework.batches(X, Y), options)

    def test_bad_calls(self, framework, options):
        train, test = framework.batches(X, Y), framework.batches(TEST_X, TEST_Y)
        lje = self.fitted(framework.classifier("float64"), train, options)
        with pytest.raises(whence.WhenceError, match="k: expected an integer >= 1"):
            lje.explain(test, k=0)
        with pytest.raises(whence.WhenceError, match="samples of the constructor's dataset"):
            lje.suspects(test)
        with pytest.raises(whence.WhenceError, match="device"):
            for _ in lje.compute_influence_values(train, device="tpu:9"):
                pass
        with pytest.warns(UserWarning, match="asked for 99"):
            assert lje.explain(test, k=99).ids.shape == (8, N)
        with pytest.raises(whence.WhenceError, match="the softmax of them"):
            self.fitted(framework.contradicted(), train, options)
