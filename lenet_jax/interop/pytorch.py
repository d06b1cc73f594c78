"""Parameters to and from PyTorch: as arrays, and as the files in which state dicts are saved.

PyTorch stores convolution kernels as [out, in, height, width] and dense ones as [out, in], and its
`flatten` orders the 400 features channel-major; ours are HWIO, [in, out] and channel-minor. No
other module deals with these differences.
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
from lenet_jax.data import damage
from lenet_jax.files import expand_user

MAX_FILE_BYTES = 2**24  # a state dict of this network has 250,000
FACTS = ("mean", "std", "classes")  # in the metadata of a safetensors file of ours
WRAPPERS = ("model_state_dict", "state_dict", "model", "net")  # common keys of a saved state dict

_LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")
_NAMES = {f"{layer}.{kind}" for layer in _LAYERS for kind in ("weight", "bias")}


def to_state_dict(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of the tutorial's `Net`, as NumPy arrays: `conv1.weight` [6, 1, 5, 5], ...

    Types that NumPy lacks, such as bfloat16, become float32, because torch refuses them.

    >>> params = LeNet().init(jax.random.key(0), np.zeros((1, 32, 32, 1)))["params"]
    >>> to_state_dict(params)["fc1.weight"].shape
    (120, 400)
    """
    state = {}
    for name in _LAYERS:
        kernel, bias = (_to_numpy(params[name][kind]) for kind in ("kernel", "bias"))
        if name == "fc1":  # its 400 inputs are 5 x 5 x 16 here, and 16 x 5 x 5 in PyTorch
            kernel = kernel.reshape(5, 5, -1, len(bias)).transpose(2, 0, 1, 3).reshape(kernel.shape)
        weight = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        # Copies are contiguous, and torch may write to them.
        state |= {f"{name}.bias": bias.copy(), f"{name}.weight": weight.copy()}
    return state


def from_state_dict(state: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """The inverse of `to_state_dict`; values may be anything `np.asarray` takes, tensors too.

    Raises:
      ValueError: an array is missing, unknown, or of another shape than LeNet's.
    """
    missing, unknown = sorted(_NAMES - state.keys()), sorted(state.keys() - _NAMES)
    if missing or unknown:
        raise ValueError(f"not the tutorial's state dict: missing {missing}, unknown {unknown}")
    state = {key: np.asarray(value) for key, value in state.items()}
    for key, shape in _shapes(state).items():
        if state[key].shape != shape:
            raise ValueError(f"{key} has shape {state[key].shape}, the tutorial's network {shape}")
    params = {}
    for name in _LAYERS:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        if name == "fc1":
            kernel = kernel.reshape(-1, 5, 5, len(bias)).transpose(1, 2, 0, 3).reshape(kernel.shape)
        params[name] = {"kernel": kernel, "bias": bias}
    # Copies: a tensor's array is its memory, which torch's optimizers overwrite.
    return jax.tree.map(lambda leaf: np.array(leaf, order="C"), params)


def _shapes(state: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The shapes of LeNet's state dict, with the classes and the channels of this one."""
    classes, channels = state["fc3.bias"].shape[:1], state["conv1.weight"].shape[1:2]
    model, shapes = LeNet(max((1, *classes)), max((1, *channels))), {}
    for name, (*window, inputs, outputs) in model.kernel_shapes().items():
        shapes |= {f"{name}.bias": (outputs,), f"{name}.weight": (outputs, inputs, *window)}
    return shapes


def unwrap(state: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Takes a state dict out of what people save around it, and names what it removed, or "".

    It removes an entry named in `WRAPPERS`, and a prefix of all names, such as "module." from
    DataParallel and "_orig_mod." from torch.compile.

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

    Its metadata hold `mean` and `std`, as a `Split` has them, and the names of the classes, as
    JSON: without them the parameters are useless.
    """
    from safetensors.numpy import save

    facts = {"mean": mean, "std": std, "classes": list(classes)}
    metadata = {"format": "pt"} | {name: json.dumps(fact) for name, fact in facts.items()}
    return save(to_state_dict(params), metadata)


def read_params(
    path: str | Path, log: Callable[[str], None] = print, model: LeNet | None = None
) -> tuple[dict[str, dict[str, np.ndarray]], str]:
    """Parameters from a file with the tutorial's state dict, and the file's SHA-256 digest.

    The file ends in `.safetensors`, or in `.pt` or `.pth`, which PyTorch reads without running code
    from it. Floating-point arrays of other types are converted to float32; `log` gets a line if the
    state dict had to be unwrapped.

    Raises:
      ValueError: it cannot be read, is not that state dict, or does not have the sizes of `model`;
        the message names --init_from.
    """
    path = expand_user(path, "--init_from")
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise ValueError(f"{size:,} bytes are too many for the tutorial's network")
        if path.suffix not in _READ:
            raise ValueError(f"the name must end in one of {', '.join(_READ)}")
        content = path.read_bytes()
        state, taken = unwrap(_READ[path.suffix](content))
        params = from_state_dict(_checked(state))
        theirs = model_for(params)
        if theirs.num_classes < 2:
            raise ValueError("its network has 1 class; at least 2 are needed")
        if model is not None and theirs != model:
            raise ValueError(
                f"its network is for {sizes(theirs)}, and the data have {sizes(model)}"
            )
    except (MemoryError, OSError) as error:
        reason = damage.reason(error)
        raise ValueError(f"--init_from={path}: cannot be read ({reason})") from error
    except ModuleNotFoundError as error:
        needs = f"only {error.name} reads it: pip install {error.name}"
        raise ValueError(f"--init_from={path}: {needs}, or save it in another format") from error
    except ValueError as error:
        raise ValueError(f"--init_from={path}: {error}") from error
    if taken:
        log(f"--init_from={path}: unwrapped {taken}")
    return params, hashlib.sha256(content).hexdigest()


def _checked(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a state dict; ValueError if there are none, or LeNet's are no finite floats."""
    arrays = {str(key): _to_array(str(key), value) for key, value in state.items()}
    if not arrays:
        raise ValueError(_NO_STATE_DICT)
    for key in sorted(_NAMES & arrays.keys()):
        if not jax.dtypes.issubdtype(arrays[key].dtype, np.floating):
            raise ValueError(f"{key} is {arrays[key].dtype}, not floating point")
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"{key} has values that are not finite")
    return {key: np.asarray(value, np.float32) for key, value in arrays.items()}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The facts that `to_safetensors` wrote beside the arrays, as far as they are intact.

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
    """{"mean", "std"} as a `Split` has them, of two numbers or two lists; None if they are not.

    >>> as_normalization(["0.5", "0.4"], ["0.2", "0.3"])
    {'mean': (0.5, 0.4), 'std': (0.2, 0.3)}
    """
    try:
        pair = np.array([mean, std], float)
    except (OverflowError, TypeError, ValueError):
        return None
    if pair.ndim > 2 or pair.size == 0 or not np.isfinite(pair).all() or not (pair[1] > 0).all():
        return None
    values = [tuple(row) if len(row) > 1 else row[0] for row in pair.reshape(2, -1).tolist()]
    return dict(zip(("mean", "std"), values, strict=True))


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    try:  # not safetensors.numpy, which lacks bfloat16
        entries = dict(deserialize(content))
    except SafetensorError as error:
        raise ValueError(f"is not an intact safetensors file ({error})") from error
    arrays = {}
    for name, entry in entries.items():
        if (dtype := _DTYPES.get(entry["dtype"])) is None:
            raise ValueError(f"{name} is of type {entry['dtype']}: save it as float32")
        arrays[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return arrays


def _read_torch(content: bytes) -> dict[str, Any]:
    import torch

    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # zip, tar and restricted pickle: no common base class
        remedy = "save net.state_dict(), not the net"
        raise ValueError(f"torch.load(weights_only=True) does not read it: {remedy}") from error
    if not isinstance(state, dict):
        raise ValueError(_NO_STATE_DICT)
    return state


def _to_array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "is_floating_point"):
        raise ValueError(_NO_STATE_DICT)
    try:
        return (value.float() if value.is_floating_point() else value).detach().numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, on the meta device
        raise ValueError(f"{name} is not a plain tensor: save a dense one, of float32") from error


def _to_numpy(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    return array if array.dtype.isbuiltin == 1 else array.astype(np.float32)


_NO_STATE_DICT = "holds something other than a state dict: save net.state_dict()"
_DTYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jax.numpy.bfloat16},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
_READ = {".safetensors": _read_safetensors, ".pt": _read_torch, ".pth": _read_torch}
