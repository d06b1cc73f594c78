"""How many images per second does training process, beside PyTorch and the usual Flax form?

Times full steps (forward, cross-entropy, backward, adam) of the tutorial's network, and the forward
pass alone. JAX has a process, and PyTorch has one for each instruction set of the processor: its
eager forms on all of them, its compiled forms on those since AVX2. All rows of a batch size are
timed in turn, round after round, so that a machine whose speed drifts slows all of them alike.
Ratios are taken within a round, against the fastest of PyTorch's rows, and the tables show their
median and quartiles. A round in which a row has less than 60 % of its own median speed is told
apart: it is repeated and left out (after twice as many rounds all count), and is listed with the
cores that were busy. Our rows are compiled as `train_step` and `train_epoch` are, with
`lenet_jax.core.jit`; the usual Flax form has JAX's default options; PyTorch's adam is fused, its
compiled forms have frozen weights in inference, and glibc keeps its large freed blocks.

"Cores as devices" is how `python -m lenet_jax.train` runs: each core computes its share of a batch,
or its networks, by itself; a batch that is too small to share (`sharding.make_batch_mesh`) stays on
one device. Rows of 8 networks and of 3 channels are timed in the same rounds as those of training
at their batch size. Images of 3 channels are also compared with those of 1 channel per
multiply-add, because the first convolution has three times as many.

    python experiments/throughput.py            # about 12 minutes on 2 cores
    python experiments/throughput.py --isa=avx2 # both sides held to AVX2
    python experiments/throughput.py --smoke    # one round of one batch size
    python experiments/throughput.py --redraw   # tables and figure from the .json files, no timing

Writes results/throughput.<processor>.{json,md}, or results/throughput_avx2.<processor>.*, and
results/throughput.png of all processors. On a machine with a GPU or TPU, JAX's rows run there, and
PyTorch's on a GPU, too.
"""

import argparse
from typing import Any

import _isa
import _throughput_page as page
from _batches import NUM_MEMBERS
from _results import command, of_device, write_json, writes
from _timed import Worker, make, measure
from tqdm import tqdm

BATCH_SIZES, ACCELERATOR_SIZES = (16, 64, 256, 1024), (64, 1024, 8192)
MEMBER_BATCH = 64  # at which 8 networks and images of 3 channels are timed, too
ROUNDS, SECONDS = 7, 0.3  # a measurement lasts about so long


def start_workers(smoke: bool = False) -> tuple[list[Worker], dict[str, Any]]:
    """The processes with rows, and the machine as JAX sees it."""
    jax = Worker("_jax_rows")
    machine = jax.ask("describe", smoke)
    kind = machine["devices"][0]
    if kind == "cpu":
        sets = {"": {"TORCHDYNAMO_DISABLE": "1"}} if smoke else _isa.sets_of_pytorch()
        torch = [Worker("_torch_rows", f", {name}" * bool(name), sets[name]) for name in sets]
    else:
        torch = [Worker("_torch_rows")] if "TPU" not in kind else []
    return [*torch, jax], {**machine, "command": command()}


def measure_all(
    workers: list[Worker],
    batch_sizes: tuple[int, ...],
    rounds: int,
    seconds: float = SECONDS,
    member_batch: int = MEMBER_BATCH,
) -> dict[str, Any]:
    """The speeds of all rows by group, their ratios, and the disturbed rounds."""
    results: dict[str, Any] = {"training": {}, "colour": {}, "members": {}, "inference": {}}
    ratios, disturbed = {}, {}
    for size in tqdm(batch_sizes, desc="training and inference", disable=None):
        at, more = f"batch {size}", ("members", "colour") if size == member_batch else ()
        rows = make(workers, ("training", *more), size)
        images = {name: size * images_of_a_step(name) for name in rows}
        speeds, disturbed[f"training, {at}"] = measure(rows, images, rounds, seconds)
        results["training"][at] = trained = page.rows_of_training(speeds)
        ratios[f"training, {at}"] = page.training_ratios(trained)
        if more:
            results["members"] = page.rows_of_members(speeds)
            ratios[f"{NUM_MEMBERS} networks, {at}"] = page.member_ratios(results["members"])
            results["colour"] = page.rows_of_colour(speeds)
            ratios[f"training, {at}, colour"] = page.colour_ratios(results["colour"])
        rows = make(workers, ("inference",), size)
        images = dict.fromkeys(rows, size)
        speeds, disturbed[f"inference, {at}"] = measure(rows, images, rounds, seconds)
        results["inference"][at] = speeds
        ratios[f"inference, {at}"] = page.inference_ratios(speeds)
    return {**results, "ratios": ratios, "disturbed": disturbed}


def images_of_a_step(name: str) -> int:
    """Images that a step trains on, for each image of a batch."""
    return NUM_MEMBERS if page.of_members(name) else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--isa", choices=_isa.VARIABLES, help="hold both sides to these instructions"
    )
    parser.add_argument("--smoke", action="store_true", help="one small round; writes nothing")
    parser.add_argument("--redraw", action="store_true", help="use the .json files, time nothing")
    flags = parser.parse_args()
    if flags.redraw:
        for name in (*page.names("throughput"), *page.names("throughput_avx2")):
            page.write(name)
        page.write_figure()
        return
    _isa.restart_with(flags.isa)
    workers, machine = start_workers(flags.smoke)
    sizes = BATCH_SIZES if machine["devices"][0] == "cpu" else ACCELERATOR_SIZES
    how = ((8,), 1, 0.01, 8) if flags.smoke else (sizes, ROUNDS)
    results = measure_all(workers, *how)
    for worker in workers:
        worker.close()
    print(page.tables(results))
    if writes(flags.smoke):
        name = of_device("throughput" + (f"_{flags.isa}" if flags.isa else ""), machine)
        write_json(name, {"machine": machine, **results})
        page.write(name)
        page.write_figure()


if __name__ == "__main__":
    main()
