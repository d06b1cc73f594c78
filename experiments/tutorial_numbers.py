"""Could the numbers in PyTorch's tutorial have been printed by our network?

The tutorial printed them without a seed, so no run can repeat them, but we can check whether they
are ordinary. 20,000 networks of ours, each freshly initialised and with a fresh random input and
target, give the distributions of seven statistics: the mean, the standard deviation and the largest
absolute value of the output row and of conv1's bias gradient, and the loss. Each of the tutorial's
numbers should lie in the central 99 %. 10,000 networks of live PyTorch should give the same
distributions (two-sample Kolmogorov-Smirnov). To show that these checks can fail, they are repeated
with networks that are initialised in other ways.

    python experiments/tutorial_numbers.py

Writes results/tutorial_numbers.{json,md,png}; takes 4 minutes on one core.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import _figures
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import torch
from _results import path, write_json, write_markdown
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from tutorial_net import Net

from lenet_jax import LeNet
from lenet_jax.core import losses
from lenet_jax.viz.figures import COLOURS, RED, STYLE

OURS, PYTORCH = 20_000, 10_000  # networks
SLICE = 500  # networks at a time: 120 MB of parameters

TUTORIAL = {
    "output": [0.1005, 0.0263, 0.0013, -0.1157, -0.1197, -0.0141, 0.1425, -0.0521, 0.0689, 0.0220],
    "loss": 0.6524,
    "gradient": [0.0069, 0.0021, 0.0090, -0.0060, -0.0008, -0.0073],
}

Printed = dict[str, np.ndarray]  # output [N, 10], loss [N], gradient [N, 6], as in TUTORIAL
Statistics = dict[str, np.ndarray]  # name -> [N]


def statistics(printed: dict[str, Any]) -> Statistics:
    """Seven statistics of the printed numbers, for N networks."""
    output, gradient = np.atleast_2d(printed["output"]), np.atleast_2d(printed["gradient"])
    return {
        "output, mean": output.mean(1),
        "output, standard deviation": output.std(1, ddof=1),
        "output, largest absolute value": np.abs(output).max(1),
        "loss": np.atleast_1d(printed["loss"]),
        "conv1.bias.grad, mean": gradient.mean(1),
        "conv1.bias.grad, standard deviation": gradient.std(1, ddof=1),
        "conv1.bias.grad, largest absolute value": np.abs(gradient).max(1),
    }


# --- initialisations: key -> params


def pytorchs(key: jax.Array) -> Any:
    """Our initialisation, meant to equal PyTorch's: kernels and biases uniform in ±1/√fan_in."""
    return LeNet().init(key, jnp.zeros((1, 32, 32, 1)))["params"]


def zero_biases(key: jax.Array) -> Any:
    """PyTorch's kernels, and biases of 0."""
    params = pytorchs(key)
    return {name: layer | {"bias": 0 * layer["bias"]} for name, layer in params.items()}


def lecun_normal(key: jax.Array) -> Any:
    """LeCun-normal kernels with PyTorch's biases."""
    init, params = jax.nn.initializers.lecun_normal(), pytorchs(key)
    keys = jax.random.split(jax.random.fold_in(key, 1), len(params))
    return {
        name: layer | {"kernel": init(k, layer["kernel"].shape)}
        for k, (name, layer) in zip(keys, params.items(), strict=True)
    }


def flax_default(key: jax.Array) -> Any:
    """LeCun-normal kernels and biases of 0, as in `nn.Conv` and `nn.Dense`."""
    params = lecun_normal(key)
    return {name: layer | {"bias": 0 * layer["bias"]} for name, layer in params.items()}


FLAX = "Flax's default"  # LeCun-normal kernels, zero biases
WRONG = {"zero biases": zero_biases, "LeCun-normal kernels": lecun_normal, FLAX: flax_default}

Initialise = Callable[[jax.Array], Any]


def our_network(key: jax.Array, initialise: Initialise) -> dict[str, jax.Array]:
    """The numbers that one network prints: output [10], loss [], gradient [6]."""
    keys = jax.random.split(key, 3)
    params = initialise(keys[0])
    image = jax.random.normal(keys[1], (1, 32, 32, 1))
    target = jax.random.normal(keys[2], (1, 10))

    def loss_of(params: Any) -> tuple[jax.Array, jax.Array]:
        output = LeNet().apply({"params": params}, image)
        return losses.mse(output, target), output

    (loss, output), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    return {"output": output[0], "loss": loss, "gradient": gradients["conv1"]["bias"]}


# This optimisation level compiles in 4 s instead of 18 and runs as fast.
@partial(
    jax.jit,
    static_argnames="initialise",
    compiler_options={"xla_backend_optimization_level": 1},
)
def _our_slice(keys: jax.Array, initialise: Initialise) -> dict[str, jax.Array]:
    return jax.vmap(partial(our_network, initialise=initialise))(keys)


def our_networks(seed: int, number: int, initialise: Initialise = pytorchs) -> Printed:
    """The numbers of `number` networks of ours, a multiple of SLICE."""
    keys = jax.random.split(jax.random.key(seed), (number // SLICE, SLICE))
    slices = [jax.device_get(_our_slice(part, initialise)) for part in keys]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *slices)


def pytorch_networks(seed: int, number: int) -> Printed:
    """Runs the tutorial's own lines `number` times."""

    def prints() -> Iterator[tuple[np.ndarray, float, np.ndarray]]:
        for _ in range(number):
            net = Net()
            output = net(torch.randn(1, 1, 32, 32))
            loss = torch.nn.MSELoss()(output, torch.randn(10).view(1, -1))
            loss.backward()
            yield output[0].detach().numpy(), loss.item(), net.conv1.bias.grad.numpy()

    torch.manual_seed(seed)
    output, loss, gradient = map(np.array, zip(*prints(), strict=True))
    return {"output": output, "loss": loss, "gradient": gradient}


# --- the comparison


def compare(sample: Statistics, pytorch: Statistics) -> dict[str, dict[str, float]]:
    """Statistic -> where the tutorial's number lies in `sample`, and the distance from PyTorch.

    `below` is the share of the sample below the tutorial's number; the number lies in the central
    99 %, `low` to `high`, if `below` is between 0.005 and 0.995.
    """
    rows = {}
    for name, (number,) in statistics(TUTORIAL).items():
        low, high = np.quantile(sample[name], [0.005, 0.995])
        test = scipy.stats.ks_2samp(sample[name], pytorch[name])
        rows[name] = {
            "tutorial": float(number),
            "below": float((sample[name] < number).mean()),
            "low": float(low),
            "high": float(high),
            "distance": float(test.statistic),
            "p": float(test.pvalue),
        }
    return rows


def is_ordinary(row: dict[str, float]) -> bool:
    return row["low"] <= row["tutorial"] <= row["high"]


def table(comparisons: dict[str, dict[str, dict[str, float]]]) -> str:
    """Two tables: our initialisation in full, and the statistics that expose the wrong ones."""
    lines = [
        f"Where the tutorial's printed numbers lie among those of {OURS:,} networks of ours, and "
        f"how ours compare with {PYTORCH:,} networks of live PyTorch (two-sample "
        "Kolmogorov-Smirnov).",
        "",
        "| statistic | tutorial | our central 99 % | ours below it | inside | p (PyTorch) |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for name, row in comparisons["ours"].items():
        inside = "yes" if is_ordinary(row) else "**no**"
        lines.append(
            f"| {name} | {row['tutorial']:.4f} | {row['low']:.4f} to {row['high']:.4f} "
            f"| {row['below']:.1%} | {inside} | {row['p']:.2f} |"
        )
    lines += [
        "",
        "Would a wrong initialisation be noticed? The table shows the share of its networks below "
        "the tutorial's number, in **bold** where that number lies outside its central 99 %; in "
        "brackets, the largest distance between its distribution function and PyTorch's. Flax's "
        "default is LeCun-normal kernels and zero biases.",
        "",
        "| statistic | " + " | ".join(comparisons) + " |",
        "|---|" + "---:|" * len(comparisons),
    ]
    for name in comparisons["ours"]:
        cells = []
        for rows in comparisons.values():
            below = f"{rows[name]['below']:.1%}"
            mark = "" if is_ordinary(rows[name]) else "**"
            cells.append(f"{mark}{below}{mark} ({rows[name]['distance']:.3f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@rc_context(STYLE | {"axes.grid": False, "axes.spines.left": False})
def draw(samples: dict[str, Statistics], pytorch: Statistics) -> Figure:
    """One panel per statistic: the distributions, and the tutorial's number as a line."""
    figure = Figure((10, 6), layout="constrained")
    *panels, last = figure.subplots(2, 4).flat
    wrong = {"zero biases": COLOURS[1], FLAX: COLOURS[2]}
    for panel, (statistic, (number,)) in zip(panels, statistics(TUTORIAL).items(), strict=True):
        ours = samples["ours"][statistic]
        if statistic.endswith("mean"):
            limit = 1.3 * np.quantile(np.abs(ours), 0.9995)
            bins = np.linspace(-limit, limit, 61)
            panel.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))
        else:
            everything = np.concatenate([sample[statistic] for sample in samples.values()])
            bins = np.geomspace(*np.quantile(everything, [0.0005, 0.9995]), 81)
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            panel.xaxis.set_minor_formatter(NullFormatter())
        panel.xaxis.set_major_formatter("{x:g}")

        def histogram(sample: np.ndarray, panel: Axes = panel, bins: Any = bins, **style: Any):
            panel.hist(sample, bins, weights=np.full(len(sample), 1 / len(sample)), **style)

        histogram(ours, color=_figures.OURS, alpha=0.35, label="ours")
        outline = {"histtype": "step", "lw": 1.2}
        histogram(pytorch[statistic], color=_figures.PYTORCH, label="live PyTorch", **outline)
        for name, colour in wrong.items():
            sample = samples[name][statistic]
            histogram(sample, color=colour, ls="--", label=f"wrong: {name}", **outline)
        panel.axvline(number, color=RED, label="printed in the tutorial")
        below = (ours < number).mean()
        name = statistic.replace(", ", "\n")
        panel.set_title(f"{name}\n{below:.0%} of ours below {number:.4f}", fontsize=9)
        panel.set_yticks([])
    last.axis("off")
    last.legend(*figure.axes[0].get_legend_handles_labels(), loc="center", fontsize=9)
    return figure


def main() -> None:
    torch.set_num_threads(1)  # one small network at a time: more threads slow it down
    pytorch = statistics(pytorch_networks(seed=0, number=PYTORCH))
    samples = {"ours": statistics(our_networks(seed=0, number=OURS))}
    for name, initialise in WRONG.items():
        samples[name] = statistics(our_networks(seed=1, number=OURS, initialise=initialise))
    comparisons = {name: compare(sample, pytorch) for name, sample in samples.items()}
    text = table(comparisons)
    print(text)
    write_json("tutorial_numbers", {"ours": OURS, "pytorch": PYTORCH, "comparisons": comparisons})
    write_markdown("tutorial_numbers", text)
    draw(samples, pytorch).savefig(path("tutorial_numbers.png"), dpi=150)


if __name__ == "__main__":
    main()
