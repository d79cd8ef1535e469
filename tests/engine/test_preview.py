"""What ``check`` says of limits, before any search."""

from __future__ import annotations

import math

import pytest

from autocompress.config import LimitsSection
from autocompress.engine.preview import _by_reason, _limits_table


def rows(limits: LimitsSection, found: dict[str, dict[str, float]]) -> list[list[str]]:
    return [line.split("  ") for line in _limits_table(limits, found)]


def cells(limits: LimitsSection, found: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    """Cells of each row by its first."""
    split = ([cell.strip() for cell in row if cell.strip()] for row in rows(limits, found))
    return {row[0]: row[1:] for row in split}


def test_a_limit_can_be_met_if_one_family_meets_it() -> None:
    limits = LimitsSection(max_size_bytes=1000, min_speedup=3.0, max_latency_ms=2.0)
    found = {
        "base": {"max_size_bytes": math.log(1.5), "min_speedup": -0.2, "max_latency_ms": math.log(4)},
        "space": {"max_size_bytes": 0.0, "min_speedup": math.log(2), "max_latency_ms": math.log(1.25)},
    }
    assert cells(limits, found) == {
        "limit": ["value", "base", "space", "verdict"],
        "max_size_bytes": ["1000", "1.50 times over", "met", "can be met"],
        "min_speedup": ["3.0", "met", "2.00 times over", "can be met"],
        "max_latency_ms": ["2.0", "4.00 times over", "1.25 times over", "CANNOT be met: loosen it"],
    }


def test_the_columns_of_limits_stand_below_each_other() -> None:
    found = {"base": {"max_size_bytes": -0.1}}
    lines = list(_limits_table(LimitsSection(max_size_bytes=1000, max_accuracy_drop=1.0), found))
    verdicts = [line.index(word) for line, word in zip(lines, ("verdict", "only", "can"), strict=True)]
    assert len(set(verdicts)) == 1
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize("limits", [LimitsSection(max_accuracy_drop=1.0)])
def test_of_accuracy_only_training_can_tell(limits: LimitsSection) -> None:
    assert cells(limits, {"base": {}})["max_accuracy_drop"] == ["1.0", "-", "only training can tell"]


def test_without_limits_there_is_no_table() -> None:
    assert list(_limits_table(LimitsSection(), {"base": {}})) == ["limits: the study sets none"]


def test_what_is_left_out_is_said_once_for_each_reason() -> None:
    found = _by_reason({"a": "too odd", "b": "too long", "c": "too odd"})
    assert found == {"too odd": ["a", "c"], "too long": ["b"]}
