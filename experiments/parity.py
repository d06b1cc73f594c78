"""How far are this package's numbers from live PyTorch's?

Every comparison is made in float32 and in float64, from the same weights and inputs: the logits,
each loss with its options (its value, and the network's ten gradients), the gradients from a chosen
cotangent together and one by one, and 50 steps of each optimizer, once with the same gradients on
both sides and once in training. The tables also show what float32 costs either side: its difference
from PyTorch's float64. Initialisations are random and are compared as distributions (two-sample
Kolmogorov-Smirnov).

The difference of two arrays is their largest difference, divided by the largest absolute number in
PyTorch's array. For trained parameters, the arrays are their changes since the start.

    python experiments/parity.py [--smoke]

Prints the tables and writes them to results/parity.{json,md} (the largest difference of each kind)
and results/parity_cases.md (every comparison); takes 3 minutes. On a GPU or TPU, JAX computes there
with its highest precision, in the two forms of a convolution that are for it; PyTorch stays the
judge on the host's CPU. The files are then results/parity.<device>.* and parity_cases.<device>.md.
"""

import argparse
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
import torch
import torch.nn.functional as F
from _parity_cases import (
    BATCH,
    LOSSES,
    NETWORKS,
    OPTIMIZERS,
    STEPS,
    loss_id,
    optimizer_id,
    targets_of,
)
from _parity_page import every_case, summary
from _patches import conv_relu_pool_patches
from _results import of_device, write_json, write_markdown, writes
from tqdm import tqdm
from tutorial_net import Net, grads_of, make_net, params_of, random_batch, to_torch

from lenet_jax import LeNet, TrainState, create_train_state, make_optimizer, train_step
from lenet_jax.core import losses, ops
from lenet_jax.interop.pytorch import to_state_dict

OPS = (ops.conv_relu_pool, ops.conv_relu_pool_plain)
OPS_OF_ACCELERATORS = (ops.conv_relu_pool_plain, conv_relu_pool_patches)
TORCH_TYPES = {np.float32: torch.float32, np.float64: torch.float64}

TORCH_LOSSES = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "cross_entropy": F.cross_entropy,
    "nll": F.nll_loss,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "kl_div": F.kl_div,
    "multi_margin": F.multi_margin_loss,
}
TAKES_LOG_PROBS = ("nll", "kl_div")
TAKES_ONE_HOT_IN_TORCH = ("mse", "l1", "smooth_l1", "huber", "bce_with_logits")

TORCH_OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}

Results = dict[str, Any]  # case -> array or tree of arrays


def typed(dtype: type, array: Any) -> Any:
    """Floating-point arrays in `dtype`, everything else as it is."""
    is_float = isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)
    return array.astype(dtype) if is_float else array


# --- PyTorch's results, and below each of them ours, in the same order


def torch_loss(case: tuple, logits: torch.Tensor, dtype: type) -> torch.Tensor:
    name, kind, options = case
    tensor = lambda x: torch.tensor(typed(dtype, x)) if isinstance(x, np.ndarray) else x
    targets = tensor(targets_of(kind))
    if kind == "labels" and name in TAKES_ONE_HOT_IN_TORCH:
        targets = F.one_hot(targets, 10).to(logits.dtype)
    predictions = F.log_softmax(logits, 1) if name in TAKES_LOG_PROBS else logits
    options = {key: tensor(value) for key, value in options.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that kl_div's mean is not the mathematical one
        return TORCH_LOSSES[name](predictions, targets, **options)


def torch_gradients(dtype: type, cases: list[tuple]) -> Results:
    net = make_net(1, TORCH_TYPES[dtype])
    images = to_torch(typed(dtype, random_batch(2, BATCH)[0]))
    results = {"logits": net(images).detach().numpy()}
    for case in cases:
        net.zero_grad()
        loss = torch_loss(case, net(images), dtype)
        loss.backward()
        results[f"{loss_id(case)}: value"] = loss.detach().numpy()
        results[f"{loss_id(case)}: ten gradients"] = grads_of(net)
    net.zero_grad()
    net(images).backward(torch.from_numpy(typed(dtype, targets_of("normal"))))
    results["chosen cotangent: ten gradients"] = grads_of(net)
    return results


def our_loss(case: tuple, logits: jax.Array, dtype: type) -> jax.Array:
    name, kind, options = case
    targets = typed(dtype, targets_of(kind))
    predictions = jax.nn.log_softmax(logits) if name in TAKES_LOG_PROBS else logits
    options = {key: typed(dtype, value) for key, value in options.items()}
    return getattr(losses, name)(predictions, targets, **options)


def our_gradients(dtype: type, cases: list[tuple], op: Any) -> Results:
    params = params_of(make_net(1, TORCH_TYPES[dtype]))
    images = typed(dtype, random_batch(2, BATCH)[0])

    @jax.jit  # compiles the network once; each loss provides a cotangent
    def pull_back(params: Any, cotangent: jax.Array) -> Any:
        return jax.vjp(
            lambda params: LeNet(conv_relu_pool=op).apply({"params": params}, images), params
        )[1](cotangent)[0]

    logits = jax.jit(LeNet(conv_relu_pool=op).apply)({"params": params}, images)
    results = {"logits": logits}
    for case in cases:
        loss_of = jax.jit(jax.value_and_grad(partial(our_loss, case, dtype=dtype)))
        results[f"{loss_id(case)}: value"], cotangent = loss_of(logits)
        results[f"{loss_id(case)}: ten gradients"] = pull_back(params, cotangent)
    results["chosen cotangent: ten gradients"] = pull_back(
        params, typed(dtype, targets_of("normal"))
    )
    return results


def torch_optimizer(case: tuple, net: Net) -> torch.optim.Optimizer:
    name, rate, settings = case
    return TORCH_OPTIMIZERS[name](net.parameters(), lr=rate, **settings)


def torch_training(case: tuple, dtype: type) -> tuple[Any, list[Any]]:
    """How far the parameters moved in STEPS steps, and each step's gradients."""
    net = make_net(8, TORCH_TYPES[dtype])
    start, optimizer, gradients = params_of(net), torch_optimizer(case, net), []
    for step in range(STEPS):
        images, labels = random_batch(100 + step, BATCH)
        optimizer.zero_grad()
        logits = net(to_torch(typed(dtype, images)))
        F.cross_entropy(logits, torch.from_numpy(labels).long()).backward()
        optimizer.step()
        gradients.append(grads_of(net))
    return jax.tree.map(np.subtract, params_of(net), start), gradients


def torch_updates(case: tuple, dtype: type, gradients: list[Any]) -> Any:
    """How far the parameters moved with these gradients."""
    net = make_net(8, TORCH_TYPES[dtype])
    start, optimizer = params_of(net), torch_optimizer(case, net)
    for grads in gradients:
        grads = to_state_dict(jax.tree.map(partial(typed, dtype), grads))
        for name, weight in net.named_parameters():
            weight.grad = torch.from_numpy(grads[name])
        optimizer.step()
    return jax.tree.map(np.subtract, params_of(net), start)


def our_state(case: tuple, dtype: type) -> tuple[Any, TrainState]:
    name, rate, settings = case
    start = params_of(make_net(8, TORCH_TYPES[dtype]))
    return start, create_train_state(0, make_optimizer(name, rate, **settings), params=start)


def our_training(case: tuple, dtype: type) -> Any:
    start, state = our_state(case, dtype)
    for step in range(STEPS):
        images, labels = random_batch(100 + step, BATCH)
        state, _ = train_step(state, {"image": typed(dtype, images), "label": labels})
    return jax.tree.map(np.subtract, state.params, start)


def our_updates(case: tuple, dtype: type, gradients: list[Any]) -> Any:
    start, state = our_state(case, dtype)

    @jax.jit
    def step(params: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
        updates, opt_state = state.tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = state.params, state.opt_state
    for grads in gradients:
        grads = jax.tree.map(partial(typed, dtype), grads)
        params, opt_state = step(params, opt_state, grads)
    return jax.tree.map(np.subtract, params, start)


# --- the comparison


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference over all arrays, relative to the largest number of its array."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in pairs)


def by_array(tree: dict[str, dict[str, Any]]) -> Results:
    """{"conv1.kernel": array, ...}"""
    return {f"{name}.{kind}": leaf for name, layer in tree.items() for kind, leaf in layer.items()}


def compare(ours: dict[type, Results], theirs: dict[type, Results]) -> dict[str, dict[str, float]]:
    """Case -> the difference in each precision, and each float32's from PyTorch's float64."""
    return {
        case: {
            "float32": difference(ours[np.float32][case], theirs[np.float32][case]),
            "float64": difference(ours[np.float64][case], theirs[np.float64][case]),
            "our rounding": difference(ours[np.float32][case], theirs[np.float64][case]),
            "its rounding": difference(theirs[np.float32][case], theirs[np.float64][case]),
        }
        for case in theirs[np.float64]
    }


def compare_gradients(op: Any, cases: list[tuple]) -> dict[str, dict[str, float]]:
    """Compares logits, each loss with its gradients, and the chosen cotangent's gradients."""
    ours, theirs = {}, {}
    for dtype in TORCH_TYPES:
        with jax.enable_x64(dtype == np.float64):
            ours[dtype], theirs[dtype] = (
                our_gradients(dtype, cases, op),
                torch_gradients(dtype, cases),
            )
        for results in (ours[dtype], theirs[dtype]):
            for name, leaf in by_array(results["chosen cotangent: ten gradients"]).items():
                results[f"chosen cotangent: gradient of {name}"] = leaf
    return compare(ours, theirs)


def compare_training(case: tuple) -> dict[str, dict[str, float]]:
    """Compares steps with the same gradients, and steps in which each side trains its network."""
    with jax.enable_x64(True):
        recorded = torch_training(case, np.float64)[1]
    gradients = jax.tree.map(np.float32, recorded)
    ours, theirs = {}, {}
    for dtype in TORCH_TYPES:
        with jax.enable_x64(dtype == np.float64):
            ours[dtype] = {
                "same gradients": our_updates(case, dtype, gradients),
                "training": our_training(case, dtype),
            }
            theirs[dtype] = {
                "same gradients": torch_updates(case, dtype, gradients),
                "training": torch_training(case, dtype)[0],
            }
    name = optimizer_id(case)
    return {f"{name}: {key}": cells for key, cells in compare(ours, theirs).items()}


def compare_initialisation() -> dict[str, dict[str, float]]:
    """Array -> both sides' largest number in units of 1/√fan_in, and p."""
    init = jax.jit(jax.vmap(lambda key: LeNet().init(key, jnp.zeros((1, 32, 32, 1)))["params"]))
    ours = by_array(jax.device_get(init(jax.random.split(jax.random.key(0), NETWORKS))))
    torch.manual_seed(0)  # all networks from one random stream
    theirs = [by_array(params_of(Net())) for _ in range(NETWORKS)]
    rows = {}
    for name, array in ours.items():
        layer = name.split(".")[0]
        fan_in = ours[f"{layer}.kernel"][0, ..., 0].size
        one, other = array.ravel(), np.concatenate([net[name].ravel() for net in theirs])
        rows[name] = {
            "ours": float(np.abs(one).max() * np.sqrt(fan_in)),
            "pytorch": float(np.abs(other).max() * np.sqrt(fan_in)),
            "p": float(scipy.stats.ks_2samp(one, other, method="asymp").pvalue),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, see accelerator.py")
    smoke = parser.parse_args().smoke
    jax.config.update("jax_default_matmul_precision", "highest")  # not TensorFloat-32 or bfloat16
    on_cpu = jax.default_backend() == "cpu"
    cases, optimizers = (LOSSES[:1], []) if smoke else (LOSSES, OPTIMIZERS)
    gradients = {
        op.__name__: compare_gradients(op, cases)
        for op in (OPS if on_cpu and not smoke else OPS_OF_ACCELERATORS)
    }
    training = {}
    for case in tqdm(optimizers):
        training |= compare_training(case)
    initialisation = compare_initialisation()
    found = gradients, training, initialisation
    print(every_case(*found), summary(*found), sep="\n\n")
    if writes(smoke):
        name = (lambda name: name) if on_cpu and not smoke else of_device
        parts = ("gradients", "training", "initialisation")
        write_json(name("parity"), dict(zip(parts, found, strict=True)))
        write_markdown(name("parity"), summary(*found))
        write_markdown(name("parity_cases"), every_case(*found))


if __name__ == "__main__":
    main()
