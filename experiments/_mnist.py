"""MNIST for experiments: from the folder LENET_JAX_TEST_DATA, else from where `train` gets it."""

import os

import _worker
import jax

from lenet_jax import data
from lenet_jax.core.split import take


def load() -> data.Dataset:
    """Loads MNIST, or ends the script with a one-line error."""
    folder = _worker.mnist_folder() if os.environ.get("LENET_JAX_TEST_DATA") else None
    try:
        return data.load("mnist", folder)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def hold_out(train: data.Split, count: int) -> tuple[data.Split, data.Split]:
    """The first `count` examples, to measure on, and the others, to train on; on the device."""
    held_out, rest = (take(train, part) for part in (slice(count), slice(count, None)))
    return jax.device_put((held_out, rest))
