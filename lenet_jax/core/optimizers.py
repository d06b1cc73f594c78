"""torch.optim's optimizers and schedules as optax transformations, step for step.

Numbers are data, structure is static. Every number (learning rate, momentum, ...) is a strongly
typed scalar in `opt_state.hyperparams`, so `jax.vmap` can sweep it and steps can change it. An
optimizer's `update` function is the same object for all numbers: a jitted step with this static
argument does not compile again for another learning rate. A setting of 0 removes its part (no
momentum, no buffer), which is another structure.
"""

import inspect
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

Schedule = Callable[[ArrayLike], ArrayLike]

# The settings of each optimizer with torch.optim's defaults; nesterov is SGD(nesterov=True).
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0},
    "nesterov": {"momentum": 0.9, "weight_decay": 0.0},
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2},
    "rmsprop": {
        "alpha": 0.99,
        "eps": 1e-8,
        "momentum": 0.0,
        "centered": False,
        "weight_decay": 0.0,
    },
}
OPTIMIZERS = tuple(SETTINGS)
SCHEDULES = ("constant", "cosine", "onecycle")
# Chosen on held-out training images by experiments/learning_rates.py.
DEFAULT_LEARNING_RATE = {"sgd": 0.2, "nesterov": 0.02, "adam": 2e-3, "adamw": 2e-3, "rmsprop": 2e-3}


def gradient_descent(params: Any, grads: Any, learning_rate: ArrayLike) -> Any:
    """The tutorial's update rule, which is "sgd" without settings.

    >>> gradient_descent({"bias": 1.0}, {"bias": 4.0}, 0.25)
    {'bias': 0.0}
    """
    return jax.tree.map(lambda weight, gradient: weight - learning_rate * gradient, params, grads)


def make_optimizer(
    name: str,
    learning_rate: ArrayLike | Schedule | None = None,
    *,
    schedule: Schedule | None = None,
    clip_norm: ArrayLike = 0.0,
    ema: ArrayLike = 0.0,
    **settings: Any,
) -> optax.GradientTransformation:
    """An optimizer of torch.optim as an optax transformation.

    Args:
      name: one of OPTIMIZERS.
      learning_rate: a number, a schedule (step -> learning rate), or None for
        DEFAULT_LEARNING_RATE[name].
      schedule: step -> multiplier of the learning rate, such as `make_schedule` returns and
        `torch.optim.lr_scheduler.LambdaLR` takes; step 0 is the first update. It is static: the
        same function object does not compile again.
      clip_norm: gradients whose norm over all parameters is larger are first scaled down to it, as
        by `torch.nn.utils.clip_grad_norm_`; 0 does not clip.
      ema: decay of an exponential average of the parameters, which `averaged_params` returns, as
        `torch.optim.swa_utils.AveragedModel` keeps it; 0 keeps none.
      **settings: see SETTINGS[name], with torch's names and defaults.

    Returns:
      A transformation whose `init` stores the numbers in `opt_state.hyperparams` (`betas` as
      "beta1" and "beta2") with the parameters' type, and whose `update` needs `params`. Numbers may
      be traced, for example by `jax.vmap`; only concrete ones are validated.

    Raises:
      ValueError: an unknown name or setting, or a number outside its range.

    >>> tx = make_optimizer("sgd", learning_rate=0.5, momentum=0.9)
    >>> params = {"bias": jnp.array([1.0])}
    >>> opt_state = tx.init(params)
    >>> {name: round(float(value), 6) for name, value in opt_state.hyperparams.items()}
    {'learning_rate': 0.5, 'momentum': 0.9}
    >>> updates, opt_state = tx.update({"bias": jnp.array([2.0])}, opt_state, params)
    >>> optax.apply_updates(params, updates)["bias"].tolist()
    [0.0]
    """
    _require_one_of("optimizer", name, OPTIMIZERS)
    if callable(learning_rate):
        if schedule is not None:
            raise ValueError("learning_rate is a schedule already: omit the argument schedule")
        schedule, learning_rate = learning_rate, 1.0
    if schedule is not None and not callable(schedule):
        raise ValueError(f"schedule must be a function of the step, got {schedule!r}")
    if learning_rate is None:
        learning_rate = DEFAULT_LEARNING_RATE[name]
    for setting in settings:
        _require_one_of(f"setting of {name}", setting, tuple(SETTINGS[name]))
    settings = SETTINGS[name] | settings | {"clip_norm": clip_norm, "ema": ema}
    centered = settings.pop("centered", False)
    if not isinstance(centered, bool):
        raise ValueError(f"centered must be True or False, got {centered!r}")
    hyperparams = _hyperparams(learning_rate, settings)
    if name == "nesterov" and "momentum" not in hyperparams:
        raise ValueError("nesterov needs a momentum above 0, got momentum=0; sgd needs none")
    template = _template(name, tuple(hyperparams), centered, schedule)
    return template._replace(init=_Init(template.init, hyperparams))


class _Init(NamedTuple):
    """`init` of a template, with the numbers of one optimizer."""

    template: optax.TransformInitFn
    hyperparams: dict[str, ArrayLike]

    def __call__(self, params: optax.Params) -> optax.OptState:
        state = self.template(params)
        numbers = {
            key: jnp.asarray(self.hyperparams[key], slot.dtype)
            for key, slot in state.hyperparams.items()
        }
        return state._replace(hyperparams=numbers)


def static_part(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` without its numbers, if `make_optimizer` made it: one static value for all numbers.

    The result supports `update`, which reads the numbers from the state, but not `init`.
    """
    return tx._replace(init=_no_init) if isinstance(tx.init, _Init) else tx


def _no_init(params: optax.Params) -> NoReturn:
    raise TypeError(
        "state.tx supports only update, since its numbers are in state.opt_state.hyperparams: keep "
        "tx = make_optimizer(...) and call tx.init(params), or create_train_state(key, tx, ...)"
    )


def make_schedule(name: str, total_steps: int, *, warmup_steps: int = 0) -> Schedule:
    """A function step -> multiplier of the learning rate, for `make_optimizer(schedule=...)`.

    "constant" is 1. "cosine" falls from 1 to 0 at total_steps (torch's `CosineAnnealingLR`).
    "onecycle" is torch's `OneCycleLR` with its defaults, divided by max_lr: from 1/25 to 1 in the
    first 30 % of the steps, then down to 1/250,000, but the momentum stays constant.

    Args:
      name: one of SCHEDULES.
      total_steps: the number of updates.
      warmup_steps: the length of a linear rise (torch's `LinearLR(1 / (warmup_steps + 1))`), which
        the named shape follows over the remaining steps; "onecycle" has its own.

    Returns:
      A function for jitted code; the same arguments give the identical object.

    Raises:
      ValueError: an unknown name, or a number of steps outside its range.

    >>> cosine = make_schedule("cosine", 100)
    >>> [round(float(cosine(step)), 4) for step in (0, 50, 100)]
    [1.0, 0.5, 0.0]
    >>> cosine is make_schedule("cosine", total_steps=100)
    True
    """
    _require_one_of("schedule", name, SCHEDULES)
    if not isinstance(total_steps, int) or total_steps < 1:
        raise ValueError(f"total_steps must be an integer above 0, got {total_steps!r}")
    if not isinstance(warmup_steps, int) or not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps must be in 0..total_steps - 1, got {warmup_steps!r}")
    if name == "onecycle" and warmup_steps:
        raise ValueError(f"onecycle has its own warmup: omit warmup_steps={warmup_steps}")
    return _schedule(name, total_steps, warmup_steps)


@cache
def _schedule(name: str, total_steps: int, warmup_steps: int) -> Schedule:
    constant = lambda step, total_steps: jnp.ones_like(step)
    shape = {"constant": constant, "cosine": _cosine, "onecycle": _onecycle}[name]

    def schedule(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step, float)  # int32 / int stays float32 under x64
        rise = (step + 1) / (warmup_steps + 1)
        return jnp.where(
            step < warmup_steps, rise, shape(step - warmup_steps, total_steps - warmup_steps)
        )

    return schedule


def _cosine(step: jax.Array, total_steps: int) -> jax.Array:
    return _half_cosine(1.0, 0.0, step / total_steps)


def _onecycle(step: jax.Array, total_steps: int) -> jax.Array:
    peak = 0.3 * total_steps - 1  # may lie between two steps, as in torch
    end = total_steps - 1
    low, lowest = 1 / 25, 1 / 25 / 1e4
    return jnp.where(
        step <= peak,
        _half_cosine(low, 1.0, step / peak),
        _half_cosine(1.0, lowest, (step - peak) / (end - peak)),
    )


def _half_cosine(start: float, end: float, fraction: jax.Array) -> jax.Array:
    # cos(x / 2)^2 is (1 + cos x) / 2 without cancellation near the end.
    return end + (start - end) * jnp.cos(jnp.pi / 2 * jnp.clip(fraction, 0, 1)) ** 2


@cache
def _template(
    name: str, hyperparams: tuple[str, ...], centered: bool, schedule: Schedule | None
) -> optax.GradientTransformationExtraArgs:
    """One transformation per structure; its `update` reads every number from the state."""
    rules: dict[str, Callable[..., Any]] = {
        "sgd": _sgd,
        "nesterov": _nesterov,
        "adam": _adam,
        "adamw": _adamw,
        "rmsprop": partial(_rmsprop, centered),
    }

    def build(learning_rate, clip_norm=None, ema=None, **numbers):
        scale = _optional(optax.scale_by_schedule, schedule)
        descend = optax.chain(scale, optax.scale_by_learning_rate(learning_rate))
        clip = () if clip_norm is None else (_clip(clip_norm),)
        average = () if ema is None else (_average(ema),)
        return optax.chain(*clip, *rules[name](**numbers), descend, *average)

    names = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in hyperparams]
    build.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
    tx = optax.inject_hyperparams(build)(**dict.fromkeys(hyperparams, 0.0))
    # Jitted, because creating dozens of arrays one by one takes half a second the first time.
    return optax.GradientTransformationExtraArgs(jax.jit(tx.init), tx.update)


# The update rules, as parts in torch's order; the learning rate scales the result. A number that is
# None removes its part.


def _sgd(momentum=None, dampening=None, weight_decay=None):
    buffer = optax.trace if dampening is None else partial(_dampened_trace, dampening)
    return _l2(weight_decay), _optional(buffer, momentum)


def _nesterov(momentum, weight_decay=None):
    return _l2(weight_decay), optax.trace(momentum, nesterov=True)


def _adam(beta1, beta2, eps, weight_decay=None):
    return _l2(weight_decay), optax.scale_by_adam(beta1, beta2, eps)


def _adamw(beta1, beta2, eps, weight_decay=None):
    return optax.scale_by_adam(beta1, beta2, eps), _l2(weight_decay)  # decoupled: after the moments


def _rmsprop(centered, alpha, eps, momentum=None, weight_decay=None):
    # By default optax.rmsprop adds eps inside the root, and it applies the learning rate before the
    # momentum, which is another optimizer as soon as the learning rate changes.
    scale = optax.scale_by_stddev if centered else optax.scale_by_rms
    direction = scale(alpha, eps, eps_in_sqrt=False)
    return _l2(weight_decay), direction, _optional(optax.trace, momentum)


def _l2(weight_decay):
    return _optional(optax.add_decayed_weights, weight_decay)


def _optional(part, value):
    return optax.identity() if value is None else part(value)


def _clip(max_norm: ArrayLike) -> optax.GradientTransformation:
    """`torch.nn.utils.clip_grad_norm_`, whose 1e-6 `optax.clip_by_global_norm` does not have."""

    def clip(grads, params=None):
        share = jnp.minimum(max_norm / (optax.tree.norm(grads) + 1e-6), 1)
        return jax.tree.map(lambda grad: grad * share, grads)

    return optax.stateless(clip)


class _AverageState(NamedTuple):
    is_empty: jax.Array  # [] bool
    average: Any  # as the parameters


def _average(decay: ArrayLike) -> optax.GradientTransformation:
    """Averages the parameters after each update, from the first one on; it changes no update."""

    def init(params):
        return _AverageState(jnp.array(True), optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        share = jnp.where(state.is_empty, 1.0, 1 - decay)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: a + share * (p - a), state.average, params)
        return updates, _AverageState(jnp.array(False), average)

    return optax.GradientTransformation(init, update)


def averaged_params(opt_state: Any) -> Any:
    """The average that `make_optimizer(ema=...)` keeps in its state, after at least one update.

    Raises:
      ValueError: the optimizer keeps no average.
    """
    average = optax.tree.get(opt_state, "average")
    if average is None:
        raise ValueError("the optimizer keeps no average: it needs make_optimizer(..., ema=...)")
    return average


class _DampenedTraceState(NamedTuple):
    is_empty: jax.Array  # [] bool
    trace: Any  # as the gradients


def _dampened_trace(dampening: ArrayLike, decay: ArrayLike) -> optax.GradientTransformation:
    """torch's buffer: the first gradient, then decay * buffer + (1 - dampening) * gradient.

    `optax.trace` has no dampening, and scaling its input would dampen the first gradient, too.
    """

    def init(params):
        return _DampenedTraceState(jnp.array(True), optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        share = jnp.where(state.is_empty, 1.0, 1 - dampening)
        trace = jax.tree.map(lambda g, t: decay * t + share * g, updates, state.trace)
        return trace, _DampenedTraceState(jnp.array(False), trace)

    return optax.GradientTransformation(init, update)


def _hyperparams(learning_rate: ArrayLike, settings: dict[str, Any]) -> dict[str, ArrayLike]:
    """The validated numbers under their names in the state, without parts that are 0."""
    settings = {"learning_rate": learning_rate, **settings}
    if "betas" in settings:
        betas = settings.pop("betas")
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise ValueError(f"betas must be two numbers, got {betas!r}") from None
        settings["beta1"] = _number("betas[0]", beta1, below=1)
        settings["beta2"] = _number("betas[1]", beta2, below=1)
    settings = {name: _number(name, value) for name, value in settings.items()}
    if "ema" in settings:
        settings["ema"] = _number("ema", settings["ema"], below=1)
    is_off = lambda name: isinstance(settings[name], float) and settings[name] == 0
    parts = ("momentum", "dampening", "weight_decay", "clip_norm", "ema")
    return {name: settings[name] for name in settings if name not in parts or not is_off(name)}


def _number(name: str, value: Any, below: float = math.inf) -> ArrayLike:
    """`value` as a float in [0, below); a traced scalar is returned unchanged.

    An array would not do, because donating the state would delete the caller's array.
    """
    if isinstance(value, jax.core.Tracer) and value.shape == ():
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < below:
        limit = "1" if below == 1 else "infinity"
        raise ValueError(f"{name} must be a number in [0, {limit}), got {value!r}")
    return number


def _require_one_of(what: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"unknown {what} {value!r}; choose one of: {', '.join(valid)}")
