"""The benchmark measures what it says; no test depends on a speed."""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch, the rival, is not installed")
import _throughput_page as page
import _throughput_rows as rows
import jax
import throughput
from _results import path

from lenet_jax import LeNet
from lenet_jax.core import ops


def test_a_ratio_is_taken_round_by_round_against_the_best():
    speeds = {"ours": [20.0, 40.0, 90.0], "slow": [5.0, 10.0, 20.0], "best": [10.0, 20.0, 30.0]}
    result = page.ratio(speeds, "ours", ["slow", "best"])
    assert result["to"] == "best"
    assert result["median"] == pytest.approx(2)
    assert result["quartiles"] == pytest.approx([2, 2.5])


# torch.compile imports a part of torch that warns of itself (2.13)
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_every_row_runs_and_its_speed_counts_its_images():
    timed = rows.training_rows(16)
    for form, (_, compiled) in rows.TORCH_FORMS.items():
        if compiled:  # a C++ compiler at work: half a minute
            del timed[form]
    speeds = throughput.measure(timed, dict.fromkeys(timed, 16), rounds=2, seconds=0.01)
    assert speeds.keys() == timed.keys()
    assert all(len(values) == 2 and np.all(np.array(values) > 0) for values in speeds.values())


def test_the_usual_form_is_the_same_network():
    params, _ = rows.usual_state(jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 61_706


def test_the_multiply_adds_of_an_image_are_those_that_xla_counts():
    """Of the reference's form, from the outputs' sizes; the rest of a step is little beside it."""
    model = LeNet(in_channels=3, conv_relu_pool=ops.conv_relu_pool_plain)
    image = jax.numpy.zeros((1, 32, 32, 3))
    params = model.init(jax.random.key(0), image)["params"]
    loss = lambda params: model.apply({"params": params}, image).sum()
    flops = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]
    assert flops / 2 == pytest.approx(page.multiply_adds(3), rel=0.05)


def test_rows_of_colour_images_are_as_fast_as_their_multiply_adds_say():
    """Their ratio per multiply-add is 1 where they are slower in proportion to their work."""
    work = page.multiply_adds(3) / page.multiply_adds(1)
    assert 1.3 < work < 1.5
    names = ("ours in a scan", "ours, cores as devices")
    speeds = {f"{name}, 1 channel": [100 * work] * 3 for name in names}
    speeds |= {f"{name}, 3 channels": [100.0] * 3 for name in names}
    speeds["PyTorch eager"] = [50.0] * 3
    found = [ratio["median"] for ratio in page.colour_ratios(speeds)]
    assert found == pytest.approx([2, 1, 2, 1])


@pytest.mark.parametrize("name", ["throughput", "throughput_avx2"])
def test_ratios_tables_and_figure_are_those_of_the_recorded_speeds(name):
    recorded = json.loads(path(f"{name}.json").read_text())
    again = {f"training, {at}": page.training_ratios(s) for at, s in recorded["training"].items()}
    again |= {
        f"inference, {at}": page.inference_ratios(s) for at, s in recorded["inference"].items()
    }
    again["8 networks, batch 64"] = page.member_ratios(recorded["members"])
    again["training, batch 64, colour"] = page.colour_ratios(recorded["colour"])
    assert again == recorded["ratios"]
    assert path(f"{name}.md").read_text().startswith(page.tables(recorded))
    figure = page.draw(recorded["training"])
    assert len(figure.axes[0].lines) == len(recorded["training"]["batch 64"])
