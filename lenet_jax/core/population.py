"""Many networks trained as one compiled function: `jax.vmap` over seeds and numbers, in slices.

N networks, M images, C classes, B the batch, S the steps per epoch. Each member equals the same
network trained alone, to float32 rounding: the member with `seed` 3 and `order_seed` 3 is the
network of `python -m lenet_jax.train --seed=3`. Devices share the members and never synchronise:
two cores with a network each are 1.2 times as fast as two cores that share one.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike

from lenet_jax.core import epoch, losses, seeds
from lenet_jax.core.augment import AugmentConfig, augment_config
from lenet_jax.core.jit import jit
from lenet_jax.core.model import model_for
from lenet_jax.core.optimizers import Schedule, make_optimizer, make_schedule, static_part
from lenet_jax.core.sharding import MEMBERS, make_member_mesh, replicate, shard
from lenet_jax.core.split import Split
from lenet_jax.core.step import LossFn, Metrics, TrainState, create_train_state

POINTS_PER_EPOCH = 10  # of the learning curves; `train` reports its progress at each


class MemberConfig(NamedTuple):
    """The differences between N networks: numbers [N] (or lists), or one number for all networks.

    With a common `order_seed`, all networks see the same batches, which are gathered only once.
    None leaves a part out.
    """

    seed: ArrayLike  # for the initial parameters
    order_seed: ArrayLike = 0  # for the order of the images and the draws of `prepare`
    learning_rate: ArrayLike | None = None  # None: the optimizer's default
    optimizer_settings: dict[str, ArrayLike] | None = None  # others, see `make_optimizer`
    label_smoothing: ArrayLike | None = None
    augment: ArrayLike | None = None  # multiple of one of `augment.STANDARDS`
    numbers: dict[str, ArrayLike] | None = None  # your own, for `make`


class Recipe(NamedTuple):
    """How a member is trained: any optax transformation, loss and `epoch.run_steps(prepare=)`."""

    tx: optax.GradientTransformation
    loss_fn: LossFn = losses.cross_entropy
    prepare: epoch.Prepare | AugmentConfig | None = None


Make = Callable[[MemberConfig], Recipe | tuple]  # of one member, whose numbers are scalars


class Population(NamedTuple):
    """N trained networks; one that diverges does not affect the others."""

    params: Any  # leaves [N, ...]
    curves: Metrics  # {"loss", "accuracy"}, each [N, points]: means over parts of an epoch
    finite: np.ndarray  # bool [N]: whether all parameters and losses are finite


def train(
    members: MemberConfig,
    split: Split,
    *,
    make: Make | None = None,
    optimizer: str = "adam",
    epochs: int,
    batch_size: int = 64,
    schedule: str = "onecycle",
    slice_size: int = 8,
    model: nn.Module | None = None,
    augment_kind: str = "elastic",
    log_updates: Callable[[int], None] = lambda updates: None,
) -> Population:
    """Trains N networks, `slice_size` of them at a time, on all devices.

    Args:
      members: see `MemberConfig`; another optimizer needs another call.
      split: of uint8 images.
      make: a function of one member, whose numbers are traced, to its `Recipe`, or to a tuple like
        `(optax.adam(member.learning_rate), losses.mse)`. A lambda compiles at every `train`. None:
        `named_recipe`, which alone uses `optimizer`, `schedule` and `augment_kind`.
      optimizer, schedule: names from `optimizers.OPTIMIZERS` and `optimizers.SCHEDULES`.
      model: the network of all members; `LeNet()` if None.
      augment_kind: the key in `augment.STANDARDS` that the members' `augment` multiplies.
      log_updates: receives the number of new updates, counted over all networks.

    Raises:
      TypeError: the images are not uint8.
      ValueError: fields of `members` differ in length, a name is unknown, or a number leaves
        nothing to train.
    """
    epoch.check_split(split, batch_size)
    for name, value in {"epochs": epochs, "slice_size": slice_size}.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    steps = len(split.labels) // batch_size
    schedule_fn = None if schedule == "constant" else make_schedule(schedule, epochs * steps)
    make = make or named_recipe(optimizer, schedule_fn, augment_kind)
    done, parts = [], list(slices(members, slice_size))
    size = num_members(parts[0])  # the largest; the others are padded to it, to compile once
    mesh = make_member_mesh(size)
    replicated, train_chunk = replicate(mesh, split), partial(train_steps, make=make, mesh=mesh)
    for part in parts:
        count, curve = num_members(part), []
        part = _pad(part, -(-size // mesh.size) * mesh.size)
        states = shard(mesh, create(part, make, model))
        for number in range(epochs):
            orders = epoch_orders(part, number, len(split.labels), batch_size=batch_size)
            for start, stop in _iter_chunks(steps):
                chunk = (replicated, orders, number, start, stop)
                states, sums = train_chunk(states, part, *chunk)
                curve.append(jax.tree.map(lambda s, n=stop - start: np.asarray(s) / n, sums))
                log_updates((stop - start) * count)
        curves = jax.tree.map(lambda *points: np.stack(points, axis=1), *curve)
        arrays = jax.tree.map(np.asarray, (states.params, curves))
        done.append(jax.tree.map(lambda leaf, n=count: leaf[:n], arrays))
    params, curves = jax.tree.map(lambda *parts: np.concatenate(parts), *done)
    leaves = (*jax.tree.leaves(params), *curves.values())
    finite = [np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in leaves]
    return Population(params, curves, np.logical_and.reduce(finite))


@cache  # the same object for the same names, because it is static
def named_recipe(
    optimizer: str, schedule: Schedule | None = None, augment_kind: str = "elastic"
) -> Make:
    """The `make` of `train`: an optimizer by its name, and cross-entropy, smoothed and augmented.

    Raises:
      ValueError: in the returned function, as `make_optimizer`.

    >>> named_recipe("adam") is named_recipe("adam")
    True
    """

    def make(member: MemberConfig) -> Recipe:
        settings, loss_fn = member.optimizer_settings or {}, losses.cross_entropy
        if member.label_smoothing is not None:
            loss_fn = partial(loss_fn, label_smoothing=member.label_smoothing)
        tx = make_optimizer(optimizer, member.learning_rate, schedule=schedule, **settings)
        amount = member.augment
        return Recipe(tx, loss_fn, None if amount is None else augment_config(amount, augment_kind))

    return make


def num_members(members: MemberConfig) -> int:
    """N.

    Raises:
      ValueError: `seed` is not [N], or another field has another length.

    >>> num_members(MemberConfig(seed=[0, 1, 2], learning_rate=0.1))
    3
    """
    members = _arrays(members)
    seed = np.asarray(members.seed)
    if seed.ndim != 1 or not seed.size:
        raise ValueError(f"members.seed must be [N], one seed per network, got {seed!r}")
    count = len(seed)
    lengths = {len(leaf) for leaf in jax.tree.leaves(members) if leaf.ndim}
    if lengths != {count}:
        raise ValueError(f"the fields of members have different lengths: {sorted(lengths)}")
    return count


def slices(members: MemberConfig, slice_size: int) -> Iterator[MemberConfig]:
    """Parts of at most `slice_size` members with arrays as fields.

    They are as equal as possible, and the first is the largest.

    Raises:
      ValueError: as `num_members`.

    >>> [num_members(part) for part in slices(MemberConfig(seed=np.arange(9)), 4)]
    [3, 3, 3]
    """
    count, members = num_members(members), _arrays(members)
    for rows in np.array_split(np.arange(count), -(-count // slice_size)):
        yield _take(members, rows)


def _pad(members: MemberConfig, size: int) -> MemberConfig:
    """Repeats the last member until there are `size`."""
    return _take(members, np.minimum(np.arange(size), num_members(members) - 1))


def _take(members: MemberConfig, rows: np.ndarray) -> MemberConfig:
    return jax.tree.map(lambda leaf: leaf[rows] if np.ndim(leaf) else leaf, members)


@partial(jit, functions=("make",), static_argnames="model")
def create(members: MemberConfig, make: Make, model: nn.Module | None = None) -> TrainState:
    """N initial states as one with leaves [N, ...], without `tx`: `make` gives each its own.

    Raises:
      ValueError: as `create_train_state`.
    """

    def one(member: MemberConfig) -> TrainState:
        tx = Recipe(*make(member)).tx
        return create_train_state(seeds.init_key(member.seed), tx, model).replace(tx=None)

    return _vmap(one, members)(members)


@partial(jax.jit, static_argnames=("num_examples", "batch_size"))
def epoch_orders(
    members: MemberConfig, number: ArrayLike, num_examples: int, *, batch_size: int
) -> jax.Array:
    """Each member's order in epoch `number`, int32 [N, S, B], or [S, B] if all share one."""

    def one(seed: ArrayLike) -> jax.Array:
        return epoch.epoch_order(seeds.epoch_key(seed, number), num_examples, batch_size=batch_size)

    return (jax.vmap(one) if jnp.ndim(members.order_seed) else one)(members.order_seed)


@partial(jit, functions=("make",), static_argnames="mesh", donate_argnames="states")
def train_steps(
    states: TrainState,
    members: MemberConfig,
    split: Split,
    orders: jax.Array,
    number: ArrayLike,
    start: ArrayLike,
    stop: ArrayLike,
    *,
    make: Make,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Consumes its states: rows `start` to `stop` of epoch `number`, for all members.

    Args:
      states, orders: from `create` and `epoch_orders`.
      mesh: from `sharding.make_member_mesh`: the devices that share the members. None: default
        placement.
      The others: see `train` and `epoch.run_steps`.

    Returns:
      The next states and the *sums* of the steps' {"loss", "accuracy"}, [N] each.
    """

    def one(member: MemberConfig, state: TrainState, order: jax.Array, shared: tuple) -> tuple:
        split, number, start, stop, make = shared
        tx, loss_fn, prepare = Recipe(*make(member))  # `tx` may close over traced numbers
        key = seeds.augment_key(seeds.epoch_key(member.order_seed, number))
        run = partial(epoch.run_steps, key=key, loss_fn=loss_fn, prepare=prepare)
        state, sums = run(state.replace(tx=static_part(tx)), split, order, start, stop)
        return state.replace(tx=None), sums

    own_orders = orders.ndim == 3
    run = _vmap(one, members, 0, 0 if own_orders else None, None)
    if mesh is not None:
        sharded, replicated = PartitionSpec(MEMBERS), PartitionSpec()
        specs = jax.tree.map(lambda leaf: sharded if jnp.ndim(leaf) else replicated, members)
        specs = (specs, sharded, sharded if own_orders else replicated, replicated)
        # check_vma would require marking the loop's initial zeros as sharded.
        run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=sharded, check_vma=False)
    return run(members, states, orders, (split, number, start, stop, make))


@partial(jit, static_argnames=("batch_size", "slice_size", "model"))
def predict(
    params: Any,
    split: Split,
    *,
    batch_size: int = 250,
    slice_size: int = 8,
    model: nn.Module | None = None,
) -> jax.Array:
    """Logits [N, M, C] of N networks (leaves [N, ...]) for a split, whose labels are ignored.

    It processes `batch_size` images of `slice_size` networks at a time. If `model` is None, it is
    the LeNet of these parameters.

    Raises:
      TypeError, ValueError: as `epoch.check_split`.
    """

    def one(params: Any) -> jax.Array:
        return epoch.predict(model or model_for(params), params, split, batch_size=batch_size)

    return lax.map(one, params, batch_size=slice_size)


def ensemble(logits: jax.Array) -> jax.Array:
    """Logits [N, M, C] -> log of the N networks' mean probabilities, [M, C]."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(len(logits))


def _arrays(members: MemberConfig) -> MemberConfig:
    """Numbers as arrays, because JAX treats lists as pytrees; tuples in the settings stay so."""
    array = lambda field: field if isinstance(field, dict | None) else np.asarray(field)
    is_list = lambda value: isinstance(value, list)
    return jax.tree.map(np.asarray, MemberConfig._make(map(array, members)), is_leaf=is_list)


def _iter_chunks(steps: int) -> Iterator[tuple[int, int]]:
    bounds = {round(point * steps / POINTS_PER_EPOCH) for point in range(POINTS_PER_EPOCH + 1)}
    return pairwise(sorted(bounds))


def _vmap(one: Callable, members: MemberConfig, *other_axes: int | None) -> Callable:
    """`one` vmapped over the members; numbers that all share are not repeated."""
    axes = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, members)
    return jax.vmap(one, in_axes=(axes, *other_axes))
