"""A damaged file is told from a machine that cannot read it."""

import errno
import shutil
import zipfile

import numpy as np
import pytest
from made_up import write_idx

from lenet_jax import data
from lenet_jax.data import damage


class Unknown(Exception):
    """An exception of some library."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (zipfile.BadZipFile("Bad CRC-32"), "Bad CRC-32"),
        (EOFError(), "the file is cut short"),
        (KeyError(), "KeyError"),
        (ValueError("two\nlines " * 100), ("two lines " * 100)[:200]),
        (OSError("Invalid data stream"), "Invalid data stream"),  # of bz2
        (OSError(errno.EINVAL, "Invalid argument"), "Invalid argument"),  # a negative offset
        (Unknown("of some library"), "of some library"),
    ],
)
def test_damage_is_a_sentence_with_its_reason(error, reason):
    with pytest.raises(ValueError, match=r".") as caught, damage.named("the file", Unknown):
        raise error
    assert str(caught.value) == f"the file ({reason})"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EMFILE, "Too many open files"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        Unknown(),
        ImportError(),
    ],
)
def test_the_machines_errors_pass(error):
    with pytest.raises(type(error)) as caught, damage.named("damaged"):
        raise error
    assert caught.value is error


def test_a_missing_file_is_damage_where_that_is_said():
    with pytest.raises(ValueError, match="No such"), damage.named("damaged", FileNotFoundError):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")


# What users are told


def write_npz(few, folder):
    np.savez(
        folder / "mnist.npz",
        **dict(zip(("x_train", "y_train", "x_test", "y_test"), few.splits, strict=True)),
    )


def write_cache(few, folder):
    data.prepared.write_cache("mnist", folder, few.splits)


WRITERS = {
    "IDX": lambda few, folder: write_idx(folder, few.splits),
    "npz": write_npz,
    "prepared": lambda few, folder: shutil.copytree(few.prepared, folder, dirs_exist_ok=True),
    "kept arrays": write_cache,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (MemoryError(), "its content does not fit into memory"),
    ],
)
def test_a_machine_that_cannot_read_intact_files_is_named(
    write, error, reason, few, tmp_path, monkeypatch
):
    write(few, tmp_path)
    data.load("mnist", str(tmp_path))

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("builtins.open", fail)  # NumPy's
    monkeypatch.setattr(data.Path, "open", fail)
    with pytest.raises(ValueError, match=rf"cannot be read \({reason}\)$") as caught:
        data.load("mnist", str(tmp_path))
    for word in ("damaged", "remove", "--noresume", "\n"):
        assert word not in str(caught.value)
