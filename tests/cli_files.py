"""Small files of every kind that the commands take; scikit-learn and pandas are needed to make them."""

import joblib
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

N, T, SIDE = 60, 5, 6
NAMES = ("ant", "bee", "cow")
COLUMNS = ["legs", "wings", "tail length", "mass"]


def problem():
    """Three classes of four features: ``(x, y)`` of the training set and of new samples."""
    rng = np.random.default_rng(5)
    y = np.arange(N + T) % 3
    x = rng.normal(size=(N + T, 4)).astype(np.float32) + np.eye(4, dtype=np.float32)[y] * 2
    return x[:N], y[:N], x[N:], y[N:]


def make(folder):
    """Write training sets, new samples and models into a folder."""
    x, y, x_new, y_new = problem()
    np.savez(folder / "train.npz", x=x, y=y, name=np.asarray([f"n{i}" for i in range(N)]))
    np.savez(folder / "new.npz", x=x_new)
    table = pd.DataFrame(x, columns=COLUMNS)
    table.insert(0, "animal", [f"a{i}" for i in range(N)])
    table["class"] = np.asarray(NAMES)[y]
    table["value"] = x @ np.asarray([1.0, 2.0, 0.0, -1.0]) + 0.1 * np.arange(N)
    table.to_csv(folder / "train.csv", index=False)
    new = pd.DataFrame(x_new, columns=COLUMNS)
    new["animal"] = [f"new{i}" for i in range(T)]
    new["class"] = np.asarray(NAMES)[y_new]
    new.to_csv(folder / "new.csv", index=False)
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(table[COLUMNS], table["class"])
    joblib.dump(fitted, folder / "model.joblib")
    joblib.dump(LogisticRegression(C=0.5).fit(table[COLUMNS], table["class"]), folder / "other.joblib")
    joblib.dump(LogisticRegression(max_iter=300).fit(x, y), folder / "arrays.joblib")
    joblib.dump(Ridge().fit(table[COLUMNS], table["value"]), folder / "ridge.joblib")
    _make_images(folder)


def _make_images(folder):
    rng = np.random.default_rng(6)
    pixels = rng.integers(0, 200, (30, SIDE, SIDE)).astype(np.uint8)
    kinds = np.arange(30) % 2
    pixels[kinds == 1, :3] += 55
    for i, (picture, kind) in enumerate(zip(pixels, kinds, strict=True)):
        place = folder / "photos" / ("dark", "light")[kind]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i:02d}.png")
    names = np.asarray(("dark", "light"))[kinds]
    fitted = LogisticRegression(C=1e-4, max_iter=500).fit(pixels.reshape(30, -1).astype(float), names)
    joblib.dump(fitted, folder / "photos.joblib")
