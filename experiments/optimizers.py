"""Which of the tutorial's four optimizers should I use?

Each is tuned first, as `lenet_jax.sweep` does it: LeNet is trained on five sixths of MNIST's
training images with every learning rate of a grid around the default, 2 seeds each, and measured on
the other sixth. If the best rate is at the edge of the grid, the grid is extended there. Then 10
new seeds are trained with the best rate on all 60,000 images, and the test images are read once.
All runs have 3 epochs, batch 64 and one-cycle; no other setting is tuned.

    LENET_JAX_TEST_DATA=path/to/mnist python experiments/optimizers.py

Writes results/optimizers.{json,md,png}; takes 10 minutes on 2 cores. Finished runs are kept in
runs/optimizers, and a restarted script continues from there.
"""

import json
from pathlib import Path

import _mnist
import jax
import numpy as np
from _figures import label_ends
from _results import path, write_json, write_markdown
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MultipleLocator
from scipy import stats
from tqdm import tqdm

from lenet_jax import cli, data
from lenet_jax.core import metrics, population
from lenet_jax.core.optimizers import DEFAULT_LEARNING_RATE
from lenet_jax.files import atomic_write
from lenet_jax.run import grid
from lenet_jax.sweep import format_table
from lenet_jax.viz.figures import COLOURS, STYLE

OPTIMIZERS, EPOCHS, SEEDS, SLICE = ("sgd", "nesterov", "adam", "rmsprop"), 3, 10, 10
FOLDER = Path("runs/optimizers")


def tune(optimizer: str, mnist: data.Dataset) -> list[dict]:
    """The settings that were tried, in order of the rate; the best lies inside the grid.

    Raises:
      SystemExit: the best rate is still at the edge of the grid after three extensions.
    """
    default = DEFAULT_LEARNING_RATE[optimizer]
    new = [factor * default for factor in grid.FACTORS]
    records: list[dict] = []
    for part in range(4):
        settings = grid.SweepSettings(
            optimizers=optimizer,
            learning_rates=",".join(f"{rate:g}" for rate in new),
            seeds=2,
            epochs=EPOCHS,
            slice_size=SLICE,
        )
        folder = FOLDER / f"{optimizer}-{part}"
        folder.mkdir(parents=True, exist_ok=True)
        records += grid.run(grid.resolve(settings, mnist), mnist, folder)
        rows = sorted(grid.summarise(records), key=lambda row: row["learning_rate"])
        print(format_table(rows), flush=True)
        best = next(row for row in rows if row["best"])
        if not best["at_edge"]:
            return rows
        rate = best["learning_rate"]
        new = [2 * rate, 4 * rate] if best is rows[-1] else [rate / 4, rate / 2]
    raise SystemExit(f"{optimizer}: {rate:g} is still at the edge of the rates tried")


def final(optimizer: str, rate: float, mnist: data.Dataset, bar: tqdm) -> dict:
    """10 networks on the entire training split: their curves and test accuracies."""
    file = FOLDER / f"final-{optimizer}-{rate:g}-{SEEDS}-{EPOCHS}.json"
    if file.exists():
        return json.loads(file.read_text())
    seeds = 1000 + np.arange(SEEDS)
    trained = population.train(
        population.MemberConfig(seeds, seeds, rate),
        mnist.train,
        optimizer=optimizer,
        epochs=EPOCHS,
        slice_size=SLICE,
        log_updates=bar.update,
    )
    logits = population.predict(trained.params, mnist.test)
    accuracies = jax.vmap(metrics.accuracy, (0, None))(logits, mnist.test.labels)
    result = {
        "optimizer": optimizer,
        "learning_rate": rate,
        "test_accuracies": [float(accuracy) for accuracy in accuracies],
        "losses": trained.curves["loss"].astype(float).round(5).tolist(),
    }
    atomic_write(file, json.dumps(result) + "\n")
    return result


@rc_context(STYLE)
def draw(results: list[dict]) -> Figure:
    """Training loss: mean, smallest and largest over seeds."""
    figure = Figure((8, 4.2), layout="constrained")
    axes = figure.subplots()
    ends = []
    for result, colour in zip(results, COLOURS, strict=False):
        curves = np.array(result["losses"])  # [seeds, parts]
        epochs = np.arange(1, curves.shape[1] + 1) * EPOCHS / curves.shape[1]
        mean, low, high = curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0)
        axes.plot(epochs, mean, color=colour)
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)
        text = f"{result['optimizer']}, rate {result['learning_rate']:g}"
        ends.append((EPOCHS, mean[-1], text, colour))
    axes.set(yscale="log", xlabel="epoch", xlim=(0, EPOCHS))
    axes.xaxis.set_major_locator(MultipleLocator(1))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    title = f"training loss, {SEEDS} seeds each: mean, smallest and largest"
    axes.set_title(title, loc="left")
    label_ends(axes, ends)
    return figure


def main() -> None:
    cli.start_jax(cores_are_devices=True)
    mnist = _mnist.load()
    rows = [row for name in OPTIMIZERS for row in tune(name, mnist)]
    best = {row["optimizer"]: row["learning_rate"] for row in rows if row["best"]}
    updates = len(OPTIMIZERS) * SEEDS * EPOCHS * (len(mnist.train.labels) // 64)
    with tqdm(total=updates, unit="update", disable=None) as bar:
        results = [final(name, best[name], mnist, bar) for name in OPTIMIZERS]
    draw(results).savefig(path("optimizers.png"), dpi=150)
    write_json("optimizers", {"tuning": rows, "final": results})
    text = table(rows, results)
    write_markdown("optimizers", text)
    print(text)


def table(rows: list[dict], results: list[dict]) -> str:
    """Both stages as a table, and the differences that seeds do not explain."""
    lines = [
        "| optimizer | rates tried | best | held-out accuracy there | "
        f"test accuracy, {SEEDS} seeds | training loss at the end |",
        "|---|---|--:|--:|--:|--:|",
    ]
    accuracies = {row["optimizer"]: 100 * np.array(row["test_accuracies"]) for row in results}
    for result in results:
        name = result["optimizer"]
        tried = [row for row in rows if row["optimizer"] == name]
        held_out = next(row["mean"] for row in tried if row["best"])
        last = np.array(result["losses"])[:, -1]
        rates = ", ".join(f"{row['learning_rate']:g}" for row in tried)
        lines.append(
            f"| {name} | {rates} | "
            f"{result['learning_rate']:g} | {held_out:.2%} | "
            f"**{accuracies[name].mean():.2f}** ± {accuracies[name].std(ddof=1):.2f} % | "
            f"{last.mean():.4f} ± {last.std(ddof=1):.4f} |"
        )
    first, *others = sorted(accuracies, key=lambda name: -accuracies[name].mean())
    p = {
        name: stats.ttest_ind(accuracies[first], accuracies[name], equal_var=False).pvalue
        for name in others
    }
    alike, behind = ([n for n in others if (p[n] >= 0.01) == told] for told in (True, False))
    names = lambda chosen: ", ".join(f"{name} (p = {p[name]:.2g})" for name in chosen) or "none"
    lines += [
        "",
        f"{first} has the highest mean. By Welch's t-test over seeds at p < 0.01, these cannot be "
        f"told apart from it: {names(alike)}; these are worse: {names(behind)}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
