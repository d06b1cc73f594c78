"""Downloads data sets into tensorflow-datasets' folder, and compares its checksums.

Its own downloader knows no timeout: without a network it tries for minutes, and a server that
stalls blocks it for ever. Only the arrays are kept, see `prepared`; if an archive holds
several data sets, the arrays of all, so that it is downloaded once.
"""

import hashlib
import os
import queue
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

from lenet_jax.data import formats, prepared
from lenet_jax.data.idx import RawSplits
from lenet_jax.data.registry import INFO
from lenet_jax.files import expand_user

CONNECT_TIMEOUT_S = 3  # without an answer a server counts as unreachable
READ_TIMEOUT_S = 30  # without a byte a download is given up

_CHUNK = 1 << 16


class UnavailableError(ValueError):
    """The data set is not on this machine and cannot be downloaded."""


def default_folder() -> Path:
    """The folder in which tensorflow-datasets keeps data sets; without a home folder an error."""
    if named := os.environ.get("TFDS_DATA_DIR"):
        return expand_user(named, "TFDS_DATA_DIR")
    try:
        return Path("~/tensorflow_datasets").expanduser()
    except RuntimeError as error:
        looked = "neither TFDS_DATA_DIR nor a home folder to look into"
        raise UnavailableError(f"{looked}: name a folder with --data_dir") from error


def download(name: str, folder: Path, log: Callable[[str], None]) -> RawSplits:
    """Fetches the files of a data set and keeps their arrays: all of them or nothing."""
    info, missing = INFO[name], prepared.describe_missing(name, folder)
    smallest = min(info.files, key=lambda file: info.files[file][0])
    try:
        if reason := _unreachable(f"{info.url}{smallest}"):
            raise ValueError(f"{info.url} cannot be reached: {reason}")
        folder.mkdir(parents=True, exist_ok=True)
        # In `folder`, so that a folder that cannot be written to is known before the download.
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as downloads:
            for file, (size, sha256) in info.files.items():
                log(f"downloading {info.url}{file} ({size:,} bytes)")
                if _fetch(f"{info.url}{file}", size, Path(downloads, file)) != sha256:
                    raise ValueError(f"{info.url}{file} differs from tensorflow-datasets' checksum")
            return _keep(name, folder, Path(downloads), log)
    except (OSError, ValueError, ImportError) as error:
        failed = f"{missing}, and the download failed ({error})"
        raise UnavailableError(f"{failed}: {formats.how_to_get(name)}") from error


def _keep(name: str, folder: Path, downloads: Path, log: Callable[[str], None]) -> RawSplits:
    """The arrays of `name`, kept in `folder` with those of all data sets in the same files."""
    together = [each for each in INFO if INFO[each].files == INFO[name].files]
    wanted = {file for each in together for file in formats.file_names(each)}
    for file in INFO[name].files:
        if file.endswith((".zip", ".tar.gz")):
            log(f"unpacking {file}")
            _unpack(downloads / file, downloads, wanted)
            (downloads / file).unlink()  # half a gigabyte less while the arrays are written
    for each in sorted(together, key=lambda each: each == name):  # `name` last, to return it
        found = formats.read(each, downloads)
        if found is None:
            raise ValueError(f"{', '.join(formats.file_names(each))} missing in the download")
        prepared.write_cache(each, folder, found[1])
    return found[1]


def _unpack(archive: Path, folder: Path, wanted: set[str]) -> None:
    """Takes files out of an archive whose checksum is known: of a .zip, only those in `wanted`."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            is_wanted = lambda member: Path(member).name.removesuffix(".gz") in wanted
            file.extractall(folder, filter(is_wanted, file.namelist()))
    else:
        with tarfile.open(archive) as file:
            file.extraction_filter = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
            file.extractall(folder)


def _fetch(url: str, size: int, file: Path) -> str:
    """Writes at most one byte more than `size`, with a bar on a terminal; returns the SHA-256."""
    import urllib.request
    from http.client import HTTPException

    from tqdm import tqdm

    digest, left = hashlib.sha256(), size + 1
    with (
        file.open("xb") as stream,
        tqdm(total=size, unit="B", unit_scale=True, leave=False, disable=None) as bar,
    ):
        try:
            with urllib.request.urlopen(url, timeout=READ_TIMEOUT_S) as response:
                while chunk := response.read(min(_CHUNK, left)):
                    stream.write(chunk)
                    digest.update(chunk)
                    left -= len(chunk)
                    bar.update(len(chunk))
        except (OSError, HTTPException) as error:
            raise ValueError(f"{url}: {_error_text(error)}") from error
    return digest.hexdigest()


def _unreachable(url: str) -> str | None:
    """Why `url` does not answer, known within `CONNECT_TIMEOUT_S`, or None if it does."""
    import urllib.request

    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S):
                answers.put(None)
        except Exception as error:  # any error is a reason, which the main thread reports
            answers.put(_error_text(error))

    try:  # in a thread, because no timeout covers the look-up of the name
        threading.Thread(target=ask, daemon=True).start()
        return answers.get(timeout=CONNECT_TIMEOUT_S)
    except queue.Empty:
        return f"no answer within {CONNECT_TIMEOUT_S} s"
    except RuntimeError as error:  # the machine has no thread left
        return str(error)


def _error_text(error: Exception) -> str:
    if hasattr(error, "close"):  # an HTTPError is also the open response
        error.close()
    text = str(error).removeprefix("<urlopen error ").removesuffix(">")
    return text or type(error).__name__
