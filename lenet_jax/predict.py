"""Says which digit a picture shows.

    python -m lenet_jax.predict --workdir=runs/mnist three.png photographs/

A picture is of any size, grey or in colour, light on dark or dark on light, and shows one digit on
an even background. The digit is found, scaled and centred as those of the run's data set were;
--nocenter takes the whole picture as it is instead. Of a folder, all pictures in it are read.

Prints a line a picture, in the order they are given in: the file, what it shows, and how probable
that and the runner-up are. What cannot be answered gets a line on stderr; the others are answered,
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
import jax.numpy as jnp
import numpy as np

from lenet_jax import cli
from lenet_jax.core import epoch
from lenet_jax.core.model import LeNet
from lenet_jax.data import picture
from lenet_jax.run import trained
from lenet_jax.run.trained import TrainedRun


@dataclasses.dataclass(frozen=True)
class PredictSettings:
    """What `python -m lenet_jax.predict` can be told.

    Raises:
      ValueError: there is no picture to look at.
    """

    pictures: tuple[str, ...] = cli.setting(
        (), f"files or folders ({' '.join(picture.SUFFIXES)})", positional=True
    )
    workdir: str | None = cli.setting(None, "folder of the run, as lenet_jax.train made it")
    center: bool = cli.setting(True, "find the digit, scale and centre it")
    json: bool = cli.setting(
        False, "one JSON object a line instead: file, and prediction, probabilities or error"
    )

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ValueError("no picture is given; name files or folders after the flags")


def files(names: Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    """The files to read, folders replaced by the pictures in them, and what is wrong with one."""
    for path in map(Path, names):
        try:
            inside = sorted(path.iterdir()) if path.is_dir() else None
        except OSError as error:
            yield path, f"cannot be read ({error.strerror or error})"
            continue
        if inside is None:
            yield path, None
            continue
        pictures = [file for file in inside if file.suffix.lower() in picture.SUFFIXES]
        yield from ((file, None) for file in pictures)
        if not pictures:
            yield path, f"has no picture in it ({' '.join(picture.SUFFIXES)})"


def prepare(path: Path, run: TrainedRun, center: bool = True) -> np.ndarray:
    """A picture as the run's network sees it: uint8 [32, 32, 1].

    Raises:
      ValueError: it is no picture, or an empty one; the message goes on after the file's name.
    """
    grey = picture.read(path)
    return (
        picture.center(grey, picture.BOX[run.config["data"]["name"]])
        if center
        else picture.fit(grey)
    )


def probabilities(run: TrainedRun, images: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [N, 10] of N images uint8 [32, 32, 1]."""
    if not images:
        return np.zeros((0, 10), np.float32)
    # A power of two of them, so that few programs are compiled; the rest is thrown away.
    room = np.zeros((1 << (len(images) - 1).bit_length(), *images[0].shape), np.uint8)
    room[: len(images)] = images
    logits = epoch.predict(LeNet(), run.params, jnp.asarray(room), **run.scaling)
    return np.asarray(jax.nn.softmax(logits))[: len(images)]


def answer(path: Path, shares: np.ndarray) -> dict[str, Any]:
    """The answer for a picture, as JSON; `shares` are its probabilities [10]."""
    second, first = np.argsort(shares)[-2:].tolist()
    return {
        "file": str(path),
        "prediction": first,
        "probability": float(shares[first]),
        "runner_up": second,
        "runner_up_probability": float(shares[second]),
        "probabilities": shares.tolist(),
    }


def answers(run: TrainedRun, names: Sequence[str], center: bool = True) -> list[dict[str, Any]]:
    """One for each of `files`, in their order: an `answer`, or {"file", "error"}."""
    found, images = [], []
    for path, problem in files(names):
        try:
            if problem:
                raise ValueError(problem)
            images.append(prepare(path, run, center))
            found.append(path)
        except ValueError as error:
            found.append({"file": str(path), "error": str(error)})
    shares = iter(probabilities(run, images))
    return [each if isinstance(each, dict) else answer(each, next(shares)) for each in found]


def describe(found: dict[str, Any]) -> str:
    """The line for a person."""
    return (
        f"{_printable(found['file'])}: {found['prediction']} ({found['probability']:.1%}), "
        f"else {found['runner_up']} ({found['runner_up_probability']:.1%})"
    )


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(PredictSettings, argv, __doc__)
    cli.enable_compilation_cache()
    try:  # the lines of a program must not be disturbed
        run = trained.load(settings.workdir, lambda line: print(line, file=sys.stderr))
        found = answers(run, settings.pictures, settings.center)
    except ValueError as error:
        cli.fail(error)
    except KeyboardInterrupt:
        cli.fail("stopped by Ctrl-C; nothing is answered", 128 + signal.SIGINT)
    for each in found:
        if "error" in each:
            print(f"error: {_printable(each['file'])}: {each['error']}", file=sys.stderr)
        if settings.json or "error" not in each:  # flushed, so that both streams keep their order
            print(json.dumps(each) if settings.json else describe(each), flush=True)
    if any("error" in each for each in found):
        raise SystemExit(1)


def _printable(path: Path | str) -> str:
    """A file's name on one line, whatever bytes it is made of."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))


if __name__ == "__main__":
    main(sys.argv)
