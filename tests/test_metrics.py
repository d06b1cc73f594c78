import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenet_jax import metrics


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_accuracy_is_numpys(size):
    rng = np.random.default_rng(size)
    logits, labels = rng.standard_normal((size, 10)), rng.integers(0, 10, size)
    got = jax.jit(metrics.accuracy)(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    assert float(got) == pytest.approx((logits.argmax(1) == labels).mean(), rel=1e-6)
    assert got.dtype == jnp.float32
