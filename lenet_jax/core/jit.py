"""`jax.jit` with functions as arguments and the compiler options that help on a CPU."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np
from jax.extend.core import get_opaque_trace_state
from jax.tree_util import Partial

from lenet_jax.core import ops

P = ParamSpec("P")
R = TypeVar("R")
_TOP = get_opaque_trace_state()  # nothing is being traced


class _Bound(NamedTuple):
    """The static part of a `functools.partial`, equal to another of the same values."""

    func: Callable[..., Any]
    positional: int  # number of positional arguments
    static: dict[str, Any]

    def __call__(self, data: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        bound = self.static | data
        first = [bound.pop(str(at)) for at in range(self.positional)]
        return self.func(*first, *args, **bound | kwargs)

    def __hash__(self) -> int:  # the values may be lists
        return hash(self.func)


def as_pytree(function: Any) -> Any:
    """A function as an argument of `jax.jit`; what cannot be called is returned unchanged.

    Arrays (or trees of them) that `functools.partial` binds are data. The function and the other
    values are static and compared with `==`, so that only a new lambda is another function.
    """
    if not callable(function) or isinstance(function, Partial):
        return function
    if not isinstance(function, functools.partial):
        return Partial(function)
    is_array = lambda leaf: isinstance(leaf, jax.Array | np.ndarray | np.number)
    bound = {str(at): value for at, value in enumerate(function.args)} | function.keywords
    data = {
        name: value for name, value in bound.items() if all(map(is_array, jax.tree.leaves(value)))
    }
    static = {name: value for name, value in bound.items() if name not in data}
    return Partial(_Bound(function.func, len(function.args), static), data)


def jit(
    function: Callable[P, R], *, functions: tuple[str, ...] = (), **options: Any
) -> Callable[P, R]:
    """`jax.jit(function, **options)`, on a CPU with `ops.CPU_COMPILER_OPTIONS`.

    `functions` names the arguments that pass through `as_pytree`.

    JAX accepts compiler options at the outermost `jit` only. Inside another transformation (`jit`,
    `vmap`, `scan`, ...) the function becomes part of the caller's compiled function, which needs
    the options itself: `jax.jit(step, compiler_options=ops.CPU_COMPILER_OPTIONS)`.
    """
    inner = jax.jit(function, **options)
    signature = inspect.signature(function)

    def bind(*args: Any, **kwargs: Any) -> inspect.BoundArguments:
        bound = signature.bind(*args, **kwargs)
        for name in bound.arguments.keys() & functions:
            bound.arguments[name] = as_pytree(bound.arguments[name])
        return bound

    @functools.cache
    def outer() -> jax.stages.Wrapped:  # at the first call: an import must not start the backend
        on_cpu = jax.default_backend() == "cpu"
        chosen = _known(tuple(ops.CPU_COMPILER_OPTIONS.items())) if on_cpu else None
        return jax.jit(function, compiler_options=chosen, **options)

    def lower(*args: P.args, **kwargs: P.kwargs) -> jax.stages.Lowered:
        bound = bind(*args, **kwargs)
        return outer().lower(*bound.args, **bound.kwargs)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound, at_top = bind(*args, **kwargs), get_opaque_trace_state() == _TOP
        return (outer() if at_top else inner)(*bound.args, **bound.kwargs)

    call.lower = lower  # type: ignore[attr-defined]
    return call


@functools.cache
def _known(options: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The options that the installed compiler accepts: any version may drop experimental ones."""

    def compiles(*options: tuple[str, str]) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    if compiles(*options):
        return dict(options)
    known = {name: value for name, value in options if compiles((name, value))}
    unknown = ", ".join(name for name, _ in options if name not in known)
    lacks = f"jaxlib {jax.lib.__version__} does not know the compiler option {unknown}"
    warnings.warn(f"{lacks}: lenet_jax works, but more slowly", stacklevel=2)
    return known
