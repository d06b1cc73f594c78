"""Strict by default: warnings are errors (pyproject.toml), silent rank promotion raises."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with MNIST's four IDX files, from LENET_JAX_TEST_DATA."""
    folder = os.environ.get("LENET_JAX_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LENET_JAX_TEST_DATA does not name a folder with MNIST's IDX files")
    return Path(folder)
