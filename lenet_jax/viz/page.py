"""A trained network as one HTML page that needs no network connection: page.html, filled in.

N is the number of test images, C of classes.
"""

import base64
import importlib.resources
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lenet_jax.core import epoch
from lenet_jax.core.model import model_for
from lenet_jax.core.split import Split
from lenet_jax.files import add_path_to_oserror, atomic_write

MAX_MISTAKES = 32
MAX_NARROW = 15  # more classes make a confusion matrix that needs the whole width

Records = Sequence[Mapping[str, Any]]  # one object per epoch, as in metrics.jsonl


def activations(params: Mapping[str, Any], split: Split) -> dict[str, np.ndarray]:
    """The output of each hidden layer after its ReLU, for the first image of a split."""
    image = epoch.normalize(jnp.asarray(split.images[:1]), split.mean, split.std)
    _, state = model_for(params).apply({"params": params}, image, capture_intermediates=True)
    outputs = {name: state["intermediates"][name]["__call__"][0][0] for name in params}
    return {name: np.maximum(outputs[name], 0) for name in ("conv1", "conv2", "fc1", "fc2")}


def worst_mistakes(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Indices of the mistakes, in ascending order of the probability of the true label.

    `probs` is [N, C], `labels` is [N].
    """
    wrong = np.flatnonzero(probs.argmax(axis=1) != labels)
    return wrong[np.argsort(probs[wrong, labels[wrong]], kind="stable")][:MAX_MISTAKES]


def draw(
    params: Mapping[str, Any],
    split: Split,
    logits: jax.Array,
    result: Mapping[str, Any],
    records: Mapping[str, Records],
) -> dict[str, bytes]:
    """The figures of the page as PNG files, by name; needs matplotlib.

    `split` is the test split, normalised as the network was trained, and `logits` [N, C] and
    `result` (of `run.measure.measure_run`) belong to it. `records` maps each run's name to its
    metrics.
    """
    from lenet_jax.viz import figures

    images, labels = np.asarray(split.images), np.asarray(split.labels)
    images = images[..., 0] if images.shape[-1] == 1 else images
    classes = result["classes"]
    probs = np.asarray(jax.nn.softmax(logits))
    worst = worst_mistakes(probs, labels)
    bins = (np.array(result["reliability"][key]) for key in ("count", "confidence", "accuracy"))
    drawn = {
        "curves": figures.curves(records),
        "confusion": figures.confusion(np.array(result["confusion_matrix"]), classes),
        "calibration": figures.calibration(*bins),
        "filters": figures.filters(np.asarray(params["conv1"]["kernel"])),
        "layers": figures.layers(images[0], activations(params, split), probs[0], classes),
        "mistakes": figures.mistakes(images[worst], labels[worst], probs[worst], classes),
    }
    return {name: _png(figure) for name, figure in drawn.items()}


def render(
    figures: Mapping[str, bytes],
    result: Mapping[str, Any],
    *,
    first_label: str,
    paths: Sequence[str],
    epochs: int | None,
    config: Mapping[str, Any],
    compared: str = "",
) -> str:
    """The HTML page with the figures of `draw`; all texts are escaped.

    `first_label` is the class of the first test image; `epochs` and `config` (as in config.json)
    are those of the first run; `compared` is a `comparison` of several.
    """
    count, confusion = result["test_images"], np.array(result["confusion_matrix"])
    wrong = int(count - confusion.trace())
    texts = {
        **{name: result[name] for name in ("dataset", "source", "note", "loss_name")},
        **{name: f"{result[name]:.2%}" for name in ("accuracy", "calibration_error")},
        **{"loss": f"{result['loss']:.4f}", "step": f"{result['step']:,}", "epochs": epochs},
        **{"paths": " · ".join(paths), "test_images": f"{count:,}", "label": first_label},
        **{"shown": min(wrong, MAX_MISTAKES), "wrong": wrong},
    }
    parts = {name: value for name, value in config.items() if isinstance(value, dict)}
    template = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")
    return Template(template).substitute(
        {name: _text(value) for name, value in texts.items()},
        **{name: base64.b64encode(png).decode() for name, png in figures.items()},
        settings="".join(_section(name, values) for name, values in parts.items()),
        compared=compared,
        confusion_class="wide" if len(confusion) > MAX_NARROW else "",
    )


def comparison(
    names: Sequence[str], records: Sequence[Records], settings: Sequence[Mapping[str, Any]]
) -> str:
    """An HTML table with a row per run: its last epoch, and the settings in which the runs differ.

    Each argument has an item per run.
    """
    rows = [_row(["run", "epochs", "test accuracy", "test loss", *settings[0]])]
    for name, epochs, chosen in zip(names, records, settings, strict=True):
        ended = (None, None, None)
        if epochs:
            last = epochs[-1]
            ended = (last["epoch"], f"{last['test_accuracy']:.2%}", f"{last['test_loss']:.4f}")
        rows.append(_row((), (name, *ended, *chosen.values())))
    return (
        f"<h2>The runs</h2><table>{''.join(rows)}</table>"
        "<p>Their curves are below; everything else is about the first run.</p>"
    )


def write(folder: Path, html: str, figures: Mapping[str, bytes]) -> Path:
    """Writes the page and its figures into `folder`, and returns the page's path."""
    with add_path_to_oserror(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, png in figures.items():
        atomic_write(folder / f"{name}.png", png)
    file = folder / "index.html"
    # In ASCII, because the bytes of a folder's name may not be UTF-8.
    atomic_write(file, html.encode("ascii", "xmlcharrefreplace"))
    return file


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160, facecolor="white")
    return stream.getvalue()


def _section(title: str, values: Mapping[str, Any]) -> str:
    rows = "".join(_row([name], [value]) for name, value in values.items())
    return f"<div><h3>{_text(title.replace('_', ' '))}</h3><table>{rows}</table></div>"


def _row(heads: Iterable[Any], cells: Iterable[Any] = ()) -> str:
    row = [f"<th>{_text(head)}</th>" for head in heads]
    row += [f"<td>{_text(cell)}</td>" for cell in cells]
    return f"<tr>{''.join(row)}</tr>"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "-" if value is None else escape(str(value))
