"""A trained run as the commands that use one find it in its folder."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from lenet_jax.core.model import IMAGE_SHAPE, LeNet
from lenet_jax.run import checkpoint
from lenet_jax.run import folder as workdir


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The newest whole checkpoint of a run: its parameters, and what the run says of itself."""

    path: Path
    step: int
    params: dict[str, Any]
    config: dict[str, Any]  # as in config.json
    metrics: list[dict[str, Any]]  # one object an epoch, as in metrics.jsonl

    @property
    def scaling(self) -> dict[str, float]:
        """{"mean", "std"} of the pixels it was trained on, as `epoch.normalize` takes them."""
        return {name: self.config["data"][name] for name in ("mean", "std")}


def load(path: str | Path | None, report: Callable[[str], None] = print) -> TrainedRun:
    """Reads the run in the folder `path`; `report` gets a line for each damaged checkpoint.

    Raises:
      ValueError: there is no run, or none of its checkpoints is whole; the message names --workdir.
    """
    if path is None:
        raise ValueError("--workdir is missing: the folder of a run that train has made")
    folder = Path(os.path.expanduser(path))  # pathlib's raises for a ~ of nobody
    try:
        return _read(folder, path, report)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--workdir={path}: cannot be read ({reason})") from error


def _read(folder: Path, path: str | Path, report: Callable[[str], None]) -> TrainedRun:
    """As `load`; `path` is what the folder is called in messages."""
    if not folder.is_dir():
        raise ValueError(f"--workdir={path}: there is no such folder")
    sample = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), "float32")
    shapes = jax.eval_shape(LeNet().init, jax.random.key(0), sample)["params"]
    found = checkpoint.newest(folder / workdir.CHECKPOINTS, {"params": shapes}, report)
    if found is None:
        raise ValueError(f"--workdir={path}: no checkpoint there; lenet_jax.train writes them")
    return TrainedRun(
        folder,
        found.step,
        found.tree["params"],
        found.note["config"],
        workdir.read_metrics(folder),
    )
