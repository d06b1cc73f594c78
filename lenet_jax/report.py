"""Draws a trained run: one HTML page that needs no network connection, and its figures.

    python -m lenet_jax.report --workdir=runs/mine
    python -m lenet_jax.report --workdir=runs/mine --workdir=runs/other

Writes index.html and its PNG files to --output, by default report/ in the run's folder. The page
shows the learning curves, the confusion matrix, the calibration, the first layer's filters, each
layer's activations, the worst mistakes and the settings. With several runs it compares their
curves; the rest of the page is about the first run, whose folder gets the page.
"""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from lenet_jax import cli, data
from lenet_jax.files import expand_user
from lenet_jax.run import trained
from lenet_jax.run.measure import load_data, measure_run, predict_logits, summary_line
from lenet_jax.run.settings import Settings
from lenet_jax.run.trained import TrainedRun
from lenet_jax.viz import page


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """The flags of `python -m lenet_jax.report`."""

    workdir: tuple[str, ...] = cli.setting(
        (),
        "folder of a run, as written by lenet_jax.train; give several to compare them",
        missing="the folder of a run of lenet_jax.train",
    )
    data_dir: str | None = cli.setting(
        None, "folder of the first run's data set, as for lenet_jax.train (default: the run's)"
    )
    output: str | None = cli.setting(
        None, "folder to write to (default: report in the first --workdir)"
    )

    def __post_init__(self) -> None:
        cli.check(self)


def run_names(runs: Sequence[TrainedRun]) -> list[str]:
    """The names of the runs' folders, or their paths where names are not unique."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(runs) else [str(run.path) for run in runs]


def differing_settings(runs: Sequence[TrainedRun]) -> list[dict[str, Any]]:
    """For each run, the settings that affect its results and differ between the runs."""
    settings = [run.config["settings"] for run in runs]
    names = [f.name for f in dataclasses.fields(Settings) if f.metadata["affects_results"]]
    different = [name for name in names if len({str(each.get(name)) for each in settings}) > 1]
    return [{name: each.get(name) for name in different} for each in settings]


def report(
    runs: Sequence[TrainedRun],
    dataset: data.Dataset,
    logits: jax.Array,
    result: dict[str, Any],
    folder: Path,
) -> Path:
    """Writes the page about the first run into `folder`, and returns its path.

    `logits` [N, C] are the first run's on the test split, and `result` is `measure_run`'s.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
      OSError: a file cannot be written.
    """
    run, several = runs[0], len(runs) > 1
    names, records = run_names(runs) if several else [""], [each.metrics for each in runs]
    split = dataset.test._replace(**run.normalization)
    curves = dict(zip(names, records, strict=True))
    figures = page.draw(run.params, split, logits, result, curves)
    html = page.render(
        figures,
        result,
        first_label=run.classes[split.labels[0]],
        paths=[str(each.path) for each in runs],
        epochs=run.metrics[-1]["epoch"] if run.metrics else None,
        config=run.config,
        compared=page.comparison(names, records, differing_settings(runs)) if several else "",
    )
    return page.write(folder, html, figures)


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(ReportSettings, argv, __doc__)
    cli.start_jax()
    with cli.exit_on_error():
        runs = [trained.load(path) for path in settings.workdir]
        dataset = load_data(runs[0], data_dir=settings.data_dir)
        folder = expand_user(settings.output or runs[0].path / "report", "--output")
    logits = predict_logits(runs[0], dataset.test.images)
    result = measure_run(runs[0], dataset, logits)
    if result["note"]:
        print(result["note"])
    try:
        file = report(runs, dataset, logits, result, folder)
    except OSError as error:
        print(summary_line(result))
        cli.fail(error, 1, "; name another folder with --output")
    print(f"{summary_line(result)}; the report is {file}")
    run = shlex.quote(settings.workdir[0])
    kind = "html" if runs[0].config["data"]["channels"] == 1 else "onnx"
    print(f"next: lenet-jax export --workdir={run} --format={kind}")


if __name__ == "__main__":
    cli.run(main)
