"""How long does a process take from its start to the first training steps, and for what?

Runs `python -m lenet_jax.train` on MNIST with a warm compilation cache, each time in a new process,
and stops it when its progress bar first moves (a twentieth of an epoch: 47 steps, 0.05 s). From
`jax.monitoring` it lists, by function, the time for tracing, lowering, and compiling or loading.
With --against=CHECKOUT, another checkout of the project takes turns with this one.

    LENET_JAX_TEST_DATA=path/to/mnist python experiments/start_up.py [--against=path/to/checkout]

Writes results/start_up.{json,md}; takes a minute.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import _worker

RUNS = 11
HERE = Path(__file__).resolve().parent.parent
PARTS = {  # jax.monitoring's event -> our name
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile or load",
}


def worker(started: float, workdir: str) -> None:
    """Prints the seconds of each phase as JSON; ends the process after the first steps."""
    import jax
    import tqdm

    import lenet_jax.train

    seconds = {"imports": time.time() - started}
    inside: dict[str, float] = defaultdict(float)

    def record(event: str, duration: float, **about: object) -> None:
        if event in PARTS:
            name = str(about.get("fun_name", "?")).removeprefix("jit_").removeprefix("jit(")
            inside[f"{name.removesuffix(')')}: {PARTS[event]}"] += duration

    def first_update(bar: tqdm.tqdm, steps: int) -> None:
        seconds["first steps"] = time.time() - started
        print(json.dumps({"seconds": seconds, "inside": inside}), flush=True)
        os._exit(0)

    jax.monitoring.register_event_duration_secs_listener(record)
    tqdm.tqdm.update = first_update
    flags = ["--dataset=mnist", f"--data_dir={_worker.mnist_folder()}", f"--workdir={workdir}"]
    lenet_jax.train.main(["train", *flags])


def start(checkout: Path, cache: str) -> dict:
    """Runs a worker with the code of `checkout`; the clock starts here."""
    environment = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    environment |= {"XDG_CACHE_HOME": cache, "PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as workdir:
        return _worker.run(__file__, ["--worker", repr(time.time()), workdir], environment)


def main() -> None:
    from _results import write_json, write_markdown

    parser = argparse.ArgumentParser()
    parser.add_argument("--against", type=Path)
    against = parser.parse_args().against
    _worker.mnist_folder()
    checkouts = {"now": HERE} | ({"before": against.resolve()} if against else {})
    runs: dict[str, list[dict]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(-2, RUNS):  # two rounds fill the caches
            for name, checkout in checkouts.items():
                run = start(checkout, str(Path(folder, name)))
                if number >= 0:
                    runs[name].append(run)
    total = lambda run: run["seconds"]["first steps"]
    lines = [
        f"MNIST, batch 64, adam; warm compilation cache; medians of {RUNS} processes.",
        "",
        f"| seconds | {' | '.join(checkouts)} |",
        f"|---|{'--:|' * len(checkouts)}",
    ]
    phases = {"imports": "imports", "first steps": "to the end of the first steps"}
    for phase, label in phases.items():
        row = [statistics.median(run["seconds"][phase] for run in runs[name]) for name in runs]
        lines.append(f"| **{label}** | {' | '.join(f'**{seconds:.2f}**' for seconds in row)} |")
    median = lambda part, name: statistics.median(run["inside"].get(part, 0) for run in runs[name])
    parts = {part for of_name in runs.values() for run in of_name for part in run["inside"]}
    rows = {part: [median(part, name) for name in runs] for part in parts}
    for part, row in sorted(rows.items(), key=lambda item: max(item[1]), reverse=True):
        if max(row) >= 0.02:
            lines.append(f"| {part} | {' | '.join(f'{seconds:.2f}' for seconds in row)} |")
    if against:
        ratios = [total(a) / total(b) for a, b in zip(runs["now"], runs["before"], strict=True)]
        lines += [
            "",
            f"The start now takes {statistics.median(ratios):.2f} times as long as before.",
        ]
    print("\n".join(lines))
    write_json("start_up", {"runs": runs})
    write_markdown("start_up", "\n".join(lines))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(float(sys.argv[2]), sys.argv[3])
    else:
        main()
