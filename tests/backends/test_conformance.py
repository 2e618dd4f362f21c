"""The cases of ``conformance`` here, on one processor: every framework gives the same numbers.

Keras runs on the backend that KERAS_BACKEND names, so that the file is run once for each of them.
"""

import os
import subprocess
import sys

import pytest
from conformance import Conformance

keras = pytest.importorskip("keras")


class TestHere(Conformance):
    """Methods as they are made without further arguments."""


def test_backend_is_the_one_asked_for():
    assert os.environ.get("KERAS_BACKEND", "tensorflow") == keras.backend.backend()


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
