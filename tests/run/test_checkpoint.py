"""What was saved comes back bit by bit, or not at all."""

import errno
import json
import os
import random
import shutil
import subprocess
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
from lenet_jax.run.checkpoint import CheckpointError

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
    for step in steps:
        checkpoint.save(folder, step, tree, {**NOTE, "saved": step}, keep)
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000012.npz"]


def test_a_damaged_one_that_is_set_aside_takes_no_place_of_an_intact_one(two, tmp_path):
    folder = shutil.copytree(two[0], tmp_path / "checkpoints")
    os.truncate(folder / "step_00000002.npz", 9)
    last = checkpoint.latest_valid(folder, always(two[1]), lambda line: None).step
    checkpoint.set_aside_later(folder, last)
    assert sorted(path.name for path in folder.iterdir()) == [
        "step_00000001.npz",
        "step_00000002.damaged",
    ]
    save(folder, 3, keep=2)
    assert checkpoint.steps(folder) == [1, 3]


@pytest.mark.parametrize("before", [(), (1,)])
def test_a_failed_save_names_the_file_and_the_one_before(before, tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    tree = save(tmp_path, *before)
    monkeypatch.setattr(os, "fsync", full_disk)
    kept = "step 1 is intact" if before else "there is no checkpoint before it"
    message = rf"step_00000002.npz: cannot be written to \(No space left on device\); {kept}$"
    with pytest.raises(OSError, match=message):
        checkpoint.save(tmp_path, 2, tree, NOTE, 1)
    assert [path.name for path in tmp_path.iterdir()] == [f"step_{n:08d}.npz" for n in before]


def test_numpy_reads_it_without_us(two):
    folder, tree = two
    with np.load(folder / "step_00000002.npz") as arrays:
        kernel = arrays["params.conv1.kernel"]
        assert json.loads(arrays["note"].tobytes()) == {**NOTE, "saved": 2}
    assert kernel.tobytes() == tree["params"]["conv1"]["kernel"].tobytes()


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
    message = r"cannot be written to \(No space left on device\); step \d+ is intact"
    with pytest.raises(OSError, match=message):  # noqa: PT012, which of them is not known
        for step in range(20):
            checkpoint.save(small_disk, step, tree, NOTE, 99)
    assert [path.name for path in sorted(small_disk.iterdir())] == [
        f"step_{done:08d}.npz" for done in range(step)
    ]
    assert step >= 2
    assert same(checkpoint.latest_valid(small_disk, always(tree), pytest.fail).tree, tree)


# --- damage ---


def flip(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def flip_in_a_header(content: bytearray, rng: random.Random) -> None:
    """In zip's directory, at the end, where most bytes are names and sizes."""
    content[-1 - rng.randrange(3000)] ^= 1 << rng.randrange(8)


def overwrite(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content))
    content[at : at + 16] = rng.randbytes(len(content[at : at + 16]))


def truncate(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


DAMAGE = [flip, flip_in_a_header, overwrite, truncate, lambda content, rng: content.clear()]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line_and_the_one_before_is_used(damage, two, tmp_path):
    original, tree = two
    folder, rng = shutil.copytree(original, tmp_path / "checkpoints"), random.Random(0)
    file, harmless = folder / "step_00000002.npz", 0
    intact = file.read_bytes()
    for _ in range(40):
        content, reported = bytearray(intact), []
        damage(content, rng)
        file.write_bytes(content)
        found = checkpoint.latest_valid(folder, always(tree), reported.append)
        assert same(found.tree, tree)
        assert found.note == {**NOTE, "saved": found.step}
        if found.step == 2:  # the time of a file in a zip directory, for example
            harmless += 1
            assert reported == []
        else:
            (line,) = reported
            assert line.startswith(f"a checkpoint that cannot be used is skipped: {file}: ")
            assert "\n" not in line
    assert harmless <= (20 if damage is flip_in_a_header else 1)


def test_a_header_that_declares_a_huge_array_is_damage_and_takes_no_memory(two, tmp_path):
    """NumPy would allocate what the header declares, and a MemoryError is no damage."""
    folder = shutil.copytree(two[0], tmp_path / "checkpoints")
    file = folder / "step_00000002.npz"
    content = file.read_bytes()
    assert b"(5, 5, 1, 6), }" in content
    file.write_bytes(content.replace(b"(5, 5, 1, 6), }", b"(99999999999,)}"))
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        checkpoint.restore(folder, 2, always(two[1]))


def test_a_compressed_file_is_refused(two, tmp_path):
    np.savez_compressed(tmp_path / "step_00000001.npz", note=np.zeros(9, np.uint8))
    with pytest.raises(CheckpointError, match=r"step_00000001\.npz: it is compressed"):
        checkpoint.restore(tmp_path, 1, always(two[1]))


def test_all_damaged_is_an_error_and_no_fresh_start(two, tmp_path):
    folder, reported = shutil.copytree(two[0], tmp_path / "checkpoints"), []
    for file in folder.iterdir():
        os.truncate(file, 9)
    with pytest.raises(
        CheckpointError, match=r": none of the 2 checkpoints can be used; train with --no"
    ):
        checkpoint.latest_valid(folder, always(two[1]), reported.append)
    assert len(reported) == 2


def test_one_that_goes_while_it_is_read_is_not_damaged(two, tmp_path):
    """A run at work keeps one checkpoint, and saves the next while its latest is being read."""
    folder = shutil.copytree(two[0], tmp_path / "checkpoints")
    second = folder / "step_00000002.npz"

    class Rotating(type(folder)):
        def read_bytes(self):
            if second.exists() and self.name == second.name:
                second.rename(folder / "step_00000003.npz")
            return super().read_bytes()

    assert checkpoint.latest_valid(Rotating(folder), always(two[1]), pytest.fail).step == 3


def test_a_file_without_a_step_in_its_name_is_ignored(two, tmp_path):
    folder = shutil.copytree(two[0], tmp_path / "checkpoints")
    for name in ("step_new.npz", ".step_00000009.npz.0123.tmp", "step_00000009.damaged", "x.npz"):
        (folder / name).touch()
    assert checkpoint.latest_valid(folder, always(two[1]), pytest.fail).step == 2


def test_checkpoints_of_an_older_version_are_named_with_what_to_do(two, tmp_path):
    (tmp_path / "step_00000022").mkdir()
    with pytest.raises(CheckpointError, match=r"lenet_jax 0\.2 or earlier .*--format=torch"):
        checkpoint.latest_valid(tmp_path, always(two[1]), pytest.fail)


@pytest.mark.parametrize("error", [MemoryError("all in use"), OSError(errno.EMFILE, "Too many")])
def test_an_error_of_the_machine_is_not_called_damage(error, two, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(type(error)) as raised:
            checkpoint.latest_valid(two[0], always(two[1]), pytest.fail)
    assert raised.value is error
    with pytest.raises(type(error)) as raised:
        checkpoint.latest_valid(two[0], fail, pytest.fail)
    assert raised.value is error


def test_a_note_is_checked_before_the_arrays(two):
    """If `like` refuses the note, the search ends, because the checkpoint is intact."""

    def refuse(note):
        raise ValueError(f"saved at {note['saved']}")

    with pytest.raises(ValueError, match=r"^saved at 2$"):
        checkpoint.latest_valid(two[0], refuse, pytest.fail)


def test_a_missing_one_is_the_systems_error(two):
    with pytest.raises(FileNotFoundError, match=r"step_00000003\.npz"):
        checkpoint.restore(two[0], 3, always(two[1]))


LIKE = {
    "a shape": ({"w": np.zeros((3, 2))}, r"has float64\[2, 3\], run expects float64\[3, 2\]$"),
    "a type": ({"w": np.zeros((2, 3), np.float32)}, r"has float64\[2, 3\], run expects float32"),
    "a missing leaf": (
        {"w": np.zeros((2, 3)), "b": np.zeros(1)},
        r"a\.b: checkpoint has no array, run expects float64\[1\]$",
    ),
    "a leaf too many": ({}, r"has float64\[2, 3\], run expects no array$"),
}


@pytest.mark.parametrize("case", LIKE)
def test_another_structure_is_refused_by_name(case, tmp_path):
    save(tmp_path, 1, tree={"a": {"w": np.ones((2, 3))}})
    like, message = LIKE[case]
    message = message if message.startswith("a") else rf"a\.w: checkpoint {message}"
    with pytest.raises(CheckpointError, match=rf"step_00000001\.npz: {message}"):
        checkpoint.restore(tmp_path, 1, always({"a": like}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=60) | JSON.map(lambda note: json.dumps(note).encode()) | st.none())
def test_any_bytes_of_a_note_are_a_dictionary_or_damage(tmp_path, content):
    """In a file with the right checksums."""
    arrays = {} if content is None else {"note": np.frombuffer(content, np.uint8)}
    np.savez(tmp_path / "step_00000001.npz", **arrays)
    try:
        note = checkpoint.restore(tmp_path, 1, lambda note: {}).note
    except CheckpointError:
        return
    assert isinstance(note, dict)
    assert repr(note) == repr(json.loads(content))


@given(st.binary(max_size=300))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_of_a_file_are_damage(tmp_path, content):
    (tmp_path / "step_00000001.npz").write_bytes(content)
    with pytest.raises(CheckpointError):
        checkpoint.restore(tmp_path, 1, lambda note: {})
