"""A sweep on disk: a grid of optimizers, learning rates and seeds, trained slice by slice.

A slice is a population that is trained at once; each leaves a file, so that a sweep which was
stopped goes on with the slices that are missing.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from lenet_jax import data
from lenet_jax.cli import check_choices, setting
from lenet_jax.core import metrics, population
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import DEFAULT_LEARNING_RATE, OPTIMIZERS, SCHEDULES
from lenet_jax.core.split import take
from lenet_jax.data import registry
from lenet_jax.files import atomic_write
from lenet_jax.run import folder

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of an optimizer's default rate: the grid if none is given
HELD_OUT = 6  # one image in so many


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    """The flags of `python -m lenet_jax.sweep`. None means: decided when the sweep starts.

    Raises:
      ValueError: a setting is out of its range; the message starts with the flag.
    """

    optimizers: str = setting("sgd,nesterov,adam,rmsprop", "optimizers to compare, comma-separated")
    learning_rates: str | None = setting(
        None, "learning rates of each, comma-separated (default: 1/4 to 4 times its own default)"
    )
    seeds: int = setting(3, "networks per setting")
    epochs: int | None = setting(
        None, "passes over the training images (default: 5; digits 30, cifar10 10)"
    )
    batch_size: int = setting(64, "examples per update")
    schedule: str = setting("onecycle", "learning-rate schedule", SCHEDULES)
    augment: float = setting(
        0.0, "strength of the random distortions of training images: 0 for none, 1 best on MNIST"
    )
    dataset: str | None = setting(
        None, "data set to train on (default: mnist if it can be had, else digits)", data.DATASETS
    )
    data_dir: str | None = setting(
        None, "folder of the data set, as for lenet_jax.train", affects_results=False
    )
    slice_size: int = setting(
        8, "networks trained at once; more need more memory", affects_results=False
    )
    workdir: str | None = setting(
        None,
        "folder for the results (default: runs/sweep-<data set>-<time>)",
        affects_results=False,
    )
    scheduler: str | None = setting(
        None,
        "Dask cluster to train on: tcp://host:port, or the file of dask scheduler --scheduler-file",
        affects_results=False,
    )
    workers: int | None = setting(
        None, "processes to train in, on this machine, by Dask", affects_results=False
    )

    def __post_init__(self) -> None:
        check_choices(self)
        for name in self.optimizers.split(","):
            if name not in OPTIMIZERS:
                raise ValueError(f"--optimizers={name}: choose of {', '.join(OPTIMIZERS)}")
        for name in OPTIMIZERS:
            self.rates(name)
        for name in ("seeds", "epochs", "batch_size", "slice_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}={value}: must be at least 1")
        if not 0 <= self.augment < math.inf:
            raise ValueError(f"--augment={self.augment}: must be a number of at least 0")
        if self.scheduler is not None and self.workers:
            raise ValueError(f"--scheduler={self.scheduler}: has workers; leave out --workers")

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
                f"--learning_rates={self.learning_rates}: must be numbers above 0, comma-separated"
            )
        return list(dict.fromkeys(rates))


def resolve(settings: SweepSettings, dataset: data.Dataset) -> SweepSettings:
    """Fills in what was left open, now that the data set is known.

    Raises:
      ValueError: the batch is larger than what is left to train on.
    """
    _, rest = split_indices(len(dataset.train.labels))
    if settings.batch_size > len(rest):
        raise ValueError(
            f"--batch_size={settings.batch_size}: only {len(rest)} images of {dataset.name} are "
            "left to train on"
        )
    epochs = settings.epochs or registry.INFO[dataset.name].default_epochs
    return dataclasses.replace(settings, dataset=dataset.name, epochs=epochs)


@dataclasses.dataclass(frozen=True)
class Slice:
    """Networks that are trained at once: all have the same optimizer."""

    optimizer: str
    cells: tuple[tuple[float, int], ...]  # learning rate and seed of each

    @property
    def name(self) -> str:
        (rate, seed), count = self.cells[0], len(self.cells)
        return f"{self.optimizer}-{rate!r}-{seed}-{count}"

    def file(self, path: Path) -> Path:
        return path / f"{self.name}.json"


# What trains slices of a sweep, networks of one size, on a split: yields each with its records and
# where it was trained (nothing for here), in any order; calls the last argument with numbers of
# updates that are done.
TrainSlices = Callable[
    [SweepSettings, Sequence[Slice], LeNet, data.Split, Callable[[int], None]],
    Iterator[tuple[Slice, list[dict[str, Any]], str]],
]


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


def split_indices(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` images are held out, and which are trained on; the same in every sweep.

    Drawn, because a source may have its images in the order of their classes.
    """
    order = np.random.default_rng(0).permutation(count)
    return order[: count // HELD_OUT], order[count // HELD_OUT :]


def train_slice(
    settings: SweepSettings,
    part: Slice,
    model: LeNet,
    split: data.Split,
    log_updates: Callable[[int], None],
) -> list[dict[str, Any]]:
    """One record per network: its settings, its loss curve, its accuracy on held-out images."""
    held_out, rest = (take(split, rows) for rows in split_indices(len(split.labels)))
    rates, seeds = (np.array(column) for column in zip(*part.cells, strict=True))
    trained = population.train(
        population.MemberConfig(seeds, seeds, rates, augment=settings.augment or None),
        rest,
        optimizer=part.optimizer,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        schedule=settings.schedule,
        slice_size=len(part.cells),
        augment_kind=registry.INFO[settings.dataset].augment,
        model=model,
        log_updates=log_updates,
    )
    logits = population.predict(trained.params, held_out, model=model)
    accuracies = jax.vmap(metrics.accuracy, (0, None))(logits, held_out.labels)
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


def train_here(
    settings: SweepSettings,
    slices: Sequence[Slice],
    model: LeNet,
    split: data.Split,
    log_updates: Callable[[int], None],
) -> Iterator[tuple[Slice, list[dict[str, Any]], str]]:
    """Trains them one after the other in this process: a `TrainSlices`."""
    for part in slices:
        yield part, train_slice(settings, part, model, split, log_updates), ""


def run(
    settings: SweepSettings,
    dataset: data.Dataset,
    path: Path,
    log: Callable[[str], None] = print,
    train_slices: TrainSlices = train_here,
) -> list[dict[str, Any]]:
    """Trains the slices that `path` does not hold yet, one line each to `log`; all records.

    Raises:
      ValueError: `path` holds another sweep, or a damaged file.
      OSError: something could not be written.
      What `train_slices` raises.
    """
    config, stored = folder.make_config(settings, dataset), folder.read_config(path)
    if stored:
        folder.require_same_run(path, settings, config, stored)
        if changes := folder.environment_diff(config, stored):
            log(f"note: since the sweep began, {changes}: the last bits of results may differ")
    else:
        folder.write_config(path, config)
    slices_path, slices = path / "slices", plan(settings)
    slices_path.mkdir(exist_ok=True)
    files = {part: part.file(slices_path) for part in slices}
    records = {part: _read(file) for part, file in files.items() if file.exists()}
    missing = [part for part in slices if part not in records]
    networks, done = sum(len(part.cells) for part in slices), sum(map(len, records.values()))
    _, rest = split_indices(len(dataset.train.labels))
    updates = settings.epochs * (len(rest) // settings.batch_size)  # of a network
    with tqdm(
        total=networks, initial=done, unit="network", unit_scale=True, leave=False, disable=None
    ) as bar:
        show = lambda count: bar.update(count / updates)
        trained = train_slices(settings, missing, folder.network(config), dataset.train, show)
        for part, new, where in trained:
            atomic_write(files[part], json.dumps(new) + "\n")
            records[part] = new
            done += len(new)
            log(
                f"{part.optimizer}: {done} of {networks} networks are trained"
                + (f", the last by {where}" if where else "")
            )
    return [record for part in slices for record in records[part]]


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: is damaged ({error}); delete it to train it again") from error


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per setting: mean and standard deviation over seeds, and whether it is the best.

    The best is so among the settings of an optimizer; one with a network that diverged has no mean
    and is not compared.
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
