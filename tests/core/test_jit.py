from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenet_jax.core import jit as compiling
from lenet_jax.core import ops

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are for CPUs")


@on_cpu
def test_the_options_reach_the_compiler_at_the_outermost_call_only(monkeypatch):
    seen = []
    compile_jit = jax.jit

    def spy(function, *, compiler_options=None, **options):
        seen.append(compiler_options)
        return compile_jit(function, compiler_options=compiler_options, **options)

    f = compiling.jit(lambda x: x + 1)
    monkeypatch.setattr(jax, "jit", spy)
    assert compile_jit(f)(1.0) == 2.0
    assert jax.vmap(f)(jnp.ones(2)).tolist() == [2.0, 2.0]
    assert jax.grad(f)(1.0) == 1.0
    assert ops.CPU_COMPILER_OPTIONS not in seen
    assert f(1.0) == 2.0
    assert ops.CPU_COMPILER_OPTIONS in seen


@on_cpu
def test_an_option_that_the_compiler_does_not_know_costs_a_warning_and_never_the_run(monkeypatch):
    options = {"xla_no_such_option": "1", **ops.CPU_COMPILER_OPTIONS}
    monkeypatch.setattr(ops, "CPU_COMPILER_OPTIONS", options)
    f, g = compiling.jit(lambda x: x + 1), compiling.jit(lambda x: x + 2)
    with pytest.warns(UserWarning, match="does not know the compiler option xla_no_such_option"):
        assert f(1.0) == 2.0
    assert g(1.0) == 3.0  # warned once: a second warning would be an error
    known = {name: value for name, value in options.items() if name != "xla_no_such_option"}
    assert compiling._known(tuple(options.items())) == known


def test_the_options_are_known_to_this_compiler():
    x = jnp.ones((4, 4))
    assert (compiling.jit(lambda x: x @ x)(x) == 4).all()


def test_what_jit_is_told_is_passed_on():
    traces = []

    def scaled(x, factor):
        traces.append(factor)
        return x * factor

    f = compiling.jit(scaled, static_argnames="factor", donate_argnames="x")
    x = jnp.ones(1000)
    assert f(x, factor=3)[0] == 3
    f(jnp.ones(1000), factor=3)
    assert traces == [3]  # compiled once, with the number itself
    with pytest.raises(RuntimeError, match="deleted"):
        x + 1
    assert f.__name__ == "scaled"


def scaled(factor, x, *, shift=0.0, sign="plus"):
    return factor * x + (1 if sign == "plus" else -1) * jnp.asarray(shift)


@pytest.mark.parametrize(
    ("first", "second", "traces"),
    [
        (partial(scaled, 2.0), partial(scaled, 2.0), 1),
        (partial(scaled, 2.0), partial(scaled, 3.0), 2),
        (partial(scaled, np.float32(2)), partial(scaled, np.float32(3)), 1),
        (partial(scaled, np.ones(3), sign="minus"), partial(scaled, np.zeros(3), sign="minus"), 1),
        (partial(scaled, np.ones(3), sign="minus"), partial(scaled, np.ones(3), sign="plus"), 2),
        (partial(scaled, 2.0, shift=np.ones(3)), partial(scaled, 2.0, shift=np.ones(3)), 1),
        (partial(scaled, 2.0, shift=[1, 2, 3]), partial(scaled, 2.0, shift=[1, 2, 3]), 1),  # a list
        (jnp.sin, jnp.sin, 1),
        (lambda x: x, lambda x: x, 2),
    ],
)
def test_a_function_is_traced_again_if_its_static_part_is_another(first, second, traces):
    seen = []

    def apply(f, x):
        seen.append(f)
        return f(x)

    apply = compiling.jit(apply, functions=("f",))
    x = jnp.arange(3.0)
    for f in (first, second):
        np.testing.assert_allclose(apply(f, x), f(x), rtol=1e-6)
        np.testing.assert_allclose(apply(x=x, f=f), f(x), rtol=1e-6)
    assert len(seen) == traces  # by position and by name alike
    if traces == 1:  # equal values must have equal hashes
        assert len({compiling.as_pytree(f).func for f in (first, second)}) == 1


def test_what_is_no_function_stays_as_it_is():
    split = (1, 2)
    assert compiling.as_pytree(split) is split
    assert compiling.as_pytree(None) is None
    function = compiling.as_pytree(partial(scaled, np.ones(3)))
    assert compiling.as_pytree(function) is function
