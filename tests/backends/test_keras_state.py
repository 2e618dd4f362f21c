"""A Keras model that is no longer what it was, on the backend that KERAS_BACKEND names."""

import threading

import numpy as np
import pytest

import whence

keras = pytest.importorskip("keras")
layers = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore:.*__array__:DeprecationWarning")  # Keras's own, of NumPy 2

RNG = np.random.default_rng(0)
N, D, C = 24, 5, 3
X = RNG.normal(size=(N, D)).astype(np.float32)
Y = RNG.integers(0, C, N)
NEW = (X[:3] + 1, None)
OTHER = "influence_model: expected a model that is.*as it was when the training set was stored"


def built():
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((D,)),
            layers.Dense(4, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(C, activation="softmax", name="head"),
        ]
    )
    net.compile("sgd", "sparse_categorical_crossentropy")
    return net


def made(net, data=(X, Y), **options):
    return whence.RepresenterPointLJE(
        whence.InfluenceModel(net), data, whence.ExactIHVPFactory(damping=0.01), progress=False, **options
    )


def add_to(variable, number=0.3):
    variable.assign(keras.ops.convert_to_numpy(variable) + np.float32(number))


def train_below_a_frozen_head(net):
    net.get_layer("head").trainable = False
    net.compile("sgd", "sparse_categorical_crossentropy")
    head = net.get_layer("head").get_weights()
    net.train_on_batch(X, Y)
    for one, other in zip(head, net.get_layer("head").get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


CHANGES = {
    "a weight": lambda net: add_to(net.layers[0].kernel),
    "the head": lambda net: add_to(net.layers[-1].bias),
    "statistics": lambda net: add_to(net.layers[1].moving_mean),
    "training": lambda net: net.train_on_batch(X, Y),
    "what is below a frozen head": train_below_a_frozen_head,
}


def test_whatever_shapes_an_answer_is_noticed_when_it_changes(tmp_path):
    net = built()
    method = made(net, index_path=tmp_path / "index")
    before, weights = method.influences(NEW), net.get_weights()
    for change in CHANGES.values():
        change(net)
        with pytest.raises(whence.WhenceError, match=OTHER):
            method.explain(NEW, k=2)
        with pytest.raises(whence.WhenceError, match=r"^path .*expected an index (of|with)"):
            made(net, index_path=tmp_path / "index")
        net.set_weights(weights)
        np.testing.assert_array_equal(method.influences(NEW), before)


def test_what_shapes_nothing_may_change():
    net = built()
    method = made(net)
    before = method.influences(NEW)
    weights = net.get_weights()
    net.train_on_batch(X, Y)  # moves the seed of dropout and the optimiser's variables too
    net.set_weights(weights)
    net.predict(X, verbose=0)
    net.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    np.testing.assert_array_equal(method.influences(NEW), before)


def test_a_model_that_was_saved_and_loaded_is_the_same(tmp_path):
    net = built()
    before = made(net, index_path=tmp_path / "index").explain(NEW, k=3)
    net.save(tmp_path / "net.keras")
    again = keras.models.load_model(tmp_path / "net.keras")
    loaded = whence.load_index(tmp_path / "index", influence_model=whence.InfluenceModel(again))
    np.testing.assert_array_equal(loaded.explain(NEW, k=3).ids, before.ids)
    add_to(again.layers[0].kernel)
    with pytest.raises(whence.WhenceError, match=OTHER):
        loaded.explain(NEW, k=3)


class Meanwhile(keras.utils.PyDataset):
    """Batches, before the last of which something is done."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def __len__(self):
        return 3

    def __getitem__(self, number):
        if number == 2:
            self.act()
        return X[8 * number : 8 * number + 8], Y[8 * number : 8 * number + 8]


def test_a_model_that_changes_while_it_is_asked_is_noticed():
    net = built()
    with pytest.raises(whence.WhenceError, match="stays as it is while the training set goes through it"):
        made(net, Meanwhile(lambda: add_to(net.layers[0].kernel)))
    method = made(net)
    with pytest.raises(whence.WhenceError, match=OTHER):
        method.explain(Meanwhile(lambda: add_to(net.layers[0].kernel)), k=2)


def test_threads_that_ask_and_threads_that_predict_do_not_meet():
    net = built()
    method = made(net)
    expected, said = method.explain(NEW, k=3).values, keras.ops.convert_to_numpy(net(X))
    failures = []

    def attempt(act):
        try:
            for _ in range(3):
                act()
        except BaseException as error:
            failures.append(error)

    def asks():
        np.testing.assert_allclose(method.explain(NEW, k=3).values, expected, rtol=1e-6)

    def predicts():
        np.testing.assert_allclose(keras.ops.convert_to_numpy(net(X)), said, rtol=1e-5)

    threads = [
        threading.Thread(target=attempt, args=(act,)) for act in (asks, asks, asks, predicts, predicts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
