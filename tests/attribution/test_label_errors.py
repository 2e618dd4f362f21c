"""Finding labels that were made wrong on purpose, next to the training loss. Slow: it trains models."""

import numpy as np
import pytest

import whence

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
pytest.importorskip("sklearn")

from sklearn import datasets  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

SEEDS = range(5)
SHARE = 0.1


def digits():
    x, y = datasets.load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y.astype(np.int64)


def breast_cancer():
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(x).astype(np.float32), y.astype(np.int64)


def flipped(y, rng):
    """Labels of which a share was moved to another class, and which ones were."""
    n_classes = int(y.max()) + 1
    wrong = np.zeros(y.size, dtype=bool)
    wrong[rng.permutation(y.size)[: round(SHARE * y.size)]] = True
    return np.where(wrong, (y + rng.integers(1, n_classes, y.size)) % n_classes, y), wrong


def areas(data, seed):
    """Train on the labels as they are now; the area under the ROC curve of each score."""
    x, y = data()
    y, wrong = flipped(y, np.random.default_rng(seed))
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((x.shape[1],)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(int(y.max()) + 1),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=32, epochs=30, verbose=0)
    train = tf.data.Dataset.from_tensor_slices((x, y)).batch(128)
    lje = whence.RepresenterPointLJE(whence.InfluenceModel(model), train, whence.ExactIHVPFactory())
    result = []
    for score in (None, "leave_one_out", "loss"):
        suspects = lje.suspects(train, k=None, score=score)
        result.append(roc_auc_score(wrong[suspects.ids], suspects.scores))
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("data", "least"), [(digits, 0.995), (breast_cancer, 0.984)])
def test_suspects_find_wrong_labels_as_well_as_the_loss_and_better(data, least):
    default, left_out, loss = np.mean([areas(data, seed) for seed in SEEDS], axis=0)
    print(f"{data.__name__}: default {default:.4f}, leave-one-out {left_out:.4f}, loss {loss:.4f}")
    assert default >= least
    assert default >= loss - 0.003
    assert left_out >= loss - 0.002
