"""What every part does with files alike: paths as flags give them, and writing all or nothing."""

import contextlib
import os
import tempfile
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


def atomic_write(file: Path, content: str | bytes) -> None:
    """Writes a file as a whole or not at all, also when several processes write it at once.

    Raises:
      OSError: it cannot be written; the message names it, and a file that was there is intact.
    """
    data = content.encode() if isinstance(content, str) else content
    with add_path_to_oserror(file):
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with open(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's are for their owner alone
            os.replace(temporary, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def add_path_to_oserror(path: Path) -> Iterator[None]:
    """Puts the path into the OSErrors of a block: a full disk's do not say where."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be written to ({error.strerror or error})") from error


def _umask() -> int:
    mask = os.umask(0)  # there is no other way to ask
    os.umask(mask)
    return mask
