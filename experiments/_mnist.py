"""MNIST for experiments: from the folder LENET_JAX_TEST_DATA, else from where `train` gets it."""

import os
from pathlib import Path

import jax

from lenet_jax import data
from lenet_jax.core.split import take


def load() -> data.Dataset:
    """Loads MNIST, or ends the script with a one-line error."""
    folder = os.environ.get("LENET_JAX_TEST_DATA") or None
    if folder and not Path(folder).is_dir():
        raise SystemExit("LENET_JAX_TEST_DATA does not name a folder with MNIST's IDX files")
    try:
        return data.load("mnist", folder)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def hold_out(train: data.Split, count: int) -> tuple[data.Split, data.Split]:
    """The first `count` examples, to measure on, and the others, to train on; on the device."""
    held_out, rest = (take(train, part) for part in (slice(count), slice(count, None)))
    return jax.device_put((held_out, rest))
