"""Does the network read digits that are not MNIST's, and do the exports compute the same logits?

Trains on MNIST with augmented images (or loads a finished run), and lets `predict` read digits of
matplotlib's ten fonts: printed, photographed (turned, out of focus, unevenly lit, grainy), and
photographed in two colours and saved as JPEG. `predict` gets files, as from a user. Then the script
writes every export, runs it with the software that it is made for, and compares the logits of 1,000
test images with ours. If Chromium is installed, it also takes screenshots of the report and of the
page to draw on.

    LENET_JAX_TEST_DATA=path/to/mnist python experiments/elsewhere.py [--workdir=runs/mnist]

Writes results/elsewhere.{json,md} and results/{report,draw}.png; takes 2 minutes on 2 cores.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import _mnist
import browser
import drawn_digits
import jax
import numpy as np
from _results import path, write_json, write_markdown
from PIL import Image

from lenet_jax import cli, data, export, report
from lenet_jax.interop.pytorch import read_params
from lenet_jax.run import loop, reading
from lenet_jax.run import trained as runs
from lenet_jax.run.measure import measure_run, predict_logits
from lenet_jax.run.settings import Settings

EPOCHS, COMPARED, COPIES = 5, 1000, 5  # COPIES: photographs per digit and font
FORMS = {  # name -> (picture of a digit, suffix of its file, options of saving, copies)
    "printed": (lambda digit, font, rng: drawn_digits.printed(digit, font), "png", {}, 1),
    "as photographed": (drawn_digits.photographed, "png", {}, COPIES),
    "likewise in colour, JPEG": (
        lambda *what: drawn_digits.in_colour(drawn_digits.photographed(*what), what[-1]),
        *("jpg", {"quality": 75}, COPIES),
    ),
}


def train_one(mnist: data.Dataset, folder: Path) -> runs.TrainedRun:
    folder.mkdir()
    settings = Settings(dataset="mnist", epochs=EPOCHS, augment=1.0)
    loop.fit(loop.resolve(settings, mnist), mnist, folder)
    return runs.load(folder)


def read(run: runs.TrainedRun, file: Path) -> dict[str, dict[str, list[int]]]:
    """form -> font -> [pictures that are read, pictures]."""
    found = {}
    for form, (make, suffix, options, copies) in FORMS.items():
        found[form], rng = {}, np.random.default_rng(0)
        for font in drawn_digits.FONTS:
            labels = np.repeat(np.arange(10), copies)
            images = []
            for digit in labels.tolist():
                picture = file.with_suffix(f".{suffix}")
                Image.fromarray(make(digit, font, rng)).save(picture, **options)
                images.append(reading.prepare(picture, run))
            predicted = reading.predict_probs(run, images).argmax(axis=1)
            found[form][font] = [int(np.sum(predicted == labels)), len(labels)]
    return found


# --- the exports, each run with its own software: uint8 [N, 32, 32, 1] to logits [N, 10] ---


def in_pytorch(run: runs.TrainedRun, file: Path, images: np.ndarray) -> np.ndarray:
    import torch
    from safetensors.torch import load_file
    from tutorial_net import Net

    net = Net()
    net.load_state_dict(load_file(file), strict=True)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2) / 255).float()
    with torch.no_grad():
        return net((x - run.normalization["mean"]) / run.normalization["std"]).numpy()


def read_back(run: runs.TrainedRun, file: Path, images: np.ndarray) -> jax.Array:
    params, _ = read_params(file)
    return predict_logits(dataclasses.replace(run, params=params), images)


def in_jax_alone(run: runs.TrainedRun, file: Path, images: np.ndarray) -> jax.Array:
    return jax.export.deserialize(bytearray(file.read_bytes())).call(images)


def in_onnxruntime(run: runs.TrainedRun, file: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": images})[0]


def in_browser(run: runs.TrainedRun, file: Path, images: np.ndarray) -> np.ndarray:
    if browser.find() is None:
        raise ImportError("Chromium is not installed")
    with tempfile.TemporaryDirectory() as folder, browser.started(Path(folder, "new")) as window:
        window.open(file)
        pixels = images.reshape(len(images), -1).tolist()
        return np.array(window.evaluate(f"{pixels}.map((p) => Array.from(forward(p).logits))"))


EXPORTS: dict[str, tuple[str, Callable]] = {
    "PyTorch, the tutorial's `Net`, `strict=True`": ("torch", in_pytorch),
    "`--init_from`, there and back": ("torch", read_back),
    "StableHLO in `jax.export`": ("stablehlo", in_jax_alone),
    "ONNX in onnxruntime": ("onnx", in_onnxruntime),
    "JavaScript in the page, in Chromium": ("html", in_browser),
}


def differences(run: runs.TrainedRun, images: np.ndarray) -> dict[str, float]:
    """name -> the largest difference of a logit from ours, relative to the largest logit."""
    ours, found = np.asarray(predict_logits(run, images)), {}
    for name, (form, logits_in) in EXPORTS.items():
        try:
            settings = export.ExportSettings(workdir=str(run.path), format=form)
            file = export.export(settings, lambda line: None)
            found[name] = float(
                np.abs(np.asarray(logits_in(run, file, images)) - ours).max() / np.abs(ours).max()
            )
        except (ImportError, ValueError) as error:  # a missing package leaves out its row
            print(f"{name}: left out ({error})")
    return found


def show(run: runs.TrainedRun, mnist: data.Dataset, folder: Path) -> None:
    """Takes the screenshots of the report and of the page to draw on."""
    logits = predict_logits(run, mnist.test.images)
    shown = dataclasses.replace(run, path=Path("runs/mnist"))  # not this machine's folder
    result = measure_run(shown, mnist, logits)
    report_page = report.report([shown], mnist, logits, result, folder / "report")
    settings = export.ExportSettings(workdir=str(run.path), format="html")
    page = export.export(settings, lambda line: None)
    with browser.started(folder / "new") as window:
        window.open(report_page, 1100, 900)
        window.screenshot(path("report.png"))
        window.open(page, 1000, 900)
        drawn_digits.drag(window, drawn_digits.DRAWN[3])
        window.settle()
        window.screenshot(path("draw.png"))
    for name in ("report.png", "draw.png"):
        image = Image.open(path(name)).convert("RGB")
        image.quantize(256, dither=Image.Dither.NONE).save(path(name), optimize=True)


def table(settings: dict, read: dict, different: dict[str, float]) -> str:
    lines = [
        f"How many digits are read, of 10 fonts (`--augment={settings['augment']:g}`, "
        f"{settings['epochs']} epochs on MNIST):",
        "",
        "| font | " + " | ".join(read) + " |",
        "|---" + "|--:" * len(read) + "|",
    ]
    for font in drawn_digits.FONTS:
        cells = (f"{right} of {asked}" for right, asked in (fonts[font] for fonts in read.values()))
        lines.append(f"| {font} | " + " | ".join(cells) + " |")
    sums = [np.sum(list(fonts.values()), axis=0) for fonts in read.values()]
    totals = (f"**{right / asked:.1%}** of {asked:,}" for right, asked in sums)
    lines += ["| all | " + " | ".join(totals) + " |", ""]
    lines += ["| exported to | largest difference of a logit |", "|---|--:|"]
    lines += [
        f"| {name} | {value:.1e} |" if value else f"| {name} | 0 |"
        for name, value in different.items()
    ]
    lines += ["", f"{COMPARED:,} test images; differences are relative to the largest logit."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path)
    arguments = parser.parse_args()
    # The report shows where data come from; the path on this machine is of no interest.
    mnist = dataclasses.replace(_mnist.load(), source="MNIST's IDX files")
    cli.start_jax()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        workdir = arguments.workdir
        run = runs.load(workdir) if workdir else train_one(mnist, folder / "run")
        found = read(run, folder / "digit")
        different = differences(run, mnist.test.images[:COMPARED])
        if browser.find():
            show(run, mnist, folder)
    write_json("elsewhere", {"read": found, "differences": different, "step": run.step})
    text = table(run.config["settings"], found, different)
    write_markdown("elsewhere", text)
    print(text)


if __name__ == "__main__":
    main()
