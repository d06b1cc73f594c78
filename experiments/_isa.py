"""Holds JAX and PyTorch to older instructions, so that a new processor can stand in for an old one.

Both libraries read these environment variables when they are imported.
"""

import os
import sys
from pathlib import Path

VARIABLES = {
    "avx2": {
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # ops.py asks NumPy
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}


# What holds PyTorch to each instruction set, the oldest first.
OF_PYTORCH = {
    "SSE": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "AVX2": {name: value for name, value in VARIABLES["avx2"].items() if name != "XLA_FLAGS"},
    "AVX-512": {},
}
# glibc keeps large freed blocks: PyTorch trains 1.06 to 1.09 times as fast with 1,024 images.
KEEP_MEMORY = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"


def sets_of_pytorch() -> dict[str, dict[str, str]]:
    """Name -> environment of the sets that the processor has, or that this script is held to."""
    widest, names = instructions().split(" ")[0], list(OF_PYTORCH)
    if widest in names:
        sets = {name: OF_PYTORCH[name] for name in names[: names.index(widest) + 1]}
    else:  # not a processor that this file knows
        sets = {"": {}}
    return {name: {"GLIBC_TUNABLES": KEEP_MEMORY, **each} for name, each in sets.items()}


def restart_with(isa: str | None) -> None:
    """Restarts this script held to these instructions, unless it already is (None: no limit)."""
    if isa is None or all(os.environ.get(k) == v for k, v in VARIABLES[isa].items()):
        return
    os.environ.update(VARIABLES[isa])
    os.execv(sys.executable, [sys.executable, *sys.argv])


def instructions() -> str:
    """The widest instructions in use: the processor's, or those that it is held to."""
    flags = Path("/proc/cpuinfo")
    has = flags.read_text() if flags.exists() else ""
    held = os.environ.get("ATEN_CPU_CAPABILITY") == "avx2"
    if "avx512f" in has:
        return "AVX2 (of a processor with AVX-512)" if held else "AVX-512"
    return "AVX2" if "avx2" in has else "unknown"
