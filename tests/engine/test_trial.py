"""What a trial measures before it trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from autocompress.candidate import Candidate, Estimate, Latency, Measurement, Origin, State
from autocompress.config import LimitsSection
from autocompress.engine.limits import TABLE_ERROR
from autocompress.engine.session import Session
from autocompress.engine.trial import Current, needs_latency_first
from autocompress.plan import Plan, PruningSpec, TrainingSpec

PLAN = Plan(pruning=PruningSpec(ratios={"a": 0.5}), training=TrainingSpec(steps=100))


def measured(ratio: float) -> Measurement:
    latency = Latency(
        latency_ms=10 * ratio, p90_ms=11.0, baseline_ms=10.0, ratio=ratio, ratio_low=ratio, ratio_high=ratio
    )
    return Measurement(size_bytes=10, compressed_bytes=10, size_ratio=1.0, latency=latency)


def file(ratio: float, plan: Plan = PLAN) -> Candidate:
    return Candidate(trial=1, origin=Origin.SAMPLED, state=State.COMPLETE, plan=plan, measurement=measured(ratio))


def estimate(ratio: float) -> Candidate:
    found = Estimate(size_ratio=0.1, latency_ratio=ratio)
    return Candidate(trial=1, origin=Origin.SAMPLED, state=State.ESTIMATED, plan=PLAN, estimate=found)


def is_timed(parent: Candidate | None, plan: Plan = PLAN, **limits: float) -> bool:
    session = SimpleNamespace(config=SimpleNamespace(limits=LimitsSection(**limits)), baseline=measured(1.0))
    current = Current(2, Origin.PROMOTED, "", parent, 0.0, plan)
    return needs_latency_first(cast(Session, session), current)


@pytest.mark.parametrize("limits", [{"min_speedup": 4.0}, {"max_latency_ms": 2.5}])
def test_a_file_is_timed_before_its_training_where_a_limit_may_be_broken(limits: dict[str, float]) -> None:
    assert is_timed(None, **limits)
    assert not is_timed(None)
    assert not is_timed(None, PLAN.model_copy(update={"training": TrainingSpec()}), **limits)
    assert is_timed(file(0.26), **limits) and not is_timed(file(0.24), **limits)
    # what tables say may be wrong
    assert is_timed(estimate(0.25 * (1 - TABLE_ERROR / 2)), **limits)
    assert not is_timed(estimate(0.25 * (1 - 2 * TABLE_ERROR)), **limits)


def test_a_parent_of_another_structure_says_nothing() -> None:
    other = PLAN.model_copy(update={"pruning": PruningSpec(ratios={"a": 0.25})})
    assert is_timed(file(0.1, other), min_speedup=4.0)
    assert not is_timed(file(0.1), min_speedup=4.0)
