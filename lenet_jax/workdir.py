"""A run's folder: `config.json` (what was run) and `metrics.jsonl` (one object an epoch)."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import jax

from lenet_jax.data import Dataset
from lenet_jax.settings import Settings

CONFIG, METRICS = "config.json", "metrics.jsonl"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def create(settings: Settings) -> Path:
    """Makes the folder of a new run, and sees that it can be written to.

    Raises:
      ValueError: it cannot be made or written to, or already holds a run.
    """
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    default = Path("runs") / f"{settings.dataset}-{settings.optimizer}-{now}"
    path = Path(settings.workdir).expanduser() if settings.workdir else default
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--workdir={path}: cannot be written to ({reason})") from error
    if (path / CONFIG).exists():
        raise ValueError(f"--workdir={path}: already holds a run; choose another folder")
    return path


def write_config(path: Path, settings: Settings, dataset: Dataset) -> None:
    """Writes what decides the run's numbers, in one piece or not at all."""
    config = {
        "settings": dataclasses.asdict(settings),
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "training_images": len(dataset.train_labels),
            "test_images": len(dataset.test_labels),
            "mean": dataset.mean,
            "std": dataset.std,
        },
        "machine": {
            "device": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "cores": int(
                os.environ.get("NPROC") or os.cpu_count() or 1
            ),  # XLA:CPU's bits hang on it
            "python": platform.python_version(),
        },
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    temporary = path / (CONFIG + ".tmp")
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    temporary.replace(path / CONFIG)


def append_metrics(path: Path, record: dict[str, Any]) -> None:
    """Adds one epoch's line to `metrics.jsonl`."""
    with (path / METRICS).open("a") as file:
        file.write(json.dumps(record) + "\n")
