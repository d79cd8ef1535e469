"""Limits of a study as amounts of violation: feasible at or below zero, as Optuna's constraints are."""

from __future__ import annotations

import math

from autocompress.candidate import Measurement
from autocompress.config import LimitsSection

TABLE_ERROR = 0.05
"""By which tables may be wrong about bytes and latency, in proportion."""


def size_violations(limits: LimitsSection, size_bytes: int, baseline_bytes: int) -> dict[str, float]:
    """ln(bytes / allowed bytes) for each limit on bytes."""
    allowed: dict[str, float] = {}
    if limits.max_size_bytes is not None:
        allowed["max_size_bytes"] = limits.max_size_bytes
    if limits.max_size_ratio is not None:
        allowed["max_size_ratio"] = limits.max_size_ratio * baseline_bytes
    return {name: math.log(size_bytes / value) for name, value in allowed.items()}


def latency_violations(limits: LimitsSection, latency_ms: float, ratio: float) -> dict[str, float]:
    """ln(time / allowed time) for each limit on latency; ``ratio`` is candidate / baseline."""
    violations = {}
    if limits.max_latency_ms is not None:
        violations["max_latency_ms"] = math.log(latency_ms / limits.max_latency_ms)
    if limits.min_speedup is not None:
        violations["min_speedup"] = math.log(ratio * limits.min_speedup)
    return violations


def violations(limits: LimitsSection, measurement: Measurement, baseline_bytes: int) -> dict[str, float]:
    """Amount of violation of each limit, of what was measured so far; the accuracy's in points."""
    found = size_violations(limits, measurement.size_bytes, baseline_bytes)
    if measurement.latency is not None:
        found |= latency_violations(limits, measurement.latency.latency_ms, measurement.latency.ratio)
    if limits.max_accuracy_drop is not None and measurement.validation is not None:
        found["max_accuracy_drop"] = measurement.validation.drop_points - limits.max_accuracy_drop
    return found


def limit_names(limits: LimitsSection) -> list[str]:
    """Limits that the study sets."""
    return [name for name, value in limits.model_dump().items() if value is not None]


def describe_broken(found: dict[str, float], limits: LimitsSection) -> str:
    """One line that names the broken limits; empty if none is."""
    broken = [name for name, amount in found.items() if amount > 0]
    settings = limits.model_dump()

    def text(name: str) -> str:
        amount = found[name]
        by = f"{amount:.2f} points over" if name == "max_accuracy_drop" else f"{math.exp(amount):.2f} times over"
        return f"{name} = {settings[name]} ({by})"

    return ", ".join(text(name) for name in broken)
