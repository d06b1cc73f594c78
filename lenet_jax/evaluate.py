"""Measures a trained run on a test split.

    python -m lenet_jax.evaluate --workdir=runs/mine
    python -m lenet_jax.evaluate --workdir=runs/mine --dataset=kmnist --data_dir=path/to/idx/files

The test images are those of the run's own data set unless --dataset names another; their pixels are
normalised as the run's were in training. Prints a table, and writes the same numbers to
evaluation.json in the run's folder, or to evaluation-<data set>.json for images other than the
run's own.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from lenet_jax import cli, data
from lenet_jax.files import atomic_write
from lenet_jax.run import trained
from lenet_jax.run.measure import load_data, measure_run, predict_logits, summary_line


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """The flags of `python -m lenet_jax.evaluate`."""

    workdir: str | None = cli.setting(None, "folder of the run, as written by lenet_jax.train")
    dataset: str | None = cli.setting(
        None,
        "data set whose test split is used (default: the one the run trained on)",
        data.DATASETS,
    )
    data_dir: str | None = cli.setting(
        None, "folder of that data set's files, as for lenet_jax.train (default: the run's)"
    )

    def __post_init__(self) -> None:
        cli.check_choices(self)


def format_table(result: dict[str, Any]) -> str:
    """The metrics of `measure_run` for a person."""
    confusion = result["confusion_matrix"]
    lines = [
        f"data       {result['dataset']}, {result['test_images']:,} test images "
        f"from {result['source']}",
        *filter(None, [result["note"]]),
        "",
        "class   images   precision   recall",
    ]
    for i, row in enumerate(confusion):
        precision, recall = _percent(result["precision"][i]), _percent(result["recall"][i])
        lines.append(f"{i:5}{sum(row):9,}{precision:>12}{recall:>9}")
    lines += ["", "predicted" + "".join(f"{i:6}" for i in range(len(confusion)))]
    lines += [
        f"{i:9}" + "".join(f"{count or '.':>6}" for count in row)  # zeros would hide the mistakes
        for i, row in enumerate(confusion)
    ]
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


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(EvaluateSettings, argv, __doc__)
    cli.enable_compilation_cache()
    try:
        run = trained.load(settings.workdir)
        dataset = load_data(run, settings.dataset, settings.data_dir)
    except ValueError as error:
        cli.fail(error)
    print(f"run        {run.path}, step {run.step:,}")
    result = measure_run(run, dataset, predict_logits(run, dataset.test.images))
    print(f"{format_table(result)}\n")
    own = dataset.name == run.config["data"]["name"] and not result["note"]
    file = run.path / ("evaluation.json" if own else f"evaluation-{dataset.name}.json")
    try:
        atomic_write(file, json.dumps(result, indent=2) + "\n")
    except OSError as error:
        cli.fail(error, 1)
    print(f"{summary_line(result)}; written to {file}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


if __name__ == "__main__":
    cli.run(main)
