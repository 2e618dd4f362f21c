"""An index that version 0.1.0 wrote opens, with the answers that 0.1.0 gave."""

import shutil
from pathlib import Path

import numpy as np

import whence

STORED = Path(__file__).parent / "data" / "v0_1_0"


def test_an_index_of_0_1_0_opens_with_its_answers(tmp_path):
    shutil.copytree(STORED / "train.index", tmp_path / "train.index")
    answers = np.load(STORED / "answers.npz")
    lje = whence.load_index(tmp_path / "train.index", progress=False)
    largest = np.abs(answers["values"]).max()  # 0.1.0 summed gradients in float32
    np.testing.assert_allclose(lje.influences(answers["x"][:3]), answers["values"], atol=1e-5 * largest)
    explanation = lje.explain(answers["x"][:3], k=1)
    assert explanation.ids[:, 0].tolist() == [f"s{row}" for row in answers["values"].argmax(axis=1)]
