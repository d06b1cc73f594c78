"""Measures a trained run on a test split: logits, and what `evaluate` and `report` show.

N is the number of images, C of classes, M of the bins of a reliability diagram.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lenet_jax import data
from lenet_jax.cli import Log
from lenet_jax.core import epoch, losses, metrics
from lenet_jax.core.model import LeNet, model_for, sizes
from lenet_jax.core.step import LossFn
from lenet_jax.run import folder
from lenet_jax.run.trained import TrainedRun


def load_data(
    run: TrainedRun, name: str | None = None, data_dir: str | None = None, log: Log = print
) -> data.Dataset:
    """The data set `name`, or the run's own from the folder that the run used.

    Raises:
      ValueError: it is unavailable, or does not match the run's network.
    """
    own = run.config["data"]["name"]
    # Not for another data set: IDX files do not say which data set they belong to.
    kept = run.config["settings"]["data_dir"] if name in (None, own) and not data_dir else None
    try:
        dataset = data.load(name or own, data_dir or kept, log)
    except ValueError as error:
        if not kept:
            raise
        reason = str(error).removeprefix(f"--data_dir={kept}: ")
        remedy = "name another folder with --data_dir"
        raise ValueError(f"{kept}, where the run had its data: {reason}; {remedy}") from error
    theirs = LeNet(len(dataset.classes), dataset.train.images.shape[-1])
    ours = model_for(run.params)
    if theirs.in_channels != ours.in_channels or theirs.num_classes > ours.num_classes:
        has = f"{dataset.name} from {dataset.source} has {sizes(theirs)}"
        remedy = "name other images with --dataset and --data_dir"
        raise ValueError(f"{has}, and the network of {run} has {sizes(ours)}; {remedy}")
    return dataset


def predict_logits(run: TrainedRun, images: ArrayLike) -> jax.Array:
    """Logits [N, C] of uint8 images [N, 32, 32, channels], normalised as in training."""
    split = data.Split(jnp.asarray(images), None, **run.normalization)
    return epoch.predict(model_for(run.params), run.params, split)


@partial(jax.jit, static_argnames="loss_fn")
def measure_logits(logits: jax.Array, labels: jax.Array, loss_fn: LossFn) -> dict[str, Any]:
    """Every metric of logits [N, C] with labels [N], under its name in the JSON file."""
    log_probs = jax.nn.log_softmax(logits)
    probs = jnp.exp(log_probs)
    confusion = metrics.confusion_matrix(jnp.argmax(logits, axis=-1), labels, logits.shape[-1])
    precision, recall = metrics.precision_recall(confusion)
    count, confidence, accuracy = metrics.reliability(probs, labels)  # [M] each
    return {
        "accuracy": metrics.accuracy(logits, labels),
        "loss": loss_fn(logits, labels),
        "negative_log_likelihood": losses.nll(log_probs, labels),
        "calibration_error": metrics.calibration_error(probs, labels),
        "precision": precision,
        "recall": recall,
        "confusion_matrix": confusion,
        "reliability": {"count": count, "confidence": confidence, "accuracy": accuracy},
    }


def measure_run(run: TrainedRun, dataset: data.Dataset, logits: jax.Array) -> dict[str, Any]:
    """The metrics of a run's logits [N, C] on a data set's test split, as JSON.

    NaN (the recall of a class without images) becomes None.
    """
    name = run.config["settings"]["loss"]
    labels = jnp.asarray(dataset.test.labels)
    measured = measure_logits(logits, labels, losses.CLASSIFICATION[name])
    return {
        "step": run.step,
        "dataset": dataset.name,
        "source": dataset.source,
        "test_images": len(labels),
        "classes": run.classes,
        "loss_name": name,
        "note": _data_note(run, dataset),
        **jax.tree.map(_plain, measured),
    }


def summary_line(result: dict[str, Any]) -> str:
    """The most important numbers in a result of `measure_run`, as one line."""
    name, likelihood = result["loss_name"], ""
    if name != "cross_entropy":  # which is the same number
        likelihood = f", negative log-likelihood {result['negative_log_likelihood']:.4f}"
    return (
        f"accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f} ({name}){likelihood}, "
        f"calibration error {result['calibration_error']:.2%}"
    )


def _data_note(run: TrainedRun, dataset: data.Dataset) -> str:
    """A line if the images differ from the run's images of the same name; else an empty string."""
    own = run.config["data"]
    known = dataset.name == own["name"] and "sha256" in own  # not for a file of parameters
    if known and folder.data_digest(dataset) != own["sha256"]:
        return f"note: these images differ from the run's own, which came from {own['source']}"
    return ""


def _plain(array: jax.Array) -> Any:
    values = np.asarray(array)
    return np.where(np.isnan(values), None, values).tolist()
