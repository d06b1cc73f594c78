"""Measures a trained run on a test split.

    python -m lenet_jax.evaluate --workdir=runs/mine
    python -m lenet_jax.evaluate --workdir=runs/mine --dataset=kmnist --data_dir=path/to/idx/files

The test images are those of the run's own data set unless --dataset names another; their pixels are
normalised as the run's were in training. Prints a table, and writes the same numbers to
evaluation.json in the run's folder, or evaluation-<data set>.json for any images but the run's own.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lenet_jax import cli, data
from lenet_jax.core import epoch, losses, metrics
from lenet_jax.core.model import LeNet
from lenet_jax.core.step import LossFn
from lenet_jax.run import folder as workdir
from lenet_jax.run import trained
from lenet_jax.run.trained import TrainedRun


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What `python -m lenet_jax.evaluate` can be told."""

    workdir: str | None = cli.setting(None, "folder of the run, as lenet_jax.train made it")
    dataset: str | None = cli.setting(
        None, "whose test split (default: of the data that the run was trained on)", data.DATASETS
    )
    data_dir: str | None = cli.setting(
        None, "folder of that data set's files, as for lenet_jax.train (default: the run's)"
    )

    def __post_init__(self) -> None:
        cli.check_choices(self)


def load_data(
    run: TrainedRun, name: str | None = None, data_dir: str | None = None
) -> data.Dataset:
    """The data set `name`, or the run's own from where the run had it.

    Raises:
      ValueError: it cannot be had.
    """
    own = run.config["data"]["name"]
    # The run's folder may hold IDX files, which say nothing of whose they are.
    folder = data_dir or (run.config["settings"]["data_dir"] if name in (None, own) else None)
    return data.load(name or own, folder, report=print)


def note(run: TrainedRun, dataset: data.Dataset) -> str:
    """A line if the images are others than the run's of the same name; else nothing."""
    own = run.config["data"]
    if dataset.name != own["name"]:
        return ""
    if workdir.data_digest(dataset) == own.get("sha256"):
        return ""
    return f"note: the images are not those that the run had from {own['source']}"


def classify(run: TrainedRun, images: np.ndarray) -> jax.Array:
    """Logits [N, 10] of uint8 images [N, 32, 32, 1]."""
    return epoch.predict(LeNet(), run.params, jnp.asarray(images), **run.scaling)


@partial(jax.jit, static_argnames="loss_fn")
def measure(logits: jax.Array, labels: jax.Array, loss_fn: LossFn) -> dict[str, Any]:
    """All that is said of logits [N, 10] with labels [N]; the names are those of the JSON file."""
    log_probabilities = jax.nn.log_softmax(logits)
    probabilities = jnp.exp(log_probabilities)
    predictions = jnp.argmax(logits, axis=-1)
    confusion = metrics.confusion_matrix(predictions, labels)
    precision, recall = metrics.precision_recall(confusion)
    count, confidence, right = metrics.reliability(probabilities, labels)
    return {
        "accuracy": metrics.accuracy(logits, labels),
        "loss": loss_fn(logits, labels),
        "negative_log_likelihood": metrics.negative_log_likelihood(log_probabilities, labels),
        "calibration_error": metrics.calibration_error(probabilities, labels),
        "precision": precision,
        "recall": recall,
        "confusion_matrix": confusion,
        "reliability": {"count": count, "confidence": confidence, "accuracy": right},
    }


def evaluate(run: TrainedRun, dataset: data.Dataset, logits: jax.Array) -> dict[str, Any]:
    """What `measure` finds on a test split with its logits [N, 10], as JSON.

    NaN (of nothing, no share) becomes None.
    """
    name = run.config["settings"]["loss"]
    found = measure(logits, jnp.asarray(dataset.test_labels), losses.CLASSIFICATION[name])
    about = {
        "step": run.step,
        "dataset": dataset.name,
        "source": dataset.source,
        "test_images": len(dataset.test_labels),
        "loss_name": name,
        "note": note(run, dataset),
    }
    return about | {key: jax.tree.map(_plain, value) for key, value in found.items()}


def describe(result: dict[str, Any]) -> str:
    """The table for a person."""
    confusion = np.array(result["confusion_matrix"])
    lines = [
        f"data       {result['dataset']}, {result['test_images']:,} test images "
        f"from {result['source']}",
        *filter(None, [result["note"]]),
        "",
        "class   images   precision   recall",
    ]
    for i, row in enumerate(confusion):
        precision, recall = _percent(result["precision"][i]), _percent(result["recall"][i])
        lines.append(f"{i:5}{row.sum():9,}{precision:>12}{recall:>9}")
    lines += ["", "taken for" + "".join(f"{i:6}" for i in range(len(confusion)))]
    lines += [
        f"{i:9}" + "".join(f"{count or '.':>6}" for count in row)  # zeros would hide the mistakes
        for i, row in enumerate(confusion.tolist())
    ]
    lines += ["", "how sure        images   right   mean confidence"]
    bins = result["reliability"]
    for m, count in enumerate(bins["count"]):
        if count:
            low, high = m / len(bins["count"]), (m + 1) / len(bins["count"])
            lines.append(
                f"{low:6.1%} to {high:6.1%}{count:8,}{bins['accuracy'][m]:8.1%}"
                f"{bins['confidence'][m]:18.1%}"
            )
    return "\n".join(lines)


def describe_end(result: dict[str, Any]) -> str:
    """The last line: the numbers that one asks for first."""
    likelihood = (
        ""
        if result["loss_name"] == "cross_entropy"  # which is the likelihood
        else f", negative log-likelihood {result['negative_log_likelihood']:.4f}"
    )
    return (
        f"accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f} ({result['loss_name']})"
        f"{likelihood}, calibration error {result['calibration_error']:.2%}"
    )


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(EvaluateSettings, argv, __doc__)
    cli.enable_compilation_cache()
    try:
        run = trained.load(settings.workdir)
        dataset = load_data(run, settings.dataset, settings.data_dir)
    except ValueError as error:
        cli.fail(error)
    print(f"run        {run.path}, step {run.step:,}")
    result = evaluate(run, dataset, classify(run, dataset.test_images))
    own = dataset.name == run.config["data"]["name"] and not result["note"]
    file = run.path / ("evaluation.json" if own else f"evaluation-{dataset.name}.json")
    print(f"{describe(result)}\n")
    try:
        workdir.replace(file, json.dumps(result, indent=2) + "\n")
    except OSError as error:
        cli.fail(f"{file}: cannot be written to ({error.strerror or error})", 1)
    print(f"{describe_end(result)}; written to {file}")


def _plain(array: jax.Array) -> Any:
    values = np.asarray(array).tolist()
    if isinstance(values, list):
        return [_plain(np.asarray(value)) for value in values]
    return None if isinstance(values, float) and math.isnan(values) else values


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


if __name__ == "__main__":
    main(sys.argv)
