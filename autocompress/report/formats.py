"""How figures are written, the same on the page, in figures and in the terminal. KB are 1000 bytes."""

from __future__ import annotations

import math

MISSING = "–"  # noqa: RUF001  an en dash is what a reader of a table expects for "not measured"


def percent(fraction: float | None) -> str:
    """A fraction as ``88.34 %``."""
    return MISSING if _missing(fraction) else f"{100.0 * _value(fraction):.2f} %"


def points(value: float | None) -> str:
    """Percentage points with two decimals, never ``-0.00``."""
    return MISSING if _missing(value) else f"{round(_value(value), 2) + 0.0:.2f}"


def kilobytes(size_bytes: float | None) -> str:
    """Bytes as ``3,528 KB``; one decimal below 100 KB."""
    if _missing(size_bytes):
        return MISSING
    size_kb = _value(size_bytes) / 1000.0
    return f"{size_kb:,.0f} KB" if size_kb >= 100 else f"{size_kb:.1f} KB"


def milliseconds(latency_ms: float | None) -> str:
    """Three significant digits, as ``0.287 ms``."""
    return MISSING if _missing(latency_ms) else f"{significant(_value(latency_ms))} ms"


def significant(value: float, digits: int = 3) -> str:
    """A positive number with ``digits`` significant digits and no exponent."""
    decimals = digits - 1 - math.floor(math.log10(value)) if value > 0 else digits - 1
    return f"{value:.{max(0, decimals)}f}"


def times(ratio: float | None) -> str:
    """A factor as ``4.1x``; below 1 with two decimals, so that 0.97x does not read 1.0x."""
    if _missing(ratio):
        return MISSING
    return f"{_value(ratio):.2f}x" if _value(ratio) < 0.995 else f"{_value(ratio):.1f}x"


def drop(value: float | None, low: float | None, high: float | None) -> str:
    """A drop in points with its interval, as ``0.82 [0.20, 1.44]``."""
    return MISSING if _missing(value) else f"{points(value)} [{points(low)}, {points(high)}]"


def duration(seconds: float) -> str:
    """Seconds as ``42 s``, ``12 min 05 s`` or ``1 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _value(value: float | None) -> float:
    assert value is not None
    return float(value)
