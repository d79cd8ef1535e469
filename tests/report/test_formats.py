"""How figures are written."""

from __future__ import annotations

import math

import pytest

from autocompress.report import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.2869, "0.287 ms"),
        (1.58, "1.58 ms"),
        (53.04, "53.0 ms"),
        (1234.5, "1234 ms"),
        (0.09876, "0.0988 ms"),
    ],
)
def test_latency_has_three_significant_digits(value: float, text: str) -> None:
    assert formats.milliseconds(value) == text


def test_accuracy_size_and_factors() -> None:
    assert formats.percent(0.88345) == "88.34 %"
    assert formats.kilobytes(3_612_000) == "3,612 KB"
    assert formats.kilobytes(60_440) == "60.4 KB"
    assert [formats.times(value) for value in (4.13, 0.97, 1.0, 0.996)] == ["4.1x", "0.97x", "1.0x", "1.0x"]


def test_drops_never_read_minus_zero() -> None:
    assert formats.points(-0.001) == "0.00"
    assert formats.drop(0.82, 0.2, 1.436) == "0.82 [0.20, 1.44]"


def test_missing_figures_are_a_dash() -> None:
    for written in (formats.percent, formats.points, formats.kilobytes, formats.milliseconds, formats.times):
        assert written(None) == written(math.nan) == formats.MISSING


def test_durations() -> None:
    assert [formats.duration(s) for s in (42, 725, 3900)] == ["42 s", "12 min 05 s", "1 h 05 min"]
