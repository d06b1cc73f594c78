"""Passes over a whole split, kept on the device as uint8, each as one compiled function.

N is the number of images, B the batch, S = N // B the steps per epoch. Several devices can share
each batch, also across processes (see `sharding`):

    mesh = sharding.make_batch_mesh(batch_size)
    state, split = sharding.replicate(mesh, (state, split))
    state, metrics = train_epoch(state, split, key, batch_size=batch_size, mesh=mesh)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike

from lenet_jax.core import losses, seeds
from lenet_jax.core.augment import AugmentConfig, augment
from lenet_jax.core.jit import as_pytree, jit
from lenet_jax.core.model import IMAGE_SIZE, shape_hint
from lenet_jax.core.sharding import BATCH
from lenet_jax.core.split import Split
from lenet_jax.core.step import Batch, LossFn, Metrics, TrainState, apply, measure, update

# From a step's key, images and labels to its batch; see `run_steps`.
Prepare = Callable[[jax.Array, jax.Array, jax.Array], Batch]


def normalize(
    images: jax.Array, mean: ArrayLike | Sequence[float], std: ArrayLike | Sequence[float]
) -> jax.Array:
    """uint8 pixels [..., channels] to float32, by the training pixels' mean and deviation in 0..1.

    `mean` and `std` are one number each, or one per channel.

    >>> normalize(jnp.full((1, 1, 1, 2), 255, jnp.uint8), (0.5, 0.0), (0.25, 0.5)).tolist()
    [[[[2.0, 2.0]]]]
    """
    mean, std = (jnp.asarray(numbers, jnp.float32) for numbers in (mean, std))
    if mean.ndim:  # a single number stays a scalar, so that the last bits do not change
        mean, std = (jnp.expand_dims(each, range(images.ndim - 1)) for each in (mean, std))
    return (images.astype(jnp.float32) / 255 - mean) / std


@partial(jax.jit, static_argnames=("num_examples", "batch_size"))
def epoch_order(key: jax.Array, num_examples: int, *, batch_size: int) -> jax.Array:
    """A random order as batches of indices: int32 [S, B]; N % B random examples are left out."""
    steps = num_examples // batch_size
    order = jax.random.permutation(key, num_examples)[: steps * batch_size]
    return order.reshape(steps, batch_size)


def run_steps(
    state: TrainState,
    split: Split,
    order: jax.Array,
    start: ArrayLike,
    stop: ArrayLike,
    *,
    key: ArrayLike | None = None,
    loss_fn: LossFn = losses.cross_entropy,
    prepare: Prepare | AugmentConfig | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Part of an epoch, pure and not jitted, for `vmap`; `train_steps` consumes its state.

    Args:
      state, split: see `train_epoch`.
      order: int32 [S, B] from `epoch_order`.
      start, stop: the range of rows of `order`; data, so that all parts of an epoch share one
        compiled function.
      key: for the draws of `prepare`; one key for the whole epoch.
      prepare: a function (key, images, labels) -> batch. From a step's key, uint8 images
        [B, 32, 32, channels] and labels [B] it makes the batch for `step.update`, such as mixup,
        label noise or a teacher's logits. An `AugmentConfig` augments and normalises; None only
        normalises.
      mesh: from `sharding.make_batch_mesh`: the devices that share each batch, in which case
        `loss_fn` must be a mean. Each calls a function `prepare` with its part of the batch and its
        own key, so that the draws depend on the number of devices; those of an `AugmentConfig` do
        not. None: one device.

    Returns:
      The next state and the *sums* of the steps' {"loss", "accuracy"}, two scalars, so that parts
      add up.

    Raises:
      ValueError: there is a `prepare`, but no `key`.
      TypeError, ValueError: for what `prepare` returns and for the loss, as `step.update`.
    """
    if prepare is not None and key is None:
        raise ValueError("prepare needs a key for its random draws")
    args = (state, split, order, start, stop, key, loss_fn, prepare)
    if mesh is None or mesh.size == 1:
        return _run_part(*args)
    run = partial(_run_part, axis_name=BATCH)
    replicated, batch_sharded = PartitionSpec(), PartitionSpec(None, BATCH)
    specs = (replicated, replicated, batch_sharded, *(replicated,) * 5)
    # check_vma would require marking the loop's initial zeros as different on each device.
    run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=replicated, check_vma=False)
    return run(*map(as_pytree, args))


def _run_part(state, split, order, start, stop, key, loss_fn, prepare, axis_name=None):
    """`run_steps` on one device; `order` holds its part of each batch."""

    def body(i, carry):
        state, sums = carry
        images, labels = split.images[order[i]], split.labels[order[i]]
        if prepare is not None:
            step_key = jax.random.fold_in(seeds.as_key(key), i)
        if callable(prepare):
            if axis_name is not None:
                step_key = jax.random.fold_in(step_key, lax.axis_index(axis_name))
            batch = prepare(step_key, images, labels)
        else:
            if prepare is not None:
                images = augment(step_key, images, prepare, axis_name=axis_name)
            batch = {"image": normalize(images, split.mean, split.std), "label": labels}
        state, step_metrics = update(state, batch, loss_fn, axis_name=axis_name)
        return state, jax.tree.map(lambda s, m: s + m.astype(s.dtype), sums, step_metrics)

    zeros = {"loss": jnp.float32(0), "accuracy": jnp.float32(0)}
    return lax.fori_loop(start, stop, body, (state, zeros))


FUNCTIONS = ("loss_fn", "prepare")  # arguments that are functions
train_steps = jit(run_steps, functions=FUNCTIONS, static_argnames="mesh", donate_argnames="state")


@partial(jit, functions=FUNCTIONS, static_argnames=("batch_size", "mesh"), donate_argnames="state")
def train_epoch(
    state: TrainState,
    split: Split,
    key: ArrayLike,
    *,
    batch_size: int = 64,
    loss_fn: LossFn = losses.cross_entropy,
    prepare: Prepare | AugmentConfig | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Consumes its state: one epoch (shuffle, gather, prepare, update), all compiled.

    Args:
      state: from `create_train_state`.
      split: of uint8 images, such as `data.load("digits").train`.
      key: decides the order and the draws of `prepare`; fold in the number of the epoch.
      loss_fn, prepare, mesh: see `run_steps`.

    Returns:
      The state after S updates and the means over them: {"loss", "accuracy"}, two scalars.

    Raises:
      TypeError, ValueError: as `check_split` and, for what `prepare` returns, as `step.update`.

    >>> from lenet_jax import create_train_state, make_optimizer
    >>> state = create_train_state(jax.random.key(0), make_optimizer("adam"))
    >>> images, labels = jnp.zeros((20, 32, 32, 1), jnp.uint8), jnp.arange(20) % 10
    >>> split = Split(images, labels, mean=0.5, std=0.5)
    >>> state, metrics = train_epoch(state, split, jax.random.key(1), batch_size=10)
    >>> int(state.step)
    2
    """
    check_split(split, batch_size)
    key = seeds.as_key(key)
    order = epoch_order(key, len(split.images), batch_size=batch_size)
    run = partial(run_steps, key=seeds.augment_key(key), loss_fn=loss_fn, prepare=prepare)
    state, sums = run(state, split, order, 0, len(order), mesh=mesh)
    return state, jax.tree.map(lambda total: total / len(order), sums)


def check_split(split: Split, batch_size: int = 1) -> None:
    """Validates a split that is used in batches; its labels may be None.

    Raises:
      TypeError: the images are not uint8.
      ValueError: the images are not square, [N, side, side, channels], or the numbers of images
        and labels differ or are less than a batch.
    """
    images, labels = split.images, split.labels
    if images.dtype != jnp.uint8:
        raise TypeError(
            f"images must be uint8 pixels from 0 to 255, got {images.dtype}: this function scales "
            "and normalises them; convert images in 0..1 by (255 * images).astype(numpy.uint8)"
        )
    if images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise ValueError(
            f"images must be [N, {IMAGE_SIZE}, {IMAGE_SIZE}, channels], got {list(images.shape)}"
            f"{shape_hint(images.shape)}"
        )
    count = len(images)
    if labels is not None and len(labels) != count:
        raise ValueError(f"there must be as many labels as images, got {len(labels)} and {count}")
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size={batch_size} must be from 1 to the number of images, {count}")


@partial(jit, static_argnames=("model", "batch_size"))
def predict(model: nn.Module, params: Any, split: Split, *, batch_size: int = 1000) -> jax.Array:
    """Logits [N, classes] of a split, whose labels are ignored.

    It processes `batch_size` images at a time, and the remaining N % B as a smaller batch.

    Raises:
      TypeError, ValueError: as `check_split`.
    """
    check_split(split._replace(labels=None))

    def forward(images: jax.Array) -> jax.Array:
        return apply(model, params, normalize(images, split.mean, split.std))

    images = jnp.asarray(split.images)
    full, rest = divmod(len(images), batch_size)
    batches = images[: full * batch_size].reshape(full, batch_size, *images.shape[1:])
    parts = [lax.map(forward, batches).reshape(full * batch_size, -1)] if full else []
    if rest:
        parts.append(forward(images[full * batch_size :]))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


@partial(jit, functions=("loss_fn",), static_argnames="batch_size")
def evaluate(
    state: TrainState,
    split: Split,
    *,
    batch_size: int = 1000,
    loss_fn: LossFn = losses.cross_entropy,
) -> Metrics:
    """{"loss", "accuracy"}, two scalars, of a split, with every image counted once; see `predict`.

    Raises:
      TypeError, ValueError: as `check_split`, or the loss is not a scalar.
    """
    check_split(split)
    logits = predict(state.model, state.params, split, batch_size=batch_size)
    return measure(logits, split.labels, loss_fn)
