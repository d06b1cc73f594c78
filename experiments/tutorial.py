"""PyTorch's "Neural Networks" tutorial, step by step and in its order, in JAX.

Each step prints what the tutorial prints there. The random numbers come from fixed keys, so every
run prints the same; tests/test_tutorial.py has live PyTorch compute the numbers again from the same
weights. tutorial.md shows both languages side by side.

    python experiments/tutorial.py | tee experiments/results/tutorial.txt

Takes a minute on 2 cores, mostly for compiling. It trains on the digits and runs offline.
"""

from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import Jaxpr, JaxprEqn, Var

from lenet_jax import LeNet, create_train_state, data, eval_step, make_optimizer, train_step
from lenet_jax.core import losses, ops
from lenet_jax.core.epoch import epoch_order, normalize
from lenet_jax.interop.pytorch import to_state_dict

LEARNING_RATES = {"sgd": 0.01, "nesterov": 0.01, "adam": 0.001, "rmsprop": 0.001}
EPOCHS = 10

model = LeNet()
# Ten arrays of random numbers compile in 2 s at this optimisation level, in 7 s at the default.
init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 1})


@jax.jit
def forward(params: Any, images: jax.Array) -> jax.Array:
    return model.apply({"params": params}, images)


@jax.jit
def loss_of(params: Any, images: jax.Array, target: jax.Array) -> jax.Array:
    return losses.mse(forward(params, images), target)


def define_the_network() -> tuple[Any, jax.Array]:
    """3.1: the structure, the parameters and an input."""
    print(model)
    # A key is a value: it is used once, and split for more.
    params_key, image_key = jax.random.split(jax.random.key(0))
    image = jax.random.normal(image_key, (1, 32, 32, 1))
    params = init(params_key, image)["params"]
    arrays = jax.tree.leaves(params)
    print(f"{len(arrays)} parameter arrays, {sum(array.size for array in arrays):,} numbers")
    pytorchs = to_state_dict(params)
    for name, layer in params.items():
        for kind, theirs in (("kernel", "weight"), ("bias", "bias")):
            ours, shape = list(layer[kind].shape), list(pytorchs[f"{name}.{theirs}"].shape)
            print(f"  {name + '.' + kind:13} {ours!s:14} in PyTorch's order {shape}")
    return params, image


def run_it(params: Any, image: jax.Array) -> None:
    """3.1: the forward pass."""
    print(f"input {list(image.shape)} -> output")
    print(forward(params, image))


def feed_a_single_sample(params: Any, image: jax.Array) -> None:
    """3.1: layers take mini-batches."""
    single = image[0]
    print(f"layers take mini-batches; a single sample {list(single.shape)}:")
    try:
        forward(params, single)
    except ValueError as error:
        print(f"  ValueError: {error}")
    as_batch = forward(params, single[None])
    print(f"  single[None] {list(single[None].shape)} -> {list(as_batch.shape)}")


def random_cotangent() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (1, 10))


def pull_back_a_random_cotangent(params: Any, image: jax.Array) -> None:
    """3.1: `out.backward(torch.randn(1, 10))`; there is nothing to clear first."""
    cotangent = random_cotangent()
    _, pull_back = jax.vjp(lambda params: forward(params, image), params)
    (once,) = pull_back(cotangent)
    (again,) = pull_back(cotangent)
    print("conv1.bias's gradient from a random cotangent")
    print(once["conv1"]["bias"])
    print("and a second time, with nothing cleared in between: nothing has piled up")
    print(again["conv1"]["bias"])


def compute_the_loss(params: Any, image: jax.Array) -> jax.Array:
    """3.2: mean squared error against a random target."""
    target = jax.random.normal(jax.random.key(2), (1, 10))  # [10] would not have the output's shape
    print(f"MSE loss {loss_of(params, image, target):.4f}")
    return target


# --- 3.2: the graph behind the loss

# The primitives that JAX records for the tutorial's operations. An "add" adds the bias of the
# preceding layer; the last four together are the mean of the squared differences.
TUTORIALS_NAMES = {
    "conv_general_dilated": "conv2d",
    "relu": "relu",
    "reduce_window_max": "maxpool2d",
    "reshape": "flatten",
    "dot_general": "linear",
    "sub": "MSELoss",
    "integer_pow": "MSELoss",
    "reduce_sum": "MSELoss",
    "div": "MSELoss",
}


def primitive(equation: JaxprEqn) -> str:
    if equation.primitive.name == "custom_jvp_call":  # relu has its own gradient rule
        return primitive(equation.params["call_jaxpr"].eqns[0])
    return equation.params["name"] if equation.primitive.name == "jit" else equation.primitive.name


def backwards(jaxpr: Jaxpr, image: Var) -> list[JaxprEqn]:
    """The equations on the path from the result back to `image`."""
    made_by = {}  # what depends on the image -> the equation that computes it
    for equation in jaxpr.eqns:
        if any(source is image or source in made_by for source in variables(equation)):
            made_by |= dict.fromkeys(equation.outvars, equation)
    way, (at,) = [], jaxpr.outvars
    while at is not image:
        way.append(made_by[at])
        at = next(v for v in variables(made_by[at]) if v is image or v in made_by)
    return way


def variables(equation: JaxprEqn) -> list[Var]:
    return [v for v in equation.invars if isinstance(v, Var)]


def walk_the_graph(params: Any, image: jax.Array, target: jax.Array) -> None:
    """3.2: the tutorial follows `loss.grad_fn.next_functions`; JAX has the traced program."""
    # `model` may compute a layer as one operation with its own gradient; `plain` shows each step.
    plain = LeNet(conv_relu_pool=ops.conv_relu_pool_plain)

    def plain_loss(image: jax.Array, params: Any, target: jax.Array) -> jax.Array:
        return losses.mse(plain.apply({"params": params}, image), target)

    jaxpr = jax.make_jaxpr(plain_loss)(image, params, target).jaxpr
    way = backwards(jaxpr, image=jaxpr.invars[0])
    print("backwards from the loss, the equations of its jaxpr:")
    for equation in way:
        name, shape = primitive(equation), list(equation.outvars[0].aval.shape)
        print(f"  {name:20} {shape!s:16} {TUTORIALS_NAMES.get(name, '(its bias)')}")
    names = [TUTORIALS_NAMES.get(primitive(equation)) for equation in reversed(way)]
    chain = [name for name, _ in groupby(name for name in names if name)]
    print("and forwards, in the tutorial's words:")
    print(" -> ".join(["input", *chain[:6]]))
    print("      -> " + " -> ".join(chain[6:-1]))
    print(f"      -> {chain[-1]}")
    print("      -> loss")


def back_propagate(params: Any, image: jax.Array, target: jax.Array) -> Any:
    """3.3: conv1.bias's gradient before and after."""
    bias = params["conv1"]["bias"]
    print("conv1.bias's gradient before")  # zeros in the tutorial, None in PyTorch since 2.0
    print(f"hasattr(bias, 'grad') is {hasattr(bias, 'grad')}: an array has no place for one")
    grads = jax.grad(loss_of)(params, image, target)
    print("conv1.bias's gradient after")
    print(grads["conv1"]["bias"])
    return grads


def update_the_weights(params: Any, grads: Any, image: jax.Array, target: jax.Array) -> None:
    """3.4: by hand, then by optax."""
    print(f"loss {loss_of(params, image, target):.4f}; after one step of")
    rate = LEARNING_RATES["sgd"]
    by_hand = jax.tree.map(lambda weight, gradient: weight - rate * gradient, params, grads)
    print(f"  weight - {rate} * gradient  {loss_of(by_hand, image, target):.4f}")
    for name, rate in LEARNING_RATES.items():
        tx = make_optimizer(name, rate)
        opt_state = tx.init(params)
        updates, opt_state = jax.jit(tx.update)(grads, opt_state, params)
        updated = optax.apply_updates(params, updates)
        print(f"  {name:8}, rate {rate:<5}     {loss_of(updated, image, target):.4f}")


def train() -> None:
    """3.4: zero_grad, forward, loss, backward and step, a few hundred times, on real digits."""
    digits = data.load("digits")
    images = normalize(jnp.asarray(digits.train.images), digits.train.mean, digits.train.std)
    labels = jnp.asarray(digits.train.labels)
    test = {
        "image": normalize(jnp.asarray(digits.test.images), digits.test.mean, digits.test.std),
        "label": jnp.asarray(digits.test.labels),
    }
    print(f"{len(labels):,} digits to train on, {len(digits.test.labels)} others to test on")
    state = create_train_state(jax.random.key(3), make_optimizer("adam", LEARNING_RATES["adam"]))
    for epoch in range(EPOCHS):
        key = jax.random.fold_in(jax.random.key(4), epoch)
        for rows in epoch_order(key, len(labels), batch_size=64):
            batch = {"image": images[rows], "label": labels[rows]}
            state, metrics = train_step(state, batch)
        accuracy = eval_step(state, test)["accuracy"]
        print(f"  step {state.step:3}  loss {metrics['loss']:.4f}  test accuracy {accuracy:.1%}")


def main() -> None:
    np.set_printoptions(precision=4, suppress=True, linewidth=100)
    print("3.1 Define the network\n")
    params, image = define_the_network()
    print()
    run_it(params, image)
    print()
    feed_a_single_sample(params, image)
    print()
    pull_back_a_random_cotangent(params, image)
    print("\n3.2 Loss function\n")
    target = compute_the_loss(params, image)
    print()
    walk_the_graph(params, image, target)
    print("\n3.3 Backprop\n")
    grads = back_propagate(params, image, target)
    print("\n3.4 Update the weights\n")
    update_the_weights(params, grads, image, target)
    print()
    train()


if __name__ == "__main__":
    main()
