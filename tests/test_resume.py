"""Real processes, stopped by real signals: what is left behind leads to the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lenet_jax.run import checkpoint, folder, log

FLAGS = ("--dataset=digits", "--epochs=3", "--batch_size=32", "--checkpoint_every_steps=15")
EPOCH, STEPS = 44, 132


# All that is compiled is kept, so that a run starts soon.
ENVIRONMENT = os.environ | {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def start(path: Path, limit: str = ":") -> subprocess.Popen:
    argv = [sys.executable, "-m", "lenet_jax.train", *FLAGS, f"--workdir={path}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        ["sh", "-c", f'{limit}; exec "$@"', "sh", *argv],
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=ENVIRONMENT,
    )


def run(path: Path, limit: str = ":") -> tuple[int, str, str]:
    with start(path, limit) as process:
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def stop(path: Path, when: Callable[[], bool], signum: int) -> tuple[int, str, str]:
    """Starts it, and sends the signal when it is time."""
    with start(path) as process:
        deadline = time.monotonic() + 120
        while not when():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signum)
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def result(path: Path) -> tuple[dict[str, bytes], list[dict]]:
    """The last checkpoint's arrays, and the metrics but for the clock's."""
    with np.load(checkpoint.file_of(path / folder.CHECKPOINTS, STEPS)) as arrays:
        saved = {name: arrays[name].tobytes() for name in arrays if name != "note"}
    records = [json.loads(line) for line in (path / log.METRICS).read_text().splitlines()]
    for record in records:
        del record["seconds"], record["images_per_second"]
    return saved, records


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[dict[str, bytes], list[dict]]:
    path = tmp_path_factory.mktemp("straight")
    code, out, err = run(path)
    assert (code, err) == (0, "")
    assert "found step" not in out
    return result(path)


def in_an_epoch(path: Path) -> bool:
    return (path / log.METRICS).exists()


def in_a_save(path: Path) -> bool:
    return any(path.glob(f"{folder.CHECKPOINTS}/.*.tmp"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[Path, tuple[int, str, str]]:
    """The folder of a run that SIGTERM stopped, only to be copied, and how it ended."""
    path = tmp_path_factory.mktemp("stopped")
    return path, stop(path, lambda: in_an_epoch(path), signal.SIGTERM)


def test_killed_in_an_epoch_and_in_a_save_it_ends_with_the_same_bits(straight, tmp_path):
    for when in (in_an_epoch, in_a_save):
        code, _, _ = stop(tmp_path, lambda when=when: when(tmp_path), signal.SIGKILL)
        assert code == -signal.SIGKILL
    code, out, err = run(tmp_path)
    assert (code, err) == (0, "")
    assert "found step " in out
    assert result(tmp_path) == straight
    assert not in_a_save(tmp_path)


def saved_step(path: Path, out: str, name: str) -> int:
    """Which its last line says, and its checkpoint is there."""
    last = out.splitlines()[-1]
    assert last.startswith(f"stopped by {name}: step ")
    step = int(last.split()[4])
    assert EPOCH <= step < STEPS
    assert checkpoint.file_of(path / folder.CHECKPOINTS, step).is_file()
    return step


def test_a_signal_is_answered_with_a_save_one_line_and_its_code(straight, stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path, dirs_exist_ok=True)
    ended, out, err = stopped[1]
    assert (ended, err) == (143, "")
    step = saved_step(tmp_path, out, "SIGTERM")
    ended, out, err = run(tmp_path)
    assert (ended, err) == (0, "")
    assert f"found step {step} " in out
    assert result(tmp_path) == straight


def test_a_second_run_in_the_same_place_is_refused_while_the_first_lives(tmp_path):
    with start(tmp_path) as first:
        while not in_an_epoch(tmp_path):
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        code, out, err = run(tmp_path)
        first.send_signal(signal.SIGINT)  # which it gets when it goes on
        first.send_signal(signal.SIGCONT)
        first_out, first_err = first.communicate(timeout=120)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: --workdir={tmp_path}: a run is at work there (process ")
    assert (first.returncode, first_err) == (130, "")
    saved_step(tmp_path, first_out, "SIGINT")


def test_a_save_that_fails_ends_the_run_with_a_line_and_the_one_before_is_intact(stopped, tmp_path):
    """No file may be larger than 50 kB: a full disk that needs no other disk."""
    shutil.copytree(stopped[0], tmp_path, dirs_exist_ok=True)
    (*_, last) = sorted((tmp_path / folder.CHECKPOINTS).iterdir())
    code, _, err = run(tmp_path, limit="ulimit -f 100")
    assert code == 1
    assert err.startswith(f"error: {tmp_path / folder.CHECKPOINTS}/step_")
    assert err.endswith(f" (File too large); step {int(last.stem[-8:])} is intact\n")
