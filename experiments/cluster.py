"""How fast is a sweep on Dask's workers, what does the scheduler cost, and how far does it scale?

Trains the same networks on the digits in this process, with a device per core, and on one and two
workers of one core each (started here, on 127.0.0.1), in turn, after a sweep that warms all of them
up. Then it measures the seconds per empty task, and those of the file that the client writes for
each slice. The table of many hosts is computed from these numbers: nothing here has run on more
than two workers.

    python experiments/cluster.py

Writes results/cluster.{json,md}; takes three minutes on two idle cores.
"""

import contextlib
import json
import math
import operator
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import distributed
from _results import write_json, write_markdown

from lenet_jax import cli, data
from lenet_jax.files import atomic_write
from lenet_jax.run import cluster, grid

ROUNDS = 3
TASKS = (1, 10, 100, 1000)
HOSTS = (8, 64, 1000)
MNIST_UPDATES = 5 * (50_000 // 64)  # per network, with sweep's defaults
FLAGS = {"optimizers": "adam", "learning_rates": "1e-3,2e-3,4e-3", "batch_size": 64}


@contextlib.contextmanager
def dask_process(*flags: str, core: int | None = None) -> Iterator[None]:
    """Runs `dask` with these flags, on this core if one is given."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *flags, "--host=127.0.0.1", "--no-dashboard"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def sweep(settings: grid.SweepSettings, digits: data.Dataset, train: grid.TrainSlices) -> tuple:
    """Runs a sweep; returns its seconds, its records and the workers that took part."""
    workers: set[str] = set()

    def log(line: str) -> None:
        workers.update(line.partition("the last by ")[2].split())

    with tempfile.TemporaryDirectory() as path:
        started = time.perf_counter()
        records = grid.run(settings, digits, Path(path), log, train)
        return time.perf_counter() - started, records, workers


def seconds_per_task(client: distributed.Client, count: int) -> float:
    started = time.perf_counter()
    futures = client.map(operator.neg, range(count), pure=False)
    for future in distributed.as_completed(futures):
        future.result()
    return (time.perf_counter() - started) / count


def seconds_per_file(records: list) -> float:
    with tempfile.TemporaryDirectory(dir=".") as path:
        started = time.perf_counter()
        for number in range(100):
            atomic_write(Path(path, f"{number}.json"), json.dumps(records[:8]))
        return (time.perf_counter() - started) / 100


def measure(folder: Path) -> dict:
    digits = data.load("digits")
    resolve = lambda **flags: grid.resolve(
        grid.SweepSettings(**FLAGS | flags, dataset="digits"), digits
    )
    plan, warm_up = resolve(seeds=16, epochs=4), resolve(seeds=16, epochs=1)
    cores = sorted(os.sched_getaffinity(0))[:2]
    file = str(folder / "scheduler.json")
    seconds: dict[str, list[float]] = {"this process": [], "1 worker": [], "2 workers": []}
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask_process("scheduler", "--port=0", f"--scheduler-file={file}"))
        while not Path(file).exists():
            time.sleep(0.1)
        flags = ("worker", f"--scheduler-file={file}", "--nthreads=1", "--no-nanny")
        of_all = []
        for _ in range(ROUNDS):
            for workers, kind in enumerate(seconds):
                with contextlib.ExitStack() as processes:
                    for core in cores[:workers]:
                        processes.enter_context(dask_process(*flags, core=core))
                    train = processes.enter_context(
                        cluster.connect(file if workers else None, None, lambda line: None)
                    )
                    if workers:
                        train.args[0].wait_for_workers(workers)
                    taken = sweep(warm_up, digits, train)[2]
                    while len(taken) < workers:
                        taken |= sweep(warm_up, digits, train)[2]
                    took, records, _ = sweep(plan, digits, train)
                    seconds[kind].append(took)
                    of_all.append(records)
                    print(f"{kind}: {took:.1f} s", flush=True)
                    if workers == 2:
                        client = train.args[0]
                        per_task = {n: seconds_per_task(client, n) for n in TASKS for _ in (0, 1)}
        if any(records != of_all[0] for records in of_all):
            raise SystemExit("the runs have different records")
    networks = len(of_all[0])
    return {
        "networks": networks,
        "updates": networks * plan.epochs * (len(grid.split_indices(1437)[1]) // plan.batch_size),
        "seconds": seconds,
        "seconds_per_task": per_task,
        "seconds_per_file": seconds_per_file(of_all[0]),
        "load": os.getloadavg()[0],
    }


def table(found: dict) -> str:
    middle = {kind: statistics.median(values) for kind, values in found["seconds"].items()}
    lines = [
        f"{found['networks']} networks in slices of 8, digits; medians of {ROUNDS}; "
        "all runs have the same records to the last digit.",
        "",
        "| trained by | networks/s | ratio to this process | seconds of each run |",
        "|---|--:|--:|---|",
    ]
    for kind, took in middle.items():
        each = ", ".join(f"{value:.1f}" for value in found["seconds"][kind])
        ratio = middle["this process"] / took
        lines.append(f"| {kind} | {found['networks'] / took:.2f} | {ratio:.2f} | {each} |")
    counts = found["seconds_per_task"]
    lines += [
        "",
        f"| empty tasks | {' | '.join(f'{count:,}' for count in counts)} |",
        f"|---|{'--:|' * len(counts)}",
        f"| ms per task | {' | '.join(f'{1e3 * cost:.2f}' for cost in counts.values())} |",
        "",
        f"The client writes a slice's file in {1e3 * found['seconds_per_file']:.2f} ms.",
    ]
    updates_per_s = found["updates"] / middle["1 worker"]
    slice_s = 8 * MNIST_UPDATES / updates_per_s
    cost = counts[max(counts)] + found["seconds_per_file"]
    lines += [
        "",
        f"Computed, not measured: for a slice of 8 networks on MNIST (5 epochs), a worker with one "
        f"core needs {slice_s:.0f} s at {updates_per_s:,.0f} updates/s, and scheduler and client "
        f"need {1e3 * cost:.1f} ms. Each worker gets 10 MB of images, from another worker.",
        "",
        "| hosts of one worker | 10,000 networks | scheduler and client busy | images sent |",
        "|--:|--:|--:|--:|",
    ]
    for hosts in HOSTS:
        took = math.ceil(1250 / hosts) * slice_s
        lines.append(
            f"| {hosts:,} | {took / 60:,.1f} min | {hosts * cost / slice_s:.1%} | "
            f"{hosts * 0.01:,.2f} GB |"
        )
    lines += [
        "",
        "1,250 workers have one slice each; more would have nothing to do. Scheduler and client "
        f"would be busy all the time with {round(slice_s / cost, -4):,.0f} workers. The load "
        f"average at the end was {found['load']:.1f} (above 2, other programs were running).",
    ]
    return "\n".join(lines)


def main() -> None:
    cli.start_jax(cores_are_devices=True)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    text = table(found)
    write_json("cluster", found)
    write_markdown("cluster", text)
    print(text)


if __name__ == "__main__":
    main()
