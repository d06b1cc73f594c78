"""Puts what is in results/ into the pages that show it, between their marks.

    python experiments/readme.py

A block begins with `<!-- results/name.md -->` or `<!-- summary: name -->` and ends with
`<!-- end -->`; what stands between is replaced by that file, or by what the function `name` below
makes of the numbers. tests/test_readme.py fails when a page and the files disagree.
"""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import time_to_accuracy

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PAGES = (README, HERE / "README.md", HERE / "cluster.md", HERE / "conv_relu_pool.md")
BLOCK = re.compile(r"(<!-- (?:(results/\w+\.md)|summary: (\w+)) -->\n).*?(<!-- end -->)", re.DOTALL)
BATCHES = (64, 256, 1024)


def headline() -> str:
    """The one number, of the batch size that people train with."""
    ratios = _results("throughput")["ratios"]["training, batch 64"]
    speeds = _results("throughput")["training"]["batch 64"]["ours, cores as devices"]
    per_second = statistics.median(speeds)
    machine = _results("throughput")["machine"]
    return (
        f"**{_ratio(ratios, 'ours, cores as devices', 'PyTorch'):.1f} times as fast as PyTorch's "
        f"best** on two CPU cores with {machine['instructions']}: {round(per_second, -3):,.0f} "
        "images a second in training at batch 64."
    )


def speed() -> str:
    """Ratios to the best of PyTorch's rows, on both instruction sets."""

    def cells(isa: str) -> dict[str, list[float]]:
        ratios = _results(f"throughput{isa}")["ratios"]
        at = lambda what, ours: [
            _ratio(ratios[f"{what}, batch {batch}"], ours, "PyTorch") for batch in BATCHES
        ]
        batches = "batch " + " / ".join(f"{batch:,}" for batch in BATCHES)
        networks, vmapped = ratios["8 networks, batch 64"], "ours, vmap, cores as devices"
        times = time_to_accuracy.ratios(_results(f"time_to_accuracy{isa}")["runs"])
        return {
            f"training, {batches}": at("training", "ours, cores as devices"),
            f"`train_step` by itself, {batches}": at("training", "ours, step by step"),
            f"inference, {batches}": at("inference", "ours"),
            "8 networks at once, batch 64, to `torch.func` / to one after another": [
                _ratio(networks, vmapped, to) for to in ("PyTorch torch.func", "PyTorch eager")
            ],
            "from the start to 99 % of MNIST, JAX's cache filled / empty": list(times.values()),
        }

    lines = ["| times as fast as PyTorch's best | AVX-512 | AVX2 |", "|---|--:|--:|"]
    wide, narrow = cells(""), cells("_avx2")
    for title in wide:
        text = [" / ".join(f"{ratio:.2f}" for ratio in each[title]) for each in (wide, narrow)]
        lines.append(f"| {title} | {' | '.join(text)} |")
    return "\n".join([*lines, "", _made_by("throughput", "time_to_accuracy")])


def accuracy() -> str:
    """Test errors beside LeCun's, without the columns that the page of results has."""
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
    """The worst case of each group, beside PyTorch's own rounding."""
    results = _results("parity")
    gradients = {
        f"{name} {op}": case
        for op, cases in results["gradients"].items()
        for name, case in cases.items()
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


SUMMARIES = {f.__name__: f for f in (headline, speed, accuracy, parity)}


def _results(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def _ratio(rows: list[dict[str, Any]], ours: str, to: str) -> float:
    return next(row["median"] for row in rows if row["ours"] == ours and row["to"].startswith(to))


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
