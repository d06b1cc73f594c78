"""Holds JAX and PyTorch to older instructions, so that any x86 machine can play an older one.

Both read what they may use when they are imported, from these variables of the environment.
"""

import os
import sys
from pathlib import Path

VARIABLES = {
    "avx2": {
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}


def restart_with(isa: str | None) -> None:
    """Starts this script again with the instructions it is to use, unless it was so started."""
    if isa is None or all(os.environ.get(k) == v for k, v in VARIABLES[isa].items()):
        return
    os.environ.update(VARIABLES[isa])
    os.execv(sys.executable, [sys.executable, *sys.argv])


def instructions() -> str:
    """The widest that are used: what the processor has, or what it is held to."""
    flags = Path("/proc/cpuinfo")
    has = flags.read_text() if flags.exists() else ""
    held = os.environ.get("ATEN_CPU_CAPABILITY") == "avx2"
    if "avx512f" in has:
        return "AVX2 (of a processor with AVX-512)" if held else "AVX-512"
    return "AVX2" if "avx2" in has else "unknown"
