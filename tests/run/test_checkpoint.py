"""What was saved comes back bit by bit, or not at all."""

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lenet_jax import create_train_state, make_optimizer
from lenet_jax.core.optimizers import make_schedule
from lenet_jax.run import checkpoint
from lenet_jax.run.checkpoint import CheckpointError, Saver

OPTIMIZERS = {
    "sgd": {},
    "sgd with momentum": {"momentum": 0.9, "dampening": 0.1, "weight_decay": 1e-4},
    "nesterov": {},
    "adam": {},
    "adamw": {},
    "rmsprop": {"momentum": 0.9, "centered": True},
}
NOTE = {"sums": {"loss": 0.1 + 0.2}, "config": {"name": "ünïcode", "none": None}}


def make_tree(optimizer: str = "adam", seed: int = 0) -> dict:
    """A state's arrays, as NumPy's, none of them zero."""
    tx = make_optimizer(
        optimizer.split()[0], schedule=make_schedule("onecycle", 9), **OPTIMIZERS[optimizer]
    )
    state = create_train_state(jax.random.key(seed), tx)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.asarray(rng.integers(1, 100, leaf.shape), leaf.dtype),
        {"params": state.params, "opt_state": state.opt_state, "step": np.zeros((), np.int32)},
    )


def save(folder: Path, *steps: int, keep: int = 9, tree: dict | None = None) -> dict:
    tree = tree or make_tree()
    with Saver(folder, keep) as saver:
        for step in steps:
            saver.save(step, tree, {**NOTE, "saved": step})
    return tree


def always(tree: dict) -> Callable[[dict], dict]:
    """What to read, whatever the note says."""
    return lambda note: tree


def same(one: object, other: object) -> bool:
    """Whether two pytrees are equal in structure, types and bits."""
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(leaves, others, strict=True)
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, dict]:
    """A folder with the intact checkpoints of steps 1 and 2, to be copied before it is damaged."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    return folder, save(folder, 1, 2)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_arrays_and_note_come_back_bit_by_bit(optimizer, tmp_path):
    tree = save(tmp_path, 7, tree=make_tree(optimizer))
    found = checkpoint.latest_valid(tmp_path, always(tree), pytest.fail)
    assert found.step == 7
    assert same(found.tree, tree)
    assert found.note == {**NOTE, "saved": 7}


def test_a_part_is_read_without_the_others(two):
    folder, tree = two
    params = checkpoint.restore(folder, 2, always({"params": tree["params"]})).tree
    assert same(params, {"params": tree["params"]})


def test_without_checkpoints_there_is_none(tmp_path):
    like = always(make_tree())
    assert checkpoint.latest_valid(tmp_path / "checkpoints", like, pytest.fail) is None


def test_the_latest_stay(tmp_path):
    save(tmp_path, 1, 2, 10, 11, keep=2)
    assert checkpoint.steps(tmp_path) == [10, 11]
    save(tmp_path, 12, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000012"]


def test_a_damaged_one_that_is_newer_does_not_push_an_intact_one_out(two, tmp_path):
    folder = shutil.copytree(two[0], tmp_path / "checkpoints")
    shutil.rmtree(folder / "step_00000002" / "state")
    save(folder, 1, keep=1)
    assert checkpoint.steps(folder) == [1, 2]
    save(folder, 2, keep=1)
    assert checkpoint.latest_valid(folder, always(two[1]), pytest.fail).step == 2


def test_a_damaged_one_takes_no_place_of_an_intact_one(two, tmp_path):
    folder = shutil.copytree(two[0], tmp_path / "checkpoints")
    shutil.rmtree(folder / "step_00000002" / "state")
    last = checkpoint.latest_valid(folder, always(two[1]), lambda line: None).step
    with Saver(folder, 2, last=last) as saver:
        saver.save(3, two[1], NOTE)
    assert checkpoint.steps(folder) == [1, 3]


def test_a_save_goes_on_in_the_background(tmp_path, monkeypatch):
    proceed, write = threading.Event(), checkpoint._write

    def wait_and_write(*args):
        assert proceed.wait(30)
        write(*args)

    monkeypatch.setattr(checkpoint, "_write", wait_and_write)
    with Saver(tmp_path, 3) as saver:
        saver.save(1, make_tree(), NOTE)
        assert checkpoint.steps(tmp_path) == []
        assert saver.last is None
        proceed.set()
    assert checkpoint.steps(tmp_path) == [1]
    assert saver.last == 1


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("ending", ["wait", "save", "exit"])
def test_a_failed_save_is_raised_by_whatever_comes_next(ending, tmp_path, monkeypatch):
    tree = save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "_write", full_disk)
    saver = Saver(tmp_path, 1, last=1)
    saver.save(2, tree, NOTE)
    message = (
        r"^the checkpoint of step 2 could not be written .*\(No space left on device\); step 1"
    )
    with pytest.raises(OSError, match=message):
        {
            "wait": saver.wait,
            "save": lambda: saver.save(3, tree, NOTE),
            "exit": lambda: saver.__exit__(None, None, None),
        }[ending]()
    assert checkpoint.latest_valid(tmp_path, always(tree), pytest.fail).step == 1


def test_every_file_is_on_disk_before_the_rename_and_the_rename_after_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(
        checkpoint, "_sync", lambda path: synced.append((path.relative_to(tmp_path), path.exists()))
    )
    save(tmp_path, 1)
    *content, last = synced
    assert last == (Path("."), True)
    assert (tmp_path / "step_00000001").is_dir()
    written = {str(path).replace(".unfinished", "") for path, _ in content}
    assert written == {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert all(path.parts[0].endswith(".unfinished") for path, _ in content)


def test_a_file_system_that_syncs_no_folders_does_and_no_files_does_not(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(checkpoint.os, "fsync", fsync)
    checkpoint._sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        checkpoint._sync(tmp_path / "file")


def test_orbax_and_sha256sum_read_it_without_us(two):
    folder, tree = two
    from orbax.checkpoint import v1 as ocp

    params = ocp.load(folder.absolute() / "step_00000002")["params"]
    assert same(params, tree["params"])
    sums = (folder / "step_00000002" / "SHA256SUMS").read_text().split("\n")[0]
    digest, name = sums.split("  ")
    content = (folder / "step_00000002" / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest


def test_what_a_killed_save_left_behind_is_no_checkpoint_and_goes(tmp_path):
    tree = save(tmp_path, 1)
    shutil.copytree(tmp_path / "step_00000001", tmp_path / "step_00000002.unfinished")
    assert checkpoint.latest_valid(tmp_path, always(tree), pytest.fail).step == 1
    Saver(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path], capture_output=True
    )
    if made.returncode:
        pytest.skip("a tmpfs cannot be mounted here; the injected OSError is tested all the same")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_on_a_full_disk_the_one_before_stays_intact(small_disk):
    tree = make_tree()
    for leaf in jax.tree.leaves(tree):  # noise, which no compression makes smaller
        leaf[...] = np.frombuffer(random.Random(0).randbytes(leaf.nbytes), leaf.dtype).reshape(
            leaf.shape
        )
    saver = Saver(small_disk, keep=99)
    message = r"could not be written .*\(No space left on device\); step"
    with pytest.raises(OSError, match=message):  # noqa: PT012, which of them is not known
        for step in range(20):
            saver.save(step, tree, NOTE)
    assert saver.last >= 1
    assert checkpoint.steps(small_disk) == list(range(saver.last + 1))
    assert same(checkpoint.latest_valid(small_disk, always(tree), pytest.fail).tree, tree)


# --- damage ---


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(file: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size))


DAMAGE = {
    "bit flipped": flip,
    "truncated": truncate,
    "emptied": lambda file, rng: os.truncate(file, 0),
    "missing": lambda file, rng: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_is_one_line_and_the_one_before_is_used(damage, two, tmp_path):
    original, tree = two
    rng = random.Random(0)
    for index, file in enumerate(files(original / "step_00000002")):
        folder, reported = shutil.copytree(original, tmp_path / str(index)), []
        DAMAGE[damage](folder / file.relative_to(original), rng)
        found = checkpoint.latest_valid(folder, always(tree), reported.append)
        assert same(found.tree, tree)
        assert (found.step, found.note) == (1, {**NOTE, "saved": 1})
        assert len(reported) == 1
        assert "step_00000002: " in reported[0]
        assert "\n" not in reported[0]


def test_what_a_file_browser_leaves_behind_is_no_damage(two, tmp_path):
    folder = shutil.copytree(two[0], tmp_path / "checkpoints")
    (folder / "step_00000002" / ".DS_Store").touch()
    assert checkpoint.latest_valid(folder, always(two[1]), pytest.fail).step == 2


@pytest.mark.parametrize("part", ["params", "opt_state"])
def test_arrays_that_were_written_wrong_are_noticed(part, tmp_path, monkeypatch):
    """The digest is of what was given to be saved, whatever became of it on the way."""
    tree = make_tree()
    wrong = jax.tree.map(np.copy, tree)
    jax.tree.leaves(wrong[part])[-1][...] += 1
    digests = checkpoint._digests(tree)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_digests", lambda tree: digests)
        with Saver(tmp_path, 1) as saver:
            saver.save(1, wrong, NOTE)
    with pytest.raises(CheckpointError, match=f"the content of {part} is not what was saved"):
        checkpoint.restore(tmp_path, 1, always(tree))


def test_none_intact_is_an_error_and_no_fresh_start(two, tmp_path):
    folder, reported = shutil.copytree(two[0], tmp_path / "checkpoints"), []
    for file in folder.rglob("_METADATA"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"none of the checkpoints there \(2\) is intact"):
        checkpoint.latest_valid(folder, always(two[1]), reported.append)
    assert len(reported) == 2


def test_one_that_goes_while_it_is_read_is_no_damage(two, tmp_path, monkeypatch):
    """A run at work keeps one checkpoint, and saves the next while its latest is being read."""
    folder, read = shutil.copytree(two[0], tmp_path / "checkpoints"), checkpoint._read_metadata

    def rotate_and_read(path):
        if path.name == "step_00000002":
            path.rename(path.with_name("step_00000003"))
        return read(path)

    monkeypatch.setattr(checkpoint, "_read_metadata", rotate_and_read)
    assert checkpoint.latest_valid(folder, always(two[1]), pytest.fail).step == 3


def test_what_has_no_number_of_ours_is_one_that_is_not_there(two, tmp_path):
    folder, reported = shutil.copytree(two[0], tmp_path / "checkpoints"), []
    (folder / "step_9").mkdir()
    assert checkpoint.latest_valid(folder, always(two[1]), reported.append).step == 2
    assert len(reported) == 1


@pytest.mark.parametrize("error", [ImportError, MemoryError, PermissionError])
def test_what_is_no_damage_is_not_called_so(error, two, monkeypatch):
    def fail(path):
        raise error("not allowed")

    monkeypatch.setattr(checkpoint, "_read_metadata", fail)
    with pytest.raises(error, match="not allowed"):
        checkpoint.latest_valid(two[0], always(two[1]), pytest.fail)


def test_a_note_is_checked_before_the_arrays_are_read(two, monkeypatch):
    """What it is checked for is no damage, and ends the search."""
    monkeypatch.setattr(checkpoint, "_read_arrays", pytest.fail)

    def refuse(note):
        raise ValueError(f"saved at {note['saved']}")

    with pytest.raises(ValueError, match=r"^saved at 2$"):
        checkpoint.latest_valid(two[0], refuse, pytest.fail)


def test_one_that_is_not_there_is_an_error(two):
    with pytest.raises(CheckpointError, match="step_00000003: is not there"):
        checkpoint.restore(two[0], 3, always(two[1]))


LIKE = {
    "a shape": ({"w": np.zeros((3, 2))}, r"a.w is float64\[2, 3\] there, and float64\[3, 2\] in"),
    "a type": ({"w": np.zeros((2, 3), np.float32)}, r"a.w is float64\[2, 3\] there, and float32"),
    "a missing leaf": ({"w": np.zeros((2, 3)), "b": np.zeros(1)}, "a.b is not there, and float64"),
    "a leaf too many": ({}, r"a.w is float64\[2, 3\] there, and not in this run"),
}


@pytest.mark.parametrize("case", LIKE)
def test_another_structure_is_refused_by_name(case, tmp_path):
    save(tmp_path, 1, tree={"a": {"w": np.ones((2, 3))}})
    like, message = LIKE[case]
    with pytest.raises(CheckpointError, match=message):
        checkpoint.restore(tmp_path, 1, always({"a": like}))


# --- metadata ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
RECORDS = JSON | st.fixed_dictionaries(
    {}, optional={"format": st.just(1) | JSON, "note": JSON, "sha256": JSON, "more": JSON}
)


@settings(max_examples=300, deadline=None)
@given(RECORDS)
def test_any_json_is_metadata_or_a_checkpoint_error(record):
    try:
        note, digests = checkpoint.parse(record)
    except CheckpointError:
        return
    assert (note, digests) == (record["note"], record["sha256"])


def test_a_changed_note_is_noticed():
    digests = {"note": checkpoint._note_digest({"loss": 1.0})}
    record = {"format": 1, "note": {"loss": 1.0}, "sha256": digests}
    assert checkpoint.parse(record) == ({"loss": 1.0}, digests)
    record["note"] = {"loss": 1.5}
    with pytest.raises(CheckpointError, match="note"):
        checkpoint.parse(record)


def test_a_newer_format_is_refused_by_its_number():
    with pytest.raises(CheckpointError, match="is of format 2; this version reads format 1"):
        checkpoint.parse({"format": 2, "note": {}, "sha256": {}})


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=60) | RECORDS.map(lambda record: json.dumps(record).encode()))
def test_any_bytes_of_metadata_are_a_checkpoint_error(two, content):
    """With the right SHA256SUMS, so that they come through to orbax."""
    folder, tree = two
    path = folder / "step_00000002"
    file, sums = path / "_CHECKPOINT_METADATA", path / checkpoint.SUMS
    good = file.read_bytes(), sums.read_bytes()
    file.write_bytes(content)
    sums.write_text(checkpoint._sums(path))
    try:
        with pytest.raises(CheckpointError):
            checkpoint.restore(folder, 2, always(tree))
    finally:
        file.write_bytes(good[0])
        sums.write_bytes(good[1])
