"""Strict by default: warnings are errors (pyproject.toml), silent rank promotion raises."""

import os
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

# PyTorch's threads wait for each other busily, which costs the other test processes their cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import browser
import jax
import numpy as np
import pytest

from lenet_jax import data
from lenet_jax.run import loop
from lenet_jax.run.settings import Settings

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)  # for populations: what they do on several devices
# Tests send Ctrl-C, which a shell makes a job in the background, and its children, ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """What tests have in common is compiled once, also by the processes that they start.

    It is kept in pytest's cache folder (`--cache-clear` empties it) for the next session.
    """
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left with one when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with MNIST's four IDX files, from LENET_JAX_TEST_DATA."""
    folder = os.environ.get("LENET_JAX_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LENET_JAX_TEST_DATA does not name a folder with MNIST's IDX files")
    return Path(folder)


@pytest.fixture(scope="session")
def write_idx() -> Callable[[Path, np.ndarray], None]:
    """Writes an array of bytes, of any number of dimensions, as an IDX file."""

    def write(path: Path, array: np.ndarray) -> None:
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        path.write_bytes(head + array.astype(np.uint8).tobytes())

    return write


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of 2 epochs on the digits; what is there is only to be read.

    A test that lets a command write into a run's folder copies it first (`shutil.copytree`).
    """
    path = tmp_path_factory.mktemp("tiny_run")
    dataset = data.load("digits")
    settings = Settings(dataset="digits", epochs=2, learning_rate=3e-3, workdir=str(path))
    loop.fit(loop.resolve(settings, dataset), dataset, path, lambda line: None)
    return path


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    """A page in a browser, for the tests of one file."""
    if browser.find() is None:
        pytest.skip(f"there is no browser: none of {', '.join(browser.NAMES)} is in PATH")
    with browser.started(tmp_path_factory.mktemp("profile") / "new") as window:
        yield window
