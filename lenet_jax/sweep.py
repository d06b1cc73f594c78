"""Trains a grid of LeNets (optimizers x learning rates x seeds), many networks at once.

    python -m lenet_jax.sweep --optimizers=sgd,nesterov,adam,rmsprop --seeds=5
    python -m lenet_jax.sweep --dataset=mnist --optimizers=adam --learning_rates=1e-3,2e-3,4e-3
    python -m lenet_jax.sweep --scheduler=tcp://host:8786     # on the workers of a Dask cluster

A sixth of the training images is held out to compare the settings; the test images are not read.
The command writes a table, a figure and the numbers to --workdir. If it is stopped, the same
command with the same --workdir continues, on this machine or on a cluster.
"""

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lenet_jax import cli, data
from lenet_jax.files import atomic_write
from lenet_jax.run import cluster, folder
from lenet_jax.run.grid import (
    SweepSettings,
    plan,
    resolve,
    run,
    split_indices,
    standard_error,
    summarise,
)
from lenet_jax.run.settings import TrainingSettings

Row = Mapping[str, Any]  # of `summarise`


def format_table(rows: Sequence[Row]) -> str:
    """The rows, for a person."""
    lines = [f"{'optimizer':10} {'learning rate':>13}   held-out accuracy"]
    for row in rows:
        outcome = f"{row['diverged']} of {row['seeds']} diverged"
        if row["mean"] is not None:
            spread = "" if row["sd"] is None else f" ± {100 * row['sd']:.2f}"
            edge = ", at the edge of the grid" if row["at_edge"] else ""
            best = f"   best{edge}" if row["best"] else ""
            outcome = f"{100 * row['mean']:.2f}{spread} %{best}"
        lines.append(f"{row['optimizer']:10} {row['learning_rate']:>13g}   {outcome}")
    return "\n".join(lines)


def rank(rows: Sequence[Row]) -> list[Row]:
    """The rows that did not diverge, the best first."""
    return sorted((row for row in rows if row["mean"] is not None), key=lambda row: -row["mean"])


def format_verdict(rows: Sequence[Row], held_out: int) -> str:
    """The settings that diverged, those that may be as good as the best, and the best."""
    lost = [name_of(row) for row in rows if row["mean"] is None]
    best, *others = rank(rows)
    lines = [f"diverged: {', '.join(lost)}"] if lost else []
    if others and best["seeds"] == 1:
        lines.append("one seed per setting: the differences between seeds are unknown")
    elif others:
        error = lambda row: standard_error(row, held_out)
        margin = lambda row: 2 * math.hypot(error(best), error(row))
        close = [row for row in others if best["mean"] - row["mean"] <= margin(row)]
        following = f"{name_of(others[0])} ({others[0]['mean']:.2%})"
        more = f" and {len(close) - 1} more" if len(close) > 1 else ""
        lines.append(
            f"within two standard errors of the best: {following}{more}"
            if close
            else f"the next, {following}, is worse by more than two standard errors"
        )
    edge = "; at the edge of the grid: try rates beyond it" if best["at_edge"] else ""
    lines.append(f"best: {name_of(best)}, {best['mean']:.2%} of {held_out:,} held-out images{edge}")
    return "\n".join(lines)


def name_of(row: Row) -> str:
    return f"{row['optimizer']} at {row['learning_rate']:g}"


def train_command(settings: SweepSettings, best: Row) -> str:
    """The command that trains the best setting on all training images."""
    values = {"optimizer": best["optimizer"], "learning_rate": best["learning_rate"]}
    for field in dataclasses.fields(TrainingSettings):
        value = getattr(settings, field.name)
        if field.name != "workdir" and value != field.default:
            values[field.name] = value
    flags = (f"--{name}={shlex.quote(str(value))}" for name, value in values.items())
    return f"lenet-jax train {' '.join(flags)}"


def write_results(records: Sequence[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Writes `sweep.json` and `sweep.png`, and returns the rows of `summarise`."""
    from lenet_jax.viz import figures

    rows = summarise(records)
    atomic_write(path / "sweep.json", json.dumps({"rows": rows, "networks": records}) + "\n")
    figures.sweep(rows, records).savefig(path / "sweep.png", dpi=150)
    return rows


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(SweepSettings, argv, __doc__)
    # Here, so that a sweep without them does not begin.
    import matplotlib  # noqa: F401

    if settings.scheduler is not None or settings.workers:
        import distributed  # noqa: F401

    cli.start_jax(cores_are_devices=True)
    with cli.exit_on_error(stopped="stopped before training began"):
        if settings.scheduler is not None:
            cluster.find_scheduler(settings.scheduler)
        settings = folder.adopt_stored(settings)
        dataset = data.load(settings.dataset, settings.data_dir, print)
        settings = resolve(settings, dataset)
        path = folder.create(settings.workdir, f"sweep-{dataset.name}")
    again = f"the same command with --workdir={path} continues"
    with cli.exit_on_error(stopped=f"stopped: {again}"), folder.locked(path):
        if dataset.note:
            print(dataset.note)
        slices = plan(settings)
        networks = sum(len(part.cells) for part in slices)
        print(
            f"{dataset.name}, {cli.count(networks, 'network')} of "
            f"{cli.count(settings.epochs, 'epoch')} in {cli.count(len(slices), 'slice')}; "
            f"results in {path}",
            flush=True,
        )
        where = cluster.connect(settings.scheduler, settings.workers, cli.print_line)
        try:
            with where as train_slices:
                records = run(settings, dataset, path, cli.print_line, train_slices)
        except cluster.ClusterError as error:
            cli.fail(f"{error}: {again}", 1)
        rows = write_results(records, path)
    print(format_table(rows))
    if not (ranked := rank(rows)):
        cli.fail("every setting diverged: try smaller --learning_rates", 1)
    held_out, _ = split_indices(len(dataset.train.labels))
    print(f"{format_verdict(rows, len(held_out))}; {path / 'sweep.png'}")
    print(f"next: {train_command(settings, ranked[0])}")


if __name__ == "__main__":
    cli.run(main)
