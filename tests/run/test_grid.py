import dataclasses
import json

import numpy as np
import pytest
from tqdm import tqdm

from lenet_jax import data
from lenet_jax.core import population
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import DEFAULT_LEARNING_RATE
from lenet_jax.core.split import take
from lenet_jax.run import folder, grid
from lenet_jax.viz import figures

SMALL = {"optimizers": "sgd,adam", "learning_rates": "1e-3,1e20", "seeds": 2, "epochs": 1}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def swept(tmp_path_factory, digits):
    path = tmp_path_factory.mktemp("sweep")
    settings = grid.resolve(grid.SweepSettings(**SMALL, slice_size=4), digits)
    return path, settings, grid.run(settings, digits, path)


def test_the_grid_is_every_rate_with_every_seed_in_slices_of_one_optimizer():
    settings = grid.SweepSettings(optimizers="sgd,adam", learning_rates="0.1,0.2", seeds=3)
    slices = grid.plan(settings)
    assert [(part.optimizer, len(part.cells)) for part in slices] == [("sgd", 6), ("adam", 6)]
    assert slices[0].cells == tuple((rate, seed) for rate in (0.1, 0.2) for seed in range(3))
    assert max(len(part.cells) for part in grid.plan(grid.SweepSettings())) <= 8


def test_a_slice_that_is_shorter_is_filled_up_which_its_records_and_updates_do_not_show(
    digits, monkeypatch
):
    sizes, train = [], population.train

    def counted(members, *args, **settings):
        sizes.append(len(members.seed))
        return train(members, *args, **settings)

    monkeypatch.setattr(population, "train", counted)
    flags = {"optimizers": "sgd", "learning_rates": "0.1", "seeds": 3, "epochs": 1}
    records, updates = {}, {}
    for slice_size in (2, 1):
        settings = grid.resolve(grid.SweepSettings(**flags, slice_size=slice_size), digits)
        shared, new = grid.Shared(settings, LeNet(), digits.train), []
        records[slice_size] = grid.train_slice(shared, grid.plan(settings)[-1], new.append)
        updates[slice_size] = sum(new)
    assert sizes == [2, 1]  # the size of the slices before it, so that nothing compiles again
    assert [record["seed"] for record in records[2]] == [2]
    assert records[2] == records[1]
    assert updates == {2: 1198 // 64, 1: 1198 // 64}


def test_the_default_grid_is_around_the_optimizers_own_rate():
    default = DEFAULT_LEARNING_RATE["adam"]
    rates = [default / 4, default / 2, default, 2 * default, 4 * default]
    assert grid.SweepSettings().rates("adam") == pytest.approx(rates)


def test_epochs_are_the_data_sets_unless_they_are_given(digits):
    assert grid.resolve(grid.SweepSettings(), digits).epochs == 30
    assert grid.resolve(grid.SweepSettings(epochs=2), digits).epochs == 2


def test_the_bar_counts_networks_by_their_updates(digits, tmp_path, monkeypatch):
    shown = []

    def train_slices(shared, slices, log_updates):
        for part in slices:
            for _ in range(3):  # epochs, of 18 steps each
                log_updates(18 * len(part.cells))
            yield part, [{"cell": cell} for cell in part.cells], ""

    class Bar(tqdm):
        def update(self, n):
            shown.append(n)

    monkeypatch.setattr("tqdm.tqdm", Bar)
    settings = grid.resolve(grid.SweepSettings(**SMALL | {"epochs": 3}), digits)
    grid.run(settings, digits, tmp_path, lambda line: None, train_slices)
    assert sum(shown) == pytest.approx(8)  # 2 optimizers, 2 rates, 2 seeds


def test_a_rate_is_tried_once_and_two_that_are_nearly_the_same_have_files_of_their_own():
    settings = grid.SweepSettings(
        optimizers="sgd", learning_rates="0.1,0.10000001,0.1", seeds=2, slice_size=2
    )
    assert settings.rates("sgd") == [0.1, 0.10000001]
    assert len({part.name for part in grid.plan(settings)}) == 2


@pytest.mark.parametrize("count", [1437, 60_000])
def test_the_held_out_sixth_has_all_classes_though_the_images_are_sorted_by_them(count):
    held_out, rest = grid.split_indices(count)
    assert len(held_out) == count // 6
    assert sorted([*held_out, *rest]) == list(range(count))
    classes = np.bincount(np.arange(count)[held_out] * 10 // count, minlength=10)
    assert classes.min() > 0.5 * len(held_out) / 10
    np.testing.assert_array_equal(held_out, grid.split_indices(count)[0])


def test_a_sweep_that_can_hold_nothing_out_is_refused_before_it_trains(digits):
    five = dataclasses.replace(digits, train=take(digits.train, slice(5)))
    with pytest.raises(ValueError, match=r"^--dataset=digits: a sweep holds out 1/6 .* only 5$"):
        grid.resolve(grid.SweepSettings(batch_size=2), five)
    six = dataclasses.replace(digits, train=take(digits.train, slice(6)))
    assert grid.resolve(grid.SweepSettings(batch_size=5), six).batch_size == 5
    with pytest.raises(ValueError, match=r"^--batch_size=6: digits has only 5 images to train on$"):
        grid.resolve(grid.SweepSettings(batch_size=6), six)


def test_a_network_is_a_record_and_one_that_diverged_says_so(swept):
    _, settings, records = swept
    assert [(r["optimizer"], r["learning_rate"], r["seed"]) for r in records] == [
        (part.optimizer, *cell) for part in grid.plan(settings) for cell in part.cells
    ]
    # A step of 1e20 leaves no finite number in sgd's network.
    for record in records:
        if (record["optimizer"], record["learning_rate"]) == ("sgd", 1e20):
            assert not record["finite"]
    healthy = [record for record in records if record["learning_rate"] == 1e-3]
    assert all(record["finite"] and np.isfinite(record["loss_curve"]).all() for record in healthy)
    losses = [loss for record in healthy for loss in record["loss_curve"]]
    assert losses == [round(loss, 5) for loss in losses] != [round(loss, 4) for loss in losses]


def test_it_goes_on_where_it_was_stopped(swept, digits, monkeypatch):
    path, settings, records = swept
    trained, train_slice = [], grid.train_slice

    def counted(shared, part, log_updates):
        trained.append(part.optimizer)
        return train_slice(shared, part, log_updates)

    monkeypatch.setattr(grid, "train_slice", counted)
    assert grid.run(settings, digits, path) == records
    assert trained == []
    lost = grid.plan(settings)[1]
    (path / "slices" / f"{lost.name}.json").unlink()
    again = grid.run(settings, digits, path)
    assert trained == [lost.optimizer]
    assert json.dumps(again) == json.dumps(records)


def test_a_sweep_that_goes_on_keeps_its_config_and_says_what_has_changed(
    swept, digits, monkeypatch
):
    path, settings, _ = swept
    began = folder.read_config(path)
    now = began | {"machine": began["machine"] | {"cores": 1000}}
    monkeypatch.setattr(folder, "make_config", lambda *_: now)
    lines = []
    grid.run(settings, digits, path, lines.append)
    assert folder.read_config(path) == began
    assert [line for line in lines if "since the sweep began" in line and "to 1000" in line]


def test_another_sweep_in_its_folder_is_refused_by_name(swept, digits):
    path, _, _ = swept
    other = grid.resolve(grid.SweepSettings(**SMALL | {"seeds": 3}), digits)
    with pytest.raises(ValueError, match="--seeds is 3 here but the run in"):
        grid.run(other, digits, path)


def test_slices_of_a_sweep_without_its_config_are_not_taken_for_this_ones(digits, tmp_path):
    settings = grid.resolve(grid.SweepSettings(**SMALL), digits)
    (tmp_path / "slices").mkdir()
    for part in grid.plan(settings):
        (tmp_path / "slices" / f"{part.name}.json").write_text("[]")
    with pytest.raises(ValueError, match=r"whose config\.json is gone; use another$"):
        grid.run(settings, digits, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["slices"]


def test_the_summary_is_numpys_mean_and_standard_deviation_and_the_best_of_each_optimizer():
    record = lambda optimizer, rate, accuracy, finite=True: {
        "optimizer": optimizer,
        "learning_rate": rate,
        "accuracy": accuracy,
        "finite": finite,
        "loss_curve": [1.0, 0.5],
    }
    records = [
        *(record("sgd", 0.1, a) for a in (0.90, 0.92)),
        *(record("sgd", 0.2, a) for a in (0.95, 0.97)),
        *(record("sgd", 0.4, a, a != 0.1) for a in (0.99, 0.1)),
        record("adam", 0.1, 0.5),
    ]
    rows = grid.summarise(records)
    assert [row["best"] for row in rows] == [False, True, False, True]
    assert [row["at_edge"] for row in rows] == [True, False, True, False]  # adam has one rate
    assert grid.standard_error(rows[0], 91) == pytest.approx(np.sqrt(0.0002 / 2 + 0.09 * 0.91 / 91))
    assert rows[0]["mean"] == pytest.approx(0.91)
    assert rows[0]["sd"] == pytest.approx(np.std([0.9, 0.92], ddof=1))
    assert rows[2]["mean"] is None
    (lost,) = grid.summarise([record("sgd", 0.1, 0.0)])
    assert lost["best"]
    assert rows[1]["sd"] == pytest.approx(0.0141, abs=1e-4)
    assert (rows[2]["diverged"], rows[2]["seeds"]) == (1, 2)
    error, loss = figures.sweep(rows, records).axes
    assert len(error.containers) == 2
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [1.0, 0.5])
