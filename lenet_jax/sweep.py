"""Trains a grid of LeNets (optimizers x learning rates x seeds), many networks at once.

    python -m lenet_jax.sweep --optimizers=sgd,nesterov,adam,rmsprop --seeds=5
    python -m lenet_jax.sweep --dataset=mnist --optimizers=adam --learning_rates=1e-3,2e-3,4e-3
    python -m lenet_jax.sweep --scheduler=tcp://host:8786     # on the workers of a Dask cluster

A sixth of the training images is held out to compare the settings; the test images are not read.
The command writes a table, a figure and the numbers to --workdir. If it is stopped, the same
command with the same --workdir continues, on this machine or on a cluster.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lenet_jax import cli, data
from lenet_jax.files import atomic_write
from lenet_jax.run import cluster, folder
from lenet_jax.run.grid import SweepSettings, resolve, run, summarise
from lenet_jax.viz import figures


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `summarise`, for a person."""
    lines = [f"{'optimizer':10} {'learning rate':>13}   held-out accuracy"]
    for row in rows:
        outcome = f"{row['diverged']} of {row['seeds']} diverged"
        if row["mean"] is not None:
            spread = "" if row["sd"] is None else f" ± {100 * row['sd']:.2f}"
            outcome = f"{100 * row['mean']:.2f}{spread} %" + ("   best" if row["best"] else "")
        lines.append(f"{row['optimizer']:10} {row['learning_rate']:>13g}   {outcome}")
    return "\n".join(lines)


def write_results(records: Sequence[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Writes `sweep.json` and `sweep.png`, and returns the rows of `summarise`."""
    rows = summarise(records)
    atomic_write(path / "sweep.json", json.dumps({"rows": rows, "networks": records}) + "\n")
    figures.sweep(rows, records).savefig(path / "sweep.png", dpi=150)
    return rows


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(SweepSettings, argv, __doc__)
    cli.start_jax(cores_are_devices=True)
    with cli.exit_on_error(stopped="stopped before training began"):
        dataset = data.load(settings.dataset, settings.data_dir, print)
        settings = resolve(settings, dataset)
        path = folder.create(settings.workdir, f"sweep-{dataset.name}")
    again = f"the same command with --workdir={path} continues"
    with cli.exit_on_error(stopped=f"stopped: {again}"), folder.locked(path):
        if dataset.note:
            print(dataset.note)
        print(f"{dataset.name}, {settings.epochs} epochs, results in {path}", flush=True)
        where = cluster.connect(settings.scheduler, settings.workers, cli.print_line)
        try:
            with where as train_slices:
                records = run(settings, dataset, path, cli.print_line, train_slices)
        except cluster.ClusterError as error:
            cli.fail(f"{error}: {again}", 1)
        rows = write_results(records, path)
    print(format_table(rows))
    best = max((row for row in rows if row["best"]), key=lambda row: row["mean"], default=None)
    if best is None:
        cli.fail("every setting diverged: try smaller --learning_rates", 1)
    print(
        f"best: {best['optimizer']} at {best['learning_rate']:g}, {best['mean']:.2%} of the "
        f"held-out images; {path / 'sweep.png'}"
    )


if __name__ == "__main__":
    cli.run(main)
