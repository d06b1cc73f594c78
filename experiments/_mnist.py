"""MNIST for experiments: from the folder that LENET_JAX_TEST_DATA names, else as `train` has it."""

import os
from pathlib import Path

from lenet_jax import data


def load() -> data.Dataset:
    """Ends the script with a line if MNIST cannot be had."""
    folder = os.environ.get("LENET_JAX_TEST_DATA") or None
    if folder and not Path(folder).is_dir():
        raise SystemExit("LENET_JAX_TEST_DATA does not name a folder with MNIST's IDX files")
    try:
        return data.load("mnist", folder)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
