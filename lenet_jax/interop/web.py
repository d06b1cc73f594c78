"""A page to draw on, with the network inside: one HTML file that needs only a browser.

`web.html` is the page, and computes the network in plain JavaScript; this puts parameters into it.
"""

import base64
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lenet_jax.data.registry import INFO


def page(
    params: Mapping[str, Any],
    *,
    mean: float,
    std: float,
    classes: Sequence[str],
    dataset: str,
    about: str,
) -> bytes:
    """The page as UTF-8.

    Args:
      params: of a LeNet of 1 channel, kept as base64 of little-endian float32.
      mean, std: what its images were normalised with.
      classes: their names.
      dataset: its name; a drawing is scaled and centred as the images of that data set are.
      about: one sentence on the network.
    """
    info = INFO[dataset]
    content = {
        "mean": float(mean),
        "std": float(std),
        "classes": list(classes),
        "box": info.box,
        "pen": info.pen,
        "by_mass": info.by_mass,
        "about": about,
        "params": jax.tree.map(encode, params),
    }
    text = json.dumps(content).replace("<", r"\u003c")  # no name in it can end the script
    template = importlib.resources.files(__package__).joinpath("web.html").read_text("utf-8")
    return template.replace("{{run}}", text).encode()


def encode(array: jax.Array | np.ndarray) -> str:
    """Row by row: kernels as [height, width, in, out] or [in, out]."""
    return base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()
