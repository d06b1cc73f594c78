"""The benchmark measures what it says; its speeds are no business of a test."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch, the rival, is not installed")
import throughput


def test_a_ratio_is_taken_round_by_round_against_the_best():
    speeds = {"ours": [20.0, 40.0, 90.0], "slow": [5.0, 10.0, 20.0], "best": [10.0, 20.0, 30.0]}
    result = throughput.ratio(speeds, "ours", ["slow", "best"])
    assert result["to"] == "best"
    assert result["median"] == pytest.approx(2)
    assert result["quartiles"] == pytest.approx([2, 2.5])


# torch.compile imports a part of torch that warns of itself (2.13)
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_every_row_runs_and_its_speed_counts_its_images():
    rows = throughput.training_rows(16)
    del rows["PyTorch torch.compile"]  # a C++ compiler at work: half a minute
    speeds = throughput.measure(rows, dict.fromkeys(rows, 16), rounds=2, seconds=0.01)
    assert speeds.keys() == rows.keys()
    assert all(len(values) == 2 and np.all(np.array(values) > 0) for values in speeds.values())


def test_the_usual_form_is_the_same_network():
    params, _ = throughput.usual_state(throughput.jax.random.key(0))
    assert sum(leaf.size for leaf in throughput.jax.tree.leaves(params)) == 61_706
