"""Takes files out of a .zip or .tar.gz by their names alone."""

import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from lenet_jax.data import damage

SUFFIXES = (".zip", ".tar.gz")


def unpack(archive: Path, folder: Path, is_wanted: Callable[[str], bool]) -> None:
    """Writes the members whose names, without their folders, are wanted, into `folder`.

    Only regular files are taken, and none of the archive's folders: links, devices and paths such
    as ../../x have no effect.

    Raises:
      ValueError: the archive is damaged.
    """
    members = _zip_members if archive.name.endswith(".zip") else _tar_members
    with damage.named(f"{archive}: cannot be unpacked", tarfile.TarError):
        for name, stream in members(archive, is_wanted):
            with stream, (folder / name).open("xb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)


def _zip_members(path: Path, is_wanted: Callable) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = PurePosixPath(member.filename).name
            if not member.is_dir() and is_wanted(name):
                yield name, archive.open(member)


def _tar_members(path: Path, is_wanted: Callable) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            stream = archive.extractfile(member) if member.isreg() and is_wanted(name) else None
            if stream:
                yield name, stream
