"""Each fault of ``run`` has its place in the code: whoever rewrites that place mends the fault too."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # in importlib mode too

import run


@pytest.mark.parametrize("mutant", run.MUTANTS, ids=lambda mutant: mutant.name)
def test_its_place_is_there_once(mutant):
    source = (run.SOURCE / mutant.file).read_text(encoding="utf-8")
    assert source.count(mutant.before) == 1
    compile(source.replace(mutant.before, mutant.after), mutant.file, "exec")
