"""How does the number of networks that train together affect the total speed?

Times `population.train_steps` for 1, 2, 4, 8 and 16 networks in turn (adam, batch 64, each network
with its own order of the images), then the same with augmented images. All cores together compute a
single network; of several networks, each core trains its own.

    python experiments/populations.py

Prints a table and writes it to results/populations.{json,md}; takes 4 minutes on 2 cores.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from _results import write_json, write_markdown
from _throughput_page import ratio

from lenet_jax import cli, data
from lenet_jax.core import population
from lenet_jax.core.population import MemberConfig
from lenet_jax.core.sharding import make_member_mesh, replicate, shard

NUMBERS, BATCH_SIZE, EXAMPLES, ROUNDS = (1, 2, 4, 8, 16), 64, 6400, 9
UPDATES = 480  # per measurement, over all networks


def speeds_of(amount: float | None) -> dict[str, list[float]]:
    """Number of networks -> network-images per second, round by round."""
    images = jax.random.randint(jax.random.key(0), (EXAMPLES, 32, 32, 1), 0, 256).astype(jnp.uint8)
    split = data.Split(images, jnp.arange(EXAMPLES) % 10, 0.1307, 0.3081)
    runs, make = {}, population.named_recipe("adam")
    for number in NUMBERS:
        seeds = np.arange(number)
        members = MemberConfig(seeds, seeds, 1e-3, augment=amount)
        orders = population.epoch_orders(members, 0, EXAMPLES, batch_size=BATCH_SIZE)
        mesh = make_member_mesh(number)
        states = shard(mesh, population.create(members, make))
        runs[number] = [members, orders, replicate(mesh, split), mesh, states]
    speeds: dict[str, list[float]] = {str(number): [] for number in NUMBERS}
    for round_number in range(ROUNDS + 1):
        for number, (members, orders, replicated, mesh, states) in runs.items():
            started = time.perf_counter()
            states, _ = population.train_steps(
                *(states, members, replicated, orders, 0, 0, UPDATES // number),
                make=make,
                mesh=mesh,
            )
            runs[number][-1] = jax.block_until_ready(states)
            if round_number:  # the first round compiles
                elapsed = time.perf_counter() - started
                speeds[str(number)].append(UPDATES * BATCH_SIZE / elapsed)
    return speeds


def main() -> None:
    cli.start_jax(cache=False, cores_are_devices=True)
    found = {"plain": speeds_of(None), "augmented": speeds_of(1.0)}
    lines = [
        "| networks | network-images/s | ratio to one | quartiles |",
        "|---|--:|--:|---|",
    ]
    for kind, speeds in found.items():
        for number in speeds:
            against = ratio(speeds, number, ["1"])
            low, high = against["quartiles"]
            lines.append(
                f"| {number}, {kind} | {np.median(speeds[number]):,.0f} | "
                f"**{against['median']:.2f}** | {low:.2f} to {high:.2f} |"
            )
    write_json("populations", {"speeds": found})
    write_markdown("populations", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
