"""How long does a process take from its start until LeNet reads 99.0 % of MNIST's test images?

Compares ours with PyTorch, with the same network, loss, batch size, optimizer (adam) and one-cycle
schedule; PyTorch runs eager and channels-last with its fused adam, and does not import JAX. The
recipe is the best of `--search`, which trains on 50,000 of the training images and measures on the
other 10,000. The clock starts before the interpreter, and stops after the first epoch that ends
with a test accuracy of 99.0 % or more; it includes imports, compilation, evaluation and the reading
of MNIST's files. Cold means an empty compilation cache, warm a filled one; PyTorch has no such
cache. "Training" is a second training in the same process, from other weights, for as many epochs:
nothing compiles in it, the images are on the device, and no accuracy is measured.

On a GPU or TPU the recipe has larger batches, and on a GPU PyTorch runs there, too, also with a
CUDA graph of its step. On a CPU, each epoch of ours is one compiled function, as there.

    LENET_JAX_TEST_DATA=path/to/mnist python experiments/time_to_accuracy.py
    LENET_JAX_TEST_DATA=path/to/mnist python experiments/time_to_accuracy.py --isa=avx2
    LENET_JAX_TEST_DATA=path/to/mnist python experiments/time_to_accuracy.py --search=64

Writes results/time_to_accuracy[_avx2].<device>.{json,md}; takes 9 minutes on 2 cores of an EPYC.
--isa holds both sides to these instructions; --search takes a batch size.
"""

import argparse
import gc
import gzip
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import _isa
import _worker

TARGET, SEEDS = 0.99, 20
PARTS = ("train", "t10k")


class Recipe(NamedTuple):
    batch_size: int
    epochs: int
    learning_rate: float
    label_smoothing: float


SMALL_BATCHES, LARGE_BATCHES = Recipe(64, 2, 6e-3, 0.1), Recipe(512, 4, 3.4e-2, 0.1)


def ours(seed: int, started: float) -> dict:
    import jax
    import jax.numpy as jnp

    from lenet_jax import cli, create_train_state, data, make_optimizer, train_epoch
    from lenet_jax.core import losses
    from lenet_jax.core.epoch import evaluate
    from lenet_jax.core.optimizers import make_schedule
    from lenet_jax.core.sharding import make_batch_mesh, replicate, unreplicate

    gc.freeze()  # exclude imported objects from collection: tracing is a tenth faster
    cli.start_jax(cores_are_devices=True)
    recipe = SMALL_BATCHES if jax.default_backend() == "cpu" else LARGE_BATCHES
    mesh = make_batch_mesh(recipe.batch_size)
    schedule = make_schedule("onecycle", recipe.epochs * (60_000 // recipe.batch_size))
    loss_fn = partial(losses.cross_entropy, label_smoothing=recipe.label_smoothing)
    tx = make_optimizer("adam", recipe.learning_rate, schedule=schedule)
    kwargs = {"batch_size": recipe.batch_size, "loss_fn": loss_fn, "mesh": mesh}
    state = None

    def begin(seed: int) -> None:
        nonlocal state
        state = replicate(mesh, create_train_state(jax.random.key(seed), tx))

    with ThreadPoolExecutor(1) as pool:  # reads the files while the network is created
        loading = pool.submit(data.load, "mnist", _worker.mnist_folder())
        begin(seed)
        mnist = loading.result()
    train = replicate(mesh, mnist.train)
    images, labels = (jnp.asarray(array) for array in mnist.test[:2])
    test = mnist.test._replace(images=images, labels=labels)

    def epoch(seed: int, number: int) -> None:
        nonlocal state
        key = jax.random.fold_in(jax.random.key(seed), number)
        state, _ = train_epoch(state, train, key, **kwargs)

    accuracy = lambda: float(evaluate(unreplicate(state), test)["accuracy"])
    wait = lambda: jax.block_until_ready(state.params)
    return both_clocks(seed, started, recipe, begin, epoch, accuracy, wait)


def pytorch(seed: int, started: float, graph: bool = False) -> dict:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from tutorial_net import Net

    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = SMALL_BATCHES if device == "cpu" else LARGE_BATCHES
    torch.set_float32_matmul_precision("high")  # TensorFloat-32 on a GPU, as JAX's default there

    def read(name: str, head: int) -> torch.Tensor:
        (file,) = Path(_worker.mnist_folder()).glob(f"{name}*")
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        array = np.frombuffer(content, np.uint8, offset=head).copy()
        return torch.from_numpy(array).to(device)

    x, test_x = (F.pad(read(f"{part}-images", 16).view(-1, 1, 28, 28), (2,) * 4) for part in PARTS)
    y, test_y = (read(f"{part}-labels", 8).long() for part in PARTS)
    mean, std = 0.1307, 0.3081  # the training images', as in PyTorch's own example
    normalize = lambda images: ((images.float() / 255 - mean) / std).to(memory_format=layout)
    layout = torch.channels_last  # with the fused adam the fastest form in throughput.py
    steps = len(y) // recipe.batch_size
    net = optimizer = schedule = step = None  # of the current training
    rows = torch.zeros(recipe.batch_size, dtype=torch.long, device=device)  # of a graph's batch

    def step_on(rows: torch.Tensor) -> None:
        logits = net(normalize(x[rows]))
        F.cross_entropy(logits, y[rows], label_smoothing=recipe.label_smoothing).backward()
        optimizer.step()

    def eager_step(batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        step_on(batch)

    def captured_step() -> Callable[[torch.Tensor], None]:
        """Captures a step in a CUDA graph, and takes back the steps that this needs."""
        before = [weight.detach().clone() for weight in net.parameters()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                optimizer.zero_grad(set_to_none=True)
                step_on(rows)
        torch.cuda.current_stream().wait_stream(side)
        optimizer.zero_grad(set_to_none=True)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step_on(rows)
        with torch.no_grad():
            for weight, old in zip(net.parameters(), before, strict=True):
                weight.copy_(old)
            for state in optimizer.state.values():
                for number in state.values():
                    number.zero_()

        def step(batch: torch.Tensor) -> None:
            rows.copy_(batch)
            captured.replay()

        return step

    def begin(seed: int) -> None:
        nonlocal net, optimizer, schedule, step
        torch.manual_seed(seed)
        net = Net().to(device, memory_format=layout)
        # A graph reads its learning rate from the device.
        rate = torch.tensor(recipe.learning_rate, device=device) if graph else recipe.learning_rate
        optimizer = torch.optim.Adam(net.parameters(), lr=rate, fused=True, capturable=graph)
        step = captured_step() if graph else eager_step
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            recipe.learning_rate,
            total_steps=recipe.epochs * steps,
            cycle_momentum=False,
        )

    def epoch(seed: int, number: int) -> None:
        order = torch.randperm(len(y), device=device)[: steps * recipe.batch_size]
        for batch in order.view(steps, recipe.batch_size):
            step(batch)
            schedule.step()

    def accuracy() -> float:
        with torch.inference_mode():
            logits = torch.cat([net(normalize(part)) for part in test_x.split(1000)])
        return (logits.argmax(1) == test_y).float().mean().item()

    wait = lambda: torch.cuda.synchronize() if device == "cuda" else None
    begin(seed)
    return both_clocks(seed, started, recipe, begin, epoch, accuracy, wait)


def both_clocks(
    seed: int,
    started: float,
    recipe: Recipe,
    begin: Callable[[int], None],
    epoch: Callable[[int, int], None],
    accuracy: Callable[[], float],
    wait: Callable[[], object],
) -> dict:
    """Trains until the target, then anew, for the seconds of training alone."""
    accuracies: list[float] = []
    while len(accuracies) < recipe.epochs and max(accuracies, default=0) < TARGET:
        epoch(seed, len(accuracies))
        accuracies.append(accuracy())
    seconds = time.time() - started
    begin(seed + SEEDS)
    wait()
    start = time.perf_counter()
    for number in range(len(accuracies)):
        epoch(seed + SEEDS, number)
    wait()
    training = time.perf_counter() - start
    return {"seconds": seconds, "training": training, "accuracies": accuracies}


def start(worker: str, seed: int, cache: str) -> dict:
    """Runs a worker in a new process; the clock starts here."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    return _worker.run(__file__, [worker, str(seed), repr(time.time())], environment)


def until_target(run: dict) -> float:
    """Seconds until the target; infinite if the run missed it, for the medians."""
    return run["seconds"] if run["accuracies"][-1] >= TARGET else math.inf


def ratios(runs: dict[str, list[dict]]) -> dict[str, float]:
    """Seconds of PyTorch over ours: the median over seeds."""
    pairs = {name: zip(runs["PyTorch"], runs[name], strict=True) for name in runs if "ours" in name}
    return {
        name: statistics.median(until_target(theirs) / until_target(mine) for theirs, mine in pair)
        for name, pair in pairs.items()
    }


def compare(isa: str | None, seeds: int, smoke: bool) -> None:
    from _results import of_device, write_json, write_markdown, writes
    from tqdm import tqdm

    runs: dict[str, list] = {"ours, warm": [], "ours, cold": [], "PyTorch": []}
    if has_cuda():
        runs["PyTorch, CUDA graph"] = []
    with tempfile.TemporaryDirectory() as warm:
        if not smoke:
            start("ours", 99, warm)
        for seed in tqdm(range(seeds), disable=None):  # in turn, because the machine's speed drifts
            runs["ours, warm"].append(start("ours", seed, warm))
            with tempfile.TemporaryDirectory() as cold:
                runs["ours, cold"].append(start("ours", seed, cold))
            runs["PyTorch"].append(start("pytorch", seed, ""))
            if "PyTorch, CUDA graph" in runs:
                runs["PyTorch, CUDA graph"].append(start("pytorch_graph", seed, ""))
    import jax

    recipe = SMALL_BATCHES if jax.default_backend() == "cpu" else LARGE_BATCHES
    lines = [
        f"{TARGET:.1%} of MNIST's test images, batch {recipe.batch_size}, adam, one-cycle to "
        f"{recipe.learning_rate:g}, label smoothing {recipe.label_smoothing:g}, {recipe.epochs} "
        f"epochs at most, {seeds} seeds.",
        "",
        "| | reached | seconds, median | training alone, median | seconds of each run |",
        "|---|--:|--:|--:|---|",
    ]
    for name, results in runs.items():
        seconds = [until_target(run) for run in results]
        each = ", ".join("never" if value == math.inf else f"{value:.1f}" for value in seconds)
        reached = seeds - seconds.count(math.inf)
        training = statistics.median(run["training"] for run in results)
        lines.append(
            f"| {name} | {reached} of {seeds} | {statistics.median(seconds):.1f} | "
            f"{training:.2f} | {each} |"
        )
    for name, ratio in ratios(runs).items():
        lines += ["", f"PyTorch takes {ratio:.2f} times as long as {name}."]
    print("\n".join(lines))
    if writes(smoke):
        name = of_device("time_to_accuracy" + (f"_{isa}" if isa else ""))
        write_json(name, {"recipe": recipe._asdict(), "runs": runs})
        write_markdown(name, "\n".join(lines))


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def search(batch_size: int) -> None:
    """Measures recipes on held-out images after training on 50,000; reads no test images."""
    import _mnist
    import jax
    import numpy as np
    from _results import write_json

    from lenet_jax import cli
    from lenet_jax.core import metrics, population

    cli.start_jax(cores_are_devices=True)
    mnist = _mnist.load()
    held_out, training = _mnist.hold_out(mnist.train, 10_000)
    scale = math.sqrt(batch_size / SMALL_BATCHES.batch_size)  # of the rates that adam takes well
    rates, smoothings, lengths = (3e-3, 6e-3, 1.2e-2), (0.0, 0.1), (2, 3)
    if scale > 1:  # less to try, as the recipe of a CPU is known
        rates, smoothings, lengths = (6e-3 * scale, 1.2e-2 * scale), (0.1,), (3, 4)
    cells = list(itertools.product(rates, smoothings, range(4)))
    rates, smoothings, seeds = (np.array(column) for column in zip(*cells, strict=True))
    rows = []
    for epochs in lengths:
        trained = population.train(
            population.MemberConfig(seeds, seeds, rates, label_smoothing=smoothings),
            training,
            epochs=epochs,
            batch_size=batch_size,
        )
        logits = population.predict(trained.params, held_out)
        accuracies = jax.vmap(metrics.accuracy, (0, None))(logits, held_out.labels)
        for i in range(0, len(cells), 4):
            each = [float(accuracy) for accuracy in accuracies[i : i + 4]]
            rate, smoothing, _ = cells[i]
            rows.append(
                {
                    "epochs": epochs,
                    "learning_rate": rate,
                    "label_smoothing": smoothing,
                    "held_out_accuracies": each,
                }
            )
            print(
                f"{epochs} epochs, peak {rate:g}, label smoothing {smoothing:g}: "
                f"{statistics.mean(each):.3%} ({', '.join(f'{a:.2%}' for a in each)})",
                flush=True,
            )
    suffix = "" if scale == 1 else f"_{batch_size}"
    write_json(f"time_to_accuracy_search{suffix}", {"batch_size": batch_size, "rows": rows})


WORKERS = {"ours": ours, "pytorch": pytorch, "pytorch_graph": partial(pytorch, graph=True)}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in WORKERS:
        worker, seed, started = sys.argv[1:]
        print(json.dumps(WORKERS[worker](int(seed), float(started))))
        raise SystemExit
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--search", type=int, metavar="BATCH_SIZE", help="choose the recipe")
    parser.add_argument("--isa", choices=_isa.VARIABLES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--smoke", action="store_true", help="one seed, see accelerator.py")
    arguments = parser.parse_args()
    _worker.mnist_folder()
    _isa.restart_with(arguments.isa)
    if arguments.search:
        search(arguments.search)
    else:
        compare(arguments.isa, 1 if arguments.smoke else arguments.seeds, arguments.smoke)
