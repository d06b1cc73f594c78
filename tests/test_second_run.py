"""What works once works again: real processes on one cache, as people start them.

An executable that was kept beside JAX's compilation cache could not be read any more in the third
process that used it; no test within one process can see that.
"""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest

STARTS = 3


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "lenet_jax.train", "--epochs=1", *flags]


@pytest.fixture(scope="module")
def idx_dir(tmp_path_factory, write_idx) -> Path:
    """A small MNIST of stripes, one of ten widths."""
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for part, count in (("train", 256), ("t10k", 64)):
        labels = rng.integers(0, 10, count, np.uint8)
        stripes = np.arange(28)[None, :] // (labels[:, None] + 1) % 2  # [N, 28]
        images = np.repeat(255 * stripes[:, None, :], 28, axis=1)  # [N, 28, 28]
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """That of a user whose cache is empty."""
    variables = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    return variables | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


def metrics(workdir: Path) -> list[dict]:
    """Without the two fields that a clock decides."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "images_per_second")
    return [{k: v for k, v in record.items() if k not in timed} for record in records]


def kill_while_it_writes_to_the_cache(environment: dict[str, str], workdir: Path) -> None:
    cache = Path(environment["XDG_CACHE_HOME"], "lenet_jax")
    before = len(list(cache.glob("*-cache")))
    flags = ("--dataset=digits", "--batch_size=96", f"--workdir={workdir}")
    run = subprocess.Popen(command(*flags), env=environment, stdout=subprocess.DEVNULL)
    while len(list(cache.glob("*-cache"))) == before:
        assert run.poll() is None, "the run ended before it was killed"
        time.sleep(0.001)
    run.kill()
    assert run.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_the_third_start_on_one_cache_is_as_the_first(tmp_path, environment, idx_dir):
    settings = {
        "digits": ("--dataset=digits", "--optimizer=adam"),
        "idx": ("--dataset=mnist", f"--data_dir={idx_dir}", "--optimizer=sgd"),
    }
    first: dict[str, list[dict]] = {}
    for start, name in product(range(STARTS), settings):
        if (start, name) == (1, "idx"):
            kill_while_it_writes_to_the_cache(environment, tmp_path / "killed")
        workdir = tmp_path / f"{name}-{start}"
        flags = (*settings[name], f"--workdir={workdir}")
        run = subprocess.run(command(*flags), env=environment, capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (0, ""), f"start {start} of {name}"
        assert metrics(workdir) == first.setdefault(name, metrics(workdir))
    assert len(first) == len(settings)
