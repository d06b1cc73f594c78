"""Checkpoints: one `.npz` file per step, which `numpy.load` reads without this package.

A file holds a state's arrays under their dotted names, such as "params.conv1.kernel", and a note:
JSON in UTF-8, as uint8 under the name "note". zip stores a CRC-32 of each member, which a restore
compares before it parses anything.
"""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lenet_jax.data import damage
from lenet_jax.files import atomic_write

Tree = Mapping[str, Any]  # a pytree of arrays for each part of a state, such as "params"
# Gets the note, before the arrays are parsed, and returns the parts to read, with leaves that have
# the shape and the dtype of the expected arrays. Its errors end the search.
Like = Callable[[dict[str, Any]], Tree]


class CheckpointError(ValueError):
    """A checkpoint is damaged or does not fit the run; the message names the file and says why."""


class Checkpoint(NamedTuple):
    """What was saved: `tree` in the structure that `like` returned, with NumPy arrays as leaves."""

    step: int
    tree: dict[str, Any]
    note: dict[str, Any]


def save(folder: Path, step: int, tree: Tree, note: dict[str, Any], keep: int) -> None:
    """Writes the checkpoint of `step` completely or not at all; then only the latest `keep` stay.

    Raises:
      OSError: the file cannot be written; the message names it and the checkpoint before it.
    """
    before = steps(folder)
    try:
        folder.mkdir(exist_ok=True)
        atomic_write(file_of(folder, step), to_bytes(tree, note))
    except OSError as error:
        kept = f"step {before[-1]} is intact" if before else "there is no checkpoint before it"
        raise OSError(f"{error}; {kept}") from error
    for old in steps(folder)[:-keep]:
        file_of(folder, old).unlink(missing_ok=True)


def to_bytes(tree: Tree, note: dict[str, Any]) -> bytes:
    """The content of a checkpoint file: the same for the same arrays and note."""
    content = io.BytesIO()
    np.savez(content, note=np.frombuffer(json.dumps(note).encode(), np.uint8), **_by_name(tree))
    return content.getvalue()


def file_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.npz"


def steps(folder: Path) -> list[int]:
    """The steps of a folder's checkpoints, intact or not, in order."""
    names = (file.stem.removeprefix("step_") for file in folder.glob("step_*.npz"))
    return sorted(int(name) for name in names if name.isdecimal())


def latest_valid(folder: Path, like: Like, log: Callable[[str], None]) -> Checkpoint | None:
    """The latest intact checkpoint, with a line to `log` for each damaged one that is later.

    None if there are no checkpoints.

    Raises:
      CheckpointError: there are checkpoints, and all are damaged or were written by version 0.2.
      OSError: a checkpoint cannot be read, which is the machine's fault and not the file's.
    """
    damaged: set[int] = set()
    while found := [step for step in steps(folder) if step not in damaged]:
        try:
            return restore(folder, found[-1], like)
        except FileNotFoundError:  # a running training has just replaced it by a later one
            continue
        except CheckpointError as error:
            log(f"a checkpoint that cannot be used is skipped: {error}")
            damaged.add(found[-1])
    if damaged:
        lost = f"none of the {len(damaged)} checkpoints can be used"
        raise CheckpointError(f"{folder}: {lost}; train with --noresume starts the run again")
    if any(folder.glob("step_*/")):
        raise CheckpointError(
            f"{folder}: lenet_jax 0.2 or earlier wrote these checkpoints, and only it reads them; "
            "its export --format=torch and --init_from here take the weights along"
        )
    return None


def set_aside_later(folder: Path, step: int) -> None:
    """Renames the checkpoints after `step`, which are damaged, before a run saves them again."""
    for later in steps(folder):
        if later > step:
            file = file_of(folder, later)
            file.replace(file.with_suffix(".damaged"))


def restore(folder: Path, step: int, like: Like) -> Checkpoint:
    """The checkpoint of `step`; see `read`."""
    return Checkpoint(step, *read(file_of(folder, step), like))


def read(path: Path, like: Like) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file's tree and note, after its checksums, names, shapes and dtypes have been compared.

    Raises:
      CheckpointError: the file is damaged, or its arrays are not those that `like` describes.
      OSError: the file is missing or cannot be read.
    """
    note, arrays = _parse(path)
    wanted = dict(like(note))
    expected = _by_name(wanted)
    stored = {name: array for name, array in arrays.items() if name.split(".")[0] in wanted}
    for name in sorted(expected.keys() | stored.keys()):
        there, here = (_describe(leaves.get(name)) for leaves in (stored, expected))
        if there != here:
            raise CheckpointError(f"{path}: {name}: checkpoint has {there}, run expects {here}")
    leaves = [stored[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves), note


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The note and the arrays by name."""
    content = path.read_bytes()  # an OSError is the machine's fault; what follows is the file's
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as members:
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.zip.infolist()):
                raise ValueError("it is compressed, and checkpoints are not")
            # Before NumPy parses a header, since it allocates the shape that a header declares.
            if (name := members.zip.testzip()) is not None:
                raise ValueError(f"{name} does not match its checksum")
            arrays = dict(members)
        note = json.loads(arrays.pop("note").tobytes())
        if not isinstance(note, dict):
            raise ValueError("its note is not a JSON object")
    except damage.ERRORS as error:
        raise CheckpointError(f"{path}: {damage.reason(error)}") from error
    return note, arrays


def _by_name(tree: Tree) -> dict[str, Any]:
    """Leaves by dotted name, which is the same for a named tuple and for a dictionary."""
    leaves = jax.tree_util.tree_flatten_with_path(dict(tree))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _describe(leaf: Any) -> str:
    return "no array" if leaf is None else f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
