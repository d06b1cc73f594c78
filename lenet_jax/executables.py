"""Compiled programs kept on disk whole, so that the next process starts without tracing them.

JAX's compilation cache is asked with a program's text, and to have the text the program must be
traced and lowered: two thirds of a second for an epoch of training, of some three that a start
takes. A kept program is asked for by what its text follows from: the sources, the versions, the
machine, the options, the arguments' shapes and places, and the static arguments, functions and all.
(What is not in it: a module's constant that somebody changes at run time.)

`init_params`, `train_epoch`, `train_steps` and `evaluate` are those of `step` and `epoch`, kept.
Programs lie in a folder of JAX's compilation cache and are kept where that is on, nowhere else. As
with JAX's own, whoever can write there can run code: it is the user's.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import os
import platform
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import optax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, Sharding
from jax.stages import Compiled

from lenet_jax import cli, epoch, step
from lenet_jax.compiling import at_top

FOLDER = "executables"  # in JAX's
PACKAGES = (jax, jaxlib, flax, optax, np)
OWN = Path(__file__).parent
# Where code lies that does the same whenever versions and sources are the same.
KNOWN = (OWN, *(Path(package.__file__).parent for package in PACKAGES))


def kept(function: Callable, *, static: Sequence[str], like: Callable[[dict], Any]) -> Callable:
    """`function`, whose compiled programs are kept on disk.

    Where none can be, it is `function` itself: without a compilation cache, inside another
    transformation, or if it or a static argument is not code of a known package, as a loss function
    of the caller's own is not.

    Args:
      function: jitted, with a `lower`, as `compiling.jit` makes it.
      static: the names of its static arguments.
      like: dictionary of the arguments -> a tree of the structure that `function` returns.
    """
    signature, loaded = inspect.signature(function), {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        folder = _folder()
        if folder is None or not at_top():
            return function(*args, **kwargs)
        arguments = signature.bind(*args, **kwargs).arguments
        dynamic = {name: value for name, value in arguments.items() if name not in static}
        leaves, tree = jax.tree.flatten(dynamic)
        places = [_place(leaf) for leaf in leaves]
        chosen = [arguments.get(name) for name in static]
        key = (*chosen, tree, *places, *_options())
        if key not in loaded:
            shown = jax.tree.unflatten(tree, [_describe_place(*place) for place in places])
            devices = _devices([*chosen, *(sharding for _, sharding in places)])
            trees = jax.tree.structure(((), dynamic)), jax.tree.structure(like(arguments))
            lower = functools.partial(function.lower, **arguments)
            try:
                what = describe((inspect.unwrap(function), arguments | shown))
            except UnknownError:
                loaded[key] = None
            else:
                file = folder / _digest(what, _machine(), _options())
                loaded[key] = _load_or_compile(file, lower, trees, devices)
        return loaded[key](**dynamic) if loaded[key] else function(*args, **kwargs)

    return call


class UnknownError(Exception):
    """There is something in the arguments of which nobody can tell what it does."""


def _folder() -> Path | None:
    """Where programs are kept; None if they are not, or if JAX is to look at each operation."""
    config = jax.config
    cache = config.jax_compilation_cache_dir if config.jax_enable_compilation_cache else None
    looking = config.jax_disable_jit or config.jax_debug_nans or config.jax_debug_infs
    elsewhere = jax.process_count() > 1 or not jax.sharding.get_abstract_mesh().empty
    if not cache or "://" in cache or looking or elsewhere:
        return None
    return Path(cache, FOLDER)


def _load_or_compile(
    file: Path, lower: Callable, trees: tuple[Any, Any], devices: Sequence[jax.Device]
) -> Compiled:
    """Reads the program if it is of these sources, and else makes it and writes it."""
    # Whatever is wrong with a file or with what it holds, it is only a reason to compile.
    with contextlib.suppress(Exception):
        content = file.read_bytes()
        if content.startswith(_CODE):
            return serialize_executable.deserialize_and_load(
                content.removeprefix(_CODE), *trees, execution_devices=devices
            )
    with _compiling_anew():
        compiled = lower().compile()
    if (compiled.in_tree, compiled.out_tree) != trees:
        raise ValueError(f"the program returns {compiled.out_tree}, not {trees[1]}")
    # Without a file everything works, only later: disks are full, backends cannot write programs.
    with contextlib.suppress(Exception):
        content = _CODE + serialize_executable.serialize(compiled)[0]
        if _code() == _CODE:  # nobody has edited a file since it was imported
            _replace(file, content)
    return compiled


@contextlib.contextmanager
def _compiling_anew() -> Iterator[None]:
    """What JAX's cache returns cannot be written again: it lacks functions when it is read."""
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()  # or JAX, asked first while it was off, would leave it off


def _replace(file: Path, content: bytes) -> None:
    """In one piece or not at all, whoever else is writing it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _place(leaf: Any) -> tuple[Any, Sharding | None]:
    """Shape and type of an argument and, if that is settled, where it lies."""
    return jax.typeof(leaf), leaf.sharding if getattr(leaf, "committed", False) else None


def _describe_place(kind: Any, sharding: Sharding | None) -> str:
    return repr((kind, sharding, [device.id for device in _devices([sharding])]))


def _devices(places: Sequence[Any]) -> list[jax.Device]:
    """Those that a program runs on, by the first mesh or else the first place that says so."""
    meshes = [getattr(place, "mesh", place) for place in places]
    for mesh in meshes:
        if isinstance(mesh, Mesh):
            return list(mesh.devices.flat)
    for place in places:
        if isinstance(place, Sharding):
            return sorted(place.device_set, key=lambda device: device.id)
    return [jax.config.jax_default_device or jax.local_devices()[0]]


def _options() -> tuple:
    """All that can be set, as it is here and now: also by a context manager."""
    values = jax.config.values.items()
    jax_options = (getattr(jax.config, name, value) for name, value in values)
    return (*jax_options, repr(flax.config), os.environ.get("XLA_FLAGS"))


def _machine() -> tuple:
    devices = [(device.id, device.platform, device.device_kind) for device in jax.devices()]
    version = jax.devices()[0].client.platform_version
    return devices, version, cli.count_cores(), platform.machine(), _processor()


@functools.cache
def _processor() -> str:
    """The instructions that it has, on Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _code() -> bytes:
    """A digest of versions and of the package's sources as they are on disk."""
    versions = (platform.python_version(), *(package.__version__ for package in PACKAGES))
    sources = (file.read_bytes() for file in sorted(OWN.glob("*.py")))
    return _digest(versions, *sources).encode()


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
    if value is None or kind in (bool, int, float, str):
        return repr(value)
    if kind in (tuple, list):
        return kind.__name__ + many(value)
    if isinstance(value, tuple):  # with names, as the states of optimizers are
        return describe(kind) + many(value)
    if kind is dict:
        return "dict" + many(value.items())
    if kind is functools.partial:
        return "partial" + many((value.func, value.args, value.keywords))
    if isinstance(value, Mesh):
        ids = [device.id for device in value.devices.flat]
        return repr((value.axis_names, value.axis_types, value.shape_tuple, ids))
    if kind is types.FunctionType:
        name = _name(value, value.__code__.co_filename)
        where = _digest(*value.__code__.co_positions())  # a line may hold two lambdas
        try:
            closure = [cell.cell_contents for cell in value.__closure__ or ()]
        except ValueError:
            raise UnknownError("a function that is not yet whole") from None
        return name + many((where, value.__defaults__, value.__kwdefaults__, closure))
    if isinstance(value, type):
        return _name(value, inspect.getsourcefile(value) or "")
    if dataclasses.is_dataclass(value):  # networks, too: where one stands in another is no matter
        fields = [field.name for field in dataclasses.fields(value)]
        own = [name for name in fields if name not in ("parent", "name")]
        return describe(kind) + many((name, getattr(value, name)) for name in own)
    raise UnknownError(kind)


def _name(code: Any, file: str) -> str:
    """Of code from a known file, whatever it says of itself."""
    if not any(Path(file).is_relative_to(folder) for folder in KNOWN):
        raise UnknownError(code)
    return f"{code.__module__}.{code.__qualname__}"


_CODE = _code()  # of what is imported, as far as that can be known
_SUMS = {"loss": 0, "accuracy": 0}
init_params = kept(
    step.init_params,
    static=["model"],
    like=lambda given: jax.eval_shape(lambda: step.init_params(**given)),
)
train_epoch = kept(
    epoch.train_epoch,
    static=["batch_size", "loss_fn", "mesh"],
    like=lambda given: (given["state"], _SUMS),
)
train_steps = kept(
    epoch.train_steps,
    static=["loss_fn", "mesh"],
    like=lambda given: (given["state"], _SUMS),
)
evaluate = kept(epoch.evaluate, static=["batch_size", "loss_fn"], like=lambda given: _SUMS)
