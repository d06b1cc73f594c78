"""Runs all measurements that we want from a machine with a GPU or TPU; see accelerator.md.

    LENET_JAX_TEST_DATA=path/to/mnist python experiments/accelerator.py

Runs throughput.py, time_to_accuracy.py, populations.py and parity.py one after the other. Each
writes results/<name>.<device>.{json,md}. A script that fails does not stop the others; the exit
code is then 1. --smoke runs them with tiny sizes, on a CPU, too, and needs LENET_JAX_RESULTS, the
folder for their results.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = {
    "throughput": [],
    "time_to_accuracy": ["--seeds=5"],
    "populations": [],
    "parity": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    smoke = parser.parse_args().smoke
    if smoke and not os.environ.get("LENET_JAX_RESULTS"):
        raise SystemExit("--smoke needs LENET_JAX_RESULTS, a folder for the results")
    failed = []
    for name, flags in SCRIPTS.items():
        script, started = Path(__file__).with_name(f"{name}.py"), time.time()
        code = subprocess.run(
            [sys.executable, str(script), *(["--smoke"] if smoke else flags)]
        ).returncode
        failed += [name] * bool(code)
        print(
            f"{name}: {'failed' if code else 'done'} in {time.time() - started:.0f} s", flush=True
        )
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
