"""What the two accuracy views show, as values; and that drawing them takes every case."""

from __future__ import annotations

import math

import pytest
from made_up_run import BASELINE_BYTES, BASELINE_MS, HOSTILE, Run, measurement

from autocompress.candidate import Candidate, Origin, State
from autocompress.config import LimitsSection
from autocompress.plan import Plan
from autocompress.report.accuracy_view import AccuracyView, Cost, accuracy_view, draw_accuracy_view
from autocompress.report.frame import candidates_frame


def view_of(run: Run, candidates: list[Candidate], cost: Cost = "latency") -> AccuracyView:
    frame = candidates_frame(candidates, run.baseline, run.config.objective)
    return accuracy_view(frame, run.baseline, run.config.limits, cost)


def test_each_candidate_is_of_one_kind(run: Run) -> None:
    view = view_of(run, run.candidates)
    shown = {kind: set(points.trials) for kind, points in view.points.items()}
    everything = [trial for trials in shown.values() for trial in trials]
    assert sorted(everything) == [c.trial for c in run.candidates if c.state is State.COMPLETE]
    infeasible = {c.trial for c in run.candidates if c.state is State.COMPLETE and not c.feasible}
    assert shown["trained, over a limit"] == infeasible and infeasible
    assert set(view.stopped.trials) == {c.trial for c in run.candidates if c.state is State.OVER_LIMIT}


def test_obvious_plans_are_named_and_continued_ones_joined_to_their_parents(run: Run) -> None:
    view = view_of(run, run.candidates, "size")
    assert [label.text for label in view.named][:3] == ["uncompressed", "int8", "uniform w4a8"]
    continued = [c for c in run.candidates if c.origin is Origin.CONTINUED]
    assert len(view.continued) == len(continued)
    for (parent_cost, parent_accuracy), (child_cost, child_accuracy) in view.continued:
        assert child_cost == pytest.approx(parent_cost) and child_accuracy > parent_accuracy


def test_limits_are_ratios_to_the_baseline(run: Run) -> None:
    limits = LimitsSection(max_latency_ms=0.79, min_speedup=4, max_size_bytes=1_000_000, max_size_ratio=0.2)
    frame = candidates_frame([], run.baseline, run.config.objective)
    latency = accuracy_view(frame, run.baseline, limits, "latency").cost_limits
    size = accuracy_view(frame, run.baseline, limits, "size").cost_limits
    assert [limit.cost_ratio for limit in latency] == pytest.approx([0.79 / BASELINE_MS, 0.25])
    assert [limit.cost_ratio for limit in size] == pytest.approx([1_000_000 / BASELINE_BYTES, 0.2])
    assert view_of(run, []).accuracy_limit == pytest.approx(88.3 - 3.0)


def test_what_failed_to_learn_does_not_squash_the_picture(run: Run) -> None:
    lost = Candidate(
        trial=99,
        origin=Origin.SAMPLED,
        state=State.COMPLETE,
        plan=Plan(),
        violations={"max_accuracy_drop": 70.0},
        measurement=measurement(0.1, 0.1, 78.0),
    )
    view = view_of(run, [*run.candidates, lost])
    assert view.below == view_of(run, run.candidates).below + 1
    assert view.accuracy_range[0] > 80.0


def test_the_pick_carries_its_gain(run: Run) -> None:
    latency, size = view_of(run, run.candidates).pick, view_of(run, run.candidates, "size").pick
    assert latency is not None and size is not None
    assert latency.text.endswith(f"{1 / latency.cost_ratio:.1f}x faster")
    assert size.text.endswith(f"{1 / size.cost_ratio:.1f}x smaller")


@pytest.mark.parametrize("count", [0, 1, 60])
def test_any_number_of_candidates_can_be_drawn(run: Run, count: int) -> None:
    for cost in ("size", "latency"):
        figure = draw_accuracy_view(view_of(run, run.candidates[:count], cost))  # type: ignore[arg-type]
        low, high = figure.layout.xaxis.range
        assert math.isfinite(low) and low < high


def test_names_are_escaped(run: Run) -> None:
    named = run.candidates[1].model_copy(update={"name": HOSTILE})
    assert HOSTILE not in str(draw_accuracy_view(view_of(run, [named])).to_dict())
