"""Takes a trained network elsewhere.

    python -m lenet_jax.export --format=html
    python -m lenet_jax.export --workdir=runs/mnist --format=torch
    python -m lenet_jax.export --init_from=net.pt --format=html --output=net.html

torch      a safetensors file that the tutorial's own Net and --init_from of train load
stablehlo  a StableHLO module that jax.export runs on CPU, GPU and TPU without this package
onnx       a model for onnxruntime and all other programs that read ONNX
html       a page to draw on, with the network inside, for any browser

StableHLO and ONNX take any number of images as uint8 pixels [batch, 32, 32, 1], white on black. In
PyTorch the network takes float32 [batch, 1, 32, 32]: (pixel / 255 - mean) / std, with the mean and
std in the file's metadata. Colour images have 3 channels, each with its own mean and std. The files
for torch and onnx also name the classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lenet_jax import cli
from lenet_jax.core.model import count_params, model_for
from lenet_jax.files import add_path_to_oserror, atomic_write, expand_user
from lenet_jax.interop import web
from lenet_jax.interop.onnx_model import to_onnx
from lenet_jax.interop.pytorch import to_safetensors
from lenet_jax.interop.stablehlo import to_stablehlo
from lenet_jax.run import trained
from lenet_jax.run.trained import TrainedRun


class Format(NamedTuple):
    """A file format that a run can be exported to."""

    suffix: str
    content: Callable[[TrainedRun], bytes]
    usage: str  # what to do with the file


FORMATS = {
    "torch": Format(
        "safetensors",
        lambda run: to_safetensors(run.params, **run.normalization, classes=run.classes),
        'net.load_state_dict(safetensors.torch.load_file("{file}"))',
    ),
    "stablehlo": Format(
        "stablehlo",
        lambda run: to_stablehlo(run.params, **run.normalization),
        'jax.export.deserialize(open("{file}", "rb").read()).call(pixels)',
    ),
    "onnx": Format(
        "onnx",
        lambda run: to_onnx(run.params, **run.normalization, classes=run.classes),
        'onnxruntime.InferenceSession("{file}").run(None, {{"pixels": pixels}})',
    ),
    "html": Format("html", lambda run: web_page(run), "open it in a browser"),
}


@dataclasses.dataclass(frozen=True)
class ExportSettings(trained.NetworkSettings):
    """The flags of `python -m lenet_jax.export`."""

    format: str | None = cli.setting(
        None, "what to write", tuple(FORMATS), missing=f"choose one of {', '.join(FORMATS)}"
    )
    output: str | None = cli.setting(
        None,
        "file to write (default: export/lenet.<format's suffix> in --workdir; for the package's "
        "own network in the current folder)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is not None and self.output is None:
            raise ValueError("--output is missing: --init_from has no folder for it")


def about(run: TrainedRun) -> str:
    """One sentence: the network's data set, its training steps and its test accuracy."""
    name, records = run.config["data"]["name"], [r for r in run.metrics if r["step"] == run.step]
    size = f"{count_params(run.params):,}"
    if run.step is None:
        return f"LeNet of {size} parameters, those of {run.path.name}."
    tested = f", test accuracy {records[-1]['test_accuracy']:.2%}" if records else ""
    return f"LeNet of {size} parameters, trained on {name} for {run.step:,} steps{tested}."


def web_page(run: TrainedRun) -> bytes:
    name, model = run.config["data"]["name"], model_for(run.params)
    if model.in_channels > 1:
        takes = f"takes images of {model.in_channels} channels"
        raise ValueError(f"--format=html: {run} {takes}, and a drawing has one")
    names, text = run.classes, about(run)
    return web.page(run.params, **run.normalization, classes=names, dataset=name, about=text)


def export(settings: ExportSettings, log: cli.Log = print) -> Path:
    """Writes the file, replaces an older one, and returns its path.

    Raises:
      ModuleNotFoundError: a package that writes the format is not installed.
      ValueError: there is no such run or home folder.
      OSError: the file cannot be written; the message names --output.
    """
    form = FORMATS[settings.format]
    run = trained.load_network(settings, log)
    file = Path(f"lenet.{form.suffix}")
    if settings.output is not None:
        file = expand_user(settings.output, "--output")
    elif settings.workdir is not None:
        file = run.path / "export" / file
    content = form.content(run)
    try:
        with add_path_to_oserror(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, content)
    except OSError as error:
        raise OSError(f"--output={error}") from error
    log(f"{run} is in {file} ({len(content):,} bytes)")
    log(form.usage.format(file=file))
    return file


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(ExportSettings, argv, __doc__)
    cli.start_jax()
    with cli.exit_on_error():
        export(settings)


if __name__ == "__main__":
    cli.run(main)
