"""The house rules that a reader relies on, read off the source."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "lenet_jax"
# What each folder may import of the others: no import runs back up.
BELOW = {
    "core": set(),
    "data": {"core", "files"},
    "interop": {"core", "data", "files"},
    "viz": {"core", "files"},
    "pictures": set(),
    "run": {"core", "data", "interop", "pictures", "cli", "files"},
}
# For lenet_jax.core, beside the standard library's tools for writing functions.
FOR_CORE = {"flax", "jax", "numpy", "optax", "lenet_jax"} | {
    *("collections", "dataclasses", "functools", "inspect", "itertools", "math", "operator"),
    *("typing", "warnings"),
}
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__"
)


def imports(path: Path) -> set[str]:
    """Dotted names of what a file imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", [name for name in MODULES if "/" in name])
def test_imports_run_downwards(module):
    folder = module.split("/")[0]
    of_ours = {name for name in imports(PACKAGE / f"{module}.py") if name.startswith("lenet_jax.")}
    assert {name.split(".")[1] for name in of_ours} <= BELOW[folder] | {folder}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("core/")])
def test_the_core_knows_no_flag_file_or_clock_and_prints_nothing(module):
    source = (PACKAGE / f"{module}.py").read_text()
    assert {name.split(".")[0] for name in imports(PACKAGE / f"{module}.py")} <= FOR_CORE
    called = {
        node.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"print", "open", "input"}


@pytest.mark.parametrize("module", MODULES)
def test_each_module_has_its_test_file(module):
    path = Path(module)
    assert (TESTS / path.parent / f"test_{path.name}.py").exists()


def test_no_pickle_anywhere():
    for path in PACKAGE.rglob("*.py"):
        assert "pickle" not in {name.split(".")[0] for name in imports(path)}
        assert "allow_pickle=True" not in path.read_text()
