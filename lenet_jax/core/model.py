"""LeNet, the network of PyTorch's "Neural Networks" tutorial, as a Flax module.

B is the batch. For 10 classes and 1 channel, 61,706 parameters in 10 arrays:

    conv1  5x5, 1 -> 6       156        fc1  400 -> 120   48,120
    conv2  5x5, 6 -> 16    2,416        fc2  120 -> 84    10,164
                                        fc3   84 -> 10       850
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lenet_jax.core import ops

IMAGE_SIZE = 32  # of a side, in pixels


def kernel_and_bias(
    layer: nn.Module, shape: tuple[int, ...], draws: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """A layer's kernel [..., features] and bias [features], initialised as PyTorch does by default.

    For `Conv2d` and `Linear`, kernel and bias alike, that is uniform in ±1/√fan_in, which PyTorch
    spells `kaiming_uniform_(a=sqrt(5))` (pytorch/pytorch#57109). Flax's defaults, LeCun-normal
    kernels and zero biases, are another distribution.

    Args:
      layer: whose parameters they are.
      shape: of the kernel.
      draws: as many numbers as both have, uniform in ±1; None if the layer is to draw by itself.
    """
    fan_in, size = math.prod(shape[:-1]), math.prod(shape)
    if draws is None and layer.is_initializing():
        draws = draw(layer.make_rng("params"), size + shape[-1])

    def init(key: jax.Array, shape: tuple[int, ...], start: int) -> jax.Array:
        if draws is None:  # of a network that has parameters Flax asks only what shape they have
            return jnp.zeros(shape)
        return draws[start : start + math.prod(shape)].reshape(shape) / math.sqrt(fan_in)

    return layer.param("kernel", init, shape, 0), layer.param("bias", init, shape[-1:], size)


def draw(key: jax.Array, size: int) -> jax.Array:
    """float32 [size], uniform in ±1."""
    return jax.random.uniform(key, (size,), jnp.float32, minval=-1.0)


class ConvReluPool(nn.Module):
    """A valid convolution, ReLU and 2x2 max-pool: [B, H, W, C] -> [B, (H-k+1)/2, (W-k+1)/2, K]."""

    in_features: int
    features: int
    kernel_size: int
    op: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    draws: jax.Array | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, self.in_features, self.features)
        kernel, bias = kernel_and_bias(self, shape, self.draws)
        # The outputs of an initialisation are thrown away: the plain form is there sooner.
        op = ops.conv_relu_pool_plain if self.is_initializing() else self.op
        return op(x, kernel, bias)

    def __repr__(self) -> str:
        size, op = self.kernel_size, self.op.__name__
        return f"Conv({self.in_features}, {self.features}, kernel_size=({size}, {size}), op={op})"


class Linear(nn.Module):
    """`x @ kernel + bias`, initialised as `torch.nn.Linear`: [B, in_features] -> [B, features]."""

    in_features: int
    features: int
    draws: jax.Array | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = kernel_and_bias(self, (self.in_features, self.features), self.draws)
        return x @ kernel + bias[None, :]

    def __repr__(self) -> str:
        return f"Linear(in_features={self.in_features}, out_features={self.features}, bias=True)"


class LeNet(nn.Module):
    """The tutorial's `Net`: images [B, 32, 32, in_channels] -> logits [B, num_classes].

    `conv_relu_pool` is the operation of the two convolution layers: `ops.conv_relu_pool`,
    `ops.conv_relu_pool_plain`, or anything of the same signature. None takes the form that was
    measured to be the faster one on JAX's default backend; printing the network shows which.

    >>> params = LeNet().init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))["params"]
    >>> jax.tree.reduce(lambda total, leaf: total + leaf.size, params, 0)
    61706
    >>> LeNet().apply({"params": params}, jnp.zeros((2, 32, 32, 1))).shape
    (2, 10)
    """

    num_classes: int = 10
    in_channels: int = 1
    conv_relu_pool: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None

    def setup(self) -> None:
        # Measured by experiments/throughput.py; other backends have good convolutions of their own.
        fastest = ops.conv_relu_pool if jax.default_backend() == "cpu" else ops.conv_relu_pool_plain
        op = self.conv_relu_pool or fastest
        # One draw for all: a draw for each array takes ten times as long to compile.
        counts = (25 * self.in_channels * 6 + 6, 2_416, 48_120, 10_164, 85 * self.num_classes)
        draws: Sequence[jax.Array | None] = (None,) * len(counts)
        if self.is_initializing():
            draws = jnp.split(draw(self.make_rng("params"), sum(counts)), np.cumsum(counts)[:-1])
        self.conv1 = ConvReluPool(self.in_channels, 6, 5, op, draws[0])
        self.conv2 = ConvReluPool(6, 16, 5, op, draws[1])
        self.fc1 = Linear(16 * 5 * 5, 120, draws[2])  # 5 * 5 is what is left of the image
        self.fc2 = Linear(120, 84, draws[3])
        self.fc3 = Linear(84, self.num_classes, draws[4])

    def __call__(self, images: jax.Array) -> jax.Array:
        shape = (IMAGE_SIZE, IMAGE_SIZE, self.in_channels)
        if images.ndim != 4 or images.shape[1:] != shape:
            raise ValueError(
                f"LeNet takes images of shape [batch, 32, 32, {self.in_channels}], got "
                f"{list(images.shape)}"
                + ("; add a batch axis with images[None]" if images.shape == shape else "")
            )
        x = self.conv1(images)  # [B, 14, 14, 6]
        x = self.conv2(x)  # [B, 5, 5, 16]
        x = x.reshape(x.shape[0], -1)  # [B, 400]: all axes but the batch's
        x = nn.relu(self.fc1(x))  # [B, 120]
        x = nn.relu(self.fc2(x))  # [B, 84]
        return self.fc3(x)  # [B, num_classes]

    def __repr__(self) -> str:
        bound = self.bind({})  # submodules exist on a bound module only
        layers = ("conv1", "conv2", "fc1", "fc2", "fc3")
        return "\n".join(
            ["LeNet(", *(f"  ({name}): {getattr(bound, name)!r}" for name in layers), ")"]
        )


def model_for(params: Any) -> LeNet:
    """The network whose parameters these are: their shapes tell its classes and channels.

    >>> model_for(LeNet(26, 3).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"])
    ... # doctest: +ELLIPSIS
    LeNet(
      (conv1): Conv(3, 6, ...
      (fc3): Linear(in_features=84, out_features=26, bias=True)
    )
    """
    return LeNet(params["fc3"]["bias"].shape[0], params["conv1"]["kernel"].shape[2])


def count_params(params: Any) -> int:
    """How many numbers they are: 61,706 for 10 classes and 1 channel."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def sizes(model: LeNet) -> str:
    """For messages.

    >>> sizes(LeNet())
    '10 classes and 1 channel'
    """
    channels = f"{model.in_channels} channel{'s' * (model.in_channels > 1)}"
    return f"{model.num_classes} classes and {channels}"
