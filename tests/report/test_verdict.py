"""The pick follows its rule and never the test split; a decision without a gain is told as such."""

from __future__ import annotations

import pytest
from made_up_run import Run, accuracy, measurement

from autocompress.candidate import Candidate, Origin, State
from autocompress.plan import ArchitectureSpec, Plan
from autocompress.report.frame import candidates_frame, front_records
from autocompress.report.verdict import claimed, decision_uses, finding, verdict


def candidate(
    trial: int,
    size_ratio: float,
    latency_ratio: float,
    drop: float,
    origin: Origin = Origin.SAMPLED,
    family: str = "base",
) -> Candidate:
    plan = Plan(architecture=ArchitectureSpec(family=family))
    measured = measurement(size_ratio, latency_ratio, drop)
    return Candidate(trial=trial, origin=origin, state=State.COMPLETE, plan=plan, measurement=measured)


def sentences(run: Run, candidates: list[Candidate]) -> str:
    return " ".join(verdict(front_records(candidates_frame(candidates, run.baseline, run.config.objective))))


def test_the_pick_is_the_fastest_within_a_point(run: Run) -> None:
    candidates = [candidate(0, 0.1, 0.1, 1.02), candidate(1, 0.2, 0.25, 0.98), candidate(2, 0.05, 0.5, 0.2)]
    records = front_records(candidates_frame(candidates, run.baseline, run.config.objective))
    pick = claimed(records)
    assert pick is not None and pick["trial"] == 1
    text = " ".join(verdict(records))
    assert "trial 1" in text and "4.0x faster, 5.0x smaller" in text and "0.98 points lower" in text
    assert "not read" in text


def test_test_figures_do_not_move_the_pick(run: Run) -> None:
    first, second = candidate(0, 0.1, 0.2, 0.9), candidate(1, 0.2, 0.4, 0.1)
    assert first.measurement is not None
    bad = first.measurement.model_copy(update={"test": accuracy(10_000, 8.0)})
    candidates = [first.model_copy(update={"measurement": bad}), second]
    text = sentences(run, candidates)
    assert "trial 0" in text and "a drop of 8.00 points (paired 95 % interval [7." in text


def test_no_claim_without_a_member_or_a_gain(run: Run) -> None:
    assert "nothing to choose from" in sentences(run, [])
    far = sentences(run, [candidate(0, 0.1, 0.1, 2.5)])
    assert "No front member stays within 1.0 point" in far and "2.50 points down" in far
    assert "no gain in speed" in sentences(run, [candidate(0, 0.9, 1.25, 0.0)])


def test_an_enqueued_pick_is_not_sold_as_a_find(run: Run) -> None:
    text = sentences(run, [candidate(0, 0.1, 0.2, 0.5, Origin.ENQUEUED), candidate(1, 0.2, 0.4, 0.1)])
    assert "enqueued, not found by the search; the best found by the same rule is trial 1" in text


def test_what_a_decision_brought() -> None:
    base = [candidate(n, 0.5, 0.5 + 0.01 * n, 1.0) for n in range(3)]
    better = candidate(3, 0.25, 0.25, 1.0, family="space")
    uses = {use.decision: use for use in decision_uses([*base, better])}
    space = uses["model space"]
    assert (space.with_it, space.without_it, space.on_front) == (1, 3, 1)
    # (ln 2)^2 of (2 ln 2)^2 is reached without it.
    assert space.volume_lost == pytest.approx(0.75)
    assert finding(space) == "without it 75 % of the hypervolume is not reached"


def test_a_decision_without_a_gain_is_told_as_such() -> None:
    base = [candidate(n, 0.5, 0.5 + 0.01 * n, 1.0) for n in range(3)]
    worse = candidate(3, 0.9, 0.9, 1.5, family="space")
    uses = {use.decision: use for use in decision_uses([*base, worse])}
    assert finding(uses["model space"]) == "brought nothing: no member of the front uses it"
    assert finding(uses["channels pruned"]) == "no candidate within the limits uses it"
    assert finding(uses["found by the search, not enqueued"]).startswith("cannot be told: 0 ")
    assert all(use.volume_lost is None for use in decision_uses([]))
