"""What a last training may take, so that its file is there in time."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import cast

import pytest

from autocompress.candidate import Candidate, Origin, State
from autocompress.engine.continuation import Continuation
from autocompress.engine.session import Session
from autocompress.engine.study import _affordable_steps
from autocompress.engine.time_left import (
    LATE,
    POLISH_SHARE,
    USUAL_OVERHEAD_S,
    training_time_left_s,
    usual_overhead_s,
)
from autocompress.plan import Plan, TrainingSpec


def session(timeout: float | None, elapsed: float, polish: bool = False) -> Session:
    study = SimpleNamespace(timeout_s=timeout)
    bench = SimpleNamespace(teacher=None, training=None)
    stand_in = SimpleNamespace(
        config=SimpleNamespace(study=study), elapsed_s=lambda: elapsed, bench=bench, polish=polish
    )
    return cast(Session, stand_in)


def trained(steps: int, seconds: float, overhead: float) -> Candidate:
    return Candidate(
        trial=0, origin=Origin.SAMPLED, state=State.COMPLETE, plan=Plan(training=TrainingSpec(steps=steps)),
        started_s=100.0, finished_s=100.0 + seconds + overhead, stage_seconds={"train": seconds},
    )  # fmt: skip


@pytest.mark.parametrize("elapsed", [0.0, 1000.0, 3000.0, 3500.0])
@pytest.mark.parametrize("overhead", [2.0, 30.0])
def test_a_training_that_is_late_still_ends_in_time(elapsed: float, overhead: float) -> None:
    given = training_time_left_s(session(3600.0, elapsed), overhead)
    assert given < 3600.0 - elapsed - overhead
    if given > 0:
        assert elapsed + given * (1 + LATE) + overhead <= 3600.0


@pytest.mark.parametrize("elapsed", [0.0, 1000.0, 2500.0])
def test_what_comes_before_polishing_leaves_it_its_time(elapsed: float) -> None:
    begins = (1 - POLISH_SHARE) * 3600.0
    given = training_time_left_s(session(3600.0, elapsed, polish=True), 20.0)
    assert elapsed + given * (1 + LATE) + 20.0 <= begins
    assert given == training_time_left_s(session(begins, elapsed), 20.0)
    late = begins + 10.0
    assert training_time_left_s(session(3600.0, late, True), 20.0) == training_time_left_s(session(3600.0, late), 20.0)


def test_without_a_timeout_time_is_free() -> None:
    assert training_time_left_s(session(None, 1e6), 10.0) == math.inf


def test_the_overhead_is_what_files_took_beside_training() -> None:
    assert usual_overhead_s([]) == USUAL_OVERHEAD_S
    assert usual_overhead_s([trained(10, 5.0, 3.0), trained(10, 50.0, 4.0), trained(10, 1.0, 9.0)]) == pytest.approx(
        4.0
    )


@pytest.mark.parametrize(("elapsed", "steps"), [(1000.0, 1800), (3400.0, 1600), (3590.0, 0)])
def test_the_plain_engine_counts_steps_by_the_same_rule(elapsed: float, steps: int) -> None:
    parent = trained(1000, 100.0, 20.0)
    found = _affordable_steps(session(3600.0, elapsed), Continuation(parent, 0, 200.0), 20.0)
    assert found == pytest.approx(steps, abs=1)
