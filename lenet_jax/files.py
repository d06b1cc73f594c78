"""What every part does with files alike: paths as flags give them, and writing all or nothing."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


def expand_user(path: str | Path, flag: str) -> Path:
    """`path` with the home folder for its ~, which a shell leaves in --flag=~/folder as it is.

    Raises:
      ValueError: nobody has that home folder; the message starts with the flag.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{flag}={path}: there is no such home folder") from error


def require_utf8(path: Path, flag: str) -> Path:
    """`path` as it is, if all folders on the way to it have names that checkpoints can be given.

    Raises:
      ValueError: the absolute path is no UTF-8; the message starts with the flag.
    """
    try:
        os.fsencode(path.absolute()).decode("utf-8")
    except UnicodeDecodeError as error:
        printable = str(path).encode(errors="backslashreplace").decode()
        raise ValueError(
            f"{flag}={printable}: the name of the folder, or of one above it, is not UTF-8, as "
            "checkpoints need it: rename it, or use another"
        ) from error
    return path


def atomic_write(file: Path, content: str | bytes) -> None:
    """Writes a file as a whole or not at all, also when several processes write it at once.

    Raises:
      OSError: it cannot be written; the message names it, and a file that was there is intact.
    """
    temporary = file.with_name(f".{uuid.uuid4().hex}.tmp")
    with add_path_to_oserror(file):
        try:
            with temporary.open("xb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        finally:
            with contextlib.suppress(OSError):  # it is gone if all went well
                temporary.unlink()


@contextlib.contextmanager
def add_path_to_oserror(path: Path) -> Iterator[None]:
    """Puts the path into the OSErrors of a block: a full disk's do not say where."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be written to ({error.strerror or error})") from error
