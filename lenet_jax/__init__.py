"""LeNet in functional JAX: the network, its losses and optimizers, and one train step.

Importing this configures nothing. Commands: `python -m lenet_jax.train --help`.
"""

from lenet_jax import losses
from lenet_jax.epoch import train_epoch
from lenet_jax.model import LeNet
from lenet_jax.optimizers import make_optimizer
from lenet_jax.step import TrainState, create_train_state, eval_step, train_step, update

__all__ = [
    "LeNet",
    "TrainState",
    "create_train_state",
    "eval_step",
    "losses",
    "make_optimizer",
    "train_epoch",
    "train_step",
    "update",
]
