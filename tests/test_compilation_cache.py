import subprocess
import sys

import jax

from lenet_jax import compilation_cache, enable_compilation_cache


def test_without_a_home_folder_nothing_is_kept_and_nothing_else_happens(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compilation_cache.Path, "home", no_home)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


CACHE_SCRIPT = """
import jax, jax.numpy as jnp
import lenet_jax
lenet_jax.enable_compilation_cache()
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


def test_importing_the_package_imports_no_flags_and_no_progress_bar():
    script = "import sys, lenet_jax; print({'lenet_jax.cli', 'tqdm'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_without_filelock_functions_are_kept_too(tmp_path, monkeypatch):
    """A library's user need not have what only commands need."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    script = "import sys; sys.modules['filelock'] = None\n" + CACHE_SCRIPT
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
    assert any((tmp_path / "lenet_jax").glob("*-cache"))


def test_an_entry_without_the_time_of_its_last_use_goes(tmp_path, monkeypatch):
    """JAX adds nothing to a cache with such an entry, which a killed process leaves."""
    cache = tmp_path / "lenet_jax"
    cache.mkdir()
    (cache / "jit_without_a_time-cache").touch()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    subprocess.run([sys.executable, "-c", CACHE_SCRIPT], check=True)
    names = [entry.name for entry in cache.glob("*-cache")]
    assert names
    assert "jit_without_a_time-cache" not in names
