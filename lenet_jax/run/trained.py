"""A trained network, from a run's folder, from a file of parameters, or from the package."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from lenet_jax.cli import Log, check, setting
from lenet_jax.core.model import LeNet, model_for, sizes
from lenet_jax.core.step import init_params
from lenet_jax.data import DATASETS, registry
from lenet_jax.files import expand_user
from lenet_jax.interop import pytorch
from lenet_jax.run import checkpoint, folder, pretrained
from lenet_jax.run.log import read_metrics


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """The flags that name a trained network; without any it is the package's."""

    workdir: str | None = setting(
        None,
        "folder of the run, as written by lenet_jax.train (default: the package's own network, "
        "trained on MNIST)",
    )
    init_from: str | None = setting(
        None, "instead of a run: a file with parameters, as lenet_jax.train takes one"
    )
    dataset: str | None = setting(
        None, "the data set that --init_from was trained on (default: mnist)", DATASETS
    )
    mean: str | None = setting(
        None,
        "mean, in 0..1, of the pixels that the network of --init_from was trained on: a number or, "
        "comma-separated, one per channel (default: the file's, if lenet_jax.export wrote it, else "
        "the data set's)",
    )
    std: str | None = setting(None, "standard deviation of these pixels, in the same form")
    file_flags: ClassVar = ("dataset", "mean", "std")  # only --init_from takes them

    def __post_init__(self) -> None:
        check(self)
        if self.init_from is not None and self.workdir:
            raise ValueError("--init_from and --workdir name two networks; give one of them")
        for name in self.file_flags if self.init_from is None else ():
            if getattr(self, name) is not None:
                raise ValueError(f"--{name} goes with --init_from; a run has its own")
        if (self.mean is None) != (self.std is None):
            raise ValueError("--mean and --std go together")
        if self.std is not None and self.normalization is None:
            given = f"--mean={self.mean} and --std={self.std}"
            raise ValueError(f"{given}: must be finite numbers, as many of each, std above 0")

    @property
    def normalization(self) -> dict[str, Any] | None:
        """{"mean", "std"} as in a `data.Split`, or None without the flags."""
        return pytorch.as_normalization((self.mean or "").split(","), (self.std or "").split(","))


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The parameters in a run's latest intact checkpoint, with the run's config and metrics.

    Or the package's parameters; or those in a file from elsewhere, with what the file and the flags
    tell about them.
    """

    path: Path
    step: int | None  # None for a file from elsewhere
    params: dict[str, Any]
    config: folder.Config
    metrics: list[dict[str, Any]]  # one object per epoch, as in metrics.jsonl

    @property
    def normalization(self) -> dict[str, Any]:
        """{"mean", "std"} of the training pixels, as in a `data.Split`."""
        stored = self.config["data"]
        return pytorch.as_normalization(stored["mean"], stored["std"])

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its labels."""
        return tuple(self.config["data"]["classes"])

    def __str__(self) -> str:
        return str(self.path) if self.step is None else f"step {self.step} of {self.path}"


def load_network(settings: NetworkSettings, log: Log = print) -> TrainedRun:
    """The network that the flags name: `load`, the file --init_from, or the package's.

    Raises:
      ValueError: it cannot be read; the message names --workdir or --init_from.
    """
    if settings.workdir is not None:
        return load(settings.workdir, log)
    if settings.init_from is None:
        return _load_pretrained(log)
    params, digest = pytorch.read_params(settings.init_from, log)
    config = {
        "settings": {"data_dir": None, "loss": "cross_entropy"},
        "data": _file_data(settings, model_for(params), log),
        "init_sha256": digest,
    }
    return TrainedRun(Path(settings.init_from), None, params, config, [])


def _file_data(settings: NetworkSettings, model: LeNet, log: Log) -> dict[str, Any]:
    """The "data" of a run's config.json, for a file with the parameters of `model`."""
    file, name = settings.init_from, settings.dataset or "mnist"
    known = {fact: getattr(registry.INFO[name], fact) for fact in pytorch.FACTS}
    has = f"--init_from={file}: its network has {sizes(model)}"
    if (channels := np.size(known["mean"])) != model.in_channels:
        remedy = "name the data set that it was trained on with --dataset"
        raise ValueError(f"{has}, and images of {name} have {channels}; {remedy}")
    found = pytorch.read_metadata(file) | (settings.normalization or {})
    if np.size(found.get("mean", 0)) not in (1, model.in_channels):
        misfits = f"mean {found['mean']} and std {found['std']} do not fit"
        raise ValueError(f"{has}, which {misfits}; give others with --mean and --std")
    if "mean" not in found:
        log(
            f"note: {file} does not say how its pixels were normalised, so {name}'s mean "
            f"{known['mean']} and std {known['std']} are used; give others with --mean and --std"
        )
    facts = known | found
    if len(facts["classes"]) != model.num_classes:
        facts["classes"] = tuple(map(str, range(model.num_classes)))
        lacks = f"does not name the {model.num_classes} classes of its network"
        log(f"note: {file} {lacks}: their numbers are used as names")
    return {"name": name, "channels": model.in_channels, **facts}


def _load_pretrained(log: Log) -> TrainedRun:
    name = "mnist"
    params, note = pretrained.read(name)
    last = note["metrics"][-1]
    log(
        f"note: this is the package's own network, trained on {name}, test accuracy "
        f"{last['test_accuracy']:.2%}; --workdir or --init_from names another"
    )
    file = pretrained.file_of(name)
    return TrainedRun(file, last["step"], params, note["config"], note["metrics"])


def load(path: str | Path, log: Log = print) -> TrainedRun:
    """Reads the run in the folder `path`; `log` gets a line for each damaged checkpoint.

    Raises:
      ValueError: there is no run, or all its checkpoints are damaged, or it cannot be read; the
        message names --workdir or the file.
    """
    run_path = expand_user(path, "--workdir")
    try:
        if not run_path.is_dir():
            raise ValueError(f"--workdir={path}: there is no such folder")
        found = checkpoint.latest_valid(run_path / folder.CHECKPOINTS, _params_like, log)
        if found is None:
            raise ValueError(f"--workdir={path}: no checkpoint there; lenet_jax.train writes them")
        metrics, config = read_metrics(run_path), found.note["config"]
    except OSError as error:
        reason = f"{error.filename or path}: {error.strerror or error}"
        raise ValueError(f"--workdir={path}: cannot be read ({reason})") from error
    (params,) = found.tree.values()
    return TrainedRun(run_path, found.step, params, config, metrics)


def _params_like(note: dict[str, Any]) -> dict[str, Any]:
    """The part of a checkpoint with the parameters to use: the average if there is one."""
    config = note["config"]
    part = "ema" if config["settings"].get("ema") else "params"
    return {part: jax.eval_shape(lambda: init_params(folder.network(config), jax.random.key(0)))}
