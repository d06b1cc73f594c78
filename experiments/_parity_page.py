"""The tables of parity.py: `summary` has a row per kind of case, `every_case` a row per case."""

from typing import Any

from _parity_cases import BATCH, LOSSES, NETWORKS, OPTIMIZERS, STEPS

COLUMNS = ("float32", "float64", "our rounding", "its rounding")


def row(name: str, cells: dict[str, float], *more: str) -> str:
    numbers = (f"{cells[key]:.1e}" if cells[key] else "0" for key in COLUMNS)
    return " | ".join(["", name, *more, *numbers, ""]).strip()


def largest(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: max(cells[key] for cells in rows) for key in rows[0]}


def summary(
    gradients: dict[str, dict[str, dict[str, float]]],
    training: dict[str, dict[str, float]],
    initialisation: dict[str, dict[str, float]],
) -> str:
    (op, one), (other_op, other) = gradients.items()
    both = {name: largest([one[name], other[name]]) for name in one}
    lines = [
        "Largest relative difference from live PyTorch over a row's cases. A case counts once, "
        f"with the worse of `{op}` and `{other_op}`. The last two columns are what float32 costs "
        "either side: its difference from PyTorch's float64. In training, rounding on either side "
        "can move an activation across the kink of a ReLU or make another pixel the maximum, and "
        "RMSprop and Adam make a full step even of the smallest gradient. "
        "With the same gradients, only the optimizers can differ.",
        "",
        f"| compared | cases | {' | '.join(COLUMNS)} |",
        "|---|---:|---:|---:|---:|---:|",
    ]

    def add(title: str, cases: dict[str, Any], prefix: str, suffix: str = "") -> None:
        matches = lambda name: name.startswith(prefix) and name.endswith(suffix)
        found = [cells for name, cells in cases.items() if matches(name)]
        if found:
            lines.append(row(title, largest(found), str(len(found))))

    add(f"logits of {BATCH} images", both, "logits")
    for name in dict.fromkeys(name for name, *_ in LOSSES):
        for part in ("value", "ten gradients"):
            add(f"`{name}`: {part}", both, f"{name}(", part)
    add("gradients from a chosen cotangent", both, "chosen cotangent: ten")
    for part in ("same gradients", "training"):
        for name in dict.fromkeys(name for name, *_ in OPTIMIZERS):
            add(f"`{name}`: {STEPS} steps, {part}", training, f"{name}(", part)
    smallest = min(cells["p"] for cells in initialisation.values())
    lines += [
        "",
        f"The smallest p of the Kolmogorov-Smirnov tests on the ten arrays' initialisation, with "
        f"{NETWORKS} networks each, is {smallest:.2f}.",
    ]
    return "\n".join(lines)


def every_case(
    gradients: dict[str, dict[str, dict[str, float]]],
    training: dict[str, dict[str, float]],
    initialisation: dict[str, dict[str, float]],
) -> str:
    header = f"| compared | {' | '.join(COLUMNS)} |\n|---|---:|---:|---:|---:|"
    lines = ["Relative differences from live PyTorch, case by case."]
    for op, cases in gradients.items():
        lines += ["", f"With `{op}`:", "", header]
        lines += [row(name, cells) for name, cells in cases.items()]
    lines += ["", f"{STEPS} steps, relative to the way travelled:", "", header]
    lines += [row(name, cells) for name, cells in training.items()]
    lines += [
        "",
        f"Initialisation, {NETWORKS} networks each; the largest number in units of 1/√fan_in:",
        "",
        "| array | ours | PyTorch | p |",
        "|---|---:|---:|---:|",
    ]
    for name, cells in initialisation.items():
        lines.append(
            f"| {name} | {cells['ours']:.6f} | {cells['pytorch']:.6f} | {cells['p']:.2f} |"
        )
    return "\n".join(lines)
