"""Numbers as figures, without a window and without a change of matplotlib's global state.

The report's figures are as narrow as a phone needs to show their text; a wide screen shows two side
by side. C is the number of classes, M the number of bins in a reliability diagram.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

MOST = 10  # classes with a bar for their probability
RGB = ("red", "green", "blue")
FEW = 10  # a bin of the reliability diagram with fewer images is left to chance
WIDTH = 5  # of a figure, in inches
COLUMNS = 4  # mistakes per row
INK, BLUE, RED = "#22303c", "#2468b2", "#c8452f"
COLOURS = (BLUE, "#e08a1e", "#2e8b6f", RED, "#7a55b0", "#6b7680")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8894a0",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "grid.color": "#e9edf1",
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": "#55626e",
    "ytick.color": "#55626e",
}


@matplotlib.rc_context(STYLE)
def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Loss and accuracy of runs, each given as its name and the records of its metrics.jsonl."""
    figure = Figure((WIDTH, 6.2), layout="constrained")
    for axes, what in zip(figure.subplots(2, 1), ("loss", "accuracy"), strict=True):
        for i, (name, records) in enumerate(runs.items()):
            epochs = [record["epoch"] for record in records]
            style = {"color": COLOURS[i % len(COLOURS)], "markersize": 3.5}
            style["marker"] = "o" if len(epochs) < 12 else None
            for split, line in (("train", ":"), ("test", "-")):
                values = [record[f"{split}_{what}"] for record in records]
                label = f"{name}, {split}".lstrip("_, ").replace("$", r"\$")  # $ starts a formula
                axes.plot(epochs, values, line, label=label, **style)
        axes.set(title=what, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss, accuracy = figure.axes
    if any(records for records in runs.values()):
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        loss.yaxis.set_major_formatter("{x:g}")
        loss.yaxis.set_minor_formatter("")
    _show_percent(accuracy.yaxis)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@matplotlib.rc_context(STYLE | {"axes.grid": False})
def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """A confusion matrix [C, C] with its counts; a darker cell has a larger share of its row."""
    side = max(WIDTH - 0.2, 0.6 + 0.26 * len(classes))  # in inches
    cell = 72 * (side - 0.6) / len(classes)  # in points
    figure = Figure((side + 0.2, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # The power makes few mistakes visible beside many correct predictions.
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.4, 0, 1))
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if shares[row, column] > 0.15 else INK
            size = min(8, 1.6 * cell / len(f"{count:,}"))
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, size=size)
    axes.set(xlabel="predicted label", ylabel="true label")
    axes.set_xticks(range(len(matrix)), classes)
    axes.set_yticks(range(len(matrix)), classes)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", rotation=90 if max(map(len, classes)) > 3 else 0)
    axes.spines[:].set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def calibration(count: np.ndarray, confidence: np.ndarray, accuracy: np.ndarray) -> Figure:
    """The reliability diagram of `metrics.reliability` [M each], above the number of images."""
    figure = Figure((WIDTH, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges, there = np.linspace(0, 1, len(count) + 1), count > 0
    centres, width = (edges[:-1] + edges[1:]) / 2, edges[1] * 0.92
    above.plot([0, 1], [0, 1], "--", color="#8894a0", lw=1, label="perfect calibration")
    many, few = count >= FEW, there & (count < FEW)
    above.bar(centres[many], accuracy[many], width, color=BLUE, alpha=0.15)
    above.plot(confidence[many], accuracy[many], "o-", color=BLUE, ms=4, label="the network")
    if few.any():
        style = {"color": BLUE, "markerfacecolor": "white", "ms": 4, "label": f"under {FEW} images"}
        above.plot(confidence[few], accuracy[few], "o", clip_on=False, **style)
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    above.legend(loc="lower right", frameon=True, edgecolor="none", framealpha=0.9)
    below.bar(centres[there], count[there], width, color=BLUE)
    below.set(ylabel="images", yscale="log")
    below.set_xlabel("confidence: the probability of the predicted label")
    below.set_ylim(bottom=0.7)
    _show_percent(above.xaxis, above.yaxis, below.xaxis)
    return figure


@matplotlib.rc_context(STYLE | {"axes.grid": False})
def filters(kernel: np.ndarray) -> Figure:
    """The filters of a first layer, [k, k, channels, K], a row per channel, on one scale."""
    channels = kernel.shape[2]
    figure = Figure((WIDTH, 0.4 + 0.85 * channels), layout="constrained")
    bound = np.abs(kernel).max()
    grid = figure.subplots(channels, kernel.shape[-1], squeeze=False)
    for (channel, i), axes in np.ndenumerate(grid):
        shown = axes.imshow(kernel[:, :, channel, i], cmap="RdBu_r", vmin=-bound, vmax=bound)
        _bare(axes, f"{i + 1}" if channel == 0 else "")
        if channels == len(RGB):
            axes.set_ylabel(RGB[channel] if i == 0 else "")
    figure.colorbar(shown, ax=grid, fraction=0.02, pad=0.01).outline.set_visible(False)
    return figure


@matplotlib.rc_context(STYLE | {"axes.grid": False})
def layers(
    image: np.ndarray,
    activations: Mapping[str, np.ndarray],
    probs: np.ndarray,
    classes: Sequence[str],
) -> Figure:
    """An image [H, W], or in colour [H, W, 3], on its way through the network, row by row.

    `activations` are the outputs of the layers, [h, w, K] or [K]; `probs` is [C].
    """
    shown = {"input": image} | {
        name: _montage(array) if array.ndim == 3 else array.reshape(6, -1)
        for name, array in activations.items()
    }
    columns = -(-(len(shown) + 1) // 2)
    figure = Figure((WIDTH, 4.4), layout="constrained")
    *images, last = figure.subplots(2, columns, squeeze=False).ravel()
    for axes in images[len(shown) :]:
        axes.set_axis_off()
    for axes, (name, array) in zip(images, shown.items(), strict=False):
        shape = activations.get(name, image).shape
        axes.imshow(array, cmap="magma" if name in activations else "gray", vmin=0)
        _bare(axes, f"{name}\n{' x '.join(map(str, shape))}")
    most = np.sort(np.argsort(probs)[-MOST:])
    best = most == probs.argmax()
    last.barh(range(len(most)), probs[most], color=np.where(best, BLUE, "#9db4cc"))
    last.set_yticks(range(len(most)), [classes[i] for i in most])
    last.set_xlim(0, 1)
    last.set_title("output\nprobabilities" if len(most) == len(probs) else "output\nmost probable")
    last.invert_yaxis()
    _show_percent(last.xaxis)
    return figure


@matplotlib.rc_context(STYLE | {"axes.grid": False})
def mistakes(
    images: np.ndarray, labels: np.ndarray, probs: np.ndarray, classes: Sequence[str]
) -> Figure:
    """Misclassified images, [N, H, W] or [N, H, W, 3], with true labels [N] and `probs` [N, C]."""
    rows = max(1, -(-len(images) // COLUMNS))
    figure = Figure((WIDTH, 1.65 * rows), layout="constrained")
    width = 1.45 * 72 * WIDTH / COLUMNS  # of an image, in bold letters of 1 point
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    for axes, image, label, prob in zip(grid, images, labels, probs, strict=False):
        axes.imshow(image, cmap="gray")
        predicted = prob.argmax()
        above = f"{classes[predicted]}  {prob[predicted]:.1%}"
        below = f"true {classes[label]}  {prob[label]:.1%}"
        _bare(axes, above)
        axes.title.set(color=RED, size=min(10, width / len(above)))
        axes.set_xlabel(below, size=min(9, width / len(below)))
    return figure


@matplotlib.rc_context(STYLE)
def sweep(rows: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> Figure:
    """The held-out error of each setting, and the learning curves of each optimizer's best.

    `rows`, one per setting, and `records`, one per network, are those of `run.grid`.
    """
    figure = Figure((10, 3.9), layout="constrained")
    error, loss = figure.subplots(1, 2)
    optimizers = dict.fromkeys(row["optimizer"] for row in rows)
    for optimizer, colour in zip(optimizers, cycle(COLOURS), strict=False):
        own = [row for row in rows if row["optimizer"] == optimizer and row["mean"] is not None]
        own.sort(key=lambda row: row["learning_rate"])
        points = [(row["learning_rate"], 1 - row["mean"], row["sd"] or 0) for row in own]
        style = {"color": colour, "marker": "o", "markersize": 3.5, "capsize": 2}
        error.errorbar(*np.reshape(points, (-1, 3)).T, label=optimizer, **style)
        for best in (row for row in own if row["best"]):
            setting = {"optimizer": optimizer, "learning_rate": best["learning_rate"]}
            same = [record for record in records if setting.items() <= record.items()]
            _band(loss, [record["loss_curve"] for record in same], colour)
    error.set(xscale="log", yscale="log", xlabel="learning rate", title="held-out error")
    _show_percent(loss.xaxis)
    low, high = error.get_ylim()
    # Less than half a decade may hold only one of 1, 2 and 5.
    several = LogLocator(subs=(1, 2, 5)) if high > 3 * low else MaxNLocator(6)
    error.yaxis.set_major_locator(several)
    error.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    error.yaxis.set_minor_formatter("")
    loss.set(yscale="log", xlabel="part of the training", title="training loss at the best rate")
    loss.set_ylim(top=1)
    loss.yaxis.set_major_formatter("{x:g}")
    if error.has_data():
        figure.legend(*error.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _band(axes: Axes, curves: Sequence[Sequence[float]], colour: str) -> None:
    """The mean of curves of equal length, and the range between the lowest and the highest."""
    array = np.array(curves)
    updates = np.arange(1, array.shape[1] + 1) / array.shape[1]
    axes.plot(updates, array.mean(axis=0), color=colour)
    low, high = array.min(axis=0), array.max(axis=0)
    axes.fill_between(updates, low, high, color=colour, alpha=0.2, lw=0)


def _show_percent(*axes: Axis) -> None:
    for axis in axes:
        axis.set_major_formatter(PercentFormatter(1))


def _bare(axes: Axes, title: str) -> None:
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


def _montage(maps: np.ndarray) -> np.ndarray:
    """The maps [h, w, K] as one image, nearly square, with empty lines between them."""
    height, width, count = maps.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    framed = np.pad(maps, ((0, 1), (0, 1), (0, rows * columns - count)), constant_values=np.nan)
    grid = framed.reshape(height + 1, width + 1, rows, columns).transpose(2, 0, 3, 1)
    return grid.reshape(rows * (height + 1), -1)[:-1, :-1]
