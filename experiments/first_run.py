"""What the README's first command prints, where MNIST is neither on the machine nor to be had.

    python experiments/first_run.py

Writes results/first_run.md: the lines that say on what and how it trains, and how it ended. The
command runs twice, in processes and folders of their own; the second one's is what a user sees who
has compiled before.
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
    text = "\n".join(["```", *head, "...", *lines[-2:], "```"])
    print(text)
    path("first_run.md").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
