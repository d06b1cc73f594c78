"""Compiled functions on disk, so that a later process starts sooner."""

import contextlib
import importlib.util
import os
from pathlib import Path

import jax

CACHE_BYTES = 2**28  # beyond, JAX removes the least recently used entries; a run needs 3 MB


def enable_compilation_cache() -> None:
    """Keeps compiled functions in ~/.cache/lenet_jax, or where JAX_COMPILATION_CACHE_DIR says.

    Call it before the first step: a later process then reads from there what takes long to compile.
    A folder that cannot be written to costs time only. Without the package `filelock` the folder
    grows without a limit.
    """
    config = jax.config
    if config.jax_compilation_cache_dir:
        return
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lenet_jax")
        folder.mkdir(parents=True, exist_ok=True)
        # A process that was killed leaves an entry without the time of its last use, and JAX adds
        # nothing to a cache that holds such an entry.
        for entry in folder.glob("*-cache"):
            if not entry.with_name(f"{entry.name.removesuffix('-cache')}-atime").exists():
                entry.unlink(missing_ok=True)
        if os.access(folder, os.W_OK):
            config.update("jax_compilation_cache_dir", str(folder))
            if importlib.util.find_spec("filelock"):  # JAX needs it to remove entries
                config.update("jax_compilation_cache_max_size", CACHE_BYTES)
            config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
            config.update("jax_persistent_cache_min_entry_size_bytes", -1)
