"""Trains the tutorial's LeNet.

    python -m lenet_jax.train --optimizer=adam
    python -m lenet_jax.train --dataset=mnist --data_dir=path/to/idx/files --epochs=5

Without --dataset it learns MNIST if MNIST is on this machine or can be downloaded, and else the
1,797 digits that come with scikit-learn. What it did is kept in --workdir.

The same seed gives the same numbers, bit for bit, on the same machine and versions. On a CPU the
bits also depend on the number of cores that JAX sees: set the environment variable NPROC to fix it.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import tqdm

from lenet_jax import cli, data, losses, workdir
from lenet_jax.epoch import epoch_order, evaluate, train_steps
from lenet_jax.optimizers import DEFAULT_LEARNING_RATE, make_optimizer, make_schedule
from lenet_jax.settings import Settings
from lenet_jax.step import TrainState, create_train_state

PARTS = 20  # of an epoch: how often the progress bar moves


def resolve(settings: Settings, dataset: data.Dataset) -> Settings:
    """Fills in what was left open, now that the data set is known.

    Raises:
      ValueError: the batch is larger than the training split.
    """
    if settings.batch_size > len(dataset.train_labels):
        raise ValueError(
            f"--batch_size={settings.batch_size}: the training split of {dataset.name} has only "
            f"{len(dataset.train_labels)} images"
        )
    return dataclasses.replace(
        settings,
        dataset=dataset.name,
        learning_rate=settings.learning_rate or DEFAULT_LEARNING_RATE[settings.optimizer],
        epochs=settings.epochs or (30 if dataset.name == "digits" else 5),
    )


def create_state(settings: Settings, total_steps: int) -> TrainState:
    """The state before the first step of a resolved run."""
    chosen = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
    tx = make_optimizer(
        settings.optimizer,
        settings.learning_rate,
        schedule=make_schedule(settings.schedule, total_steps),
        **{name: value for name, value in chosen.items() if value is not None},
    )
    return create_train_state(jax.random.fold_in(jax.random.key(settings.seed), 0), tx)


def fit(
    settings: Settings, dataset: data.Dataset, path: Path, report: Callable[[str], None] = print
) -> TrainState:
    """Trains a resolved run to its end, one line an epoch to `report` and to metrics.jsonl."""
    images, labels, test_images, test_labels = map(
        jnp.asarray,
        (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels),
    )
    scaling = {
        "mean": dataset.mean,
        "std": dataset.std,
        "loss_fn": losses.CLASSIFICATION[settings.loss],
    }
    steps = len(labels) // settings.batch_size
    state = create_state(settings, settings.epochs * steps)
    order_key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    started = time.perf_counter()

    for epoch in range(settings.epochs):
        epoch_started = time.perf_counter()
        order = epoch_order(
            jax.random.fold_in(order_key, epoch), len(labels), batch_size=settings.batch_size
        )
        sums = {"loss": 0.0, "accuracy": 0.0}
        with tqdm(total=steps, desc=f"epoch {epoch + 1}", leave=False, disable=None) as bar:
            for start in range(0, steps, -(-steps // PARTS)):
                stop = min(start + -(-steps // PARTS), steps)
                state, part = train_steps(state, images, labels, order, start, stop, **scaling)
                sums = {name: total + float(part[name]) for name, total in sums.items()}
                bar.update(stop - start)
        seconds = time.perf_counter() - epoch_started
        test = evaluate(state, test_images, test_labels, **scaling)
        record = {
            "epoch": epoch + 1,
            "step": int(state.step),
            "train_loss": sums["loss"] / steps,
            "train_accuracy": sums["accuracy"] / steps,
            "test_loss": float(test["loss"]),
            "test_accuracy": float(test["accuracy"]),
            "seconds": round(seconds, 3),
            "images_per_second": round(steps * settings.batch_size / seconds),
        }
        workdir.append_metrics(path, record)
        report(describe_epoch(record, settings.epochs))

    report(
        f"test accuracy {record['test_accuracy']:.2%} after {settings.epochs} epochs, "
        f"{time.perf_counter() - started:.1f} s, {record['images_per_second']:,} images/s; "
        f"the run is in {path}"
    )
    return state


def describe_epoch(record: dict[str, float], epochs: int) -> str:
    """One line for a person."""
    return (
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}   "
        f"train loss {record['train_loss']:.4f} accuracy {record['train_accuracy']:.2%}   "
        f"test loss {record['test_loss']:.4f} accuracy {record['test_accuracy']:.2%}   "
        f"{record['seconds']:.1f} s, {record['images_per_second']:,} images/s"
    )


def describe_run(settings: Settings, dataset: data.Dataset) -> str:
    """The header: where, on what, what and how."""
    device = jax.devices()[0]
    return "\n".join(
        (
            f"device     {device.platform} ({device.device_kind})",
            f"data       {dataset.name}, {len(dataset.train_labels):,} training and "
            f"{len(dataset.test_labels):,} test images from {dataset.source}",
            "network    LeNet, 61,706 parameters",
            f"optimizer  {settings.optimizer}, learning rate {settings.learning_rate:g} "
            f"({settings.schedule}), loss {settings.loss}, batch {settings.batch_size}, "
            f"{settings.epochs} epochs, seed {settings.seed}",
        )
    )


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(Settings, argv, __doc__)
    try:
        dataset = data.load(settings.dataset, settings.data_dir, report=print)
        settings = resolve(settings, dataset)
        path = workdir.create(settings)
        workdir.write_config(path, settings, dataset)
    except ValueError as error:
        cli.fail(error)
    if dataset.note:
        print(f"training on {dataset.name}: {dataset.note}")
    print(describe_run(settings, dataset), flush=True)
    if settings.compilation_cache:
        cli.enable_compilation_cache()
    fit(settings, dataset, path, lambda line: tqdm.write(line))


if __name__ == "__main__":
    main(sys.argv)
