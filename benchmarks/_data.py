"""The data sets that measures of quality are taken on, and the models trained on them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

#: Passes over the training set, enough for the network to follow some wrong labels.
EPOCHS = {"digits": 30, "breast cancer": 30, "wine": 100, "German credit": 30, "SST-2": 10}
#: Words and directions kept of the texts.
N_WORDS, N_DIRECTIONS = 5000, 128


def names_of() -> list[str]:
    """Return the data sets that are here; the last two are looked for in the folder $WHENCE_DATA."""
    folder = Path(os.environ.get("WHENCE_DATA", "missing"))
    found = ["digits", "breast cancer", "wine"]
    if (folder / "german_credit" / "train.csv").is_file():
        found.append("German credit")
    if (folder / "sst2" / "train.tsv").is_file():
        found.append("SST-2")
    return found


def data_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features in float32, standardised or scaled to 0 to 1, and classes."""
    from sklearn import datasets
    from sklearn.preprocessing import StandardScaler

    if name == "SST-2":
        return _texts()
    if name == "German credit":
        table = np.genfromtxt(
            Path(os.environ["WHENCE_DATA"]) / "german_credit" / "train.csv", delimiter=",", names=True
        )
        columns = [column for column in table.dtype.names if column != "label"]
        x, y = np.stack([table[column] for column in columns], axis=1), table["label"]
    else:
        load = {
            "digits": datasets.load_digits,
            "breast cancer": datasets.load_breast_cancer,
            "wine": datasets.load_wine,
        }[name]
        x, y = load(return_X_y=True)
    x = x / 16 if name == "digits" else StandardScaler().fit_transform(x)
    return x.astype(np.float32), y.astype(np.int64)


def _texts() -> tuple[np.ndarray, np.ndarray]:
    """Return the sentences as directions of their words' TF-IDF weights (latent semantic analysis)."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    lines = (Path(os.environ["WHENCE_DATA"]) / "sst2" / "train.tsv").read_text().splitlines()
    sentences, labels = zip(*(line.rsplit("\t", 1) for line in lines), strict=True)
    words = TfidfVectorizer(max_features=N_WORDS, sublinear_tf=True, ngram_range=(1, 2))
    x = TruncatedSVD(N_DIRECTIONS, random_state=0).fit_transform(words.fit_transform(sentences))
    return (x / x.std(axis=0)).astype(np.float32), np.asarray(labels, dtype=np.int64)


def trained(kind: str, x: np.ndarray, y: np.ndarray, seed: int, epochs: int) -> Any:
    """Return a torch module trained with Adam: ``linear``, ``MLP`` or, for digits, ``CNN``."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    n_classes = int(y.max()) + 1
    if kind == "CNN":
        layers = [
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 16, 3),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3),
            nn.ReLU(),
        ]
        layers += [nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, n_classes)]
    elif kind == "MLP":
        layers = [nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, n_classes)]
    else:
        layers = [nn.Linear(x.shape[1], n_classes)]
    model = nn.Sequential(*layers)
    loss, optimiser = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(32):
            optimiser.zero_grad()
            loss(model(inputs[rows]), labels[rows]).backward()
            optimiser.step()
    return model.eval()


def logits_of(model: Any, x: np.ndarray) -> np.ndarray:
    """Return what the module says of some samples, in float64."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(x)).double().numpy()
