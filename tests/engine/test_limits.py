"""Limits are feasible at or below zero, and count how far a file is beyond them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.candidate import Accuracy, Latency, Measurement
from autocompress.config import LimitsSection
from autocompress.engine.limits import describe_broken, latency_violations, limit_names, size_violations, violations

ALL = LimitsSection(
    max_accuracy_drop=1.5, max_size_bytes=50_000, max_size_ratio=0.1, max_latency_ms=0.5, min_speedup=4.0
)
BASELINE_BYTES = 1_000_000


def measurement(
    size_bytes: int = 40_000, latency_ms: float = 0.4, ratio: float = 0.2, lost: int | None = 10
) -> Measurement:
    latency = Latency(
        latency_ms=latency_ms, p90_ms=latency_ms, baseline_ms=2, ratio=ratio, ratio_low=ratio, ratio_high=ratio
    )
    validation = None if lost is None else Accuracy(correct=900 - lost, total=1000, lost=lost)
    return Measurement(
        size_bytes=size_bytes,
        compressed_bytes=1,
        size_ratio=size_bytes / BASELINE_BYTES,
        latency=latency,
        validation=validation,
    )


def test_amounts_by_hand() -> None:
    found = violations(ALL, measurement(100_000, 0.25, 0.5, lost=25), BASELINE_BYTES)
    assert found == pytest.approx(
        {
            "max_size_bytes": math.log(2.0),
            "max_size_ratio": math.log(1.0),
            "max_latency_ms": math.log(0.5),
            "min_speedup": math.log(2.0),  # twice as fast, where four times is asked for
            "max_accuracy_drop": 2.5 - 1.5,
        }
    )


@given(st.integers(1, 10**7), st.integers(1, 10**6), st.floats(0.01, 1.0))
def test_a_file_within_its_bytes_is_feasible_and_no_other(size: int, allowed: int, ratio: float) -> None:
    limits = LimitsSection(max_size_bytes=allowed, max_size_ratio=ratio)
    found = size_violations(limits, size, BASELINE_BYTES)
    assert (found["max_size_bytes"] <= 0) is (size <= allowed)
    if not math.isclose(size, ratio * BASELINE_BYTES):
        assert (found["max_size_ratio"] <= 0) is (size <= ratio * BASELINE_BYTES)


@given(st.floats(0.01, 100), st.floats(0.01, 2), st.floats(0.01, 100), st.floats(0.1, 50))
def test_a_file_within_its_time_is_feasible_and_no_other(
    latency: float, ratio: float, allowed: float, speedup: float
) -> None:
    found = latency_violations(LimitsSection(max_latency_ms=allowed, min_speedup=speedup), latency, ratio)
    assert (found["max_latency_ms"] <= 0) is (latency <= allowed)
    if not math.isclose(1 / ratio, speedup):
        assert (found["min_speedup"] <= 0) is (1 / ratio >= speedup)


def test_what_is_not_limited_or_not_measured_is_not_violated() -> None:
    assert violations(LimitsSection(), measurement(), BASELINE_BYTES) == {}
    untrained = violations(ALL, measurement(lost=None), BASELINE_BYTES)
    assert untrained.keys() == {"max_size_bytes", "max_size_ratio", "max_latency_ms", "min_speedup"}
    untimed = measurement(lost=None).model_copy(update={"latency": None})
    assert violations(ALL, untimed, BASELINE_BYTES).keys() == {"max_size_bytes", "max_size_ratio"}


def test_a_gain_in_accuracy_is_within_any_drop() -> None:
    strict = LimitsSection(max_accuracy_drop=0.0)
    assert violations(strict, measurement(lost=0), BASELINE_BYTES) == {"max_accuracy_drop": 0.0}
    assert violations(strict, measurement(lost=1), BASELINE_BYTES)["max_accuracy_drop"] == pytest.approx(0.1)


def test_names_are_those_of_the_limits_that_are_set() -> None:
    assert (
        set(limit_names(ALL)) == set(violations(ALL, measurement(), BASELINE_BYTES)) == set(LimitsSection.model_fields)
    )
    assert limit_names(LimitsSection(min_speedup=2.0)) == ["min_speedup"]
    assert limit_names(LimitsSection(max_accuracy_drop=0.0)) == ["max_accuracy_drop"]


def test_only_broken_limits_are_described() -> None:
    found = violations(ALL, measurement(100_000, 0.25, 0.5, lost=25), BASELINE_BYTES)
    text = describe_broken(found, ALL)
    assert "max_size_bytes = 50000 (2.00 times over)" in text
    assert "min_speedup = 4.0 (2.00 times over)" in text
    assert "max_accuracy_drop = 1.5 (1.00 points over)" in text
    assert "max_latency_ms" not in text and "max_size_ratio" not in text
    assert describe_broken(violations(ALL, measurement(), BASELINE_BYTES), ALL) == ""
