"""Metrics of logits, probabilities and predictions; under `jax.vmap`, of many networks at once.

B is the batch, C the number of classes, M the number of bins of a calibration.
"""

import jax
import jax.numpy as jnp


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The fraction of examples whose largest logit is the label's: a float32 scalar.

    Args:
      logits: [B, C].
      labels: classes [B], or one-hot or soft labels [B, C], whose largest entry is the class.

    >>> float(accuracy(jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.array([0, 0])))
    0.5
    """
    if labels.ndim == logits.ndim:
        labels = jnp.argmax(labels, axis=-1)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)


def confusion_matrix(predictions: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Counts of each pair of true (row) and predicted (column) class: int32 [C, C].

    Equals `sklearn.metrics.confusion_matrix`. The matrices of two batches add up to the matrix of
    both together.

    >>> confusion_matrix(jnp.array([0, 1, 1]), jnp.array([0, 0, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return jnp.zeros((num_classes, num_classes), jnp.int32).at[labels, predictions].add(1)


def precision_recall(confusion: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Precision [C] and recall [C] of a confusion matrix [C, C].

    The precision of a class that was never predicted is NaN, and so is the recall of a class that
    never occurs.

    >>> [share.tolist() for share in precision_recall(jnp.array([[3, 1], [0, 2]]))]
    [[1.0, 0.6666666865348816], [0.75, 1.0]]
    """
    correct = jnp.diagonal(confusion)
    return correct / confusion.sum(axis=0), correct / confusion.sum(axis=1)


def reliability(
    probabilities: jax.Array, labels: jax.Array, bins: int = 15
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Accuracy by confidence, an example's largest probability: the data of a reliability diagram.

    Bin m of M holds the confidences in (m/M, (m+1)/M], as in Guo et al., "On Calibration of Modern
    Neural Networks" (2017), section 2.

    For probabilities [B, C] and labels [B], it returns the number of examples (int32), their mean
    confidence and their accuracy, [M] each; all three are 0 in an empty bin.

    >>> [part.tolist() for part in reliability(jnp.array([[0.25, 0.75]]), jnp.array([1]), bins=2)]
    [[0, 1], [0.0, 0.75], [0.0, 1.0]]
    """
    confidence = jnp.max(probabilities, axis=-1)  # [B]
    correct = jnp.argmax(probabilities, axis=-1) == labels  # [B]
    # Rounding can leave a probability just above 1.
    place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    inside = place[:, None] == jnp.arange(bins)[None, :]  # [B, M]
    count = inside.sum(axis=0)
    divisor = jnp.maximum(count, 1)
    mean_confidence = jnp.where(inside, confidence[:, None], 0).sum(axis=0) / divisor
    return count, mean_confidence, (inside & correct[:, None]).sum(axis=0) / divisor


def calibration_error(probabilities: jax.Array, labels: jax.Array, bins: int = 15) -> jax.Array:
    """The expected calibration error of Guo et al. (2017), equation 3: a scalar, 0 is best.

    The mean distance between confidence and accuracy over the bins of `reliability`, weighted by
    their numbers of examples.

    >>> float(calibration_error(jnp.array([[0.25, 0.75]]), jnp.array([0])))
    0.75
    """
    count, confidence, correct = reliability(probabilities, labels, bins)
    return jnp.sum(count * jnp.abs(correct - confidence)) / labels.shape[0]
