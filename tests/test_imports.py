"""Imports run one way, and importing the library brings in no framework."""

import ast
import subprocess
import sys
from pathlib import Path

import whence

ROOT = Path(whence.__file__).parent

#: From the ground up: a module imports from its own room and from those before it.
ORDER = [
    "_errors",
    "_version",
    "_registry",
    "_paths",
    "_files",
    "progress",
    "arrays",
    "engine",
    "layers",
    "ihvp",
    "data",
    "index",
    "search",
    "indexing",
    "models",
    "methods",
    "answers",
    "label_errors",
    "report",
    "evaluation",
    "demo",
    "cli",
    "whence",
]
#: The mathematics is written once, against the array API standard.
MATHEMATICS = ["arrays", "engine", "layers", "ihvp", "search", "methods"]
FRAMEWORKS = {"jax", "keras", "lightgbm", "sklearn", "tensorflow", "torch", "xgboost"}
CORE = {"array_api_compat", "numpy", "scipy"}
#: Modules that are themselves imported only when called for, and what they may import at once.
ON_DEMAND = {
    "whence.cli.app": {"typer"},
    "whence.cli.options": {"typer"},
    "whence.cli.show": {"rich"},
    "whence.cli.terminal": {"rich"},
    "whence.data._torch_results": {"torch"},
    "whence.data._torch_samplers": {"torch"},
    "whence.label_errors": {"sklearn"},
}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(("whence", *parts))


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def unit_of(module):
    return "whence" if module == "whence" else module.split(".")[1]


def imports_of(module, path):
    """Yield ``(imported, deferred)``: whole names, and whether only a call of a function imports them."""

    def walk(node, deferred):
        # What only a type checker imports is bound by the order too.
        deferred = deferred or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        if isinstance(node, ast.Import):
            yield from ((alias.name, deferred) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in MODULES else node.module), deferred
        deferred = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, deferred)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


IMPORTS = {module: list(imports_of(module, path)) for module, path in MODULES.items()}


def test_the_walk_sees_what_it_should():
    assert ("whence.arrays.base", False) in IMPORTS["whence.layers.losses"]
    assert ("whence.layers.linear_layer", False) in IMPORTS["whence.ihvp.exact"]
    assert any(deferred for imports in IMPORTS.values() for _, deferred in imports)
    assert unit_of("whence.data.torch") == "data"
    assert unit_of("whence.models.keras.adapter") == "models"
    assert unit_of("whence.arrays.base") == "arrays"
    assert unit_of("whence.label_errors") == "label_errors"


def test_every_module_has_a_place():
    assert not {unit_of(module) for module in MODULES} - set(ORDER)


def test_imports_run_one_way():
    upward = [
        f"{module} imports {imported}"
        for module, imports in IMPORTS.items()
        for imported, _ in imports
        if imported.split(".")[0] == "whence"
        and ORDER.index(unit_of(imported)) > ORDER.index(unit_of(module))
    ]
    assert not upward


def test_there_is_no_cycle():
    # What a call of a function imports, or a type checker, counts too.
    graph = {
        module: {name for name, _ in imports if name in MODULES} for module, imports in IMPORTS.items()
    }
    graph["whence.data.base"].discard("whence.data.readers")  # what reads batches elsewhere, asked for late
    while free := [module for module, needed in graph.items() if not needed]:
        for module in free:
            del graph[module]
        for needed in graph.values():
            needed.difference_update(free)
    assert not graph, f"cycle among {sorted(graph)}"


def test_nothing_beyond_the_core_is_imported_with_a_module():
    beyond = []
    for module, imports in IMPORTS.items():
        allowed = CORE | {"whence"} | set(sys.stdlib_module_names) | ON_DEMAND.get(module, set())
        at_once = {name for name, deferred in imports if not deferred}
        beyond += [f"{module} imports {name}" for name in at_once if name.split(".")[0] not in allowed]
        on_demand = at_once & ON_DEMAND.keys()
        beyond += [f"{module} imports {name}" for name in on_demand if not ON_DEMAND[name] <= allowed]
    assert not beyond


def test_the_mathematics_imports_no_framework_at_all():
    modules = [module for module in MODULES if unit_of(module) in MATHEMATICS]
    assert modules
    imported = {(module, name.split(".")[0]) for module in modules for name, _ in IMPORTS[module]}
    assert not [pair for pair in imported if pair[1] in FRAMEWORKS]


def test_importing_whence_brings_in_no_framework():
    code = "import sys, whence; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"whence", "numpy", "scipy"} <= loaded
    optional = {"IPython", "jinja2", "matplotlib", "pandas", "PIL", "rich", "tqdm", "typer"}
    assert not loaded & (FRAMEWORKS | optional)
