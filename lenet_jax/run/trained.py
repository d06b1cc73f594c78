"""A trained run as the commands that use one find it in its folder."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from lenet_jax.core.model import IMAGE_SHAPE, LeNet
from lenet_jax.files import require_utf8
from lenet_jax.run import checkpoint, folder
from lenet_jax.run.log import read_metrics


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The latest intact checkpoint of a run: its parameters, and what the run says of itself."""

    path: Path
    step: int
    params: dict[str, Any]
    config: dict[str, Any]  # as in config.json
    metrics: list[dict[str, Any]]  # one object per epoch, as in metrics.jsonl

    @property
    def normalization(self) -> dict[str, float]:
        """{"mean", "std"} of the pixels it was trained on, as a `data.Split` has them."""
        return {name: self.config["data"][name] for name in ("mean", "std")}


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
    sample = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), "float32")
    shapes = jax.eval_shape(LeNet().init, jax.random.key(0), sample)["params"]
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
