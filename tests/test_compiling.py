import jax
import jax.numpy as jnp
import pytest

from lenet_jax import compiling, ops


@pytest.fixture
def no_such_option(monkeypatch):
    monkeypatch.setattr(ops, "CPU_COMPILER_OPTIONS", {"xla_no_such_option": "1"})


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are for CPUs")
@pytest.mark.usefixtures("no_such_option")
def test_the_options_reach_the_compiler_at_the_outermost_call_only():
    f = compiling.jit(lambda x: x + 1)
    with pytest.raises(Exception, match="xla_no_such_option"):
        f(1.0)
    assert jax.jit(f)(1.0) == 2.0
    assert jax.vmap(f)(jnp.ones(2)).tolist() == [2.0, 2.0]
    assert jax.grad(f)(1.0) == 1.0


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are for CPUs")
def test_a_function_can_have_options_of_its_own():
    f = compiling.jit(lambda x: x + 1, cpu_options={"xla_no_such_option": "1"})
    with pytest.raises(Exception, match="xla_no_such_option"):
        f(1.0)
    assert jax.jit(f)(1.0) == 2.0


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
