"""How well each score finds training labels that were flipped on purpose.

    python benchmarks/label_errors.py

A share of the training labels is moved to another class at random, a small network is trained on them
as usual, and its training samples are ranked. Printed is the area under the ROC curve of finding the
flipped labels: mean and standard deviation over seeds, each with its own flips and weights. The last two
columns are ``compute_influence_values`` with ``label="predicted"``, the default, and with ``"given"``.
"""

from __future__ import annotations

import numpy as np
from _common import parser
from _data import EPOCHS, data_of

NAMES = ("digits", "breast cancer", "wine")
COLUMNS = ("default", "ridge", "leave_one_out", "loss", "influence values", "influence values, given")


def areas(name: str, share: float, seed: int, epochs: int) -> dict[str, float]:
    """Train on flipped labels and return the area under the curve of every score."""
    import keras
    import tensorflow as tf
    from sklearn.metrics import roc_auc_score

    import whence
    from whence.evaluation import flip_labels

    x, y = data_of(name)
    y, wrong = flip_labels(y, share, seed)
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.layers.Input((x.shape[1],)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(int(y.max()) + 1),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    train = tf.data.Dataset.from_tensor_slices((x, y)).batch(128)
    wrapped = whence.InfluenceModel(model)
    result = {}
    for label in ("predicted", "given"):
        lje = whence.RepresenterPointLJE(
            wrapped, train, whence.ExactIHVPFactory(), label=label, progress=False
        )
        values = np.concatenate([v.numpy() for _, v in lje.compute_influence_values(train)])
        column = "influence values" if label == "predicted" else "influence values, given"
        result[column] = roc_auc_score(wrong, values)
    for score in (None, "ridge", "leave_one_out", "loss"):
        ranked = lje.suspects(train, k=None, score=score)
        every = np.empty(y.size)
        every[ranked.ids] = ranked.scores
        result["default" if score is None else score] = roc_auc_score(wrong, every)
    return result


def main() -> None:
    """Print one line for each data set and share of wrong labels."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=5)
    chosen = options.parse_args()
    sets = ["breast cancer"] if chosen.smoke else NAMES
    print(f"{'data':16s}{'flipped':>8s}" + "".join(f"{c:>24s}" for c in COLUMNS))
    for name in sets:
        for share in (0.1,) if chosen.smoke else (0.1, 0.2):
            runs = [
                areas(name, share, seed, 2 if chosen.smoke else EPOCHS[name])
                for seed in range(1 if chosen.smoke else chosen.seeds)
            ]
            cells = ""
            for column in COLUMNS:
                of_seeds = [run[column] for run in runs]
                cells += f"{np.mean(of_seeds):17.4f} ±{np.std(of_seeds):.3f}"
            print(f"{name:16s}{share:8.0%}{cells}", flush=True)


if __name__ == "__main__":
    main()
