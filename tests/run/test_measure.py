"""What a run is measured with; test_evaluate.py judges the numbers of a command from outside."""

import dataclasses

import jax
import numpy as np
import pytest

from lenet_jax import LeNet, data
from lenet_jax.core import losses
from lenet_jax.run import measure, trained

RESULT = {"accuracy": 0.98765, "loss": 0.25, "loss_name": "mse", "calibration_error": 0.0123}


def test_the_logits_are_the_plain_networks_with_the_runs_normalization(tiny_run):
    run, images = trained.load(tiny_run), data.load("digits").test.images[:50]
    pixels = (images.astype(np.float32) / 255 - run.config["data"]["mean"]) / (
        run.config["data"]["std"]
    )
    wanted = LeNet().apply({"params": run.params}, pixels.astype(np.float32))
    logits = measure.predict_logits(run, images)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_the_runs_data_that_are_gone_are_named_as_the_runs(tiny_run, tmp_path):
    run = trained.load(tiny_run)
    settings = run.config["settings"] | {"data_dir": str(tmp_path / "gone")}
    run = dataclasses.replace(run, config=run.config | {"settings": settings})
    with pytest.raises(ValueError, match="No such file") as caught:
        measure.load_data(run)
    assert str(caught.value).startswith(f"{tmp_path / 'gone'}, where the run had its data: cannot")
    with pytest.raises(ValueError, match=f"^--data_dir={tmp_path}/mine: cannot be read"):
        measure.load_data(run, data_dir=f"{tmp_path}/mine")


def test_by_default_the_data_are_the_runs_own(tiny_run, monkeypatch):
    run, asked, load = trained.load(tiny_run), [], data.load

    def look(name, data_dir, log):
        asked.append((name, data_dir))
        return load("digits")

    monkeypatch.setattr(data, "load", look)
    assert measure.load_data(run).name == "digits"
    measure.load_data(run, "digits", "elsewhere")
    measure.load_data(run, "kmnist")
    assert asked == [("digits", None), ("digits", "elsewhere"), ("kmnist", None)]


def test_only_images_of_the_same_name_are_compared_with_the_runs(tiny_run):
    run, digits = trained.load(tiny_run), data.load("digits")
    other = dataclasses.replace(digits, test=digits.train)
    of_a_file = {name: run.config["data"][name] for name in run.config["data"] if name != "sha256"}
    file = dataclasses.replace(run, config=run.config | {"data": of_a_file})
    assert measure._data_note(run, digits) == ""
    assert measure._data_note(run, other).startswith("note: these images differ from the run's own")
    assert measure._data_note(run, dataclasses.replace(other, name="kmnist")) == ""
    assert measure._data_note(file, other) == ""


def test_the_metrics_are_numpys():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 10)).astype(np.float32), rng.integers(0, 9, 200)
    found = measure.measure_logits(logits, labels.astype(np.int32), losses.cross_entropy)
    predicted = logits.argmax(1)
    assert found["accuracy"] == pytest.approx(np.mean(predicted == labels))
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    likelihood = -np.mean(log_probs[np.arange(200), labels])
    assert found["negative_log_likelihood"] == pytest.approx(likelihood, rel=1e-5)
    assert found["loss"] == pytest.approx(likelihood, rel=1e-5)
    for label in range(9):
        hits = np.sum((predicted == label) & (labels == label))
        assert found["precision"][label] == pytest.approx(hits / np.sum(predicted == label))
        assert found["recall"][label] == pytest.approx(hits / np.sum(labels == label))
    assert np.isnan(found["recall"][9])
    assert found["confusion_matrix"].sum() == found["reliability"]["count"].sum() == 200
    confidence = np.exp(log_probs).max(1)
    assert np.nansum(
        found["reliability"]["count"] * np.nan_to_num(found["reliability"]["confidence"])
    ) == pytest.approx(confidence.sum(), rel=1e-5)


def test_the_summary_has_the_likelihood_unless_the_loss_is_it():
    line = measure.summary_line(RESULT | {"negative_log_likelihood": 0.5})
    assert line == (
        "accuracy 98.77%, loss 0.2500 (mse), negative log-likelihood 0.5000, "
        "calibration error 1.23%"
    )
    assert "likelihood" not in measure.summary_line(RESULT | {"loss_name": "cross_entropy"})


def test_nan_has_no_place_in_json():
    plain = jax.tree.map(measure._plain, {"a": np.array([[1.0, np.nan]]), "b": np.int32(3)})
    assert plain == {"a": [[1.0, None]], "b": 3}
