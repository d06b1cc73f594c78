"""What does `--augment` do to a digit?

    LENET_JAX_TEST_DATA=path/to/mnist python experiments/augmented.py

Draws results/augmented.png: ten training images, and below them the same images with each
distortion of `augment.STANDARD` alone and with all of them. Writes the strengths to
results/augmented.json. Takes a few seconds.
"""

import _mnist
import jax
import jax.numpy as jnp
import numpy as np
from _results import path, write_json
from matplotlib import rc_context
from matplotlib.figure import Figure

from lenet_jax.core.augment import STANDARD, AugmentConfig, augment
from lenet_jax.viz.figures import STYLE

AUGMENTED = 3  # rows with all distortions


@rc_context(STYLE | {"axes.grid": False})
def main() -> None:
    train = _mnist.load().train
    strengths = {name: value for name, value in STANDARD._asdict().items() if value is not None}
    first = [int(np.argmax(train.labels == digit)) for digit in range(10)]
    images = jnp.asarray(train.images[first])
    rows = {"original": AugmentConfig()}
    rows |= {
        f"{name} {value:g}": AugmentConfig(**{name: value}) for name, value in strengths.items()
    }
    rows |= {"all" + " " * i: STANDARD for i in range(AUGMENTED)}
    figure = Figure((7, 0.68 * len(rows)))
    for i, (axes, (name, config)) in enumerate(
        zip(figure.subplots(len(rows), 1), rows.items(), strict=True)
    ):
        augmented = np.asarray(augment(jax.random.key(i), images, config))[..., 0]
        axes.imshow(np.hstack(list(augmented)), cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(path("augmented.png"), dpi=150, bbox_inches="tight")
    write_json("augmented", {"strengths": strengths})


if __name__ == "__main__":
    main()
