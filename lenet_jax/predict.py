"""Reads the characters in pictures.

    python -m lenet_jax.predict --workdir=runs/mnist three.png photographs/

A picture may be of any size, in grey or colour, light on dark or dark on light, on paper that is
unevenly lit, ruled, framed, or lies on a desk. What is written on it is found, scaled and centred
as the characters of the run's data set were; --nocenter takes the entire picture as it is instead.
A network of colour images gets the picture's middle square. Of a folder, all pictures are read.

Prints one line per picture, in the order given: the file, the predicted class, the runner-up, and
their probabilities; of several characters, all of them from left to right. A line on stderr says
where it is unsure what was meant, and --output=DIR writes what the network saw. A picture that
cannot be read gets a line on stderr; the others are answered, and the exit code is 1.
"""

import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lenet_jax import cli
from lenet_jax.core.model import model_for
from lenet_jax.data import picture, registry
from lenet_jax.files import expand_user
from lenet_jax.run import trained
from lenet_jax.run.measure import predict_logits
from lenet_jax.run.trained import TrainedRun


@dataclasses.dataclass(frozen=True)
class PredictSettings(trained.NetworkSettings):
    """The flags of `python -m lenet_jax.predict`.

    Raises:
      ValueError: no picture is named.
    """

    pictures: tuple[str, ...] = cli.setting(
        (), f"files or folders ({' '.join(picture.SUFFIXES)})", positional=True
    )
    center: bool = cli.setting(True, "find the character, scale and centre it")
    json: bool = cli.setting(
        False,
        "print one JSON object per line instead: file, and box, prediction, class, ... or error",
    )
    output: str | None = cli.setting(None, "folder for PNG files of what the network saw")

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ValueError("no picture is given; name files or folders after the flags")
        super().__post_init__()


def prepare(path: Path, run: TrainedRun, center: bool = True) -> np.ndarray:
    """The tallest thing on a picture as the run's network takes it: uint8 [32, 32, channels]."""
    return max(find(path, run, center), key=lambda each: each.bottom - each.top).image


def find(path: Path, run: TrainedRun, center: bool = True) -> list[picture.Found]:
    """What is on a picture, from left to right, as the run's network takes it.

    Each image is uint8 [32, 32, channels]. Several are told apart where classes are characters.

    Raises:
      ValueError: it is not a picture, or an empty one; the message goes on after the file's name.
    """
    pixels = picture.read(path)
    scale = picture.pixel_size(path, pixels)
    height, width = (side * scale for side in pixels.shape[:2])
    whole = lambda image: [picture.Found(image, 0, 0, width, height, ())]
    if model_for(run.params).in_channels > 1:  # photographs fill their images
        return whole(picture.crop_square(pixels))
    if not center:
        return whole(picture.fit(pixels))
    info = registry.INFO[run.config["data"]["name"]]
    apart = max(map(len, run.classes)) == 1
    found = picture.find(pixels, info.box, info.by_mass, apart)
    return [each.scaled(scale) for each in found]


def predict_probs(run: TrainedRun, images: Sequence[np.ndarray]) -> np.ndarray:
    """Probabilities, float32 [N, C], of at least one image uint8 [32, 32, channels]."""
    # Padded to a power of two, so that few sizes are compiled; the padding's rows are dropped.
    padded = np.zeros((1 << (len(images) - 1).bit_length(), *images[0].shape), np.uint8)
    padded[: len(images)] = images
    return np.asarray(jax.nn.softmax(predict_logits(run, padded)))[: len(images)]


def predict(
    run: TrainedRun, names: Sequence[str], center: bool = True
) -> list[tuple[Path, list[picture.Found], list[dict[str, Any]]]]:
    """Of each of `picture.find_files`, in their order: the file, what is on it, and as many
    `prediction`s; or the file, nothing, and {"file", "error"}.
    """
    pictures = []
    for path, error in picture.find_files(names):
        found = []
        try:
            found = [] if error else find(path, run, center)
        except ValueError as reason:
            error = str(reason)
        pictures.append((path, found, error))
    images = [each.image for _, found, _ in pictures for each in found]
    probs = iter(predict_probs(run, images) if images else ())
    return [
        (
            path,
            found,
            [{"file": str(path), "error": error}]
            if error
            else [prediction(path, each, next(probs), run.classes) for each in found],
        )
        for path, found, error in pictures
    ]


def prediction(
    path: Path, found: picture.Found, probs: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """What the probabilities [C] of something on a picture say, as JSON; `classes` are names."""
    second, first = np.argsort(probs)[-2:].tolist()
    return {
        "file": str(path),
        "box": [round(side) for side in found[1:5]],
        "prediction": first,
        "class": classes[first],
        "probability": float(probs[first]),
        "runner_up": second,
        "runner_up_class": classes[second],
        "runner_up_probability": float(probs[second]),
        "probabilities": probs.tolist(),
    }


def format_line(answers: Sequence[dict[str, Any]]) -> str:
    """All `prediction`s of a picture for a person."""
    first, file = answers[0], _printable(answers[0]["file"])
    if len(answers) > 1:
        kind = "digits" if all(each["class"].isdigit() for each in answers) else "characters"
        return f"{file}: {len(answers)} {kind}: {' '.join(each['class'] for each in answers)}"
    return (
        f"{file}: {first['class']} ({first['probability']:.1%}), "
        f"else {first['runner_up_class']} ({first['runner_up_probability']:.1%})"
    )


def write_images(folder: Path, found: Sequence[picture.Found], path: Path, number: int) -> None:
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


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(PredictSettings, argv, __doc__)
    cli.enable_compilation_cache()
    try:  # stdout is for predictions only, which a script may read
        run = trained.load_network(settings, lambda line: print(line, file=sys.stderr))
        pictures = predict(run, settings.pictures, settings.center)
        if settings.output:
            for number, (path, found, _) in enumerate(pictures, 1):
                write_images(expand_user(settings.output, "--output"), found, path, number)
    except ValueError as error:
        cli.fail(error)
    except OSError as error:
        cli.fail(f"{error}; --output names another folder", 1)
    except KeyboardInterrupt:
        cli.fail("stopped by Ctrl-C; nothing is answered", 128 + signal.SIGINT)
    for path, found, answers in pictures:
        error = answers[0].get("error")
        if error:
            print(f"error: {_printable(path)}: {error}", file=sys.stderr)
        doubts = dict.fromkeys(doubt for each in found for doubt in each.doubts)
        if doubts:
            print(f"unsure: {_printable(path)}: what is read {', '.join(doubts)}", file=sys.stderr)
        lines = (
            map(json.dumps, answers) if settings.json else [] if error else [format_line(answers)]
        )
        for line in lines:  # flushed, so that both streams keep their order
            print(line, flush=True)
    if any("error" in answers[0] for _, _, answers in pictures):
        raise SystemExit(1)


def _printable(path: Path | str) -> str:
    """A file's name on one line, whatever bytes it is made of."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))


if __name__ == "__main__":
    cli.run(main)
