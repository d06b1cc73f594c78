"""Two processes, joined by `jax.distributed` over gloo, against this one with its two devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from lenet_jax.core import ops, population
from lenet_jax.core.epoch import train_epoch
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import make_optimizer
from lenet_jax.core.sharding import make_batch_mesh, make_member_mesh, replicate, unreplicate
from lenet_jax.core.split import Split
from lenet_jax.core.step import create_train_state

ROOT = Path(__file__).parents[2]
DEVICES = (2, 1)  # of the two processes: of the first, one is left over
PLAIN = LeNet(conv_relu_pool=ops.conv_relu_pool_plain)  # compiles faster


class OneLayer(nn.Module):  # faster still
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(10)(images.reshape(len(images), -1))


def random_split() -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 32, 32, 1)).astype(np.uint8)
    return Split(images, rng.integers(0, 10, 200).astype(np.int32), mean=0.5, std=0.3)


def train_shared() -> list[np.ndarray]:
    """An epoch whose batches two devices share, of whichever processes: all that comes of it."""
    mesh = make_batch_mesh(64)
    state = create_train_state(jax.random.key(0), make_optimizer("adam"), PLAIN)
    state, split = replicate(mesh, (state, random_split()))
    state, metrics = train_epoch(state, split, jax.random.key(1), batch_size=64, mesh=mesh)
    return jax.tree.leaves(jax.tree.map(np.asarray, unreplicate((state, metrics))))


def train_members() -> list[np.ndarray]:
    members = population.MemberConfig(seed=[3])
    trained = population.train(members, random_split(), epochs=1, batch_size=64, model=OneLayer())
    return jax.tree.leaves(trained)


def work(index: int, address: str, path: Path) -> None:
    """What process `index` does."""
    limits = {"initialization_timeout": 60, "shutdown_timeout_seconds": 60}
    jax.distributed.initialize(address, len(DEVICES), index, **limits)
    print("batch", [device.process_index for device in make_batch_mesh(64).devices])
    print("members", [device.process_index for device in make_member_mesh(8).devices])
    try:
        make_batch_mesh(65)
    except ValueError as error:
        print(error)
    np.savez(path / f"shared{index}.npz", *train_shared())
    if index == 1:  # of which the other knows nothing
        np.savez(path / "members.npz", *train_members())


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Where the processes have left their arrays, and what they have printed."""
    path = tmp_path_factory.mktemp("joined")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(index), address, str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, devices in enumerate(DEVICES)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return path, [out for out, _ in outputs]


def assert_same_bits(path: Path, expected: list[np.ndarray]) -> None:
    with np.load(path) as saved:
        assert len(saved) == len(expected)
        for got, wanted in zip(saved.values(), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_a_batch_is_shared_by_as_many_devices_of_each_process_and_members_by_its_own(joined):
    for index, out in enumerate(joined[1]):
        assert "batch [0, 1]\n" in out
        assert f"members {DEVICES[index] * [index]}\n" in out
        assert "batch_size=65 cannot be divided among 2 processes\n" in out


def test_two_processes_train_one_network_to_the_bits_of_one_process_with_two_devices(joined):
    expected = train_shared()
    for index in range(len(DEVICES)):
        assert_same_bits(joined[0] / f"shared{index}.npz", expected)


def test_one_of_them_trains_a_population_alone_to_the_bits_of_a_process_of_its_own(joined):
    assert_same_bits(joined[0] / "members.npz", train_members())


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
