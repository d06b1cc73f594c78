"""Where experiments leave what they found: experiments/results/<name>.{json,md,png}.

Every file says on which machine, with which versions and by which command it was made.
"""

import json
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from _isa import instructions

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "torch")


def describe_machine() -> dict[str, Any]:
    """What a figure depends on: the command, the machine, the versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": _command(),
        "processor": _processor(),
        "instructions": instructions(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def path(name: str) -> Path:
    """experiments/results/<name>; the folder is there."""
    FOLDER.mkdir(exist_ok=True)
    return FOLDER / name


def write_json(name: str, data: dict[str, Any]) -> None:
    """Writes `data` and the machine to <name>.json."""
    text = json.dumps({"machine": describe_machine(), **data}, indent=2)
    path(f"{name}.json").write_text(text + "\n")


def write_markdown(name: str, text: str) -> None:
    """Writes `text` and a last line with the machine to <name>.md."""
    path(f"{name}.md").write_text(f"{text.rstrip()}\n\n{machine_line()}\n")


def machine_line() -> str:
    """The machine as one line for a person, in Markdown."""
    machine = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    devices = ", ".join(machine["devices"])
    return (
        f"Made by `{machine['command']}` on {machine['processor']}, {machine['instructions']}, "
        f"{machine['cores']} cores, "
        f"devices: {devices}; {versions}."
    )


def _command() -> str:
    """As it is typed in the repository's root, without this machine's paths."""
    script = f"experiments/{Path(sys.argv[0]).name}"
    return " ".join(["python", script, *map(shlex.quote, sys.argv[1:])])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
