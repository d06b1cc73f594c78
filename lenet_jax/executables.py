"""Compiled programs kept on disk whole, so that the next process starts without tracing them.

JAX's compilation cache is asked with a program's text, and to have the text the program must be
traced and lowered: two thirds of a second for an epoch of training, of some three that a start
takes. A kept program is asked for by what its text follows from: the sources, the versions, the
machine, the arguments' shapes and places, and the static arguments, functions and all. (What is
not in it: a module's constant that somebody changes at run time.)

`init_params`, `train_epoch`, `train_steps` and `evaluate` are those of `step` and `epoch`, kept.
Programs lie in a folder of JAX's compilation cache and are kept where that is on, nowhere else. As
with JAX's own, whoever can write there can run code: it is the user's.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import os
import platform
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding
from jax.stages import Compiled

from lenet_jax import cli, epoch, step

FOLDER = "executables"  # in JAX's
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
KNOWN = {"lenet_jax", *PACKAGES, *sys.stdlib_module_names}  # their code follows from `_environment`


def kept(function: Callable, static: Sequence[str], like: Callable[[dict], Any]) -> Callable:
    """`function`, whose compiled programs are kept on disk.

    Where none can be, it is `function` itself: without a compilation cache, inside another
    transformation, or if a static argument's code is not that of a known package, such as a loss
    function of the caller's own.

    Args:
      function: jitted, with a `lower`, as `compiling.jit` makes it.
      static: the names of its static arguments.
      like: dictionary of the arguments -> a tree of the structure that `function` returns.
    """
    signature, loaded = inspect.signature(function), {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if (folder := _folder()) is None:
            return function(*args, **kwargs)
        arguments = signature.bind(*args, **kwargs).arguments
        dynamic = {name: value for name, value in arguments.items() if name not in static}
        leaves, tree = jax.tree.flatten(dynamic)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return function(*args, **kwargs)
        places = [_place(leaf) for leaf in leaves]
        chosen = tuple(arguments.get(name) for name in static)
        key = (chosen, tree, *places, *_configuration())
        if key not in loaded:
            shown = arguments | jax.tree.unflatten(tree, [repr(place) for place in places])
            trees = jax.tree.structure(((), dynamic)), jax.tree.structure(like(arguments))
            lower = functools.partial(function.lower, **arguments)
            try:
                file = folder / _digest(_name(function), describe(shown))
            except UnknownError:
                loaded[key] = None
            else:
                loaded[key] = _load_or_compile(file, lower, trees, _devices(leaves))
        return loaded[key](**dynamic) if loaded[key] else function(*args, **kwargs)

    return call


class UnknownError(Exception):
    """There is something in the arguments of which nobody can tell what it does."""


def _folder() -> Path | None:
    """Where programs are kept; None if they are not, or if JAX is to look at each operation."""
    config = jax.config
    cache = config.jax_compilation_cache_dir if config.jax_enable_compilation_cache else None
    looking = config.jax_disable_jit or config.jax_debug_nans or config.jax_debug_infs
    if not cache or "://" in cache or looking or jax.process_count() > 1:
        return None
    return Path(cache, FOLDER)


def _load_or_compile(
    file: Path, lower: Callable, trees: tuple[Any, Any], devices: Sequence[jax.Device]
) -> Compiled:
    """Reads the program if it is of this environment, and else makes it and writes it."""
    environment = _environment()
    # Whatever is wrong with a file or with what it holds, it is only a reason to compile.
    with contextlib.suppress(Exception):
        content = file.read_bytes()
        if content.startswith(environment):
            return serialize_executable.deserialize_and_load(
                content.removeprefix(environment), *trees, execution_devices=devices
            )
    with _compiling_anew():
        compiled = lower().compile()
    if (compiled.in_tree, compiled.out_tree) != trees:
        raise ValueError(f"the program returns {compiled.out_tree}, not {trees[1]}")
    # Without it everything works, only later: disks are full, and some programs hold constants.
    with contextlib.suppress(OSError, ValueError, NotImplementedError):
        _replace(file, environment + serialize_executable.serialize(compiled)[0])
    return compiled


@contextlib.contextmanager
def _compiling_anew() -> Iterator[None]:
    """What JAX's cache returns cannot be written again: it lacks functions when it is read."""
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # or JAX would not look at the option again
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def _replace(file: Path, content: bytes) -> None:
    """In one piece or not at all, whoever else is writing it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as stream:
        try:
            stream.write(content)
            stream.close()
            Path(stream.name).replace(file)
        except OSError:
            Path(stream.name).unlink()
            raise


def _place(leaf: Any) -> tuple:
    """Shape, type and, if that is settled, devices of an argument."""
    return jax.typeof(leaf), leaf.sharding if getattr(leaf, "committed", False) else None


def _devices(leaves: Sequence[Any]) -> list[jax.Device]:
    """Those that a program of these arguments runs on."""
    for _, sharding in map(_place, leaves):
        if isinstance(sharding, NamedSharding):
            return list(sharding.mesh.devices.flat)
        if sharding is not None:
            return list(sharding.device_set)
    return [jax.config.jax_default_device or jax.local_devices()[0]]


def _configuration() -> tuple:
    """JAX's, with what a context manager says; the options that have no attribute are fixed."""
    return tuple(getattr(jax.config, name, None) for name in jax.config.values)


@functools.cache
def _machine_and_sources() -> tuple:
    try:  # the instructions that the processor has, on Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return (
        *(platform.python_version(), platform.machine(), processor),
        *(importlib.metadata.version(name) for name in PACKAGES),
        *(hashlib.sha256(file.read_bytes()).hexdigest() for file in sources),
    )


def _environment() -> bytes:
    """A digest of all that a program follows from besides the arguments."""
    devices = [(device.id, device.platform, device.device_kind) for device in jax.devices()]
    version = jax.devices()[0].client.platform_version
    now = (devices, version, cli.count_cores(), os.environ.get("XLA_FLAGS"), _configuration())
    return _digest(*_machine_and_sources(), *now).encode()


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def describe(value: Any, inside: tuple[int, ...] = ()) -> str:
    """A text that is the same, in any process, for values that make the same program, and only so.

    Raises:
      UnknownError: there is none.
    """
    if id(value) in inside:  # a function that closes over itself
        return f"<{len(inside) - inside.index(id(value))} up>"
    inside = (*inside, id(value))
    many = lambda parts: "(" + ", ".join(describe(part, inside) for part in parts) + ")"
    kind = type(value)
    match value:
        case None | bool() | int() | float() | str() | np.dtype():
            return repr(value)
        case tuple() | list():
            return kind.__qualname__ + many(value)
        case Mapping():
            return kind.__qualname__ + many(value.items())
        case Mesh():
            ids = [device.id for device in value.devices.flat]
            return repr((value.axis_names, value.axis_types, value.shape_tuple, ids))
        case functools.partial():
            return "partial" + many((value.func, value.args, value.keywords))
        case types.FunctionType():
            closure = [cell.cell_contents for cell in value.__closure__ or ()]
            where = _digest(*value.__code__.co_positions())  # a line may hold two lambdas
            return _name(value) + many((where, value.__defaults__, value.__kwdefaults__, closure))
        case type() | types.BuiltinFunctionType():
            return _name(value)
    if dataclasses.is_dataclass(value):  # networks, too: where one stands in another is no matter
        fields = [field.name for field in dataclasses.fields(value)]
        own = [name for name in fields if name not in ("parent", "name")]
        return _name(kind) + many((name, getattr(value, name)) for name in own)
    if callable(getattr(value, "__wrapped__", None)):  # of `jax.jit` and the like
        return _name(kind) + many((value.__wrapped__,))
    raise UnknownError(kind)


def _name(code: Any) -> str:
    module = code.__module__ or ""
    if module.split(".")[0] not in KNOWN:
        raise UnknownError(code)
    return f"{module}.{code.__qualname__}"


_SUMS = {"loss": 0, "accuracy": 0}
init_params = kept(
    step.init_params, ["model"], lambda given: jax.eval_shape(lambda: step.init_params(**given))
)
train_epoch = kept(
    epoch.train_epoch, ["batch_size", "loss_fn", "mesh"], lambda given: (given["state"], _SUMS)
)
train_steps = kept(epoch.train_steps, ["loss_fn", "mesh"], lambda given: (given["state"], _SUMS))
evaluate = kept(epoch.evaluate, ["batch_size", "loss_fn"], lambda given: _SUMS)
