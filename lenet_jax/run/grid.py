"""A sweep on disk: a grid of optimizers, learning rates and seeds, trained slice by slice.

A slice is a population that is trained at once. Each slice leaves a file, so that a sweep that was
stopped continues with the missing slices.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lenet_jax import cli, data
from lenet_jax.cli import Log, at_least, between, setting
from lenet_jax.core import metrics, population
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import DEFAULT_LEARNING_RATE, OPTIMIZERS
from lenet_jax.core.split import take
from lenet_jax.data import registry
from lenet_jax.files import atomic_write
from lenet_jax.run import folder
from lenet_jax.run.settings import TrainingSettings, resolve_data

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # times an optimizer's default rate: the default grid
HELD_OUT = 6  # hold out 1/HELD_OUT of the images


@dataclasses.dataclass(frozen=True)
class SweepSettings(TrainingSettings):
    """The flags of `python -m lenet_jax.sweep`."""

    optimizers: str = setting("sgd,nesterov,adam,rmsprop", "optimizers to compare, comma-separated")
    learning_rates: str | None = setting(
        None,
        "learning rates for each optimizer, comma-separated (default: 1/4 to 4 times its default)",
    )
    seeds: int = setting(3, "networks per setting", valid=between(1, 10_000))
    slice_size: int = setting(
        8, "networks at once; more need more memory", valid=at_least(1), affects_results=False
    )
    scheduler: str | None = setting(
        None,
        "Dask cluster to train on: tcp://host:port, or the file of dask scheduler --scheduler-file",
        affects_results=False,
    )
    workers: int | None = setting(
        None,
        "how many local processes train, started by Dask",
        valid=at_least(1),
        affects_results=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.optimizers.split(","):
            if name not in OPTIMIZERS:
                raise ValueError(f"--optimizers={name}: choose from {', '.join(OPTIMIZERS)}")
            self.rates(name)
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
            given = f"--learning_rates={self.learning_rates}"
            raise ValueError(f"{given}: must be numbers above 0, comma-separated")
        return list(dict.fromkeys(rates))


def resolve(settings: SweepSettings, dataset: data.Dataset) -> SweepSettings:
    """Fills in the settings that depend on the data set, which must have images to hold out."""
    held_out, rest = split_indices(len(dataset.train.labels))
    if not len(held_out):
        needs = f"a sweep holds out 1/{HELD_OUT} of the training images"
        raise ValueError(f"--dataset={dataset.name}: {needs}, and there are only {len(rest)}")
    return resolve_data(settings, dataset, len(rest))


@dataclasses.dataclass(frozen=True)
class Slice:
    """Networks that are trained at once: all have the same optimizer."""

    optimizer: str
    cells: tuple[tuple[float, int], ...]  # learning rate and seed of each

    @property
    def name(self) -> str:
        (rate, seed), count = self.cells[0], len(self.cells)
        return f"{self.optimizer}-{rate!r}-{seed}-{count}"


class Shared(NamedTuple):
    """What all slices of a sweep have in common."""

    settings: SweepSettings
    model: LeNet
    split: data.Split  # with the images that are held out


Records = list[dict[str, Any]]  # one per network
LogUpdates = Callable[[float], None]  # gets the number of updates since its last call
# Trains slices. It yields, in any order, each of them with its records and the address where it was
# trained ("" for this process).
TrainSlices = Callable[[Shared, Sequence[Slice], LogUpdates], Iterator[tuple[Slice, Records, str]]]


def plan(settings: SweepSettings) -> list[Slice]:
    """The grid, cut into slices of at most `slice_size` networks."""
    slices = []
    for optimizer in dict.fromkeys(settings.optimizers.split(",")):
        cells = [
            (rate, seed) for rate in settings.rates(optimizer) for seed in range(settings.seeds)
        ]
        length = slice_length(settings, optimizer)
        starts = range(0, len(cells), length)
        slices += [Slice(optimizer, tuple(cells[at : at + length])) for at in starts]
    return slices


def slice_length(settings: SweepSettings, optimizer: str) -> int:
    """How many networks of an optimizer are trained at once; its last slice may have fewer."""
    count = len(settings.rates(optimizer)) * settings.seeds
    return -(-count // -(-count // settings.slice_size))


def split_indices(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices of `count` images that are held out, and of the rest; the same in every sweep.

    They are random, because a source may have its images in the order of their classes.
    """
    order = np.random.default_rng(0).permutation(count)
    return order[: count // HELD_OUT], order[count // HELD_OUT :]


def train_slice(shared: Shared, part: Slice, log_updates: LogUpdates) -> Records:
    """Trains a slice; returns each network's settings, loss curve and held-out accuracy."""
    settings, model, split = shared
    held_out, rest = (take(split, rows) for rows in split_indices(len(split.labels)))
    # The last slice repeats its last network, because another length would compile again.
    missing = slice_length(settings, part.optimizer) - len(part.cells)
    cells = part.cells + part.cells[-1:] * missing
    rates, seeds = (np.array(column) for column in zip(*cells, strict=True))
    trained = population.train(
        population.MemberConfig(seeds, seeds, rates, augment=settings.augment or None),
        rest,
        optimizer=part.optimizer,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        schedule=settings.schedule,
        slice_size=len(cells),
        augment_kind=registry.INFO[settings.dataset].augment,
        model=model,
        log_updates=lambda count: log_updates(count * len(part.cells) / len(cells)),
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
    shared: Shared, slices: Sequence[Slice], log_updates: LogUpdates
) -> Iterator[tuple[Slice, Records, str]]:
    """Trains them one after the other in this process: a `TrainSlices`."""
    for part in slices:
        yield part, train_slice(shared, part, log_updates), ""


def run(
    settings: SweepSettings,
    dataset: data.Dataset,
    path: Path,
    log: Log = print,
    train_slices: TrainSlices = train_here,
) -> Records:
    """The records of all slices; those that `path` lacks are trained, with a line each to `log`.

    Raises:
      ValueError: `path` holds another or an unknown sweep, or a damaged file.
      OSError: a file could not be written.
    """
    config, stored = folder.make_config(settings, dataset), folder.read_config(path)
    slices_path, slices = path / "slices", plan(settings)
    if stored:
        folder.require_same_run(path, settings, config, stored)
        if changes := folder.environment_diff(config, stored):
            log(f"note: since the sweep began, {changes}: the last bits of results may differ")
    elif any(slices_path.glob("*")):
        gone = "has slices of a sweep whose config.json is gone"
        raise ValueError(f"--workdir={path}: {gone}; use another")
    else:
        folder.write_config(path, config)
    slices_path.mkdir(exist_ok=True)
    files = {part: slices_path / f"{part.name}.json" for part in slices}
    records = {part: _read(file) for part, file in files.items() if file.exists()}
    missing = [part for part in slices if part not in records]
    networks, done = sum(len(part.cells) for part in slices), sum(map(len, records.values()))
    _, rest = split_indices(len(dataset.train.labels))
    updates = settings.epochs * (len(rest) // settings.batch_size)  # per network
    counted = {"total": networks, "initial": done, "unit": "network", "unit_scale": True}
    with cli.progress_bar(**counted) as bar:
        shared = Shared(settings, folder.network(config), dataset.train)
        trained = train_slices(shared, missing, lambda count: bar.update(count / updates))
        for part, new, where in trained:
            atomic_write(files[part], json.dumps(new) + "\n")
            records[part] = new
            done += len(new)
            by = f", the last by {where}" if where else ""
            log(f"{part.optimizer}: {done} of {networks} networks are trained{by}")
    return [record for part in slices for record in records[part]]


def _read(file: Path) -> Records:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: is damaged ({error}); delete it to train it again") from error


def summarise(records: Records) -> list[dict[str, Any]]:
    """A row per setting: mean, standard deviation over seeds, whether it is best or at the edge.

    An optimizer's settings are compared with one another. A setting has no mean, and is not
    compared, if one of its networks diverged.
    """
    groups: dict[tuple[str, float], Records] = {}
    for record in records:
        groups.setdefault((record["optimizer"], record["learning_rate"]), []).append(record)
    rows = []
    for (optimizer, rate), group in groups.items():
        accuracies = [record["accuracy"] for record in group]
        diverged = sum(not record["finite"] for record in group)
        rows.append(
            {
                "optimizer": optimizer,
                "learning_rate": rate,
                "seeds": len(group),
                "diverged": diverged,
                "mean": None if diverged else float(np.mean(accuracies)),
                "sd": None if diverged or len(group) < 2 else float(np.std(accuracies, ddof=1)),
            }
        )
    for row in rows:
        rivals = [r for r in rows if r["optimizer"] == row["optimizer"]]
        best = max((r["mean"] for r in rivals if r["mean"] is not None), default=None)
        row["best"] = best is not None and row["mean"] == best
        rates = [r["learning_rate"] for r in rivals]
        row["at_edge"] = len(rates) > 1 and row["learning_rate"] in (min(rates), max(rates))
    return rows


def standard_error(row: Mapping[str, Any], held_out: int) -> float:
    """The standard error of a row's mean over two or more seeds, from `held_out` images."""
    mean, sd = row["mean"], row["sd"]
    return math.sqrt(sd**2 / row["seeds"] + mean * (1 - mean) / held_out)
