"""A run's settings: frozen dataclasses that flags fill, a workdir keeps and messages name."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from lenet_jax.cli import Valid, at_least, between, check, setting
from lenet_jax.core import losses
from lenet_jax.core.optimizers import OPTIMIZERS, SCHEDULES
from lenet_jax.core.optimizers import SETTINGS as OPTIMIZER_SETTINGS
from lenet_jax.data import DATASETS, Dataset
from lenet_jax.data.registry import INFO
from lenet_jax.files import expand_user

FRACTION = Valid(lambda value: 0 <= value < 1, "from 0 to below 1")

S = TypeVar("S", bound="TrainingSettings")


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """The flags that `train` and `sweep` share. None means: decided when the run starts."""

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
    epochs: int | None = setting(
        None,
        "passes over the training images (default: 5; digits 30, cifar10 10)",
        valid=at_least(1),
    )
    batch_size: int = setting(64, "examples per update", valid=at_least(1))
    schedule: str = setting("onecycle", "learning-rate schedule", SCHEDULES)
    augment: float = setting(
        0.0,
        "how strongly training images are distorted at random: 0 is not at all, 1 suits MNIST",
        valid=at_least(0.0),
    )
    workdir: str | None = setting(
        None, "folder for the results (default: a new one in runs/)", affects_results=False
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Settings(TrainingSettings):
    """The flags of `python -m lenet_jax.train`."""

    # Whether it may change depends on the schedule: `folder.extend` decides.
    epochs: int | None = setting(
        None,
        "passes over the training split (default: 5; digits 30, cifar10 10)",
        valid=at_least(1),
        affects_results=False,
    )
    optimizer: str = setting("adam", "how gradients become updates", OPTIMIZERS)
    learning_rate: float | None = setting(
        None,
        "step size (default: the optimizer's own)",
        valid=Valid(lambda rate: 0 < rate < math.inf, "a number above 0"),
    )
    momentum: float | None = setting(
        None,
        "momentum of sgd, nesterov and rmsprop (default: 0.9 for nesterov, else 0)",
        valid=FRACTION,
    )
    weight_decay: float | None = setting(
        None, "L2 penalty, decoupled for adamw (default: 0.01 for adamw, else 0)", valid=at_least(0)
    )
    clip_norm: float = setting(
        0.0, "largest norm of all gradients together; 0 does not clip", valid=at_least(0)
    )
    loss: str = setting(
        "cross_entropy",
        "the loss to minimise; a regression loss compares the logits with one-hot labels",
        tuple(losses.CLASSIFICATION),
    )
    label_smoothing: float = setting(
        0.0, "share of a cross_entropy target spread over all classes in training", valid=FRACTION
    )
    ema: float = setting(
        0.0,
        "decay, such as 0.999, of an average of the weights to evaluate and export; 0: no average",
        valid=FRACTION,
    )
    init_from: str | None = setting(
        None,
        "start from the parameters in this file: the state dict of the tutorial's Net, as "
        ".safetensors, or as .pt if torch is installed, also with a prefix or inside a dictionary "
        "(default: PyTorch's initialisation)",
    )
    seed: int = setting(
        0, "random seed for initialisation and shuffling", valid=between(0, 2**32 - 1)
    )
    resume: bool = setting(
        True,
        "continue the run in --workdir from its latest checkpoint; --noresume moves that run to "
        "a folder old-<time> there and starts a new one",
        affects_results=False,
    )
    keep: int = setting(
        3, "how many of the latest checkpoints to keep", valid=at_least(1), affects_results=False
    )
    checkpoint_every_steps: int | None = setting(
        None,
        "also save a checkpoint each time this many steps are done",
        valid=at_least(1),
        affects_results=False,
    )
    summary: bool = setting(
        False,
        "instead of training, print the layers of the data set's network with shapes, parameters "
        "and FLOPs; no images are read",
        affects_results=False,
    )
    compilation_cache: bool = setting(
        True, "keep compiled functions in ~/.cache/lenet_jax for later runs", affects_results=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.momentum is not None and "momentum" not in OPTIMIZER_SETTINGS[self.optimizer]:
            raise ValueError(f"--momentum={self.momentum}: {self.optimizer} has no momentum")
        if self.label_smoothing and self.loss != "cross_entropy":
            raise ValueError(f"--label_smoothing={self.label_smoothing}: only cross_entropy has it")
        if self.optimizer == "nesterov" and self.momentum == 0:
            raise ValueError(f"--momentum={self.momentum}: must be above 0 for nesterov")


def resolve_data(settings: S, dataset: Dataset, images: int) -> S:
    """Fills in what depends on the data set; ValueError if a batch is larger than the `images`."""
    if settings.batch_size > images:
        flag = f"--batch_size={settings.batch_size}"
        raise ValueError(f"{flag}: {dataset.name} has only {images} images to train on")
    # Absolute, because later commands may start in another folder.
    folder = settings.data_dir and str(expand_user(settings.data_dir, "--data_dir").absolute())
    epochs = settings.epochs or INFO[dataset.name].default_epochs
    return dataclasses.replace(settings, dataset=dataset.name, data_dir=folder, epochs=epochs)


def diff_settings(settings: Any, other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that affect a run's results and differ in `other`: name -> (here, there).

    A setting that `other` lacks has its default: `other` predates it.

    >>> diff_settings(Settings(batch_size=128), {"batch_size": 64, "epochs": 2})
    {'batch_size': (128, 64)}
    """
    pairs = {
        field.name: (getattr(settings, field.name), other.get(field.name, field.default))
        for field in dataclasses.fields(settings)
        if field.metadata["affects_results"]
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
