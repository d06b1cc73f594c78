"""Reads the characters in pictures.

    python -m lenet_jax.predict three.png photographs/
    python -m lenet_jax.predict --workdir=runs/letters letter.png

Without --workdir and --init_from it reads digits, with the network that comes with the package.

A picture may be of any size, in grey or colour, light on dark or dark on light, on paper that is
unevenly lit, ruled, framed, or lies on a desk. The command finds the characters, then scales and
centres them as in the run's data set; --nocenter takes the entire picture instead. A network for
colour images gets the picture's middle square. All pictures in a folder are read, all pages of a
TIFF file, and the first frame of an animation that is not empty.

It prints one line per picture as soon as it has read it: the file, the predicted class, the
runner-up, and their probabilities; if there are several characters, all of them from left to right.
Below a probability of 80 % it says "unsure". A note on stderr says when a character
touches the picture's border or fills the picture, and --output=DIR writes the network's inputs. A
picture that cannot be read gets a line on stderr, and the exit code is 1.
"""

import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lenet_jax import cli
from lenet_jax.data.registry import INFO
from lenet_jax.files import expand_user
from lenet_jax.interop.web import SURE
from lenet_jax.pictures.read import SUFFIXES, find_files
from lenet_jax.run import trained

if TYPE_CHECKING:
    from lenet_jax.run import reading

PATIENCE_S = 2  # a progress bar appears after this time


@dataclasses.dataclass(frozen=True)
class PredictSettings(trained.NetworkSettings):
    """The flags of `python -m lenet_jax.predict`."""

    pictures: tuple[str, ...] = cli.setting(
        (),
        f"files or folders ({' '.join(SUFFIXES)})",
        missing="no picture is given; name files or folders after the flags",
        positional=True,
    )
    center: bool = cli.setting(True, "find the character, scale and centre it")
    json: bool = cli.setting(
        False,
        "print one JSON object per line instead: file, page, and box, prediction, class, ... or "
        "error",
    )
    output: str | None = cli.setting(None, "folder for PNG files of the network's inputs")


def format_line(answers: Sequence[dict[str, Any]], name: str) -> str:
    """All `prediction`s on a picture of this name, for a person."""
    if len(answers) > 1:
        kind = "digits" if all(each["class"].isdigit() for each in answers) else "characters"
        return f"{name}: {len(answers)} {kind}: {' '.join(map(_format_one_of_several, answers))}"
    first = answers[0]
    unsure = ", unsure" if first["probability"] < SURE else ""
    return (
        f"{name}: {first['class']} ({first['probability']:.1%}{unsure}), "
        f"else {first['runner_up_class']} ({first['runner_up_probability']:.1%})"
    )


def _format_one_of_several(answer: dict[str, Any]) -> str:
    runner_up = f"{answer['runner_up_class']}, {answer['runner_up_probability']:.1%}"
    unsure = f", unsure: else {runner_up}" if answer["probability"] < SURE else ""
    return f"{answer['class']} ({answer['probability']:.1%}{unsure})"


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(PredictSettings, argv, __doc__)
    cli.start_jax()
    with cli.exit_on_error("; name another folder with --output" if settings.output else ""):
        if not answer(settings):
            raise SystemExit(1)


def answer(settings: PredictSettings) -> bool:
    """Prints the answers; whether all pictures could be read."""
    from lenet_jax.run import reading  # imports scipy, of whose absence `cli.run` tells

    note = lambda line: print(line, file=sys.stderr, flush=True)  # stdout is for answers only
    run = trained.load_network(settings, note)
    if advice := INFO[run.config["data"]["name"]].advice:
        note(f"note: {advice}")
    output = settings.output and expand_user(settings.output, "--output")
    files, answered, all_read = list(find_files(settings.pictures)), 0, True
    try:
        with cli.progress_bar(files, unit="picture", delay=PATIENCE_S) as bar:
            for number, (path, error) in enumerate(bar, 1):
                pages = reading.read(run, path, settings.center)
                for page in pages if error is None else [reading.failed(str(path), path, 1, error)]:
                    if output:
                        reading.write_images(output, page, number)
                    all_read &= "error" not in page.answers[0]
                    _print(page, settings.json, note)
                answered = number
    except KeyboardInterrupt:
        cli.fail(f"stopped by Ctrl-C after {answered} pictures", 128 + signal.SIGINT)
    return all_read


def _print(page: "reading.Reading", as_json: bool, note: cli.Log) -> None:
    """Prints the answers of a page, and what is wrong with it or doubtful, in this order."""
    # On one line, whatever bytes the file's name is made of.
    name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in page.name)
    error = page.answers[0].get("error")
    if error:
        note(f"error: {name}: {error}")
    if page.note:
        note(f"note: {name}: {page.note}")
    if doubts := dict.fromkeys(each.doubt for each in page.found if each.doubt):
        note(f"note: {name}: a character {', '.join(doubts)}")
    if as_json:
        cli.print_line("\n".join(map(json.dumps, page.answers)))
    elif not error:
        cli.print_line(format_line(page.answers, name))


if __name__ == "__main__":
    cli.run(main)
