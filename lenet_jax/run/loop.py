"""Trains a run: where its folder says it is, or from the beginning, to its end."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lenet_jax import cli, data
from lenet_jax.core import losses, seeds
from lenet_jax.core.augment import augment_config
from lenet_jax.core.epoch import epoch_order, evaluate, train_steps
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import DEFAULT_LEARNING_RATE, make_optimizer, make_schedule
from lenet_jax.core.sharding import make_batch_mesh, replicate, unreplicate
from lenet_jax.core.step import TrainState, create_train_state
from lenet_jax.data import registry
from lenet_jax.files import expand_user
from lenet_jax.interop import pytorch
from lenet_jax.run import checkpoint, folder
from lenet_jax.run.log import (
    METRICS,
    MetricsLog,
    epoch_line,
    epoch_record,
    read_metrics,
    repair_metrics,
    result_line,
)
from lenet_jax.run.settings import Settings

CHUNKS_PER_EPOCH = 20  # how often the progress bar moves and signals are looked at
ZERO_TOTALS = {"loss": 0.0, "accuracy": 0.0, "seconds": 0.0}


@dataclasses.dataclass(frozen=True)
class RunState:
    """How far a run is, and what a checkpoint holds.

    The order of the data is no part of it: it follows from the seed and the epoch, and the place
    in it from the step.
    """

    config: dict[str, Any]  # as in config.json
    state: TrainState
    totals: dict[str, float]  # of loss, accuracy and seconds since the epoch began


class Fit(NamedTuple):
    """What stays the same from the first chunk of a `fit` to its last."""

    settings: Settings
    steps: int  # per epoch
    step_kwargs: dict[str, Any]  # of `train_steps`
    test: data.Split
    saver: checkpoint.Saver
    metrics: MetricsLog
    log: Callable[[str], None]


def resolve(settings: Settings, dataset: data.Dataset) -> Settings:
    """Fills in what was left open, now that the data set is known.

    Raises:
      ValueError: the batch is larger than the training split.
    """
    if settings.batch_size > len(dataset.train.labels):
        raise ValueError(
            f"--batch_size={settings.batch_size}: the training split of {dataset.name} has only "
            f"{len(dataset.train.labels)} images"
        )
    return dataclasses.replace(
        settings,
        dataset=dataset.name,
        # So that it is found from wherever the run is used later.
        data_dir=settings.data_dir and str(expand_user(settings.data_dir, "--data_dir").absolute()),
        learning_rate=settings.learning_rate or DEFAULT_LEARNING_RATE[settings.optimizer],
        epochs=settings.epochs or registry.INFO[dataset.name].default_epochs,
    )


def create_state(settings: Settings, model: LeNet, total_steps: int) -> TrainState:
    """The state before the first step of a resolved run."""
    chosen = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
    # Constant is no schedule: a run that is extended keeps its compiled functions.
    varies = settings.schedule != "constant"
    tx = make_optimizer(
        settings.optimizer,
        settings.learning_rate,
        schedule=make_schedule(settings.schedule, total_steps) if varies else None,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    return create_train_state(seeds.init_key(settings.seed), tx, model)


def steps_per_epoch(settings: Settings, dataset: data.Dataset) -> int:
    return len(dataset.train.labels) // settings.batch_size


def checkpoint_tree(state: TrainState) -> dict[str, Any]:
    """What of a state is data."""
    return {"params": state.params, "opt_state": state.opt_state, "step": state.step}


def restore_or_init(
    settings: Settings, dataset: data.Dataset, path: Path, log: Callable[[str], None]
) -> RunState:
    """Where a resolved run starts: at the latest intact checkpoint in `path`, or at step 0.

    Afterwards `config.json` and `metrics.jsonl` are as they were there.

    Raises:
      ValueError: the run in `path` has other settings or data, or no checkpoint that is intact.
    """
    if not settings.resume and (old := folder.archive_run(path)):
        log(f"--noresume: the run that was in {path} is now in {old}")
    steps, config = steps_per_epoch(settings, dataset), folder.make_config(settings, dataset)
    create = partial(create_state, settings, folder.network(config), settings.epochs * steps)
    shapes = jax.eval_shape(create)

    def like(note: dict[str, Any]) -> dict[str, Any]:
        # Before the arrays: the settings decide which there are.
        folder.require_same_run(path, settings, config, note["config"])
        return checkpoint_tree(shapes)

    found = checkpoint.latest_valid(path / folder.CHECKPOINTS, like, log)
    if found is None:
        run = _init(settings, config, path, create, log)
    else:
        stored = folder.extend(path, settings, found.note["config"], found.step // steps)
        if changed := folder.environment_diff(config, stored):
            log(f"note: since the run began, {changed}: its last bits may come out otherwise")
        # Copies, because memory shared with NumPy cannot be donated to a step.
        state = shapes.replace(**jax.tree.map(jnp.array, found.tree))
        run = RunState(stored, state, found.note["sums"])
        log(f"found step {found.step} of the run in {path}")
    done = int(run.state.step) // steps
    folder.write_config(path, run.config)
    if len(repair_metrics(path, done)) < done:
        log(f"note: {path / METRICS} lacks epochs, which are not run again")
    return run


def _init(
    settings: Settings,
    config: dict[str, Any],
    path: Path,
    create: Callable[[], TrainState],
    log: Callable[[str], None],
) -> RunState:
    """Step 0 of a run without checkpoints, of which `path` may hold a config.json all the same."""
    if stored := folder.read_config(path):
        folder.require_same_run(path, settings, config, stored)
    if len(read_metrics(path)) > 1:  # no kill leaves them that far ahead
        raise ValueError(f"{path}: its checkpoints are gone; --noresume starts again")
    if stored:
        log(f"no checkpoint in {path} yet: starting at the beginning")
    state = create()
    if settings.init_from is not None:  # never read again by a run that is continued
        params, config["init_sha256"] = pytorch.read_params(settings.init_from, log, state.model)
        state = state.replace(params=jax.tree.map(jnp.array, params))
    return RunState(config, state, ZERO_TOTALS)


def fit(
    settings: Settings,
    dataset: data.Dataset,
    path: Path,
    log: Callable[[str], None] = print,
    run: RunState | None = None,
    signals: Sequence[int] = (),
) -> TrainState:
    """Trains a resolved run to its end, one line per epoch to `log` and to metrics.jsonl.

    Args:
      run: from `restore_or_init`; if None, `fit` calls it.
      signals: grows when the run is to be saved and ended, see `cli.catch_signals`.

    Raises:
      cli.Interrupted: a signal came; the run is saved.
      FloatingPointError: a loss or a parameter is not finite; that state is not saved.
      OSError: something could not be written.
    """
    run = run or restore_or_init(settings, dataset, path, log)
    step, steps = int(run.state.step), steps_per_epoch(settings, dataset)
    if step >= settings.epochs * steps:
        log(f"the run in {path} is already complete: {result_line(read_metrics(path))}")
        return run.state
    started = time.perf_counter()
    with (
        checkpoint.Saver(path / folder.CHECKPOINTS, settings.keep, last=step or None) as saver,
        MetricsLog(path) as metrics,
        tqdm(total=settings.epochs * steps, initial=step, leave=False, disable=None) as bar,
    ):
        fit = Fit(settings, steps, _step_kwargs(settings), dataset.test, saver, metrics, log)
        run = train_chunks(fit, run, dataset.train, bar, signals, f"--workdir={path}")
    records = read_metrics(path)
    log(
        f"{result_line(records)}, {time.perf_counter() - started:.1f} s, "
        f"{records[-1]['images_per_second']:,} images/s in the last; the run is in {path}"
    )
    return run.state


def _step_kwargs(settings: Settings) -> dict[str, Any]:
    kind = registry.INFO[settings.dataset].augment
    return {
        "loss_fn": losses.CLASSIFICATION[settings.loss],
        "augment_config": augment_config(settings.augment, kind) if settings.augment else None,
        "mesh": make_batch_mesh(settings.batch_size),
    }


def train_chunks(
    fit: Fit, run: RunState, train: data.Split, bar: tqdm, signals: Sequence[int], workdir: str
) -> RunState:
    """From where `run` is to the end of the last epoch, or to a signal."""
    settings, steps = fit.settings, fit.steps
    train, state = replicate(fit.step_kwargs["mesh"], (train, run.state))
    run, order, evaluation = dataclasses.replace(run, state=state), None, None
    with ThreadPoolExecutor(1) as pool:
        for epoch, start, stop in iter_chunks(int(run.state.step), steps, settings):
            if order is None or start == 0:
                key = seeds.epoch_key(settings.seed, epoch)
                order = epoch_order(key, len(train.labels), batch_size=settings.batch_size)
                order = np.asarray(order)  # what a device holds takes longer to share out
                step_kwargs = fit.step_kwargs | {"key": seeds.augment_key(key)}
            run = train_chunk(run, train, order, start, stop, step_kwargs)
            bar.update(stop - start)
            if evaluation is None:  # traced and compiled while the first epoch runs
                args = shapes_of(run.state), fit.test
                evaluation = pool.submit(compile_evaluation, *args, loss_fn=step_kwargs["loss_fn"])
            if stop == steps:
                evaluation.result()
            ending = bool(signals)
            run = finish_chunk(fit, run, stop - start, ending)
            step = epoch * steps + stop
            if ending and step < settings.epochs * steps:
                fit.saver.wait()
                how_to = f"with {workdir}" + ("" if settings.resume else " and without --noresume")
                raise cli.Interrupted(
                    signals[0], f"step {step} is saved; the same command {how_to} continues"
                )
    return run


def iter_chunks(step: int, steps: int, settings: Settings) -> Iterator[tuple[int, int, int]]:
    """What a run has to do after `step`: (epoch, first row of its order, row after the last).

    The cuts are at the same steps wherever it starts, since a chunk's metrics are one float32 sum.
    """
    length, every = -(-steps // CHUNKS_PER_EPOCH), settings.checkpoint_every_steps
    while step < settings.epochs * steps:
        epoch, start = divmod(step, steps)
        stops = [steps, start // length * length + length]
        if every:
            stops.append(step // every * every + every - epoch * steps)
        yield epoch, start, min(stops)
        step = epoch * steps + min(stops)


def train_chunk(
    run: RunState,
    train: data.Split,
    order: jax.Array,
    start: int,
    stop: int,
    step_kwargs: dict[str, Any],
) -> RunState:
    """Consumes `run.state`: the updates for rows `start` to `stop` of `order`."""
    started = time.perf_counter()
    state, sums = train_steps(run.state, train, order, start, stop, **step_kwargs)
    new = {name: float(value) for name, value in sums.items()}  # waits for the numbers
    new["seconds"] = time.perf_counter() - started
    totals = {name: total + new[name] for name, total in run.totals.items()}
    return dataclasses.replace(run, state=state, totals=totals)


def finish_chunk(fit: Fit, run: RunState, length: int, ending: bool) -> RunState:
    """After the last `length` steps: sees that they went well, and logs and saves what is due."""
    step, every = int(run.state.step), fit.settings.checkpoint_every_steps
    require_finite(fit, step, "the loss", run.totals["loss"], since=step - length + 1)
    is_last = step % fit.steps == 0
    saving = is_last or ending or (every is not None and step % every == 0)
    if saving:
        # A copy: the next step consumes the state while this is being written.
        tree = jax.tree.map(np.array, checkpoint_tree(run.state))
        require_finite(fit, step, "the state", *jax.tree.leaves(tree))
    if is_last:
        loss_fn = fit.step_kwargs["loss_fn"]
        test = evaluate(unreplicate(run.state), fit.test, loss_fn=loss_fn)
        record = epoch_record(step, fit.steps, fit.settings.batch_size, run.totals, test)
        require_finite(fit, step, "the test loss", record["test_loss"])
        fit.saver.wait()  # so the metrics are at most one epoch ahead of the checkpoints
        fit.metrics.append(record)
        run = dataclasses.replace(run, totals=ZERO_TOTALS)
    if saving:
        fit.saver.save(step, tree, {"config": run.config, "sums": run.totals})
    if is_last:  # after the save has begun: whoever reads the line may have gone
        fit.log(epoch_line(record, fit.settings.epochs))
    return run


def shapes_of(state: TrainState) -> TrainState:
    """What `unreplicate(state)` looks like, without its arrays, which a step will consume."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        unreplicate(state),
    )


def compile_evaluation(*args: Any, **kwargs: Any) -> None:
    """So that an `evaluate` of arguments like these starts at once."""
    evaluate.lower(*args, **kwargs).compile()


def require_finite(fit: Fit, step: int, what: str, *values: Any, since: int | None = None) -> None:
    """Ends a run whose numbers are NaN or infinite, before it saves them.

    Args:
      step: the last one that was done.
      what: the name of `values`.
      since: the first step that can have done it, if they are a sum over steps.

    Raises:
      FloatingPointError: it says when, at what learning rate, and which checkpoint is good.
    """
    if all(np.isfinite(value).all() for value in values):
        return
    fit.saver.wait()
    schedule = make_schedule(fit.settings.schedule, fit.settings.epochs * fit.steps)
    span = (since or step, step)
    rates = [f"{fit.settings.learning_rate * float(schedule(at - 1)):.3g}" for at in span]
    when = f"at step {step}" if span[0] == step else f"between steps {span[0]} and {step}"
    good = "there is no checkpoint yet"
    if fit.saver.last is not None:
        good = f"step {fit.saver.last} is saved, from which the same command would come here again"
    raise FloatingPointError(
        f"{what} is not finite any more {when}, with a learning rate of "
        f"{' to '.join(dict.fromkeys(rates))}; {good}: try a smaller --learning_rate and another "
        "--workdir"
    )
