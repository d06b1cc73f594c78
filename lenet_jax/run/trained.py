"""A trained network as commands find it: in a run's folder, or in a file of parameters."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from lenet_jax.cli import check_choices, setting
from lenet_jax.core.model import LeNet
from lenet_jax.core.step import init_params
from lenet_jax.data import DATASETS, registry
from lenet_jax.files import require_utf8
from lenet_jax.interop import pytorch
from lenet_jax.run import checkpoint, folder
from lenet_jax.run.log import read_metrics


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """The flags by which a command is told its network.

    Raises:
      ValueError: they contradict one another; the message starts with the flag.
    """

    workdir: str | None = setting(None, "folder of the run, as written by lenet_jax.train")
    init_from: str | None = setting(
        None, "instead of a run: a file with parameters, as lenet_jax.train takes one"
    )
    dataset: str | None = setting(
        None, "of --init_from: the data set that it was trained on (default: mnist)", DATASETS
    )
    mean: float | None = setting(
        None,
        "of --init_from: what its pixels in 0..1 were normalised with (default: what the file "
        "says, if lenet_jax.export wrote it, else the data set's)",
    )
    std: float | None = setting(None, "of --init_from: likewise")

    def __post_init__(self) -> None:
        self._check(of_a_file=("dataset", "mean", "std"))

    def _check(self, of_a_file: Sequence[str]) -> None:
        """Raises ValueError if one of the flags `of_a_file` is given with a run."""
        check_choices(self)
        if self.init_from is not None and self.workdir is not None:
            raise ValueError("--init_from and --workdir are two networks; give one of them")
        for name in of_a_file if self.init_from is None else ():
            if getattr(self, name) is not None:
                raise ValueError(f"--{name} goes with --init_from; a run has its own")
        if (self.mean is None) != (self.std is None):
            raise ValueError("--mean and --std go together")
        if self.std is not None and not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(
                f"--mean={self.mean} and --std={self.std}: must be finite, std above 0"
            )


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The latest intact checkpoint of a run: its parameters, and what the run says of itself.

    Or a file with the parameters of a network that was trained elsewhere, which says little.
    """

    path: Path
    step: int | None  # None for a file
    params: dict[str, Any]
    config: dict[str, Any]  # as in config.json
    metrics: list[dict[str, Any]]  # one object per epoch, as in metrics.jsonl

    @property
    def normalization(self) -> dict[str, float]:
        """{"mean", "std"} of the pixels it was trained on, as a `data.Split` has them."""
        return {name: self.config["data"][name] for name in ("mean", "std")}

    def __str__(self) -> str:
        return str(self.path) if self.step is None else f"step {self.step} of {self.path}"


def load_network(settings: NetworkSettings, log: Callable[[str], None] = print) -> TrainedRun:
    """The network that the flags name: `load`, or the parameters in the file --init_from.

    Raises:
      ValueError: it cannot be read; the message names --workdir or --init_from.
    """
    if settings.init_from is None:
        return load(settings.workdir, log)
    params, digest = pytorch.read_params(settings.init_from, log)
    name = settings.dataset or "mnist"
    if settings.std is not None:
        normalization = {"mean": settings.mean, "std": settings.std}
    elif (normalization := pytorch.read_normalization(settings.init_from)) is None:
        normalization = {key: getattr(registry.INFO[name], key) for key in ("mean", "std")}
        log(
            f"note: {settings.init_from} does not say how its pixels were normalised: taken to be "
            f"{name}'s way, mean {normalization['mean']} and std {normalization['std']}; --mean "
            "and --std say otherwise"
        )
    config = {
        "settings": {"data_dir": None, "loss": "cross_entropy"},
        "data": {"name": name, **normalization},
        "init_sha256": digest,
    }
    return TrainedRun(Path(settings.init_from), None, params, config, [])


def load(path: str | Path | None, log: Callable[[str], None] = print) -> TrainedRun:
    """Reads the run in the folder `path`; `log` gets a line for each damaged checkpoint.

    Raises:
      ValueError: there is no run, or no checkpoint is intact, or the folder's name is no UTF-8;
        the message names --workdir.
    """
    if path is None:
        raise ValueError("--workdir is missing: the folder of a run of lenet_jax.train")
    # Not `expand_user`: to read, the ~ of nobody is a folder that is not there.
    run_path = Path(os.path.expanduser(path))
    require_utf8(run_path, "--workdir")
    try:
        return _read(run_path, path, log)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--workdir={path}: cannot be read ({reason})") from error


def _read(run_path: Path, path: str | Path, log: Callable[[str], None]) -> TrainedRun:
    """As `load`; `path` is what the folder is called in messages."""
    if not run_path.is_dir():
        raise ValueError(f"--workdir={path}: there is no such folder")
    shapes = jax.eval_shape(lambda: init_params(LeNet(), jax.random.key(0)))
    found = checkpoint.latest_valid(run_path / folder.CHECKPOINTS, {"params": shapes}, log)
    if found is None:
        raise ValueError(f"--workdir={path}: no checkpoint there; lenet_jax.train writes them")
    return TrainedRun(
        run_path,
        found.step,
        found.tree["params"],
        found.note["config"],
        read_metrics(run_path),
    )
