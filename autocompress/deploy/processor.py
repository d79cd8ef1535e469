"""What the system tells of its processor."""

from __future__ import annotations

import platform
from pathlib import Path

DECISIVE = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def processor_model() -> str:
    """Name of the processor; with family and model, where virtual machines give no more than a brand."""
    fields = _fields()
    name = fields.get("model name") or platform.processor() or "unknown"
    family, model = fields.get("cpu family"), fields.get("model")
    return f"{name} (family {family}, model {model})" if family and model else name


def instruction_sets() -> list[str]:
    """All that it names, in order of the alphabet; none where the system is silent."""
    fields = _fields()
    return sorted((fields.get("flags") or fields.get("Features", "")).split())


def decisive_instruction_sets() -> list[str]:
    """Those that decide how fast integer kernels are."""
    known = set(instruction_sets())
    return [name for name in DECISIVE if name in known]


def _fields() -> dict[str, str]:
    """Each as it is told first; none where the system keeps no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    parts = (line.partition(":") for line in reversed(lines))
    return {name.strip(): value.strip() for name, _, value in parts}
