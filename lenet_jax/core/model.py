"""LeNet, the network of PyTorch's "Neural Networks" tutorial, as a Flax module; B is the batch."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lenet_jax.core import ops

Shape = tuple[int, ...]
Op = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
InitFn = Callable[[jax.Array, Shape, int], jax.Array]  # key, shape, fan_in

IMAGE_SIZE = 32  # pixels per side


def shape_hint(shape: Shape) -> str:
    """What to do with images of a wrong shape, as the end of a message, or nothing.

    >>> shape_hint((64, 28, 28))
    '; add an axis of channels with images[..., None]'
    """
    match shape:
        case (_, height, width) if height == width:
            return "; add an axis of channels with images[..., None]"
        case (height, width, _) if height == width:
            return "; add a batch axis with images[None]"
        case (_, 28, 28, _):
            return "; pad them with numpy.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))"
        case (_, _, height, width) if height == width:  # as in PyTorch
            return "; channels come last: images.transpose(0, 2, 3, 1)"
    return ""


class TorchUniform:
    """Initialises kernels and biases as PyTorch's `Conv2d` and `Linear` do: uniform in ±1/√fan_in.

    PyTorch spells it `kaiming_uniform_(a=sqrt(5))` (pytorch/pytorch#57109). Flax's defaults are
    LeCun-normal kernels and zero biases. All arrays of a network are cut from one draw of `size`
    numbers, because a draw for each takes ten times as long to compile.
    """

    def __init__(self, key: jax.Array, size: int) -> None:
        self.rest = jax.random.uniform(key, (size,), jnp.float32, minval=-1.0)

    def __call__(self, _: jax.Array, shape: Shape, fan_in: int) -> jax.Array:
        draws, self.rest = jnp.split(self.rest, [math.prod(shape)])
        return draws.reshape(shape) / math.sqrt(fan_in)


class ConvReluPool(nn.Module):
    """A valid convolution, ReLU and 2x2 max-pool: [B, H, W, C] -> [B, (H-k+1)/2, (W-k+1)/2, K]."""

    kernel_shape: Shape  # k, k, C, K
    op: Op
    init_fn: InitFn

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = math.prod(self.kernel_shape[:-1])
        kernel = self.param("kernel", self.init_fn, self.kernel_shape, fan_in)
        bias = self.param("bias", self.init_fn, self.kernel_shape[-1:], fan_in)
        return self.op(x, kernel, bias)


class Linear(nn.Module):
    """`x @ kernel + bias`, `torch.nn.Linear`: [B, in_features] -> [B, out_features]."""

    kernel_shape: Shape  # in_features, out_features
    init_fn: InitFn

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in, out_features = self.kernel_shape
        kernel = self.param("kernel", self.init_fn, self.kernel_shape, fan_in)
        bias = self.param("bias", self.init_fn, (out_features,), fan_in)
        return x @ kernel + bias[None, :]


class LeNet(nn.Module):
    """The tutorial's `Net`: images [B, 32, 32, in_channels] -> logits [B, num_classes].

    `conv_relu_pool` is the operation of the two convolution layers: `ops.conv_relu_pool`,
    `ops.conv_relu_pool_plain`, or any function of the same signature. None takes the form that was
    measured to be faster on JAX's default backend; printing the network shows which.

    >>> params = LeNet().init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))["params"]
    >>> count_params(params)
    61706
    >>> LeNet().apply({"params": params}, jnp.zeros((2, 32, 32, 1))).shape
    (2, 10)
    """

    num_classes: int = 10
    in_channels: int = 1
    conv_relu_pool: Op | None = None

    def kernel_shapes(self) -> dict[str, Shape]:
        """The shape of each layer's kernel: [k, k, in, out], or [in, out] of a dense layer."""
        return {  # parameters, biases included
            "conv1": (5, 5, self.in_channels, 6),  # 156 for one channel
            "conv2": (5, 5, 6, 16),  # 2,416
            "fc1": (5 * 5 * 16, 120),  # 48,120: conv2 leaves 5x5 pixels
            "fc2": (120, 84),  # 10,164
            "fc3": (84, self.num_classes),  # 850 for ten classes
        }

    def op(self) -> Op:
        """The operation of the convolution layers on JAX's default backend."""
        # Measured by experiments/throughput.py; GPUs and TPUs have good convolutions of their own.
        fastest = ops.conv_relu_pool if jax.default_backend() == "cpu" else ops.conv_relu_pool_plain
        return self.conv_relu_pool or fastest

    def _check_shape(self, images: jax.Array) -> None:
        shape = (IMAGE_SIZE, IMAGE_SIZE, self.in_channels)
        if images.shape[1:] != shape:
            wanted = f"of shape [batch, {', '.join(map(str, shape))}]"
            hint = shape_hint(images.shape)
            raise ValueError(f"LeNet takes images {wanted}, got {list(images.shape)}{hint}")

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        self._check_shape(images)
        shapes, op = self.kernel_shapes(), self.op()
        # On apply, Flax needs only the shape of a parameter.
        init: InitFn = lambda key, shape, fan_in: jnp.zeros(shape)
        if self.is_initializing():
            size = sum(math.prod(shape) + shape[-1] for shape in shapes.values())
            init = TorchUniform(self.make_rng("params"), size)
            op = ops.conv_relu_pool_plain  # compiles faster; the outputs are thrown away
        x = ConvReluPool(shapes["conv1"], op, init, name="conv1")(images)  # [B, 14, 14, 6]
        x = ConvReluPool(shapes["conv2"], op, init, name="conv2")(x)  # [B, 5, 5, 16]
        x = x.reshape(x.shape[0], -1)  # [B, 400]: flattens all axes but the batch
        x = nn.relu(Linear(shapes["fc1"], init, name="fc1")(x))  # [B, 120]
        x = nn.relu(Linear(shapes["fc2"], init, name="fc2")(x))  # [B, 84]
        return Linear(shapes["fc3"], init, name="fc3")(x)  # [B, num_classes]

    def __repr__(self) -> str:
        op, lines = self.op().__name__, []
        for name, (*window, inputs, outputs) in self.kernel_shapes().items():
            if window:
                layer = f"Conv({inputs}, {outputs}, kernel_size={tuple(window)}, op={op})"
            else:
                layer = f"Linear(in_features={inputs}, out_features={outputs}, bias=True)"
            lines.append(f"  ({name}): {layer}")
        return "\n".join(["LeNet(", *lines, ")"])


def model_for(params: Any) -> LeNet:
    """The network with these parameters: their shapes give its classes and channels.

    >>> params = LeNet(26, 3).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    >>> sizes(model_for(params))
    '26 classes and 3 channels'
    """
    return LeNet(params["fc3"]["bias"].shape[0], params["conv1"]["kernel"].shape[2])


def count_params(params: Any) -> int:
    """The number of scalars in all arrays: 61,706 for 10 classes and 1 channel."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def sizes(model: LeNet) -> str:
    """The model's sizes, for messages.

    >>> sizes(LeNet())
    '10 classes and 1 channel'
    """
    channels = f"{model.in_channels} channel{'s' * (model.in_channels > 1)}"
    return f"{model.num_classes} classes and {channels}"


def summary(model: LeNet) -> str:
    """A table of its layers, with their max-pool, and the FLOPs of a forward pass.

    A multiplication and its addition are two FLOPs; ReLU, max-pool and biases are not counted.

    >>> print(summary(LeNet()))
    layer        output   parameters   FLOPs per image
    conv1   14 x 14 x 6          156           235,200
    conv2    5 x 5 x 16        2,416           480,000
    fc1             120       48,120            96,000
    fc2              84       10,164            20,160
    fc3              10          850             1,680
    all                       61,706           833,040
    """
    side, rows = IMAGE_SIZE, []
    for name, shape in model.kernel_shapes().items():
        *window, _, outputs = shape
        pixels, output = 1, str(outputs)
        if window:
            pixels = (side - window[0] + 1) ** 2
            side = (side - window[0] + 1) // 2  # after the max-pool
            output = f"{side} x {side} x {outputs}"
        rows.append((name, output, math.prod(shape) + outputs, 2 * pixels * math.prod(shape)))
    total = ("all", "", sum(row[2] for row in rows), sum(row[3] for row in rows))
    lines = [f"{'layer':7}{'output':>12}{'parameters':>13}{'FLOPs per image':>18}"]
    lines += [f"{a:7}{b:>12}{c:13,}{d:18,}" for a, b, c, d in [*rows, total]]
    return "\n".join(lines)
