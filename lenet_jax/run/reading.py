"""What a trained network reads in pictures.

N is the number of images, C of classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lenet_jax.core.model import model_for
from lenet_jax.data import registry
from lenet_jax.pictures import frame
from lenet_jax.pictures import read as pictures
from lenet_jax.pictures.box import Box
from lenet_jax.run.measure import predict_logits
from lenet_jax.run.trained import TrainedRun


def prepare(path: Path, run: TrainedRun) -> np.ndarray:
    """The tallest thing on a picture as the run's network takes it: uint8 [32, 32, channels]."""
    return frame.tallest(find(path, run)).image


def find(path: Path, run: TrainedRun, center: bool = True) -> list[frame.Found]:
    """What is on a picture, from left to right, as the run's network takes it.

    Each image is uint8 [32, 32, channels]. Several are told apart where classes are characters.

    Raises:
      ValueError: it is not a picture, or an empty one; the message goes on after the file's name.
    """
    pixels, scale = pictures.read(path)
    height, width = (side * scale for side in pixels.shape[:2])
    whole = lambda image: [frame.Found(image, Box(0, 0, height, width), ())]
    if model_for(run.params).in_channels > 1:  # photographs fill their images
        return whole(frame.crop_square(pixels))
    if not center:
        return whole(frame.fit(pixels))
    info = registry.INFO[run.config["data"]["name"]]
    apart = max(map(len, run.classes)) == 1
    found = frame.find(pixels, info.box, info.by_mass, apart)
    return [each._replace(box=each.box.scaled(scale)) for each in found]


def predict_probs(run: TrainedRun, images: Sequence[np.ndarray]) -> np.ndarray:
    """Probabilities, float32 [N, C], of at least one image uint8 [32, 32, channels]."""
    # Padded to a power of two, so that few sizes are compiled; the padding's rows are dropped.
    padded = np.zeros((1 << (len(images) - 1).bit_length(), *images[0].shape), np.uint8)
    padded[: len(images)] = images
    return np.asarray(jax.nn.softmax(predict_logits(run, padded)))[: len(images)]


def read(
    run: TrainedRun, names: Sequence[str], center: bool = True
) -> list[tuple[Path, list[frame.Found], list[dict[str, Any]]]]:
    """Of each of `pictures.find_files`, in their order: the file, what is on it, and as many
    `prediction`s; or the file, nothing, and {"file", "error"}.
    """
    files = []
    for path, error in pictures.find_files(names):
        found = []
        try:
            found = [] if error else find(path, run, center)
        except ValueError as reason:
            error = str(reason)
        files.append((path, found, error))
    images = [each.image for _, found, _ in files for each in found]
    probs = iter(predict_probs(run, images) if images else ())
    return [
        (
            path,
            found,
            [{"file": str(path), "error": error}]
            if error
            else [prediction(path, each, next(probs), run.classes) for each in found],
        )
        for path, found, error in files
    ]


def prediction(
    path: Path, found: frame.Found, probs: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """What the probabilities [C] of something on a picture say, as JSON; `classes` are names."""
    box = found.box
    second, first = np.argsort(probs)[-2:].tolist()
    return {
        "file": str(path),
        "box": [round(side) for side in (box.left, box.top, box.right, box.bottom)],
        "prediction": first,
        "class": classes[first],
        "probability": float(probs[first]),
        "runner_up": second,
        "runner_up_class": classes[second],
        "runner_up_probability": float(probs[second]),
        "probabilities": probs.tolist(),
    }


def write_images(folder: Path, found: Sequence[frame.Found], path: Path, number: int) -> None:
    """Writes what the network saw of a picture: <number>-<name>.png, or -1, -2, ... of several.

    Raises:
      OSError: it cannot be written.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for index, each in enumerate(found, 1):
        end = f"-{index}" if len(found) > 1 else ""
        image = each.image[..., 0] if each.image.shape[-1] == 1 else each.image
        Image.fromarray(image).save(folder / f"{number:03d}-{path.stem}{end}.png")
