"""Which of the tutorial's four optimizers should I use?

Each is tuned first: LeNet is trained on five sixths of MNIST's training images with every learning
rate of a grid around its default, 2 seeds each, and measured on the other sixth (that is
`lenet_jax.sweep`). Then 10 new seeds at the best rate on all 60,000 images, and the test images,
once. 3 epochs, batch 64, one-cycle; no other setting is tuned.

    LENET_JAX_TEST_DATA=path/to/mnist python experiments/optimizers.py

Writes results/optimizers.{json,md,png}; about 12 minutes on 2 cores. What is finished is kept in
runs/optimizers: started again, it goes on from there.
"""

import json
from pathlib import Path

import _mnist
import jax
import jax.numpy as jnp
import numpy as np
from _results import path, write_json, write_markdown
from matplotlib.figure import Figure
from tqdm import tqdm

from lenet_jax import cli, data, metrics, population, sweep, workdir

OPTIMIZERS, EPOCHS, SEEDS, SLICE = ("sgd", "nesterov", "adam", "rmsprop"), 3, 10, 10
FOLDER = Path("runs/optimizers")


def final(optimizer: str, rate: float, mnist: data.Dataset, bar: tqdm) -> dict:
    """10 networks on the whole training split: their curves and test accuracies."""
    file = FOLDER / f"final-{optimizer}-{rate:g}.json"
    if file.exists():
        return json.loads(file.read_text())
    images, labels = jnp.asarray(mnist.train_images), jnp.asarray(mnist.train_labels)
    seeds, scaling = 1000 + np.arange(SEEDS), {"mean": mnist.mean, "std": mnist.std}
    trained = population.train(
        population.Members(seeds, seeds, rate),
        images,
        labels,
        optimizer=optimizer,
        epochs=EPOCHS,
        slice_size=SLICE,
        report=bar.update,
        **scaling,
    )
    logits = population.predict(trained.params, jnp.asarray(mnist.test_images), **scaling)
    accuracies = jax.vmap(metrics.accuracy, (0, None))(logits, jnp.asarray(mnist.test_labels))
    result = {
        "optimizer": optimizer,
        "learning_rate": rate,
        "test_accuracies": [float(accuracy) for accuracy in accuracies],
        "losses": trained.curves["loss"].astype(float).round(5).tolist(),
    }
    workdir.replace(file, json.dumps(result) + "\n")
    return result


def draw(results: list[dict]) -> Figure:
    """The training loss, mean and band over seeds."""
    figure = Figure((8, 4.2), layout="constrained")
    axes = figure.subplots()
    for result in results:
        curves = np.array(result["losses"])  # [seeds, parts]
        epochs = np.arange(1, curves.shape[1] + 1) * EPOCHS / curves.shape[1]
        label = f"{result['optimizer']}, learning rate {result['learning_rate']:g}"
        (line,) = axes.plot(epochs, curves.mean(axis=0), label=label)
        low, high = curves.min(axis=0), curves.max(axis=0)
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, lw=0)
    axes.set(yscale="log", xlabel="epoch", ylabel="training loss", xlim=(0, EPOCHS))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(f"{SEEDS} seeds each: mean, smallest and largest")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    cli.enable_compilation_cache()
    cli.make_cores_devices()
    mnist = _mnist.load()
    settings = sweep.SweepSettings(
        optimizers=",".join(OPTIMIZERS), seeds=2, epochs=EPOCHS, slice_size=SLICE
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = sweep.summarise(sweep.run(sweep.resolve(settings, mnist), mnist, FOLDER))
    print(sweep.describe(rows))
    best = {row["optimizer"]: row["learning_rate"] for row in rows if row["best"]}
    updates = len(OPTIMIZERS) * SEEDS * EPOCHS * (len(mnist.train_labels) // 64)
    with tqdm(total=updates, unit="update", disable=None) as bar:
        results = [final(name, best[name], mnist, bar) for name in OPTIMIZERS]
    draw(results).savefig(path("optimizers.png"), dpi=150)
    write_json("optimizers", {"tuning": rows, "final": results})
    lines = [
        "| optimizer | rates tried | best | held-out accuracy there | test accuracy, 10 seeds | "
        "training loss at the end |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for result in results:
        name = result["optimizer"]
        tried = [row for row in rows if row["optimizer"] == name]
        held_out = next(row["mean"] for row in tried if row["best"])
        tested = 100 * np.array(result["test_accuracies"])
        last = np.array(result["losses"])[:, -1]
        rates = [row["learning_rate"] for row in tried]
        edge = " (the edge of the grid)" if result["learning_rate"] in (rates[0], rates[-1]) else ""
        lines.append(
            f"| {name} | {', '.join(f'{rate:g}' for rate in rates)} | "
            f"{result['learning_rate']:g}{edge} | {held_out:.2%} | "
            f"**{tested.mean():.2f}** ± {tested.std(ddof=1):.2f} % | "
            f"{last.mean():.4f} ± {last.std(ddof=1):.4f} |"
        )
    write_markdown("optimizers", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
