"""Parameters to and from PyTorch: as arrays, and as the files in which state dicts are saved.

PyTorch stores convolution kernels as [out, in, height, width] and dense ones as [out, in], and its
`flatten` orders the 400 features channel-major; ours are HWIO, [in, out] and channel-minor. Only
this module knows.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lenet_jax.core.model import LeNet, model_for, sizes
from lenet_jax.files import expand_user

MAX_FILE_BYTES = 2**24  # a state dict of this network has 250,000
FACTS = ("mean", "std", "classes")  # in the metadata of a safetensors file of ours
WRAPPERS = ("model_state_dict", "state_dict", "model", "net")  # what people save a state dict in

_CONVS = ("conv1", "conv2")
_DENSE = ("fc1", "fc2", "fc3")
_NAMES = {f"{name}.{kind}" for name in _CONVS + _DENSE for kind in ("weight", "bias")}


def to_state_dict(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of the tutorial's `Net`, as NumPy arrays: `conv1.weight` [6, 1, 5, 5], ...

    Types that NumPy does not know by itself, such as bfloat16, become float32: torch refuses them.

    >>> from lenet_jax.core.model import LeNet
    >>> images = np.zeros((1, 32, 32, 1), np.float32)
    >>> params = jax.eval_shape(LeNet().init, jax.random.key(0), images)["params"]
    >>> to_state_dict(jax.tree.map(lambda leaf: np.zeros(leaf.shape), params))["fc1.weight"].shape
    (120, 400)
    """
    params = jax.tree.map(_of_numpys_own, dict(params))
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
      ValueError: an array is missing, unknown, or of another shape than LeNet's.
    """
    _require_names(state)
    state = {key: np.asarray(value) for key, value in state.items()}
    for key, shape in _shapes(state).items():
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


def _shapes(state: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Of all arrays, given the channels and the classes that two of them have."""
    weights = {
        "conv1": (6, *state["conv1.weight"].shape[1:2], 5, 5),
        "conv2": (16, 6, 5, 5),
        "fc1": (120, 400),
        "fc2": (84, 120),
        "fc3": (*state["fc3.bias"].shape[:1], 84),
    }
    biases = {f"{name}.bias": shape[:1] for name, shape in weights.items()}
    return {f"{name}.weight": shape for name, shape in weights.items()} | biases


def unwrap(state: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The state dict inside of what people save it in, and what was taken off it, or "".

    That is one of the dictionaries in `WRAPPERS`, and a prefix that all names have, such as
    "module." of DataParallel and "_orig_mod." of torch.compile.

    >>> unwrap({"epoch": 3, "state_dict": {"module.conv1.weight": 0, "module.conv1.bias": 1}})
    ({'conv1.weight': 0, 'conv1.bias': 1}, 'the entry state_dict and the prefix module.')
    """
    taken = []
    if name := next((name for name in WRAPPERS if isinstance(state.get(name), Mapping)), None):
        state = state[name]
        taken.append(f"the entry {name}")
    first = next((str(key) for key in state if str(key).endswith(".conv1.weight")), "")
    prefix = first.removesuffix("conv1.weight")
    if prefix and all(str(key).startswith(prefix) for key in state):
        state = {str(key).removeprefix(prefix): value for key, value in state.items()}
        taken.append(f"the prefix {prefix}")
    return state, " and ".join(taken)


def to_safetensors(params: Mapping[str, Any], mean: Any, std: Any, classes: Sequence[str]) -> bytes:
    """`to_state_dict` as the content of a safetensors file.

    `mean` and `std`, as a `Split` has them, go into its metadata as JSON, and the names of the
    classes: without them the parameters are useless.
    """
    from safetensors.numpy import save

    facts = {"mean": mean, "std": std, "classes": list(classes)}
    metadata = {"format": "pt"} | {name: json.dumps(fact) for name, fact in facts.items()}
    return save(to_state_dict(params), metadata)


def read_params(
    path: str | Path, log: Callable[[str], None] = print, model: LeNet | None = None
) -> tuple[dict[str, dict[str, np.ndarray]], str]:
    """Parameters from a file with the tutorial's state dict, and the SHA-256 of the file.

    A `.safetensors` file, or a `.pt` or `.pth` one, which PyTorch reads without running code from
    it. Floating-point arrays of other types than float32 are converted to it; `log` gets a line if
    something had to be taken off, see `unwrap`.

    Raises:
      ValueError: it cannot be read or is not that state dict, or not of the sizes of `model`; the
        message names --init_from.
    """
    path = expand_user(path, "--init_from")
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{size:,} bytes are too many for the tutorial's network")
        if path.suffix not in _READ:
            raise ValueError(f"the name must end in one of {', '.join(_READ)}")
        state, taken = unwrap(_READ[path.suffix](path))
        arrays = {str(key): _array(str(key), value) for key, value in state.items()}
        if not arrays:
            raise ValueError(_NO_STATE_DICT)
        _require_names(arrays)
        for key, value in arrays.items():
            if not jax.dtypes.issubdtype(value.dtype, np.floating):
                raise ValueError(f"{key} is {value.dtype}, not floating point")
            if not np.isfinite(value).all():
                raise ValueError(f"{key} has values that are not finite")
        params = from_state_dict({key: np.float32(value) for key, value in arrays.items()})
        if model is not None and (theirs := model_for(params)) != model:
            raise ValueError(f"is of {sizes(theirs)}, and the data have {sizes(model)}")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--init_from={path}: cannot be read ({reason})") from error
    except ValueError as error:
        raise ValueError(f"--init_from={path}: {error}") from error
    if taken:
        log(f"--init_from={path}: unwrapped {taken}")
    return params, digest


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `to_safetensors` wrote beside the arrays, of {"mean", "std", "classes"} what is there.

    To be called after `read_params`, which says what is wrong with a file.
    """
    path = expand_user(path, "--init_from")
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, "numpy") as opened:
        metadata = opened.metadata() or {}
    try:
        stored = {name: json.loads(metadata.get(name, "null")) for name in FACTS}
    except (ValueError, RecursionError):
        return {}
    found = as_normalization(stored["mean"], stored["std"]) or {}
    classes = stored["classes"]
    if isinstance(classes, list) and all(isinstance(name, str) for name in classes):
        found["classes"] = tuple(classes)
    return found


def as_normalization(mean: Any, std: Any) -> dict[str, Any] | None:
    """{"mean", "std"} as a `Split` has them, or None if these cannot be that.

    Args:
      mean, std: numbers, or lists of as many numbers each; also as text.

    >>> as_normalization(["0.5", "0.4"], ["0.2", "0.3"])
    {'mean': (0.5, 0.4), 'std': (0.2, 0.3)}
    """
    try:
        pair = np.array([mean, std], float)
    except (TypeError, ValueError):
        return None
    if pair.ndim > 2 or not np.isfinite(pair).all() or not (pair[1] > 0).all():
        return None
    values = [tuple(row) if len(row) > 1 else row[0] for row in pair.reshape(2, -1).tolist()]
    return dict(zip(("mean", "std"), values, strict=True))


def _require_names(state: Mapping[str, Any]) -> None:
    missing, unknown = sorted(_NAMES - state.keys()), sorted(state.keys() - _NAMES)
    if missing or unknown:
        raise ValueError(
            f"not the state dict of the tutorial's network: missing {missing}, unknown {unknown}"
        )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError, deserialize
    except ModuleNotFoundError as error:
        raise ValueError("needs the package safetensors: pip install safetensors") from error
    try:  # not safetensors.numpy, which knows no bfloat16
        entries = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"is not an intact safetensors file ({error})") from error
    return {
        name: np.frombuffer(entry["data"], _dtype(name, entry["dtype"])).reshape(entry["shape"])
        for name, entry in entries
    }


def _dtype(name: str, code: str) -> np.dtype:
    """The type that safetensors calls F32, BF16, I64, ..."""
    if code not in _DTYPES:
        raise ValueError(f"{name} is of type {code}: save it as float32")
    return np.dtype(_DTYPES[code])


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ValueError(
            "only PyTorch reads it: pip install torch, or save it as .safetensors there"
        ) from error
    content = path.read_bytes()  # an OSError from here on is about the content
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # its readers of zip, tar and restricted pickle raise anything
        raise ValueError(
            "torch.load(weights_only=True) does not read it: save net.state_dict(), not the net"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(_NO_STATE_DICT)
    return state


def _array(name: str, value: Any) -> np.ndarray:
    """Of an array, or of a tensor of PyTorch."""
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "is_floating_point"):
        raise ValueError(_NO_STATE_DICT)
    try:
        return (value.float() if value.is_floating_point() else value).detach().numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, on the meta device
        raise ValueError(f"{name} is not a plain tensor: save a dense one, of float32") from error


def _of_numpys_own(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    return array if array.dtype.isbuiltin == 1 else array.astype(np.float32)


_NO_STATE_DICT = "holds something other than a state dict: save net.state_dict()"
_DTYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jax.numpy.bfloat16},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
_READ = {".safetensors": _read_safetensors, ".pt": _read_torch, ".pth": _read_torch}
