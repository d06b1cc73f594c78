"""How long does a process take from its start until LeNet reads 99.0 % of MNIST's test images?

Compares ours with PyTorch, with the same network, loss, batch size, optimizer (adam) and one-cycle
schedule; PyTorch runs eager and channels-last with its fused adam, and does not import JAX. The
recipe is the best of `--search`, which trains on 50,000 of the training images and measures on the
other 10,000. The clock starts before the interpreter, and stops after the first epoch that ends
with a test accuracy of 99.0 % or more; it includes imports, compilation, evaluation and the reading
of MNIST's files. Cold means an empty compilation cache, warm a filled one; PyTorch has no such
cache.

    LENET_JAX_TEST_DATA=path/to/mnist python experiments/time_to_accuracy.py [--search]
    LENET_JAX_TEST_DATA=path/to/mnist python experiments/time_to_accuracy.py --isa=avx2

Writes results/time_to_accuracy[_avx2].{json,md}; takes 9 minutes on 2 cores. --isa holds both sides
to these instructions.
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
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import _isa
import _worker

TARGET, SEEDS = 0.99, 20
BATCH_SIZE, EPOCHS, LEARNING_RATE, LABEL_SMOOTHING = 64, 2, 6e-3, 0.1
PARTS = ("train", "t10k")


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
    with ThreadPoolExecutor(1) as pool:  # reads the files while the network is created
        loading = pool.submit(data.load, "mnist", _worker.mnist_folder())
        schedule = make_schedule("onecycle", EPOCHS * (60_000 // BATCH_SIZE))
        loss_fn = partial(losses.cross_entropy, label_smoothing=LABEL_SMOOTHING)
        key = jax.random.key(seed)
        tx = make_optimizer("adam", LEARNING_RATE, schedule=schedule)
        state = create_train_state(key, tx)
        mnist = loading.result()
    mesh = make_batch_mesh(BATCH_SIZE)
    state, train = replicate(mesh, (state, mnist.train))
    images, labels = (jnp.asarray(array) for array in mnist.test[:2])
    test = mnist.test._replace(images=images, labels=labels)
    kwargs = {"batch_size": BATCH_SIZE, "loss_fn": loss_fn, "mesh": mesh}
    accuracies = []
    for epoch in range(EPOCHS):
        state, _ = train_epoch(state, train, jax.random.fold_in(key, epoch), **kwargs)
        accuracies.append(float(evaluate(unreplicate(state), test)["accuracy"]))
        if accuracies[-1] >= TARGET:
            break
    return {"seconds": time.time() - started, "accuracies": accuracies}


def pytorch(seed: int, started: float) -> dict:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from tutorial_net import Net

    torch.manual_seed(seed)

    def read(name: str, head: int) -> torch.Tensor:
        (file,) = Path(_worker.mnist_folder()).glob(f"{name}*")
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=head).copy())

    x, test_x = (F.pad(read(f"{part}-images", 16).view(-1, 1, 28, 28), (2,) * 4) for part in PARTS)
    y, test_y = (read(f"{part}-labels", 8).long() for part in PARTS)
    mean, std = 0.1307, 0.3081  # the training images', as in PyTorch's own example
    normalize = lambda images: ((images.float() / 255 - mean) / std).to(memory_format=layout)
    layout = torch.channels_last  # with the fused adam the fastest form in throughput.py
    net = Net().to(memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, fused=True)
    steps = len(y) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=EPOCHS * steps, cycle_momentum=False
    )
    accuracies = []
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(y))[: steps * BATCH_SIZE].view(steps, BATCH_SIZE):
            optimizer.zero_grad()
            logits = net(normalize(x[rows]))
            F.cross_entropy(logits, y[rows], label_smoothing=LABEL_SMOOTHING).backward()
            optimizer.step()
            schedule.step()
        with torch.inference_mode():
            logits = torch.cat([net(normalize(part)) for part in test_x.split(1000)])
        accuracies.append((logits.argmax(1) == test_y).float().mean().item())
        if accuracies[-1] >= TARGET:
            break
    return {"seconds": time.time() - started, "accuracies": accuracies}


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


def compare(isa: str | None) -> None:
    from _results import write_json, write_markdown
    from tqdm import tqdm

    runs: dict[str, list] = {"ours, warm": [], "ours, cold": [], "PyTorch": []}
    with tempfile.TemporaryDirectory() as warm:
        start("ours", 99, warm)
        for seed in tqdm(range(SEEDS), disable=None):  # in turn, because the machine's speed drifts
            runs["ours, warm"].append(start("ours", seed, warm))
            with tempfile.TemporaryDirectory() as cold:
                runs["ours, cold"].append(start("ours", seed, cold))
            runs["PyTorch"].append(start("pytorch", seed, ""))
    lines = [
        f"{TARGET:.1%} of MNIST's test images, batch {BATCH_SIZE}, adam, one-cycle to "
        f"{LEARNING_RATE:g}, label smoothing {LABEL_SMOOTHING:g}, {EPOCHS} epochs at most, "
        f"{SEEDS} seeds.",
        "",
        "| | reached | seconds, median | seconds of each run |",
        "|---|--:|--:|---|",
    ]
    for name, results in runs.items():
        seconds = [until_target(run) for run in results]
        each = ", ".join("never" if value == math.inf else f"{value:.1f}" for value in seconds)
        reached = SEEDS - seconds.count(math.inf)
        lines.append(
            f"| {name} | {reached} of {SEEDS} | {statistics.median(seconds):.1f} | {each} |"
        )
    for name, ratio in ratios(runs).items():
        lines += ["", f"PyTorch takes {ratio:.2f} times as long as {name}."]
    print("\n".join(lines))
    name = "time_to_accuracy" + (f"_{isa}" if isa else "")
    write_json(name, {"runs": runs})
    write_markdown(name, "\n".join(lines))


def search() -> None:
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
    cells = list(itertools.product((3e-3, 6e-3, 1.2e-2), (0.0, 0.1), range(4)))
    rates, smoothings, seeds = (np.array(column) for column in zip(*cells, strict=True))
    rows = []
    for epochs in (2, 3):
        trained = population.train(
            population.MemberConfig(seeds, seeds, rates, label_smoothing=smoothings),
            training,
            epochs=epochs,
            batch_size=BATCH_SIZE,
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
    write_json("time_to_accuracy_search", {"rows": rows})


if __name__ == "__main__":
    if sys.argv[1:2] in (["ours"], ["pytorch"]):
        worker, seed, started = sys.argv[1:]
        print(json.dumps({"ours": ours, "pytorch": pytorch}[worker](int(seed), float(started))))
        raise SystemExit
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--search", action="store_true", help="choose the recipe")
    parser.add_argument("--isa", choices=_isa.VARIABLES)
    arguments = parser.parse_args()
    _worker.mnist_folder()
    _isa.restart_with(arguments.isa)
    search() if arguments.search else compare(arguments.isa)
