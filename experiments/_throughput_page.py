"""The tables and the figure of throughput.py, made from results/throughput[_avx2].json.

Nothing is measured here: throughput.py has done that.
"""

import statistics
from typing import Any

import numpy as np
from _figures import OURS, PYTORCH, USUAL_FLAX, label_ends
from _results import path, read_json, write_markdown
from matplotlib import rc_context
from matplotlib.figure import Figure

from lenet_jax.viz.figures import STYLE

Speeds = dict[str, list[float]]  # row -> images per second, round by round


def ratio(speeds: Speeds, ours: str, theirs: list[str]) -> dict[str, Any]:
    """Speed of `ours` over that of the best (by median) of `theirs`, round by round."""
    best = max(theirs, key=lambda name: statistics.median(speeds[name]))
    ratios = [a / b for a, b in zip(speeds[ours], speeds[best], strict=True)]
    low, median, high = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return {"ours": ours, "to": best, "median": median, "quartiles": [low, high]}


def training_ratios(speeds: Speeds) -> list[dict]:
    to_usual_flax = {
        "ours, cores as devices": "usual Flax, in a scan",
        "ours, in a scan": "usual Flax, in a scan",
        "ours, step by step": "usual Flax, step by step",
    }
    return [
        ratio(speeds, ours, theirs)
        for ours, usual in to_usual_flax.items()
        for theirs in (_of_pytorch(speeds), [usual])
    ]


def inference_ratios(speeds: Speeds) -> list[dict]:
    theirs = [name for name in speeds if not name.startswith("ours")]
    return [ratio(speeds, name, theirs) for name in speeds if name.startswith("ours")]


def member_ratios(speeds: Speeds) -> list[dict]:
    """Our two vmapped rows against each other row; our single network only on as many devices."""
    return [
        ratio(speeds, ours, [name])
        for ours in ("ours, vmap in a scan", "ours, vmap, cores as devices")
        for name in speeds
        if "ours, vmap" not in name
        and (not name.startswith("ours") or ("cores" in name) == ("cores" in ours))
    ]


def colour_ratios(speeds: Speeds) -> list[dict]:
    """Images of 3 channels: against PyTorch, and per multiply-add against images of 1 channel."""
    work = multiply_adds(3) / multiply_adds(1)
    ratios = []
    for ours in ("ours in a scan", "ours, cores as devices"):
        three, one = f"{ours}, 3 channels", f"{ours}, 1 channel"
        per_multiply_add = {three: [speed * work for speed in speeds[three]], one: speeds[one]}
        ratios += [
            ratio(speeds, three, _of_pytorch(speeds)),
            ratio(per_multiply_add, three, [one]) | {"ours": f"{three}, per multiply-add"},
        ]
    return ratios


def multiply_adds(channels: int) -> int:
    """Multiply-adds per image of a training step: forward, and once more for each gradient.

    The first convolution needs no gradient with respect to the images.
    """
    conv1 = 28 * 28 * 6 * 25 * channels
    others = 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10
    return 2 * conv1 + 3 * others


def _of_pytorch(speeds: Speeds) -> list[str]:
    return [name for name in speeds if name.startswith("PyTorch")]


def tables(results: dict[str, Any]) -> str:
    """Speeds, a table for each group of rows, and the list of all ratios."""
    (members_at,) = (at for at in results["ratios"] if "networks" in at)
    (colour_at,) = (at for at in results["ratios"] if "colour" in at)
    batch = colour_at.split(", ")[1]
    lines = [
        *_speed_table("training, images/s", results["training"]),
        *_speed_table("training, images/s", {batch: results["colour"]}),
        *_speed_table("network-images/s", {members_at: results["members"]}),
        *_speed_table("inference, images/s", results["inference"]),
        "| ratio | to | at | median | quartiles |",
        "|---|---|---|--:|---|",
    ]
    for at, rows in results["ratios"].items():
        for row in rows:
            low, high = row["quartiles"]
            lines.append(
                f"| {row['ours']} | {row['to']} | {at} | **{row['median']:.2f}** "
                f"| {low:.2f} to {high:.2f} |"
            )
    return "\n".join(lines)


def _speed_table(title: str, results: dict[str, Speeds]) -> list[str]:
    names = dict.fromkeys(name for speeds in results.values() for name in speeds)
    lines = [f"| {title} | {' | '.join(results)} |", "|---|" + "--:|" * len(results)]
    for name in names:
        cells = [f"{statistics.median(speeds[name]):,.0f}" for speeds in results.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


@rc_context(STYLE)
def draw(training: dict[str, Speeds]) -> Figure:
    """Images per second over the batch size: PyTorch in grey, ours in colour."""
    sizes = [int(at.removeprefix("batch ")) for at in training]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes, ends = figure.subplots(), []
    for row in next(iter(training.values())):
        speeds = [np.quantile(s[row], (0.25, 0.5, 0.75)) for s in training.values()]
        low, median, high = np.array(speeds).T
        colour = {"ours": OURS, "usua": USUAL_FLAX, "PyTo": PYTORCH}[row[:4]]
        axes.plot(sizes, median, marker="o", markersize=4, color=colour)
        axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
        ends.append((sizes[-1], median[-1], row, colour))
    axes.set(xscale="log", yscale="log", xlabel="batch size")
    axes.set_title("images per second in training, two CPU cores", loc="left")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    axes.set_xticks([], minor=True)
    ticks = [1_000, 2_000, 5_000, 10_000, 20_000, 50_000]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_yticks([], minor=True)
    label_ends(axes, ends)
    return figure


def write(name: str) -> None:
    """Writes results/<name>.md and .png from results/<name>.json."""
    results = read_json(name)
    write_markdown(name, tables(results), results["machine"])
    draw(results["training"]).savefig(path(f"{name}.png"), dpi=150)
