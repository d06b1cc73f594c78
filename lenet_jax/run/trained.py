"""A trained network as commands find it: in a run's folder, or in a file of parameters."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lenet_jax.cli import check_choices, setting
from lenet_jax.core.model import LeNet, model_for, sizes
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
    mean: str | None = setting(
        None,
        "of --init_from: what its pixels in 0..1 were normalised with, a number or, "
        "comma-separated, one per channel (default: what the file says, if lenet_jax.export wrote "
        "it, else the data set's)",
    )
    std: str | None = setting(None, "of --init_from: likewise")

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
        if self.std is not None and self.normalization is None:
            raise ValueError(
                f"--mean={self.mean} and --std={self.std}: must be finite numbers, as many of "
                "each, std above 0"
            )

    @property
    def normalization(self) -> dict[str, Any] | None:
        """{"mean", "std"} as a `data.Split` has them, or None if they are not given."""
        if self.mean is None or self.std is None:
            return None
        return pytorch.as_normalization(self.mean.split(","), self.std.split(","))


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
    def normalization(self) -> dict[str, Any]:
        """{"mean", "std"} of the pixels it was trained on, as a `data.Split` has them."""
        return folder.normalization(self.config["data"])

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its labels."""
        return folder.class_names(self.config)

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
    config = {
        "settings": {"data_dir": None, "loss": "cross_entropy"},
        "data": _file_data(settings, model_for(params), log),
        "init_sha256": digest,
    }
    return TrainedRun(Path(settings.init_from), None, params, config, [])


def _file_data(
    settings: NetworkSettings, model: LeNet, log: Callable[[str], None]
) -> dict[str, Any]:
    """Of a file with the parameters of `model`, what a run's config.json says of its data."""
    file, name = settings.init_from, settings.dataset or "mnist"
    known = {fact: getattr(registry.INFO[name], fact) for fact in pytorch.FACTS}
    if np.size(known["mean"]) != model.in_channels:
        raise ValueError(
            f"--init_from={file}: is of {sizes(model)}, and images of {name} have "
            f"{np.size(known['mean'])}; --dataset says what it was trained on"
        )
    found = pytorch.read_metadata(file) | (settings.normalization or {})
    if np.size(found.get("mean", 0)) not in (1, model.in_channels):
        raise ValueError(
            f"--init_from={file}: is of {sizes(model)}, for which mean "
            f"{found['mean']} and std {found['std']} are too many; --mean and --std say otherwise"
        )
    if "mean" not in found:
        log(
            f"note: {file} does not say how its pixels were normalised: taken to be {name}'s way, "
            f"mean {known['mean']} and std {known['std']}; --mean and --std say otherwise"
        )
    facts = known | found
    if len(facts["classes"]) != model.num_classes:
        facts["classes"] = tuple(map(str, range(model.num_classes)))
        log(
            f"note: {file} does not say what its {model.num_classes} classes are, and {name} has "
            f"{len(known['classes'])}: they are called by their numbers"
        )
    return {"name": name, "channels": model.in_channels, **facts}


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

    def like(note: dict[str, Any]) -> dict[str, Any]:
        model = folder.network(note["config"])
        return {"params": jax.eval_shape(lambda: init_params(model, jax.random.key(0)))}

    found = checkpoint.latest_valid(run_path / folder.CHECKPOINTS, like, log)
    if found is None:
        raise ValueError(f"--workdir={path}: no checkpoint there; lenet_jax.train writes them")
    return TrainedRun(
        run_path,
        found.step,
        found.tree["params"],
        found.note["config"],
        read_metrics(run_path),
    )
