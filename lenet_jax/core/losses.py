"""torch.nn's losses as pure functions, under PyTorch's names in snake case.

B is the batch, C the number of classes. Every loss is computed per element or per example first
and reduced last: `reduction` is "mean", "sum" or "none", with torch's meaning for each loss.

Shapes are validated on entry: targets have the shape of the predictions, or are integer class
labels [B] for predictions [B, C]. Regression losses and `bce_with_logits` turn such labels into
one-hot targets (the tutorial's MSE, for classification). A label outside 0..C-1 makes its loss NaN:
PyTorch raises, but a jitted function cannot, and any other value would hide the mistake.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import xlogy
from jax.typing import ArrayLike

Reduction = Literal["mean", "sum", "none"]


def mse(predictions: ArrayLike, targets: ArrayLike, *, reduction: Reduction = "mean") -> jax.Array:
    """Squared error: `torch.nn.MSELoss`.

    Predictions of any shape; targets of the same shape, or labels [B] for predictions [B, C].
    Returns a scalar, or the shape of the predictions if not reduced.

    Raises:
      ValueError: the shapes do not fit, or the name of the reduction is unknown.

    >>> float(mse(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])))
    2.0
    """
    predictions, targets = _aligned(predictions, targets)
    return _reduce(optax.squared_error(predictions, targets), reduction)


def l1(predictions: ArrayLike, targets: ArrayLike, *, reduction: Reduction = "mean") -> jax.Array:
    """Absolute error: `torch.nn.L1Loss`, with its gradient of 0 at 0 (where `jnp.abs` has 1).

    Shapes and errors are those of `mse`: predictions and targets [...], or labels [B].

    Raises:
      ValueError: as `mse`.

    >>> float(l1(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])))
    1.0
    >>> float(jax.grad(l1)(3.0, 3.0))
    0.0
    """
    predictions, targets = _aligned(predictions, targets)
    errors = predictions - targets
    return _reduce(errors * jax.lax.stop_gradient(jnp.sign(errors)), reduction)


def smooth_l1(
    predictions: ArrayLike, targets: ArrayLike, *, beta: float = 1.0, reduction: Reduction = "mean"
) -> jax.Array:
    """Squared error / 2 beta within beta of the target, L1 beyond: `torch.nn.SmoothL1Loss`.

    Shapes are those of `mse`: predictions and targets [...], or labels [B].

    Raises:
      ValueError: as `mse`, or beta is negative.

    >>> float(smooth_l1(jnp.array([0.5, 3.0]), jnp.zeros(2), reduction="sum"))
    2.625
    """
    if not beta >= 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    if beta == 0:
        return l1(predictions, targets, reduction=reduction)
    predictions, targets = _aligned(predictions, targets)
    return _reduce(optax.huber_loss(predictions, targets, delta=beta) / beta, reduction)


def huber(
    predictions: ArrayLike, targets: ArrayLike, *, delta: float = 1.0, reduction: Reduction = "mean"
) -> jax.Array:
    """Half the squared error within delta of the target, linear beyond: `torch.nn.HuberLoss`.

    Shapes are those of `mse`: predictions and targets [...], or labels [B].

    Raises:
      ValueError: as `mse`, or delta is not above 0.

    >>> float(huber(jnp.array([0.5, 3.0]), jnp.zeros(2), delta=2.0, reduction="sum"))
    4.125
    """
    if not delta > 0:
        raise ValueError(f"delta must be above 0, got {delta}")
    predictions, targets = _aligned(predictions, targets)
    return _reduce(optax.huber_loss(predictions, targets, delta=delta), reduction)


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: ArrayLike = 0.0,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Softmax and negative log-likelihood of the targets: `torch.nn.CrossEntropyLoss`.

    Args:
      logits: [B, C].
      targets: class labels [B], or one-hot or soft targets [B, C].
      weight: [C], one per class. As in torch, the mean divides by the sum of the labels' weights,
        or by B if the targets are soft.
      ignore_index: examples with this label contribute nothing.
      label_smoothing: in 0..1; may be traced, so that a population can sweep it.

    Returns:
      A scalar, or [B] if not reduced. The mean over no examples is NaN, as in torch.

    Raises:
      ValueError: the shapes do not fit, an option is outside its range, or an
        `ignore_index` from 0 is given with soft targets.

    >>> round(float(cross_entropy(jnp.zeros((2, 10)), jnp.array([3, 7]))), 4)
    2.3026
    """
    if isinstance(label_smoothing, int | float) and not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
    labels_given = _are_labels(logits, targets)
    if labels_given:
        logits, targets, kept = _kept(logits, targets, ignore_index)
    elif ignore_index >= 0:
        raise ValueError(f"ignore_index {ignore_index} needs integer class labels [B] as targets")
    else:
        (logits, targets), kept = _same_shape(logits, targets), jnp.array(True)
    weight = _class_weights(weight, logits)  # [1, C]
    smooth = jnp.where(kept, optax.smooth_labels(targets, label_smoothing), 0)  # [B, C]
    # The safe form defines 0 * log 0 as 0: a logit of -inf rules a class out, as in torch.
    values = optax.losses.safe_softmax_cross_entropy(logits, weight * smooth)  # [B]
    return _reduce(values, reduction, jnp.sum(weight * targets) if labels_given else None)


def nll(
    log_probs: ArrayLike,
    labels: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Negative log-likelihood of class labels [B] under log_probs [B, C]: `torch.nn.NLLLoss`.

    `weight` [C] and `ignore_index` mean the same as in `cross_entropy`, and so does the result: a
    scalar, or [B] if not reduced.

    Raises:
      ValueError: the shapes do not fit, or the name of the reduction is unknown.

    >>> round(float(nll(jnp.log(jnp.array([[0.5, 0.25, 0.25]])), jnp.array([1]))), 4)
    1.3863
    """
    _require_labels(log_probs, labels)
    log_probs, targets, _ = _kept(log_probs, labels, ignore_index)
    weighted = _class_weights(weight, log_probs) * targets  # [B, C]
    return _reduce(-_dot(weighted, log_probs), reduction, jnp.sum(weighted))


def bce_with_logits(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Sigmoid and binary cross-entropy per element: `torch.nn.BCEWithLogitsLoss`.

    Logits and targets are [...], or [B, C] and labels [B]. `weight` scales each element,
    `pos_weight` its positive part. Both broadcast to the shape of the logits. The mean divides by
    the number of elements, not by the weights. Returns a scalar, or the logits' shape if not
    reduced.

    Raises:
      ValueError: as `mse`, or a weight does not broadcast.

    >>> round(float(bce_with_logits(jnp.zeros((2, 3)), jnp.array([0, 2]))), 4)
    0.6931
    """
    logits, targets = _aligned(logits, targets)
    if pos_weight is None:
        values = optax.sigmoid_binary_cross_entropy(logits, targets)
    else:
        positive = _broadcast("pos_weight", pos_weight, logits) * targets
        negative = 1 - targets
        values = -positive * jax.nn.log_sigmoid(logits) - negative * jax.nn.log_sigmoid(-logits)
    if weight is not None:
        values = values * _broadcast("weight", weight, logits)
    return _reduce(values, reduction)


def kl_div(
    log_probs: ArrayLike,
    targets: ArrayLike,
    *,
    log_target: bool = False,
    reduction: Literal["mean", "sum", "none", "batchmean"] = "mean",
) -> jax.Array:
    """Kullback-Leibler divergence of log_probs from targets, per element: `torch.nn.KLDivLoss`.

    The targets are probabilities [B, ...], like log_probs, or with `log_target` their logarithms.
    "mean" divides by the number of elements, as torch does, "batchmean" by the batch size, as the
    definition does. Returns a scalar, or the shape of log_probs if not reduced.

    Raises:
      ValueError: the shapes differ, or the name of the reduction is unknown.

    >>> half = jnp.full((1, 2), 0.5)
    >>> float(kl_div(jnp.log(half), half, reduction="batchmean"))
    0.0
    """
    log_probs, targets = _same_shape(log_probs, targets)
    if log_target:
        values = jnp.exp(targets) * (targets - log_probs)
    else:
        values = xlogy(targets, targets) - targets * log_probs
    if reduction == "batchmean":
        return jnp.sum(values) / values.shape[0]
    return _reduce(values, reduction, names=("mean", "sum", "batchmean", "none"))


def multi_margin(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    p: int = 1,
    margin: float = 1.0,
    weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Mean over classes of max(0, margin - score of the label + score)^p: `nn.MultiMarginLoss`.

    Scores are [B, C], labels [B], p is 1 or 2. `weight` [C] scales each example by its label's
    weight, and the mean divides by B. Returns a scalar, or [B] if not reduced.

    Raises:
      ValueError: the shapes do not fit, p is neither 1 nor 2, or the name of the reduction is
        unknown.

    >>> float(multi_margin(jnp.array([[3.0, 2.5, 0.0, 0.0]]), jnp.array([0])))
    0.125
    """
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}")
    _require_labels(scores, labels)
    scores, targets = _aligned(scores, labels)
    weighted = _class_weights(weight, scores) * targets  # [B, C]
    lead = _dot(targets, scores)[:, None] - scores  # [B, C]
    # relu, because at the kink its gradient is 0, as torch's is; jnp.maximum's is 1/2.
    missing = jnp.where(targets == 1, 0, jax.nn.relu(margin - lead) ** p)
    return _reduce(jnp.sum(weighted, axis=1) * jnp.mean(missing, axis=1), reduction)


# The losses that serve as `loss_fn(logits [B, C], labels [B])` without further options.
CLASSIFICATION: dict[str, Callable[..., jax.Array]] = {
    loss.__name__: loss
    for loss in (cross_entropy, mse, l1, smooth_l1, huber, bce_with_logits, multi_margin)
}


def _reduce(
    values: jax.Array,
    reduction: str,
    weight_sum: jax.Array | None = None,
    names: tuple[str, ...] = ("mean", "sum", "none"),
) -> jax.Array:
    """`values` reduced; the mean divides by `weight_sum` if it is given."""
    if reduction == "mean" and weight_sum is not None:
        empty = weight_sum == 0  # as in torch, the mean is NaN then, and its gradient 0
        return jnp.where(empty, jnp.nan, jnp.sum(values) / jnp.where(empty, 1, weight_sum))
    if reduction == "mean":
        return jnp.mean(values)
    if reduction == "sum":
        return jnp.sum(values)
    if reduction == "none":
        return values
    raise ValueError(f"reduction={reduction!r}: choose one of {', '.join(names)}")


def _same_shape(predictions: ArrayLike, targets: ArrayLike) -> tuple[jax.Array, jax.Array]:
    predictions, targets = jnp.asarray(predictions), jnp.asarray(targets)
    if not jnp.issubdtype(predictions.dtype, jnp.floating):
        raise ValueError(f"predictions must be floating point, got {predictions.dtype}")
    if targets.shape != predictions.shape:
        raise ValueError(
            f"targets of shape {targets.shape} and type {targets.dtype} do not fit predictions of "
            f"shape {predictions.shape}: give the same shape, or (if the loss takes them) "
            "integer class labels [B] for predictions [B, C], C at least 2"
        )
    return predictions, targets.astype(predictions.dtype)


def _are_labels(predictions: ArrayLike, targets: ArrayLike) -> bool:
    # [B, 1] with [B] is a regression with a forgotten axis, not a classification into one class.
    shape = jnp.shape(predictions)
    fits = len(shape) == 2 and shape[1] >= 2 and jnp.shape(targets) == shape[:1]
    return fits and jnp.issubdtype(jnp.result_type(targets), jnp.integer)


def _aligned(predictions: ArrayLike, targets: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Both with the shape and type of the predictions: labels [B] become one-hot [B, C]."""
    if not _are_labels(predictions, targets):
        return _same_shape(predictions, targets)
    labels, classes = jnp.asarray(targets, jnp.int32)[:, None], jnp.shape(predictions)[1]
    one_hot = (labels == jnp.arange(classes)[None, :]).astype(jnp.result_type(predictions))
    is_class = (labels >= 0) & (labels < classes)  # [B, 1]
    return _same_shape(predictions, jnp.where(is_class, one_hot, jnp.nan))


def _require_labels(predictions: ArrayLike, labels: ArrayLike) -> None:
    if not _are_labels(predictions, labels):
        got = f"{jnp.shape(predictions)} and {jnp.shape(labels)} ({jnp.result_type(labels)})"
        wanted = "predictions [B, C], C at least 2, and integer class labels [B]"
        raise ValueError(f"expected {wanted}, got shapes {got}")


def _kept(
    predictions: ArrayLike, labels: ArrayLike, ignore_index: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Predictions, one-hot targets [B, C] with zeros in ignored rows, and the kept rows [B, 1]."""
    labels = jnp.asarray(labels, jnp.int32)
    kept = labels != ignore_index  # [B]
    predictions, targets = _aligned(predictions, jnp.where(kept, labels, 0))
    return predictions, jnp.where(kept[:, None], targets, 0), kept[:, None]


def _class_weights(weight: ArrayLike | None, predictions: jax.Array) -> jax.Array:
    """Weights [1, C], which default to 1."""
    if predictions.ndim != 2:  # torch has the classes on axis 1, optax on the last
        raise ValueError(f"predictions must be [B, C], got shape {predictions.shape}")
    classes = predictions.shape[1]
    if weight is None:
        return jnp.ones((1, classes), predictions.dtype)
    weight = jnp.asarray(weight, predictions.dtype)
    if weight.shape != (classes,):
        raise ValueError(f"weight must be [{classes}], one per class, got shape {weight.shape}")
    return weight[None, :]


def _broadcast(name: str, value: ArrayLike, like: jax.Array) -> jax.Array:
    value = jnp.asarray(value, like.dtype)
    try:
        return jnp.broadcast_to(value, like.shape)
    except ValueError:
        message = f"{name} of shape {value.shape} does not broadcast to {like.shape}"
        raise ValueError(message) from None


def _dot(weights: jax.Array, values: jax.Array) -> jax.Array:
    """The dot product of each row, [B, C] . [B, C] -> [B], with 0 * inf = 0."""
    return jnp.sum(jnp.where(weights == 0, 0, weights * values), axis=1)
