"""The table of bad inputs: each is refused in words, and nothing is written or changed.

The rows stand in ``refused_*.py``. What depends on more than one call is tested below, and in
``attribution/test_bad_input.py``; what single files and options do to the command line in ``cli``.
"""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import refused_constructors
import refused_elsewhere
import refused_methods
from refusals import TRAIN, X, Y, check, keras, made, net

from whence import ExactIHVPFactory, InfluenceModel, RepresenterPointLJE, WhenceError

TABLE = refused_constructors.ROWS | refused_methods.ROWS | refused_elsewhere.ROWS


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return InfluenceModel(net())


@pytest.fixture(scope="module")
def lje(model):
    return RepresenterPointLJE(model, TRAIN, ExactIHVPFactory(), progress=False)


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "index"
    made(model=model, index_path=folder)
    return folder


@pytest.fixture
def world(lje, stored, tmp_path, monkeypatch, capsys):
    """A folder with a file, an index and a pickle, a method and its data; and what they were."""
    monkeypatch.chdir(tmp_path)
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    (tmp_path / "model.pkl").write_bytes(b"cos\nsystem\n(S'touch trace'\ntR.")
    (tmp_path / "data.csv").write_text("a,label\n1,0\n2,1\n")
    index = shutil.copytree(stored, tmp_path / "index")

    def state():
        files = {str(f): f.read_bytes() for f in tmp_path.rglob("*") if f.is_file() and f.name != "lock"}
        weights = lje.influence_model.model.get_weights()
        data = [part.numpy().copy() for batch in TRAIN for part in batch]
        folders = sorted(str(f) for f in tmp_path.rglob("*") if f.is_dir())
        return files, folders, [*weights, *data, X.copy(), Y.copy(), lje.theta_dagger.copy()]

    made_world = SimpleNamespace(lje=lje, path=tmp_path, thesis=thesis, index=index, capsys=capsys)
    made_world.remember = lambda: setattr(made_world, "before", state())
    made_world.remember()
    yield made_world
    files, folders, arrays = made_world.before
    files_now, folders_now, arrays_now = state()
    assert files_now == files
    assert folders_now == folders
    for one, other in zip(arrays, arrays_now, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", TABLE)
def test_refused(name, world):
    call, message = TABLE[name]
    check(lambda: call(world), *message)


def test_a_wrapped_model_goes_on_after_errors(lje):
    wrapped = InfluenceModel(lje.influence_model.model)
    for name in ("unbatched", "NaN in inputs", "a class too many", "one-hot of another width", "texts"):
        with pytest.raises(WhenceError):
            made(refused_constructors.CONSTRUCTOR[name][0]["dataset"], wrapped)
    np.testing.assert_array_equal(made(model=wrapped).theta_dagger, lje.theta_dagger)
