"""How long is it from a process's start to the end of its first training step, and what takes it?

A researcher waits for it at every new loss. Each row is a new process, and the rows take turns:

- the usual Flax network and step; `create_train_state` and `train_step`; PyTorch's eager mode and
  `torch.compile`, contiguous, with adam fused; batch 64. Cold is with an empty folder for JAX's or
  PyTorch's compiled code, warm with a filled one;
- `python -m lenet_jax.train`, up to the first move of its progress bar (2 of 22 steps).

"trace" includes all of a call's Python; "first step" of PyTorch includes its compiling. The second
table has the seconds that XLA takes to compile the pieces of a step by themselves.

    python experiments/first_step.py [--against=path/to/checkout]

With --against, another checkout of the project takes turns with this one. Writes
results/first_step.<device>.{json,md}; takes ten minutes.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import _worker

RUNS, BATCH = 5, 64
HERE = Path(__file__).resolve().parent.parent
LOWERING = "/jax/core/compile/jaxpr_to_mlir_module_duration"
PHASES = ("import", "state", "trace", "lower", "compile", "first step")

Seconds = dict[str, float]


class Stopwatch:
    def __init__(self, started: float) -> None:
        self.seconds: Seconds = {}
        self._last = started

    def lap(self, phase: str) -> None:
        now = time.time()
        self.seconds[phase] = now - self._last
        self._last = now


def usual_flax(watch: Stopwatch) -> None:
    import jax
    from _usual_flax import usual_state, usual_step

    watch.lap("import")
    state = usual_state(jax.random.key(0))
    watch.lap("state")
    jax_step(jax.jit(usual_step, donate_argnums=0), state, watch)


def ours(watch: Stopwatch) -> None:
    from lenet_jax import create_train_state, make_optimizer, train_step

    watch.lap("import")
    state = create_train_state(0, make_optimizer("adam"))
    watch.lap("state")
    jax_step(train_step, state, watch)


def jax_step(step: Any, state: Any, watch: Stopwatch) -> None:
    import jax

    lowering = []

    def record(event: str, duration: float, **_: object) -> None:
        if event == LOWERING:
            lowering.append(duration)

    jax.monitoring.register_event_duration_secs_listener(record)
    images, labels = random_batch()
    lowered = step.lower(state, {"image": images, "label": labels})
    watch.lap("trace")
    watch.seconds["trace"] -= sum(lowering)
    watch.seconds["lower"] = sum(lowering)
    compiled = lowered.compile()
    watch.lap("compile")
    jax.block_until_ready(compiled(state, {"image": images, "label": labels}))
    watch.lap("first step")


def pytorch(compiled: bool, watch: Stopwatch) -> None:
    import torch
    from tutorial_net import Net

    watch.lap("import")
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    watch.lap("state")
    images, labels = random_batch()
    forward = torch.compile(net) if compiled else net
    logits = forward(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long()).backward()
    optimizer.step()
    watch.lap("first step")


def random_batch() -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.standard_normal((BATCH, 32, 32, 1), dtype=np.float32)
    return images, rng.integers(0, 10, BATCH, dtype=np.int32)


def train(watch: Stopwatch) -> None:
    """Ends the process, because the command would go on."""
    import tqdm

    import lenet_jax.train

    watch.lap("import")

    def first_update(*_: object) -> None:
        watch.lap("first step")
        print(json.dumps(watch.seconds), flush=True)
        os._exit(0)

    tqdm.tqdm.update = first_update
    with tempfile.TemporaryDirectory() as workdir:
        lenet_jax.train.main(["train", "--dataset=digits", f"--workdir={workdir}"])


def compile_pieces() -> dict[str, Seconds]:
    """Piece -> seconds of its compiling, in our form and in the usual one."""
    import jax
    import jax.numpy as jnp
    import optax
    from _usual_flax import usual_state, usual_step

    from lenet_jax import create_train_state, losses, make_optimizer, update
    from lenet_jax.core import metrics
    from lenet_jax.core.jit import jit
    from lenet_jax.core.ops import conv_relu_pool, conv_relu_pool_plain

    jax.config.update("jax_enable_compilation_cache", False)
    images, labels = map(jnp.asarray, random_batch())
    batch = {"image": images, "label": labels}
    state, usual = create_train_state(0, make_optimizer("adam")), usual_state(jax.random.key(0))
    conv1, conv2, *dense = [(layer["kernel"], layer["bias"]) for layer in state.params.values()]
    pooled1, pooled2 = jnp.ones((BATCH, 14, 14, 6)), jnp.ones((BATCH, 5, 5, 16))
    features, logits = pooled2.reshape(BATCH, -1), jnp.ones((BATCH, 10))

    def gradients(f: Callable, g: jax.Array, *args: Any) -> Any:
        return jax.vjp(f, *args)[1](g)

    def kernel_gradients(op: Callable, g: jax.Array, images: jax.Array, *weights: Any) -> Any:
        return gradients(partial(op, images), g, *weights)

    def dense_layers(x: jax.Array, layers: list) -> jax.Array:
        for kernel, bias in layers[:-1]:
            x = jax.nn.relu(x @ kernel + bias[None])
        return x @ layers[-1][0] + layers[-1][1][None]

    def adam(tx: optax.GradientTransformation, params: Any, opt_state: Any) -> Any:
        updates, opt_state = tx.update(params, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def loss_and_accuracy(loss: Callable, logits: jax.Array, labels: jax.Array) -> Any:
        of_logits = jax.value_and_grad(lambda logits: loss(logits, labels))
        return of_logits(logits), metrics.accuracy(logits, labels)

    def usual_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def of_ops(f: Callable, *args: Any) -> tuple:
        """`f` with each form of the operation."""
        return (partial(f, conv_relu_pool), *args), (partial(f, conv_relu_pool_plain), *args)

    dense_call = (partial(gradients, dense_layers), logits, features, dense)
    calls = {  # piece -> our function and its arguments, and the usual ones
        "a step": ((update, state, batch), (usual_step, usual, batch)),
        "conv1 forward": of_ops(lambda op, *args: op(*args), images, *conv1),
        "conv1 forward and backward": of_ops(kernel_gradients, pooled1, images, *conv1),
        "conv2 forward": of_ops(lambda op, *args: op(*args), pooled1, *conv2),
        "conv2 forward and backward": of_ops(gradients, pooled2, pooled1, *conv2),
        "dense layers": (dense_call, dense_call),
        "adam": (
            (partial(adam, state.tx), state.params, state.opt_state),
            (partial(adam, optax.adam(1e-3)), *usual),
        ),
        "loss and accuracy": (
            (partial(loss_and_accuracy, losses.cross_entropy), logits, labels),
            (partial(loss_and_accuracy, usual_loss), logits, labels),
        ),
    }
    seconds: dict[str, Seconds] = {}
    for piece, (of_ours, of_usual) in calls.items():
        seconds[piece] = {}
        for form, compile_with, call in (("ours", jit, of_ours), ("usual", jax.jit, of_usual)):
            jax.clear_caches()
            lowered = compile_with(call[0]).lower(*call[1:])
            before = time.perf_counter()
            lowered.compile()
            seconds[piece][form] = time.perf_counter() - before
    return seconds


WORKERS: dict[str, Callable[[Stopwatch], None]] = {
    "usual Flax": usual_flax,
    "ours": ours,
    "PyTorch eager": partial(pytorch, False),
    "PyTorch torch.compile": partial(pytorch, True),
    "python -m lenet_jax.train": train,
}
WITHOUT_CACHE = ("PyTorch eager",)
OF_A_CHECKOUT = ("ours", "python -m lenet_jax.train")  # the rows that --against repeats


def start(worker: str, cache: str, checkout: Path = HERE) -> dict[str, Any]:
    """Runs a worker in a new process; the clock starts here.

    JAX keeps compiled functions as after `lenet_jax.enable_compilation_cache()`.
    """
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "PYTHONPATH": str(checkout),
    }
    return _worker.run(__file__, ["--worker", worker, repr(time.time())], environment)


def measure(against: Path | None, runs: int) -> dict[str, Any]:
    """`rows`: row -> the seconds of each run; `pieces`: checkout -> those of each run."""
    checkouts = {"": HERE} | ({", before": against} if against else {})
    rows: dict[str, list[Seconds]] = {}
    pieces: dict[str, list[dict[str, Seconds]]] = {}
    for _ in range(runs):
        for row in WORKERS:
            for suffix, checkout in checkouts.items():
                if suffix and row not in OF_A_CHECKOUT:
                    continue
                with tempfile.TemporaryDirectory() as cache:
                    for state in ("",) if row in WITHOUT_CACHE else (", cold", ", warm"):
                        seconds = start(row, cache, checkout)
                        rows.setdefault(f"{row}{suffix}{state}", []).append(seconds)
        for suffix, checkout in checkouts.items():
            with tempfile.TemporaryDirectory() as cache:
                run = start("pieces", cache, checkout)
            pieces.setdefault(f"ours{suffix}", []).append(run)
    return {"rows": rows, "pieces": pieces}


def table(results: dict[str, Any]) -> str:
    """Medians, in seconds."""
    rows, pieces = results["rows"], results["pieces"]
    lines = [
        f"| seconds | to the end of the first step | {' | '.join(PHASES)} |",
        f"|---|{'--:|' * (1 + len(PHASES))}",
    ]
    for row, runs in rows.items():
        total = statistics.median(sum(run.values()) for run in runs)
        cells = [
            f"{statistics.median(run[phase] for run in runs):.2f}" if phase in runs[0] else ""
            for phase in PHASES
        ]
        lines.append(f"| {row} | **{total:.2f}** | {' | '.join(cells)} |")
    columns = [(name, name, "ours") for name in pieces] + [("usual form", "ours", "usual")]
    lines += [
        "",
        f"| compiling alone, seconds | {' | '.join(title for title, *_ in columns)} |",
        f"|---|{'--:|' * len(columns)}",
    ]
    for piece in pieces["ours"][0]:
        cells = [
            f"{statistics.median(run[piece][form] for run in pieces[name]):.2f}"
            for _, name, form in columns
        ]
        lines.append(f"| {piece} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    from _results import of_device, write_json, write_markdown

    parser = argparse.ArgumentParser()
    parser.add_argument("--against", type=Path)
    parser.add_argument("--worker", nargs=2)
    args = parser.parse_args()
    if args.worker:
        name, started = args.worker
        watch = Stopwatch(float(started))
        if name == "pieces":
            print(json.dumps(compile_pieces()))
        else:
            WORKERS[name](watch)
            print(json.dumps(watch.seconds))
        return
    results = measure(args.against and args.against.resolve(), RUNS)
    print(table(results))
    write_json(of_device("first_step"), results)
    write_markdown(of_device("first_step"), table(results))


if __name__ == "__main__":
    main()
