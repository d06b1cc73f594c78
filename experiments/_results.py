"""Reads and writes the results of experiments: experiments/results/<name>.{json,md,png}.

Every .json and .md file names the command that made it, the machine and the versions. Speeds are
named after the processor or the accelerator, too: experiments/results/<name>.<device>.json. The
variable LENET_JAX_RESULTS names another folder.
"""

import json
import os
import platform
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from _isa import instructions

FOLDER = Path(os.environ.get("LENET_JAX_RESULTS") or Path(__file__).parent / "results")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "torch")


def describe_machine() -> dict[str, Any]:
    """Everything that a figure depends on: the command, the machine, the versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": command(),
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
    """experiments/results/<name>; makes the folder."""
    FOLDER.mkdir(exist_ok=True)
    return FOLDER / name


def writes(smoke: bool) -> bool:
    """Whether a script writes its results: those of tiny sizes into another folder only."""
    return not smoke or "LENET_JAX_RESULTS" in os.environ


def of_device(name: str, machine: dict[str, Any] | None = None) -> str:
    """<name>.<device>, for results that depend on it (None: this machine)."""
    return f"{name}.{slug(machine or describe_machine())}"


def slug(machine: dict[str, Any]) -> str:
    """The accelerator, or else the processor: "AMD EPYC 9R14 96-Core" -> "amd-epyc-9r14".

    >>> slug({"processor": "Intel(R) Xeon(R) Processor @ 2.60GHz", "devices": ["cpu", "cpu"]})
    'intel-xeon'
    >>> slug({"processor": "AMD EPYC", "devices": ["NVIDIA H100 80GB HBM3"]})
    'nvidia-h100-80gb-hbm3'
    """
    return "-".join(re.findall(r"[a-z0-9]+", short_name(machine).lower()))


def short_name(machine: dict[str, Any]) -> str:
    """The accelerator's or the processor's name without what does not tell it from others."""
    device = machine["devices"][0]
    name = machine["processor"] if device == "cpu" else device
    without = r"\((R|TM|r|tm)\)|@.*|\b(\d+-Core|CPU|Processor)\b"
    return " ".join(re.sub(without, " ", name).split())


def write_json(name: str, data: dict[str, Any]) -> None:
    """Writes `data`, and this machine unless data have one, to <name>.json."""
    machine = data.get("machine") or describe_machine()
    text = json.dumps({"machine": machine, **data}, indent=2)
    path(f"{name}.json").write_text(text + "\n")


def has(name: str) -> bool:
    return path(f"{name}.json").exists()


def read_json(name: str) -> dict[str, Any]:
    return json.loads(path(f"{name}.json").read_text())


def write_markdown(name: str, text: str, machine: dict[str, Any] | None = None) -> None:
    """Writes `text` and a last line with the machine (None: this one) to <name>.md."""
    line = machine_line(machine or describe_machine())
    path(f"{name}.md").write_text(f"{text.rstrip()}\n\n{line}\n")


def machine_line(machine: dict[str, Any]) -> str:
    """What `describe_machine` found, as a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    devices = ", ".join(machine["devices"])
    return (
        f"Made by `{machine['command']}` on {machine['processor']}, {machine['instructions']}, "
        f"{machine['cores']} cores, "
        f"devices: {devices}; {versions}."
    )


def command() -> str:
    """The command line as typed in the repository's root, without this machine's paths."""
    script = f"experiments/{Path(sys.argv[0]).name}"
    return " ".join(["python", script, *map(shlex.quote, sys.argv[1:])])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
