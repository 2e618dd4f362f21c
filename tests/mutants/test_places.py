"""Each fault of ``run`` has its place in the code: whoever rewrites that place mends the fault too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # in importlib mode too

import run


def test_every_fault_has_its_place_and_can_be_compiled():
    lost = []
    for mutant in run.MUTANTS:
        source = (run.SOURCE / mutant.file).read_text(encoding="utf-8")
        if source.count(mutant.before) == 1:
            compile(source.replace(mutant.before, mutant.after), mutant.file, "exec")
        else:
            lost.append(mutant.name)
    assert not lost
