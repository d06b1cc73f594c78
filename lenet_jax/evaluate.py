"""Measures a trained network on a test split.

    python -m lenet_jax.evaluate
    python -m lenet_jax.evaluate --workdir=runs/mine
    python -m lenet_jax.evaluate --workdir=runs/mine --dataset=kmnist --data_dir=path/to/idx/files
    python -m lenet_jax.evaluate --init_from=net.pt --dataset=mnist
    python -m lenet_jax.evaluate --workdir=runs/a --workdir=runs/b

The test images belong to the run's own data set unless --dataset names another one. Their pixels
are normalised as in training. The command prints a table and writes the same numbers to --output:
by default evaluation.json in the run's folder, or evaluation-<data set>.json for other images than
the run's own. Without --workdir and --init_from it measures the package's network. With several
runs it also measures their ensemble, the mean of their probabilities. Without --workdir, or with
several runs, it writes nothing by default.
"""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp

from lenet_jax import cli, data
from lenet_jax.core import population
from lenet_jax.files import atomic_write, expand_user
from lenet_jax.run import trained
from lenet_jax.run.measure import load_data, measure_run, predict_logits, summary_line
from lenet_jax.run.trained import TrainedRun

MAX_COLUMNS, MAX_MISTAKES = 100, 20  # of a table on a screen
CORNER = r"true \ predicted"  # of the confusion matrix


@dataclasses.dataclass(frozen=True)
class EvaluateSettings(trained.NetworkSettings):
    """The flags of `python -m lenet_jax.evaluate`."""

    workdir: tuple[str, ...] = cli.setting(
        (),
        "folder of a run, as written by lenet_jax.train; several are an ensemble (default: the "
        "package's own network, trained on MNIST)",
    )
    dataset: str | None = cli.setting(
        None,
        "data set whose test split is used (default: the one the run trained on, else mnist)",
        data.DATASETS,
    )
    data_dir: str | None = cli.setting(
        None, "folder of that data set's files, as for lenet_jax.train (default: the run's)"
    )
    output: str | None = cli.setting(None, "JSON file to write (default: in --workdir)")
    file_flags: ClassVar = ("mean", "std")


def format_table(result: dict[str, Any]) -> str:
    """A result of `measure_run`, for a person."""
    names = result["classes"]
    width = max(5, *map(len, names))
    lines = [
        f"data       {result['dataset']}, {result['test_images']:,} test images "
        f"from {result['source']}",
        *filter(None, [result["note"]]),
        "",
        f"{'class':{width}}   images   precision   recall",
    ]
    for i, row in enumerate(result["confusion_matrix"]):
        precision, recall = _percent(result["precision"][i]), _percent(result["recall"][i])
        lines.append(f"{names[i]:>{width}}{sum(row):9,}{precision:>12}{recall:>9}")
    lines += ["", *_format_confusion(result["confusion_matrix"], names)]
    lines += ["", "confidence      images   accuracy   mean confidence"]
    bins = result["reliability"]
    for m, count in enumerate(bins["count"]):
        if count:
            low, high = m / len(bins["count"]), (m + 1) / len(bins["count"])
            lines.append(
                f"{low:6.1%} to {high:6.1%}{count:8,}{bins['accuracy'][m]:11.1%}"
                f"{bins['confidence'][m]:18.1%}"
            )
    return "\n".join(lines)


def _format_confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> list[str]:
    """The confusion matrix, or its most frequent mistakes if it is wider than a screen."""
    longest = max(map(len, names))
    head = max(len(CORNER), longest)
    cell = min(max(6, longest + 1), (MAX_COLUMNS - head) // len(names))
    if cell >= 6:  # numbers of five digits; names may be cut
        lines = [f"{CORNER:>{head}}" + "".join(f"{name[: cell - 1]:>{cell}}" for name in names)]
        return lines + [
            # Zeros would hide the mistakes.
            f"{name:>{head}}" + "".join(f"{count or '.':>{cell}}" for count in row)
            for name, row in zip(names, matrix, strict=True)
        ]
    mistakes = [
        (n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j and n
    ]
    mistakes.sort(key=lambda mistake: -mistake[0])
    lines = [f"{'true':>{head}}{'predicted':>{head + 3}}   images   (the most frequent mistakes)"]
    return lines + [
        f"{names[i]:>{head}}{names[j]:>{head + 3}}{count:9,}"
        for count, i, j in mistakes[:MAX_MISTAKES]
    ]


def evaluate_ensemble(runs: Sequence[TrainedRun], dataset: data.Dataset) -> dict[str, Any]:
    """{"members", "ensemble"}: `measure_run` of each run, and of their mean probabilities.

    Raises:
      ValueError: the runs do not have the same classes.
    """
    if len({run.classes for run in runs}) > 1:
        raise ValueError("--workdir: the runs of an ensemble must have the same classes")
    logits = [predict_logits(run, dataset.test.images) for run in runs]
    members = [measure_run(run, dataset, own) for run, own in zip(runs, logits, strict=True)]
    together = measure_run(runs[0], dataset, population.ensemble(jnp.stack(logits)))
    return {"members": members, "ensemble": together}


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(EvaluateSettings, argv, __doc__)
    cli.start_jax()
    with cli.exit_on_error():
        paths = settings.workdir or (None,)
        runs = [trained.load_network(dataclasses.replace(settings, workdir=path)) for path in paths]
        dataset = load_data(runs[0], settings.dataset, settings.data_dir)
        file = settings.output and expand_user(settings.output, "--output")
        if len(runs) > 1:
            result = evaluate_ensemble(runs, dataset)
            for run, each in zip(runs, result["members"], strict=True):
                print(f"run        {run.path}, step {run.step:,}: {summary_line(each)}")
            shown = result["ensemble"]
        else:
            run = runs[0]
            print(f"run        {run.path}" + ("" if run.step is None else f", step {run.step:,}"))
            result = shown = measure_run(run, dataset, predict_logits(run, dataset.test.images))
            own = dataset.name == run.config["data"]["name"] and not result["note"]
            if not file and settings.workdir:
                file = run.path / ("evaluation.json" if own else f"evaluation-{dataset.name}.json")
    print(f"{format_table(shown)}\n")
    try:
        if file:
            atomic_write(file, json.dumps(result, indent=2) + "\n")
    except OSError as error:
        print(summary_line(shown))
        cli.fail(error, 1, "; name another file with --output")
    head = f"{len(runs)} networks together: " if len(runs) > 1 else ""
    print(head + summary_line(shown) + (f"; written to {file}" if file else ""))
    if settings.workdir:
        flags = " ".join(f"--workdir={shlex.quote(path)}" for path in settings.workdir)
        print(f"next: lenet-jax report {flags}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


if __name__ == "__main__":
    cli.run(main)
