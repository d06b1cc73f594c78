"""Trains networks by recipes, slice by slice; finished slices are kept and read again.

A recipe names everything but the seed: the epochs, the numbers of adamw with one-cycle, the
distortions, and three additions, each by a number whose 0 leaves it out.
"""

import hashlib
import io
import itertools
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike
from tqdm import tqdm

from lenet_jax import normalize
from lenet_jax.core import augment, population
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import Schedule, averaged_params, make_optimizer, make_schedule
from lenet_jax.core.population import MemberConfig
from lenet_jax.core.split import Split
from lenet_jax.core.step import Batch, apply
from lenet_jax.files import atomic_write

BATCH_SIZE, SLICE = 64, 10


class Recipe(NamedTuple):
    epochs: int
    distortions: float = 0.0  # multiple of `augment.STANDARD`
    learning_rate: float = 6e-3
    weight_decay: float = 0.1
    label_smoothing: float = 0.1
    teacher: float = 0.0  # the share of the teachers' mean probabilities in the target
    sam: float = 0.0  # radius of sharpness-aware minimisation
    ema: float = 0.0  # decay of the exponential average of the weights, which counts at the end
    elastic: float = 0.0  # pixels of elastic bending instead of the standard's

    def structure(self) -> tuple:
        """What recipes must have in common to be trained by one compiled function."""
        additions = self.teacher > 0, self.sam > 0, self.ema > 0
        return self.epochs, self.distortions, self.elastic, additions


def train(
    recipes: list[Recipe],
    seeds: int,
    split: Split,
    folder: Path,
    bar: tqdm,
    *,
    teachers: Any = None,
    own_orders: bool = False,
) -> tuple[Any, float]:
    """Networks of recipes with one structure: each recipe with the seeds 0 to `seeds` - 1.

    With `own_orders` each network sees its own batches, as in a run of its own. Otherwise the
    networks of a slice, at most SLICE, share one augmented batch and what the teachers say of it:
    this is faster, but they are less independent. Delete `folder` when the code changes what it
    trains: a slice's name tells only its recipes, its images and its teachers.

    Returns:
      The parameters, leaves [recipes * seeds, ...], and the processor seconds of one network.
    """
    cells = [(recipe, seed) for recipe in recipes for seed in range(seeds)]
    count = -(-len(cells) // SLICE)
    parts = []
    for rows in np.array_split(np.arange(len(cells)), count):  # equal sizes: each size compiles
        part = [cells[row] for row in rows]
        facts = [part, BATCH_SIZE, augment.STANDARD] + ["own orders"] * own_orders
        digest = hashlib.sha256(json.dumps(facts).encode())
        for array in (split.images, *jax.tree.leaves(teachers)):
            digest.update(np.asarray(array).tobytes())
        file = folder / f"{digest.hexdigest()[:16]}.npz"
        if file.exists():
            bar.update(len(part) * part[0][0].epochs * (len(split.labels) // BATCH_SIZE))
        else:
            _train_slice(part, split, file, bar, teachers, own_orders)
        with np.load(file) as stored:
            parts.append(dict(stored))
    seconds = float(np.mean([part.pop("seconds") for part in parts]))
    params = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return unflatten_dict(params, sep="/"), seconds


def _train_slice(
    part: list[tuple], split: Split, file: Path, bar: tqdm, teachers: Any, own_orders: bool
) -> None:
    recipes, seeds = zip(*part, strict=True)
    column = lambda name: np.array([getattr(recipe, name) for recipe in recipes], np.float32)
    members = MemberConfig(
        seed=np.array(seeds),
        order_seed=np.array(seeds) if own_orders else seeds[0],
        learning_rate=column("learning_rate"),
        optimizer_settings={"weight_decay": column("weight_decay")},
        numbers={name: column(name) for name in ("label_smoothing", "teacher", "sam", "ema")},
    )
    (structure,) = {recipe.structure() for recipe in recipes}
    epochs, distortions, elastic, additions = structure
    steps = epochs * (len(split.labels) // BATCH_SIZE)
    make = partial(
        _make,
        schedule=make_schedule("onecycle", steps),
        steps=steps,
        distorted=_distortions(distortions, elastic),
        additions=additions,
        teachers=teachers,
        mean=split.mean,
        std=split.std,
    )
    began = time.process_time()
    trained = population.train(
        members,
        split,
        make=make,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        slice_size=len(part),
        log_updates=bar.update,
    )
    if not trained.finite.all():
        raise SystemExit(f"diverged: {list(itertools.compress(part, ~trained.finite))}")
    seconds, content = (time.process_time() - began) / len(part), io.BytesIO()
    np.savez(content, seconds=seconds, **flatten_dict(trained.params, sep="/"))
    atomic_write(file, content.getvalue())


def _distortions(amount: float, elastic: float) -> augment.AugmentConfig | None:
    if not amount:
        return None
    config = augment.augment_config(amount)
    return config._replace(elastic=elastic) if elastic else config


def _make(
    member: MemberConfig,
    *,
    schedule: Schedule,
    steps: int,
    distorted: augment.AugmentConfig | None,
    additions: tuple[bool, ...],
    teachers: Any,
    mean: float,
    std: float,
) -> population.Recipe:
    numbers, (teach, sharpness, average) = member.numbers or {}, additions
    settings = member.optimizer_settings or {}
    settings = settings | ({"ema": numbers["ema"]} if average else {})
    tx = make_optimizer("adamw", member.learning_rate, schedule=schedule, **settings)
    if sharpness:
        tx = sam(tx, numbers["sam"])
    if average:
        tx = averaged(tx, steps)

    def prepare(key: jax.Array, images: jax.Array, labels: jax.Array) -> Batch:
        if distorted is not None:
            images = augment.augment(key, images, distorted)
        images = normalize(images, mean, std)
        target = optax.smooth_labels(jax.nn.one_hot(labels, 10), numbers["label_smoothing"])
        if teach:  # [T, B, 10], once for all members, because neither images nor key is batched
            logits = jax.vmap(lambda params: apply(LeNet(), params, images))(teachers)
            probabilities = jnp.exp(population.ensemble(logits))
            target = (1 - numbers["teacher"]) * target + numbers["teacher"] * probabilities
        return {"image": images, "label": target}

    return population.Recipe(tx, prepare=prepare)


def sam(tx: optax.GradientTransformation, radius: ArrayLike) -> optax.GradientTransformation:
    """Sharpness-aware minimisation (arXiv 2010.01412, algorithm 1) around `tx`.

    The gradients are those at the parameters plus `radius` times the normalised gradient.
    """

    def update(grads: Any, state: Any, params: Any, *, value_fn: Any, **_: Any) -> tuple:
        scale = radius / (optax.global_norm(grads) + 1e-12)
        uphill = jax.tree.map(lambda weight, slope: weight + scale * slope, params, grads)
        return tx.update(jax.grad(value_fn)(uphill), state, params)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def averaged(
    tx: optax.GradientTransformationExtraArgs, steps: int
) -> optax.GradientTransformationExtraArgs:
    """`tx` of `make_optimizer(ema=...)`, whose update number `steps` gives the average."""

    def init(params: Any) -> tuple:
        return tx.init(params), jnp.int32(0)

    def update(grads: Any, state: tuple, params: Any, **extra: Any) -> tuple:
        inner, count = state
        usual, inner = tx.update(grads, inner, params, **extra)
        to_average = jax.tree.map(jnp.subtract, averaged_params(inner), params)
        updates = optax.tree.where(count + 1 == steps, to_average, usual)
        return updates, (inner, count + 1)

    return optax.GradientTransformationExtraArgs(init, update)
