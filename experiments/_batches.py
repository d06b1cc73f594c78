"""The batches of random pixels that throughput.py gives to PyTorch and to JAX alike."""

import numpy as np

NUM_BATCHES = 4  # different ones, so that no cache sees the same pixels every step
NUM_MEMBERS = 8  # networks that train together


def make_batches(batch_size: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((NUM_BATCHES, batch_size, 32, 32, channels)).astype(np.float32)
    return images, rng.integers(0, 10, (NUM_BATCHES, batch_size)).astype(np.int32)
