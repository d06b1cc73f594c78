"""A page to draw on, with the network inside: one HTML file that needs only a browser.

The page, `web.html`, computes the network in plain JavaScript; this module fills in the parameters.
"""

import base64
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lenet_jax.data.registry import INFO

SURE = 0.8  # probability: an answer with a smaller one is called a guess, or unsure


def page(
    params: Mapping[str, Any],
    *,
    mean: float,
    std: float,
    classes: Sequence[str],
    dataset: str,
    about: str,
) -> bytes:
    """The page as UTF-8, for a LeNet with one channel; `about` is a sentence on the network.

    Drawings are scaled and centred like the images of the data set `dataset`.
    """
    info = INFO[dataset]
    content = {
        "mean": float(mean),
        "std": float(std),
        "classes": list(classes),
        "sure": SURE,
        "box": info.box,
        "pen": info.pen,
        "by_mass": info.by_mass,
        "about": about,
        "params": jax.tree.map(encode, params),
    }
    text = json.dumps(content).replace("<", r"\u003c")  # so that no text can end the script
    template = importlib.resources.files(__package__).joinpath("web.html").read_text("utf-8")
    return template.replace("{{run}}", text).encode()


def encode(array: jax.Array | np.ndarray) -> str:
    """Base64 of little-endian float32, in row-major order."""
    return base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()
