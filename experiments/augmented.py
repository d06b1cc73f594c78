"""What does `--augment` do to a digit?

    LENET_JAX_TEST_DATA=path/to/mnist python experiments/augmented.py

Draws results/augmented.png: ten training images, and copies of each with each distortion of
`augment.STANDARD` alone and with all of them. Writes the strengths to results/augmented.json; some
seconds.
"""

import _mnist
import jax
import jax.numpy as jnp
import numpy as np
from _results import path, write_json
from matplotlib.figure import Figure

from lenet_jax.core.augment import STANDARD, Strengths, augment

COPIES = 3  # rows with all distortions


def main() -> None:
    mnist = _mnist.load()
    first = [int(np.argmax(mnist.train_labels == digit)) for digit in range(10)]
    images = jnp.asarray(mnist.train_images[first])
    rows = {"original": Strengths()}
    rows |= {f"{name} {value:g}": Strengths(**{name: value}) for name, value in _named(STANDARD)}
    rows |= {"all" + " " * i: STANDARD for i in range(COPIES)}
    figure = Figure((7, 0.68 * len(rows)))
    for i, (axes, (name, strengths)) in enumerate(
        zip(figure.subplots(len(rows), 1), rows.items(), strict=True)
    ):
        copies = np.asarray(augment(jax.random.key(i), images, strengths))[..., 0]
        axes.imshow(np.hstack(list(copies)), cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(path("augmented.png"), dpi=110, bbox_inches="tight")
    write_json("augmented", {"strengths": STANDARD._asdict()})


def _named(strengths: Strengths) -> list[tuple[str, float]]:
    return list(strengths._asdict().items())


if __name__ == "__main__":
    main()
