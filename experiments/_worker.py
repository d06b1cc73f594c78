"""Runs a script in new processes, whose start it times: imports the standard library only."""

import json
import os
import subprocess
import sys
from pathlib import Path


def run(script: str, flags: list[str], environment: dict[str, str]) -> dict:
    """Runs `script` with these flags; returns the JSON in the last line that it prints."""
    done = subprocess.run(
        [sys.executable, script, *flags], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{Path(script).name} {' '.join(flags)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def mnist_folder() -> str:
    """LENET_JAX_TEST_DATA, or ends the script with a one-line error."""
    folder = os.environ.get("LENET_JAX_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        raise SystemExit("LENET_JAX_TEST_DATA does not name a folder with MNIST's IDX files")
    return folder
