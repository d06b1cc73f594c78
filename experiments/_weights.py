"""Writes the trained networks that come with the package, each with its note for people."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lenet_jax import data
from lenet_jax.core.model import count_params
from lenet_jax.files import atomic_write
from lenet_jax.run import checkpoint, folder, pretrained
from lenet_jax.run.settings import Settings

README = """\
# The network in the package

`{name}.npz` holds the {size:,} parameters of a LeNet trained on MNIST, as a checkpoint file, which
`numpy.load` reads.

| | |
|---|---|
| test accuracy | {accuracy:.2%} of {test_images:,} images, after {step:,} steps |
| recipe | {recipe} |
| command | `{command}` |
| SHA-256 of the images and labels | `{sha256}` |
| SHA-256 of `{name}.npz` | `{digest}` |

```python
import lenet_jax

model, params, normalization = lenet_jax.load_pretrained("{name}")
images = lenet_jax.normalize(pixels, **normalization)  # uint8 [B, 32, 32, 1], white on black
logits = model.apply({{"params": params}}, images)  # [B, 10]
```

MNIST is by Y. LeCun, C. Cortes and C. J. C. Burges, under
[CC BY-SA 3.0](https://creativecommons.org/licenses/by-sa/3.0/). The file holds none of its images;
its licence is the package's, Apache-2.0.
"""


def write_weights(
    params: Mapping[str, Any],
    dataset: data.Dataset,
    *,
    accuracy: float,
    step: int,
    recipe: str,
    command: str,
    folder_of_weights: Path = pretrained.WEIGHTS,
) -> None:
    """Writes <data set>.npz and README.md; the same arguments give the same bytes.

    Args:
      params: of one network, trained on `dataset.train`.
      accuracy: on `dataset.test`, from 0 to 1.
      step: the number of updates.
      recipe, command: a line each, for people.
    """
    # Not where the images lay on this machine.
    facts = folder.make_config(Settings(), dataset)["data"] | {"source": "its authors' files"}
    settings = {"dataset": dataset.name, "data_dir": None, "loss": "cross_entropy"}
    note = {
        "config": {"settings": settings | {"recipe": recipe, "command": command}, "data": facts},
        "metrics": [{"step": step, "test_accuracy": round(accuracy, 6)}],
    }
    content = checkpoint.to_bytes({"params": jax.tree.map(np.asarray, dict(params))}, note)
    atomic_write(folder_of_weights / f"{dataset.name}.npz", content)
    text = README.format(
        **{"name": dataset.name, "size": count_params(params), "accuracy": accuracy, "step": step},
        **{"test_images": facts["test_images"], "sha256": facts["sha256"], "recipe": recipe},
        **{"command": command, "digest": hashlib.sha256(content).hexdigest()},
    )
    atomic_write(folder_of_weights / "README.md", text)
