"""Ctrl-C while an index is made: a word, exit code 130, and a folder from which it goes on."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import whence

pytestmark = pytest.mark.slow  # each starts the command several times

N_SAMPLES, BATCH, SHARD_ROWS = 600, 10, 20

#: A step that takes its time and counts what passes through it, and the command with small shards.
SLOW = """
import os, time
from sklearn.base import BaseEstimator, TransformerMixin

class Slow(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        return self
    def __sklearn_is_fitted__(self):
        return True
    def transform(self, X):
        time.sleep(float(os.environ.get("SLOW", "0")))
        with open("seen", "a") as file:
            file.write(f"{len(X)}\\n")
        return X
"""
PROGRAM = f"""
import sys
from whence.index import shard
shard.SHARD_BYTES = {SHARD_ROWS} * 4 * 8
from whence.cli import main
raise SystemExit(main())
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command, in a folder with a slow model and its training set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow_step.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_step", raising=False)
    from slow_step import Slow

    rng = np.random.default_rng(0)
    x = rng.normal(size=(N_SAMPLES, 3))
    y = (x[:, 0] + rng.normal(size=N_SAMPLES) > 0).astype(int)
    joblib.dump(make_pipeline(Slow(), LogisticRegression()).fit(x, y), "slow.joblib")
    pd.DataFrame(x, columns=list("abc")).assign(y=y).to_csv("train.csv", index=False)
    (tmp_path / "seen").unlink()
    return [sys.executable, "-c", PROGRAM, "index", "slow.joblib", "train.csv", "--trust-model",
            "--batch-size", str(BATCH), "--to"]  # fmt: skip


def n_seen(folder):
    file = folder / "seen"
    return sum(map(int, file.read_text().split())) if file.exists() else 0


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("lock", "command.json")
    }


def wait_until(condition, process):
    for _ in range(600):
        if condition():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    raise AssertionError("it never came so far")


def test_ctrl_c_leaves_an_index_that_goes_on(command, tmp_path):
    whole = subprocess.run([*command, "whole", "-q"], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    n_whole = n_seen(tmp_path)
    (tmp_path / "seen").unlink()

    slow = {**os.environ, "SLOW": "0.1"}
    process = subprocess.Popen(
        [*command, "cut"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=slow
    )
    wait_until(lambda: len(list((tmp_path / "cut").glob("shard-*.json"))) >= 3, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "Stopped. What is complete is kept in cut: run the same again to go on."
    assert "Traceback" not in err
    n_first = n_seen(tmp_path)
    assert 3 * SHARD_ROWS <= n_first < n_whole
    with pytest.raises(whence.WhenceError, match="not complete"):
        whence.load_index(tmp_path / "cut")

    (tmp_path / "seen").unlink()
    again = subprocess.run([*command, "cut"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"Going on with {N_SAMPLES} samples in cut" in again.stderr
    # What was stored does not go through the model again, but for the first batch and the one that is
    # looked at before.
    assert n_seen(tmp_path) <= n_whole - 3 * SHARD_ROWS + 2 * BATCH
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_an_index_that_is_not_complete_says_what_to_do(command, tmp_path):
    slow = {**os.environ, "SLOW": "0.1"}
    process = subprocess.Popen(
        [*command, "cut", "-q"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=slow
    )
    wait_until(lambda: list((tmp_path / "cut").glob("shard-*.json")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert err == "Stopped. What is complete is kept in cut: run the same again to go on.\n"
    program = [sys.executable, "-c", PROGRAM, "suspects", "cut"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "not complete" in done.stderr


def test_a_person_sees_how_much_is_left(command, tmp_path):
    """On a terminal there is a bar, with what is being done, how much of it, and how long it will take."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    slow = {**os.environ, "SLOW": "0.03"}
    process = subprocess.Popen(
        [*command, "seen.index"], stdout=subprocess.DEVNULL, stderr=follower, env=slow
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(leader)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "features of the training set" in text
    assert f"/{N_SAMPLES // BATCH} [" in text
    assert "<00:0" in text
