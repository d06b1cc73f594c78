"""A run's folder: `config.json`, which says for people and tools what the run is, `checkpoints/`,
whose notes decide it, and what `log` writes.

One process at a time works in it: a lock on `.lock`, which ends with the process that holds it.
"""

import contextlib
import dataclasses
import datetime
import errno
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import jax
import numpy as np

from lenet_jax import cli
from lenet_jax.core.model import LeNet
from lenet_jax.data import Dataset
from lenet_jax.data.registry import INFO
from lenet_jax.files import add_path_to_oserror, atomic_write, expand_user, require_utf8
from lenet_jax.run.log import EVENTS, METRICS
from lenet_jax.run.settings import diff_settings

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CONFIG, CHECKPOINTS, LOCK = "config.json", "checkpoints", ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what some network file systems answer
PACKAGE = Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def create(folder: str | None, name: str) -> Path:
    """Makes the run's folder, by default `runs/<name>-<time>`, and sees that it can be written to.

    Raises:
      ValueError: it cannot be made or written to, or its name is no UTF-8.
    """
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = expand_user(folder, "--workdir") if folder else Path("runs") / f"{name}-{now}"
    require_utf8(path, "--workdir")
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


def resolve_dataset_name(settings: Any) -> str | None:
    """The data set that is asked for: if none is named, that of the run that is to be continued.

    The default would not do: a download fails one day and not the next.

    Raises:
      ValueError: the run's `config.json` is damaged.
    """
    if settings.dataset or not settings.workdir or not getattr(settings, "resume", True):
        return settings.dataset
    try:
        config = read_config(expand_user(settings.workdir, "--workdir"))
    except OSError:  # `create` says what is wrong with the folder
        return None
    return config["data"].get("name") if config else None


@contextlib.contextmanager
def locked(path: Path, log: Callable[[str], None] = print) -> Iterator[None]:
    """Keeps other processes out of a run's folder; the lock of a dead process is no lock.

    Raises:
      ValueError: a living process holds it.
      OSError: it cannot be written.
    """
    with add_path_to_oserror(path / LOCK):
        file = (path / LOCK).open("a+")
    with file:
        try:
            _lock(file)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(
                f"--workdir={path}: a run is at work there (process {file.read().strip()}); "
                "wait for its end or use another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log(f"note: the file system of {path} has no locks; see that only one run is there")
        with add_path_to_oserror(path / LOCK):
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield


def _lock(file: IO[str]) -> None:
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def archive_run(path: Path) -> Path | None:
    """Moves the run in a folder to a new folder `old-<time>` therein, which it returns."""
    run = [path / name for name in (CHECKPOINTS, METRICS, EVENTS, CONFIG) if (path / name).exists()]
    if not run:
        return None
    old = path / f"old-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"
    old.mkdir()
    for part in run:
        part.rename(old / part.name)
    return old


def make_config(settings: Any, dataset: Dataset) -> dict[str, Any]:
    """What a run's results depend on, for its checkpoints' notes and `config.json`."""
    return {
        "command": type(settings).__name__.removesuffix("Settings").lower() or "train",
        "settings": dataclasses.asdict(settings),
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "training_images": len(dataset.train.labels),
            "test_images": len(dataset.test.labels),
            "classes": list(dataset.classes),
            "channels": dataset.train.images.shape[-1],
            "mean": np.asarray(dataset.train.mean).tolist(),  # a list if there are more channels
            "std": np.asarray(dataset.train.std).tolist(),
            "sha256": data_digest(dataset),
        },
        **environment(),
    }


def class_names(config: dict[str, Any]) -> tuple[str, ...]:
    """What a run's labels mean: the registry's classes if the run is of before this was kept."""
    own = config["data"]
    return tuple(own.get("classes") or INFO[own["name"]].classes)


def network(config: dict[str, Any]) -> LeNet:
    """The network of a run, as its data need it: with one channel if the run is of before."""
    return LeNet(len(class_names(config)), config["data"].get("channels", 1))


def normalization(stored: Mapping[str, Any]) -> dict[str, Any]:
    """{"mean", "std"} as a `data.Split` has them, from what holds both as JSON."""
    pair = {name: stored[name] for name in ("mean", "std")}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in pair.items()}


def environment() -> dict[str, Any]:
    """What decides the last bits of results, beside settings and data."""
    return {
        "machine": {
            "device": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "devices": jax.local_device_count(),
            "cores": cli.count_cores(),
            "python": platform.python_version(),
        },
        "versions": {"lenet_jax": _code()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def data_digest(dataset: Dataset) -> str:
    """SHA-256 of its images and labels."""
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.test):
        digest.update(np.asarray(split.images))
        digest.update(np.asarray(split.labels))
    return digest.hexdigest()


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Writes `config.json`."""
    atomic_write(path / CONFIG, json.dumps(config, indent=2) + "\n")


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
        f"{file}: is not the config.json of a run; delete it (a checkpoint holds a copy), or "
        "start again with --noresume"
    )


def require_same_run(
    path: Path, settings: Any, config: dict[str, Any], stored: dict[str, Any]
) -> None:
    """Sees that the run in `path`, of config `stored`, can be continued with `config`.

    Raises:
      ValueError: another command, other settings or other data, by name.
    """
    here, there = config["command"], stored.get("command", "")
    names = {field.name for field in dataclasses.fields(settings)}
    if not there and (unknown := sorted(stored["settings"].keys() - names)):
        there = f"another command, which has --{unknown[0]}"  # it is older than "command"
    if there not in ("", here):
        raise ValueError(
            f"--workdir={path}: what is there is of {there}, and this is {here}; use another "
            "--workdir"
        )
    remedy = "use another --workdir" + (" or --noresume" if "resume" in names else "")
    if different := diff_settings(settings, stored["settings"]):
        pairs = " and ".join(
            f"--{name} is {_value(here)} here but the run in {path} used {_value(there)}"
            for name, (here, there) in different.items()
        )
        raise ValueError(f"{pairs}; {remedy}")
    ours, theirs = config["data"], stored["data"]
    if ours["sha256"] != theirs.get("sha256"):
        raise ValueError(
            f"the images of {ours['name']} from {ours['source']} are not those that the run in "
            f"{path} used, from {theirs.get('source')}; {remedy}"
        )


def extend(path: Path, settings: Any, stored: dict[str, Any], done: int) -> dict[str, Any]:
    """The config of the run in `path`, of which `done` epochs are done, with `settings.epochs`.

    Raises:
      ValueError: its learning rate depended on the number of epochs, which cannot change.
    """
    planned = stored["settings"]["epochs"]
    if settings.epochs in (planned, *range(done + 1)):
        return stored
    if settings.schedule != "constant":
        raise ValueError(
            f"--epochs is {settings.epochs} here but the run in {path} was begun with {planned}, "
            f"and the learning rate of --schedule={settings.schedule} depends on it (that of "
            "constant does not); use another --workdir or --noresume"
        )
    return {**stored, "settings": {**stored["settings"], "epochs": settings.epochs}}


def environment_diff(config: dict[str, Any], stored: dict[str, Any]) -> str:
    """What differs, of all that decides the last bits of a run's numbers."""
    pairs = [
        (name, stored[part].get(name), config[part][name])
        for part, names in (
            ("machine", ("platform", "device", "devices", "cores")),
            ("versions", ("lenet_jax", *PACKAGES)),
        )
        for name in names
        if name in stored[part]  # `devices` was not always kept
    ]
    return ", ".join(f"{name} from {old} to {new}" for name, old, new in pairs if old != new)


@functools.cache  # the process keeps the code it has, whatever becomes of it on disk
def _code() -> str:
    """Which code this is: a short digest of the package's sources."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _value(value: Any) -> str:
    return "not set" if value is None else str(value)
