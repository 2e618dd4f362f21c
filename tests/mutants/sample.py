"""Faults drawn at random over the mathematics: ``python tests/mutants/sample.py [--places N] [FILE ...]``.

The mutations are cosmic-ray's, by ``cosmic-ray.toml`` beside this file. Places in the code are drawn, with
a seed, and at each one of its mutations, so that a place counts once however many mutations it has. Which
tests run a place is measured first; then each fault is tried on these, in a fork (see ``engine``). What
survives is tried once more in a process of its own, on tests that a fork cannot run.

The run fails if a survivor is not in ``survivors.md``, which says of each why no test notices it, or if
fewer than 95 % are killed of those that change a result: faults that leave every result as it was are
not counted, as is usual (Jia, Harman: An Analysis and Survey of the Development of Mutation Testing, 2011).
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from engine import ROOT, SOURCE, Fault, Verdict, fork, judge, run_items, with_tests

HERE = Path(__file__).parent
SURVIVORS = HERE / "survivors.md"
#: A fault is tried on so many tests first, and so many seconds of them; what survives, on all others.
MOST_TESTS, MOST_SECONDS = 150, 12.0
#: The kinds in ``survivors.md`` of faults that leave every result as it was.
EQUIVALENT = ("same", "speed")


class Place(NamedTuple):
    """Where a mutation changes something."""

    file: str
    start: tuple[int, int]
    end: tuple[int, int]


def modules(config: dict[str, Any]) -> Iterator[Path]:
    """Yield the files that faults are put into."""
    for name in config["cosmic-ray"]["module-path"]:
        path = ROOT / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the spans of annotations: they are not run."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        parts = [getattr(node, name, None) for name in ("annotation", "returns")]
        for part in parts:
            if isinstance(part, ast.expr):
                end = (part.end_lineno or 0, part.end_col_offset or 0)
                spans.append(((part.lineno, part.col_offset), end))
    return spans


def mutations(config: dict[str, Any], files: list[Path]) -> dict[Place, list[tuple[str, int]]]:
    """Return what can be done at each place: operators and their occurrences."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    out = config["cosmic-ray"]["filters"]["operators-filter"]["exclude-operators"]
    names = [n for n in operator_names() if not any(re.fullmatch(pattern, n) for pattern in out)]
    skip = re.compile(config["sample"]["skip-lines"])
    found: dict[Place, list[tuple[str, int]]] = defaultdict(list)
    for path in files:
        source = path.read_text(encoding="utf-8")
        lines, spans = source.splitlines(), _annotations(source)
        nodes = list(ast_nodes(get_ast(source)))
        for name in names:
            operator = get_operator(name)()
            positions = (span for node in nodes for span in operator.mutation_positions(node))
            for occurrence, (start, end) in enumerate(positions):
                if any(first <= start and end <= last for first, last in spans):
                    continue
                if skip.search(lines[start[0] - 1]):
                    continue
                place = Place(str(path.relative_to(SOURCE)), tuple(start), tuple(end))
                found[place].append((name, occurrence))
    return found


def draw(places: list[Place], every: dict[Place, list[Any]], seed: int) -> list[tuple[Place, Any, Any]]:
    """Return places in a random order, and a mutation of each; an edit elsewhere changes neither."""
    keyed, seen = [], Counter()
    for place in places:
        lines = (SOURCE / place.file).read_text(encoding="utf-8").splitlines()
        text = f"{place.file} {lines[place.start[0] - 1].strip()} {place.end[1] - place.start[1]}"
        seen[text] += 1
        rng = random.Random(f"{seed} {text} {seen[text]}")
        keyed.append((rng.random(), place, *rng.choice(every[place])))
    return [entry[1:] for entry in sorted(keyed)]


def mutate(place: Place, operator: str, occurrence: int) -> tuple[str, str]:
    """Return the faulty source, and what changed as one line."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (SOURCE / place.file).read_text(encoding="utf-8")
    changed = mutate_code(source, get_operator(operator)(), occurrence)
    diff = difflib.ndiff(source.splitlines(), changed.splitlines())
    before, after = [], []
    for line in diff:
        if line.startswith("- "):
            before.append(line[2:].strip())
        elif line.startswith("+ "):
            after.append(line[2:].strip())
    return changed, f"{' '.join(before)} -> {' '.join(after)}"


# ------------------------------------------------------------------------- which tests run what


def measure(items: list[Any], files: list[Path], jobs: int, folder: Path, merged: dict[str, Any]) -> None:
    """Run all tests; add the seconds of each that passes, and which tests run each line."""
    running = []
    for number in range(jobs):
        mine = list(range(number, len(items), jobs))
        target = folder / f"map-{number}.json"
        running.append((*fork(lambda m=mine, t=target: _measure(items, m, files, t), 3600), target))
    for process, pipe, target in running:
        said = b"".join(iter(lambda pipe=pipe: os.read(pipe, 4096), b"")).decode()
        os.waitpid(process, 0)
        if said != "measured":
            raise SystemExit(f"The tests could not be measured: {said}")
        part = json.loads(target.read_text())
        merged["seconds"].update(part["seconds"])
        for key, tests in part["lines"].items():
            merged["lines"].setdefault(key, []).extend(tests)


def _measure(items: list[Any], mine: list[int], files: list[Path], target: Path) -> str:
    import coverage

    cover = coverage.Coverage(data_file=None, include=[str(f) for f in files], config_file=False)
    cover.start()
    seconds = {}
    for number in mine:
        cover.switch_context(items[number].nodeid)
        start = time.process_time()
        if run_items([items[number]]) is None:
            seconds[items[number].nodeid] = time.process_time() - start
    cover.stop()
    data = cover.get_data()
    lines = {}
    for file in data.measured_files():
        for line, contexts in data.contexts_by_lineno(file).items():
            tests = [name for name in contexts if name in seconds]
            lines[f"{Path(file).relative_to(SOURCE)}:{line}"] = tests
    target.write_text(json.dumps({"seconds": seconds, "lines": lines}))
    return "measured"


def tests_of(place: Place, measured: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the tests that run a place to try first, those of each file in turn, and all others."""
    wanted = range(place.start[0], place.end[0] + 1)
    names = {n for line in wanted for n in measured["lines"].get(f"{place.file}:{line}", [])}
    if not names and _is_outside_functions(place):
        keys = [key for key in measured["lines"] if key.startswith(f"{place.file}:")]
        names = {n for key in keys for n in measured["lines"][key]}
    by_file = defaultdict(list)
    for name in sorted(names, key=lambda n: (measured["seconds"][n], n)):
        by_file[name.split("[")[0]].append(name)
    order, total = [], 0.0
    for turn in range(max(map(len, by_file.values()), default=0)):
        for group in sorted(by_file.values(), key=lambda g: measured["seconds"][g[0]]):
            if turn < len(group):
                order.append(group[turn])
    first = []
    for name in order[:MOST_TESTS]:
        total += measured["seconds"][name]
        if total < MOST_SECONDS:
            first.append(name)
    return first, order[len(first) :]


def _is_outside_functions(place: Place) -> bool:
    tree = ast.parse((SOURCE / place.file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            last = node.end_lineno or 0
            if node.body[0].lineno <= place.start[0] <= last:
                return False
    return True


# ---------------------------------------------------------------------------------------- the run


def interval(killed: int, total: int) -> tuple[float, float]:
    """Return Wilson's interval for a share, at 95 %."""
    z, share = 1.96, killed / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return middle - half, min(1.0, middle + half)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("files", nargs="*", help="parts of the names of the files to draw from")
    parser.add_argument("--places", type=int, help="how many to draw")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--keep", type=Path, help="a folder to go on from: what was measured, and what was killed, counts"
    )
    given = parser.parse_args()
    config = tomllib.loads((HERE / "cosmic-ray.toml").read_text(encoding="utf-8"))
    settings = config["sample"]
    folder = given.keep or ROOT / ".cache" / "mutants"
    folder.mkdir(parents=True, exist_ok=True)
    if given.keep is None:
        (folder / "verdicts.txt").unlink(missing_ok=True)
    files = list(modules(config))

    def work(items: list[Any]) -> int:
        start = time.monotonic()
        kept = folder / "measured.json"
        sources = hashlib.blake2b(b"".join(path.read_bytes() for path in files)).hexdigest()
        measured: dict[str, Any] = {"seconds": {}, "lines": {}, "sources": sources}
        if given.keep is not None and kept.is_file():
            before = json.loads(kept.read_text())
            measured = before if before["sources"] == sources else measured  # lines move
        new = [item for item in items if item.nodeid not in measured["seconds"]]
        if new:
            measure(new, files, given.jobs, folder, measured)
            kept.write_text(json.dumps(measured))
            print(f"{len(new)} tests measured in {time.monotonic() - start:.0f} s", flush=True)
        by_name = {item.nodeid: item for item in items}
        every = mutations(config, files)
        wanted = given.files or [""]
        chosen = [place for place in sorted(every) if any(part in place.file for part in wanted)]
        count = min(given.places or settings["places"], len(chosen))
        seed = settings["seed"] if given.seed is None else given.seed
        drawn = draw(chosen, every, seed)[:count]
        total = sum(len(every[place]) for place in chosen)
        print(f"{count} of {len(chosen)} places, at which there are {total} mutations", flush=True)

        def faults() -> Iterator[Fault]:
            for place, operator, occurrence in drawn:
                source, change = mutate(place, operator, occurrence)
                first, others = (
                    [name for name in names if name in by_name] for names in tests_of(place, measured)
                )
                seconds = sum(measured["seconds"][name] for name in (*first, *others))
                key = f"{place.file}:{place.start[0]}: {change}"
                tests, more = ([by_name[name] for name in names] for names in (first, others))
                yield Fault(key, place.file, source, tests, seconds, more)

        return report(faults(), settings, given.jobs, folder, start)

    every_case = "not slow or pairwise"  # though the suite takes a few of each product
    return with_tests(settings["tests"], work, "-k", settings["select"], "-m", every_case)


def listed() -> dict[str, str]:
    """Return the kind of every survivor that is listed, by its file and change."""
    lines = SURVIVORS.read_text(encoding="utf-8").splitlines()
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines if line.startswith("| ")]
    return {f"{row[1]}: {row[2]}".replace("\\|", "|"): row[0] for row in rows}


def short(fault: Fault) -> str:
    """Return a fault's file and change, without the line, as it is listed."""
    return f"{fault.file}: {fault.name.split(': ', 1)[1]}"


def apart(fault: Fault, tests: list[str]) -> Verdict:
    """Try a fault in a process of its own, on a copy of the library."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(SOURCE, Path(folder) / "whence")
        (Path(folder) / "whence" / fault.file).write_text(str(fault.source), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
        run = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": folder}, capture_output=True, text=True
        )
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
    how = "survived" if run.returncode == 0 else failed[1] if failed else "it cannot be imported"
    return Verdict(fault, how, time.monotonic() - start)


def report(faults: Iterator[Fault], settings: dict[str, Any], jobs: int, folder: Path, start: float) -> int:
    """Try the faults, print what survives, and return the exit code."""
    file = folder / "verdicts.txt"
    before = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    killed_before = {line.split("\t", 1)[1]: line.split("\t", 1)[0] for line in before if "\t" in line}
    killed_before = {name: how for name, how in killed_before.items() if how != "survived"}
    kinds = listed()
    verdicts: dict[str, Verdict] = {}
    with open(file, "a", encoding="utf-8") as log:

        def take(some: Iterable[Verdict]) -> None:
            for verdict in some:
                print(f"{verdict.how}\t{verdict.fault.name}", file=log, flush=True)
                verdicts[verdict.fault.name] = verdict

        todo = []
        for fault in faults:
            if fault.name in killed_before:
                verdicts[fault.name] = Verdict(fault, killed_before[fault.name], 0.0)
            else:
                todo.append(fault)
        take(judge(todo, jobs))
        alive = [verdict.fault for verdict in verdicts.values() if verdict.survived]
        take(judge([replace(fault, tests=fault.more) for fault in alive if fault.more], jobs))
        alive = [fault for fault in alive if verdicts[fault.name].survived]
        unexplained = [fault for fault in alive if kinds.get(short(fault)) not in EQUIVALENT]
        with ThreadPoolExecutor(jobs) as pool:
            take(pool.map(lambda fault: apart(fault, settings["tests-apart"]), unexplained))
    alive = sorted((v.fault for v in verdicts.values() if v.survived), key=lambda fault: fault.name)
    for fault in alive:
        print(f"{kinds.get(short(fault), 'NEW'):9s} {fault.name}", flush=True)
    drawn, survived = len(verdicts), len(alive)
    n_equivalent = sum(kinds.get(short(fault)) in EQUIVALENT for fault in alive)
    n_new = sum(short(fault) not in kinds for fault in alive)
    killed, total = drawn - survived, drawn - n_equivalent
    low, high = interval(killed, total)
    print(
        f"{killed} of {drawn} killed, {n_equivalent} change no result: {killed / total:.1%} of the others "
        f"(of all that there are, with 95 % confidence, {low:.1%} to {high:.1%}). "
        f"{n_new} survivors not in {SURVIVORS.name}; {time.monotonic() - start:.0f} s"
    )
    return 1 if n_new or killed < settings["least-killed"] * total else 0


if __name__ == "__main__":
    sys.exit(main())
