"""What is next, by what the recorded candidates have taken of the time."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import cast

import pytest

from autocompress.candidate import Candidate, Estimate, Origin, State
from autocompress.engine.ladder import Ladder
from autocompress.engine.pace import (
    FILES_BEFORE_NEXT,
    JOINS_UNTIL,
    LEAST_CYCLES,
    LENGTHS,
    LONG,
    REDUCTIONS,
    SHARES,
    first_trained,
    in_order_of_need,
    length_s,
    polishing_began_s,
    trained_for_long,
)
from autocompress.engine.session import Session
from autocompress.engine.time_left import LATE, POLISH_SHARE
from autocompress.plan import ArchitectureSpec, Plan, TrainingSpec


def ladder(shared_s: float, coming: str | None = None) -> Ladder:
    study = SimpleNamespace(timeout_s=3600.0)
    session = SimpleNamespace(polish=False, config=SimpleNamespace(study=study))
    record = {"base": {"cycles": LEAST_CYCLES}}
    shared = SimpleNamespace(seconds=lambda: shared_s, record=lambda: record)
    return cast(Ladder, SimpleNamespace(session=session, shared=shared, families=("base",), next_family=lambda: coming))


def took(
    trial: int,
    seconds: float,
    origin: Origin,
    state: State = State.COMPLETE,
    began: float | None = None,
    family: str = "base",
) -> Candidate:
    start = 100.0 * trial if began is None else began
    plan = Plan(architecture=ArchitectureSpec(family=family), training=TrainingSpec(steps=100))
    return Candidate(trial=trial, origin=origin, state=state, plan=plan, started_s=start, finished_s=start + seconds)


def test_the_first_trained_of_a_family_is_its_first_file_and_not_what_failed_before_it() -> None:
    failed = took(1, 5.0, Origin.PROMOTED, State.OVER_LIMIT)
    later, first = took(2, 30.0, Origin.PROMOTED, began=900.0), took(3, 300.0, Origin.PROMOTED, began=300.0)
    enqueued = took(0, 10.0, Origin.ENQUEUED)
    student = took(4, 300.0, Origin.PROMOTED, began=600.0, family="space")
    assert first_trained([enqueued, failed]) == {}
    assert first_trained([enqueued, failed, later, first]) == {"base": first}
    assert first_trained([student, later, first]) == {"base": first, "space": student}
    went_on = took(5, 400.0, Origin.CONTINUED, began=1000.0)
    assert trained_for_long([enqueued, later, first, student, went_on]) == [first, student, went_on]


@pytest.mark.parametrize("behind", SHARES)
def test_what_lags_most_behind_its_share_is_next(behind: str) -> None:
    spent = {action: 1000.0 * share * (0.2 if action == behind else 1.0) for action, share in SHARES.items()}
    candidates = [
        took(0, spent["estimate"], Origin.SAMPLED, State.ESTIMATED),
        took(1, 300.0, Origin.PROMOTED),  # the first belongs to no share
        took(2, spent["train_on"], Origin.CONTINUED),
        took(3, spent["promote"], Origin.PROMOTED),
    ]
    order = in_order_of_need(ladder(spent["share"]), candidates, 0.5)
    assert next(action for action in order if action != "reduce") == behind


def test_a_family_joins_when_the_one_before_it_has_its_first_files() -> None:
    scored = Estimate(size_ratio=0.1, latency_ratio=0.1, divergence=1.0, shared_drop_points=5.0, drop_points=1.0)
    waits = took(0, 1.0, Origin.SAMPLED, State.ESTIMATED).model_copy(update={"estimate": scored})
    assert in_order_of_need(ladder(20.0, "space"), [waits], 0.05)[:2] == ["promote", "join"]
    failed = took(1, 5.0, Origin.PROMOTED, State.FAILED)
    assert in_order_of_need(ladder(20.0, "space"), [waits, failed], 0.2)[:2] == ["promote", "join"]
    first = took(1, 300.0, Origin.PROMOTED)
    assert in_order_of_need(ladder(20.0, "space"), [waits, first], 0.2)[:2] == ["reduce", "join"]
    tried = [waits, first, *(took(n, 30.0, Origin.PROMOTED) for n in range(2, FILES_BEFORE_NEXT + 1))]
    assert in_order_of_need(ladder(20.0, "space"), tried[:-1], 0.2)[:2] == ["reduce", "join"]
    assert in_order_of_need(ladder(20.0, "space"), tried, 0.2)[0] == "join"
    assert "join" not in in_order_of_need(ladder(20.0), tried, 0.2)


def test_a_family_that_comes_too_late_for_files_of_its_own_stays_out() -> None:
    files = [took(n, 30.0, Origin.PROMOTED) for n in range(FILES_BEFORE_NEXT)]
    assert in_order_of_need(ladder(20.0, "space"), files, JOINS_UNTIL)[0] == "join"
    late = in_order_of_need(ladder(20.0, "space"), files, JOINS_UNTIL + 0.01)
    assert "join" not in late and set(late) == {"reduce", *SHARES}


def test_what_each_family_begins_with_uses_up_no_share_of_the_time() -> None:
    """After the first files and what they are cut down to a long training is next, however long the first ones took."""
    estimates, short = took(0, 20.0, Origin.SAMPLED, State.ESTIMATED), took(2, 40.0, Origin.PROMOTED)
    for first_s in (40.0, 4000.0):
        candidates = [estimates, took(1, first_s, Origin.PROMOTED), short]
        order = in_order_of_need(ladder(60.0), candidates, 0.2)
        assert next(action for action in order if action != "reduce") == "train_on"


def test_what_was_trained_for_long_is_reduced_before_anything_else_and_not_for_ever() -> None:
    """Short trainings have had more than their share; the reductions of a long one belong to it."""
    first, short = took(1, 20.0, Origin.PROMOTED), took(2, 900.0, Origin.PROMOTED, began=200.0)
    long = took(3, 400.0, Origin.CONTINUED, began=1200.0)
    files = [first, short, long, took(7, 100.0, Origin.SAMPLED, State.ESTIMATED)]
    made = [took(10 + n, 50.0, Origin.PROMOTED, began=1800.0 + 60.0 * n) for n in range(REDUCTIONS)]
    for count in range(REDUCTIONS):
        order = in_order_of_need(ladder(300.0), [*files, *made[:count]], 0.5)
        assert order[0] == "reduce" and set(order[1:]) == set(SHARES)
    assert "reduce" not in in_order_of_need(ladder(300.0), [*files, *made], 0.5)
    assert "reduce" not in in_order_of_need(ladder(300.0), files[-1:], 0.5)


def at(elapsed_s: float, timeout_s: float | None = 3600.0, overhead_s: float = 20.0) -> Ladder:
    study = SimpleNamespace(timeout_s=timeout_s)
    session = SimpleNamespace(polish=False, config=SimpleNamespace(study=study), elapsed_s=lambda: elapsed_s)
    return cast(Ladder, SimpleNamespace(session=session, overhead_s=overhead_s))


def test_the_last_long_training_leaves_time_for_a_short_one() -> None:
    assert length_s(at(300.0), "train_on") == LONG * 3600.0
    assert length_s(at(1000.0), "train_on") == LENGTHS["train_on"] * 1000.0
    left = (1 - LATE) * (3600.0 - 2000.0) - 20.0
    last = length_s(at(2000.0), "train_on")
    assert last < left  # 1,400 s are wished for, and half as much again is not left
    ended = 2000.0 + last
    assert length_s(at(ended), "promote") <= (1 - LATE) * (3600.0 - ended) - 20.0
    assert length_s(at(ended), "promote") == LENGTHS["promote"] * ended


@pytest.mark.parametrize(("timeout_s", "trials"), [(3600.0, None), (None, 10), (3600.0, 10), (1200.0, 10)])
def test_polishing_begins_when_its_part_of_either_total_is_left(timeout_s: float | None, trials: int | None) -> None:
    study = SimpleNamespace(timeout_s=timeout_s, trials=trials)
    session = cast(Session, SimpleNamespace(config=SimpleNamespace(study=study)))
    scored = took(0, 1.0, Origin.SAMPLED, State.ESTIMATED, began=10.0)  # counts for no total
    files = [took(n, 50.0, Origin.PROMOTED, began=100.0 * n) for n in range(1, 11)]
    by_time = math.inf if timeout_s is None else (1 - POLISH_SHARE) * timeout_s
    by_files = math.inf if trials is None else files[7].started_s
    assert polishing_began_s(session, [scored, *files]) == min(by_time, by_files)
    assert polishing_began_s(session, [scored, *files[:7]]) == by_time


def test_too_little_time_for_a_long_training_is_used_whole() -> None:
    left = (1 - LATE) * 600.0 - 20.0
    assert length_s(at(3000.0), "train_on") == left
    assert length_s(at(3600.0 - 150.0), "promote") == (1 - LATE) * 150.0 - 20.0


def test_without_a_timeout_lengths_are_shares_of_the_time_so_far() -> None:
    assert length_s(at(500.0, None), "train_on") == LENGTHS["train_on"] * 500.0
