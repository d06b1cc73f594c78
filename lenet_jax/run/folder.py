"""A run's folder: `config.json`, which tells people and tools what the run is, `checkpoints/`,
whose notes decide what it is, and the files of `log`.

One process at a time works in it: it holds a lock on `.lock`, which ends with the process.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

import lenet_jax
from lenet_jax import cli
from lenet_jax.core.model import LeNet
from lenet_jax.data import DATASETS, Dataset
from lenet_jax.data.registry import INFO
from lenet_jax.files import add_path_to_oserror, atomic_write, expand_user
from lenet_jax.run.log import EVENTS, METRICS
from lenet_jax.run.settings import TrainingSettings, diff_settings

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

S = TypeVar("S", bound=TrainingSettings)
Config = dict[str, Any]  # of a run, as in its config.json
CONFIG, CHECKPOINTS, LOCK = "config.json", "checkpoints", ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # the errors of some network file systems
PACKAGE = Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# JAX's settings that change random numbers or rounding; the environment can set each of them.
JAX_SETTINGS = (
    *("default_prng_impl", "threefry_partitionable", "random_seed_offset", "enable_x64"),
    *("default_matmul_precision", "numpy_dtype_promotion", "disable_jit"),
)


def create(folder: str | None, name: str) -> Path:
    """Makes the run's folder, by default `runs/<name>-<time>`, and tries to write to it.

    Raises:
      ValueError: it cannot be made or written to.
    """
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = expand_user(folder, "--workdir") if folder else Path("runs") / f"{name}-{now}"
    try:
        if folder:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path = _make_new(path)
        with tempfile.TemporaryFile(dir=path):  # unnamed, so it cannot collide
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--workdir={path}: cannot be written to ({reason})") from error
    return path


def _make_new(path: Path) -> Path:
    for number in itertools.count(1):  # another run may have started in the same second
        new = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            new.mkdir(parents=True)
            return new


def adopt_stored(settings: S) -> S:
    """Fills in data set, folder and epochs from the run to be resumed, where the flags name none.

    A resumed run must not choose again: a download may fail one day and work the next. Settings
    that differ from those in `config.json` are refused here, before the images are read; the notes
    of checkpoints are compared later, in `loop.restore_or_init`.

    Raises:
      ValueError: the run has other settings, or its `config.json` is damaged.
    """
    if not settings.workdir or not getattr(settings, "resume", True):
        return settings
    path = expand_user(settings.workdir, "--workdir")
    try:
        stored = read_config(path)
    except OSError:  # `create` reports what is wrong with the folder
        return settings
    except ValueError:
        if settings.dataset:  # what the run is, its checkpoints decide
            return settings
        raise
    if not stored or (own := stored["data"].get("name")) not in DATASETS:
        return settings
    name = settings.dataset or own
    data_dir = settings.data_dir
    match stored["settings"].get("data_dir"):
        case str(there) if data_dir is None and name == own and Path(there).is_absolute():
            data_dir = there  # a sweep of version 0.2 has it as it was given
    settings = dataclasses.replace(
        settings,
        dataset=name,
        data_dir=data_dir,
        epochs=settings.epochs or INFO[name].default_epochs,
    )
    require_same_settings(path, settings, stored)
    return settings


@contextlib.contextmanager
def locked(path: Path, log: cli.Log = print) -> Iterator[None]:
    """Keeps other processes out of a run's folder for the duration of a block.

    Raises:
      ValueError: another process holds the lock.
      OSError: the lock cannot be written.
    """
    with add_path_to_oserror(path / LOCK):
        file = (path / LOCK).open("a+b", buffering=0)  # closing must not try to write again
    with file:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            at_work = f"a run is at work there (process {file.read().decode().strip()})"
            remedy = "wait for its end or use another --workdir"
            raise ValueError(f"--workdir={path}: {at_work}; {remedy}") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log(f"note: the file system of {path} has no locks; start only one run there")
        with add_path_to_oserror(path / LOCK):
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
        yield


def archive_run(path: Path) -> Path | None:
    """Moves the run of `train` in a folder to a new folder `old-<time>` there, and returns that.

    Raises:
      ValueError: the folder holds a sweep, or a `config.json` that is not of a run.
    """
    if stored := read_config(path):
        _require_command(path, "train", stored)
    run = [path / name for name in (CHECKPOINTS, METRICS, EVENTS, CONFIG) if (path / name).exists()]
    if not run:
        return None
    old = path / f"old-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"
    old.mkdir()
    for part in run:
        part.rename(old / part.name)
    return old


def make_config(settings: Any, dataset: Dataset) -> Config:
    """Everything that a run's results depend on, for its checkpoints' notes and `config.json`."""
    return {
        "command": _command(settings),
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


def network(config: Config) -> LeNet:
    return LeNet(len(config["data"]["classes"]), config["data"]["channels"])


def environment() -> dict[str, Any]:
    """What the last bits of results depend on, besides settings and data."""
    return {
        "machine": {
            "device": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "devices": jax.local_device_count(),
            "cores": cli.count_cores(),
            "python": platform.python_version(),
        },
        "jax_settings": {name: getattr(jax.config, f"jax_{name}") for name in JAX_SETTINGS}
        | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")},
        "versions": {"lenet_jax": f"{lenet_jax.__version__}+{_code()}"}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def data_digest(dataset: Dataset) -> str:
    """SHA-256 of its images and labels."""
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.test):
        digest.update(np.asarray(split.images))
        digest.update(np.asarray(split.labels))
    return digest.hexdigest()


def write_config(path: Path, config: Config) -> None:
    atomic_write(path / CONFIG, json.dumps(config, indent=2) + "\n")


def read_config(path: Path) -> Config | None:
    """The content of `config.json`, or None if the file is missing.

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
        case {"command": str(), "settings": dict(), "data": dict(), "versions": dict()}:
            return config
    raise ValueError(
        f"{file}: is not the config.json of a run of lenet_jax; use another --workdir (or move the "
        "file away: a run's checkpoints hold a copy)"
    )


def require_same_run(path: Path, settings: Any, config: Config, stored: Config) -> None:
    """Raises ValueError, with names, unless command, settings and data are as in `stored`."""
    require_same_settings(path, settings, stored)
    ours, theirs = config["data"], stored["data"]
    if ours["sha256"] != theirs["sha256"]:
        used = f"those that the run in {path} used, from {theirs['source']}"
        images = f"the images of {ours['name']} from {ours['source']}"
        raise ValueError(f"{images} differ from {used}; {_remedy(settings)}")


def require_same_settings(path: Path, settings: Any, stored: Config) -> None:
    """Raises ValueError, with names, unless command and settings are as in `stored`."""
    _require_command(path, _command(settings), stored)
    if different := diff_settings(settings, stored["settings"]):
        show = lambda value: "not set" if value is None else value
        pairs = " and ".join(
            f"--{name} is {show(here)} here but the run in {path} used {show(there)}"
            for name, (here, there) in different.items()
        )
        raise ValueError(f"{pairs}; {_remedy(settings)}")


def _require_command(path: Path, command: str, stored: Config) -> None:
    if stored["command"] != command:
        runs = f"holds a run of {stored['command']}, and this is {command}"
        raise ValueError(f"--workdir={path}: {runs}; use another")


def _command(settings: Any) -> str:
    return type(settings).__name__.removesuffix("Settings").lower() or "train"


def _remedy(settings: Any) -> str:
    return "use another --workdir" + (" or --noresume" if hasattr(settings, "resume") else "")


def extend(path: Path, settings: Any, stored: Config, done: int) -> Config:
    """The config of the run in `path`, after `done` epochs, with the number in `settings.epochs`.

    Raises:
      ValueError: the number differs, and the learning rate of the run depends on it.
    """
    planned = stored["settings"]["epochs"]
    if settings.epochs in (planned, *range(done + 1)):
        return stored
    if settings.schedule != "constant":
        raise ValueError(
            f"--epochs is {settings.epochs} here but the run in {path} was started with {planned}, "
            f"and the learning rate of --schedule={settings.schedule} depends on it (with constant "
            "it would not); use another --workdir or --noresume"
        )
    return {**stored, "settings": {**stored["settings"], "epochs": settings.epochs}}


def environment_diff(config: Config, stored: Config) -> str:
    """The differences of two environments that may change the last bits of a run's numbers."""
    triples = [
        (name, stored[part][name], now)
        for part in ("machine", "jax_settings", "versions")
        for name, now in config[part].items()
        # A sweep of version 0.2 has no jax_settings; Python's version changes no bits.
        if name in stored.get(part, {}) and name != "python"
    ]
    return ", ".join(f"{name} from {old} to {new}" for name, old, new in triples if old != new)


@functools.cache  # a process keeps the code that it has loaded, even if the files change
def _code() -> str:
    """A short digest of the package's sources."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
