"""What people add is found by itself; the page that says how is run."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import whence
from whence._registry import Registry
from whence.answers.views import VIEWS, view_of
from whence.data.base import open_dataset
from whence.ihvp import SOLVERS
from whence.models.adapter import ADAPTERS

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "extend.md"

#: What a person would look at next: the page's model explained, by its dataset and by its solver.
AFTERWARDS = """
import sys
explanation = lje.explain([x])
assert np.isfinite(explanation.values).all()
folder = pathlib.Path(sys.argv[1])
np.savez(folder / "0.npz", x=x[:1], y=y[:1])
np.savez(folder / "1.npz", x=x[1:], y=y[1:])
whole = whence.RepresenterPointLJE(model, (x, y), whence.ExactIHVPFactory())
parts = whence.RepresenterPointLJE(model, folder, whence.ExactIHVPFactory())
np.testing.assert_array_equal(parts.influences([x]), whole.influences([x]))
assert "diagonal" in SOLVERS
from whence.layers.names import loss_named
loss = loss_named("my framework", "PseudoHuber").made({})
assert np.allclose(loss.value(np.zeros((1, 1)), np.zeros((1, 1))), 1)
assert lje.explain([x]).view("strongest") == dict(enumerate(lje.explain([x]).ids[:, 0].tolist()))
print("done")
"""


def test_the_page_on_adding_things_runs(tmp_path):
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    command = [sys.executable, "-c", code + AFTERWARDS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


def test_what_is_there_is_found():
    assert {"cg", "exact", "kronecker", "lissa", "woodbury"} <= set(SOLVERS)
    assert len([name for name in ADAPTERS if name.startswith("whence.")]) == 3


def test_a_subclass_of_sharded_is_a_dataset():
    class Mine(whence.Sharded):
        pass

    mine = Mine(lambda number: [(np.full((3, 2), number), np.zeros(3))], 2, counts=[3, 3])
    assert [batch.inputs[0, 0] for batch in open_dataset(mine)] == [0, 1]


def test_a_name_is_given_once():
    tools = Registry("tool")

    @tools.register("hammer")
    def hit(): ...

    tools.register("hammer")(hit)  # as when a module is imported again
    with pytest.raises(whence.WhenceError, match=r"tool 'hammer': expected a name that no other one has"):

        @tools.register("hammer")
        def other(): ...


@pytest.mark.parametrize("served", [(), (3,)])
def test_an_adapter_says_what_it_serves(served):
    with pytest.raises(whence.WhenceError, match="classes of models, or the beginnings"):
        whence.register_adapter(*served)


def test_a_dataset_kind_says_what_it_accepts():
    with pytest.raises(whence.WhenceError, match="a function that says whether"):
        whence.register_dataset("a thing", True)


def test_views_are_found_by_name():
    views = [name for name in VIEWS if name.startswith("explanation:")]
    assert {"explanation:html", "explanation:plot", "explanation:notebook"} <= set(views)
    with pytest.raises(whence.WhenceError, match=r"view: expected one of .*plot.*, got 'sketch'"):
        view_of("explanation", "sketch")
