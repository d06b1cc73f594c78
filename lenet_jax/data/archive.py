"""Takes files out of a .zip or .tar.gz by their names alone."""

import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from lenet_jax.data import damage

SUFFIXES = (".zip", ".tar.gz")
Members = Iterator[tuple[str, Callable[[], IO[bytes]]]]  # the path and how to open it


def unpack(archive: Path, folder: Path, is_wanted: Callable[[str], bool]) -> None:
    """Writes the members whose names, without their folders, are wanted, into `folder`.

    Only regular files are taken, and none of the archive's folders: links, devices and paths such
    as ../../x have no effect.
    """
    members = _zip_members if archive.name.endswith(".zip") else _tar_members
    with damage.named(f"{archive}: cannot be unpacked", tarfile.TarError):
        for member, open_member in members(archive):
            if is_wanted(name := PurePosixPath(member).name):
                with open_member() as stream, (folder / name).open("xb") as file:
                    shutil.copyfileobj(stream, file, 1 << 20)


def _zip_members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, partial(archive.open, member)


def _tar_members(path: Path) -> Members:
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            if member.isreg():
                yield member.name, partial(archive.extractfile, member)
