"""The losses and optimizers that parity.py compares with PyTorch's, each with its options."""

from typing import Any

import numpy as np

BATCH, STEPS, NETWORKS = 16, 50, 200
CLASS_WEIGHT = np.arange(1, 11) / 4
# name, targets (see `targets_of`), options by torch's names
LOSSES = [
    ("mse", "normal", {}),
    ("mse", "labels", {}),
    ("mse", "normal", {"reduction": "sum"}),
    ("l1", "normal", {}),
    ("l1", "labels", {}),
    ("smooth_l1", "normal", {}),
    ("smooth_l1", "normal", {"beta": 0.25}),
    ("smooth_l1", "normal", {"beta": 0.0}),
    ("huber", "normal", {}),
    ("huber", "labels", {"delta": 0.25}),
    ("cross_entropy", "labels", {}),
    ("cross_entropy", "labels", {"reduction": "sum"}),
    ("cross_entropy", "labels", {"label_smoothing": 0.1}),
    ("cross_entropy", "labels", {"weight": CLASS_WEIGHT}),
    ("cross_entropy", "labels", {"weight": CLASS_WEIGHT, "label_smoothing": 0.25}),
    ("cross_entropy", "labels", {"ignore_index": 4}),
    ("cross_entropy", "probabilities", {}),
    ("cross_entropy", "probabilities", {"weight": CLASS_WEIGHT, "label_smoothing": 0.25}),
    ("nll", "labels", {}),
    ("nll", "labels", {"weight": CLASS_WEIGHT, "ignore_index": 4}),
    ("bce_with_logits", "labels", {}),
    ("bce_with_logits", "probabilities", {}),
    ("bce_with_logits", "probabilities", {"pos_weight": CLASS_WEIGHT}),
    ("bce_with_logits", "probabilities", {"weight": CLASS_WEIGHT}),
    ("kl_div", "probabilities", {}),
    ("kl_div", "probabilities", {"reduction": "batchmean"}),
    ("kl_div", "log-probabilities", {"log_target": True}),
    ("multi_margin", "labels", {}),
    ("multi_margin", "labels", {"p": 2, "margin": 0.75}),
    ("multi_margin", "labels", {"weight": CLASS_WEIGHT}),
]

# name, learning rate, settings by torch's names
OPTIMIZERS = [
    ("sgd", 0.05, {}),
    ("sgd", 0.01, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    ("nesterov", 0.02, {}),
    ("adam", 1e-3, {}),
    ("adam", 1e-3, {"betas": (0.8, 0.95), "weight_decay": 0.01}),
    ("adamw", 1e-3, {}),
    ("rmsprop", 1e-3, {}),
    ("rmsprop", 1e-3, {"momentum": 0.9, "centered": True}),
]


def options_text(options: dict[str, Any]) -> str:
    shown = {
        key: "..." if isinstance(value, np.ndarray) else value for key, value in options.items()
    }
    return "".join(f", {key}={value}" for key, value in shown.items())


def loss_id(case: tuple) -> str:
    name, targets, options = case
    return f"{name}({targets}{options_text(options)})"


def optimizer_id(case: tuple) -> str:
    name, rate, settings = case
    return f"{name}({rate}{options_text(settings)})"


def targets_of(kind: str) -> np.ndarray:
    """Targets that float32 represents exactly, so that both precisions see the same ones."""
    rng = np.random.default_rng(3)
    if kind == "labels":
        return rng.integers(0, 10, BATCH)
    if kind == "normal":
        return np.float32(rng.standard_normal((BATCH, 10)))
    probabilities = rng.dirichlet(np.ones(10), BATCH)
    return np.float32(np.log(probabilities) if kind == "log-probabilities" else probabilities)
