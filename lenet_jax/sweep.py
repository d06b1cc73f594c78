"""Trains a grid of LeNets (optimizers x learning rates x seeds), many networks in one program.

    python -m lenet_jax.sweep --optimizers=sgd,nesterov,adam,rmsprop --seeds=5
    python -m lenet_jax.sweep --dataset=mnist --optimizers=adam --learning_rates=1e-3,2e-3,4e-3

A sixth of the training images is held out to compare the settings; the test images are not read.
The table, the picture and the numbers are left in --workdir, and the same command with the same
--workdir goes on where it was stopped.
"""

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lenet_jax import cli, data
from lenet_jax.cli import setting
from lenet_jax.core import metrics, population
from lenet_jax.core.optimizers import DEFAULT_LEARNING_RATE, OPTIMIZERS, SCHEDULES
from lenet_jax.data import DATASETS
from lenet_jax.run import folder as workdir
from lenet_jax.viz import figures

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of an optimizer's default rate: the grid if none is given
HELD_OUT = 6  # one image in so many

Report = Callable[[Any], None]


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    """What `python -m lenet_jax.sweep` can be told. None means: decided when the sweep starts.

    Raises:
      ValueError: a setting is out of its range; the message starts with the flag.
    """

    optimizers: str = setting("sgd,nesterov,adam,rmsprop", "which to compare, with commas between")
    learning_rates: str | None = setting(
        None, "the rates of each, with commas between (default: 1/4 to 4 times its own default)"
    )
    seeds: int = setting(3, "networks for each setting")
    epochs: int | None = setting(None, "passes over the training images (default: 5; digits 30)")
    batch_size: int = setting(64, "examples per update")
    schedule: str = setting("onecycle", "the learning rate's course over the run", SCHEDULES)
    augment: float = setting(0.0, "distort the training images: 1 is best for MNIST's digits")
    dataset: str | None = setting(
        None, "what to learn (default: mnist if it can be had, else digits)", DATASETS
    )
    data_dir: str | None = setting(None, "folder of the data set, as for train", decides=False)
    slice_size: int = setting(8, "networks in one program; more need more memory", decides=False)
    workdir: str | None = setting(
        None, "folder for the results (default: runs/sweep-<data set>-<time>)", decides=False
    )

    def __post_init__(self) -> None:
        cli.check_choices(self)
        for name in self.optimizers.split(","):
            if name not in OPTIMIZERS:
                raise ValueError(f"--optimizers={name}: choose of {', '.join(OPTIMIZERS)}")
        for name in OPTIMIZERS:
            self.rates(name)
        for name in ("seeds", "epochs", "batch_size", "slice_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}={value}: must be at least 1")
        if not 0 <= self.augment < math.inf:
            raise ValueError(f"--augment={self.augment}: must be a number of at least 0")

    def rates(self, optimizer: str) -> list[float]:
        """The learning rates to try with `optimizer`, each once."""
        if self.learning_rates is None:
            return [factor * DEFAULT_LEARNING_RATE[optimizer] for factor in FACTORS]
        try:
            rates = [float(text) for text in self.learning_rates.split(",")]
        except ValueError:
            rates = [math.nan]
        if not all(0 < rate < math.inf for rate in rates):
            raise ValueError(
                f"--learning_rates={self.learning_rates}: must be numbers above 0 with commas "
                "between"
            )
        return list(dict.fromkeys(rates))


@dataclasses.dataclass(frozen=True)
class Slice:
    """Networks that are trained in one program: all have the same optimizer."""

    optimizer: str
    cells: tuple[tuple[float, int], ...]  # learning rate and seed of each

    def file(self, folder: Path) -> Path:
        (rate, seed), count = self.cells[0], len(self.cells)
        return folder / f"{self.optimizer}-{rate!r}-{seed}-{count}.json"


def plan(settings: SweepSettings) -> list[Slice]:
    """The grid, cut into slices of at most `slice_size` networks."""
    slices = []
    for optimizer in dict.fromkeys(settings.optimizers.split(",")):
        cells = [
            (rate, seed) for rate in settings.rates(optimizer) for seed in range(settings.seeds)
        ]
        parts = np.array_split(np.arange(len(cells)), -(-len(cells) // settings.slice_size))
        slices += [Slice(optimizer, tuple(cells[i] for i in part)) for part in parts]
    return slices


def split(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` images are held out, and which are trained on; the same in every sweep.

    Drawn, because a source may have its images in the order of their classes.
    """
    order = np.random.default_rng(0).permutation(count)
    return order[: count // HELD_OUT], order[count // HELD_OUT :]


def train_slice(
    settings: SweepSettings, part: Slice, dataset: data.Dataset, report: Report
) -> list[dict[str, Any]]:
    """One record a network: how it was set, how it learned, what it comes to on held-out images."""
    images, labels = dataset.train_images, dataset.train_labels
    held_out, rest = split(len(labels))
    rates, seeds = (np.array(column) for column in zip(*part.cells, strict=True))
    members = population.Members(seeds, seeds, rates, augment=settings.augment or None)
    scaling = {"mean": dataset.mean, "std": dataset.std}
    trained = population.train(
        members,
        jnp.asarray(images[rest]),
        jnp.asarray(labels[rest]),
        optimizer=part.optimizer,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        schedule=settings.schedule,
        slice_size=len(part.cells),
        report=report,
        **scaling,
    )
    logits = population.predict(trained.params, jnp.asarray(images[held_out]), **scaling)
    accuracies = jax.vmap(metrics.accuracy, (0, None))(logits, jnp.asarray(labels[held_out]))
    # JSON has no NaN.
    number = lambda loss: round(float(loss), 5) if np.isfinite(loss) else None
    return [
        {
            "optimizer": part.optimizer,
            "learning_rate": rate,
            "seed": seed,
            "finite": bool(trained.finite[i]),
            "accuracy": float(accuracies[i]),
            "loss_curve": [number(loss) for loss in trained.curves["loss"][i]],
        }
        for i, (rate, seed) in enumerate(part.cells)
    ]


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a setting: mean and deviation over seeds, and whether it is the optimizer's best.

    A setting with a network that diverged has no accuracy and is nobody's best.
    """
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["optimizer"], record["learning_rate"]), []).append(record)
    rows = []
    for (optimizer, rate), group in groups.items():
        accuracies = [record["accuracy"] for record in group]
        finite = all(record["finite"] for record in group)
        rows.append(
            {
                "optimizer": optimizer,
                "learning_rate": rate,
                "seeds": len(group),
                "diverged": sum(not record["finite"] for record in group),
                "mean": float(np.mean(accuracies)) if finite else None,
                "sd": float(np.std(accuracies, ddof=1)) if finite and len(group) > 1 else None,
            }
        )
    for row in rows:
        rivals = [r["mean"] for r in rows if r["optimizer"] == row["optimizer"]]
        best = max((mean for mean in rivals if mean is not None), default=None)
        row["best"] = best is not None and row["mean"] == best
    return rows


def describe(rows: Sequence[dict[str, Any]]) -> str:
    """The table for a person."""
    lines = [f"{'optimizer':10} {'learning rate':>13}   held-out accuracy"]
    for row in rows:
        outcome = f"{row['diverged']} of {row['seeds']} diverged"
        if row["mean"] is not None:
            spread = "" if row["sd"] is None else f" ± {100 * row['sd']:.2f}"
            outcome = f"{100 * row['mean']:.2f}{spread} %" + ("   best" if row["best"] else "")
        lines.append(f"{row['optimizer']:10} {row['learning_rate']:>13g}   {outcome}")
    return "\n".join(lines)


def run(
    settings: SweepSettings, dataset: data.Dataset, path: Path, report: Report = print
) -> list[dict[str, Any]]:
    """Trains what `path` does not hold yet, one line a slice to `report`; all records, in order.

    Raises:
      ValueError: `path` holds another sweep, or a damaged file.
      OSError: something could not be written.
    """
    now, then = workdir.describe(settings, dataset), workdir.read_config(path)
    if then:
        workdir.require_same_run(path, settings, now, then)
        if changes := workdir.changes(now, then):
            report(f"note: since the sweep began, {changes}: last bits may come out otherwise")
    else:
        workdir.write_config(path, now)
    folder, slices, records = path / "slices", plan(settings), []
    folder.mkdir(exist_ok=True)
    _, rest = split(len(dataset.train_labels))
    updates = settings.epochs * (len(rest) // settings.batch_size)
    networks = sum(len(part.cells) for part in slices)
    with tqdm(total=updates * networks, unit="update", leave=False, disable=None) as bar:
        for part in slices:
            file = part.file(folder)
            if file.exists():
                records += _read(file)
                bar.update(updates * len(part.cells))
                continue
            bar.set_description(part.optimizer)
            new = train_slice(settings, part, dataset, bar.update)
            workdir.replace(file, json.dumps(new) + "\n")
            records += new
            report(f"{part.optimizer}: {len(records)} of {networks} networks are trained")
    return records


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: is damaged ({error}); delete it to train it again") from error


def resolve(settings: SweepSettings, dataset: data.Dataset) -> SweepSettings:
    """Fills in what was left open, now that the data set is known.

    Raises:
      ValueError: the batch is larger than what is left to train on.
    """
    _, rest = split(len(dataset.train_labels))
    if settings.batch_size > len(rest):
        raise ValueError(
            f"--batch_size={settings.batch_size}: only {len(rest)} images of {dataset.name} are "
            "left to train on"
        )
    epochs = settings.epochs or (30 if dataset.name == "digits" else 5)
    return dataclasses.replace(settings, dataset=dataset.name, epochs=epochs)


def say(line: str) -> None:
    """At once, also into a file, and above the progress bar."""
    tqdm.write(line)
    sys.stdout.flush()


def conclude(records: Sequence[dict[str, Any]], path: Path) -> str:
    """Writes `sweep.json` and `sweep.png`, prints the table; the best setting, for a person."""
    rows = summarise(records)
    workdir.replace(path / "sweep.json", json.dumps({"rows": rows, "networks": records}) + "\n")
    figures.sweep(rows, records).savefig(path / "sweep.png", dpi=150)
    print(describe(rows))
    best = max((row for row in rows if row["best"]), key=lambda row: row["mean"], default=None)
    if best is None:
        cli.fail("every setting diverged: try smaller --learning_rates", 1)
    return (
        f"best: {best['optimizer']} at {best['learning_rate']:g}, {best['mean']:.2%} of the "
        f"held-out images; {path / 'sweep.png'}"
    )


def main(argv: Sequence[str]) -> None:
    settings, path = cli.parse(SweepSettings, argv, __doc__), None
    cli.enable_compilation_cache()
    cli.make_cores_devices()
    with contextlib.ExitStack() as stack:
        try:
            dataset = data.load(settings.dataset, settings.data_dir, report=print)
            settings = resolve(settings, dataset)
            path = workdir.create(settings.workdir, f"sweep-{dataset.name}")
            stack.enter_context(workdir.locked(path))
            if dataset.note:
                print(dataset.note)
            print(f"{dataset.name}, {settings.epochs} epochs, results in {path}", flush=True)
            print(conclude(run(settings, dataset, path, say), path))
        except ValueError as error:
            cli.fail(error)
        except OSError as error:
            cli.fail(error, 1)
        except KeyboardInterrupt:
            goes_on = f": the same command with --workdir={path} goes on"
            print("stopped" + (goes_on if path else " before training began"))
            raise SystemExit(130) from None


if __name__ == "__main__":
    main(sys.argv)
