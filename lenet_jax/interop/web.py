"""A page to draw digits on, with the network inside: one HTML file that needs a browser alone.

`web.html` is the page, and computes the network in plain JavaScript; this puts a run into it.
"""

import base64
import dataclasses
import importlib.resources
import json

import jax
import numpy as np

from lenet_jax.data.picture import BOX
from lenet_jax.run.trained import TrainedRun


@dataclasses.dataclass(frozen=True)
class Frame:
    """How a data set's things lie in the 32 x 32 pixels."""

    box: int  # the side of the square that they fill
    pen: float  # the width of their strokes
    by_mass: bool = False  # the centre of mass is in the middle, not that of the box


# The pens give drawings as much white as the data sets' images have on average.
FRAMES = {
    "mnist": Frame(BOX["mnist"], 2.4, by_mass=True),
    "fashion_mnist": Frame(BOX["fashion_mnist"], 3),
    "kmnist": Frame(BOX["kmnist"], 3),
    "digits": Frame(BOX["digits"], 4.5),
}


def page(run: TrainedRun) -> bytes:
    """The page as UTF-8, with the parameters of `run` as base64 of little-endian float32."""
    name = run.config["data"]["name"]
    content = {
        **run.scaling,
        **dataclasses.asdict(FRAMES[name]),
        "about": about(run),
        "params": jax.tree.map(encode, run.params),
    }
    text = json.dumps(content).replace("<", r"\u003c")  # no name in it can end the script
    template = (
        importlib.resources.files("lenet_jax.interop").joinpath("web.html").read_text("utf-8")
    )
    return template.replace("{{run}}", text).encode()


def about(run: TrainedRun) -> str:
    """One sentence: what the network has learnt, for how long, and how well."""
    name, epochs = run.config["data"]["name"], [r for r in run.metrics if r["step"] == run.step]
    tested = f", test accuracy {epochs[-1]['test_accuracy']:.2%}" if epochs else ""
    return f"LeNet of 61,706 parameters, trained on {name} for {run.step:,} steps{tested}."


def encode(array: jax.Array | np.ndarray) -> str:
    """Row by row: kernels as [height, width, in, out] or [in, out]."""
    return base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()
