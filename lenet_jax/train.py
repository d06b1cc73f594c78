"""Trains the tutorial's LeNet.

    python -m lenet_jax.train --optimizer=adam
    python -m lenet_jax.train --dataset=mnist --data_dir=path/to/idx/files --epochs=5

Without --dataset it learns MNIST if MNIST is on this machine or can be downloaded, and else the
1,797 digits that come with scikit-learn. What it did is kept in --workdir, and the same command
with the same --workdir goes on with it, however it was stopped, to the same numbers.

The same seed gives the same numbers, bit for bit, on the same machine and versions. On a CPU the
bits also depend on the number of cores that JAX sees: set the environment variable NPROC to fix it.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lenet_jax import cli, data
from lenet_jax.core import losses
from lenet_jax.core.augment import strengths
from lenet_jax.core.epoch import (
    epoch_order,
    evaluate,
    make_mesh,
    replicate,
    train_steps,
    unreplicate,
)
from lenet_jax.core.optimizers import DEFAULT_LEARNING_RATE, make_optimizer, make_schedule
from lenet_jax.core.step import TrainState, create_train_state
from lenet_jax.interop import pytorch as interchange
from lenet_jax.run import checkpoint
from lenet_jax.run import folder as workdir
from lenet_jax.run.settings import Settings

PARTS = 20  # of an epoch: how often the progress bar moves and a signal is looked at
NO_SUMS = {"loss": 0.0, "accuracy": 0.0, "seconds": 0.0}


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is, and what a checkpoint holds.

    The order of the data is no part of it: it follows from the seed and the epoch, and the place
    in it from the step.
    """

    config: dict[str, Any]  # the run's description, as in config.json
    state: TrainState
    sums: dict[str, float]  # of loss, accuracy and seconds since the epoch began


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
    # Constant is no schedule: a run that is extended keeps its program.
    varies = settings.schedule != "constant"
    tx = make_optimizer(
        settings.optimizer,
        settings.learning_rate,
        schedule=make_schedule(settings.schedule, total_steps) if varies else None,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    key = jax.random.fold_in(jax.random.key(settings.seed), 0)
    return create_train_state(key, tx)


def steps_per_epoch(settings: Settings, dataset: data.Dataset) -> int:
    return len(dataset.train_labels) // settings.batch_size


def saved_part(state: TrainState) -> dict[str, Any]:
    """What of a state is data."""
    return {"params": state.params, "opt_state": state.opt_state, "step": state.step}


def begin(
    settings: Settings, dataset: data.Dataset, path: Path, report: Callable[[str], None]
) -> Progress:
    """Where a resolved run starts: at the newest whole checkpoint in `path`, or at the beginning.

    Afterwards `config.json` and `metrics.jsonl` are as they were there.

    Raises:
      ValueError: the run in `path` has other settings or data, or no checkpoint that is whole.
    """
    steps = steps_per_epoch(settings, dataset)
    if not settings.resume and (old := workdir.set_aside(path)):
        report(f"--noresume: the run that was in {path} is now in {old}")
    now, then = workdir.describe(settings, dataset), workdir.read_config(path)
    if then:  # before a checkpoint is read: the settings decide which arrays it has
        workdir.require_same_run(path, settings, now, then)
    shapes = jax.eval_shape(lambda: create_state(settings, settings.epochs * steps))
    found = checkpoint.newest(path / workdir.CHECKPOINTS, saved_part(shapes), report)
    if found is None:
        if len(workdir.read_metrics(path)) > 1:  # no kill leaves them that far ahead
            raise ValueError(f"{path}: its checkpoints are gone; --noresume starts again")
        if then:
            report(f"no checkpoint in {path} yet: starting at the beginning")
        config, state, sums = now, create_state(settings, settings.epochs * steps), NO_SUMS
        if settings.init_from is not None:  # never read again by a run that goes on
            params, config["init_sha256"] = interchange.read_params(settings.init_from)
            state = dataclasses.replace(state, params=jax.tree.map(jnp.array, params))
    else:
        config, sums = found.note["config"], found.note["sums"]
        workdir.require_same_run(path, settings, now, config)
        config = workdir.extend(path, settings, config, found.step // steps)
        if changes := workdir.changes(now, config):
            report(f"note: since the run began, {changes}: its last bits may come out otherwise")
        # Copies, because memory shared with NumPy cannot be donated to a step.
        state = dataclasses.replace(shapes, **jax.tree.map(jnp.array, found.tree))
        report(f"found step {found.step} of the run in {path}")
    done = int(state.step) // steps
    workdir.write_config(path, config)
    if len(workdir.mend_metrics(path, done)) < done:
        report(f"note: {path / workdir.METRICS} lacks epochs, which are not run again")
    return Progress(config, state, sums)


def fit(
    settings: Settings,
    dataset: data.Dataset,
    path: Path,
    report: Callable[[str], None] = print,
    progress: Progress | None = None,
    signals: Sequence[int] = (),
) -> TrainState:
    """Trains a resolved run to its end, one line an epoch to `report` and to metrics.jsonl.

    Args:
      progress: from `begin`; if None, `fit` begins by itself.
      signals: grows when the run is to be saved and ended, see `cli.catch_signals`.

    Raises:
      cli.Interrupted: a signal came; the run is saved.
      FloatingPointError: a loss or a parameter is not finite; that state is not saved.
      OSError: something could not be written.
    """
    progress = progress or begin(settings, dataset, path, report)
    step, steps = int(progress.state.step), steps_per_epoch(settings, dataset)
    if step >= settings.epochs * steps:
        report(f"the run in {path} is already complete: {describe_end(workdir.read_metrics(path))}")
        return progress.state
    mesh = make_mesh(settings.batch_size)
    images, labels = replicate(mesh, (dataset.train_images, dataset.train_labels))
    progress = dataclasses.replace(progress, state=replicate(mesh, progress.state))
    scaling = {
        "mean": dataset.mean,
        "std": dataset.std,
        "loss_fn": losses.CLASSIFICATION[settings.loss],
    }
    how = scaling | {"strengths": strengths(settings.augment) if settings.augment else None}
    how["mesh"] = mesh
    order_key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    started, order, ahead = time.perf_counter(), None, None
    with (
        ThreadPoolExecutor(1) as pool,
        checkpoint.Saver(path / workdir.CHECKPOINTS, settings.keep, last=step or None) as saver,
        tqdm(total=settings.epochs * steps, initial=step, leave=False, disable=None) as bar,
    ):
        for epoch, start, stop in parts(step, steps, settings):
            if order is None or start == 0:
                key = jax.random.fold_in(order_key, epoch)
                order = epoch_order(key, len(labels), batch_size=settings.batch_size)
                how["key"] = jax.random.fold_in(key, 1)
            progress = train_part(progress, images, labels, order, start, stop, how)
            bar.update(stop - start)
            if ahead is None:  # the evaluation is traced and compiled while the first epoch runs
                test = jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)
                ahead = pool.submit(compile_evaluation, shapes_of(progress.state), *test, **scaling)
            step, ending = epoch * steps + stop, bool(signals)
            require = partial(require_finite, settings, steps, saver, step)
            require("the loss", progress.sums["loss"], since=epoch * steps + start + 1)
            saving = stop == steps or ending or is_due(step, settings)
            if saving:
                # A copy: the next step consumes the state while this is being written.
                saved = jax.tree.map(np.array, saved_part(progress.state))
                require("the state", *jax.tree.leaves(saved))
            if stop == steps:
                ahead.result()
                tested = evaluate(unreplicate(progress.state), *test, **scaling)
                record = epoch_record(progress, settings, steps, tested)
                require("the test loss", record["test_loss"])
                saver.wait()  # so the metrics are at most one epoch ahead of the checkpoints
                workdir.append_metrics(path, record)
                report(describe_epoch(record, settings.epochs))
                progress = dataclasses.replace(progress, sums=NO_SUMS)
            if saving:
                saver.save(step, saved, {"config": progress.config, "sums": progress.sums})
            if ending and step < settings.epochs * steps:
                saver.wait()
                how_to = f"with --workdir={path}"
                if not settings.resume:
                    how_to += " and without --noresume"
                raise cli.Interrupted(
                    signals[0], f"step {step} is saved; the same command {how_to} goes on"
                )
    report(
        f"{describe_end([record])}, {time.perf_counter() - started:.1f} s, "
        f"{record['images_per_second']:,} images/s; the run is in {path}"
    )
    return progress.state


def parts(step: int, steps: int, settings: Settings) -> Iterator[tuple[int, int, int]]:
    """What a run has to do after `step`: (epoch, first row of its order, row after the last).

    It is cut at the same steps wherever it starts, since the metrics of a part are one float32 sum.
    """
    length, every = -(-steps // PARTS), settings.checkpoint_every_steps
    while step < settings.epochs * steps:
        epoch, start = divmod(step, steps)
        stops = [steps, start // length * length + length]
        if every:
            stops.append(step // every * every + every - epoch * steps)
        yield epoch, start, min(stops)
        step = epoch * steps + min(stops)


def is_due(step: int, settings: Settings) -> bool:
    every = settings.checkpoint_every_steps
    return every is not None and step % every == 0


def train_part(
    progress: Progress,
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    start: int,
    stop: int,
    how: dict[str, Any],
) -> Progress:
    """Consumes `progress.state`: the updates for rows `start` to `stop` of `order`."""
    started = time.perf_counter()
    state, part = train_steps(progress.state, images, labels, order, start, stop, **how)
    new = {name: float(value) for name, value in part.items()}  # waits for the numbers
    new["seconds"] = time.perf_counter() - started
    sums = {name: total + new[name] for name, total in progress.sums.items()}
    return dataclasses.replace(progress, state=state, sums=sums)


def shapes_of(state: TrainState) -> TrainState:
    """What `unreplicate(state)` looks like, without its arrays, which a step will consume."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        unreplicate(state),
    )


def compile_evaluation(*args: Any, **kwargs: Any) -> None:
    """So that an `evaluate` of arguments like these starts at once."""
    evaluate.lower(*args, **kwargs).compile()


def require_finite(
    settings: Settings,
    steps: int,
    saver: checkpoint.Saver,
    step: int,
    what: str,
    *values: Any,
    since: int | None = None,
) -> None:
    """Ends a run whose numbers have left the floats, before it saves them.

    Args:
      step: the last one that was done.
      what: the name of `values`.
      since: the first step that can have done it, if they are a sum over steps.

    Raises:
      FloatingPointError: it says when, at what learning rate, and which checkpoint is good.
    """
    if all(np.isfinite(value).all() for value in values):
        return
    saver.wait()
    schedule = make_schedule(settings.schedule, settings.epochs * steps)
    span = (since or step, step)
    rates = [f"{settings.learning_rate * float(schedule(at - 1)):.3g}" for at in span]
    when = f"at step {step}" if span[0] == step else f"between steps {span[0]} and {step}"
    good = "there is no checkpoint yet"
    if saver.last is not None:
        good = f"step {saver.last} is saved, from which the same command would come here again"
    raise FloatingPointError(
        f"{what} is not finite any more {when}, with a learning rate of "
        f"{' to '.join(dict.fromkeys(rates))}; {good}: try a smaller --learning_rate and another "
        "--workdir"
    )


def epoch_record(
    progress: Progress, settings: Settings, steps: int, test: dict[str, jax.Array]
) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    step, sums = int(progress.state.step), progress.sums
    return {
        "epoch": step // steps,
        "step": step,
        "train_loss": sums["loss"] / steps,
        "train_accuracy": sums["accuracy"] / steps,
        "test_loss": float(test["loss"]),
        "test_accuracy": float(test["accuracy"]),
        "seconds": round(sums["seconds"], 3),
        "images_per_second": round(steps * settings.batch_size / sums["seconds"]),
    }


def describe_end(records: Sequence[dict[str, Any]]) -> str:
    """What a run has come to."""
    if not records:  # somebody has removed metrics.jsonl
        return "its metrics are gone"
    return f"test accuracy {records[-1]['test_accuracy']:.2%} after {records[-1]['epoch']} epochs"


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
    begun = "" if settings.init_from is None else f", begun from {settings.init_from}"
    return "\n".join(
        (
            f"device     {device.platform} ({device.device_kind})",
            f"data       {dataset.name}, {len(dataset.train_labels):,} training and "
            f"{len(dataset.test_labels):,} test images from {dataset.source}",
            f"network    LeNet, 61,706 parameters{begun}",
            f"optimizer  {settings.optimizer}, learning rate {settings.learning_rate:g} "
            f"({settings.schedule}), loss {settings.loss}, batch {settings.batch_size}, "
            f"{settings.epochs} epochs, seed {settings.seed}",
        )
    )


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(Settings, argv, __doc__)
    if settings.compilation_cache:
        cli.enable_compilation_cache()
    cli.make_cores_devices()
    with contextlib.ExitStack() as stack:
        # What a first state needs is compiled, or read from JAX's cache, while the images are read.
        pool = stack.enter_context(ThreadPoolExecutor(1))
        pool.submit(create_state, settings, total_steps=1)
        try:
            name = workdir.chosen_data(settings)
            dataset = data.load(name, settings.data_dir, report=print)
            if dataset.note:
                print(dataset.note)
            settings = resolve(settings, dataset)
            path = workdir.create(settings.workdir, f"{dataset.name}-{settings.optimizer}")
            stack.enter_context(workdir.locked(path))
            signals = stack.enter_context(cli.catch_signals())
            progress = begin(settings, dataset, path, print)
        except ValueError as error:
            cli.fail(error)
        except OSError as error:
            cli.fail(error, 1)
        except KeyboardInterrupt:  # a download takes its time
            print("stopped before training began")
            raise SystemExit(130) from None
        print(describe_run(settings, dataset), flush=True)
        try:
            fit(settings, dataset, path, lambda line: tqdm.write(line), progress, signals)
        except cli.Interrupted as stop:
            print(stop)
            raise SystemExit(stop.exit_code) from None
        except (FloatingPointError, OSError) as error:
            cli.fail(error, 1)


if __name__ == "__main__":
    main(sys.argv)
