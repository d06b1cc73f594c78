"""Parameters to and from PyTorch.

PyTorch keeps convolution kernels as [out, in, height, width] and dense ones as [out, in], and its
`flatten` orders the 400 features channel-major; ours are HWIO, [in, out] and channel-minor. Only
this module knows.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

_CONVS = ("conv1", "conv2")
_DENSE = ("fc1", "fc2", "fc3")
_WEIGHTS = {
    "conv1": (6, 1, 5, 5),
    "conv2": (16, 6, 5, 5),
    "fc1": (120, 400),
    "fc2": (84, 120),
    "fc3": (10, 84),
}
_SHAPES = {
    **{f"{name}.weight": shape for name, shape in _WEIGHTS.items()},
    **{f"{name}.bias": shape[:1] for name, shape in _WEIGHTS.items()},
}


def to_state_dict(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of the tutorial's `Net`, as NumPy arrays: `conv1.weight` [6, 1, 5, 5], ...

    >>> from lenet_jax.model import LeNet
    >>> params = LeNet().init(jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32))["params"]
    >>> to_state_dict(params)["conv1.weight"].shape
    (6, 1, 5, 5)
    """
    params = jax.tree.map(np.asarray, dict(params))
    features = params["conv2"]["kernel"].shape[-1]
    state = {}
    for name in _CONVS:
        state[f"{name}.weight"] = params[name]["kernel"].transpose(3, 2, 0, 1)
    for name in _DENSE:
        state[f"{name}.weight"] = params[name]["kernel"].T
    fc1 = state["fc1.weight"]  # [120, 400], the 400 as 5 x 5 x 16
    state["fc1.weight"] = (
        fc1.reshape(len(fc1), 5, 5, features).transpose(0, 3, 1, 2).reshape(fc1.shape)
    )
    for name in _CONVS + _DENSE:
        state[f"{name}.bias"] = params[name]["bias"]
    return {key: state[key].copy() for key in sorted(state)}  # contiguous, and torch may write


def from_state_dict(state: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of `to_state_dict`; values may be anything `np.asarray` takes, tensors too.

    Raises:
      ValueError: an array is missing, left over, or of another shape than LeNet's.
    """
    state = {key: np.asarray(value) for key, value in state.items()}
    missing, unknown = sorted(_SHAPES.keys() - state.keys()), sorted(state.keys() - _SHAPES.keys())
    if missing or unknown:
        raise ValueError(
            f"not the state dict of the tutorial's network: missing {missing}, unknown {unknown}"
        )
    for key, shape in _SHAPES.items():
        if state[key].shape != shape:
            raise ValueError(f"{key} has shape {state[key].shape}, the tutorial's network {shape}")
    params = {}
    for name in _CONVS:
        kernel = state[f"{name}.weight"].transpose(2, 3, 1, 0)
        params[name] = {"kernel": kernel, "bias": state[f"{name}.bias"]}
    for name in _DENSE:
        params[name] = {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}
    fc1 = state["fc1.weight"]  # [120, 400], the 400 as 16 x 5 x 5
    params["fc1"]["kernel"] = (
        fc1.reshape(len(fc1), -1, 5, 5).transpose(2, 3, 1, 0).reshape(fc1.T.shape)
    )
    # Copies: a tensor's array is its memory, which torch's optimizers write over.
    return jax.tree.map(lambda leaf: np.array(leaf, order="C"), params)
