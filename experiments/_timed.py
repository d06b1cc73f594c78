"""Times the rows of several processes in turn, and tells disturbed rounds apart.

A row is a function that runs a given number of steps and waits for the last one. The rows of a
library live in a process of their own, which runs this file: `python _timed.py module` imports the
module and answers requests, JSON lines, with what its function `make` returns and with times. While
one process works, the others wait for their next line. Imports the standard library only.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = Callable[[int], None]
Speeds = dict[str, list[float]]  # row -> images per second, round by round

DISTURBED = 0.6  # of a row's own median
MOST = 2  # times as many rounds as asked for, at most


class Worker:
    """A process with the rows of `module`; `label` is added to their names."""

    def __init__(self, module: str, label: str = "", environment: dict[str, str] | None = None):
        self.label = label
        self.process = subprocess.Popen(
            [sys.executable, __file__, module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def send(self, *request: Any) -> None:
        print(json.dumps(request), file=self.process.stdin, flush=True)

    def receive(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a process with rows has ended; its error is above")
        return json.loads(line)

    def ask(self, *request: Any) -> Any:
        self.send(*request)
        return self.receive()

    def close(self) -> None:
        with self.process:  # closes its pipes, and waits for it
            pass


def make(workers: list[Worker], groups: tuple[str, ...], batch_size: int) -> dict[str, Worker]:
    """Row -> its process, for the rows of these groups; the processes compile side by side."""
    for worker in workers:
        worker.send("make", groups, batch_size)
    return {f"{row}{worker.label}": worker for worker in workers for row in worker.receive()}


def measure(
    rows: dict[str, Worker], images_per_step: dict[str, int], rounds: int, seconds: float
) -> tuple[Speeds, list[dict[str, Any]]]:
    """`in_turn` with the rows of several processes; each measurement lasts about `seconds`."""
    ask = lambda name, steps: rows[name].ask("run", name.removesuffix(rows[name].label), steps)
    steps = {name: max(1, round(seconds / ask(name, 1)["seconds"])) for name in rows}
    return in_turn(ask, steps, images_per_step, rounds)


def in_turn(
    time_row: Callable[[str, int], dict[str, float]],
    steps: dict[str, int],
    images_per_step: dict[str, int],
    rounds: int,
) -> tuple[Speeds, list[dict[str, Any]]]:
    """Images per second of each row in each undisturbed round, the rows in turn.

    `time_row` takes a row's name and steps and returns what `timed` does. The second result has a
    dict for each row that was slow in a disturbed round. Each disturbed round is repeated, until
    there are `MOST * rounds` rounds; then all rounds count.
    """
    done: list[dict[str, dict[str, float]]] = []
    speeds: Speeds = {name: [] for name in steps}
    while True:
        done.append({name: time_row(name, steps[name]) for name in steps})
        for name, times in done[-1].items():
            speeds[name].append(steps[name] * images_per_step[name] / times["seconds"])
        slow = slow_rows(speeds)
        if len(done) - len({at for at, _ in slow}) == rounds or len(done) == MOST * rounds:
            break
    found = [
        {"round": at, "row": name, "of its median": share, **done[at][name]}
        for (at, name), share in slow.items()
    ]
    return speeds if len(done) == MOST * rounds else without(speeds, slow), found


def slow_rows(speeds: Speeds) -> dict[tuple[int, str], float]:
    """(round, row) -> share of the row's own median, where that is below DISTURBED."""
    medians = {name: statistics.median(each) for name, each in speeds.items()}
    shares = {
        (at, name): speed / medians[name]
        for name, each in speeds.items()
        for at, speed in enumerate(each)
    }
    return {key: share for key, share in sorted(shares.items()) if share < DISTURBED}


def without(speeds: Speeds, slow: dict[tuple[int, str], float]) -> Speeds:
    """`speeds` of the rounds in which no row was slow."""
    left_out = {at for at, _ in slow}
    return {
        name: [speed for at, speed in enumerate(each) if at not in left_out]
        for name, each in speeds.items()
    }


# --- in the process with the rows


def serve(module: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    library = importlib.import_module(module)
    rows: dict[str, Row] = {}
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        if what == "make":
            groups, batch_size = arguments
            rows = {}  # frees the last ones' memory
            for group in groups:
                rows |= library.make(group, batch_size)
            for run in rows.values():
                run(1)  # compiles
            answer: Any = list(rows)
        elif what == "run":
            row, steps = arguments
            answer = timed(rows[row], steps)
        else:
            answer = getattr(library, what)(*arguments)
        print(json.dumps(answer), file=answers, flush=True)


def timed(run: Row, steps: int) -> dict[str, float]:
    """Seconds of so many steps, how many cores they kept busy, and how many others did."""
    run(max(1, steps // 4))  # threads wake up, and the row's arrays return to the caches
    busy, own, start = _busy_seconds(), time.process_time(), time.perf_counter()
    run(steps)
    seconds = time.perf_counter() - start
    own = time.process_time() - own
    others = max(0.0, _busy_seconds() - busy - own)
    return {"seconds": seconds, "cores": own / seconds, "cores of others": others / seconds}


def _busy_seconds() -> float:
    """Seconds for which the machine's cores worked, or were taken from this virtual machine."""
    file = Path("/proc/stat")
    if not file.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, file.read_text().split()[1:11])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    serve(sys.argv[1])
