"""Trains a run: from where its folder says it is, or from the beginning, to its end."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lenet_jax import cli, data
from lenet_jax.cli import Log
from lenet_jax.core import losses, seeds
from lenet_jax.core.augment import augment_config
from lenet_jax.core.epoch import epoch_order, evaluate, train_steps
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import (
    DEFAULT_LEARNING_RATE,
    averaged_params,
    make_optimizer,
    make_schedule,
)
from lenet_jax.core.sharding import make_batch_mesh, replicate, unreplicate
from lenet_jax.core.step import LossFn, TrainState, create_train_state
from lenet_jax.data import registry
from lenet_jax.files import remove_unfinished
from lenet_jax.interop import pytorch
from lenet_jax.run import checkpoint, folder
from lenet_jax.run.folder import Config
from lenet_jax.run.log import (
    METRICS,
    MetricsLog,
    epoch_line,
    epoch_record,
    read_metrics,
    repair_metrics,
    result_line,
)
from lenet_jax.run.settings import Settings, resolve_data

CHUNKS_PER_EPOCH = 20  # how often the progress bar moves and signals are handled
ZERO_TOTALS = {"loss": 0.0, "accuracy": 0.0, "seconds": 0.0}


class RunState(NamedTuple):
    """How far a run is, and what a checkpoint holds.

    The order of the data follows from the seed and the epoch, and the place in it from the step.
    """

    config: Config
    state: TrainState
    totals: dict[str, float]  # of loss, accuracy and seconds since the epoch began


def resolve(settings: Settings, dataset: data.Dataset) -> Settings:
    """Fills in the settings that depend on others and on the data set."""
    return resolve_data(resolve_learning_rate(settings), dataset, len(dataset.train.labels))


def resolve_learning_rate(settings: Settings) -> Settings:
    rate = settings.learning_rate or DEFAULT_LEARNING_RATE[settings.optimizer]
    return dataclasses.replace(settings, learning_rate=rate)


def create_state(settings: Settings, model: LeNet, total_steps: int) -> TrainState:
    """The state before the first step of a resolved run."""
    chosen = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
    # Without a schedule for a constant rate, a run that is extended compiles nothing again.
    varies = settings.schedule != "constant"
    tx = make_optimizer(
        settings.optimizer,
        settings.learning_rate,
        schedule=make_schedule(settings.schedule, total_steps) if varies else None,
        clip_norm=settings.clip_norm,
        ema=settings.ema,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    return create_train_state(seeds.init_key(settings.seed), tx, model)


def steps_per_epoch(settings: Settings, dataset: data.Dataset) -> int:
    return len(dataset.train.labels) // settings.batch_size


def checkpoint_tree(state: TrainState) -> dict[str, Any]:
    """The parts of a state from which a run continues."""
    return {"params": state.params, "opt_state": state.opt_state, "step": state.step}


def restore_or_init(settings: Settings, dataset: data.Dataset, path: Path, log: Log) -> RunState:
    """Where a resolved run starts: at the latest intact checkpoint in `path`, or at step 0.

    Afterwards `config.json` and `metrics.jsonl` in `path` are as they were at that step.

    Raises:
      ValueError: the run in `path` has other settings or data, or all its checkpoints are damaged.
      OSError: a file in `path` cannot be read or written.
    """
    if not settings.resume and (old := folder.archive_run(path)):
        log(f"--noresume: the run that was in {path} is now in {old}")
    checkpoints = path / folder.CHECKPOINTS
    for place in (path, checkpoints):
        remove_unfinished(place)
    steps, config = steps_per_epoch(settings, dataset), folder.make_config(settings, dataset)
    create = partial(create_state, settings, folder.network(config), settings.epochs * steps)
    shapes = jax.eval_shape(create)

    def like(note: dict[str, Any]) -> dict[str, Any]:
        # Compared before the arrays, because the settings decide which arrays there are.
        folder.require_same_run(path, settings, config, note["config"])
        return checkpoint_tree(shapes)

    found = checkpoint.latest_valid(checkpoints, like, log)
    if found is None:
        run = _init(settings, config, path, create, log)
    else:
        stored = folder.extend(path, settings, found.note["config"], found.step // steps)
        if changed := folder.environment_diff(config, stored):
            log(f"note: since the run began, {changed}: its last bits may differ from now on")
        checkpoint.set_aside_later(checkpoints, found.step)
        # Copies, because a step cannot reuse memory that NumPy shares.
        state = shapes.replace(**jax.tree.map(jnp.array, found.tree))
        run = RunState(stored, state, found.note["totals"])
        log(f"found step {found.step} of the run in {path}")
    done = int(run.state.step) // steps
    folder.write_config(path, run.config)
    if len(repair_metrics(path, done)) < done:
        log(f"note: {path / METRICS} lacks epochs that are done; they are not run again")
    return run


def _init(
    settings: Settings, config: Config, path: Path, create: Callable[[], TrainState], log: Log
) -> RunState:
    """Step 0 of a run without checkpoints, of which `path` may hold a config.json already."""
    if len(read_metrics(path)) > 1:  # a kill leaves at most one epoch without a checkpoint
        raise ValueError(f"{path}: its checkpoints are gone; --noresume starts again")
    if stored := folder.read_config(path):
        folder.require_same_run(path, settings, config, stored)
        log(f"no checkpoint in {path} yet: starting at the beginning")
    state = create()
    if settings.init_from is not None:  # a resumed run does not need the file any more
        params, config["init_sha256"] = pytorch.read_params(settings.init_from, log, state.model)
        state = state.replace(params=jax.tree.map(jnp.array, params))
    return RunState(config, state, ZERO_TOTALS)


def fit(
    settings: Settings,
    dataset: data.Dataset,
    path: Path,
    log: Log = print,
    run: RunState | None = None,
    signals: Sequence[int] = (),
) -> TrainState:
    """Trains a resolved run to its end, with one line per epoch to `log` and to metrics.jsonl.

    Args:
      run: from `restore_or_init`; if None, `fit` calls it.
      signals: once it holds a signal, the run is saved and ends; see `cli.catch_signals`.

    Raises:
      cli.Interrupted: a signal came; the run is saved.
      FloatingPointError: a loss or a parameter is not finite; that state is not saved.
      OSError: a file could not be written.
    """
    config, state, totals = run or restore_or_init(settings, dataset, path, log)
    step, steps = int(state.step), steps_per_epoch(settings, dataset)
    end, every = settings.epochs * steps, settings.checkpoint_every_steps
    if step >= end:
        log(f"the run in {path} is already complete: {result_line(read_metrics(path))}")
        return state
    started, checkpoints = time.perf_counter(), path / folder.CHECKPOINTS
    step_kwargs, loss_fn = _step_kwargs(settings), losses.CLASSIFICATION[settings.loss]
    train, state = replicate(step_kwargs["mesh"], (dataset.train, state))
    finite = partial(_require_finite, settings, end, checkpoints)
    shuffle = lru_cache(1)(partial(_shuffle, settings, len(train.labels)))
    order, step_kwargs["key"] = shuffle(step // steps)
    with cli.shown_while("compiling ...", log):  # here, so that no speed or time left counts it
        state, _ = train_steps(state, train, order, 0, 0, **step_kwargs)  # no step
    with (
        ThreadPoolExecutor(1) as pool,
        MetricsLog(path) as metrics,
        cli.progress_bar(total=end, initial=step) as bar,
    ):
        # Compiled while the first epoch runs.
        evaluation = pool.submit(_compile_evaluation, _shapes(state), dataset.test, loss_fn)
        for epoch, start, stop in iter_chunks(step, steps, settings):
            order, step_kwargs["key"] = shuffle(epoch)
            before = time.perf_counter()
            state, sums = train_steps(state, train, order, start, stop, **step_kwargs)
            new = {name: float(value) for name, value in sums.items()}  # waits for the numbers
            new["seconds"] = time.perf_counter() - before
            totals = {name: total + new[name] for name, total in totals.items()}
            step = epoch * steps + stop
            bar.update(stop - start)
            finite(step, "the loss", totals["loss"], since=step - (stop - start) + 1)
            epoch_done, ending = stop == steps, bool(signals)
            if not (epoch_done or ending or (every and step % every == 0)):
                continue
            average = {"ema": averaged_params(state.opt_state)} if settings.ema else {}
            tree = jax.tree.map(np.asarray, checkpoint_tree(state) | average)
            finite(step, "the state", *jax.tree.leaves(tree))
            if epoch_done:
                evaluation.result()
                shown = state.replace(params=average.get("ema", state.params))
                test = evaluate(unreplicate(shown), dataset.test, loss_fn=loss_fn)
                record = epoch_record(step, steps, settings.batch_size, totals, test)
                finite(step, "the test loss", record["test_loss"])
                metrics.append(record)  # before the save, so that no saved epoch lacks its metrics
                totals = ZERO_TOTALS
            note = {"config": config, "totals": totals}
            checkpoint.save(checkpoints, step, tree, note, settings.keep)
            if epoch_done:  # after the save, because the reader of the line may have gone
                log(epoch_line(record, settings.epochs))
            if ending and step < end:
                again = f"--workdir={path}" + ("" if settings.resume else " and without --noresume")
                message = f"step {step} is saved; the same command with {again} continues"
                raise cli.Interrupted(signals[0], message)
    records = read_metrics(path)
    log(
        f"{result_line(records)}, {time.perf_counter() - started:.1f} s, "
        f"{records[-1]['images_per_second']:,} images/s in the last; the run is in {path}"
    )
    return state


def iter_chunks(step: int, steps: int, settings: Settings) -> Iterator[tuple[int, int, int]]:
    """What is left of a run after `step`: (epoch, first row of its order, row after the last).

    The cuts do not depend on where a run resumes, since a chunk's metrics are one float32 sum.
    """
    length, every = -(-steps // CHUNKS_PER_EPOCH), settings.checkpoint_every_steps
    while step < settings.epochs * steps:
        epoch, start = divmod(step, steps)
        stops = [steps, start // length * length + length]
        if every:
            stops.append(step // every * every + every - epoch * steps)
        yield epoch, start, min(stops)
        step = epoch * steps + min(stops)


def _step_kwargs(settings: Settings) -> dict[str, Any]:
    kind, loss_fn = registry.INFO[settings.dataset].augment, losses.CLASSIFICATION[settings.loss]
    if settings.label_smoothing:
        loss_fn = partial(loss_fn, label_smoothing=settings.label_smoothing)
    return {
        "loss_fn": loss_fn,
        "prepare": augment_config(settings.augment, kind) if settings.augment else None,
        "mesh": make_batch_mesh(settings.batch_size),
    }


def _shuffle(settings: Settings, num_examples: int, epoch: int) -> tuple[np.ndarray, jax.Array]:
    """An epoch's order and its key for augmentation."""
    key = seeds.epoch_key(settings.seed, epoch)
    order = epoch_order(key, num_examples, batch_size=settings.batch_size)
    return np.asarray(order), seeds.augment_key(key)  # sharing a device's array takes longer


def _shapes(state: TrainState) -> TrainState:
    """`unreplicate(state)` as shapes, without the arrays, which the next step consumes."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        unreplicate(state),
    )


def _compile_evaluation(state: TrainState, split: data.Split, loss_fn: LossFn) -> None:
    """Compiles `evaluate` for arguments like these, so that its first call starts at once."""
    evaluate.lower(state, split, loss_fn=loss_fn).compile()


def _require_finite(
    settings: Settings,
    total_steps: int,
    checkpoints: Path,
    step: int,
    what: str,
    *values: Any,
    since: int | None = None,
) -> None:
    """Raises FloatingPointError if `values`, called `what`, are not finite, before they are saved.

    They are those of `step`, or a sum over the steps from `since`.
    """
    if all(np.isfinite(value).all() for value in values):
        return
    schedule = make_schedule(settings.schedule, total_steps)
    span = (since or step, step)
    rates = [f"{settings.learning_rate * float(schedule(at - 1)):.3g}" for at in span]
    rate = " to ".join(dict.fromkeys(rates))
    when = f"at step {step}" if span[0] == step else f"between steps {span[0]} and {step}"
    good = "there is no checkpoint yet"
    if saved := checkpoint.steps(checkpoints):
        good = f"step {saved[-1]} is saved, but resuming from it would diverge again"
    raise FloatingPointError(
        f"{what} is not finite any more {when}, with a learning rate of {rate}; {good}: try a "
        "smaller --learning_rate and another --workdir"
    )
