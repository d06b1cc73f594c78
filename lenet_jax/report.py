"""Draws a trained run: one HTML page that needs no network, and its pictures.

    python -m lenet_jax.report --workdir=runs/mine
    python -m lenet_jax.report --workdir=runs/mine --workdir=runs/other

Writes report/index.html and its PNG files into the run's folder: the curves, the confusion matrix,
the calibration, the first layer's filters, what each layer sees, the worst mistakes, the settings.
Of several runs the curves are compared; the rest is about the first, whose folder gets the page.
"""

import base64
import dataclasses
import io
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lenet_jax import cli, data
from lenet_jax.core import epoch
from lenet_jax.core.model import LeNet
from lenet_jax.evaluate import classify, describe_end, evaluate, load_data
from lenet_jax.run import folder as workdir
from lenet_jax.run import trained
from lenet_jax.run.settings import Settings
from lenet_jax.run.trained import TrainedRun

WORST = 32
TEXTS = {  # the title and caption of each picture
    "curves": (
        "Learning",
        "Loss (logarithmic) and accuracy of each epoch. Training figures are means over the epoch, "
        "while the network was learning; test figures are from its end.",
    ),
    "confusion": (
        "Confusion",
        "Each row holds the test images of one class; the columns say what they were taken for. "
        "What lies off the diagonal is a mistake.",
    ),
    "calibration": (
        "Calibration",
        "Among the answers given with about the same confidence, the share that is right. On the "
        "dashed line the two agree; the mean distance from it is {error:.2%}.",
    ),
    "filters": (
        "The first layer's filters",
        "What the first layer looks for, 5x5 pixels each: red where ink speaks for it, blue where "
        "ink speaks against it.",
    ),
    "layers": (
        "What each layer sees",
        "The first test image, which is a {label}: bright is active. From left to right the "
        "picture is given up for what it means.",
    ),
    "mistakes": (
        "The worst mistakes",
        "{shown} of {wrong} mistakes among {images:,} test images: red, what each was taken for, "
        "and below, what it is, with the network's probabilities.",
    ),
}


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """What `python -m lenet_jax.report` can be told.

    Raises:
      ValueError: no run is named.
    """

    workdir: tuple[str, ...] = cli.setting((), "folder of a run; several are compared")
    data_dir: str | None = cli.setting(
        None, "folder of the first run's data set, as for lenet_jax.train (default: the run's)"
    )

    def __post_init__(self) -> None:
        if not self.workdir:
            raise ValueError("--workdir is missing: the folder of a run that train has made")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    name: str  # of its file, without .png
    title: str
    caption: str
    png: bytes


def seen(run: TrainedRun, image: np.ndarray) -> dict[str, np.ndarray]:
    """What comes out of each hidden layer for one image uint8 [32, 32, 1], after its ReLU."""
    scaled = epoch.normalize(jnp.asarray(image)[None], **run.scaling)
    _, state = LeNet().apply({"params": run.params}, scaled, capture_intermediates=True)
    outputs = {name: state["intermediates"][name]["__call__"][0][0] for name in run.params}
    hidden = ("conv1", "conv2", "fc1", "fc2")
    return {name: np.maximum(outputs[name], 0) for name in hidden}


def worst(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Indices of the mistakes, those with the least probability for the label first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(probabilities[wrong, labels[wrong]], kind="stable")][:WORST]


def names(runs: Sequence[TrainedRun]) -> list[str]:
    """What the runs are called: their folders' names, or paths if that is not clear."""
    short = [run.path.resolve().name for run in runs]
    return short if len(set(short)) == len(runs) else [str(run.path) for run in runs]


def draw(
    runs: Sequence[TrainedRun],
    dataset: data.Dataset,
    logits: jax.Array,
    result: Mapping[str, Any],
) -> list[Picture]:
    """The pictures of the page, in its order; `logits` and `result` are the first run's."""
    from lenet_jax.viz import figures

    run, labels = runs[0], dataset.test_labels
    shares = np.asarray(jax.nn.softmax(logits))
    bad = worst(shares, labels)
    bins = (np.array(result["reliability"][key]) for key in ("count", "confidence", "accuracy"))
    called = names(runs) if len(runs) > 1 else [""]
    records = dict(zip(called, (run.metrics for run in runs), strict=True))
    example = dataset.test_images[0, :, :, 0]
    drawn = {
        "curves": figures.curves(records),
        "confusion": figures.confusion(np.array(result["confusion_matrix"])),
        "calibration": figures.calibration(*bins),
        "filters": figures.filters(np.asarray(run.params["conv1"]["kernel"])),
        "layers": figures.layers(example, seen(run, dataset.test_images[0]), shares[0]),
        "mistakes": figures.mistakes(dataset.test_images[bad, :, :, 0], labels[bad], shares[bad]),
    }
    facts = {
        "error": result["calibration_error"],
        "label": labels[0],
        "shown": len(bad),
        "wrong": np.sum(shares.argmax(axis=1) != labels),
        "images": len(labels),
    }
    return [
        Picture(name, TEXTS[name][0], TEXTS[name][1].format(**facts), _png(figure))
        for name, figure in drawn.items()
    ]


def page(runs: Sequence[TrainedRun], result: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The HTML page. Whatever comes from a file is escaped."""
    title = f"LeNet on {result['dataset']}"
    tiles = {
        "test accuracy": f"{result['accuracy']:.2%}",
        f"test loss ({result['loss_name']})": f"{result['loss']:.4f}",
        "calibration error": f"{result['calibration_error']:.2%}",
        "epochs": runs[0].metrics[-1]["epoch"] if runs[0].metrics else "-",
        "steps": f"{runs[0].step:,}",
    }
    body = "".join(_figure(picture) for picture in pictures)
    return TEMPLATE.format(
        title=escape(title),
        path=escape(" · ".join(str(run.path) for run in runs)),
        source=escape(f"{result['test_images']:,} test images from {result['source']}"),
        note=f"<p>{escape(result['note'])}</p>" if result["note"] else "",
        tiles="".join(
            f"<div><b>{escape(str(value))}</b><span>{escape(name)}</span></div>"
            for name, value in tiles.items()
        ),
        compared=_comparison(runs) if len(runs) > 1 else "",
        body=body,
        settings="".join(
            _table(part, runs[0].config[part])
            for part in runs[0].config
            if isinstance(runs[0].config[part], dict)
        ),
    )


def write(folder: Path, html: str, pictures: Sequence[Picture]) -> Path:
    """Puts the page and its pictures into `folder`, and returns the page's path.

    Raises:
      OSError: it cannot be written to.
    """
    folder.mkdir(exist_ok=True)
    for picture in pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    file = folder / "index.html"
    # In ASCII, since a folder's name may be of bytes that are no UTF-8.
    workdir.replace(file, html.encode("ascii", "xmlcharrefreplace").decode())
    return file


def main(argv: Sequence[str]) -> None:
    settings = cli.parse(ReportSettings, argv, __doc__)
    cli.enable_compilation_cache()
    try:
        runs = [trained.load(path) for path in settings.workdir]
        dataset = load_data(runs[0], data_dir=settings.data_dir)
    except ValueError as error:
        cli.fail(error)
    logits = classify(runs[0], dataset.test_images)
    result = evaluate(runs[0], dataset, logits)
    if result["note"]:
        print(result["note"])
    try:
        pictures = draw(runs, dataset, logits, result)
    except ImportError as error:
        cli.fail(f"a report is drawn by matplotlib: pip install matplotlib ({error})")
    try:
        file = write(runs[0].path / "report", page(runs, result, pictures), pictures)
    except OSError as error:
        cli.fail(f"{runs[0].path / 'report'}: cannot be written to ({error.strerror or error})", 1)
    print(f"{describe_end(result)}; the report is {file}")


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160, facecolor="white")
    return stream.getvalue()


def _figure(picture: Picture) -> str:
    source = base64.b64encode(picture.png).decode()
    return (
        f'<figure id="{picture.name}"><h2>{escape(picture.title)}</h2>'
        f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{source}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>\n"
    )


def _table(title: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(_words(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<div><h3>{escape(title)}</h3><table>{rows}</table></div>"


def _comparison(runs: Sequence[TrainedRun]) -> str:
    """A row a run: how it ended, and the settings in which the runs differ."""
    settings = [run.config["settings"] for run in runs]
    decisive = [field.name for field in dataclasses.fields(Settings) if field.metadata["decides"]]
    different = [
        name for name in decisive if len({_words(each.get(name)) for each in settings}) > 1
    ]
    head = ["run", "epochs", "test accuracy", "test loss", *different]
    rows = ["".join(f"<th>{escape(name)}</th>" for name in head)]
    for name, run, chosen in zip(names(runs), runs, settings, strict=True):
        end = run.metrics[-1] if run.metrics else {}
        cells = [
            name,
            _words(end.get("epoch")),
            f"{end['test_accuracy']:.2%}" if end else "-",
            f"{end['test_loss']:.4f}" if end else "-",
            *(_words(chosen.get(key)) for key in different),
        ]
        rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    table = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<section id="compared"><h2>The runs</h2><table>{table}</table>'
        "<p>Their curves are below; everything else is about the first.</p></section>"
    )


def _words(value: Any) -> str:
    return "-" if value is None else str(value)


TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 1120px; padding: 32px 20px 64px; background: #f4f6f8;
  color: #22303c; font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }}
h1 {{ margin: 0; font-size: 30px; }}
h2 {{ margin: 0 0 12px; font-size: 18px; }}
h3 {{ margin: 0 0 4px; font-size: 15px; text-transform: capitalize; }}
p, figcaption, .tiles span {{ color: #55626e; }}
p {{ margin: 2px 0; overflow-wrap: anywhere; }}
main {{ display: flex; flex-wrap: wrap; gap: 16px; }}
figure, section, .tiles div {{ box-sizing: border-box; margin: 0; padding: 20px 22px;
  border-radius: 10px; background: white; box-shadow: 0 1px 3px #22303c26; }}
figure, section {{ flex: 1 1 100%; min-width: 0; }}
#confusion, #calibration {{ flex: 1 1 460px; }}
img {{ display: block; max-width: 100%; margin: 0 auto; }}
figcaption {{ margin-top: 10px; font-size: 14px; }}
.tiles {{ display: flex; flex-wrap: wrap; gap: 16px; margin: 24px 0 16px; }}
.tiles div {{ flex: 1 1 150px; padding: 14px 18px; }}
.tiles b {{ display: block; font-size: 25px; color: #2468b2; }}
.tiles span {{ font-size: 13px; }}
table {{ border-collapse: collapse; font-size: 13px; }}
th, td {{ padding: 3px 14px 3px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e9edf1; overflow-wrap: anywhere; }}
th {{ font-weight: 600; white-space: nowrap; }}
#compared {{ overflow-x: auto; }}
#compared td {{ white-space: nowrap; }}
.settings {{ columns: 300px; column-gap: 24px; }}
.settings div {{ break-inside: avoid; padding-bottom: 20px; }}
</style>
</head>
<body>
<header><h1>{title}</h1><p>{path}</p><p>{source}</p>{note}</header>
<div class="tiles">{tiles}</div>
<main>
{compared}
{body}
<section id="settings"><h2>The run</h2><div class="settings">{settings}</div></section>
</main>
</body>
</html>
"""


if __name__ == "__main__":
    main(sys.argv)
