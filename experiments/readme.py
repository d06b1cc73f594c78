"""Copies results into the pages that show them, between their marks.

    python experiments/readme.py

A block begins with `<!-- results/name.md -->` or `<!-- summary: name -->` and ends with
`<!-- end -->`. Its content is that file, or what the function `name` below returns: the few rows of
a longer file that answer the page's question. tests/test_readme.py fails when a page and the files
disagree.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import time_to_accuracy as tta
from _parity_page import largest

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PAGES = (README, HERE / "README.md", HERE / "cluster.md", HERE / "conv_relu_pool.md")
BLOCK = re.compile(r"(<!-- (?:(results/\w+\.md)|summary: (\w+)) -->\n).*?(<!-- end -->)", re.DOTALL)
BATCHES = (64, 256, 1024)
ISAS = {"AVX-512": "", "held to AVX2": "_avx2"}  # column -> suffix of the result files
OURS, MEMBERS = "ours, cores as devices", "8 networks, batch 64"


def headline() -> str:
    """One number, for the batch size that people train with."""
    results = _results("throughput")
    speed = statistics.median(results["training"]["batch 64"][OURS])
    return (
        f"**{speed / _fastest_pytorch(64):.1f} times as fast as PyTorch at its fastest** on two "
        f"CPU cores with {results['machine']['instructions']}: {round(speed, -3):,.0f} images per "
        "second in training at batch 64."
    )


def speed() -> str:
    """Ratios to the best of PyTorch's rows, for both instruction sets."""
    batches = "batch " + " / ".join(f"{batch:,}" for batch in BATCHES)
    rows = {
        f"training, {batches}": _at("training", OURS, "PyTorch", BATCHES),
        f"`train_step` by itself, {batches}": _at(
            "training", "ours, step by step", "PyTorch", BATCHES
        ),
        f"inference, {batches}": _at("inference", "ours", "PyTorch", BATCHES),
        "8 networks, batch 64, against `torch.func` / against PyTorch one by one": _members,
        "time to 99 % of MNIST, compilation cache filled / empty": lambda isa: list(
            tta.ratios(_results(f"time_to_accuracy{isa}")["runs"]).values()
        ),
    }
    table = _ratio_table("times as fast as PyTorch's best", rows)
    made_by = _made_by("throughput", "time_to_accuracy")
    return f"{table}\n\n{_against_fastest(BATCHES)}\n{made_by}"


def throughput() -> str:
    """`speed` for the page of results: all batch sizes, usual Flax and colour images, too."""
    sizes = (16, *BATCHES)
    colour = "training, batch 64, colour"
    devices, of_one = f"{OURS}, 3 channels", f"{OURS}, 3 channels, per multiply-add"
    rows = {
        "training, cores as devices, against PyTorch": _at("training", OURS, "PyTorch", sizes),
        "training, one device, against PyTorch": _at(
            "training", "ours, in a scan", "PyTorch", sizes
        ),
        "`train_step` by itself, against PyTorch": _at(
            "training", "ours, step by step", "PyTorch", sizes
        ),
        "training, cores as devices, against usual Flax in a scan": _at(
            "training", OURS, "usual Flax", sizes
        ),
        "`train_step` by itself, against usual Flax": _at(
            "training", "ours, step by step", "usual Flax", sizes
        ),
        "inference, against PyTorch": _at("inference", "ours", "PyTorch", sizes),
        "8 networks, batch 64, against `torch.func` / against PyTorch one by one": _members,
        "3 channels, batch 64, against PyTorch / per multiply-add against 1 channel": lambda isa: [
            _ratio(_results(f"throughput{isa}"), colour, ours, "") for ours in (devices, of_one)
        ],
    }
    title = "batch " + " / ".join(f"{size:,}" for size in sizes)
    table = _ratio_table(title, rows)
    return f"{table}\n\n{_against_fastest(sizes)}\n\n{_made_by('throughput')}"


def time_to_accuracy() -> str:
    """Medians over seeds; the seconds of each run are in the files."""
    lines = [
        "| | " + " | ".join(f"{isa}: reached | seconds | times as fast" for isa in ISAS) + " |",
        "|---|" + "--:|--:|--:|" * len(ISAS),
    ]
    for name in _results("time_to_accuracy")["runs"]:
        cells = []
        for suffix in ISAS.values():
            runs = _results(f"time_to_accuracy{suffix}")["runs"]
            seconds = [tta.until_target(run) for run in runs[name]]
            reached = sum(second < float("inf") for second in seconds)
            ratio = tta.ratios(runs).get(name, 1)
            cells += [
                f"{reached} of {len(seconds)}",
                f"{statistics.median(seconds):.1f}",
                f"**{ratio:.2f}**",
            ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _made_by("time_to_accuracy")])


def accuracy() -> str:
    """Test errors beside LeCun's, without the columns that only the page of results shows."""
    lines = [
        "| test error on MNIST, % | one network | 10 together | LeCun et al. 1998 |",
        "|---|--:|--:|--:|",
    ]
    rows = {row["name"]: row for row in _results("lecun1998")["rows"]}
    for kind, theirs in (("plain", "0.95"), ("distorted", "0.80; three boosted 0.70")):
        one, ten = rows[f"{kind}, one network"], rows[f"{kind}, 10 networks together"]
        lines.append(
            f"| {kind} images | **{one['error']:.2f}** ± {one['error_sd']:.2f} "
            f"({one['runs']} runs) | **{ten['error']:.2f}** | {theirs} |"
        )
    return "\n".join([*lines, "", _made_by("lecun1998")])


def parity() -> str:
    """The worst case of each group, beside PyTorch's own rounding.

    A case counts once, with the worse of `conv_relu_pool` and its reference implementation. The
    single arrays of the chosen cotangent's gradients are already in "ten gradients".
    """
    results = _results("parity")
    of_each_op = results["gradients"].values()
    gradients = {
        name: largest([cases[name] for cases in of_each_op])
        for name in next(iter(of_each_op))
        if ": gradient of" not in name
    }
    groups = {
        "logits, losses and gradients": gradients,
        "50 optimizer steps, same gradients": {
            name: case for name, case in results["training"].items() if "same gradients" in name
        },
        "50 steps of training": {
            name: case for name, case in results["training"].items() if "same" not in name
        },
    }
    lines = [
        "| largest relative difference | cases | float64 | float32 | PyTorch's own there |",
        "|---|--:|--:|--:|--:|",
    ]
    for title, cases in groups.items():
        double = max(case["float64"] for case in cases.values())
        worst = max(cases.values(), key=lambda case: case["float32"])
        numbers = (double, worst["float32"], worst["its rounding"])
        lines.append(f"| {title} | {len(cases)} | {' | '.join(f'{n:.0e}' for n in numbers)} |")
    return "\n".join([*lines, "", _made_by("parity")])


def learning_rates() -> str:
    """A row per optimizer: each rate and its accuracy."""
    cells: dict[str, list[str]] = {}
    for row in _results("learning_rates")["rows"]:
        mean = statistics.mean(row["accuracies"])
        cells.setdefault(row["optimizer"], []).append(f"{row['learning_rate']:g}: {mean:.2%}")
    lines = ["| optimizer | learning rate: validation accuracy | | |", "|---|--:|--:|--:|"]
    lines += [f"| {optimizer} | {' | '.join(row)} |" for optimizer, row in cells.items()]
    return "\n".join([*lines, "", _made_by("learning_rates")])


def pictures() -> str:
    """Sums over the kinds, and the kinds of which some picture is still misread."""
    results = _results("pictures")
    lines = ["| pictures | read before | read now |", "|---|--:|--:|"]
    missed = []
    for group in ("given", "made"):
        now, before = results[group], results["before"][group]
        count = sum(kind["pictures"] for kind in now.values())
        sums = [sum(min(kind["right"]) for kind in part.values()) for part in (before, now)]
        lines.append(f"| {count} {group}, {len(now)} kinds | {sums[0]} | **{sums[1]}** |")
        missed += [
            f"{name} ({min(kind['right'])} of {kind['pictures']})"
            for name, kind in now.items()
            if min(kind["right"]) < kind["pictures"]
        ]
    return "\n".join(
        [*lines, "", f"Not all read: {', '.join(missed) or 'none'}.", "", _made_by("pictures")]
    )


SUMMARIES = {
    f.__name__: f
    for f in (
        *(headline, speed, accuracy, parity),
        *(throughput, time_to_accuracy, learning_rates, pictures),
    )
}

Ratios = Callable[[str], list[float]]  # suffix of the result files -> the ratios of a row


def _ratio_table(title: str, rows: dict[str, Ratios]) -> str:
    lines = [f"| {title} | {' | '.join(ISAS)} |", "|---|" + "--:|" * len(ISAS)]
    for name, ratios in rows.items():
        cells = [" / ".join(f"{r:.2f}" for r in ratios(suffix)) for suffix in ISAS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _at(what: str, ours: str, to: str, sizes: Iterable[int]) -> Ratios:
    return lambda suffix: [
        _ratio(_results(f"throughput{suffix}"), f"{what}, batch {size}", ours, to) for size in sizes
    ]


def _members(suffix: str) -> list[float]:
    results, vmapped = _results(f"throughput{suffix}"), "ours, vmap, cores as devices"
    theirs = ("PyTorch torch.func", "PyTorch eager")
    return [_ratio(results, MEMBERS, vmapped, to) for to in theirs]


def _ratio(results: dict[str, Any], at: str, ours: str, to: str) -> float:
    """The median ratio of `ours` to the row whose name begins with `to`."""
    rows = results["ratios"][at]
    return next(row["median"] for row in rows if row["ours"] == ours and row["to"].startswith(to))


def _fastest_pytorch(batch: int) -> float:
    """Images per second of PyTorch's best form with the better of both instruction sets."""
    return max(
        statistics.median(speeds)
        for suffix in ISAS.values()
        for row, speeds in _results(f"throughput{suffix}")["training"][f"batch {batch}"].items()
        if row.startswith("PyTorch")
    )


def _against_fastest(sizes: Iterable[int]) -> str:
    ours = _results("throughput")["training"]
    ratios = [statistics.median(ours[f"batch {n}"][OURS]) / _fastest_pytorch(n) for n in sizes]
    return (
        "Both columns are the same processor. Against PyTorch's faster column, training with "
        f"AVX-512 is {' / '.join(f'{ratio:.2f}' for ratio in ratios)} times as fast."
    )


def _results(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def _made_by(*names: str) -> str:
    machines = [_results(name)["machine"] for name in names]
    commands = " and ".join(f"`{machine['command']}`" for machine in machines)
    return f"Made by {commands} on {machines[0]['processor']}, {machines[0]['cores']} cores."


def with_results(text: str) -> str:
    """`text` with each block's content made anew."""

    def fill(match: re.Match[str]) -> str:
        start, file, summary, end = match.groups()
        content = (HERE / file).read_text().strip() if file else SUMMARIES[summary]()
        return f"{start}\n{content}\n\n{end}"

    return BLOCK.sub(fill, text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_results(page.read_text()))
