import dataclasses
import datetime
import errno
import json
import os
import re
import signal
import subprocess
import sys

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lenet_jax import data
from lenet_jax.run import folder
from lenet_jax.run.settings import Settings
from lenet_jax.sweep import SweepSettings


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    path = tmp_path / "with spaces" / "ünïcode" / "run"
    assert folder.create(str(path), "name") == path
    assert list(path.iterdir()) == []


def test_without_a_name_it_says_what_ran_and_when(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = folder.create(None, "digits-sgd")
    assert path.parent.name == "runs"
    assert path.name.startswith("digits-sgd-20")


def test_runs_that_begin_in_the_same_second_have_a_folder_each(tmp_path, monkeypatch):
    class Clock:
        now = staticmethod(lambda moment=datetime.datetime(2000, 1, 1): moment)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder.datetime, "datetime", Clock)
    names = [folder.create(None, "run").name for _ in range(3)]
    assert names == [f"run-20000101-000000{end}" for end in ("", "-2", "-3")]


def test_a_file_in_its_place_is_refused(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ValueError, match=rf"^--workdir={path}: cannot be written to"):
        folder.create(str(path), "name")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written to"):
        folder.create(str(tmp_path), "name")


DIGITS = data.load("digits")
RUN = Settings(dataset="digits", learning_rate=1e-3, epochs=5)


def config(**changes: object) -> dict:
    return json.loads(json.dumps(folder.make_config(dataclasses.replace(RUN, **changes), DIGITS)))


def test_a_home_that_is_not_there_is_one_sentence():
    for call in (
        lambda: folder.create("~nosuchuser/x", "name"),
        lambda: folder.adopt_stored(Settings(workdir="~nosuchuser/x")),
    ):
        with pytest.raises(ValueError, match=r"^--workdir=~nosuchuser/x: there is no such home"):
            call()


def test_a_place_that_cannot_be_read_chooses_no_data_and_is_left_to_create():
    settings = Settings(workdir="/dev/null/run")
    assert folder.adopt_stored(settings) == settings


def test_a_run_that_goes_on_has_its_data_from_where_they_were(tmp_path):
    folder.write_config(tmp_path, config(data_dir="/where/it/was"))
    asked = Settings(workdir=str(tmp_path), learning_rate=1e-3)
    adopted = folder.adopt_stored(asked)
    assert (adopted.dataset, adopted.data_dir) == ("digits", "/where/it/was")
    moved = folder.adopt_stored(dataclasses.replace(asked, data_dir="here"))
    assert (moved.dataset, moved.data_dir) == ("digits", "here")
    for damaged in (5, "not/absolute"):
        folder.write_config(tmp_path, config(data_dir=damaged))
        assert folder.adopt_stored(asked).data_dir is None
    anew = dataclasses.replace(asked, resume=False)
    assert folder.adopt_stored(anew) == anew


def test_other_settings_are_refused_before_there_are_data(tmp_path):
    folder.write_config(tmp_path, config())
    for changed in ({"seed": 1}, {"dataset": "mnist"}):
        (name,) = changed
        asked = Settings(workdir=str(tmp_path), learning_rate=1e-3)
        with pytest.raises(ValueError, match=rf"^--{name} is .* here but the run in .* used"):
            folder.adopt_stored(dataclasses.replace(asked, **changed))
    with pytest.raises(ValueError, match="holds a run of train, and this is sweep"):
        folder.adopt_stored(SweepSettings(workdir=str(tmp_path)))


def test_a_damaged_config_is_refused_unless_the_data_set_is_named(tmp_path):
    (tmp_path / folder.CONFIG).write_text("torn")
    named = Settings(workdir=str(tmp_path), dataset="digits")
    assert folder.adopt_stored(named) == named  # a checkpoint decides what the run is
    with pytest.raises(ValueError, match=r"is not the config\.json of a run"):
        folder.adopt_stored(Settings(workdir=str(tmp_path)))


# --- one process at a time ---

HOLDER = """
import pathlib, sys, time
from lenet_jax.run import folder
with folder.locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_while_the_first_lives_and_only_then(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(ValueError, match=rf"^--workdir={tmp_path}: .*process {holder.pid}\)"),
            folder.locked(tmp_path),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
    with folder.locked(tmp_path):
        assert (tmp_path / folder.LOCK).read_text() == f"{os.getpid()}\n"


def test_a_lock_ends_with_its_block(tmp_path):
    for _ in range(2):
        with folder.locked(tmp_path):
            pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_run_goes_on_with_a_note(code, tmp_path, monkeypatch):
    said: list[str] = []

    def flock(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder.fcntl, "flock", flock)
    with folder.locked(tmp_path, said.append):
        pass
    assert said == [f"note: the file system of {tmp_path} has no locks; start only one run there"]


def test_where_python_has_no_locks_a_run_goes_on_with_the_same_note(tmp_path, monkeypatch):
    """On Windows there is no module fcntl."""
    said: list[str] = []
    monkeypatch.setattr(folder, "fcntl", None)
    for _ in range(2):
        with folder.locked(tmp_path, said.append):
            assert (tmp_path / folder.LOCK).read_text() == f"{os.getpid()}\n"
    assert said == 2 * [
        f"note: the file system of {tmp_path} has no locks; start only one run there"
    ]


def test_the_package_is_imported_without_fcntl():
    code = (
        "import sys; sys.modules['fcntl'] = None; from lenet_jax import train as t; "
        "print(t.folder.fcntl)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_what_cannot_be_written_is_named_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    file = tmp_path / folder.CONFIG
    with pytest.raises(OSError, match=rf"^{file}: cannot be written to \(No space left on device"):
        folder.write_config(tmp_path, {})
    assert not any(tmp_path.iterdir())
    (tmp_path / folder.LOCK).mkdir()
    with (
        pytest.raises(OSError, match=r"\.lock: cannot be written to \(Is a directory\)$"),
        folder.locked(tmp_path),
    ):
        pass


# --- another run in the same place ---


def test_a_run_that_is_archived_is_complete_and_what_is_not_of_it_stays(tmp_path):
    (tmp_path / "notes.txt").touch()
    for path in (folder.METRICS, "checkpoints/step_00000001/data"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    folder.write_config(tmp_path, config())
    old = folder.archive_run(tmp_path)
    assert old.parent == tmp_path
    assert old.name.startswith("old-20")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", old.name}
    for path in (folder.METRICS, "checkpoints/step_00000001/data"):
        assert (old / path).read_text() == path
    assert folder.read_config(old) == config()


@pytest.mark.parametrize("stored", [json.dumps(config() | {"command": "sweep"}), "{}"])
def test_a_sweep_or_a_strangers_config_is_not_archived(stored, tmp_path):
    (tmp_path / folder.CONFIG).write_text(stored)
    with pytest.raises(ValueError, match="use another"):
        folder.archive_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [folder.CONFIG]


def test_without_a_run_nothing_is_archived(tmp_path):
    assert folder.archive_run(tmp_path) is None
    assert not any(tmp_path.iterdir())


# --- config.json ---


def test_config_names_settings_data_machine_and_versions(tmp_path):
    written = config()
    folder.write_config(tmp_path, written)
    assert folder.read_config(tmp_path) == written
    assert written["settings"]["optimizer"] == "adam"
    assert written["data"]["training_images"] == 1437
    assert written["machine"]["cores"] >= 1
    assert set(written["versions"]) == {"lenet_jax", *folder.PACKAGES}
    assert [path.name for path in tmp_path.iterdir()] == [folder.CONFIG]


@pytest.mark.parametrize("nproc", ["99", "", "many"])
def test_the_cores_are_those_that_xla_counts(nproc, monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    real = config()["machine"]["cores"]
    monkeypatch.setenv("NPROC", nproc)
    assert config()["machine"]["cores"] == (99 if nproc == "99" else real)


def test_without_a_config_there_is_none(tmp_path):
    assert folder.read_config(tmp_path) is None


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary() | st.sampled_from([b"{}", b"[" * 9999, b'{"settings": 1}', b"null", b"1e999"]))
def test_any_other_bytes_are_refused_with_the_files_name(tmp_path, content):
    (tmp_path / folder.CONFIG).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path / folder.CONFIG))}: is not"):
        folder.read_config(tmp_path)


OTHERS = {
    "optimizer": "sgd",
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "schedule": "cosine",
    "loss": "mse",
    "init_from": "net.safetensors",
    "batch_size": 128,
    "augment": 1.0,
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
    "ema": 0.99,
    "seed": 1,
}
FREE = {
    "data_dir": "elsewhere",
    "workdir": "elsewhere",
    "epochs": 9,
    "resume": False,
    "keep": 1,
    "summary": True,
    "checkpoint_every_steps": 7,
    "compilation_cache": False,
}


def require_same_run(tmp_path, **changes):
    now = dataclasses.replace(RUN, **changes)
    folder.require_same_run(tmp_path, now, config(**changes), config())


def test_every_setting_is_either_kept_to_a_runs_end_or_free():
    names = {field.name for field in dataclasses.fields(Settings)}
    assert names - {"dataset", "momentum"} == OTHERS.keys() | FREE.keys()


@pytest.mark.parametrize("name", OTHERS)
def test_a_setting_that_decides_the_numbers_is_refused_by_name(name, tmp_path):
    here, there = OTHERS[name], getattr(RUN, name)
    there = "not set" if there is None else there
    message = (
        f"--{name} is {here} here but the run in {tmp_path} used {there}; "
        "use another --workdir or --noresume"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        require_same_run(tmp_path, **{name: here})


@pytest.mark.parametrize("name", FREE)
def test_a_setting_that_does_not_may_change(name, tmp_path):
    require_same_run(tmp_path, **{name: FREE[name]})


def test_two_settings_are_both_named(tmp_path):
    with pytest.raises(ValueError, match=r"^--batch_size is 128 .* 64 and --seed is 1 here"):
        require_same_run(tmp_path, seed=1, batch_size=128)


def test_a_setting_that_is_younger_than_the_run_had_its_default(tmp_path):
    then = config()
    del then["settings"]["loss"]
    folder.require_same_run(tmp_path, RUN, config(), then)


@pytest.mark.parametrize("here", [RUN, SweepSettings()], ids=["train", "sweep"])
def test_what_another_command_left_is_refused_by_name(here, tmp_path):
    other = SweepSettings() if here is RUN else RUN
    now, then = folder.make_config(here, DIGITS), folder.make_config(other, DIGITS)
    this, that = ("train", "sweep") if here is RUN else ("sweep", "train")
    with pytest.raises(ValueError, match=f"holds a run of {that}, and this is {this}; use another"):
        folder.require_same_run(tmp_path, here, now, then)


def test_the_remedy_names_only_flags_that_the_command_has(tmp_path):
    now, then = SweepSettings(seeds=2), SweepSettings(seeds=3)
    with pytest.raises(ValueError, match=r"^--seeds is 2 here .* used 3; use another --workdir$"):
        folder.require_same_run(
            tmp_path, now, folder.make_config(now, DIGITS), folder.make_config(then, DIGITS)
        )


@pytest.mark.parametrize(("split", "field"), [("train", "images"), ("test", "labels")])
def test_other_data_under_the_same_name_are_refused(split, field, tmp_path):
    array = getattr(getattr(DIGITS, split), field).copy()
    array.flat[0] ^= 1
    changed = getattr(DIGITS, split)._replace(**{field: array})
    other = dataclasses.replace(DIGITS, **{split: changed}, source="elsewhere")
    with pytest.raises(
        ValueError, match=r"^the images of digits from elsewhere differ from those that"
    ):
        folder.require_same_run(tmp_path, RUN, folder.make_config(RUN, other), config())


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
@pytest.mark.parametrize(("epochs", "done"), [(5, 3), (3, 3), (2, 3), (3, 5), (9, 3), (4, 3)])
def test_only_a_constant_schedule_can_have_other_epochs_than_planned(
    schedule, epochs, done, tmp_path
):
    now, then = dataclasses.replace(RUN, schedule=schedule, epochs=epochs), config()
    if epochs in (9, 4) and schedule != "constant":
        with pytest.raises(ValueError, match=rf"^--epochs is {epochs} here .* started with 5, and"):
            folder.extend(tmp_path, now, then, done)
    else:
        planned = folder.extend(tmp_path, now, then, done)["settings"]["epochs"]
        assert planned == (epochs if epochs in (9, 4) else 5)


def test_what_changes_the_last_bits_is_named():
    then = config()
    assert folder.environment_diff(config(), then) == ""
    then["machine"] |= {"cores": 99, "python": "2.7"}
    then["jax_settings"] |= {"default_prng_impl": "rbg", "XLA_FLAGS": "--xla_none"}
    then["versions"] |= {"jax": "0.1", "lenet_jax": "0123"}
    code = config()["versions"]["lenet_jax"]
    cores = config()["machine"]["cores"]
    assert folder.environment_diff(config(), then) == (
        f"cores from 99 to {cores}, default_prng_impl from rbg to threefry2x32, "
        f"XLA_FLAGS from --xla_none to {os.environ.get('XLA_FLAGS', '')}, "
        f"lenet_jax from 0123 to {code}, jax from 0.1 to {jax.__version__}"
    )
    del then["jax_settings"]  # version 0.2 had none
    assert folder.environment_diff(config(), then).startswith(
        f"cores from 99 to {cores}, lenet_jax"
    )


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("JAX_DEFAULT_PRNG_IMPL", "rbg", "default_prng_impl from threefry2x32 to rbg"),
        ("JAX_THREEFRY_PARTITIONABLE", "0", "threefry_partitionable from True to False"),
    ],
)
def test_a_setting_of_jax_in_the_environment_is_named(variable, value, words):
    code = (
        "import json, sys; from lenet_jax.run import folder; "
        "print(folder.environment_diff(folder.environment(), json.loads(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(config())],
        env=os.environ | {variable: value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert words in done.stdout
