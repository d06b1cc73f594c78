"""Whole passes over a data set that lies on the device as uint8, as one program each.

N is the number of examples, B the batch, S = N // B the steps of an epoch.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from lenet_jax import losses, metrics
from lenet_jax.augment import Strengths, augment
from lenet_jax.compiling import jit
from lenet_jax.step import LossFn, Metrics, TrainState, update

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081  # of the training pixels, as torchvision's examples


def normalize(images: jax.Array, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """uint8 pixels to float32 with the training split's mean and deviation (of pixels in 0..1)."""
    return (images.astype(jnp.float32) / 255 - mean) / std


@partial(jax.jit, static_argnames=("num_examples", "batch_size"))
def epoch_order(key: jax.Array, num_examples: int, *, batch_size: int) -> jax.Array:
    """A random order as batches of indices: int32 [S, B].

    The N % B examples left over stay out of this epoch; the next epoch's order is another one.
    """
    steps = num_examples // batch_size
    order = jax.random.permutation(key, num_examples)[: steps * batch_size]
    return order.reshape(steps, batch_size)


def run_steps(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    start: ArrayLike,
    stop: ArrayLike,
    *,
    mean: ArrayLike = MNIST_MEAN,
    std: ArrayLike = MNIST_STD,
    loss_fn: LossFn = losses.cross_entropy,
    key: jax.Array | None = None,
    strengths: Strengths | None = None,
) -> tuple[TrainState, Metrics]:
    """A part of an epoch, pure and not jitted: for `vmap` and research code; see `train_steps`."""

    def body(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, sums = carry
        pixels = images[order[i]]
        if strengths is not None:
            pixels = augment(jax.random.fold_in(key, i), pixels, strengths)
        batch = {"image": normalize(pixels, mean, std), "label": labels[order[i]]}
        state, step_metrics = update(state, batch, loss_fn)
        return state, jax.tree.map(lambda s, m: s + m.astype(s.dtype), sums, step_metrics)

    zeros = {"loss": jnp.float32(0), "accuracy": jnp.float32(0)}
    return lax.fori_loop(start, stop, body, (state, zeros))


@partial(jit, static_argnames="loss_fn", donate_argnames="state")
def train_steps(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    start: ArrayLike,
    stop: ArrayLike,
    *,
    mean: ArrayLike = MNIST_MEAN,
    std: ArrayLike = MNIST_STD,
    loss_fn: LossFn = losses.cross_entropy,
    key: jax.Array | None = None,
    strengths: Strengths | None = None,
) -> tuple[TrainState, Metrics]:
    """Consumes its state: a part of an epoch, so that a caller can show progress or stop.

    Args:
      state: from `create_train_state`.
      images: uint8 [N, 32, 32, 1]. labels: int32 [N].
      order: int32 [S, B] from `epoch_order`.
      start, stop: which rows of `order`; data, so that every part of an epoch is the same program.
      mean, std: of the training pixels, see `normalize`.
      key, strengths: of the distortions, see `augment`; the key decides those of the whole epoch.
        None for none.

    Returns:
      The state after them and the *sums* of the steps' {"loss", "accuracy"}, so that parts add up.
    """
    how = {"mean": mean, "std": std, "loss_fn": loss_fn, "key": key, "strengths": strengths}
    return run_steps(state, images, labels, order, start, stop, **how)


@partial(jit, static_argnames=("batch_size", "loss_fn"), donate_argnames="state")
def train_epoch(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    batch_size: int = 64,
    mean: ArrayLike = MNIST_MEAN,
    std: ArrayLike = MNIST_STD,
    loss_fn: LossFn = losses.cross_entropy,
    strengths: Strengths | None = None,
) -> tuple[TrainState, Metrics]:
    """Consumes its state: one epoch (shuffle, gather, distort, normalise, update) as one program.

    Args:
      state: from `create_train_state`.
      images: uint8 [N, 32, 32, 1]. labels: int32 [N].
      key: decides the order and the distortions; fold the epoch's number in.
      mean, std: of the training pixels, see `normalize`.
      strengths: of the distortions, see `augment`; None for none.

    Returns:
      The state after S updates and the means over them: {"loss", "accuracy"}.

    >>> from lenet_jax import create_train_state, make_optimizer
    >>> state = create_train_state(jax.random.key(0), make_optimizer("adam"))
    >>> images, labels = jnp.zeros((20, 32, 32, 1), jnp.uint8), jnp.arange(20) % 10
    >>> state, metrics = train_epoch(state, images, labels, jax.random.key(1), batch_size=10)
    >>> int(state.step)
    2
    """
    order = epoch_order(key, images.shape[0], batch_size=batch_size)
    steps = order.shape[0]
    how = {"mean": mean, "std": std, "loss_fn": loss_fn, "strengths": strengths}
    how["key"] = jax.random.fold_in(key, 1)
    state, sums = run_steps(state, images, labels, order, 0, steps, **how)
    return state, jax.tree.map(lambda total: total / steps, sums)


@partial(jit, static_argnames=("model", "batch_size"))
def predict(
    model: nn.Module,
    params: Any,
    images: jax.Array,
    *,
    batch_size: int = 1000,
    mean: ArrayLike = MNIST_MEAN,
    std: ArrayLike = MNIST_STD,
) -> jax.Array:
    """Logits [N, 10] of uint8 images [N, 32, 32, 1], at most `batch_size` in work at a time.

    The N % B images that do not fill a batch are a smaller batch of their own.
    """

    def forward(images: jax.Array) -> jax.Array:
        return model.apply({"params": params}, normalize(images, mean, std))

    full, rest = divmod(images.shape[0], batch_size)
    batches = images[: full * batch_size].reshape(full, batch_size, *images.shape[1:])
    logits = lax.map(forward, batches).reshape(full * batch_size, -1) if full else None
    if not rest:
        return logits
    last = forward(images[full * batch_size :])
    return last if logits is None else jnp.concatenate([logits, last])


@partial(jit, static_argnames=("batch_size", "loss_fn"))
def evaluate(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    batch_size: int = 1000,
    mean: ArrayLike = MNIST_MEAN,
    std: ArrayLike = MNIST_STD,
    loss_fn: LossFn = losses.cross_entropy,
) -> Metrics:
    """{"loss", "accuracy"} of a whole split, every example counted once; see `predict`."""
    scaling = {"mean": mean, "std": std}
    logits = predict(state.model, state.params, images, batch_size=batch_size, **scaling)
    return {"loss": loss_fn(logits, labels), "accuracy": metrics.accuracy(logits, labels)}
