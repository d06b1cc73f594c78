"""A run's folder: `config.json`, `metrics.jsonl` (one object an epoch), `checkpoints/`, and
`tensorboard/`, which shows in TensorBoard what is in `metrics.jsonl`.

One process at a time works in it: a lock on `.lock`, which ends with the process that holds it.
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from lenet_jax import cli
from lenet_jax.data import Dataset
from lenet_jax.run import log as events
from lenet_jax.run.settings import Settings, disagreements

CONFIG, METRICS, CHECKPOINTS, LOCK = "config.json", "metrics.jsonl", "checkpoints", ".lock"
EVENTS = "tensorboard"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what some network file systems answer
PACKAGE = Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def create(folder: str | None, name: str) -> Path:
    """Makes the run's folder, by default `runs/<name>-<time>`, and sees that it can be written to.

    Raises:
      ValueError: it cannot be made or written to.
    """
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = expand(folder) if folder else Path("runs") / f"{name}-{now}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            path.mkdir(exist_ok=True)
        else:
            path = _make_new(path)
        with tempfile.TemporaryFile(dir=path):  # of no name that another process has, too
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--workdir={path}: cannot be written to ({reason})") from error
    return path


def _make_new(path: Path) -> Path:
    """Makes the folder, with a number if another run has begun in the same second."""
    new, number = path, itertools.count(2)
    while True:
        try:
            new.mkdir()
            return new
        except FileExistsError:
            new = path.with_name(f"{path.name}-{next(number)}")


def expand(folder: str, flag: str = "--workdir") -> Path:
    """A path to write to, as a flag gives it: a shell leaves the ~ of --workdir=~/run as it is.

    Raises:
      ValueError: it begins with the home folder of nobody.
    """
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{flag}={folder}: there is no such home folder") from error


def chosen_data(settings: Any) -> str | None:
    """The data set that is asked for: if none is named, that of the run that is to go on.

    Chosen anew it might be another one, as a download fails one day and not the next.

    Raises:
      ValueError: the run's description is damaged.
    """
    if settings.dataset or not settings.workdir or not getattr(settings, "resume", True):
        return settings.dataset
    try:
        config = read_config(expand(settings.workdir))
    except OSError:  # `create` says what is wrong with the folder
        return None
    return config["data"].get("name") if config else None


@contextlib.contextmanager
def locked(path: Path, report: Callable[[str], None] = print) -> Iterator[None]:
    """Keeps other processes out of a run's folder; the lock of a dead process is no lock.

    Raises:
      ValueError: a living process holds it.
      OSError: it cannot be written.
    """
    with events.naming(path / LOCK):
        file = (path / LOCK).open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(
                f"--workdir={path}: a run is at work there (process {file.read().strip()}); "
                "wait for its end or use another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            report(f"note: the file system of {path} has no locks; see that only one run is there")
        with events.naming(path / LOCK):
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield


def set_aside(path: Path) -> Path | None:
    """Moves the run that is in a folder into a folder of its own therein, and says which."""
    run = [path / name for name in (CHECKPOINTS, METRICS, EVENTS, CONFIG) if (path / name).exists()]
    if not run:
        return None
    old = path / f"old-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"
    old.mkdir()
    for part in run:
        part.rename(old / part.name)
    return old


def describe(settings: Any, dataset: Dataset) -> dict[str, Any]:
    """What decides a run's numbers, as it stands in `config.json`."""
    return {
        "command": type(settings).__name__.removesuffix("Settings").lower() or "train",
        "settings": dataclasses.asdict(settings),
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "training_images": len(dataset.train_labels),
            "test_images": len(dataset.test_labels),
            "mean": dataset.mean,
            "std": dataset.std,
            "sha256": data_digest(dataset),
        },
        "machine": {
            "device": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "cores": cli.count_cores(),
            "python": platform.python_version(),
        },
        "versions": {"lenet_jax": _code()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def data_digest(dataset: Dataset) -> str:
    """SHA-256 of its images and labels."""
    arrays = (
        *(dataset.train_images, dataset.train_labels),
        *(dataset.test_images, dataset.test_labels),
    )
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array)
    return digest.hexdigest()


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Writes `config.json`, in one piece or not at all."""
    replace(path / CONFIG, json.dumps(config, indent=2) + "\n")


def read_config(path: Path) -> dict[str, Any] | None:
    """What `config.json` says, or None if there is none.

    Raises:
      ValueError: it is damaged.
    """
    file = path / CONFIG
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        config = error
    match config:
        case {"settings": dict(), "data": dict(), "machine": dict(), "versions": dict()}:
            return config
    raise ValueError(
        f"{file}: is not a run's description; delete it (a checkpoint holds a copy), or start "
        "again with --noresume"
    )


def require_same_run(path: Path, settings: Any, now: dict[str, Any], then: dict[str, Any]) -> None:
    """Sees that the run in `path`, which began as `then`, can go on as `now`.

    Raises:
      ValueError: another command, other settings or other data, by name.
    """
    here, there = now["command"], then.get("command", "")
    names = {field.name for field in dataclasses.fields(settings)}
    if not there and (unknown := sorted(then["settings"].keys() - names)):
        there = f"another command, which has --{unknown[0]}"  # it is older than "command"
    if there not in ("", here):
        raise ValueError(
            f"--workdir={path}: what is there is of {there}, and this is {here}; use another "
            "--workdir"
        )
    remedy = "use another --workdir" + (" or --noresume" if "resume" in names else "")
    different = disagreements(settings, then["settings"])
    if different:
        pairs = " and ".join(
            f"--{name} is {_value(here)} here but the run in {path} used {_value(there)}"
            for name, (here, there) in different.items()
        )
        raise ValueError(f"{pairs}; {remedy}")
    if now["data"]["sha256"] != then["data"].get("sha256"):
        raise ValueError(
            f"the images of {now['data']['name']} from {now['data']['source']} are not those that "
            f"the run in {path} used, from {then['data'].get('source')}; {remedy}"
        )


def extend(path: Path, settings: Settings, then: dict[str, Any], done: int) -> dict[str, Any]:
    """The description of the run in `path`, of which `done` epochs are done, for `settings.epochs`.

    Raises:
      ValueError: it cannot have another number of them, as its learning rate has depended on it.
    """
    planned = then["settings"]["epochs"]
    if settings.epochs in (planned, *range(done + 1)):
        return then
    if settings.schedule != "constant":
        raise ValueError(
            f"--epochs is {settings.epochs} here but the run in {path} was begun with {planned}, "
            f"and the learning rate of --schedule={settings.schedule} depends on it (that of "
            "constant does not); use another --workdir or --noresume"
        )
    return {**then, "settings": {**then["settings"], "epochs": settings.epochs}}


def changes(now: dict[str, Any], then: dict[str, Any]) -> str:
    """What has changed, since a run began, that changes the last bits of its numbers."""
    pairs = [
        (name, then[part].get(name), now[part][name])
        for part, names in (
            ("machine", ("platform", "device", "cores")),
            ("versions", ("lenet_jax", *PACKAGES)),
        )
        for name in names
    ]
    return ", ".join(f"{name} from {old} to {new}" for name, old, new in pairs if old != new)


def append_metrics(path: Path, record: dict[str, Any]) -> None:
    """Adds an epoch to `metrics.jsonl`, on disk when this returns, and to the event files."""
    file = path / METRICS
    with events.naming(file), file.open("a") as stream:
        stream.write(json.dumps(record) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    events.append(path / EVENTS, record)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The epochs in `metrics.jsonl`, in order; what is not a whole line of it is left out."""
    try:
        lines = (path / METRICS).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    records = {}
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):  # a line that a kill has torn
            match json.loads(line):
                case {"epoch": int(epoch)} as record:
                    records[epoch] = record
    return [records[epoch] for epoch in sorted(records)]


def mend_metrics(path: Path, epochs: int) -> list[dict[str, Any]]:
    """Leaves the first `epochs` epochs in `metrics.jsonl`: the others are about to be run again.

    TensorBoard's event files are written anew from them, so they never have an epoch twice.
    """
    records = [record for record in read_metrics(path) if 0 < record["epoch"] <= epochs]
    text = "".join(json.dumps(record) + "\n" for record in records)
    if (path / METRICS).exists() and (path / METRICS).read_bytes() != text.encode():
        replace(path / METRICS, text)
    events.begin(path / EVENTS, records)
    return records


def _code() -> str:
    """Which code this is: a short digest of the package's sources."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def replace(file: Path, text: str) -> None:
    """Writes a file in one piece or not at all."""
    temporary = file.with_name(file.name + ".tmp")
    try:
        with events.naming(file):
            with temporary.open("w") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
    finally:
        with contextlib.suppress(OSError):  # it is gone if all went well
            temporary.unlink()


def _value(value: Any) -> str:
    return "not set" if value is None else str(value)
