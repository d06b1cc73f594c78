"""The reference that pdoc makes of the docstrings: complete, and built without a warning."""

import ast
import inspect
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pdoc.doc
import pytest

import lenet_jax

ROOT = Path(__file__).parents[1]
NUMBERS = {"key", "seed", "epoch", "epoch_key", "number", "start", "stop"}  # of no axes
NUMBERS |= {"learning_rate", "clip_norm", "ema", "amount", "mean", "std", "count"}
SHAPE = re.compile(r"\[[^\]]*\]|\bscalars?\b")


def shown(module: pdoc.doc.Module) -> Iterator[tuple[str, Callable]]:
    """The functions and methods of ours on the pages of a module and of those below it."""
    methods = (method for one in module.classes for method in one.methods)
    for doc in [*module.functions, *methods]:
        function = inspect.unwrap(doc.obj)
        if not doc.name.startswith("_") and is_ours(function):
            yield f"{doc.modulename}.{doc.qualname}", function
    for below in module.submodules:
        yield from shown(below)


def is_ours(function: object) -> bool:
    return inspect.isfunction(function) and function.__module__.startswith("lenet_jax")


FUNCTIONS = dict(shown(pdoc.doc.Module(lenet_jax)))


def tree(function: Callable) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def called(function: Callable) -> Iterator[Callable]:
    """The functions of lenet_jax that a function calls by a name, or by a module's and a name."""
    for node in ast.walk(tree(function)):
        match node:
            case ast.Call(func=ast.Name(id=name)):
                found = function.__globals__.get(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name)):
                found = getattr(function.__globals__.get(module), name, None)
            case _:
                continue
        if callable(found) and is_ours(inspect.unwrap(found)):
            yield inspect.unwrap(found)


def raises(function: Callable, above: tuple[Callable, ...] = ()) -> bool:
    """Whether it, or a function of ours that it calls, has a `raise`."""
    if any(isinstance(node, ast.Raise) for node in ast.walk(tree(function))):
        return True
    below = set(called(function)) - {function, *above}
    return any(raises(one, (function, *above)) for one in below)


def has_arrays(function: Callable) -> bool:
    """Whether a parameter or the result is an array with axes, by its annotation."""
    annotations = inspect.get_annotations(function)
    if function.__name__.endswith("key"):
        annotations.pop("return")
    kept = [str(annotations[name]) for name in annotations.keys() - NUMBERS]
    is_array = re.compile(r"(?!.*Callable).*(Array\b|ndarray)")
    return any(map(is_array.match, kept))


def test_the_pages_show_what_the_package_exports():
    assert {"lenet_jax.train_step", "lenet_jax.core.losses.mse", "lenet_jax.data.load"} <= {
        *FUNCTIONS
    }
    exported = {getattr(lenet_jax, name) for name in lenet_jax.__all__}
    functions = {inspect.unwrap(one) for one in exported if inspect.isfunction(one)}
    assert functions <= {*FUNCTIONS.values()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_gives_shapes_and_errors_and_a_signature_types(name):
    function = FUNCTIONS[name]
    docstring = (inspect.getdoc(function) or "").partition(">>>")[0]
    assert docstring, "no docstring"
    assert not has_arrays(function) or SHAPE.search(docstring), "no shape"
    assert not raises(function) or re.search(r"^Raises:$", docstring, re.MULTILINE), "no Raises"
    signature = inspect.signature(function)
    annotations = [one.annotation for key, one in signature.parameters.items() if key != "self"]
    assert inspect.Signature.empty not in [*annotations, signature.return_annotation], "no type"


def test_the_command_of_contributing_builds_it_without_a_warning(tmp_path):
    text = ROOT.joinpath("CONTRIBUTING.md").read_text()
    (arguments,) = re.findall(r"^python (-m pdoc .*?)(?: +#|$)", text, re.MULTILINE)
    command = [sys.executable, "-W", "error", *shlex.split(arguments), "-o", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    pages = {page: page.read_text() for page in tmp_path.rglob("*.html")}
    for name in FUNCTIONS:
        module, page = name, ""
        while not page:  # of the longest module in the name
            module = module.rpartition(".")[0]
            page = pages.get(tmp_path / f"{module.replace('.', '/')}.html", "")
        assert f'id="{name.removeprefix(module + ".")}"' in page
