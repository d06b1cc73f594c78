"""`lenet-jax` from outside: which command it runs, and what it says if an extra is missing."""

import importlib.metadata
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lenet_jax
from lenet_jax import __main__, cli, train

PROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
MODULES = [module.name for module in pkgutil.iter_modules(lenet_jax.__path__)]


def test_its_commands_are_the_modules_with_a_main():
    commands = [
        name
        for name in MODULES
        if name != "__main__" and hasattr(pkgutil.resolve_name(f"lenet_jax.{name}"), "main")
    ]
    assert sorted(__main__.COMMANDS) == sorted(commands)
    assert pkgutil.resolve_name(PROJECT["scripts"]["lenet-jax"]) is __main__.main


@pytest.mark.parametrize("flags", [[], ["--help"], ["-h"]])
def test_without_a_command_it_lists_them_on_one_screen(flags, capsys):
    __main__.dispatch(["lenet-jax", *flags])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    listed = [line.split()[1] for line in lines if line.startswith("  lenet-jax ")]
    assert listed == list(__main__.COMMANDS)


def test_its_version_is_the_packages(capsys):
    __main__.dispatch(["lenet-jax", "--version"])
    assert capsys.readouterr().out == f"lenet_jax {lenet_jax.__version__}\n"


def test_a_command_gets_its_flags(monkeypatch):
    seen = []
    monkeypatch.setattr(train, "main", seen.append)
    __main__.dispatch(["lenet-jax", "train", "--seed=1", "--help"])
    assert seen == [["lenet-jax train", "--seed=1", "--help"]]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("trian", "did you mean train?"), ("pred", "did you mean predict?"), ("x", "choose one of")],
)
def test_what_is_no_command_is_one_line_with_the_nearest(name, hint, capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.dispatch(["lenet-jax", name])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: '{name}' is not a command; {hint}")
    assert said.count("\n") == 1


# --- extras ---


def test_the_packages_of_the_extras_are_those_of_the_project():
    of_distribution: dict[str, set[str]] = {}
    for module, names in importlib.metadata.packages_distributions().items():
        for name in names:
            of_distribution.setdefault(name.lower().replace("_", "-"), set()).add(module)
    for extra, modules in cli.EXTRAS.items():
        requirements = PROJECT["optional-dependencies"][extra]
        names = [re.match(r"[\w-]+", each)[0].lower().replace("_", "-") for each in requirements]
        assert len(names) == len(modules)
        assert all(of_distribution[name] & {*modules} for name in names)


def run_without(packages: tuple[str, ...], module: str, *flags: str) -> tuple[int, str]:
    """The exit code and stderr of a command on a machine without these packages."""
    code = (
        f"import runpy, sys; sys.modules |= dict.fromkeys({packages}); "
        f"sys.argv = {['', *flags]}; runpy.run_module('{module}', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode, done.stderr


ALL = tuple(name for names in cli.EXTRAS.values() for name in names if name != "absl")  # Flax's too
CASES = {
    "lenet_jax.train": (ALL, "tqdm", "train"),
    "lenet_jax train": (ALL, "tqdm", "train"),
    "lenet_jax.predict x.png": (ALL, "tqdm", "train"),
    "lenet_jax.evaluate": (ALL, "tqdm", "train"),
    "lenet_jax.report --workdir=x": (ALL, "tqdm", "train"),
    "lenet_jax.sweep": (ALL, "tqdm", "train"),
    "lenet_jax predict x.png": (("scipy",), "scipy", "train"),
    "lenet_jax.sweep --dataset=digits": (("matplotlib",), "matplotlib", "report"),
    "lenet_jax export --format=torch": (("safetensors",), "safetensors", "export"),
    "lenet_jax.export --format=onnx": (("onnx",), "onnx", "export"),
    "lenet_jax sweep --dataset=digits --workers=1": (("distributed",), "distributed", "cluster"),
}


@pytest.mark.parametrize("command", CASES)
def test_without_its_extra_a_command_says_in_one_line_what_to_install(
    command, tmp_path, monkeypatch
):
    packages, package, extra = CASES[command]
    monkeypatch.setenv("PYTHONPATH", str(Path(lenet_jax.__file__).parents[1]))
    monkeypatch.chdir(tmp_path)
    code, said = run_without(packages, *command.split())
    remedy = f"in lenet_jax's checkout, pip install -e '.[{extra}]'"
    assert said.splitlines()[-1:] == [f"error: {package} is not installed: {remedy}"]
    assert code == 2
    assert "Traceback" not in said


def test_a_package_that_no_extra_has_is_a_mistake_of_ours():
    code = "from lenet_jax import cli; cli.run(lambda argv: __import__('no_such_package'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.startswith("Traceback")
    assert done.returncode == 1
