"""The tables and the figure of throughput.py, made from results/throughput*.<processor>.json.

Nothing is measured here: throughput.py has done that.
"""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from _figures import OURS, PYTORCH, USUAL_FLAX, label_ends
from _results import FOLDER, path, read_json, short_name, write_markdown
from _timed import Speeds
from matplotlib import rc_context
from matplotlib.figure import Figure

from lenet_jax.viz.figures import STYLE

# --- the rows of a group, of the speeds that were measured in the same rounds


def of_members(name: str) -> bool:
    return "vmap" in name or "torch.func" in name


def rows_of_training(speeds: Speeds) -> Speeds:
    special = lambda name: of_members(name) or "3 channels" in name
    return {name: each for name, each in speeds.items() if not special(name)}


def rows_of_members(speeds: Speeds) -> Speeds:
    """Several networks, and the rows of one network that is trained as fast as possible."""
    one = {
        name.replace(", in a scan", ", one network in a scan").replace(
            "ours, cores", "ours, one network, cores"
        ): each
        for name, each in rows_of_training(speeds).items()
        if name.startswith("ours") and "step by step" not in name
    }
    theirs = {
        f"{name}, one network": each
        for name, each in rows_of_training(speeds).items()
        if name.startswith("PyTorch")
    }
    return {name: each for name, each in speeds.items() if of_members(name)} | theirs | one


def rows_of_colour(speeds: Speeds) -> Speeds:
    """Images of 3 channels, and our rows with 1 channel."""
    three = {name: each for name, each in speeds.items() if "3 channels" in name}
    one = {
        f"{name}, 1 channel": speeds[name]
        for name in (row.removesuffix(", 3 channels") for row in three)
        if name in speeds and name.startswith("ours")
    }
    return three | one


# --- ratios


def ratio(speeds: Speeds, ours: str, theirs: list[str]) -> dict[str, Any]:
    """Speed of `ours` over that of the best (by median) of `theirs`, round by round."""
    best = max(theirs, key=lambda name: statistics.median(speeds[name]))
    ratios = [a / b for a, b in zip(speeds[ours], speeds[best], strict=True)]
    low, median, high = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return {"ours": ours, "to": best, "median": median, "quartiles": [low, high]}


def training_ratios(speeds: Speeds) -> list[dict]:
    in_a_scan, stepwise = "usual Flax, in a scan", "usual Flax, step by step"
    return [
        ratio(speeds, ours, theirs)
        for ours in reversed([name for name in speeds if name.startswith("ours")])
        for theirs in (_of_pytorch(speeds), [stepwise if "step by step" in ours else in_a_scan])
        if theirs
    ]


def inference_ratios(speeds: Speeds) -> list[dict]:
    theirs = [name for name in speeds if not name.startswith("ours")]
    return [ratio(speeds, name, theirs) for name in speeds if name.startswith("ours")]


def member_ratios(speeds: Speeds) -> list[dict]:
    """Our vmapped rows against the others; our single network only on as many devices."""
    one = [name for name in speeds if "one network" in name]
    rivals = lambda ours: [
        [name for name in speeds if "torch.func" in name],
        [name for name in one if name.startswith("PyTorch")],
        ["usual Flax, vmap in a scan"],
        [ours.replace("vmap", "one network")],
    ]
    return [
        ratio(speeds, ours, theirs)
        for ours in speeds
        if ours.startswith("ours") and "vmap" in ours
        for theirs in rivals(ours)
        if theirs
    ]


def colour_ratios(speeds: Speeds) -> list[dict]:
    """Images of 3 channels: against PyTorch, and per multiply-add against images of 1 channel."""
    work, ratios = multiply_adds(3) / multiply_adds(1), []
    for three in (name for name in speeds if name.startswith("ours") and "3 channels" in name):
        one = three.replace("3 channels", "1 channel")
        per_multiply_add = {three: [speed * work for speed in speeds[three]], one: speeds[one]}
        if _of_pytorch(speeds):
            ratios.append(ratio(speeds, three, _of_pytorch(speeds)))
        against_one = ratio(per_multiply_add, three, [one])
        ratios.append(against_one | {"ours": f"{three}, per multiply-add"})
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


# --- tables and figure


def tables(results: dict[str, Any]) -> str:
    """Speeds, a table for each group of rows; all ratios; the disturbed rounds."""
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
    notes = [results["note"]] if "note" in results else []
    return "\n".join([*lines, "", *notes, *_disturbed(results.get("disturbed", {}))])


def _disturbed(disturbed: dict[str, list[dict]]) -> list[str]:
    slow = [(at, row) for at, rows in disturbed.items() for row in rows]
    if not disturbed:
        return []
    if not slow:
        return ["No round was disturbed."]
    return [
        "Disturbed rounds, which were repeated and do not count:",
        "",
        "| at | round | row | of its median | busy cores | other programs' |",
        "|---|--:|---|--:|--:|--:|",
        *(
            f"| {at} | {row['round'] + 1} | {row['row']} | {row['of its median']:.2f} | "
            f"{row['cores']:.1f} | {row['cores of others']:.1f} |"
            for at, row in slow
        ),
    ]


def _speed_table(title: str, results: dict[str, Speeds]) -> list[str]:
    names = dict.fromkeys(name for speeds in results.values() for name in speeds)
    lines = [f"| {title} | {' | '.join(results)} |", "|---|" + "--:|" * len(results)]
    for name in names:
        cells = [f"{statistics.median(speeds[name]):,.0f}" for speeds in results.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def shown(training: dict[str, Speeds]) -> dict[str, tuple[str, list[list[float]]]]:
    """Label -> colour and speeds at each batch size; of PyTorch's rows the fastest of each kind."""
    first, lines = next(iter(training.values())), {}
    for kind in ("PyTorch eager", "PyTorch torch.compile", "PyTorch CUDA graph"):
        words = kind.split(" ", 1)
        rows = [name for name in first if all(word in name for word in words)]
        rows = [name for name in rows if ("CUDA graph" in name) == ("CUDA graph" in kind)]
        best = lambda speeds, rows=rows: max((speeds[row] for row in rows), key=statistics.median)
        if rows:
            lines[kind] = (PYTORCH, [best(speeds) for speeds in training.values()])
    for name in first:
        if not name.startswith("PyTorch"):
            colour = OURS if name.startswith("ours") else USUAL_FLAX
            lines[name] = (colour, [speeds[name] for speeds in training.values()])
    return lines


@rc_context(STYLE)
def draw(of_processors: dict[str, dict[str, Speeds]]) -> Figure:
    """Images per second over the batch size, a panel per processor; quartiles as bands."""
    figure = Figure(figsize=(5 * len(of_processors) + 1, 4.2), layout="constrained")
    panels = figure.subplots(1, len(of_processors), sharey=True, squeeze=False)[0]
    ticks = [500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000]
    all_ends = []
    for axes, (processor, training) in zip(panels, of_processors.items(), strict=True):
        sizes, ends = [int(at.removeprefix("batch ")) for at in training], []
        for label, (colour, speeds) in shown(training).items():
            low, median, high = np.array([np.quantile(s, (0.25, 0.5, 0.75)) for s in speeds]).T
            axes.plot(sizes, median, marker="o", markersize=4, color=colour)
            axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
            ends.append((sizes[-1], median[-1], label, colour))
        axes.set(xscale="log", yscale="log", xlabel="batch size")
        axes.set_title(f"training, images/s, two cores of an {processor}", loc="left", fontsize=10)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_yticks([], minor=True)
        all_ends.append(ends)
    for axes, ends in zip(panels, all_ends, strict=True):  # when the common limits are known
        label_ends(axes, ends)
    return figure


def names(prefix: str) -> list[str]:
    """The results of `prefix` for all processors and devices, by name."""
    return sorted(Path(file).stem for file in FOLDER.glob(f"{prefix}.*.json"))


def write(name: str) -> None:
    """Writes results/<name>.md from results/<name>.json."""
    results = read_json(name)
    write_markdown(name, tables(results), results["machine"])


def write_figure() -> None:
    """Writes results/throughput.png: a panel for each processor with all of its instructions."""
    panels = {}
    for results in map(read_json, names("throughput")):
        if results["machine"]["devices"][0] == "cpu":
            panels[short_name(results["machine"])] = results["training"]
    if panels:
        draw(panels).savefig(path("throughput.png"), dpi=150)
