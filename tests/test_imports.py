"""The house rules that a reader relies on, read off the source."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lenet_jax"
CORE = {
    *("ops", "compiling", "model", "losses", "optimizers", "augment", "metrics"),
    *("step", "epoch", "population"),
}
# Imports run downwards only: a module may import those listed before it.
FLOORS = [
    {"ops", "losses", "optimizers", "metrics", "augment", "cli", "events"},
    {"model", "compiling", "interchange"},
    {"step"},
    {"epoch"},
    {"population", "data", "programs"},
    {"settings"},
    {"workdir", "checkpoint", "figures"},
    {"trained"},
    {"draw"},
    {"train", "sweep", "evaluate", "predict", "export"},
    {"report"},
]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
FOR_CORE = {
    *(
        "collections",
        "dataclasses",
        "functools",
        "inspect",
        "itertools",
        "math",
        "operator",
        "typing",
        "warnings",
    ),
    *("flax", "jax", "numpy", "optax", "lenet_jax"),
}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(path: Path) -> set[str]:
    """Dotted names of what a file imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    used = {
        name.split(".")[1]
        for name in imports(PACKAGE / f"{module}.py")
        if name.startswith("lenet_jax.")
    }
    above = {name for name in used & FLOOR.keys() if FLOOR[name] >= FLOOR[module]}
    assert not above


@pytest.mark.parametrize("module", sorted(CORE & set(MODULES)))
def test_the_core_knows_no_flag_file_or_clock_and_prints_nothing(module):
    source = (PACKAGE / f"{module}.py").read_text()
    assert {name.split(".")[0] for name in imports(PACKAGE / f"{module}.py")} <= FOR_CORE
    called = {
        node.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"print", "open", "input"}


def test_each_module_has_its_test_file():
    tests = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert set(MODULES) - tests == set()


def test_no_pickle_anywhere():
    for path in PACKAGE.rglob("*.py"):
        assert "pickle" not in {name.split(".")[0] for name in imports(path)}
        assert "allow_pickle=True" not in path.read_text()
