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

from lenet_jax import cli
from lenet_jax.files import expand_user
from lenet_jax.pictures.read import SUFFIXES
from lenet_jax.run import reading, trained


@dataclasses.dataclass(frozen=True)
class PredictSettings(trained.NetworkSettings):
    """The flags of `python -m lenet_jax.predict`.

    Raises:
      ValueError: no picture is named.
    """

    pictures: tuple[str, ...] = cli.setting(
        (), f"files or folders ({' '.join(SUFFIXES)})", positional=True
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


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(PredictSettings, argv, __doc__)
    cli.start_jax()
    try:  # stdout is for predictions only, which a script may read
        run = trained.load_network(settings, lambda line: print(line, file=sys.stderr))
        pictures = reading.read(run, settings.pictures, settings.center)
        if settings.output:
            for number, (path, found, _) in enumerate(pictures, 1):
                reading.write_images(expand_user(settings.output, "--output"), found, path, number)
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
