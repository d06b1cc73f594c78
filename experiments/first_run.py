"""What does the README's first command print, with MNIST on the machine?

    LENET_JAX_TEST_DATA=path/to/mnist python experiments/first_run.py

Writes results/first_run.md: the command, the lines about data and network, and the last two. The
command runs twice, each time in a new process and folder; the output is the second run's, which
finds a filled compilation cache.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import _worker
from _results import path

FLAGS = ("train", "--optimizer=adam", "--data_dir=mnist")
SHOWN = ("data ", "network ")  # beginnings of lines


def main() -> None:
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "mnist").symlink_to(Path(_worker.mnist_folder()).resolve())
            run = subprocess.run(
                [sys.executable, "-m", "lenet_jax", *FLAGS],
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
            )
    lines = run.stdout.replace(f"{folder}/", "").splitlines()
    head = [line for line in lines if line.startswith(SHOWN)]
    text = "\n".join(["```", f"$ lenet-jax {' '.join(FLAGS)}", *head, "...", *lines[-2:], "```"])
    print(text)
    path("first_run.md").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
