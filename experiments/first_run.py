"""What does the README's first command print on a machine that has no MNIST and is offline?

    python experiments/first_run.py

Writes results/first_run.md: the lines about data, network and optimizer, and the last four. The
command runs twice, each time in a new process and folder; the output is the second run's, which
finds a filled compilation cache.
"""

import os
import subprocess
import sys
import tempfile

from _results import path

COMMAND = ("-m", "lenet_jax.train", "--optimizer=adam")
SHOWN = ("data ", "network ", "optimizer ")  # beginnings of lines


def main() -> None:
    nowhere = {"TFDS_DATA_DIR": "no/such/folder", "https_proxy": "http://127.0.0.1:9"}
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            run = subprocess.run(
                [sys.executable, *COMMAND],
                cwd=folder,
                env=os.environ | nowhere,
                capture_output=True,
                text=True,
                check=True,
            )
    lines = run.stdout.splitlines()
    head = [line for line in lines if line.startswith(SHOWN)]
    text = "\n".join(["```", *head, "...", *lines[-4:], "```"])
    print(text)
    path("first_run.md").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
