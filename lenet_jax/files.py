"""Paths as flags give them, and files that are written completely or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


def expand_user(path: str | Path, flag: str) -> Path:
    """`path` with its ~ replaced by the home folder; a shell leaves --flag=~/folder as it is.

    Raises:
      ValueError: there is no such home folder; the message starts with the flag.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{flag}={path}: there is no such home folder") from error


def atomic_write(file: Path, content: str | bytes) -> None:
    """Writes a file completely or not at all, also when several processes write it at once.

    Raises:
      OSError: it cannot be written; the message names it, and a file that was there is intact.
    """
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    with add_path_to_oserror(file):
        try:
            with temporary.open("xb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        finally:
            with contextlib.suppress(OSError):  # after a success it is gone
                temporary.unlink()
    # So that the rename survives a power cut.
    with contextlib.suppress(OSError):  # Windows opens no folders, and some file systems sync none
        descriptor = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Removes what writers that were killed left in a folder; no other process may write there."""
    for file in folder.glob(".*.tmp"):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def add_path_to_oserror(path: Path) -> Iterator[None]:
    """Puts the path into the OSErrors of a block: those of a full disk do not name it."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be written to ({error.strerror or error})") from error
