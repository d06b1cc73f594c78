"""How many images per second does a training step take, against PyTorch and the usual Flax form?

Times full steps (forward, cross-entropy, backward, adam) of the tutorial's network, and the forward
pass alone. All rows of a batch size are timed in turn, round after round, so that a machine whose
speed drifts slows all of them alike; ratios are taken within a round, and the tables show their
median and quartiles. Our rows are compiled as `train_step` and `train_epoch` are, with
`lenet_jax.core.jit`; the usual Flax form has JAX's default options; PyTorch runs in four forms,
each with its fused adam.

"Cores as devices" is how `python -m lenet_jax.train` runs: each core computes its share of a batch,
or its networks, by itself; a batch that is too small to share (`sharding.make_batch_mesh`) stays on
one device. Images of 3 channels are timed in the same rounds as images of 1 channel. The two are
also compared per multiply-add, because the first convolution has three times as many.

    python experiments/throughput.py            # about 5 minutes on 2 cores
    python experiments/throughput.py --isa=avx2 # both sides held to AVX2
    python experiments/throughput.py --smoke    # one round of one small batch, nothing written
    python experiments/throughput.py --redraw   # tables and figures from the .json files, no timing

Writes results/throughput.{json,md,png}, or results/throughput_avx2.*.
"""

import argparse
import time
from typing import Any

import _throughput_page as page
import torch._inductor.config
from _isa import VARIABLES, restart_with
from _results import write_json
from _throughput_rows import (
    NUM_MEMBERS,
    Row,
    colour_rows,
    inference_rows,
    member_rows,
    training_rows,
)
from tqdm import tqdm

from lenet_jax import cli

BATCH_SIZES = (16, 64, 256, 1024)
MEMBER_BATCH, COLOUR_BATCH = 64, 64
ROUNDS, SECONDS = 7, 0.2  # a measurement lasts at least so long


def measure(
    rows: dict[str, Row], images_per_step: dict[str, int], rounds: int, seconds: float = SECONDS
) -> page.Speeds:
    """Images per second of each row in each round, the rows in turn."""
    steps = {}
    for name, run in rows.items():
        for _ in range(2):  # compile, then warm up
            run(1)
        started = time.perf_counter()
        run(1)
        steps[name] = max(1, round(seconds / (time.perf_counter() - started)))
    speeds: page.Speeds = {name: [] for name in rows}
    for _ in range(rounds):
        for name, run in rows.items():
            started = time.perf_counter()
            run(steps[name])
            elapsed = time.perf_counter() - started
            speeds[name].append(steps[name] * images_per_step[name] / elapsed)
    return speeds


def measure_all(batch_sizes: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """The speeds of all rows by group, and their ratios."""
    results: dict[str, Any] = {"training": {}, "colour": {}, "members": {}, "inference": {}}
    ratios = {}
    for size in tqdm(batch_sizes, desc="training and inference", disable=None):
        for what, make_rows, ratios_of in (
            ("training", training_rows, page.training_ratios),
            ("inference", inference_rows, page.inference_ratios),
        ):
            at, rows = f"batch {size}", make_rows(size)
            speeds = measure(rows, dict.fromkeys(rows, size), rounds)
            results[what][at] = speeds
            ratios[f"{what}, {at}"] = ratios_of(speeds)
    rows = member_rows(MEMBER_BATCH)
    images = {name: MEMBER_BATCH * (1 if "one network" in name else NUM_MEMBERS) for name in rows}
    results["members"] = speeds = measure(rows, images, rounds)
    ratios[f"{NUM_MEMBERS} networks, batch {MEMBER_BATCH}"] = page.member_ratios(speeds)
    rows = colour_rows(COLOUR_BATCH)
    results["colour"] = speeds = measure(rows, dict.fromkeys(rows, COLOUR_BATCH), rounds)
    ratios[f"training, batch {COLOUR_BATCH}, colour"] = page.colour_ratios(speeds)
    return {**results, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", choices=VARIABLES, help="hold both sides to these instructions")
    parser.add_argument("--smoke", action="store_true", help="one small round; writes nothing")
    parser.add_argument("--redraw", action="store_true", help="use the .json files, time nothing")
    flags = parser.parse_args()
    if flags.redraw:
        for name in ("throughput", "throughput_avx2"):
            page.write(name)
        return
    restart_with(flags.isa)
    if flags.isa == "avx2":
        torch._inductor.config.cpp.simdlen = 256
    cli.start_jax(cache=False, cores_are_devices=True)
    results = measure_all((16,), 1) if flags.smoke else measure_all(BATCH_SIZES, ROUNDS)
    print(page.tables(results))
    if not flags.smoke:
        name = f"throughput_{flags.isa}" if flags.isa else "throughput"
        write_json(name, results)
        page.write(name)


if __name__ == "__main__":
    main()
