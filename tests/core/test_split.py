import jax
import numpy as np

from lenet_jax.core.split import Split, take


def test_a_split_is_a_pytree_whose_numbers_a_compiled_function_takes_as_data():
    traces = []

    @jax.jit
    def centred(split):
        traces.append(1)
        return split.images.sum() - split.mean

    images, labels = np.ones((2, 32, 32, 1), np.uint8), np.zeros(2, np.int32)
    assert centred(Split(images, labels, 0.5, 0.3)) == 2047.5
    assert centred(Split(images, labels, 0.25, 0.1)) == 2047.75
    assert traces == [1]
    assert len(jax.tree.leaves(Split(images, None, 0.5, 0.3))) == 3
    assert len(jax.tree.leaves(Split(images, None, (0.5, 0.4, 0.3), (0.3, 0.2, 0.1)))) == 7


def test_some_rows_of_a_split_keep_the_normalisation_of_all():
    split = Split(np.arange(5 * 1024).reshape(5, 32, 32, 1), np.arange(5), 0.5, 0.3)
    for rows, kept in ((np.array([3, 1]), [3, 1]), (slice(2, None), [2, 3, 4])):
        part = take(split, rows)
        assert part.labels.tolist() == kept
        np.testing.assert_array_equal(part.images, split.images[kept])
        assert part[2:] == (0.5, 0.3)
