"""A run on disk: what it writes, how it is continued, and what it does about faults."""

import dataclasses
import errno
import io
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenet_jax import cli, data
from lenet_jax.core import losses
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import averaged_params, make_schedule
from lenet_jax.core.step import TrainState
from lenet_jax.run import checkpoint, folder, log, loop, trained
from lenet_jax.run.settings import Settings

FIELDS = {
    *("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    *("seconds", "images_per_second"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, list[str]]:
    """A run on the digits of 3 epochs: its workdir and the lines that it said."""
    path = tmp_path_factory.mktemp("run")
    lines: list[str] = []
    settings = Settings(dataset="digits", epochs=3, workdir=str(path), learning_rate=3e-3)
    dataset = data.load("digits")
    loop.fit(loop.resolve(settings, dataset), dataset, path, lines.append)
    return path, lines


def test_an_epoch_is_a_line_of_metrics_with_the_fixed_names(run):
    path, _ = run
    records = [json.loads(line) for line in (path / log.METRICS).read_text().splitlines()]
    assert [record.keys() for record in records] == [FIELDS] * 3
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 22), (2, 44), (3, 66)]


def test_it_learns(run):
    path, _ = run
    records = [json.loads(line) for line in (path / log.METRICS).read_text().splitlines()]
    assert records[-1]["train_loss"] < records[0]["train_loss"] / 2
    assert records[-1]["test_accuracy"] > 0.7  # chance is 0.1


def test_the_last_line_has_accuracy_time_speed_and_workdir(run):
    path, lines = run
    assert len(lines) == 5
    assert lines[0] == "compiling ..."
    assert lines[1].startswith("epoch 1/3 ")
    for part in ("test accuracy ", "3 epochs", " s, ", "images/s", str(path)):
        assert part in lines[-1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_compiling_is_shown_before_the_bar_and_no_clock_counts_it(
    tmp_path, monkeypatch
):
    """Its first call takes a thousand seconds, and each other one a second."""
    terminal, lines, now, train_steps = Terminal(), [], [0], loop.train_steps

    def slow_at_first(*args, **kwargs):
        now[0] += 1 if now[0] else 1000
        return train_steps(*args, **kwargs)

    monkeypatch.setattr(loop, "train_steps", slow_at_first)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr("sys.stderr", terminal)
    fit(tmp_path, lines=lines)
    first, bar, *_ = filter(str.strip, terminal.getvalue().split("\r"))
    assert first == "compiling ..."
    assert "0/10 [00:00<" in bar
    assert "5/10 [00:05<00:05,  1.00it/s]" in terminal.getvalue()  # a chunk is a step
    assert "compiling ..." not in lines
    assert [record["seconds"] for record in log.read_metrics(tmp_path)] == [5, 5]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path):
    dataset = data.load("digits")

    def losses(seed: int, name: str) -> list[tuple[float, float]]:
        path = tmp_path / name
        path.mkdir()
        settings = Settings(dataset="digits", epochs=3, seed=seed)
        loop.fit(loop.resolve(settings, dataset), dataset, path, lambda line: None)
        records = [json.loads(line) for line in (path / log.METRICS).read_text().splitlines()]
        return [(record["train_loss"], record["test_loss"]) for record in records]

    assert losses(1, "a") == losses(1, "b")
    assert losses(1, "c") != losses(2, "d")


# --- a run that was stopped continues as if it had not been ---

DIGITS = data.load("digits")
RUN = Settings(
    dataset="digits", epochs=2, batch_size=256, learning_rate=3e-3, checkpoint_every_steps=2
)  # of 5 steps per epoch


class Outcome(NamedTuple):
    """What a run leaves behind, to be equal to the last bit."""

    arrays: dict[str, bytes]
    metrics: list[dict]
    predictions: bytes


def outcome(state: TrainState, path: Path) -> Outcome:
    leaves = jax.tree_util.tree_flatten_with_path((state.params, state.opt_state, state.step))[0]
    records = [json.loads(line) for line in (path / log.METRICS).read_text().splitlines()]
    for record in records:  # the two fields that a clock decides
        assert record.pop("seconds") > 0
        assert record.pop("images_per_second") > 0
    logits = state.model.apply({"params": state.params}, jnp.float32(DIGITS.test.images))
    return Outcome(
        {jax.tree_util.keystr(key): np.asarray(leaf).tobytes() for key, leaf in leaves},
        records,
        np.asarray(logits).tobytes(),
    )


def fit(path: Path, settings: Settings = RUN, lines: list | None = None, **kwargs) -> TrainState:
    path.mkdir(exist_ok=True)
    said = (lambda line: None) if lines is None else lines.append
    return loop.fit(settings, DIGITS, path, said, **kwargs)


def stop(path: Path, settings: Settings = RUN) -> str:
    """Runs to the first place where a signal is looked at."""
    with pytest.raises(cli.Interrupted) as stopped:
        fit(path, settings, signals=[signal.SIGTERM])
    return str(stopped.value)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Outcome:
    path = tmp_path_factory.mktemp("straight")
    return outcome(fit(path), path)


def test_chunks_end_where_a_checkpoint_is_due_and_at_the_same_steps_from_anywhere():
    settings = dataclasses.replace(RUN, epochs=2, checkpoint_every_steps=7)
    ends = lambda step: [100 * e + stop for e, _, stop in loop.iter_chunks(step, 100, settings)]
    twentieths = set(range(5, 201, 5))
    assert ends(0) == sorted(twentieths | set(range(7, 200, 7)))
    assert ends(70) == [end for end in ends(0) if end > 70]
    assert ends(119) == [end for end in ends(0) if end > 119]


def test_stopped_at_every_chunk_it_ends_with_the_same_bits(straight, tmp_path):
    stops = []
    while True:
        try:
            state = fit(tmp_path, signals=[signal.SIGINT])
        except cli.Interrupted as stopped:
            stops.append(str(stopped))
        else:
            break
    assert len(stops) == 9  # after the tenth it is complete
    assert stops[0].endswith(
        f"step 1 is saved; the same command with --workdir={tmp_path} continues"
    )
    assert outcome(state, tmp_path) == straight


def test_a_checkpoint_of_any_age_leads_to_the_same_bits(straight, tmp_path):
    fit(tmp_path / "run", dataclasses.replace(RUN, keep=99))
    saved = checkpoint.steps(tmp_path / "run" / folder.CHECKPOINTS)
    assert saved == [2, 4, 5, 6, 8, 10]  # every other step, and each epoch's last
    for step in saved[:-1]:
        path = shutil.copytree(tmp_path / "run", tmp_path / str(step))
        for later in saved[saved.index(step) + 1 :]:
            checkpoint.file_of(path / folder.CHECKPOINTS, later).unlink()
        assert outcome(fit(path), path) == straight


def test_an_epoch_whose_line_nobody_reads_is_saved(tmp_path):
    def leave(line):
        if line.startswith("epoch"):
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        loop.fit(RUN, DIGITS, tmp_path, leave)
    assert checkpoint.steps(tmp_path / folder.CHECKPOINTS)[-1] == 5


def test_a_relative_data_dir_is_kept_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, kept in (("idx", tmp_path / "idx"), ("/idx", "/idx"), (None, None)):
        settings = dataclasses.replace(RUN, data_dir=given)
        assert loop.resolve(settings, DIGITS).data_dir == (kept and str(kept))


def test_augmented_images_are_other_images_and_the_same_ones_after_a_stop(straight, tmp_path):
    settings = dataclasses.replace(RUN, augment=1.0)
    through = outcome(fit(tmp_path / "straight", settings), tmp_path / "straight")
    assert through.metrics != straight.metrics
    stop(tmp_path / "stopped", settings)
    again = outcome(fit(tmp_path / "stopped", settings), tmp_path / "stopped")
    assert again == through


def test_an_average_of_the_weights_is_evaluated_exported_and_the_same_after_a_stop(
    straight, tmp_path
):
    """It changes nothing of the training itself."""
    settings = dataclasses.replace(RUN, ema=0.5)
    state = fit(tmp_path / "straight", settings)
    through = outcome(state, tmp_path / "straight")
    assert through.predictions == straight.predictions  # of the weights themselves
    assert [record["train_loss"] for record in through.metrics] == [
        record["train_loss"] for record in straight.metrics
    ]
    assert through.metrics[-1]["test_loss"] != straight.metrics[-1]["test_loss"]
    stop(tmp_path / "stopped", settings)
    assert outcome(fit(tmp_path / "stopped", settings), tmp_path / "stopped") == through
    run = trained.load(tmp_path / "straight")
    average = averaged_params(state.opt_state)
    jax.tree.map(np.testing.assert_array_equal, run.params, jax.tree.map(np.asarray, average))
    logits = state.model.apply({"params": run.params}, normalize_test())
    loss = losses.cross_entropy(logits, DIGITS.test.labels)
    assert float(loss) == pytest.approx(through.metrics[-1]["test_loss"], rel=1e-5)


def normalize_test() -> jax.Array:
    test = DIGITS.test
    return (jnp.float32(test.images) / 255 - test.mean) / test.std


def test_label_smoothing_is_of_the_training_loss_only(straight, tmp_path):
    settings = dataclasses.replace(RUN, label_smoothing=0.2)
    state = fit(tmp_path, settings)
    logits = state.model.apply({"params": state.params}, normalize_test())
    last = outcome(state, tmp_path).metrics[-1]
    plain = losses.cross_entropy(logits, DIGITS.test.labels)
    assert last["test_loss"] == pytest.approx(float(plain), rel=1e-5)
    assert last["train_loss"] > straight.metrics[-1]["train_loss"] + 0.05


def test_each_epoch_has_another_order_also_after_a_stop(tmp_path, monkeypatch):
    orders, draw = [], loop.epoch_order

    def draw_and_keep(*args, **kwargs):
        orders.append(np.asarray(draw(*args, **kwargs)).tobytes())
        return draw(*args, **kwargs)

    monkeypatch.setattr(loop, "epoch_order", draw_and_keep)
    fit(tmp_path / "straight")
    assert len(set(orders)) == 2
    straight = orders.copy()
    orders.clear()
    (tmp_path / "stopped").mkdir()
    for _ in range(6):  # the last is in the second epoch
        stop(tmp_path / "stopped")
    assert orders == [straight[0]] * 5 + [straight[1]]


def test_how_often_it_saves_changes_no_parameter(straight, tmp_path):
    state = fit(tmp_path, dataclasses.replace(RUN, checkpoint_every_steps=None, keep=1))
    assert outcome(state, tmp_path).arrays == straight.arrays
    assert checkpoint.steps(tmp_path / folder.CHECKPOINTS) == [10]


def test_a_finished_run_is_not_run_again(straight, tmp_path):
    lines: list[str] = []
    fit(tmp_path)
    before = (tmp_path / log.METRICS).read_bytes()
    state = fit(tmp_path, dataclasses.replace(RUN, epochs=1), lines)
    assert outcome(state, tmp_path) == straight
    assert (tmp_path / log.METRICS).read_bytes() == before
    assert lines[-1].startswith(f"the run in {tmp_path} is already complete: test accuracy ")
    assert lines[-1].endswith("after 2 epochs")


def test_more_epochs_of_a_constant_rate_are_as_if_planned(tmp_path):
    constant = dataclasses.replace(RUN, schedule="constant")
    longer = dataclasses.replace(constant, epochs=3)
    fit(tmp_path / "two", constant)
    extended = outcome(fit(tmp_path / "two", longer), tmp_path / "two")
    assert extended == outcome(fit(tmp_path / "three", longer), tmp_path / "three")
    config = json.loads((tmp_path / "two" / folder.CONFIG).read_text())
    assert config["settings"]["epochs"] == 3


def test_more_epochs_of_another_schedule_are_refused(tmp_path):
    stop(tmp_path)
    with pytest.raises(ValueError, match=r"^--epochs is 3 here .* started with 2, .*=onecycle dep"):
        fit(tmp_path, dataclasses.replace(RUN, epochs=3))


def test_other_settings_are_refused_before_a_checkpoint_is_read(tmp_path):
    stop(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=r"^--optimizer is sgd here but .* used adam; use another"):
        fit(tmp_path, dataclasses.replace(RUN, optimizer="sgd"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_checkpoint_itself_knows_its_settings_and_its_config(straight, tmp_path):
    stop(tmp_path)
    config = (tmp_path / folder.CONFIG).read_bytes()
    (tmp_path / folder.CONFIG).unlink()
    with pytest.raises(
        ValueError, match=r"^--seed is 1 here but the run in .* used 0; use another"
    ):
        fit(tmp_path, dataclasses.replace(RUN, seed=1))
    assert outcome(fit(tmp_path), tmp_path) == straight
    assert (tmp_path / folder.CONFIG).read_bytes() == config


def test_before_a_checkpoint_its_config_is_what_there_is(tmp_path):
    folder.write_config(tmp_path, folder.make_config(RUN, DIGITS))
    with pytest.raises(ValueError, match=r"^--seed is 1 here but the run in .* used 0; use anoth"):
        fit(tmp_path, dataclasses.replace(RUN, seed=1))
    (tmp_path / folder.CONFIG).write_text("{}")
    with pytest.raises(ValueError, match=r"config.json: is not the config.json of a run of len"):
        fit(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"settings": {"seed": 1}}', "torn"])
def test_after_it_the_config_is_written_for_people_and_tools(content, straight, tmp_path):
    stop(tmp_path)
    config = (tmp_path / folder.CONFIG).read_bytes()
    (tmp_path / folder.CONFIG).write_text(content)
    assert outcome(fit(tmp_path), tmp_path) == straight
    assert (tmp_path / folder.CONFIG).read_bytes() == config


def test_noresume_moves_the_old_run_aside_and_starts_afresh(tmp_path):
    lines: list[str] = []
    stop(tmp_path)
    fit(tmp_path, dataclasses.replace(RUN, seed=1, resume=False), lines)
    (old,) = tmp_path.glob("old-*")
    assert lines[0] == f"--noresume: the run that was in {tmp_path} is now in {old}"
    assert checkpoint.steps(old / folder.CHECKPOINTS) == [1]
    assert checkpoint.steps(tmp_path / folder.CHECKPOINTS)[-1] == 10
    assert json.loads((old / folder.CONFIG).read_text())["settings"]["seed"] == 0


def test_a_run_begun_with_noresume_continues_without(tmp_path):
    assert stop(tmp_path, dataclasses.replace(RUN, resume=False)).endswith(
        f"the same command with --workdir={tmp_path} and without --noresume continues"
    )


def test_a_run_killed_before_its_first_checkpoint_says_that_it_starts_over(straight, tmp_path):
    lines: list[str] = []
    folder.write_config(tmp_path, folder.make_config(RUN, DIGITS))
    (tmp_path / log.METRICS).write_text(json.dumps({"epoch": 1}) + "\n")
    assert outcome(fit(tmp_path, lines=lines), tmp_path) == straight
    assert lines[0] == f"no checkpoint in {tmp_path} yet: starting at the beginning"


def damage(path: Path, *steps: int) -> None:
    for step in steps:
        os.truncate(checkpoint.file_of(path / folder.CHECKPOINTS, step), 9)


def test_a_damaged_checkpoint_is_named_and_the_one_before_leads_to_the_same_bits(
    straight, tmp_path
):
    lines: list[str] = []
    fit(tmp_path, dataclasses.replace(RUN, keep=99))
    damage(tmp_path, 10, 8)
    assert outcome(fit(tmp_path, lines=lines), tmp_path) == straight
    assert [line.split("/")[-1].split(":")[0] for line in lines[:2]] == [
        "step_00000010.npz",
        "step_00000008.npz",
    ]
    assert lines[2] == f"found step 6 of the run in {tmp_path}"
    assert fit(tmp_path, lines=lines).step == 10  # what was damaged has been saved again
    assert "complete" in lines[-1]


def test_no_intact_checkpoint_is_an_error_and_no_fresh_start(tmp_path):
    fit(tmp_path)
    damage(tmp_path, *checkpoint.steps(tmp_path / folder.CHECKPOINTS))
    with pytest.raises(
        ValueError, match=r"none of the 3 checkpoints can be used; train with --noresume"
    ):
        fit(tmp_path)
    shutil.rmtree(tmp_path / folder.CHECKPOINTS)
    with pytest.raises(ValueError, match="its checkpoints are gone; --noresume starts again"):
        fit(tmp_path)


def test_lost_metrics_are_told(tmp_path):
    lines: list[str] = []
    fit(tmp_path)
    (tmp_path / log.METRICS).unlink()
    fit(tmp_path, lines=lines)
    assert any("metrics.jsonl lacks epochs that are done" in line for line in lines)
    assert lines[-1].endswith("already complete: its metrics.jsonl is missing")


def test_another_machine_is_told(tmp_path, monkeypatch):
    lines: list[str] = []
    stop(tmp_path)
    monkeypatch.setenv("NPROC", "99")
    fit(tmp_path, lines=lines)
    assert re.match(
        r"note: since the run began, cores from \d+ to 99: its last bits may differ from now on",
        lines[0],
    )


# --- faults ---


def blow_up(path: Path, settings: Settings = RUN) -> str:
    with pytest.raises(FloatingPointError) as error:
        fit(path, settings)
    return str(error.value)


def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_good_is_overwritten(
    tmp_path, monkeypatch
):
    stop(tmp_path)
    (saved,) = (tmp_path / folder.CHECKPOINTS).iterdir()
    before = saved.read_bytes()
    step = loop.train_steps

    def diverge(state, *args, **kwargs):
        state, sums = step(state, *args, **kwargs)
        return state, {**sums, "loss": sums["loss"] * (np.nan if state.step >= 3 else 1)}

    monkeypatch.setattr(loop, "train_steps", diverge)
    message = blow_up(tmp_path)
    rate = 3e-3 * float(make_schedule("onecycle", 10)(2))
    assert (
        f"the loss is not finite any more at step 3, with a learning rate of {rate:.3g};" in message
    )
    assert "step 2 is saved" in message
    assert checkpoint.steps(tmp_path / folder.CHECKPOINTS) == [1, 2]
    assert saved.read_bytes() == before


def test_a_parameter_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    step = loop.train_steps

    def diverge(state, *args, **kwargs):
        state, sums = step(state, *args, **kwargs)
        if state.step == 5:
            state.params["fc3"]["bias"] = state.params["fc3"]["bias"].at[3].set(np.inf)
        return state, sums

    monkeypatch.setattr(loop, "train_steps", diverge)
    message = blow_up(tmp_path, dataclasses.replace(RUN, checkpoint_every_steps=None))
    assert message.startswith("the state is not finite any more at step 5, ")
    assert "there is no checkpoint yet" in message
    assert log.read_metrics(tmp_path) == []  # nor is the epoch written down
    assert checkpoint.steps(tmp_path / folder.CHECKPOINTS) == []


def test_it_really_diverges_at_a_senseless_learning_rate(tmp_path):
    message = blow_up(tmp_path, dataclasses.replace(RUN, learning_rate=1e30, batch_size=32))
    number = r"[\d.]+e\+28"
    assert re.search(rf" between steps 1 and 2, with a .* rate of {number} to {number};", message)


def test_a_failed_save_ends_the_run_and_the_one_before_is_gone_on_from(
    straight, tmp_path, monkeypatch
):
    write = checkpoint.atomic_write

    def fail_at_five(file, content):
        if file.stem == "step_00000005":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "atomic_write", fail_at_five)
        with pytest.raises(OSError, match=r"No space left on device; step 4 is intact"):
            fit(tmp_path)
    assert checkpoint.steps(tmp_path / folder.CHECKPOINTS) == [2, 4]
    assert outcome(fit(tmp_path), tmp_path) == straight


def test_the_metrics_are_at_most_one_epoch_ahead_of_the_checkpoints(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "atomic_write", fail)
    with pytest.raises(OSError, match=r"; there is no checkpoint before it"):
        fit(tmp_path, dataclasses.replace(RUN, checkpoint_every_steps=None))
    assert [record["epoch"] for record in log.read_metrics(tmp_path)] == [1]


def test_the_norm_that_gradients_are_clipped_to_reaches_the_optimizer():
    settings = Settings(clip_norm=0.25, learning_rate=0.1)
    state = loop.create_state(settings, LeNet(), total_steps=10)
    assert float(state.opt_state.hyperparams["clip_norm"]) == 0.25
    state = loop.create_state(Settings(learning_rate=0.1), LeNet(), total_steps=10)
    assert "clip_norm" not in state.opt_state.hyperparams
