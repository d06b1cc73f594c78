"""A run's settings: one frozen dataclass that flags fill, a workdir keeps and messages name."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from lenet_jax.cli import check_choices, setting
from lenet_jax.core import losses
from lenet_jax.core.optimizers import OPTIMIZERS, SCHEDULES
from lenet_jax.core.optimizers import SETTINGS as OPTIMIZER_SETTINGS
from lenet_jax.data import DATASETS


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `python -m lenet_jax.train` can be told. None means: decided when the run starts.

    Raises:
      ValueError: a setting is out of its range; the message starts with the flag.
    """

    optimizer: str = setting("adam", "how gradients become updates", OPTIMIZERS)
    learning_rate: float | None = setting(None, "step size (default: the optimizer's own)")
    momentum: float | None = setting(
        None, "momentum of sgd, nesterov and rmsprop (default: 0.9 for nesterov, else 0)"
    )
    weight_decay: float | None = setting(
        None, "L2 penalty, decoupled for adamw (default: 0.01 for adamw, else 0)"
    )
    schedule: str = setting("onecycle", "learning-rate schedule", SCHEDULES)
    loss: str = setting(
        "cross_entropy",
        "what is minimised; regression losses compare with one-hot labels",
        tuple(losses.CLASSIFICATION),
    )
    dataset: str | None = setting(
        None, "what to train on (default: mnist if it is available, else digits)", DATASETS
    )
    data_dir: str | None = setting(
        None,
        "folder with IDX files (train-images-idx3-ubyte[.gz], ..., as MNIST's authors, Kaggle, "
        "torchvision or EMNIST name them), with Keras' mnist.npz, with CIFAR-10's binary files, or "
        "of tensorflow-datasets (default: ~/tensorflow_datasets)",
        affects_results=False,
    )
    init_from: str | None = setting(
        None,
        "start from the parameters in this file: the state dict of the tutorial's Net, as "
        ".safetensors, or as .pt if torch is installed, also with a prefix or inside of a "
        "dictionary (default: PyTorch's initialisation)",
    )
    batch_size: int = setting(64, "examples per update")
    augment: float = setting(
        0.0,
        "strength of the random distortions of training images: 1 is best for MNIST, 0 is none",
    )
    epochs: int | None = setting(
        None,
        "passes over the training split (default: 5; digits 30, cifar10 10)",
        affects_results=False,
    )
    seed: int = setting(0, "random seed for initialisation and shuffling")
    workdir: str | None = setting(
        None,
        "folder for the run's files (default: runs/<data set>-<optimizer>-<time>)",
        affects_results=False,
    )
    resume: bool = setting(
        True,
        "continue the run in --workdir from its latest checkpoint; --noresume moves that run to "
        "a folder old-<time> therein and starts a new one",
        affects_results=False,
    )
    keep: int = setting(3, "how many checkpoints to keep, the latest", affects_results=False)
    checkpoint_every_steps: int | None = setting(
        None, "save every so many steps, besides after each epoch", affects_results=False
    )
    compilation_cache: bool = setting(
        True,
        "keep compiled functions in ~/.cache/lenet_jax, so that the next run starts sooner",
        affects_results=False,
    )

    def __post_init__(self) -> None:
        check_choices(self)
        self._check("learning_rate", "a number above 0", lambda v: 0 < v < math.inf)
        self._check("momentum", "a number from 0 to below 1", lambda v: 0 <= v < 1)
        self._check("weight_decay", "a number of at least 0", lambda v: 0 <= v < math.inf)
        if self.momentum is not None and "momentum" not in OPTIMIZER_SETTINGS[self.optimizer]:
            raise ValueError(f"--momentum={self.momentum}: {self.optimizer} has no momentum")
        if self.optimizer == "nesterov":
            self._check("momentum", "above 0 for nesterov", lambda v: v > 0)
        self._check("batch_size", "at least 1", lambda v: v >= 1)
        self._check("augment", "a number of at least 0", lambda v: 0 <= v < math.inf)
        self._check("epochs", "at least 1", lambda v: v >= 1)
        self._check("keep", "at least 1", lambda v: v >= 1)
        self._check("checkpoint_every_steps", "at least 1", lambda v: v >= 1)
        self._check("seed", "from 0 to 4294967295", lambda v: 0 <= v < 2**32)

    def _check(self, name: str, wanted: str, is_valid: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is not None and not is_valid(value):  # NaN fails every comparison
            raise ValueError(f"--{name}={value}: must be {wanted}")


def diff_settings(settings: Any, other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that affect a run's results and differ in `other`: name -> (here, there).

    A setting that `other` lacks had its default: `other` was written before there was one.

    >>> diff_settings(Settings(batch_size=128), {"batch_size": 64, "epochs": 2})
    {'batch_size': (128, 64)}
    """
    pairs = {
        field.name: (getattr(settings, field.name), other.get(field.name, field.default))
        for field in dataclasses.fields(settings)
        if field.metadata["affects_results"]
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
