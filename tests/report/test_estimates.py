"""Estimated plans: counted, compared with what was measured, and in no figure, table of failures or front."""

from __future__ import annotations

import pytest
from made_up_run import Run, measurement
from test_page import rendered

from autocompress.candidate import Candidate, Estimate, Origin, State
from autocompress.engine.pareto import front
from autocompress.plan import Plan, Precision, QuantizationSpec
from autocompress.report.accuracy_view import accuracy_view
from autocompress.report.estimates import estimate_check
from autocompress.report.frame import candidates_frame, front_records, front_rows
from autocompress.report.selection import select_best
from autocompress.report.table import origin_text

FIRST, PLANS, PROMOTED = 100, 300, 6


def estimate(drop: float, size: float = 0.1, speed: float = 0.2) -> Estimate:
    return Estimate(size_ratio=size, latency_ratio=speed, divergence=0.1, shared_drop_points=3 * drop, drop_points=drop)


def estimated(trial: int, drop: float) -> Candidate:
    precisions = {f"layer{n}": Precision.W4A8 for n in range(56)}
    return Candidate(
        trial=trial, origin=Origin.MUTATED, state=State.ESTIMATED, estimate=estimate(drop),
        plan=Plan(quantization=QuantizationSpec(precisions=precisions)),
    )  # fmt: skip


def promoted(trial: int, parent: int, drop: float, size: float = 0.08, speed: float = 0.25) -> Candidate:
    return Candidate(
        trial=trial, origin=Origin.PROMOTED, state=State.COMPLETE, parent=parent, plan=Plan(),
        measurement=measurement(size, speed, drop),
    )  # fmt: skip


@pytest.fixture
def laddered(run: Run) -> Run:
    """The made-up run, 300 plans that were estimated (and expected to win) and 6 of them promoted."""
    plans = [estimated(FIRST + n, drop=-5.0 + 0.01 * n) for n in range(PLANS)]
    trained = [promoted(FIRST + PLANS + n, FIRST + 10 * n, drop=1.0 + n, size=0.02, speed=0.1) for n in range(PROMOTED)]
    return Run(run.config, run.baseline, [*run.candidates, *plans, *trained], run.facts, run.study)


def test_the_page_counts_them_and_leaves_them_out(run: Run, laddered: Run) -> None:
    page, without = rendered(laddered), rendered(run)
    complete = sum(c.state is State.COMPLETE for c in laddered.candidates)
    assert f"{PLANS} plans estimated, {complete} trained and measured" in page
    assert f"{PROMOTED} of them were promoted to training" in page
    assert "plans estimated" not in without and "Estimated plans" not in without
    failures, failures_without = (text.split("Trials that did not make it")[1] for text in (page, without))
    assert failures.split("</section>")[0] == failures_without.split("</section>")[0]
    assert "trial 105 " not in page
    # what 300 plans add is less than 100 bytes each
    assert len(page) - len(without) < 100 * PLANS


def test_they_are_no_members_and_no_points(laddered: Run) -> None:
    frame = candidates_frame(laddered.candidates, laddered.baseline, laddered.config.objective)
    rows = frame[frame["state"] == State.ESTIMATED.value]
    assert len(rows) == PLANS and not rows["on_front"].any() and not rows["feasible"].any()
    assert rows[["artifact", "size_bytes", "val_accuracy", "h"]].isna().all(axis=None)
    assert rows["estimated_drop_points"].iloc[0] == -5.0 and rows["estimated_size_ratio"].iloc[0] == 0.1
    numbers = set(rows["trial"])
    assert not numbers & {c.trial for c in front(laddered.candidates)}
    assert not numbers & set(front_rows(frame)["trial"])
    assert select_best(frame, "min val_drop_points") not in numbers
    for cost in ("size", "latency"):
        view = accuracy_view(frame, laddered.baseline, laddered.config.limits, cost)  # type: ignore[arg-type]
        drawn = {trial for points in (*view.points.values(), view.stopped) for trial in points.trials}
        assert not drawn & numbers and FIRST + PLANS in drawn
        assert len(view.continued) == sum(c.origin is Origin.CONTINUED for c in laddered.candidates)


def test_origins_of_the_ladder(laddered: Run) -> None:
    frame = candidates_frame(laddered.candidates, laddered.baseline, laddered.config.objective)
    shown = {record["trial"]: origin_text(record) for record in front_records(frame)}
    assert shown[FIRST + PLANS] == f"promoted from {FIRST}"
    assert origin_text({"origin": "mutated", "parent": None, "name": ""}) == "mutated"


def test_estimates_are_compared_with_what_was_measured() -> None:
    plans = [estimated(n, drop) for n, drop in enumerate((0.0, 1.0, 2.0, 3.0, 4.0))]
    trained = [promoted(10 + n, n, drop) for n, drop in enumerate((0.5, 1.5, 2.5, 4.0, 3.5))]
    kept = promoted(20, 0, 2.0).model_copy(update={"estimate": estimate(2.1, size=0.08, speed=0.25), "parent": None})
    again = promoted(21, 10, 9.0).model_copy(update={"origin": Origin.CONTINUED})
    found = estimate_check([*plans, *trained, kept, again])
    assert (found.estimated, found.promoted, found.compared) == (5, 5, 6)
    assert found.size_error_percent == pytest.approx(25.0) and found.latency_error_percent == pytest.approx(20.0)
    assert found.drop_error_points == pytest.approx(0.5)
    assert found.rank_correlation == pytest.approx(1 - 6 * 4 / (6 * 35))  # two pairs of neighbours are swapped


def test_plans_beyond_a_limit_have_no_expected_drop(laddered: Run) -> None:
    beyond = estimated(0, 1.0).model_copy(update={"estimate": Estimate(size_ratio=0.5, latency_ratio=0.9)})
    found = estimate_check([beyond, promoted(1, 0, 1.0)])
    assert found.compared == 1 and found.drop_error_points is None
    page = rendered(laddered, candidates=[beyond, promoted(1, 0, 1.0)])
    assert "1 plans estimated, 1 trained and measured" in page and "1 of them was promoted" in page
    frame = candidates_frame([beyond], laddered.baseline, laddered.config.objective)
    assert frame["estimated_drop_points"].isna().all() and frame["estimated_size_ratio"].iloc[0] == 0.5


def test_nothing_is_claimed_of_too_few() -> None:
    assert estimate_check([estimated(0, 1.0)])[2:] == (0, None, None, None, None)
    alike = [estimated(n, 1.0) for n in range(6)] + [promoted(10 + n, n, float(n)) for n in range(6)]
    assert estimate_check(alike).rank_correlation is None
