"""One step: logits, loss, gradients by `jax.grad`, and an optax update.

B is the batch, C the model's number of classes. A batch is {"image": [B, 32, 32, channels] float,
"label": [B] int}. A label outside 0..C-1 makes the loss NaN, because a jitted function cannot raise
an error; `lenet_jax.data` validates the labels that it reads.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jax.flatten_util import ravel_pytree

from lenet_jax.core import losses, metrics
from lenet_jax.core.jit import jit
from lenet_jax.core.model import IMAGE_SIZE, LeNet, count_params
from lenet_jax.core.optimizers import static_part

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
LossFn = Callable[[jax.Array, jax.Array], jax.Array]


class TrainState(struct.PyTreeNode):
    """The state of training; a pytree, so `jax.vmap` and `jax.lax.scan` can carry it.

    `model` and `tx` are static: a jitted function compiles again when they change. Numbers such as
    the learning rate are data in `opt_state` and can change without compiling.
    """

    step: jax.Array  # [] int32, number of updates so far
    params: Any
    opt_state: optax.OptState
    model: nn.Module = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        consumed = isinstance(self.step, jax.Array) and self.step.is_deleted()
        step = "consumed by a step" if consumed else self.step
        count = count_params(self.params)
        optimizer = type(self.opt_state).__name__
        return f"TrainState(step={step}, params={count:,} numbers, opt_state={optimizer})"


def create_train_state(
    key: jax.Array,
    tx: optax.GradientTransformation,
    model: nn.Module | None = None,
    params: Any = None,
) -> TrainState:
    """The state before the first step, for `model` (`LeNet()` if None) and any optax optimizer.

    It holds a copy of `params`, or random parameters (`init_params`) if None. No two of its arrays
    share memory, so that a step can consume it.

    >>> state = create_train_state(jax.random.key(0), optax.sgd(0.1))
    >>> state.params["conv1"]["kernel"].shape
    (5, 5, 1, 6)
    """
    model = LeNet() if model is None else model
    params = init_params(model, key) if params is None else jax.tree.map(jnp.array, params)
    seen = {id(leaf) for leaf in jax.tree.leaves(params)}

    def own(leaf: jax.Array) -> jax.Array:  # prodigy, sam and dog alias `params` in their state
        leaf = jnp.array(leaf) if id(leaf) in seen else leaf
        seen.add(id(leaf))
        return leaf

    opt_state = jax.tree.map(own, tx.init(params))
    return TrainState(jnp.int32(0), params, opt_state, model, static_part(tx))


@partial(jax.jit, static_argnames="model")  # without jit it takes seconds
def init_params(model: nn.Module, key: jax.Array) -> Any:
    """The model's random initial parameters for images of its `in_channels` (1 if it has none)."""
    image = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, getattr(model, "in_channels", 1)))
    return model.init(key, image)["params"]


def apply(model: nn.Module, params: Any, images: jax.Array) -> jax.Array:
    """Logits [B, C] of normalised images [B, 32, 32, channels]."""
    return cast(jax.Array, model.apply({"params": params}, images))


def measure(logits: jax.Array, labels: jax.Array, loss_fn: LossFn) -> Metrics:
    """{"loss", "accuracy"} of logits [B, C]."""
    return {"loss": loss_fn(logits, labels), "accuracy": metrics.accuracy(logits, labels)}


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
      batch: {"image", "label": [B], or [B, C] if `loss_fn` takes soft labels}.
      loss_fn: `loss_fn(logits [B, C], labels) -> scalar`.
      axis_name: the axis of a `jax.shard_map` or `jax.vmap` over equal parts of the batch.
        Gradients, losses and accuracies are averaged over it, which gives those of the whole batch
        if `loss_fn` is a mean.

    Returns:
      The next state, and the {"loss", "accuracy"} of this batch before the update.

    Raises:
      ValueError: the batch is empty, or its numbers of images and labels differ.
    """
    if not len(batch["image"]) == len(batch["label"]) > 0:
        raise ValueError(
            f"batch has {len(batch['image'])} images and {len(batch['label'])} labels: give the "
            "same number of both, at least 1"
        )

    def objective(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = apply(state.model, params, batch["image"])
        return loss_fn(logits, batch["label"]), logits

    def mean_loss(params: Any) -> jax.Array:  # for optimizers with a line search
        loss = objective(params)[0]
        return loss if axis_name is None else lax.pmean(loss, axis_name)

    (loss, logits), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    step_metrics = {"loss": loss, "accuracy": metrics.accuracy(logits, batch["label"])}
    if axis_name is not None:  # one all-reduce: ten take longer than sharing the batch saves
        flat, unravel = ravel_pytree((grads, step_metrics))
        grads, step_metrics = unravel(lax.pmean(flat, axis_name))
    tx = optax.with_extra_args_support(state.tx)
    extra = {"value": step_metrics["loss"], "grad": grads, "value_fn": mean_loss}
    known = inspect.signature(tx.update).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        extra = {name: extra[name] for name in extra.keys() & known.keys()}  # optax.contrib.sam
    updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), step_metrics


@partial(jit, static_argnames="loss_fn", donate_argnames="state")
def train_step(
    state: TrainState, batch: Batch, loss_fn: LossFn = losses.cross_entropy
) -> tuple[TrainState, Metrics]:
    """Consumes its state: `update`, jitted, reuses the memory of `state` for the next state.

    Keep the returned state and drop the one passed in. Reading that one raises a RuntimeError
    ("Array has been deleted"); training on it raises the same or a ValueError ("Buffer has been
    deleted or donated"). `loss_fn` is static: a named function compiles once, but a new lambda or
    `partial` at every call compiles at every call.

    >>> state = create_train_state(jax.random.key(0), optax.sgd(0.1))
    >>> batch = {"image": jnp.zeros((4, 32, 32, 1)), "label": jnp.arange(4)}
    >>> state, metrics = train_step(state, batch)
    >>> int(state.step), sorted(metrics)
    (1, ['accuracy', 'loss'])
    """
    return update(state, batch, loss_fn)


@partial(jit, static_argnames="loss_fn")
def eval_step(state: TrainState, batch: Batch, loss_fn: LossFn = losses.cross_entropy) -> Metrics:
    """{"loss", "accuracy"} of a batch; the state is not consumed."""
    return measure(apply(state.model, state.params, batch["image"]), batch["label"], loss_fn)
