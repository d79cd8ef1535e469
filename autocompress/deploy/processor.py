"""What the system tells of its processor."""

from __future__ import annotations

import platform
from pathlib import Path

DECISIVE = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def processor_model() -> str:
    """Name of the processor; with family and model, where virtual machines give no more than a brand."""
    name = _line("model name") or platform.processor() or "unknown"
    family, model = _line("cpu family"), _line("model")
    return f"{name} (family {family}, model {model})" if family and model else name


def instruction_sets() -> list[str]:
    """All that it names, in order of the alphabet; none where the system is silent."""
    return sorted((_line("flags") or _line("Features")).split())


def decisive_instruction_sets() -> list[str]:
    """Those that decide how fast integer kernels are."""
    known = set(instruction_sets())
    return [name for name in DECISIVE if name in known]


def _line(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in fields if name.strip() == key), "")
