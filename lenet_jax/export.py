"""Takes a trained run elsewhere.

    python -m lenet_jax.export --workdir=runs/mnist --format=torch

torch      a safetensors file that the tutorial's own Net loads, and --init_from of train, too
stablehlo  a program that jax.export runs on CPU, GPU and TPU without this package
onnx       the same for onnxruntime and everything else that reads ONNX
html       a page to draw digits on, with the network inside; a browser is all that it needs

The two programs take any number of images, pixels as they are: uint8 [batch, 32, 32, 1], white on
black. In PyTorch the network takes float32 [batch, 1, 32, 32], namely (pixel / 255 - mean) / std,
with the mean and std in the file's metadata.
"""

import contextlib
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lenet_jax import cli
from lenet_jax.interop import programs
from lenet_jax.interop import pytorch as interchange
from lenet_jax.interop import web as draw
from lenet_jax.run import folder as workdir
from lenet_jax.run import trained
from lenet_jax.run.trained import TrainedRun


class Format(NamedTuple):
    """A form that a run can be taken along in."""

    suffix: str
    package: str | None  # what has to be installed for it
    content: Callable[[TrainedRun], bytes]
    use: str  # the next thing to do with the file


FORMATS = {
    "torch": Format(
        "safetensors",
        "safetensors",
        lambda run: interchange.to_safetensors(run.params, **run.scaling),
        'net.load_state_dict(safetensors.torch.load_file("{file}"))',
    ),
    "stablehlo": Format(
        "stablehlo",
        None,
        lambda run: programs.to_stablehlo(run.params, **run.scaling),
        'jax.export.deserialize(open("{file}", "rb").read()).call(pixels)',
    ),
    "onnx": Format(
        "onnx",
        "onnx",
        lambda run: programs.to_onnx(run.params, **run.scaling),
        'onnxruntime.InferenceSession("{file}").run(None, {{"pixels": pixels}})',
    ),
    "html": Format("html", None, draw.page, "open it in a browser, from wherever it lies"),
}


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """What `python -m lenet_jax.export` can be told.

    Raises:
      ValueError: there is no such format; the message starts with the flag.
    """

    workdir: str | None = cli.setting(None, "folder of the run, as train has made it")
    format: str | None = cli.setting(None, "what to write", tuple(FORMATS))
    output: str | None = cli.setting(
        None, "the file to write (default: export/lenet.<format's suffix> in --workdir)"
    )

    def __post_init__(self) -> None:
        if self.format is None:
            raise ValueError(f"--format is missing: choose one of {', '.join(FORMATS)}")
        cli.check_choices(self)


def export(settings: ExportSettings, report: Callable[[str], None] = print) -> Path:
    """Writes the file, replacing one of that name, and returns its path.

    Raises:
      ValueError: there is no such run or home folder, or a package is missing.
      OSError: the file cannot be written.
    """
    form = FORMATS[settings.format]
    if form.package and importlib.util.find_spec(form.package) is None:
        raise ValueError(
            f"--format={settings.format} needs the package {form.package}: "
            f"pip install {form.package}"
        )
    run = trained.load(settings.workdir, report)
    file = run.path / "export" / f"lenet.{form.suffix}"
    if settings.output is not None:
        file = workdir.expand(settings.output, "--output")
    content = form.content(run)
    write(file, content)
    report(f"step {run.step} of {run.path} is in {file} ({len(content):,} bytes)")
    report(form.use.format(file=file))
    return file


def write(file: Path, content: bytes) -> None:
    """In one piece or not at all; an OSError names --output."""
    temporary = file.with_name(file.name + ".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(f"--output={file}: cannot be written ({error.strerror or error})") from error


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(ExportSettings, argv, __doc__)
    cli.enable_compilation_cache()
    try:
        export(settings)
    except ValueError as error:
        cli.fail(error)
    except OSError as error:
        cli.fail(error, 1)


if __name__ == "__main__":
    main(sys.argv)
