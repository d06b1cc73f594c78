"""Distinguishes damaged files from a machine that cannot read them."""

import contextlib
import errno
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# What zipfile, zlib, NumPy, json, Pillow and tensorflow-datasets raise for a damaged file.
ERRORS = (
    *(EOFError, LookupError, OSError, RuntimeError, SyntaxError, TypeError, ValueError),
    *(lzma.LZMAError, struct.error, zipfile.BadZipFile, zlib.error),
)


@contextlib.contextmanager
def named(message: str, *others: type[Exception]) -> Iterator[None]:
    """Turns an error from a damaged file, or one of `others`, into a ValueError.

    Its text is `message` and the reason. Errors of the machine pass: a MemoryError, or an OSError
    with a number. The number EINVAL is damage: an offset before the start of the file.
    """
    try:
        yield
    except (*ERRORS, *others) as error:
        of_machine = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
        if of_machine and not isinstance(error, others):
            raise
        raise ValueError(f"{message} ({reason(error)})") from error


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """A regular file and its size in bytes; any error while it is read becomes a ValueError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
            raise ValueError(f"{path}: is not a file")
        with path.open("rb") as file:
            yield file, status.st_size
    except (EOFError, MemoryError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """What went wrong, for the brackets of a message."""
    if isinstance(error, EOFError):
        return "the file is cut short"
    if isinstance(error, MemoryError):
        return "its content does not fit into memory"
    if "incorrect data check" in str(error):
        return "the content does not match the checksum, CRC-32, of the gzip stream"
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text[:200] or type(error).__name__
