"""Measures a trained run on a test split.

    python -m lenet_jax.evaluate --workdir=runs/mine
    python -m lenet_jax.evaluate --workdir=runs/mine --dataset=kmnist --data_dir=path/to/idx/files
    python -m lenet_jax.evaluate --init_from=net.pt --dataset=mnist

The test images are those of the run's own data set unless --dataset names another; their pixels are
normalised as the run's were in training. Prints a table, and writes the same numbers to --output:
by default evaluation.json in the run's folder, or evaluation-<data set>.json for images other than
the run's own, and nowhere for a file of parameters.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from lenet_jax import cli, data
from lenet_jax.files import atomic_write, expand_user
from lenet_jax.run import trained
from lenet_jax.run.measure import load_data, measure_run, predict_logits, summary_line


@dataclasses.dataclass(frozen=True)
class EvaluateSettings(trained.NetworkSettings):
    """The flags of `python -m lenet_jax.evaluate`."""

    dataset: str | None = cli.setting(
        None,
        "data set whose test split is used (default: the one the run trained on, else mnist)",
        data.DATASETS,
    )
    data_dir: str | None = cli.setting(
        None, "folder of that data set's files, as for lenet_jax.train (default: the run's)"
    )
    output: str | None = cli.setting(None, "JSON file to write (default: in --workdir)")

    def __post_init__(self) -> None:
        self._check(of_a_file=("mean", "std"))


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
        run = trained.load_network(settings)
        dataset = load_data(run, settings.dataset, settings.data_dir)
        file = settings.output and expand_user(settings.output, "--output")
    except ValueError as error:
        cli.fail(error)
    print(f"run        {run.path}" + ("" if run.step is None else f", step {run.step:,}"))
    result = measure_run(run, dataset, predict_logits(run, dataset.test.images))
    print(f"{format_table(result)}\n")
    own = dataset.name == run.config["data"]["name"] and not result["note"]
    if not file and run.step is not None:
        file = run.path / ("evaluation.json" if own else f"evaluation-{dataset.name}.json")
    try:
        if file:
            atomic_write(file, json.dumps(result, indent=2) + "\n")
    except OSError as error:
        print(summary_line(result))
        cli.fail(f"{error}; --output names another file", 1)
    print(summary_line(result) + (f"; written to {file}" if file else ""))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


if __name__ == "__main__":
    cli.run(main)
