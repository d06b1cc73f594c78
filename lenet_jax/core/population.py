"""Many networks trained as one program: `jax.vmap` over seeds and numbers, in slices that fit.

N networks, M images, B the batch, S the steps of an epoch. Each member ends as the same network
trained alone would, to float32 rounding: that of `python -m lenet_jax.train --seed=3` is the member
with `seed` 3 and `order_seed` 3. Devices share the members and never wait for each other;
cores can be devices, too (`jax.config.update("jax_num_cpu_devices", 2)` before JAX is used): two
cores on two networks do 1.3 times as much as both on one, where they meet after every operation.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from lenet_jax.core import augment, epoch, losses
from lenet_jax.core.jit import jit
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import Schedule, make_optimizer, make_schedule
from lenet_jax.core.step import Metrics, TrainState, create_train_state

AXIS = "members"  # of a mesh of devices
PARTS = 10  # of an epoch: how often `train` reports, and the points of its curves


class Members(NamedTuple):
    """What distinguishes N networks: numbers [N] (lists, too), or one number for all of them.

    An `order_seed` that all share makes them see the same batches, which are then gathered once.
    Numbers that are None leave their part out of the program.
    """

    seed: ArrayLike  # of the initialisation
    order_seed: ArrayLike = 0  # of data order and distortions
    learning_rate: ArrayLike | None = None  # None for the optimizer's own
    settings: dict[str, ArrayLike] | None = (
        None  # the optimizer's others, as `make_optimizer` takes them
    )
    label_smoothing: ArrayLike | None = None
    augment: ArrayLike | None = None  # times `augment.STANDARD`


class Population(NamedTuple):
    """N trained networks; one that diverged leaves the others as they are."""

    params: Any  # leaves [N, ...]
    # {"loss", "accuracy"}, each [N, epochs * min(PARTS, S)]: means over parts of an epoch
    curves: Metrics
    finite: np.ndarray  # bool [N]: whether all parameters and losses are


def train(
    members: Members,
    images: jax.Array,
    labels: jax.Array,
    *,
    optimizer: str = "adam",
    epochs: int,
    batch_size: int = 64,
    schedule: str = "onecycle",
    mean: ArrayLike = epoch.MNIST_MEAN,
    std: ArrayLike = epoch.MNIST_STD,
    slice_size: int = 8,
    report: Callable[[int], None] = lambda updates: None,
) -> Population:
    """Trains N networks with cross-entropy, `slice_size` of them at a time, on all devices.

    Args:
      members: what distinguishes them; different optimizers are different calls.
      images: uint8 [M, 32, 32, 1]. labels: int32 [M].
      optimizer: one of `optimizers.OPTIMIZERS`. schedule: one of `optimizers.SCHEDULES`.
      mean, std: of the training pixels, see `epoch.normalize`.
      report: is called with the number of updates that were done, networks' updates added up.

    Raises:
      TypeError: the images are not uint8.
      ValueError: fields of `members` have different lengths, a name is unknown, or a number leaves
        nothing to do.
    """
    epoch.check_images(images)
    _check(len(labels), epochs=epochs, batch_size=batch_size, slice_size=slice_size)
    steps = len(labels) // batch_size
    course = None if schedule == "constant" else make_schedule(schedule, epochs * steps)
    scaling = {"mean": mean, "std": std}
    done = []
    for part in slices(members, slice_size):
        count, curve = size(part), []
        mesh = make_mesh(count)
        part = _fill(part, mesh)
        states = create(part, optimizer, course)
        states = jax.device_put(states, NamedSharding(mesh, PartitionSpec(AXIS)))
        shared = epoch.replicate(mesh, (images, labels))
        for number in range(epochs):
            orders = epoch_orders(part, number, len(labels), batch_size=batch_size)
            for start, stop in _parts(steps):
                states, sums = train_steps(
                    states, part, *shared, orders, number, start, stop, mesh=mesh, **scaling
                )
                curve.append(jax.tree.map(lambda s, n=stop - start: np.asarray(s) / n, sums))
                report((stop - start) * count)
        curves = jax.tree.map(lambda *points: np.stack(points, axis=1), *curve)
        arrays = jax.tree.map(np.asarray, (states.params, curves))
        done.append(jax.tree.map(lambda leaf, n=count: leaf[:n], arrays))
    params, curves = jax.tree.map(lambda *parts: np.concatenate(parts), *done)
    leaves = (*jax.tree.leaves(params), *curves.values())
    finite = [np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in leaves]
    return Population(params, curves, np.logical_and.reduce(finite))


def size(members: Members) -> int:
    """N.

    Raises:
      ValueError: there is not one seed for each, or another field has another length.

    >>> size(Members(seed=[0, 1, 2], learning_rate=0.1))
    3
    """
    members = _arrays(members)
    if members.seed.ndim != 1 or not members.seed.size:
        raise ValueError(f"members.seed must be [N], a seed for each, got {members.seed!r}")
    count = len(members.seed)
    lengths = {len(leaf) for leaf in jax.tree.leaves(members) if leaf.ndim}
    if lengths != {count}:
        raise ValueError(f"the fields of members have different lengths: {sorted(lengths)}")
    return count


def slices(members: Members, slice_size: int) -> Iterator[Members]:
    """Parts of at most `slice_size` members, as equal as can be: each size compiles anew.

    Their fields are arrays.

    >>> [size(part) for part in slices(Members(seed=np.arange(9)), 4)]
    [3, 3, 3]
    """
    count, members = size(members), _arrays(members)
    for rows in np.array_split(np.arange(count), -(-count // slice_size)):
        yield jax.tree.map(lambda leaf, rows=rows: leaf[rows] if np.ndim(leaf) else leaf, members)


def make_mesh(count: int) -> Mesh:
    """The devices that `count` members are spread over: as many as shorten the work."""
    rounds = -(-count // len(jax.devices()))
    devices = jax.devices()[: -(-count // rounds)]
    return jax.make_mesh((len(devices),), (AXIS,), (AxisType.Auto,), devices=devices)


def _fill(members: Members, mesh: Mesh) -> Members:
    """The last member once more where a device would have less to do than the others."""
    count = size(members)
    rows = np.minimum(np.arange(-(-count // mesh.size) * mesh.size), count - 1)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows] if np.ndim(leaf) else leaf, members)


@partial(jit, static_argnames=("optimizer", "schedule"))
def create(members: Members, optimizer: str, schedule: Schedule | None = None) -> TrainState:
    """N fresh states as one, leaves [N, ...]; see `make_optimizer` for the rest."""

    def one(member: Members) -> TrainState:
        tx = make_optimizer(
            optimizer, member.learning_rate, schedule=schedule, **(member.settings or {})
        )
        # As `train` has it, and likewise in `_epoch_key`: its one seed is folded with 0 and 1.
        return create_train_state(jax.random.fold_in(jax.random.key(member.seed), 0), tx)

    return _vmap(one, members)(members)


@partial(jax.jit, static_argnames=("num_examples", "batch_size"))
def epoch_orders(
    members: Members, number: ArrayLike, num_examples: int, *, batch_size: int
) -> jax.Array:
    """Each member's order in epoch `number`, int32 [N, S, B]; [S, B] if they share it."""

    def one(seed: jax.Array) -> jax.Array:
        return epoch.epoch_order(_epoch_key(seed, number), num_examples, batch_size=batch_size)

    return (jax.vmap(one) if jnp.ndim(members.order_seed) else one)(members.order_seed)


@partial(jit, static_argnames="mesh", donate_argnames="states")
def train_steps(
    states: TrainState,
    members: Members,
    images: jax.Array,
    labels: jax.Array,
    orders: jax.Array,
    number: ArrayLike,
    start: ArrayLike,
    stop: ArrayLike,
    *,
    mean: ArrayLike = epoch.MNIST_MEAN,
    std: ArrayLike = epoch.MNIST_STD,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Consumes its states: rows `start` to `stop` of epoch `number`, for all members.

    Args:
      states: from `create`.
      orders: from `epoch_orders`.
      mesh: of devices that share the members, see `make_mesh`; None for no choice of devices.
      The others: see `epoch.train_steps`.

    Returns:
      The states after them and the *sums* of the steps' {"loss", "accuracy"}, [N] each.
    """

    def one(member: Members, state: TrainState, order: jax.Array, shared: tuple) -> tuple:
        images, labels, number, start, stop, mean, std = shared
        loss_fn, how = losses.cross_entropy, {}
        if member.label_smoothing is not None:
            loss_fn = partial(losses.cross_entropy, label_smoothing=member.label_smoothing)
        if member.augment is not None:
            how["key"] = jax.random.fold_in(_epoch_key(member.order_seed, number), 1)
            how["strengths"] = augment.strengths(member.augment)
        how |= {"mean": mean, "std": std, "loss_fn": loss_fn}
        return epoch.run_steps(state, images, labels, order, start, stop, **how)

    own = orders.ndim == 3
    run = _vmap(one, members, 0, 0 if own else None, None)
    if mesh is not None:
        spread, everywhere = PartitionSpec(AXIS), PartitionSpec()
        specs = jax.tree.map(lambda leaf: spread if jnp.ndim(leaf) else everywhere, members)
        specs = (specs, spread, spread if own else everywhere, everywhere)
        # Unchecked, because the check wants the zeros that a loop starts from marked as spread.
        run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=spread, check_vma=False)
    shared = (images, labels, number, start, stop, mean, std)
    return run(members, states, orders, shared)


@partial(jit, static_argnames=("batch_size", "slice_size"))
def predict(
    params: Any,
    images: jax.Array,
    *,
    batch_size: int = 250,
    slice_size: int = 8,
    mean: ArrayLike = epoch.MNIST_MEAN,
    std: ArrayLike = epoch.MNIST_STD,
) -> jax.Array:
    """Logits [N, M, 10] of N networks (leaves [N, ...]) for uint8 images [M, 32, 32, 1].

    At most `batch_size` images of `slice_size` networks are in work at a time.
    """
    return lax.map(
        lambda one: epoch.predict(LeNet(), one, images, batch_size=batch_size, mean=mean, std=std),
        params,
        batch_size=slice_size,
    )


def ensemble(logits: jax.Array) -> jax.Array:
    """Log-probabilities [M, 10] of N networks together: the mean of their probabilities.

    Args:
      logits: [N, M, 10].
    """
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(len(logits))


def _check(images: int, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if numbers["batch_size"] > images:
        raise ValueError(f"batch_size={numbers['batch_size']}: there are only {images} images")


def _arrays(members: Members) -> Members:
    """Its numbers as arrays: to JAX a list is none, but a tree. A tuple in `settings` is one."""
    is_list = lambda value: isinstance(value, list)
    settings = jax.tree.map(np.asarray, members.settings, is_leaf=is_list)
    fields = members._replace(settings=None)
    arrays = (None if field is None else np.asarray(field) for field in fields)
    return Members(*arrays)._replace(settings=settings)


def _parts(steps: int) -> Iterator[tuple[int, int]]:
    bounds = [round(part * steps / PARTS) for part in range(PARTS + 1)]
    return ((start, stop) for start, stop in pairwise(bounds) if stop > start)


def _epoch_key(order_seed: ArrayLike, number: ArrayLike) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(order_seed), 1), number)


def _vmap(one: Callable, members: Members, *other_axes: int | None) -> Callable:
    """`one` over members, of whom the numbers that all share are not repeated."""
    axes = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, members)
    return jax.vmap(one, in_axes=(axes, *other_axes))
