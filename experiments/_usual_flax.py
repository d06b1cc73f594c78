"""The network and the training step as Flax's own examples write them: imports nothing of ours."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class UsualLeNet(nn.Module):
    """The network as Flax's own examples write it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (6, 16):
            x = nn.relu(nn.Conv(features, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for features in (120, 84):
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(10)(x)


def usual_step(state: tuple, batch: dict) -> tuple:
    params, opt_state = state

    def loss_of(params: dict) -> jax.Array:
        logits = UsualLeNet().apply({"params": params}, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    grads = jax.grad(loss_of)(params)
    updates, opt_state = optax.adam(1e-3).update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state


def usual_state(key: jax.Array) -> tuple:
    params = UsualLeNet().init(key, jnp.zeros((1, 32, 32, 1)))["params"]
    return params, optax.adam(1e-3).init(params)
