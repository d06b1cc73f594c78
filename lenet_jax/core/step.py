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
from jax.typing import ArrayLike

from lenet_jax.core import losses, metrics, seeds
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
    opt_state: Any
    model: nn.Module = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)

    def __repr__(self) -> str:
        consumed = isinstance(self.step, jax.Array) and self.step.is_deleted()
        step = "consumed by a step" if consumed else self.step
        count = count_params(self.params)
        optimizer = type(self.opt_state).__name__
        return f"TrainState(step={step}, params={count:,} numbers, opt_state={optimizer})"


def create_train_state(
    key: ArrayLike,
    tx: optax.GradientTransformation,
    model: nn.Module | None = None,
    params: Any = None,
) -> TrainState:
    """The state before the first step, for `model` (`LeNet()` if None) and any optax optimizer.

    It holds a copy of `params`; if that is None, random parameters drawn from `key`, a key or an
    integer. No two of its arrays share memory, so that a step can consume it. A model with dropout
    gets no key for it.

    Raises:
      ValueError: the model has state besides its parameters, such as BatchNorm's.

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
def init_params(model: nn.Module, key: ArrayLike) -> Any:
    """The model's random initial parameters for images of its `in_channels` (1 if it has none).

    Raises:
      ValueError: the model has state besides its parameters.
    """
    image = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, getattr(model, "in_channels", 1)))
    variables = model.init(seeds.as_key(key), image)
    if others := ", ".join(variables.keys() - {"params"}):
        remedy = "replace BatchNorm by nn.GroupNorm or nn.LayerNorm"
        raise ValueError(f"the model has state besides its parameters ({others}): {remedy}")
    return variables["params"]


def apply(model: nn.Module, params: Any, images: jax.Array) -> jax.Array:
    """Logits [B, C] of normalised images [B, 32, 32, channels]."""
    return cast(jax.Array, model.apply({"params": params}, images))


def measure(logits: jax.Array, labels: jax.Array, loss_fn: LossFn) -> Metrics:
    """{"loss", "accuracy"}, two scalars, of logits [B, C] and labels [B], or [B, C] if soft.

    Raises:
      ValueError: the loss is not a scalar.
    """
    loss, function = loss_fn(logits, labels), loss_fn
    if jnp.shape(loss):
        while hasattr(function, "func"):  # of a partial
            function = function.func
        returned = f"{getattr(function, '__name__', function)} returned shape {jnp.shape(loss)}"
        raise ValueError(f"loss_fn {returned}, not a scalar: reduce it, for example by jnp.mean")
    return {"loss": loss, "accuracy": metrics.accuracy(logits, labels)}


def _check_batch(batch: Batch) -> None:
    images, labels = batch["image"], batch["label"]
    if not len(images) == len(labels) > 0:
        counts = f"{len(images)} images and {len(labels)} labels"
        raise ValueError(f"batch has {counts}: give the same number of both, at least 1")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        remedy = "normalise pixels by lenet_jax.normalize(images, split.mean, split.std)"
        raise TypeError(f'batch["image"] must be floating point, got {images.dtype}: {remedy}')


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
      TypeError: the images are not floating point.
      ValueError: the batch is empty, its numbers of images and labels differ, or the loss is not a
        scalar.
    """
    _check_batch(batch)

    def objective(params: Any) -> tuple[jax.Array, Metrics]:
        logits = apply(state.model, params, batch["image"])
        step_metrics = measure(logits, batch["label"], loss_fn)
        return step_metrics["loss"], step_metrics

    def mean_loss(params: Any) -> jax.Array:  # for optimizers with a line search
        loss = objective(params)[0]
        return loss if axis_name is None else lax.pmean(loss, axis_name)

    grads, step_metrics = jax.grad(objective, has_aux=True)(state.params)
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


@partial(jit, functions=("loss_fn",), donate_argnames="state")
def train_step(
    state: TrainState, batch: Batch, loss_fn: LossFn = losses.cross_entropy
) -> tuple[TrainState, Metrics]:
    """Consumes its state: it is `update`, jitted, and reuses the memory of `state` for the next.

    Keep the returned state and drop the one passed in. Reading that one raises a RuntimeError
    ("Array has been deleted"); training on it raises the same or a ValueError ("Buffer has been
    deleted or donated"). The first call compiles for seconds, which
    `lenet_jax.enable_compilation_cache` spares the next process. A new lambda as `loss_fn` compiles
    again; a `functools.partial` of the same function with other arrays does not: they are data.

    The batch is {"image": [B, 32, 32, channels], "label": [B]}; the metrics are two scalars.

    Raises:
      TypeError, ValueError: as `update`.

    >>> state = create_train_state(jax.random.key(0), optax.sgd(0.1))
    >>> batch = {"image": jnp.zeros((4, 32, 32, 1)), "label": jnp.arange(4)}
    >>> state, metrics = train_step(state, batch)
    >>> int(state.step), sorted(metrics)
    (1, ['accuracy', 'loss'])
    """
    return update(state, batch, loss_fn)


@partial(jit, functions=("loss_fn",))
def eval_step(state: TrainState, batch: Batch, loss_fn: LossFn = losses.cross_entropy) -> Metrics:
    """{"loss", "accuracy"}, two scalars, of a batch as for `update`; the state is not consumed.

    Raises:
      TypeError, ValueError: as `update`.
    """
    _check_batch(batch)
    return measure(apply(state.model, state.params, batch["image"]), batch["label"], loss_fn)
