import dataclasses
import json
import math

import pytest

from lenet_jax.run.grid import SweepSettings
from lenet_jax.run.settings import Settings, diff_settings


def test_the_defaults_are_valid():
    settings = Settings()
    assert settings.optimizer == "adam"
    assert settings.dataset is None


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("optimizer", "adagrad", "sgd, nesterov, adam"),
        ("dataset", "svhn", "mnist, .*cifar10, digits"),
        ("schedule", "linear", "constant, cosine, onecycle"),
        ("loss", "nll", "cross_entropy, mse"),
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", -1.0, "above 0"),
        ("learning_rate", math.nan, "above 0"),
        ("learning_rate", math.inf, "above 0"),
        ("momentum", 1.0, "below 1"),
        ("momentum", -0.1, "below 1"),
        ("weight_decay", -0.1, "at least 0"),
        ("weight_decay", math.nan, "at least 0"),
        ("clip_norm", -0.1, "at least 0"),
        ("label_smoothing", 1.0, "below 1"),
        ("ema", 1.0, "below 1"),
        ("ema", -0.1, "from 0"),
        ("batch_size", 0, "at least 1"),
        ("epochs", 0, "at least 1"),
        ("epochs", -1, "at least 1"),
        ("keep", 0, "at least 1"),
        ("checkpoint_every_steps", 0, "at least 1"),
        ("seed", -1, "from 0"),
        ("seed", 2**64, "from 0"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_flag(name, value, hint):
    with pytest.raises(ValueError, match=rf"^--{name}={value}: .*{hint}"):
        Settings(**{name: value})


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_setting_its_optimizer_does_not_have_is_refused(optimizer):
    with pytest.raises(ValueError, match=rf"^--momentum=0.9: {optimizer} has no momentum"):
        Settings(optimizer=optimizer, momentum=0.9)
    assert Settings(optimizer="rmsprop", momentum=0.9).momentum == 0.9


def test_other_optimizers_may_have_no_momentum():
    assert Settings(optimizer="sgd", momentum=0.0).momentum == 0
    assert Settings(optimizer="nesterov").momentum is None


def test_three_checkpoints_are_kept_and_a_sweep_trains_eight_networks_of_three_seeds_at_once():
    sweep = SweepSettings()
    assert (Settings().keep, sweep.slice_size, sweep.seeds) == (3, 8, 3)
    assert (SweepSettings(seeds=1).seeds, SweepSettings(seeds=10_000).seeds) == (1, 10_000)


def test_a_seed_is_of_32_bits():
    assert Settings(seed=2**32 - 1).seed == 2**32 - 1
    with pytest.raises(ValueError, match=r"^--seed=4294967296: must be from 0 to 4294967295"):
        Settings(seed=2**32)


def test_only_cross_entropy_is_smoothed():
    with pytest.raises(ValueError, match=r"^--label_smoothing=0.1: only cross_entropy has it"):
        Settings(loss="mse", label_smoothing=0.1)


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match=r"^--momentum=0.0: must be above 0 for nesterov"):
        Settings(optimizer="nesterov", momentum=0.0)


def test_settings_agree_with_themselves_after_a_trip_through_json():
    settings = Settings(learning_rate=0.1 + 0.2, dataset="digits", momentum=None)
    assert diff_settings(settings, json.loads(json.dumps(dataclasses.asdict(settings)))) == {}


def test_a_setting_that_affects_results_is_named_with_both_values():
    other = {"seed": 1, "learning_rate": 0.1, "workdir": "elsewhere", "unheard_of": 1}
    assert diff_settings(Settings(seed=2), other) == {"learning_rate": (None, 0.1), "seed": (2, 1)}


def test_clipping_affects_results_and_a_run_that_predates_it_did_not_clip():
    assert diff_settings(Settings(clip_norm=1.0), {}) == {"clip_norm": (1.0, 0.0)}
    assert diff_settings(Settings(), {}) == {}
