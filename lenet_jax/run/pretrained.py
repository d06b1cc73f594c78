"""The trained networks that come with the package, in its folder `weights`.

Each is a checkpoint file with nothing but parameters. Its note has the config of a run and the last
line of a run's metrics; weights/README.md tells the same to people.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lenet_jax.core.model import LeNet
from lenet_jax.core.step import init_params
from lenet_jax.interop.pytorch import as_normalization
from lenet_jax.run import checkpoint

WEIGHTS = Path(__file__).parents[1] / "weights"
NAMES = ("mnist",)  # of data sets


class Pretrained(NamedTuple):
    """A trained network: what `model.apply` needs, and how its images were normalised."""

    model: LeNet
    params: dict[str, Any]
    normalization: dict[str, Any]  # {"mean", "std"} of the training pixels, as in a `data.Split`


def load_pretrained(name: str) -> Pretrained:
    """The package's network for a data set; weights/README.md has its recipe and accuracy.

    Raises:
      ValueError: the package has no network of this name.

    >>> model, params, normalization = load_pretrained("mnist")
    >>> {key: round(value, 4) for key, value in normalization.items()}
    {'mean': 0.1307, 'std': 0.3081}
    """
    params, note = read(name)
    data = note["config"]["data"]
    normalization = as_normalization(data["mean"], data["std"])
    return Pretrained(_model(note), jax.tree.map(jnp.array, params), normalization)


def read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters, as NumPy arrays, and the note of the file `name`."""
    if name not in NAMES:
        raise ValueError(f"load_pretrained({name!r}): choose one of {', '.join(NAMES)}")
    tree, note = checkpoint.read(file_of(name), _params_like)
    return tree["params"], note


def file_of(name: str) -> Path:
    return WEIGHTS / f"{name}.npz"


def _params_like(note: dict[str, Any]) -> dict[str, Any]:
    return {"params": jax.eval_shape(partial(init_params, _model(note)), jax.random.key(0))}


def _model(note: dict[str, Any]) -> LeNet:
    data = note["config"]["data"]
    return LeNet(len(data["classes"]), data["channels"])
