"""Which peak learning rate should be each optimizer's default?

Trains LeNet on 50,000 of MNIST's training images for 5 epochs (batch 64, one-cycle) with each
optimizer over a grid of learning rates, and measures on the other 10,000. The test images are
never read. `optimizers.DEFAULT_LEARNING_RATE` holds what was, when it was chosen, each
optimizer's smallest rate within 0.1 points of its best (the noise of a seed), because small rates
diverge less often.

    LENET_JAX_TEST_DATA=path/to/mnist python experiments/learning_rates.py

Prints a table and writes it to results/learning_rates.{json,md}; takes 4 minutes on 2 cores.
"""

import _mnist
import jax
from _results import write_json, write_markdown
from tqdm import tqdm

from lenet_jax import create_train_state, data, make_optimizer, train_epoch
from lenet_jax.core.epoch import evaluate
from lenet_jax.core.optimizers import make_schedule

GRID = {
    "sgd": (0.1, 0.2, 0.4),
    "nesterov": (0.02, 0.05, 0.1),
    "adam": (1e-3, 2e-3, 4e-3),
    "adamw": (1e-3, 2e-3, 4e-3),
    "rmsprop": (5e-4, 1e-3, 2e-3),
}
EPOCHS, BATCH_SIZE, HELD_OUT, SEEDS = 5, 64, 10_000, 1


def validation_accuracy(name: str, learning_rate: float, seed: int, mnist: data.Dataset) -> float:
    """Accuracy after the last step, on the training images that were held out."""
    held_out, rest = _mnist.hold_out(mnist.train, HELD_OUT)
    steps = EPOCHS * (len(rest.labels) // BATCH_SIZE)
    tx = make_optimizer(name, learning_rate, schedule=make_schedule("onecycle", steps))
    key = jax.random.key(seed)
    state = create_train_state(key, tx)
    for epoch in range(EPOCHS):
        epoch_key = jax.random.fold_in(key, epoch)
        state, _ = train_epoch(state, rest, epoch_key, batch_size=BATCH_SIZE)
    return float(evaluate(state, held_out)["accuracy"])


def main() -> None:
    mnist = _mnist.load()
    cells = [(name, rate) for name, rates in GRID.items() for rate in rates]
    rows = []
    for name, rate in tqdm(cells, disable=None):
        accuracies = [validation_accuracy(name, rate, seed, mnist) for seed in range(SEEDS)]
        rows.append({"optimizer": name, "learning_rate": rate, "accuracies": accuracies})
        tqdm.write(f"{name:9} {rate:<7g} {sum(accuracies) / SEEDS:.2%}")
    write_json("learning_rates", {"rows": rows})
    lines = ["| optimizer | learning rate | validation accuracy |", "|---|--:|--:|"]
    lines += [
        f"| {row['optimizer']} | {row['learning_rate']:g} | {sum(row['accuracies']) / SEEDS:.2%} |"
        for row in rows
    ]
    write_markdown("learning_rates", "\n".join(lines))


if __name__ == "__main__":
    main()
