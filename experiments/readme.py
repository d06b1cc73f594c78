"""Copies results into the pages that show them, between their marks.

    python experiments/readme.py

A block begins with `<!-- results/name.md -->` or `<!-- summary: name -->` and ends with
`<!-- end -->`. Its content is that file, or what the function `name` below returns: the few rows of
a longer file that answer the page's question. tests/test_readme.py fails when a page and the files
disagree.
"""

import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _throughput_page
import time_to_accuracy as tta
from _parity_page import largest
from _results import has, read_json, short_name, slug

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
NAMES = ("README.md", "cluster.md", "conv_relu_pool.md", "accelerator.md")
PAGES = (README, *(HERE / name for name in NAMES))
BLOCK = re.compile(
    r"(<!-- (?:(results/[\w.-]+\.md)|summary: (\w+)) -->\n).*?(<!-- end -->)", re.DOTALL
)
BATCHES = (16, 64, 256, 1024)
CACHES = ("cold", "warm")
OURS, STEPWISE, MEMBERS = "ours, cores as devices", "ours, step by step", "8 networks, batch 64"


class Column(NamedTuple):
    """A processor, with all of its instructions (suffix "") or held to older ones."""

    name: str
    title: str
    device: str
    suffix: str

    def results(self, name: str) -> dict[str, Any]:
        return read_json(f"{name}{self.suffix}.{self.device}")

    def note(self) -> str:
        """How its speeds were measured, if otherwise than by today's script."""
        return self.results("throughput").get("note", "")


def columns(of: str = "throughput") -> list[Column]:
    """The processors of which there are speeds and results `of`, first with all instructions."""
    found = []
    for suffix in ("", "_avx2"):
        for name in _throughput_page.names(f"throughput{suffix}"):
            machine = read_json(name)["machine"]
            held = " held to AVX2" if suffix else f", {machine['instructions']}"
            if machine["devices"][0] == "cpu":
                short = short_name(machine)
                found.append(Column(short, f"{short}{held}", slug(machine), suffix))
    return [column for column in found if has(f"{of}{column.suffix}.{column.device}")]


def headline() -> str:
    """Ranges over batch sizes, of the processors that today's scripts measured."""
    found = [column for column in columns() if not column.note()]
    whole, held = ([c for c in found if c.suffix == suffix] for suffix in ("", "_avx2"))
    names = " and of an ".join(column.title.replace(",", " with") for column in whole)
    return (
        f"**{_range(whole, OURS)} times as fast as PyTorch at its fastest** in training, on two "
        f"cores of an {names} ({_range(held, OURS)} times held to AVX2), at batch sizes from "
        f"{min(BATCHES)} to {max(BATCHES):,}."
    )


def speed() -> str:
    """Ratios to the fastest of PyTorch's rows, by processor."""
    rows = _training_rows() | {
        "time to 99 % of MNIST, compilation cache filled / empty": _to_accuracy,
    }
    table = _table("times as fast as PyTorch at its fastest", rows)
    by_itself = " and ".join(
        f"{_range([column], STEPWISE)} ({column.title})"
        for column in columns()
        if not column.note()
    )
    notes = (
        "The rows of training are the loop of the command `train`; `train_step` by itself is "
        f"{by_itself} times as fast."
    )
    for name in dict.fromkeys(column.name for column in columns() if column.note()):
        notes += (
            f" The {name} was measured [by earlier scripts]"
            "(experiments/README.md#faster-than-pytorch)."
        )
    return f"{table}\n\n{_quartiles()} {notes} {_made_by('throughput', 'time_to_accuracy')}"


def training() -> str:
    """Ratios to the fastest of PyTorch's rows in training, by processor."""
    table = _table("times as fast as PyTorch at its fastest", _training_rows())
    notes = " ".join(f"{c.name}: {c.note()}" for c in columns() if c.note() and not c.suffix)
    return f"{table}\n\n{_quartiles()} {notes} {_made_by('throughput')}"


def throughput() -> str:
    """The other ratios: one device, inference, usual Flax, several networks, colour images."""

    def at_each(what: str, ours: str, to: str = "PyTorch") -> Cell:
        return lambda column: " / ".join(
            f"{_ratio(column, f'{what}, batch {n}', ours, to)['median']:.2f}" for n in BATCHES
        )

    def colour(column: Column) -> str:
        at, ours = "training, batch 64, colour", "ours, cores as devices, 3 channels"
        against = (ours, "PyTorch"), (f"{ours}, per multiply-add", "ours")
        return " / ".join(f"{_ratio(column, at, *each)['median']:.2f}" for each in against)

    def usual(ours: str) -> Cell:
        """Against usual Flax step by step, its faster form here."""
        ratio = lambda column, n: _throughput_page.ratio(
            _trained(column, n), ours, ["usual Flax, step by step", "usual Flax, in a scan"]
        )
        return lambda column: " / ".join(f"{ratio(column, n)['median']:.2f}" for n in BATCHES)

    rows: dict[str, Cell] = {
        "training, cores as devices, against PyTorch": at_each("training", OURS),
        "training, one device, against PyTorch": at_each("training", "ours, in a scan"),
        "`train_step` by itself, against PyTorch": at_each("training", STEPWISE),
        "training, cores as devices, against usual Flax at its faster": usual(OURS),
        "`train_step` by itself, against usual Flax at its faster": usual(STEPWISE),
        "inference, against PyTorch": at_each("inference", "ours"),
        "8 networks, batch 64, against `torch.func` / against PyTorch one by one": _members,
        "3 channels, batch 64, against PyTorch / per multiply-add against 1 channel": colour,
    }
    title = "batch " + " / ".join(f"{size:,}" for size in BATCHES)
    fastest = {
        f"PyTorch's fastest form, batch {n:,}": lambda column, n=n: _of_pytorch(
            column, "training", OURS, n
        )["to"].removeprefix("PyTorch ")
        for n in BATCHES
    }
    speeds = {
        f"ours, images/s, batch {n:,}": lambda column, n=n: (
            f"{statistics.median(_trained(column, n)[OURS]):,.0f}"
        )
        for n in BATCHES
    }
    tables = f"{_table(title, rows)}\n\n{_table('training, cores as devices', speeds | fastest)}"
    return f"{tables}\n\n{_disturbed('throughput')}\n\n{_made_by('throughput')}"


def time_to_accuracy() -> str:
    """Medians over seeds; the seconds of each run are in the files."""
    lines = [
        "| | | reached | seconds, median | times as fast |",
        "|---|---|--:|--:|--:|",
    ]
    for column in columns("time_to_accuracy"):
        runs = column.results("time_to_accuracy")["runs"]
        for name in runs:
            seconds = [tta.until_target(run) for run in runs[name]]
            reached = sum(second < float("inf") for second in seconds)
            ratio = _fastest_pytorch(column) / statistics.median(seconds)
            lines.append(
                f"| {column.title} | {name} | {reached} of {len(seconds)} "
                f"| {statistics.median(seconds):.1f} | **{ratio:.2f}** |"
            )
    against = (
        "Ratios are those of medians; where there is AVX-512 they are to PyTorch with AVX-512 or "
        "held to AVX2, whichever is faster."
    )
    return "\n".join([*lines, "", f"{against} {_made_by('time_to_accuracy')}"])


def first_step() -> str:
    """Median seconds from a process's start to the end of its first step, by processor."""
    found = [read_json(name) for name in _throughput_page.names("first_step")]
    titles = [f"{short_name(each['machine'])}: cold | warm" for each in found]
    lines = [f"| seconds | {' | '.join(titles)} |", "|---|" + "--:|--:|" * len(found)]
    for name in dict.fromkeys(row.partition(", ")[0] for row in found[0]["rows"]):
        cells = []
        for each in found:
            runs = [
                each["rows"].get(f"{name}, {cache}", each["rows"].get(name)) for cache in CACHES
            ]
            seconds = [statistics.median(sum(run.values()) for run in row) for row in runs]
            cells += [f"{second:.1f}" for second in seconds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    count = min(len(runs) for each in found for runs in each["rows"].values())
    made_by = f"Made by `{found[0]['machine']['command']}`."
    return "\n".join([*lines, "", f"Medians of {count} runs. {made_by}"])


def populations() -> str:
    """Network-images per second, and the ratio to one network, by processor."""
    found = columns("populations")
    titles = [f"{column.title}: network-images/s | to one" for column in found]
    lines = [f"| networks | {' | '.join(titles)} |", "|---|" + "--:|--:|" * len(found)]
    speeds = [column.results("populations")["speeds"] for column in found]
    for kind, numbers in speeds[0].items():
        for number in numbers:
            cells = []
            for each in speeds:
                ratio = _throughput_page.ratio(each[kind], number, ["1"])
                cells += [f"{statistics.median(each[kind][number]):,.0f}", _with_quartiles(ratio)]
            lines.append(f"| {number}, {kind} | {' | '.join(cells)} |")
    rounds = min(len(rows["1"]) for each in speeds for rows in each.values())
    notes = f"{_quartiles(rounds)} {_disturbed('populations')} {_made_by('populations')}"
    return "\n".join([*lines, "", notes])


def accuracy() -> str:
    """Test errors beside LeCun's, with the number of runs in each cell."""
    lines = [
        "| test error on MNIST, % | one network | 10 together | 20 together | LeCun et al. 1998, "
        "[another network](experiments/README.md#better-than-1998) |",
        "|---|--:|--:|--:|--:|",
    ]
    rows = {row["name"]: row for row in read_json("lecun1998")["rows"]}

    def cell(name: str) -> str:
        row = rows[name]
        spread = "" if row["error_sd"] is None else f" ± {row['error_sd']:.2f}"
        return f"**{row['error']:.2f}**{spread} (n = {row['runs']})"

    for kind, suffix, theirs in (
        ("plain", "", "0.95"),
        ("distorted", "", "0.80; three boosted 0.70"),
        ("distorted", ", over shifts", ""),
    ):
        cells = [
            cell(f"{kind}, {count}{suffix}")
            for count in ("one network", "10 networks", "20 networks")
        ]
        lines.append(f"| {kind} images{suffix} | {' | '.join(cells)} | {theirs} |")
    return "\n".join([*lines, "", _made_by("lecun1998")])


def parity() -> str:
    """The worst case of each group, beside PyTorch's own rounding.

    A case counts once, with the worse of `conv_relu_pool` and its reference implementation. The
    single arrays of the chosen cotangent's gradients are already in "ten gradients".
    """
    results = read_json("parity")
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
    for row in read_json("learning_rates")["rows"]:
        mean = statistics.mean(row["accuracies"])
        cells.setdefault(row["optimizer"], []).append(f"{row['learning_rate']:g}: {mean:.2%}")
    lines = ["| optimizer | learning rate: validation accuracy | | |", "|---|--:|--:|--:|"]
    lines += [f"| {optimizer} | {' | '.join(row)} |" for optimizer, row in cells.items()]
    return "\n".join([*lines, "", _made_by("learning_rates")])


def elsewhere() -> str:
    """Sums over the fonts, and the largest difference of all exports."""
    results = read_json("elsewhere")
    sums = {
        kind: map(sum, zip(*fonts.values(), strict=True)) for kind, fonts in results["read"].items()
    }
    read = [f"{kind} {right:,} of {asked:,}" for kind, (right, asked) in sums.items()]
    differences = results["differences"]
    return (
        f"Digits of {len(results['read']['printed'])} fonts that are read: {'; '.join(read)}. "
        f"Logits of the {len(differences)} exports differ by at most "
        f"{max(differences.values()):.1e} of the largest logit. {_made_by('elsewhere')}"
    )


def faults() -> str:
    """The runs that were stopped, and the checkpoints that were damaged."""
    results = read_json("faults")
    kills, damage = results["kills"], results["damage"]
    stops = sum(len(run["moments"]) for run in kills)
    same = sum(run["same_bits"] for run in kills)
    tried, named, harmless, wrong = (
        sum(kind.get(what, 0) for kind in damage)
        for what in ("tried", "named", "harmless", "wrong")
    )
    return (
        f"**{same} of {len(kills)}** runs, which were stopped {stops} times in all, ended with the "
        f"same bits. Of {tried:,} damaged checkpoints {named} were named, {harmless} had lost "
        f"nothing (the damage was in zip's directory), and **{wrong}** were read wrongly. "
        + _made_by("faults")
    )


def pictures() -> str:
    """Sums over the kinds, and the kinds of which some picture is still misread."""
    results = read_json("pictures")
    lines = ["| pictures | read by 0.1.0 | read now |", "|---|--:|--:|"]
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
    speeds = []
    for size, seconds in results["seconds"].items():
        now, before = (1 / statistics.median(seconds[side]) for side in ("after", "before"))
        speeds.append(f"**{now:.0f}** of {size} (with 0.2.0 {before:.0f})")
    return "\n".join(
        [
            *lines,
            "",
            f"Not all read: {', '.join(missed) or 'none'}.",
            "Pictures per second on one core, from the file to the network's input: "
            f"{' and '.join(speeds)}.",
            "",
            _made_by("pictures"),
        ]
    )


SUMMARIES = {
    f.__name__: f
    for f in (
        *(headline, speed, accuracy, parity),
        *(training, throughput, time_to_accuracy, first_step, populations, learning_rates),
        *(elsewhere, pictures, faults),
    )
}

Cell = Callable[[Column], str]


def _table(title: str, rows: dict[str, Cell]) -> str:
    """A column for each processor."""
    titles = [column.title for column in columns()]
    lines = [f"| {title} | {' | '.join(titles)} |", "|---|" + "--:|" * len(titles)]
    for name, cell in rows.items():
        lines.append(f"| {name} | {' | '.join(cell(column) for column in columns())} |")
    return "\n".join(lines)


def _ratio(column: Column, at: str, ours: str, to: str) -> dict[str, Any]:
    """The ratio of `ours` to the row whose name begins with `to`."""
    rows = column.results("throughput")["ratios"][at]
    return next(row for row in rows if row["ours"] == ours and row["to"].startswith(to))


def _trained(column: Column, batch: int) -> dict[str, list[float]]:
    return column.results("throughput")["training"][f"batch {batch}"]


def _of_pytorch(column: Column, what: str, ours: str, batch: int) -> dict[str, Any]:
    return _ratio(column, f"{what}, batch {batch}", ours, "PyTorch")


def _with_quartiles(ratio: dict[str, Any]) -> str:
    low, high = ratio["quartiles"]
    return f"**{ratio['median']:.2f}** ({low:.2f} to {high:.2f})"


def _training_rows() -> dict[str, Cell]:
    """Training with the cores as devices against PyTorch, a row for each batch size."""
    return {
        f"training, batch {n:,}": lambda column, n=n: _with_quartiles(
            _of_pytorch(column, "training", OURS, n)
        )
        for n in BATCHES
    }


def _members(column: Column) -> str:
    rows = column.results("throughput")["ratios"][MEMBERS]
    theirs = [row for row in rows if row["ours"] == "ours, vmap, cores as devices"]
    of = lambda words: next(row["median"] for row in theirs if words(row["to"]))
    one_by_one = of(lambda to: to.startswith("PyTorch") and to.endswith("one network"))
    return f"{of(lambda to: 'torch.func' in to):.2f} / {one_by_one:.2f}"


def _to_accuracy(column: Column) -> str:
    if column not in columns("time_to_accuracy"):
        return "not measured"
    runs = column.results("time_to_accuracy")["runs"]
    medians = [_median_seconds(runs[f"ours, {cache}"]) for cache in ("warm", "cold")]
    ratios = " / ".join(f"{_fastest_pytorch(column) / median:.2f}" for median in medians)
    return f"{ratios} (n = {len(runs['PyTorch'])})"


def _fastest_pytorch(column: Column) -> float:
    """Median seconds of PyTorch to the accuracy, also held to AVX2 where that is faster."""
    return min(
        _median_seconds(each.results("time_to_accuracy")["runs"]["PyTorch"])
        for each in columns("time_to_accuracy")
        if each.device == column.device and column.suffix in ("", each.suffix)
    )


def _median_seconds(runs: list[dict]) -> float:
    return statistics.median(map(tta.until_target, runs))


def _range(of: list[Column], ours: str) -> str:
    """The medians of `ours` against PyTorch in training, over batch sizes and processors."""
    ratios = [_of_pytorch(each, "training", ours, n)["median"] for each in of for n in BATCHES]
    return f"{min(ratios):.1f} to {max(ratios):.1f}"


def _quartiles(rounds: int | None = None) -> str:
    counts = [len(_trained(column, n)[OURS]) for column in columns() for n in BATCHES]
    return f"In brackets: quartiles over {rounds or min(counts)} rounds."


def _disturbed(name: str) -> str:
    """How many rounds each processor's results leave out."""
    counts = []
    for column in columns(name):
        groups = column.results(name).get("disturbed")
        if groups is None:
            counts.append(f"{column.title}: not told apart")
            continue
        rounds = {(at, row["round"]) for at, rows in groups.items() for row in rows}
        counts.append(f"{column.title}: {len(rounds)}")
    return f"Disturbed rounds, repeated and left out ({'; '.join(counts)})."


def _made_by(*names: str) -> str:
    """The commands, and their machines where the names carry none."""
    by_device = [name for name in names if not has(name)]
    machines = [read_json(name)["machine"] for name in names if name not in by_device]
    on = f" on {machines[0]['processor']}, {machines[0]['cores']} cores" if machines else ""
    machines += [each.results(name)["machine"] for name in by_device for each in columns(name)]
    runs: dict[str, list[list[str]]] = {}  # script -> the options of each of its runs
    for machine in machines:
        _, script, *given = machine["command"].split()
        runs.setdefault(script, []).append(given)
    commands = [
        f"`{' '.join(['python', script, *_options(all_given)])}`"
        for script, all_given in runs.items()
    ]
    return f"Made by {' and '.join(commands)}{on}."


def _options(runs: list[list[str]]) -> list[str]:
    """The options of a script's runs, in brackets if they are not those of all."""
    options = dict.fromkeys(option for given in runs for option in given)
    return [each if all(each in given for given in runs) else f"[{each}]" for each in options]


def with_results(text: str) -> str:
    """`text` with each block's content made anew."""

    def fill(match: re.Match[str]) -> str:
        start, file, summary, end = match.groups()
        content = (HERE / file).read_text().strip() if file else SUMMARIES[summary]()
        return f"{start}{content}\n{end}"

    return BLOCK.sub(fill, text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_results(page.read_text()))
