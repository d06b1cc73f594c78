"""Whole passes over a data set that lies on the device as uint8, as one program each.

N is the number of examples, B the batch, S = N // B the steps of an epoch.

Devices can share a batch: see `make_mesh`. So can the cores of a CPU, once they are devices
(`jax.config.update("jax_num_cpu_devices", 2)` before JAX is used): each computes its part of the
batch by itself and they meet once a step, where two cores on one device meet in every operation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from lenet_jax.core import losses, metrics, ops
from lenet_jax.core.augment import Strengths, augment
from lenet_jax.core.jit import jit
from lenet_jax.core.step import LossFn, Metrics, TrainState, update

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081  # of the training pixels, as torchvision's examples
AXIS = "batch"  # of a mesh of devices


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
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """A part of an epoch, pure and not jitted: for `vmap` and research code; see `train_steps`.

    With an `axis_name`, `order` is this device's part of each batch; see `step.update`.
    """

    def body(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, sums = carry
        pixels = images[order[i]]
        if strengths is not None:
            now = jax.random.fold_in(key, i)
            pixels = augment(now, pixels, strengths, axis_name=axis_name)
        batch = {"image": normalize(pixels, mean, std), "label": labels[order[i]]}
        state, step_metrics = update(state, batch, loss_fn, axis_name=axis_name)
        return state, jax.tree.map(lambda s, m: s + m.astype(s.dtype), sums, step_metrics)

    zeros = {"loss": jnp.float32(0), "accuracy": jnp.float32(0)}
    return lax.fori_loop(start, stop, body, (state, zeros))


def make_mesh(batch_size: int) -> Mesh:
    """The devices that share each batch: as many as get equal parts, none too small to be worth it.

    Of GPUs and TPUs it takes one, since what they would lose in waiting has not been measured; they
    share batches over any mesh whose one axis is named `AXIS`.

    With the state and the data on all of them, a step starts at once:

        mesh = make_mesh(batch_size)
        state, images, labels = replicate(mesh, (state, images, labels))
        state, metrics = train_epoch(state, images, labels, key, batch_size=batch_size, mesh=mesh)
    """
    worth_it = lambda count: batch_size % count == 0 and batch_size // count >= ops.LANES
    devices = jax.devices() if jax.default_backend() == "cpu" else jax.devices()[:1]
    count = max(filter(worth_it, range(2, len(devices) + 1)), default=1)
    return jax.make_mesh((count,), (AXIS,), (AxisType.Auto,), devices=devices[:count])


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The tree's arrays, whole on each device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def unreplicate(tree: Any) -> Any:
    """The tree's arrays on the first of their devices, not copied: `evaluate` is no mesh's work."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


@partial(jit, static_argnames=("loss_fn", "mesh"), donate_argnames="state")
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
    mesh: Mesh | None = None,
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
      mesh: from `make_mesh`: devices that share each batch, of which `loss_fn` is to be a mean;
        None for one device.

    Returns:
      The state after them and the *sums* of the steps' {"loss", "accuracy"}, so that parts add up.
    """
    numbers = {"mean": mean, "std": std, "key": key, "strengths": strengths}
    return _shared(mesh, loss_fn)(state, images, labels, order, start, stop, numbers)


@partial(jit, static_argnames=("batch_size", "loss_fn", "mesh"), donate_argnames="state")
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
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Consumes its state: one epoch (shuffle, gather, distort, normalise, update) as one program.

    Args:
      state: from `create_train_state`.
      images: uint8 [N, 32, 32, 1]. labels: int32 [N].
      key: decides the order and the distortions; fold the epoch's number in.
      mean, std: of the training pixels, see `normalize`.
      strengths: of the distortions, see `augment`; None for none.
      mesh: of devices that share each batch, see `train_steps`.

    Returns:
      The state after S updates and the means over them: {"loss", "accuracy"}.

    Raises:
      TypeError: the images are not uint8.
      ValueError: there are not as many labels as images, or fewer than a batch.

    >>> from lenet_jax import create_train_state, make_optimizer
    >>> state = create_train_state(jax.random.key(0), make_optimizer("adam"))
    >>> images, labels = jnp.zeros((20, 32, 32, 1), jnp.uint8), jnp.arange(20) % 10
    >>> state, metrics = train_epoch(state, images, labels, jax.random.key(1), batch_size=10)
    >>> int(state.step)
    2
    """
    _check(images, labels, batch_size)
    order = epoch_order(key, images.shape[0], batch_size=batch_size)
    steps = order.shape[0]
    numbers = {"mean": mean, "std": std, "strengths": strengths}
    numbers["key"] = jax.random.fold_in(key, 1)
    state, sums = _shared(mesh, loss_fn)(state, images, labels, order, 0, steps, numbers)
    return state, jax.tree.map(lambda total: total / steps, sums)


def _check(images: jax.Array, labels: jax.Array, batch_size: int) -> None:
    check_images(images)
    if len(images) != len(labels):
        raise ValueError(
            f"images and labels must be as many of each, got {len(images)} and {len(labels)}"
        )
    if not 1 <= batch_size <= len(images):
        raise ValueError(
            f"batch_size={batch_size} must be from 1 to the number of images, {len(images)}"
        )


def check_images(images: jax.Array) -> None:
    """Raises TypeError if the images are not uint8 pixels, as `normalize` wants them."""
    if images.dtype != jnp.uint8:
        raise TypeError(
            f"images must be uint8 pixels from 0 to 255, got {images.dtype}: they are divided by "
            "255 and normalised here; of images in 0..1 give (255 * images).astype(numpy.uint8)"
        )


def _shared(mesh: Mesh | None, loss_fn: LossFn) -> Callable:
    """`run_steps` on the devices of a mesh, each with its part of every batch."""
    axis_name = None if mesh is None or mesh.size == 1 else AXIS
    run = lambda *args: run_steps(*args[:-1], loss_fn=loss_fn, axis_name=axis_name, **args[-1])
    if axis_name is None:
        return run
    everywhere, columns = PartitionSpec(), PartitionSpec(None, AXIS)
    specs = (everywhere, everywhere, everywhere, columns, everywhere, everywhere, everywhere)
    # Unchecked, as in `population`: the loop's zeros would have to be marked as different.
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=everywhere, check_vma=False)


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

    Raises:
      TypeError: the images are not uint8.
    """
    check_images(images)

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
