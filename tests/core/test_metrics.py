"""Judged by scikit-learn and by NumPy in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as judge

from lenet_jax.core import metrics

EPS = float(jnp.finfo(jnp.float32).eps)
# Each compiled as a whole, which takes a tenth of the time of its operations one by one.
accuracy = jax.jit(metrics.accuracy)
confusion_matrix = jax.jit(metrics.confusion_matrix, static_argnames="num_classes")
precision_recall = jax.jit(metrics.precision_recall)
reliability = jax.jit(metrics.reliability, static_argnames="bins")
calibration_error = jax.jit(metrics.calibration_error)
SIZES = [1, 7, 1000]


def drawn(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 [size, 10], rather sure and often right, and labels int64 [size]."""
    rng = np.random.default_rng(size)
    labels = rng.integers(0, 10, size)
    logits = 2 * rng.standard_normal((size, 10)) + 3 * np.eye(10)[labels]
    weights = np.exp(logits)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32), labels


def slow_reliability(probabilities, labels, bins):
    """The definition, bin by bin, in float64."""
    confidence, predicted = probabilities.astype(np.float64).max(1), probabilities.argmax(1)
    rows = []
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        right = predicted[inside] == labels[inside]
        rows.append(
            (inside.sum(), confidence[inside].mean(), right.mean()) if inside.any() else [0] * 3
        )
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("size", SIZES)
def test_accuracy_is_numpys(size):
    rng = np.random.default_rng(size)
    logits, labels = rng.standard_normal((size, 10)), rng.integers(0, 10, size)
    got = accuracy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    assert float(got) == pytest.approx((logits.argmax(1) == labels).mean(), rel=1e-6)
    assert got.dtype == jnp.float32


@pytest.mark.parametrize("size", SIZES)
def test_the_confusion_matrix_is_scikit_learns_and_adds_up(size):
    probabilities, labels = drawn(size)
    predicted = probabilities.argmax(1)
    expected = judge.confusion_matrix(labels, predicted, labels=range(10))
    whole = confusion_matrix(jnp.asarray(predicted), jnp.asarray(labels), 10)
    parts = [
        confusion_matrix(jnp.asarray(predicted[part]), jnp.asarray(labels[part]), 10)
        for part in (slice(0, size // 3), slice(size // 3, size))
    ]
    np.testing.assert_array_equal(whole, expected)
    np.testing.assert_array_equal(sum(parts), expected)
    assert whole.dtype == jnp.int32


@pytest.mark.parametrize("size", SIZES)
def test_precision_and_recall_are_scikit_learns_with_nan_for_nothing(size):
    probabilities, labels = drawn(size)
    predicted = probabilities.argmax(1)
    expected = judge.precision_recall_fscore_support(
        labels, predicted, labels=range(10), zero_division=np.nan
    )
    confusion = confusion_matrix(jnp.asarray(predicted), jnp.asarray(labels), 10)
    for got, share in zip(precision_recall(confusion), expected, strict=False):
        np.testing.assert_allclose(got, share, rtol=EPS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_reliability_is_its_definition(size, bins):
    probabilities, labels = drawn(size)
    got = reliability(jnp.asarray(probabilities), jnp.asarray(labels), bins)
    count, confidence, right = slow_reliability(probabilities, labels, bins)
    np.testing.assert_array_equal(got[0], count)
    np.testing.assert_allclose(got[1], confidence, rtol=32 * EPS)
    np.testing.assert_allclose(got[2], right, rtol=EPS)


@pytest.mark.parametrize("size", SIZES)
def test_the_calibration_error_is_the_papers(size):
    probabilities, labels = drawn(size)
    count, confidence, right = slow_reliability(probabilities, labels, 15)
    expected = np.sum(count / size * np.abs(right - confidence))
    got = calibration_error(jnp.asarray(probabilities), jnp.asarray(labels))
    assert float(got) == pytest.approx(expected, abs=32 * EPS)  # of terms of at most 1


def test_a_bins_upper_edge_belongs_to_it_and_a_rounded_1_to_the_last():
    above = np.nextafter(np.float32(1), np.float32(2))
    probabilities = np.array([[0.5, 0.5], [1.0, 0.0], [0.75, 0.25], [above, 0.0]], np.float32)
    count, _, right = reliability(jnp.asarray(probabilities), jnp.zeros(4, int), bins=4)
    assert count.tolist() == [0, 1, 1, 2]
    assert right.tolist() == [0, 1, 1, 1]


def test_all_measure_many_networks_at_once():
    cases = [drawn(size=200 + i) for i in range(3)]
    probabilities = jnp.stack([jnp.asarray(case[0][:200]) for case in cases])  # [3, 200, 10]
    labels = jnp.asarray(cases[0][1][:200])
    predicted = probabilities.argmax(-1)
    confusion = partial(confusion_matrix, num_classes=10)
    confusions = jax.vmap(confusion, (0, None))(predicted, labels)
    measures = {
        "confusion": (confusion, (predicted, labels), (0, None)),
        "precision": (precision_recall, (confusions,), (0,)),
        "reliability": (reliability, (probabilities, labels), (0, None)),
        "calibration": (calibration_error, (probabilities, labels), (0, None)),
    }
    for measure, args, axes in measures.values():
        together = jax.vmap(measure, axes)(*args)
        for i in range(3):
            alone = measure(args[0][i], *args[1:])
            jax.tree.map(
                lambda many, one, i=i: np.testing.assert_allclose(many[i], one, rtol=8 * EPS),
                together,
                alone,
            )
