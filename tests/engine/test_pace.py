"""What is next, by what the recorded candidates have taken of the time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from autocompress.candidate import Candidate, Origin, State
from autocompress.engine.ladder import Ladder
from autocompress.engine.pace import LEAST_CYCLES, SHARES, first_trained, in_order_of_need
from autocompress.plan import Plan, TrainingSpec


def ladder(shared_s: float) -> Ladder:
    study = SimpleNamespace(timeout_s=3600.0)
    session = SimpleNamespace(polish=False, config=SimpleNamespace(study=study))
    record = {"base": {"cycles": LEAST_CYCLES}}
    shared = SimpleNamespace(seconds=lambda: shared_s, record=lambda: record)
    return cast(Ladder, SimpleNamespace(session=session, shared=shared, families=("base",)))


def took(
    trial: int, seconds: float, origin: Origin, state: State = State.COMPLETE, began: float | None = None
) -> Candidate:
    start = 100.0 * trial if began is None else began
    plan = Plan(training=TrainingSpec(steps=100))
    return Candidate(trial=trial, origin=origin, state=state, plan=plan, started_s=start, finished_s=start + seconds)


def test_the_first_trained_is_the_first_file_and_not_what_failed_before_it() -> None:
    failed = took(1, 5.0, Origin.PROMOTED, State.OVER_LIMIT)
    later, first = took(2, 30.0, Origin.PROMOTED, began=900.0), took(3, 300.0, Origin.PROMOTED, began=300.0)
    enqueued = took(0, 10.0, Origin.ENQUEUED)
    assert first_trained([enqueued, failed]) is None
    assert first_trained([enqueued, failed, later, first]) is first


@pytest.mark.parametrize("behind", SHARES)
def test_what_lags_most_behind_its_share_is_next(behind: str) -> None:
    spent = {action: 1000.0 * share * (0.2 if action == behind else 1.0) for action, share in SHARES.items()}
    candidates = [
        took(0, spent["estimate"], Origin.SAMPLED, State.ESTIMATED),
        took(1, spent["train_on"] / 2, Origin.PROMOTED),  # the first is a long training
        took(2, spent["train_on"] / 2, Origin.CONTINUED),
        took(3, spent["promote"], Origin.PROMOTED),
    ]
    assert in_order_of_need(ladder(spent["share"]), candidates, 0.5)[0] == behind


def test_a_long_first_training_does_not_use_up_the_time_of_short_ones() -> None:
    candidates = [took(0, 20.0, Origin.SAMPLED, State.ESTIMATED), took(1, 300.0, Origin.PROMOTED)]
    order = in_order_of_need(ladder(60.0), candidates, 0.2)
    assert order.index("promote") < order.index("train_on")
