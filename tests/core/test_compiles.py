"""The table "What compiles again" of experiments/README.md: each row is counted here."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import readme
from linear import Linear

from lenet_jax.core import losses, population
from lenet_jax.core.augment import augment_config
from lenet_jax.core.epoch import epoch_order, train_epoch, train_steps
from lenet_jax.core.optimizers import make_optimizer, make_schedule
from lenet_jax.core.split import Split
from lenet_jax.core.step import create_train_state, train_step

B = 8
SPLIT = Split(np.zeros((4 * B, 32, 32, 1), np.uint8), np.arange(4 * B) % 10, 0.5, 0.3)
WEIGHTS = np.linspace(1, 2, 10)
weighted = lambda weight: partial(losses.cross_entropy, weight=weight)


def step(tx=None, loss_fn=losses.cross_entropy, batch_size: int = B, seed: int = 0) -> None:
    tx = make_optimizer("sgd", 0.1) if tx is None else tx
    batch = {"image": jnp.zeros((batch_size, 32, 32, 1)), "label": jnp.arange(batch_size)}
    train_step(create_train_state(seed, tx, Linear()), batch, loss_fn)


def epoch(prepare=None) -> None:
    state = create_train_state(0, make_optimizer("sgd", 0.1), Linear())
    train_epoch(state, SPLIT, 0, batch_size=B, prepare=prepare)


def chunk(start: int, stop: int) -> None:
    state = create_train_state(0, make_optimizer("sgd", 0.1), Linear())
    train_steps(state, SPLIT, epoch_order(jax.random.key(0), 4 * B, batch_size=B), start, stop)


def noisy(amount, key, images, labels):
    noise = jax.random.normal(key, images.shape)
    return {"image": images / 255 + amount * noise, "label": labels}


def networks(count: int, **kwargs) -> None:
    rates = np.linspace(0.1, 0.2, count)
    members = population.MemberConfig(np.arange(count), learning_rate=rates)
    population.train(members, SPLIT, epochs=1, batch_size=B, model=Linear(), **kwargs)


def named_make(member):
    return optax.adam(member.learning_rate), losses.mse


sgd, adam = partial(make_optimizer, "sgd"), partial(make_optimizer, "adam")
cosine = lambda steps: optax.cosine_decay_schedule(1.0, steps)
clipped = lambda rate: optax.chain(optax.clip_by_global_norm(1.0), adam(rate))
# The row's first column -> what is done first, and then what does or does not compile again.
ROWS: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
    "another `learning_rate`, `momentum`, `clip_norm`, ... of `make_optimizer`": (
        lambda: step(sgd(0.1, momentum=0.9, clip_norm=1.0)),
        lambda: step(sgd(0.2, momentum=0.8, clip_norm=0.5)),
    ),
    "a number of `make_optimizer` that is 0, where it was not": (
        lambda: step(sgd(0.1, momentum=0.9)),
        lambda: step(sgd(0.1, momentum=0.0)),
    ),
    "`make_schedule` called anew with the same arguments": (
        lambda: step(adam(0.1, schedule=make_schedule("cosine", 10))),
        lambda: step(adam(0.1, schedule=make_schedule("cosine", 10))),
    ),
    "another schedule, or a schedule of optax made anew": (
        lambda: step(adam(0.1, schedule=cosine(10))),
        lambda: step(adam(0.1, schedule=cosine(10))),
    ),
    "an optax object made anew, such as `optax.adam(1e-3)`": (
        lambda: step(optax.adam(1e-3)),
        lambda: step(optax.adam(1e-3)),
    ),
    "`optax.chain` made anew, also around `make_optimizer`": (
        lambda: step(clipped(0.1)),
        lambda: step(clipped(0.1)),
    ),
    "another named function as `loss_fn`": (
        lambda: step(loss_fn=losses.cross_entropy),
        lambda: step(loss_fn=losses.mse),
    ),
    "a lambda made anew": (
        lambda: step(loss_fn=lambda logits, labels: losses.mse(logits, labels)),
        lambda: step(loss_fn=lambda logits, labels: losses.mse(logits, labels)),
    ),
    "`functools.partial` made anew with the same values": (
        lambda: step(loss_fn=partial(losses.cross_entropy, label_smoothing=0.1)),
        lambda: step(loss_fn=partial(losses.cross_entropy, label_smoothing=0.1)),
    ),
    "`functools.partial` with another Python number or string": (
        lambda: step(loss_fn=partial(losses.cross_entropy, label_smoothing=0.1)),
        lambda: step(loss_fn=partial(losses.cross_entropy, label_smoothing=0.2)),
    ),
    "`functools.partial` with another array or NumPy number": (
        lambda: step(loss_fn=partial(weighted(WEIGHTS), label_smoothing=np.float32(0.1))),
        lambda: step(loss_fn=partial(weighted(2 * WEIGHTS), label_smoothing=np.float32(0.2))),
    ),
    "`prepare` with another `AugmentConfig`, or other arrays": (
        lambda: (epoch(augment_config(1.0)), epoch(partial(noisy, np.float32(0.1)))),
        lambda: (epoch(augment_config(0.5)), epoch(partial(noisy, np.float32(0.2)))),
    ),
    "an equal model made anew, another state or seed": (
        lambda: step(seed=0),
        lambda: step(seed=1),
    ),
    "another batch size": (lambda: step(batch_size=B), lambda: step(batch_size=B + 1)),
    "another `start` or `stop` of `train_steps`": (lambda: chunk(0, 1), lambda: chunk(1, 4)),
    "a population of other numbers": (lambda: networks(2), lambda: networks(2)),
    "a population of other size": (lambda: networks(2), lambda: networks(4)),
    "a named `make` of a population": (
        lambda: networks(2, make=named_make),
        lambda: networks(2, make=named_make),
    ),
}
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, fun_name="", **_: (
        COMPILED.append(fun_name) if event.endswith("/backend_compile_duration") else None
    )
)


def table() -> dict[str, str]:
    page = readme.HERE.joinpath("README.md").read_text()
    section = page.split("## What compiles again\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:2] == "| "]
    return {change: answer for change, answer, *_ in lines[1:]}


def test_every_row_is_counted():
    assert list(table()) == list(ROWS)


@pytest.mark.parametrize("change", ROWS)
def test_what_is_said_to_compile_again_does_and_nothing_else(change):
    first, second = ROWS[change]
    jax.clear_caches()
    steps = lambda: [name for name in COMPILED if name[4:9] in ("train", "run_s")]
    COMPILED.clear()
    first()
    assert steps()
    COMPILED.clear()
    second()
    assert table()[change] == ("yes" if steps() else "no"), COMPILED


def test_slices_of_a_population_that_are_not_equal_compile_once():
    jax.clear_caches()
    COMPILED.clear()
    networks(5, slice_size=3)
    assert [name[4:15] for name in COMPILED].count("train_steps") == 1
