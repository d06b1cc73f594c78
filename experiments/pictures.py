"""How many pictures of digits `predict` reads, kind by kind, and how fast it finds the digits.

    python -m lenet_jax.train --dataset=mnist --workdir=runs/mnist --epochs=10 --augment=1
    python -m lenet_jax.train --dataset=mnist --workdir=runs/seed7 --epochs=5 --augment=1 --seed=7
    python -m lenet_jax.train --dataset=mnist --workdir=runs/plain --epochs=5 --seed=3
    git worktree add ../old a6949ad
    python experiments/pictures.py --workdir=runs/mnist,runs/seed7,runs/plain [--old=../old]

Makes the pictures of `draw_pictures.py` and asks every run about each; of several runs the table
has the worst. --given is a folder of further pictures called <kind>-<digit>.<suffix>; --keep names
a folder in which the made pictures are left. The column "0.1.0" is what this script found with
lenet_jax 0.1.0, where `predict` looked for what differs from the border. --old is a checkout of
0.2.0, whose code finds the digits of some pictures alternately with today's, on one core.
Writes results/pictures.{json,md}; 3 minutes on 2 cores.
"""

import argparse
import collections
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import draw_pictures
import numpy as np
from _results import path, write_json, write_markdown
from PIL import Image

from lenet_jax.pictures import frame, ink, read, things
from lenet_jax.run import reading, trained

TIMED = {  # side -> the kinds that are timed; MNIST's own images are of 28x28
    "400x400": ("plain", "noise", "vignette", "faint", "shadow, hard", "marker", "crumpled"),
    "28x28": ("MNIST",),
}
WORKER = """
import os, sys, time
from pathlib import Path
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
if Path("lenet_jax", "pictures").is_dir():
    from lenet_jax.pictures.frame import find
    from lenet_jax.pictures.read import read
else:
    from lenet_jax.data.picture import find, read
for line in sys.stdin:
    start = time.process_time()
    find(read(Path(line.strip())).pixels)
    print(time.process_time() - start, flush=True)
"""


def thresholds() -> dict[str, dict[str, float]]:
    """The numbers by which ink is found, by module: what is counted holds for these."""
    return {
        module.__name__.split(".")[-1]: {
            name: np.asarray(value).tolist()
            for name, value in vars(module).items()
            if name.isupper() and isinstance(np.ravel(value)[0], np.number)
        }
        for module in (read, things, ink, frame)
    }


def count(folder: Path, runs: list[trained.TrainedRun]) -> dict[str, dict[str, list[int] | int]]:
    """Per kind: the number of pictures, and how many of them each run reads."""
    kinds: dict[str, dict] = collections.defaultdict(
        lambda: {"pictures": 0, "right": [0] * len(runs)}
    )
    for file in sorted(file for file in folder.iterdir() if file.suffix in read.SUFFIXES):
        kind, end = file.stem.rsplit("-", 1)
        kinds[kind]["pictures"] += 1
        try:
            image = reading.prepare(file, runs[0])
        except ValueError:  # "is empty"
            continue
        for index, run in enumerate(runs):
            answer = reading.predict_probs(run, [image]).argmax()
            kinds[kind]["right"][index] += int(answer == int(end[0]))
    return dict(kinds)


@contextlib.contextmanager
def timer(root: Path) -> Iterator[subprocess.Popen]:
    """A process that runs the code in `root`: file names in, CPU seconds out."""
    root = root.resolve()
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=root,
    ) as process:
        yield process
        process.stdin.close()


def measure(old: Path, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Per size: the CPU seconds from file to network input, before and after, file by file."""
    for index, image in enumerate(draw_pictures.mnist()[0][:60]):
        Image.fromarray(image).save(folder / f"MNIST-{index:02d}.png")
    seconds = {}
    with timer(old) as before, timer(Path(__file__).parents[1]) as after:
        for size, kinds in TIMED.items():
            files = [file for kind in kinds for file in sorted(folder.glob(f"{kind}-*"))]
            seconds[size] = {"before": [], "after": []}
            for file in [files[0], *files]:  # the first one is a warm-up
                for name, process in (("before", before), ("after", after)):
                    process.stdin.write(f"{file.resolve()}\n")
                    process.stdin.flush()
                    seconds[size][name].append(float(process.stdout.readline()))
            seconds[size] = {name: values[1:] for name, values in seconds[size].items()}
    return seconds


def table(kinds: dict[str, dict], before: dict[str, dict]) -> str:
    lines = ["| kind | pictures | 0.1.0 | now |", "|---|--:|--:|--:|"]
    worst = lambda found: min(found[kind]["right"]) if kind in found else ""
    for kind, found in kinds.items():
        lines.append(f"| {kind} | {found['pictures']} | {worst(before)} | {worst(kinds)} |")
    total = sum(found["pictures"] for found in kinds.values())
    sums = [sum(min(each["right"]) for each in part.values()) for part in (before, kinds)]
    lines.append(f"| all | {total} | {sums[0]} | {sums[1]} |")
    return "\n".join(lines)


def speed_table(seconds: dict[str, dict[str, list[float]]]) -> str:
    lines = [
        "Pictures per second on one core, from the file to the network's input (median):",
        "",
        "| size | pictures | 0.2.0 | now |",
        "|---|--:|--:|--:|",
    ]
    for size, each in seconds.items():
        before, after = (1 / statistics.median(each[name]) for name in ("before", "after"))
        lines.append(f"| {size} | {len(each['after'])} | {before:.0f} | {after:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="runs on MNIST, comma-separated")
    parser.add_argument("--old", type=Path, help="checkout of 0.2.0, to compare the speed with")
    parser.add_argument("--given", type=Path, help="folder of further pictures")
    parser.add_argument("--keep", type=Path, help="folder to leave the pictures in")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    runs = [trained.load(folder) for folder in args.workdir.split(",")]
    last = json.loads(path("pictures.json").read_text())
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        draw_pictures.make(folder, args.seed)
        made = count(folder, runs)
        seconds = measure(args.old, folder) if args.old else last.get("seconds", {})
    given = count(args.given, runs) if args.given else {}
    before = last["before"]
    found = {"seed": args.seed, "given": given, "made": made, "seconds": seconds, "before": before}
    write_json("pictures", found | {"thresholds": thresholds()})
    parts = [f"Read by the worst of {len(runs)} networks (MNIST, 5 or 10 epochs):"]
    parts += [f"Given:\n\n{table(given, before['given'])}\n\nMade:"] if given else []
    parts += [table(made, before["made"])]
    parts += [speed_table(seconds)] if seconds else []
    write_markdown("pictures", "\n\n".join(parts))
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
