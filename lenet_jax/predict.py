"""Reads the characters in pictures.

    python -m lenet_jax.predict --workdir=runs/mnist three.png photographs/

A picture may be of any size, in grey or colour, light on dark or dark on light, and shows one digit
on an even background. The digit is found, scaled and centred as those of the run's data set were;
--nocenter takes the entire picture as it is instead. Of a folder, all pictures in it are read.

Prints one line per picture, in the order given: the file, the predicted class, the runner-up, and
their probabilities. A picture that cannot be read gets a line on stderr; the others are answered,
and the exit code is 1.
"""

import dataclasses
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lenet_jax import cli
from lenet_jax.data import picture, registry
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
    center: bool = cli.setting(True, "find the digit, scale and centre it")
    json: bool = cli.setting(
        False,
        "print one JSON object per line instead: file, and prediction, class, ... or error",
    )

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ValueError("no picture is given; name files or folders after the flags")
        super().__post_init__()


def find_pictures(names: Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    """The files to read, folders replaced by the pictures in them, each with an error or None."""
    for path in map(Path, names):
        try:
            files = sorted(path.iterdir()) if path.is_dir() else [path]
        except OSError as error:
            yield path, f"cannot be read ({error.strerror or error})"
            continue
        if path.is_dir():
            files = [file for file in files if file.suffix.lower() in picture.SUFFIXES]
        yield from ((file, None) for file in files)
        if not files:
            yield path, f"has no picture in it ({' '.join(picture.SUFFIXES)})"


def prepare(path: Path, run: TrainedRun, center: bool = True) -> np.ndarray:
    """A picture as the run's network takes it: uint8 [32, 32, 1].

    Raises:
      ValueError: it is not a picture, or an empty one; the message goes on after the file's name.
    """
    grey = picture.read(path)
    box = registry.INFO[run.config["data"]["name"]].box
    return picture.center(grey, box) if center else picture.fit(grey)


def predict_probs(run: TrainedRun, images: Sequence[np.ndarray]) -> np.ndarray:
    """Probabilities, float32 [N, C], of at least one image uint8 [32, 32, channels]."""
    # Padded to a power of two, so that few sizes are compiled; the padding's rows are dropped.
    padded = np.zeros((1 << (len(images) - 1).bit_length(), *images[0].shape), np.uint8)
    padded[: len(images)] = images
    return np.asarray(jax.nn.softmax(predict_logits(run, padded)))[: len(images)]


def predict(run: TrainedRun, names: Sequence[str], center: bool = True) -> list[dict[str, Any]]:
    """JSON for each of `find_pictures`, in their order: a `prediction`, or {"file", "error"}."""
    found, images = [], []
    for path, error in find_pictures(names):
        try:
            images += [] if error else [prepare(path, run, center)]
        except ValueError as reason:
            error = str(reason)
        found.append({"file": str(path), "error": error} if error else path)
    probs = iter(predict_probs(run, images) if images else ())
    return [
        each if isinstance(each, dict) else prediction(each, next(probs), run.classes)
        for each in found
    ]


def prediction(path: Path, probs: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """What a picture's probabilities [C] say, as JSON; `classes` are their names."""
    second, first = np.argsort(probs)[-2:].tolist()
    return {
        "file": str(path),
        "prediction": first,
        "class": classes[first],
        "probability": float(probs[first]),
        "runner_up": second,
        "runner_up_class": classes[second],
        "runner_up_probability": float(probs[second]),
        "probabilities": probs.tolist(),
    }


def format_line(found: dict[str, Any]) -> str:
    """A `prediction` for a person."""
    return (
        f"{_printable(found['file'])}: {found['class']} ({found['probability']:.1%}), "
        f"else {found['runner_up_class']} ({found['runner_up_probability']:.1%})"
    )


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(PredictSettings, argv, __doc__)
    cli.enable_compilation_cache()
    try:  # stdout is for predictions only, which a script may read
        run = trained.load_network(settings, lambda line: print(line, file=sys.stderr))
        found = predict(run, settings.pictures, settings.center)
    except ValueError as error:
        cli.fail(error)
    except KeyboardInterrupt:
        cli.fail("stopped by Ctrl-C; nothing is answered", 128 + signal.SIGINT)
    for each in found:
        if "error" in each:
            print(f"error: {_printable(each['file'])}: {each['error']}", file=sys.stderr)
        if settings.json or "error" not in each:  # flushed, so that both streams keep their order
            print(json.dumps(each) if settings.json else format_line(each), flush=True)
    if any("error" in each for each in found):
        raise SystemExit(1)


def _printable(path: Path | str) -> str:
    """A file's name on one line, whatever bytes it is made of."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))


if __name__ == "__main__":
    cli.run(main)
