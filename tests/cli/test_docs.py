"""Every command line that README and documentation show is run, on files of the names that they use."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from whence.cli import main
from whence.cli.app import application

ROOT = Path(__file__).parents[2]
SHELL_BLOCK = re.compile(
    r"^```(?:sh|bash|shell|console)[^\S\n]*\n(.*?)^```[^\S\n]*$", re.MULTILINE | re.DOTALL
)
INLINE = re.compile(r"(?<!`)`(whence [^`]+)`(?!`)")
OPERATORS = {"&&", "||", ";", "|", ">", ">>", "<", "&"}


def pages():
    """Yield ``(name, text)`` of the README and of every page, the prose of notebooks included."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        yield str(path.relative_to(ROOT)), "\n\n".join(prose)


def commands_of(text):
    """Return the arguments of every ``whence`` on the lines of shell blocks, whatever stands around it."""
    found = []
    for block in SHELL_BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
            words.whitespace_split = True
            parts: list[list[str]] = [[]]
            for word in words:
                if word in OPERATORS:
                    parts.append([])
                else:
                    parts[-1].append(word)
            found += [part[1:] for part in parts if part and Path(part[0]).name == "whence"]
    return found


COMMANDS = {name: commands_of(text) for name, text in pages()}
INLINES = [(name, shlex.split(span)[1:]) for name, text in pages() for span in INLINE.findall(text)]


def test_command_lines_are_found():
    lines = (
        "python -m venv .venv && .venv/bin/whence demo\nwhence a \\\n  b > c\n$ whence d | wc\n# whence e\n"
    )
    block = f"Text.\n\n```sh\n{lines}```\n\n```text\nwhence f\n```\n"
    assert commands_of(block) == [["demo"], ["a", "b"], ["d"]]
    assert ["demo"] in COMMANDS["README.md"]
    assert len(COMMANDS["docs/howto/command-line.md"]) >= 12


def test_commands_and_options_in_the_prose_exist():
    known = typer.main.get_command(application({"debug": False})).commands
    assert INLINES
    for page, (command, *words) in INLINES:
        if command.startswith("-"):
            continue
        assert command in known, f"{page}: whence {command}"
        options = {name for parameter in known[command].params for name in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("-")} <= options, (
            f"{page}: whence {command} {words}"
        )


@pytest.fixture(scope="module")
def shown_files(tmp_path_factory):
    """Everything that the pages name: a page that names another file has to add it here."""
    pytest.importorskip("keras")
    torch = pytest.importorskip("torch")
    xgboost = pytest.importorskip("xgboost")
    images = pytest.importorskip("PIL.Image")
    import joblib
    import keras
    import pandas as pd
    from sklearn.datasets import load_breast_cancer, load_digits
    from sklearn.linear_model import LogisticRegression

    import whence

    folder = tmp_path_factory.mktemp("shown")
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)[:320]
    y = y[:320]
    np.savez(folder / "train.npz", x=x[:300], y=y[:300])
    np.savez(folder / "test.npz", x=x[300:], y=y[300:])
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        place = folder / (f"photos/{label}" if i < 300 else "new")
        place.mkdir(parents=True, exist_ok=True)
        name = f"{i}.png" if i < 300 else f"{1200 + i}.png"
        images.fromarray((image[:, :, 0] * 255).astype(np.uint8)).save(place / name)

    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    net.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.fit(x[:300], y[:300], epochs=10, verbose=0)
    net.save(folder / "model.keras")
    seen = keras.Model(net.inputs, net.layers[-2].output)
    np.savez(folder / "features.npz", x=seen.predict(x[300:], verbose=0))
    whence.RepresenterPointLJE(
        whence.InfluenceModel(net), [(x[:300], y[:300])], whence.ExactIHVPFactory(),
        index_path=folder / "python.index", progress=False,
    )  # fmt: skip

    (folder / "nets.py").write_text(
        "import torch\n\n\ndef digits():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(torch.tensor(x[:300])), torch.tensor(y[:300])).backward()
        optimizer.step()
    torch.save(module.state_dict(), folder / "digits.pt")

    table = load_breast_cancer(as_frame=True)
    frame = table.data.assign(label=table.target.map({0: "malignant", 1: "benign"}))
    frame.insert(0, "patient", [f"P{i:03d}" for i in range(len(frame))])
    frame[:400].to_csv(folder / "patients.csv", index=False)
    frame[400:420].to_csv(folder / "new.csv", index=False)
    fitted = LogisticRegression(max_iter=5000).fit(table.data[:400], frame["label"][:400])
    joblib.dump(fitted, folder / "model.joblib")
    matrix = xgboost.DMatrix(table.data[:400], (frame["label"][:400] == "malignant").astype(int))
    xgboost.train({"objective": "binary:logistic", "max_depth": 3}, matrix, 10).save_model(
        folder / "model.ubj"
    )
    assert isinstance(frame, pd.DataFrame)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras, when it saves
@pytest.mark.parametrize("page", [name for name, commands in COMMANDS.items() if commands])
def test_what_a_page_shows_runs(page, shown_files, tmp_path, monkeypatch, capsys):
    """In a folder of its own for each page, in the order in which they stand there."""
    for path in shown_files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    for arguments in COMMANDS[page]:
        code = main(arguments)
        shown = capsys.readouterr()
        assert code == 0, f"whence {' '.join(arguments)}\n{shown.err}"
        assert shown.out
        assert "whence: note" not in shown.err, shown.err
        if "--report" in arguments:
            assert Path(arguments[arguments.index("--report") + 1]).stat().st_size > 1000
