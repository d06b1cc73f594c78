"""LeNet in functional JAX: the network, its losses and optimizers, and one train step.

The modules `augment`, `epoch`, `losses`, `ops` and `population` are those of `lenet_jax.core`.
Importing this configures nothing. Commands: `lenet-jax --help`.
"""

from lenet_jax import core, data
from lenet_jax.compilation_cache import enable_compilation_cache
from lenet_jax.core import augment, epoch, losses, ops, population
from lenet_jax.core.epoch import normalize, train_epoch
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import make_optimizer
from lenet_jax.core.step import TrainState, create_train_state, eval_step, train_step, update
from lenet_jax.run.pretrained import load_pretrained

__version__ = "0.3.0"
__all__ = [
    "LeNet",
    "TrainState",
    "augment",
    "core",
    "create_train_state",
    "data",
    "enable_compilation_cache",
    "epoch",
    "eval_step",
    "load_pretrained",
    "losses",
    "make_optimizer",
    "normalize",
    "ops",
    "population",
    "train_epoch",
    "train_step",
    "update",
]
