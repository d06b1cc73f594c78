"""Where does a training step spend its time? Each piece on one core, against the core's peak.

    python experiments/profile_step.py [--isa=avx2]

FLOP are counted for the usual arithmetic, with gradients as dense as their convolutions; the peak
is a matrix product of 1,024 x 1,024 in the same process. The last line is the temporary memory of a
step with LARGE_BATCH images, beyond which glibc would return memory to the system at each step.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import _isa

BATCH, LARGE_BATCH = 256, 1024
ROUNDS, REPEATS = 15, 5
DENSE = 400 * 120 + 120 * 84 + 84 * 10
CONV1, CONV2 = 28 * 28 * 6 * 25, 10 * 10 * 16 * 150


def pieces() -> dict[str, tuple[Callable[[], Any], float]]:
    """Piece -> a call of it, compiled, and its FLOP per image."""
    import jax
    import jax.numpy as jnp

    from lenet_jax import LeNet, create_train_state, make_optimizer, train_step
    from lenet_jax.core import jit, ops
    from lenet_jax.core.model import Linear

    def pieces_of(size: int, in_features: int, features: int) -> dict[str, Callable[[], Any]]:
        keys = jax.random.split(jax.random.key(0), 4)
        tiles = BATCH // ops.MAX_TILE_BATCH
        x = jax.random.normal(keys[0], (tiles, in_features, size, size, ops.MAX_TILE_BATCH))
        kernel = jax.random.normal(keys[1], (5, 5, in_features, features))
        bias = jnp.zeros(features)
        out, residuals = jit.jit(ops._forward)(x, kernel, bias)
        g = jnp.where(out > 0, jax.random.normal(keys[2], out.shape), 0)
        backward = lambda residuals, g: ops._backward(residuals, g, ops.SELECTS_SLOWLY)
        functions = {
            "forward, inference": (ops._tiled, x, kernel, bias),
            "forward with corners": (ops._forward, x, kernel, bias),
            "kernel gradient": (lambda *of: backward(*of)[1], residuals, g),
            "both gradients": (lambda *of: backward(*of)[:2], residuals, g),
        }
        return {name: compiled(*call) for name, call in functions.items()}

    def compiled(f: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        fast = jit.jit(f)
        return lambda: jax.block_until_ready(fast(*args))

    def dense() -> Callable[[], Any]:
        keys, names = jax.random.split(jax.random.key(0)), ("fc1", "fc2", "fc3")
        x = jax.random.normal(keys[0], (BATCH, 400))
        params = LeNet().init(keys[1], jnp.zeros((1, 32, 32, 1)))["params"]
        params = {name: params[name] for name in names}
        zeros = lambda key, shape, fan_in: jnp.zeros(shape)  # not used: params are given

        def loss(params: Any, x: jax.Array) -> jax.Array:
            for name in names:
                layer = Linear(params[name]["kernel"].shape, zeros)
                x = layer.apply({"params": params[name]}, x)
                x = x if name == "fc3" else jax.nn.relu(x)
            return jnp.square(x).sum()

        return compiled(jax.grad(loss, argnums=(0, 1)), params, x)

    def whole_step() -> Callable[[], Any]:
        state = create_train_state(jax.random.key(0), make_optimizer("adam"))
        images = jax.random.normal(jax.random.key(1), (BATCH, 32, 32, 1))
        labels = jnp.arange(BATCH) % 10

        def step() -> None:
            nonlocal state
            state, _ = train_step(state, {"image": images, "label": labels})
            jax.block_until_ready(state.params)

        return step

    square = jax.random.normal(jax.random.key(0), (1024, 1024))
    conv1, conv2 = pieces_of(32, 1, 6), pieces_of(14, 6, 16)
    return {
        "matrix product, 1,024 x 1,024": (
            compiled(jnp.matmul, square, square),
            2 * 1024**3 / BATCH,
        ),
        **{
            f"{name} {piece}": (call, 2 * count * (2 if piece == "both gradients" else 1))
            for name, calls, count in (("conv1", conv1, CONV1), ("conv2", conv2, CONV2))
            for piece, call in calls.items()
            if (name, piece) != ("conv1", "both gradients")  # a training step does not need it
        },
        "dense layers, forward and backward": (dense(), 3 * 2 * DENSE),
        "a training step, adam": (whole_step(), 2 * (2 * CONV1 + 3 * CONV2 + 3 * DENSE)),
    }


def temporary_memory() -> int:
    """Bytes that the compiler plans for a training step of LARGE_BATCH images."""
    import jax
    import jax.numpy as jnp

    from lenet_jax import create_train_state, make_optimizer, train_step

    state = create_train_state(jax.random.key(0), make_optimizer("adam"))
    batch = {"image": jnp.zeros((LARGE_BATCH, 32, 32, 1)), "label": jnp.zeros(LARGE_BATCH, int)}
    compiled = train_step.lower(state, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--isa", choices=_isa.VARIABLES, help="hold both sides to these instructions"
    )
    arguments = parser.parse_args()
    _isa.restart_with(arguments.isa)
    if hasattr(os, "sched_setaffinity"):  # before JAX starts its threads
        os.sched_setaffinity(0, {0})
    import _results

    seconds: dict[str, list[float]] = {}
    calls = pieces()
    for call, _ in calls.values():
        call()
    for _ in range(ROUNDS):
        for name, (call, _) in calls.items():
            start = time.perf_counter()
            for _ in range(REPEATS):
                call()
            seconds.setdefault(name, []).append((time.perf_counter() - start) / REPEATS)
    rows = [
        {
            "piece": name,
            "us_per_image": 1e6 * statistics.median(seconds[name]) / BATCH,
            "gflop_per_s": flop * BATCH / statistics.median(seconds[name]) / 1e9,
        }
        for name, (_, flop) in calls.items()
    ]
    peak = rows[0]["gflop_per_s"]
    lines = ["| piece, one core | µs per image | GFLOP/s | of the peak |", "|---|--:|--:|--:|"]
    for row in rows:
        time_per_image = "" if row is rows[0] else f"{row['us_per_image']:.1f}"
        lines.append(
            f"| {row['piece']} | {time_per_image} | {row['gflop_per_s']:.0f} | "
            f"{row['gflop_per_s'] / peak:.0%} |"
        )
    memory = temporary_memory() / 1e6
    lines += ["", f"A step of {LARGE_BATCH:,} images needs {memory:.1f} MB of temporary memory."]
    name = "profile_step" + (f"_{arguments.isa}" if arguments.isa else "")
    _results.write_json(name, {"batch": BATCH, "rows": rows, "temporary_megabytes": memory})
    _results.write_markdown(name, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
