"""The tutorial's printed numbers are ordinary numbers of our network, and of PyTorch's."""

import json

import numpy as np
import pytest
from _results import path

torch = pytest.importorskip("torch", reason="PyTorch, the judge, is not installed")
import tutorial_numbers
from tutorial_numbers import TUTORIAL, WRONG, compare, is_ordinary, statistics

STATISTICS = tuple(statistics(TUTORIAL))


@pytest.fixture(scope="module")
def written() -> dict:
    return json.loads(path("tutorial_numbers.json").read_text())


@pytest.fixture(scope="module")
def pytorch() -> dict:
    """A small population of PyTorch's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pytorch = statistics(tutorial_numbers.pytorch_networks(seed=0, number=500))
    torch.set_num_threads(threads)
    return pytorch


@pytest.fixture(scope="module")
def live(pytorch) -> dict:
    """One of ours, today's code, beside it."""
    return compare(statistics(tutorial_numbers.our_networks(seed=0, number=1000)), pytorch)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_tutorials_number_is_ordinary_and_our_networks_are_pytorchs(live, statistic):
    assert is_ordinary(live[statistic])
    assert live[statistic]["p"] > 1e-3  # LeCun-normal kernels or zero biases: below 1e-40


@pytest.mark.parametrize("statistic", STATISTICS)
def test_so_it_is_with_the_whole_populations(written, statistic):
    assert written["ours"] >= 10_000
    row = written["comparisons"]["ours"][statistic]
    assert is_ordinary(row)
    assert 0.005 <= row["below"] <= 0.995
    assert row["p"] > 1e-3


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_initialisation_is_told_apart_by_the_tutorials_own_numbers(written, wrong):
    rows = written["comparisons"][wrong]
    assert not is_ordinary(rows["output, standard deviation"])
    assert rows["output, standard deviation"]["p"] < 1e-40


def test_zero_biases_are_told_apart_by_todays_code(pytorch):
    zeros = WRONG["zero biases"]
    networks = tutorial_numbers.our_networks(seed=1, number=2000, initialise=zeros)
    row = compare(statistics(networks), pytorch)["output, standard deviation"]
    assert not is_ordinary(row)
    assert row["p"] < 1e-40
    assert row["distance"] > 0.7  # the whole populations': 0.80


def test_the_loss_alone_tells_zero_biases_from_nothing(written):
    """What the table says about the limits of the method."""
    assert is_ordinary(written["comparisons"]["zero biases"]["loss"])


def test_the_statistics_are_those_of_the_printed_numbers():
    values = {name: float(value[0]) for name, value in statistics(TUTORIAL).items()}
    assert values["loss"] == 0.6524
    assert values["output, largest absolute value"] == 0.1425
    assert values["output, mean"] == pytest.approx(np.mean(TUTORIAL["output"]))
    assert values["conv1.bias.grad, standard deviation"] == pytest.approx(
        torch.tensor(TUTORIAL["gradient"], dtype=torch.float64).std().item()
    )


def test_the_table_is_that_of_the_numbers_and_the_figure_is_there(written):
    text = path("tutorial_numbers.md").read_text()
    assert text.startswith(tutorial_numbers.table(written["comparisons"]))
    assert path("tutorial_numbers.png").read_bytes().startswith(b"\x89PNG")
