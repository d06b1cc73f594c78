"""One step: logits, loss, gradients by `jax.grad`, and an optax update.

B is the batch. A batch is {"image": [B, 32, 32, 1] float, "label": [B] int}. Labels lie in 0..9;
others make the loss NaN, because a jitted function cannot refuse them: `lenet_jax.data` checks what
it reads.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from lenet_jax import losses, metrics
from lenet_jax.compiling import jit
from lenet_jax.model import IMAGE_SHAPE, LeNet

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
LossFn = Callable[[jax.Array, jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step reads and writes; a pytree, so `jax.vmap` and `jax.lax.scan` carry it.

    `model` and `tx_update` are static: a jitted function compiles again when they change, and
    only then. Numbers such as the learning rate are data, in `opt_state`.
    """

    step: jax.Array  # [] int32, updates done so far
    params: Any
    opt_state: optax.OptState
    model: nn.Module = dataclasses.field(metadata={"static": True})
    tx_update: optax.TransformUpdateFn = dataclasses.field(metadata={"static": True})


def create_train_state(
    key: jax.Array,
    tx: optax.GradientTransformation,
    model: nn.Module | None = None,
    params: Any = None,
) -> TrainState:
    """The state before the first step, for `model` (a `LeNet()` if None) and any optax optimizer.

    It begins with `params`; if None, with random ones (`init_params`).

    >>> state = create_train_state(jax.random.key(0), optax.sgd(0.1))
    >>> state.params["conv1"]["kernel"].shape
    (5, 5, 1, 6)
    """
    model = LeNet() if model is None else model
    params = init_params(model, key) if params is None else params
    return TrainState(jnp.int32(0), params, tx.init(params), model, tx.update)


# One program, because ten random arrays compile for seconds. It runs once, so the compiler need not
# try hard: that takes half of the time and gives the same bits.
@partial(jit, static_argnames="model", cpu_options={"xla_backend_optimization_level": "1"})
def init_params(model: nn.Module, key: jax.Array) -> Any:
    """Random parameters, as the model's layers draw them."""
    return model.init(key, jnp.zeros((1, *IMAGE_SHAPE)))["params"]


def update(
    state: TrainState,
    batch: Batch,
    loss_fn: LossFn = losses.cross_entropy,
    *,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One optimizer step, pure and not jitted: for `scan`, `vmap` and research code.

    Args:
      state: from `create_train_state`.
      batch: {"image": [B, 32, 32, 1], "label": [B]}.
      loss_fn: `loss_fn(logits [B, 10], labels [B]) -> scalar`.
      axis_name: of a `jax.shard_map` or `jax.vmap` over equal parts of the batch, whose gradients,
        losses and accuracies are averaged: those of the whole batch if `loss_fn` is a mean over it.

    Returns:
      The next state and {"loss", "accuracy"}, both of this batch before the update.
    """

    def objective(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = state.model.apply({"params": params}, batch["image"])
        return loss_fn(logits, batch["label"]), logits

    (loss, logits), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    step_metrics = {"loss": loss, "accuracy": metrics.accuracy(logits, batch["label"])}
    if axis_name is not None:  # as one array: ten all-reduces take longer than the step gains
        flat, unravel = ravel_pytree((grads, step_metrics))
        grads, step_metrics = unravel(lax.pmean(flat, axis_name))
    updates, opt_state = state.tx_update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    next_state = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
    return next_state, step_metrics


@partial(jit, static_argnames="loss_fn", donate_argnames="state")
def train_step(
    state: TrainState, batch: Batch, loss_fn: LossFn = losses.cross_entropy
) -> tuple[TrainState, Metrics]:
    """Consumes its state: `update`, jitted, with the memory of `state` reused for the next one.

    Keep the returned state and forget the one passed in (using it again raises "Array has been
    deleted"). `loss_fn` is static: a named function compiles once, a fresh lambda at every call
    compiles at every call.

    >>> state = create_train_state(jax.random.key(0), optax.sgd(0.1))
    >>> batch = {"image": jnp.zeros((4, 32, 32, 1)), "label": jnp.arange(4)}
    >>> state, metrics = train_step(state, batch)
    >>> int(state.step), sorted(metrics)
    (1, ['accuracy', 'loss'])
    """
    return update(state, batch, loss_fn)


@partial(jit, static_argnames="loss_fn")
def eval_step(state: TrainState, batch: Batch, loss_fn: LossFn = losses.cross_entropy) -> Metrics:
    """{"loss", "accuracy"} of a batch; the state stays as it is."""
    logits = state.model.apply({"params": state.params}, batch["image"])
    return {
        "loss": loss_fn(logits, batch["label"]),
        "accuracy": metrics.accuracy(logits, batch["label"]),
    }
