"""Reads pictures with a trained network.

N is the number of images, C of classes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lenet_jax.core.model import model_for
from lenet_jax.data import registry
from lenet_jax.pictures import frame
from lenet_jax.pictures import read as pictures
from lenet_jax.pictures.box import Box
from lenet_jax.run.measure import predict_logits
from lenet_jax.run.trained import TrainedRun


class Reading(NamedTuple):
    """What the network reads on a picture, or on one page of it."""

    name: str  # the file and, if it has several pages, the page
    found: list[frame.Found]
    answers: list[dict[str, Any]]  # as JSON: a `prediction` per `found`, or one "error"
    note: str = ""  # which frame of an animation it is


def prepare(path: Path, run: TrainedRun) -> np.ndarray:
    """The tallest character on a picture as the network's input: uint8 [32, 32, channels]."""
    return frame.tallest(find(pictures.read(path), run)).image


def find(picture: pictures.Picture, run: TrainedRun, center: bool = True) -> list[frame.Found]:
    """The characters on a picture, from left to right, as the network's input.

    Each image is uint8 [32, 32, channels]. Where the classes are not characters, there is one.

    Raises:
      ValueError: the picture is empty; the message continues after the file's name.
    """
    pixels, scale = picture.pixels, picture.scale
    height, width = (side * scale for side in pixels.shape[:2])
    whole = lambda image: [frame.Found(image, Box(0, 0, height, width), "")]
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


def read(run: TrainedRun, path: Path, center: bool = True) -> Iterator[Reading]:
    """Each page of a file as soon as it is read; of an animation, the first frame with ink.

    Whatever is wrong with a page is its answer, so that other pages and files are read.
    """
    number = 0
    try:
        for page in pictures.read_pages(path):
            number = page.number
            reading = _read_page(run, path, page, center)
            if page.moves and "error" in reading.answers[0] and number < page.count:
                continue
            yield reading
            if page.moves:
                return
    except ValueError as error:
        yield failed(str(path), path, number + 1, error)


def _read_page(run: TrainedRun, path: Path, page: pictures.Page, center: bool) -> Reading:
    name = f"{path}, page {page.number}" if page.count > 1 and not page.moves else str(path)
    try:
        found = find(page.picture, run, center)
        probs = predict_probs(run, [each.image for each in found])
    except Exception as error:
        return failed(name, path, page.number, error)
    answers = [
        prediction(path, page.number, each, each_probs, run.classes)
        for each, each_probs in zip(found, probs, strict=True)
    ]
    note = f"frame {page.number} of {page.count} is the first with ink" if page.moves else ""
    return Reading(name, found, answers, note)


def failed(name: str, path: Path, page: int, error: Exception | str) -> Reading:
    """The reading of a page that cannot be read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return Reading(name, [], [{"file": str(path), "page": page, "error": reason}])


def prediction(
    path: Path, page: int, found: frame.Found, probs: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """The probabilities [C] of a character on a picture, as JSON; `classes` are names."""
    box = found.box
    second, first = np.argsort(probs)[-2:].tolist()
    return {
        "file": str(path),
        "page": page,
        "box": [round(side) for side in (box.left, box.top, box.right, box.bottom)],
        "prediction": first,
        "class": classes[first],
        "probability": float(probs[first]),
        "runner_up": second,
        "runner_up_class": classes[second],
        "runner_up_probability": float(probs[second]),
        "probabilities": probs.tolist(),
    }


def write_images(folder: Path, reading: Reading, number: int) -> None:
    """Writes the network's inputs as <number>-<name>.png.

    A later page adds -page2, ..., and several characters -1, -2, ...
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for index, each in enumerate(reading.found, 1):
        answer = reading.answers[0]
        name = f"{number:03d}-{Path(answer['file']).stem}"
        name += f"-page{answer['page']}" if answer["page"] > 1 else ""
        name += f"-{index}" if len(reading.found) > 1 else ""
        image = each.image[..., 0] if each.image.shape[-1] == 1 else each.image
        Image.fromarray(image).save(folder / f"{name}.png")
