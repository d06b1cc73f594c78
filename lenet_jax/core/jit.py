"""`jax.jit` with the compiler options that were measured to help on a CPU."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
from jax.extend.core import get_opaque_trace_state

from lenet_jax.core import ops

P = ParamSpec("P")
R = TypeVar("R")
_TOP = get_opaque_trace_state()  # nothing is being traced


def jit(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    """`jax.jit(function, **options)`, on a CPU with `ops.CPU_COMPILER_OPTIONS`.

    JAX accepts compiler options at the outermost `jit` only. Inside another transformation (`jit`,
    `vmap`, `scan`, ...) the function becomes part of the caller's compiled function, which needs
    the options itself: `jax.jit(step, compiler_options=ops.CPU_COMPILER_OPTIONS)`.
    """
    inner = jax.jit(function, **options)

    @functools.cache
    def outer() -> jax.stages.Wrapped:  # at the first call: an import must not start the backend
        on_cpu = jax.default_backend() == "cpu"
        chosen = _known(tuple(ops.CPU_COMPILER_OPTIONS.items())) if on_cpu else None
        return jax.jit(function, compiler_options=chosen, **options)

    def lower(*args: P.args, **kwargs: P.kwargs) -> jax.stages.Lowered:
        return outer().lower(*args, **kwargs)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return (outer() if get_opaque_trace_state() == _TOP else inner)(*args, **kwargs)

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
    warnings.warn(
        f"jaxlib {jax.lib.__version__} does not know the compiler option {unknown}: "
        "lenet_jax works, but more slowly",
        stacklevel=2,
    )
    return known
