"""Does a run end with the same bits, however it is stopped and whatever happens to its files?

A run on the digits (8 epochs, saved after each epoch and every 20 steps) is compared, to the last
bit, with the same run stopped at random moments and started again: the parameters, the optimizer's
state, the metrics (without the two fields of the clock) and the logits of the test images. Every
second kill waits until a save has begun. Then the latest checkpoint is damaged in random places,
and saves and restores are timed.

    python experiments/kill.py

Prints each kill and writes results/faults.{json,md}; about 10 minutes on 2 cores.
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
    """The names of the files of checkpoints that are being written, or were when a kill came."""
    return {file.name for file in path.glob(f"{CHECKPOINTS}/.step_*.tmp")}


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
        moment = time.monotonic() + rng.uniform(0, 0.005 if in_save else 1)
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


def damage(content: bytearray, kind: str, rng: random.Random) -> None:
    if kind == "bit flipped":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "bit flipped in zip's directory":
        content[-1 - rng.randrange(3000)] ^= 1 << rng.randrange(8)
    elif kind == "16 bytes overwritten":
        at = rng.randrange(len(content))
        content[at : at + 16] = rng.randbytes(len(content[at : at + 16]))
    elif kind == "truncated":
        del content[rng.randrange(len(content)) :]


def damage_checkpoints(path: Path, folder: Path, cases: int) -> list[dict[str, Any]]:
    """How often is damage named and the checkpoint before used; is it harmless; is a number wrong?

    Harmless is a damage that changes no array and no note, as in the time of a file in zip's
    directory: the checkpoint is used and equal to the last bit.
    """
    rows, copy = [], folder / "damaged"
    shutil.copytree(path / CHECKPOINTS, copy)
    *_, before, latest = (checkpoint.restore(copy, s, like) for s in checkpoint.steps(copy))
    file = checkpoint.file_of(copy, latest.step)
    intact = file.read_bytes()
    for kind in (
        *("bit flipped", "bit flipped in zip's directory"),
        *("16 bytes overwritten", "truncated"),
    ):
        rng, count = random.Random(kind), Counter()
        for _ in range(cases):
            content, said = bytearray(intact), []
            damage(content, kind, rng)
            file.write_bytes(content)
            found = checkpoint.latest_valid(copy, like, said.append)
            expected = before if said else latest
            right = (found.step, found.note, digest(found.tree)) == (
                *(expected.step, expected.note),
                digest(expected.tree),
            )
            one_line = len(said) <= 1 and not any("\n" in line for line in said)
            verdict = "named" if said else "harmless"
            count[verdict if right and one_line else "wrong"] += 1
        rows.append({"damage": kind, "tried": cases, **count})
        print(f"{kind}: {dict(count)}", flush=True)
    return rows


# --- what saves cost ---


def time_saves(path: Path, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of saves and restores of a run's state, in turn."""
    (folder / "timed").mkdir()
    steps = checkpoint.steps(path / CHECKPOINTS)
    found = checkpoint.restore(path / CHECKPOINTS, steps[-1], like)
    times: dict[str, list[float]] = {"save": [], "restore": []}
    for step in range(repeats):
        actions = {
            "save": lambda step=step: checkpoint.save(
                folder / "timed", step, found.tree, found.note, 3
            ),
            "restore": lambda step=step: checkpoint.restore(folder / "timed", step, like),
        }
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            times[name].append(1000 * (time.perf_counter() - started))
    return times


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
    lines += ["", "| damage to the latest checkpoint | tried | named | harmless | wrong |"]
    lines += ["|---|--:|--:|--:|--:|"]
    for row in found["damage"]:
        counts = [row.get(name, 0) for name in ("tried", "named", "harmless", "wrong")]
        lines.append(f"| {row['damage']} | {' | '.join(map(str, counts))} |")
    lines += ["", "| milliseconds | median | least to most |", "|---|--:|---|"]
    for name, times in found["milliseconds"].items():
        spread = f"{min(times):.1f} to {max(times):.1f}"
        lines.append(f"| one {name} ({len(times)}) | {statistics.median(times):.1f} | {spread} |")
    lines += [
        "",
        f"Load average at the end: {found['load']:.1f} (above 2 means that other programs ran).",
    ]
    return "\n".join(lines)


def main() -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = finish(folder / "reference", folder / "cache")
        reference = outcome(folder / "reference")
        print(f"the run without a stop took {seconds:.1f} s", flush=True)
        found = {
            "reference": reference,
            "kills": [
                *kill_runs(folder, reference, signal.SIGKILL, runs=20, kills=5),
                *kill_runs(folder, reference, signal.SIGTERM, runs=2, kills=4),
            ],
            "damage": damage_checkpoints(folder / "reference", folder, cases=250),
            "milliseconds": time_saves(folder / "reference", folder, repeats=50),
        }
    found["load"] = os.getloadavg()[1]  # over five minutes
    found["minutes"] = (time.perf_counter() - started) / 60
    write_json("faults", found)
    write_markdown("faults", sentences(found))
    print(sentences(found))
    if not all(row["same_bits"] for row in found["kills"]):
        sys.exit("a run ended with other bits")
    if any(row.get("wrong") for row in found["damage"]):
        sys.exit("a damaged checkpoint was used")


if __name__ == "__main__":
    main()
