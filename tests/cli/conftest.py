"""Files of every kind that the commands take, small, and the commands run in this process."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("PIL")
import cli_files

from whence.cli import main


@pytest.fixture(scope="session")
def made_files(tmp_path_factory):
    """The folder of files; tests that change one copy it."""
    folder = tmp_path_factory.mktemp("files")
    cli_files.make(folder)
    return folder


@pytest.fixture
def files(made_files, tmp_path, monkeypatch):
    """The current folder, empty; the files are named by absolute paths through ``files / name``."""
    monkeypatch.chdir(tmp_path)
    return made_files


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer replaces it
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"))
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def whence_(capsys):
    """Run a command and return its exit code, its output and its messages."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def answer(whence_):
    """Run a command with ``--json``, which must succeed, and return what it says."""

    def run(*arguments):
        done = whence_(*arguments, "--json", "--quiet")
        assert done.code == 0, done.err
        assert done.err == ""
        assert done.out.count("\n") == 1
        return json.loads(done.out)

    return run


@pytest.fixture
def index(answer, files):
    """The folder of an index of ``train.csv`` by the pipeline in ``model.joblib``."""
    answer("index", files / "model.joblib", files / "train.csv", "--to", "an.index", "--id", "animal",
           "--trust-model")  # fmt: skip
    return Path("an.index")


@pytest.fixture
def nets(tmp_path, files, monkeypatch):
    """A module in the current folder with functions that build PyTorch models, and a state dict."""
    torch = pytest.importorskip("torch")
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    (tmp_path / "my_nets.py").write_text(
        "import torch\n\n"
        "def small():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(5), torch.nn.Tanh(),\n"
        "                               torch.nn.Linear(5, 3))\n\n"
        "def one():\n    torch.manual_seed(1)\n    return torch.nn.Linear(4, 1)\n\n"
        "def drawn():\n    return torch.nn.Linear(4, 3)\n\n"
        "def broken():\n    raise RuntimeError('no such\\nlayer')\n\n"
        "def wide():\n    return torch.nn.Linear(9, 3)\n\n"
        "a_number = 3\n\n"
        "def a_text():\n    return 'text'\n"
    )
    x, y, _, _ = cli_files.problem()
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
    )
    optimiser = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(40):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(y)).backward()
        optimiser.step()
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, "small.pt")
    return net
