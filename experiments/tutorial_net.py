"""The network of PyTorch's tutorial, in PyTorch: tests and experiments compare ours with it."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class Net(nn.Module):
    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def make_net(seed: int, dtype: torch.dtype = torch.float32, *sizes: int) -> Net:
    """A seeded `Net(*sizes)`; without sizes, the tutorial's."""
    torch.manual_seed(seed)
    return Net(*sizes).to(dtype)


def params_of(net: Net) -> dict:
    # Imported here because time_to_accuracy.py times a process that must not import JAX.
    from lenet_jax.interop.pytorch import from_state_dict

    return from_state_dict(net.state_dict())


def grads_of(net: Net) -> dict:
    from lenet_jax.interop.pytorch import from_state_dict

    return from_state_dict({name: weight.grad for name, weight in net.named_parameters()})


def random_batch(
    seed: int,
    size: int,
    dtype: type = np.float32,
    num_classes: int = 10,
    in_channels: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Images [size, 32, 32, in_channels] and labels [size]."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((size, 32, 32, in_channels)).astype(dtype)
    return images, rng.integers(0, num_classes, size).astype(np.int32)


def to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
