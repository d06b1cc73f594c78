"""How far does LeNet-5 of 1998 get today, with error bars?

The error table of LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
recognition" (1998), figure 9, beside this network's errors: (a) plain; (b) trained on distorted
images, like their rows with "distortions"; (c) several networks together, like their "boosted"
LeNet-4; (d) the mean over shifted copies of a test image. Each row is the mean over seeds at the
last step, trained on all 60,000 images.

    LENET_JAX_TEST_DATA=path/to/mnist python experiments/lecun1998.py --search
    LENET_JAX_TEST_DATA=path/to/mnist python experiments/lecun1998.py

The first command searches: it trains every candidate on 50,000 of the training images and measures
it on the other 10,000 (results/lecun1998_search.{json,md}). PLAIN and DISTORTED are, of the
candidates whose mean is within two standard errors of the best, the best of those with the fewest
epochs. The second command trains the networks of the table, reads the 10,000 test images at its end
(results/lecun1998.{json,md}), and writes the package's weights: the first distorted network, with
logits that are divided by TEMPERATURE, so that its probabilities are calibrated.
They take about 105 and 40 minutes on 2 cores. Both keep finished slices in runs/lecun1998
(`--folder`) and continue from there when they are started again.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import _mnist
import _weights
import jax
import jax.numpy as jnp
import numpy as np
from _recipes import BATCH_SIZE, Recipe, train
from _results import write_json, write_markdown
from scipy.optimize import minimize_scalar
from tqdm import tqdm

from lenet_jax import cli, data
from lenet_jax.core import losses, metrics, population
from lenet_jax.core.split import Split

HELD_OUT, RUNS, TOGETHER = 10_000, 20, 10
TEACHER, TEACHERS = Recipe(45, 1.0, 4e-3), 8  # the distorted recipe of version 0.1


class Group(NamedTuple):
    """Candidates that are trained together."""

    recipes: list[Recipe]
    seeds: int = 4


SEARCH = (  # in the order in which we tried them
    Group([Recipe(24), Recipe(24, weight_decay=0.3, label_smoothing=0.2)]),
    Group([Recipe(60, 1.5, 4e-3, teacher=1.0), Recipe(60, 1.5, 4e-3, teacher=0.5)]),
    Group([Recipe(24, weight_decay=0.3, sam=rho) for rho in (0.05, 0.1)]),
    Group([Recipe(45, 1.0, 4e-3, label_smoothing=0.0), Recipe(45, 1.0, 8e-3)]),
    Group([Recipe(12), Recipe(12, weight_decay=0.3)]),
    Group([Recipe(12, ema=0.999)]),
    Group([Recipe(100, 1.0, 4e-3), Recipe(100, 1.0, 2e-3)], seeds=3),
    Group([Recipe(45, 1.0, 4e-3, elastic=1.0)]),
    Group([Recipe(45, 1.0, 4e-3, sam=rho) for rho in (0.1, 0.2)]),
    Group([Recipe(45, 1.0, 2e-3, weight_decay=decay) for decay in (0.1, 0.3)]),
    Group([Recipe(12, sam=rho) for rho in (0.1, 0.2)]),
    Group([Recipe(60, 1.0, 4e-3, teacher=share) for share in (0.5, 1.0)]),
    Group([Recipe(45, 0.7, 4e-3, weight_decay=decay) for decay in (0.1, 0.05)]),
    Group([Recipe(240, 1.0, 2e-3)]),
)
PLAIN, DISTORTED = Recipe(12), Recipe(45, 1.0, 4e-3)
TEMPERATURE = 0.52  # of DISTORTED, from the search
LECUN = (
    ("LeNet-5", "LeCun et al. 1998", "0.95"),
    ("LeNet-5, distortions", "LeCun et al. 1998", "0.80"),
    ("boosted LeNet-4, distortions", "LeCun et al. 1998", "0.70"),
)


def search(mnist: data.Dataset, folder: Path) -> None:
    held_out, rest = _mnist.hold_out(mnist.train, HELD_OUT)
    groups = (Group([TEACHER], TEACHERS), *SEARCH)
    steps = len(rest.labels) // BATCH_SIZE
    count = sum(g.seeds * sum(recipe.epochs for recipe in g.recipes) for g in groups) * steps
    rows, teachers = [], None
    with tqdm(total=count, unit="update", disable=None) as bar:
        for recipes, seeds in groups:
            taught = teachers if recipes[0].teacher else None
            params, seconds = train(recipes, seeds, rest, folder, bar, teachers=taught)
            teachers = params if teachers is None else teachers  # those of the first group
            logits, shifted = logits_of(params, held_out)  # [recipes * seeds, M, 10]
            for i, recipe in enumerate(recipes):
                own = slice(i * seeds, (i + 1) * seeds)
                alone = [measure(one, held_out.labels)["error"] for one in logits[own]]
                averaged = [measure(one, held_out.labels)["error"] for one in shifted[own]]
                together = measure(population.ensemble(logits[own]), held_out.labels)["error"]
                scale = np.mean([temperature(one, held_out.labels) for one in logits[own]])
                rows.append(
                    {**recipe._asdict(), "errors": alone, "errors_over_shifts": averaged}
                    | {"together": together, "temperature": float(scale), "seconds": seconds}
                )
    write_json("lecun1998_search", {"rows": rows})
    lines = [
        "| distortions | epochs | learning rate | weight decay | smoothing | teachers | SAM | "
        "average | elastic | held-out error, % | n | together | over shifts | temperature | "
        "seconds |",
        "|" + "--:|" * 9 + "---|" + "--:|" * 5,
    ]
    for row in sorted(rows, key=lambda row: (row["distortions"] > 0, np.mean(row["errors"]))):
        fields = [row[name] for name in Recipe._fields]
        epochs, distortions, *numbers = (f"{value:g}" if value else "" for value in fields)
        mean, sd = np.mean(row["errors"]), np.std(row["errors"], ddof=1)
        cells = [distortions, epochs, *numbers, f"**{mean:.3f}** ± {sd:.3f}", len(row["errors"])]
        cells += [f"{row['together']:.2f}", f"{np.mean(row['errors_over_shifts']):.3f}"]
        cells.append(f"{row['temperature']:.2f}")
        lines.append(f"| {' | '.join(map(str, cells))} | {row['seconds']:.0f} |")
    write_markdown("lecun1998_search", "\n".join(lines))
    print("\n".join(lines))


def table(mnist: data.Dataset, folder: Path) -> None:
    recipes = {"plain": PLAIN, "distorted": DISTORTED}
    steps = len(mnist.train.labels) // BATCH_SIZE
    count = RUNS * steps * sum(recipe.epochs for recipe in recipes.values())
    with tqdm(total=count, unit="update", disable=None) as bar:
        trained = {
            name: train([recipe], RUNS, mnist.train, folder, bar, own_orders=True)
            for name, recipe in recipes.items()
        }
    # This script reads the test images only here, once for each row of the table.
    labels = jnp.asarray(mnist.test.labels)
    rows = []
    for name, (params, seconds) in trained.items():
        for suffix, logits in zip(
            ("", ", over shifts"), logits_of(params, mnist.test), strict=True
        ):
            for count in (1, TOGETHER, RUNS):
                groups = [logits[i : i + count] for i in range(0, RUNS - count + 1, count)]
                runs = [measure(population.ensemble(group), labels) for group in groups]
                title = f"{name}, {f'{count} networks' if count > 1 else 'one network'}{suffix}"
                rows.append(summary(title, runs, recipes[name].epochs, count * seconds))
    given = {name: recipe._asdict() for name, recipe in recipes.items()}
    write_json("lecun1998", {"recipes": given, "rows": rows})
    lines = [
        "| network | test error, % | runs | log-likelihood | calibration error, % | epochs | "
        "processor minutes |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(f"| {name} ({source}) | {error} | | | | | |" for name, source, error in LECUN),
    ]
    for row in rows:
        spread = "" if row["error_sd"] is None else f" ± {row['error_sd']:.3f}"
        lines.append(
            f"| {row['name']} | **{row['error']:.3f}**{spread} | {row['runs']} | "
            f"{row['log_likelihood']:.4f} | {row['calibration_error']:.2f} | {row['epochs']} | "
            f"{row['seconds'] / 60:.1f} |"
        )
    write_markdown("lecun1998", "\n".join(lines))
    print("\n".join(lines))
    alone = next(row for row in rows if row["name"] == "distorted, one network")
    first = jax.tree.map(lambda leaf: leaf[0], trained["distorted"][0])
    _weights.write_weights(
        first | {"fc3": jax.tree.map(lambda leaf: leaf / TEMPERATURE, first["fc3"])},
        mnist,
        accuracy=1 - alone["errors"][0] / 100,
        step=DISTORTED.epochs * steps,
        recipe=f'the first network of "distorted" in experiments/results/lecun1998.md '
        f"({DISTORTED.epochs} epochs of distorted images, adamw, one-cycle to "
        f"{DISTORTED.learning_rate:g}, weight decay {DISTORTED.weight_decay:g}, label smoothing "
        f"{DISTORTED.label_smoothing:g}, batch {BATCH_SIZE}, seed 0; the logits divided by "
        f"{TEMPERATURE:g})",
        command="python experiments/lecun1998.py",
    )


def logits_of(params: Any, split: Split) -> tuple[jax.Array, jax.Array]:
    """Logits [N, M, 10] of the images, and log of the mean probability over their shifts.

    The shifts are by at most one pixel along each axis: nine copies. MNIST's images have an empty
    frame, so that `jnp.roll` loses nothing.
    """
    images = jnp.asarray(split.images)
    moved = [jnp.roll(images, (down, right), (1, 2)) for down in (0, -1, 1) for right in (0, -1, 1)]
    logits = [population.predict(params, split._replace(images=copy)) for copy in moved]
    over_shifts = [population.ensemble(jnp.stack(copies)) for copies in zip(*logits, strict=True)]
    return logits[0], jnp.stack(over_shifts)


def temperature(logits: jax.Array, labels: jax.Array) -> float:
    """The number that divides the logits [M, 10] for the best log-likelihood (arXiv 1706.04599)."""
    loss = lambda number: float(losses.cross_entropy(logits / number, labels))
    return minimize_scalar(loss, bounds=(0.2, 2), method="bounded").x


def measure(logits: jax.Array, labels: jax.Array) -> dict[str, float]:
    """Errors in percent and nats per image, from logits or log-probabilities [M, 10]."""
    log_probabilities = jax.nn.log_softmax(logits)
    return {
        "error": 100 * (1 - float(metrics.accuracy(log_probabilities, labels))),
        "log_likelihood": -float(losses.nll(log_probabilities, labels)),
        "calibration_error": 100
        * float(metrics.calibration_error(jnp.exp(log_probabilities), labels)),
    }


def summary(name: str, runs: list[dict], epochs: int, seconds: float) -> dict:
    """A row: means over `runs`, the standard deviation of the error, and the cost of one run."""
    means = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    errors = [run["error"] for run in runs]
    sd = float(np.std(errors, ddof=1)) if len(errors) > 2 else None  # 2 runs are too few for one
    return {
        "name": name,
        **means,
        "error_sd": sd,
        "errors": errors,
        "runs": len(runs),
        "epochs": epochs,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("runs/lecun1998"))
    arguments = parser.parse_args()
    mnist = _mnist.load()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    cli.start_jax(cores_are_devices=True)
    (search if arguments.search else table)(mnist, arguments.folder)


if __name__ == "__main__":
    main()
