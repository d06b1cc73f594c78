"""Does a run end with the same bits, however it is stopped and whatever happens to its files?

A run on the digits (8 epochs, saved after each and every 20 steps) is compared, to the last bit,
with the same run stopped at random moments and started again: the parameters, the optimizer's
state, the metrics (but for the two fields of the clock) and the logits of the test images. Every
second kill waits for a save to have begun. Then copies of its checkpoints are damaged in random
places, and complete runs are timed with their saves and without: on two cores a save takes from the
training what it needs itself. MNIST is timed, too, if LENET_JAX_TEST_DATA names a folder with it.

    python experiments/kill.py

Prints each kill and writes results/faults.{json,md}; about 8 minutes on 2 cores.
Seeds are fixed; the moments depend on the machine.
"""

import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _results import write_json, write_markdown

from lenet_jax import data
from lenet_jax.core.model import LeNet
from lenet_jax.core.step import TrainState
from lenet_jax.run import checkpoint, loop
from lenet_jax.run.folder import CHECKPOINTS
from lenet_jax.run.log import read_metrics
from lenet_jax.run.settings import Settings

RUN = Settings(dataset="digits", epochs=8, batch_size=32, checkpoint_every_steps=20, seed=7)
ROOT = Path(__file__).parent.parent


# --- what is compared ---


@functools.cache
def shapes() -> TrainState:
    settings = loop.resolve(RUN, data.load("digits"))
    steps = loop.steps_per_epoch(settings, data.load("digits"))
    return jax.eval_shape(lambda: loop.create_state(settings, LeNet(), settings.epochs * steps))


def like(note: dict[str, Any]) -> dict[str, Any]:
    return loop.checkpoint_tree(shapes())


def digest(tree: Any) -> str:
    content = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))
    return hashlib.sha256(content).hexdigest()


def outcome(path: Path) -> dict[str, Any]:
    """What a finished run has left behind."""
    found = checkpoint.latest_valid(path / CHECKPOINTS, like, print)
    records = read_metrics(path)
    for record in records:
        del record["seconds"], record["images_per_second"]
    images = jnp.asarray(data.load("digits").test.images, jnp.float32) / 255
    return {
        "step": found.step,
        "params": digest(found.tree["params"]),
        "opt_state": digest(found.tree["opt_state"]),
        "metrics": hashlib.sha256(json.dumps(records).encode()).hexdigest(),
        "logits": digest(shapes().model.apply({"params": found.tree["params"]}, images)),
    }


# --- kills ---


def start(path: Path, cache: Path) -> subprocess.Popen:
    flags = [
        f"--{name}={value}"
        for name, value in dataclasses.asdict(RUN).items()
        if value is not None and not isinstance(value, bool)
    ]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "lenet_jax.train", *flags, f"--workdir={path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def finish(path: Path, cache: Path) -> float:
    """Runs to the end; the seconds that took."""
    started = time.perf_counter()
    with start(path, cache) as process:
        out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the run ended with {process.returncode}:\n{out}")
    return time.perf_counter() - started


def unfinished(path: Path) -> set[str]:
    """The names of the checkpoints that are being written, or were when their process ended."""
    found = path.glob(f"{CHECKPOINTS}/step_*{checkpoint.UNFINISHED}*")
    return {file.name for file in found}


def kill(path: Path, cache: Path, signum: int, in_save: bool, rng: random.Random) -> str:
    """Starts the run, stops it at a random moment, and says what it was doing."""
    leftovers = unfinished(path)  # of the kill before

    def is_saving() -> bool:
        now = unfinished(path)
        leftovers.intersection_update(now)  # the run clears them away and may use a name again
        return bool(now - leftovers)

    with start(path, cache) as process:
        header = process.stdout.readline()
        epoch = len(read_metrics(path)) + rng.randrange(2)
        while process.poll() is None:
            saving = is_saving()
            if saving if in_save else len(read_metrics(path)) >= epoch:
                break
            time.sleep(0.0005)
        moment = time.monotonic() + rng.uniform(0, 0.1 if in_save else 1)
        while time.monotonic() < moment:
            is_saving()
            time.sleep(0.0005)
        process.send_signal(signum)
        out = header + process.communicate()[0]
    if process.returncode == 0:
        return "too late: it was finished"
    if process.returncode not in (-signum, 128 + signum):
        raise RuntimeError(f"the run ended with {process.returncode}:\n{out}")
    if is_saving():
        return "in a save"
    return "in an epoch" if checkpoint.steps(path / CHECKPOINTS) else "before a checkpoint"


def kill_runs(
    folder: Path, reference: dict[str, Any], signum: int, runs: int, kills: int
) -> list[dict[str, Any]]:
    """Each of `runs` runs is stopped `kills` times before it may end."""
    rows, name = [], signal.Signals(signum).name
    for seed in range(runs):
        rng, path = random.Random(f"{name} {seed}"), folder / f"{name}-{seed}"
        moments = [
            kill(path, folder / "cache", signum, in_save=bool(index % 2), rng=rng)
            for index in range(kills)
        ]
        finish(path, folder / "cache")
        same = outcome(path) == reference
        rows.append({"signal": name, "seed": seed, "moments": moments, "same_bits": same})
        verdict = "the same bits" if same else "OTHER BITS"
        print(f"{name}, run {seed}: {', '.join(moments)}: {verdict}", flush=True)
    return rows


# --- damage ---


def damage(file: Path, kind: str, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if kind == "bit flipped":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "bytes overwritten":
        at = rng.randrange(len(content))
        content[at : at + 16] = rng.randbytes(min(16, len(content) - at))
    elif kind == "truncated":
        content = content[: rng.randrange(len(content))]
    file.write_bytes(content)
    if kind == "missing":
        file.unlink()


def damage_checkpoints(path: Path, folder: Path, cases: int) -> list[dict[str, Any]]:
    """In how many cases is the latest skipped, and the one before it read bit by bit?"""
    rows = []
    steps = checkpoint.steps(path / CHECKPOINTS)
    before = checkpoint.restore(path / CHECKPOINTS, steps[-2], like)
    for kind in ("bit flipped", "bytes overwritten", "truncated", "missing"):
        rng, handled = random.Random(kind), 0
        for _ in range(cases):
            copy = Path(shutil.copytree(path / CHECKPOINTS, folder / "damaged"))
            files = sorted(f for f in (copy / f"step_{steps[-1]:08d}").rglob("*") if f.is_file())
            damage(rng.choice([f for f in files if f.stat().st_size]), kind, rng)
            said: list[str] = []
            found = checkpoint.latest_valid(copy, like, said.append)
            handled += (
                found.step == before.step
                and found.note == before.note
                and digest(found.tree) == digest(before.tree)
                and len(said) == 1
            )
            shutil.rmtree(copy)
        rows.append({"damage": kind, "tried": cases, "handled": handled})
        print(f"{kind}: {handled} of {cases} reported, and the checkpoint before used", flush=True)
    return rows


# --- what the saves cost ---


class NoSaver:
    """In the place of `checkpoint.Saver`: nothing is saved."""

    last = None

    def __init__(self, *_: object, **__: object) -> None: ...
    def __enter__(self) -> "NoSaver":
        return self

    def __exit__(self, *_: object) -> None: ...
    def save(self, *_: object) -> None: ...
    def wait(self) -> None: ...


def measure_saves(
    folder: Path, dataset: data.Dataset, epochs: int | None, repeats: int
) -> dict[str, Any]:
    """Seconds of complete runs with a save after each epoch and without, in turn."""
    settings = loop.resolve(Settings(dataset=dataset.name, epochs=epochs), dataset)
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    saver = checkpoint.Saver
    for repeat in range(repeats + 1):  # the first compiles, and imports orbax
        for kind, times in seconds.items():
            path = folder / f"{dataset.name}-{kind}-{repeat}"
            path.mkdir()
            checkpoint.Saver = saver if kind == "with" else NoSaver
            started = time.perf_counter()
            loop.fit(settings, dataset, path, lambda line: None)
            times.append(time.perf_counter() - started)
    checkpoint.Saver = saver
    measured = {kind: times[1:] for kind, times in seconds.items()}
    return {"data": dataset.name, "epochs": settings.epochs, **measured}


def measure_all_saves(folder: Path) -> list[dict[str, Any]]:
    found = [measure_saves(folder, data.load("digits"), None, repeats=5)]
    if mnist := os.environ.get("LENET_JAX_TEST_DATA"):
        found.append(measure_saves(folder, data.load("mnist", mnist), 3, repeats=5))
    return found


def sentences(found: dict[str, Any]) -> str:
    """What was found, in Markdown."""
    lines = [
        "| stopped by | runs | stops | before a checkpoint | in an epoch | in a save | same bits |"
    ]
    lines += ["|---|--:|--:|--:|--:|--:|--:|"]
    for name in ("SIGKILL", "SIGTERM"):
        rows = [row for row in found["kills"] if row["signal"] == name]
        count = Counter(moment for row in rows for moment in row["moments"])
        stops = [count[moment] for moment in ("before a checkpoint", "in an epoch", "in a save")]
        same = sum(row["same_bits"] for row in rows)
        cells = [name, len(rows), sum(stops), *stops, f"{same} of {len(rows)}"]
        if name == "SIGTERM":
            cells[-2] = "-"  # it waits for the end of a save
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| damage to a random file of the latest checkpoint | handled |", "|---|--:|"]
    lines += [
        f"| {row['damage']} | {row['handled']} of {row['tried']} |" for row in found["damage"]
    ]
    lines += [
        "",
        "| complete runs in turn | with saves, s | without, s | one save, s | least to most | "
        "saves, of a run without |",
        "|---|--:|--:|--:|---|--:|",
    ]
    lines += map(cost, found["saves"])
    lines += [
        "",
        f"Load average at the end: {found['load']:.1f} (above 2 means that other programs ran).",
    ]
    return "\n".join(lines)


def cost(run: dict[str, Any]) -> str:
    """A row: medians, and what a save costs in each pair of runs, as a machine has its moods."""
    each = sorted(
        (one - other) / run["epochs"]
        for one, other in zip(run["with"], run["without"], strict=True)
    )
    a_save, without = statistics.median(each), statistics.median(run["without"])
    cells = [
        f"{run['data']}, {run['epochs']} epochs with a save after each, {len(each)} pairs",
        f"{statistics.median(run['with']):.2f}",
        f"{without:.2f}",
        f"**{a_save:.3f}**",
        f"{each[0]:.3f} to {each[-1]:.3f}",
        f"{a_save * run['epochs'] / without:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = finish(folder / "reference", folder / "cache")
        reference = outcome(folder / "reference")
        print(f"the run that nobody stopped took {seconds:.1f} s", flush=True)
        found = {
            "reference": reference,
            "kills": [
                *kill_runs(folder, reference, signal.SIGKILL, runs=6, kills=5),
                *kill_runs(folder, reference, signal.SIGTERM, runs=2, kills=4),
            ],
            "damage": damage_checkpoints(folder / "reference", folder, cases=25),
            "saves": measure_all_saves(folder),
        }
    found["load"] = os.getloadavg()[1]  # over five minutes
    found["minutes"] = (time.perf_counter() - started) / 60
    write_json("faults", found)
    write_markdown("faults", sentences(found))
    print(sentences(found))
    if not all(row["same_bits"] for row in found["kills"]):
        sys.exit("a run ended with other bits")
    if not all(row["handled"] == row["tried"] for row in found["damage"]):
        sys.exit("a damaged checkpoint was not handled")


if __name__ == "__main__":
    main()
