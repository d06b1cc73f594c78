import dataclasses
import subprocess
import sys

import jax
import pytest

from lenet_jax import cli


@dataclasses.dataclass(frozen=True)
class Few:
    name: str = cli.setting("a", "which", ("a", "b"))
    count: int | None = cli.setting(None, "how many")
    share: float = cli.setting(0.5, "how much")
    quick: bool = cli.setting(True, "or not")

    def __post_init__(self) -> None:
        cli.check_choices(self)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Few()),
        (["--name=b", "--count=3"], Few(name="b", count=3)),
        (["--share", "1e-3", "--noquick"], Few(share=1e-3, quick=False)),
        (["--quick=false"], Few(quick=False)),
    ],
)
def test_flags_fill_the_dataclass_in_its_types(argv, expected):
    assert cli.parse(Few, ["prog", *argv], "doc") == expected


def test_a_flagfile_is_read(tmp_path):
    path = tmp_path / "flags"
    path.write_text("--count=7\n# a comment\n--name=b\n")
    assert cli.parse(Few, ["prog", f"--flagfile={path}"], "doc") == Few(name="b", count=7)


@pytest.mark.parametrize("bad", ["--nmae=b", "--name=c", "--count=x", "--count=1.5", "b"])
def test_what_it_does_not_understand_ends_in_one_line_and_code_2(bad, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(Few, ["prog", bad], "doc")
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert bad.strip("-").split("=")[0] in err


def test_help_has_the_doc_and_each_flag_with_default_and_choices(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(Few, ["prog", "--help"], "What it does.")
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("What it does.")
    for line in ("--name  {a, b}", "which (default: a)", "--count", "--[no]quick"):
        assert line in out


def test_an_error_of_many_lines_becomes_one(capsys):
    with pytest.raises(SystemExit):
        cli.fail("first\n  second", code=1)
    assert capsys.readouterr().err == "error: first second\n"


CACHE_SCRIPT = """
import jax, jax.numpy as jnp
from lenet_jax import cli
cli.enable_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
print(jax.config.jax_compilation_cache_dir)
"""


def test_compiled_programs_are_kept_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    result = subprocess.run(
        [sys.executable, "-c", CACHE_SCRIPT], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == str(tmp_path / "lenet_jax")
    assert any((tmp_path / "lenet_jax").iterdir())


def test_importing_configures_nothing():
    assert jax.config.jax_compilation_cache_dir is None
