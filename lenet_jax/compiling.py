"""`jax.jit` with the compiler options that were measured to help on a CPU."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
from jax.extend.core import get_opaque_trace_state

from lenet_jax import ops

P, R = ParamSpec("P"), TypeVar("R")
_TOP = get_opaque_trace_state()


def at_top() -> bool:
    """Whether nothing is being traced."""
    return get_opaque_trace_state() == _TOP


def jit(
    function: Callable[P, R], *, cpu_options: Mapping[str, str] | None = None, **options: Any
) -> Callable[P, R]:
    """`jax.jit(function, **options)`, with compiler options on a CPU where they can be given.

    They are `ops.CPU_COMPILER_OPTIONS` if `cpu_options` says nothing else.

    JAX takes compiler options at the outermost `jit` only. Called inside another transformation
    (`jit`, `vmap`, `scan`, ...), the function becomes part of the caller's program, and the options
    are the caller's to give: `jax.jit(step, compiler_options=ops.CPU_COMPILER_OPTIONS)`.
    """
    inner = jax.jit(function, **options)

    @functools.cache
    def outer() -> Callable[P, R]:  # asks for the backend at the first call, not at the import
        on_cpu = ops.CPU_COMPILER_OPTIONS if cpu_options is None else cpu_options
        chosen = on_cpu if jax.default_backend() == "cpu" else None
        return jax.jit(function, compiler_options=chosen, **options)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return (outer() if at_top() else inner)(*args, **kwargs)

    return call
