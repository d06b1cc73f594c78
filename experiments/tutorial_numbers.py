"""Could the numbers in PyTorch's tutorial have been printed by our network?

They were printed without a seed, so no run repeats them. What can be asked is whether they are
ordinary: 20,000 networks of ours, each freshly initialised and with a fresh random input and
target, give the distribution of what the tutorial prints (the mean, the standard deviation and the
largest absolute value of the output row and of conv1's bias gradient, and the loss), and each of
the tutorial's numbers should lie in its central 99 %. 10,000 networks of live PyTorch should give
the same distribution (two-sample Kolmogorov-Smirnov). And networks initialised another way should
be told apart by the same means, or the answers above would be worth nothing.

    python experiments/tutorial_numbers.py

Writes results/tutorial_numbers.{json,md,png}; TIME.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import torch
from tutorial_net import Net

from lenet_jax import LeNet, losses

OURS, PYTORCH = 20_000, 10_000  # networks
SLICE = 500  # networks at a time: 120 MB of parameters

TUTORIAL = {
    "output": [0.1005, 0.0263, 0.0013, -0.1157, -0.1197, -0.0141, 0.1425, -0.0521, 0.0689, 0.0220],
    "loss": 0.6524,
    "gradient": [0.0069, 0.0021, 0.0090, -0.0060, -0.0008, -0.0073],
}

Printed = dict[str, np.ndarray]  # output [N, 10], loss [N], gradient [N, 6]: as the tutorial prints
Statistics = dict[str, np.ndarray]  # name -> [N]


def statistics(printed: dict[str, Any]) -> Statistics:
    """The seven numbers that sum up what a network printed, for N networks."""
    output, gradient = np.atleast_2d(printed["output"]), np.atleast_2d(printed["gradient"])
    return {
        "output, mean": output.mean(1),
        "output, standard deviation": output.std(1, ddof=1),
        "output, largest": np.abs(output).max(1),
        "loss": np.atleast_1d(printed["loss"]),
        "conv1.bias.grad, mean": gradient.mean(1),
        "conv1.bias.grad, standard deviation": gradient.std(1, ddof=1),
        "conv1.bias.grad, largest": np.abs(gradient).max(1),
    }


# --- initialisations: key -> params


def pytorchs(key: jax.Array) -> Any:
    """Ours, which claims to be PyTorch's: uniform in ±1/√fan_in, kernels and biases."""
    return LeNet().init(key, jnp.zeros((1, 32, 32, 1)))["params"]


def zero_biases(key: jax.Array) -> Any:
    """PyTorch's kernels, but biases of 0."""
    params = pytorchs(key)
    return {name: layer | {"bias": 0 * layer["bias"]} for name, layer in params.items()}


def lecun_normal(key: jax.Array) -> Any:
    """LeCun-normal kernels with PyTorch's biases."""
    init, params = jax.nn.initializers.lecun_normal(), pytorchs(key)
    keys = jax.random.split(jax.random.fold_in(key, 1), len(params))
    return {
        name: layer | {"kernel": init(k, layer["kernel"].shape)}
        for k, (name, layer) in zip(keys, params.items(), strict=True)
    }


def flax_default(key: jax.Array) -> Any:
    """LeCun-normal kernels and biases of 0: what `nn.Conv` and `nn.Dense` give."""
    params = lecun_normal(key)
    return {name: layer | {"bias": 0 * layer["bias"]} for name, layer in params.items()}


WRONG = {
    "zero biases": zero_biases,
    "LeCun-normal kernels": lecun_normal,
    "LeCun-normal kernels, zero biases (Flax)": flax_default,
}

Initialise = Callable[[jax.Array], Any]


def our_network(key: jax.Array, initialise: Initialise) -> dict[str, jax.Array]:
    """What one network prints: output [10], loss [], gradient [6]."""
    keys = jax.random.split(key, 3)
    params = initialise(keys[0])
    image = jax.random.normal(keys[1], (1, 32, 32, 1))
    target = jax.random.normal(keys[2], (1, 10))

    def loss_of(params: Any) -> tuple[jax.Array, jax.Array]:
        output = LeNet().apply({"params": params}, image)
        return losses.mse(output, target), output

    (loss, output), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    return {"output": output[0], "loss": loss, "gradient": gradients["conv1"]["bias"]}


@partial(jax.jit, static_argnames="initialise")
def _our_slice(keys: jax.Array, initialise: Initialise) -> dict[str, jax.Array]:
    return jax.vmap(partial(our_network, initialise=initialise))(keys)


def our_networks(seed: int, number: int, initialise: Initialise = pytorchs) -> Printed:
    """`number` networks, a multiple of SLICE."""
    keys = jax.random.split(jax.random.key(seed), (number // SLICE, SLICE))
    slices = [jax.device_get(_our_slice(part, initialise)) for part in keys]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *slices)


def pytorch_networks(seed: int, number: int) -> Printed:
    """The tutorial's own lines, `number` times."""

    def prints() -> Iterator[tuple[np.ndarray, float, np.ndarray]]:
        for _ in range(number):
            net = Net()
            output = net(torch.randn(1, 1, 32, 32))
            loss = torch.nn.MSELoss()(output, torch.randn(10).view(1, -1))
            loss.backward()
            yield output[0].detach().numpy(), loss.item(), net.conv1.bias.grad.numpy()

    torch.manual_seed(seed)
    output, loss, gradient = map(np.array, zip(*prints(), strict=True))
    return {"output": output, "loss": loss, "gradient": gradient}
