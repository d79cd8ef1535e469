"""Estimates of plans: by the tables alone, and where they let a plan pass, as a member of the shared weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna

from autocompress.candidate import Candidate, Estimate, Origin, State
from autocompress.engine.expectation import KEPT_OF_CHANGE, SHOWN_OF_CUT, can_go_on
from autocompress.engine.ladder import Ladder
from autocompress.engine.limits import TABLE_ERROR, describe_broken, latency_violations, size_violations
from autocompress.engine.mutation import mutated, reduced
from autocompress.engine.pace import trained_for_long_last
from autocompress.engine.run_folder import read_candidates
from autocompress.engine.session import Session, ask, running_trials
from autocompress.engine.trial import Current, Result, describe, plan_of
from autocompress.file_lock import exclusive
from autocompress.plan import Plan

START_UP_ESTIMATES = 12
"""Random plans before the sampler's model steers: they are cheap."""


def new_estimate(ladder: Ladder, candidates: Sequence[Candidate]) -> optuna.Trial:
    """A trial to estimate: drawn by the sampler, or, once something was trained on, every second time one of the best
    with one decision changed.
    """
    session = ladder.session
    estimated = [c for c in candidates if c.state is State.ESTIMATED]
    late = any(c.origin is Origin.CONTINUED for c in candidates) and len(estimated) % 2 == 1
    with exclusive(session.run.root / "ask.lock"):
        if late:
            number = len(session.study.get_trials(deepcopy=False))
            found = mutated(candidates, ladder.guide, session.config.study.seed + number)
            if found is not None:
                _enqueue_changed(ladder, *found)
        return ask(session, START_UP_ESTIMATES)


def estimate_reduced(ladder: Ladder, candidates: Sequence[Candidate]) -> optuna.Trial | None:
    """A trial to estimate: less of what was trained for long last, bits or network; None where nothing is left.

    A short training makes a much smaller or faster file of it, which would otherwise be left to chance.
    """
    session = ladder.session
    parent = trained_for_long_last(candidates)
    if parent is None:
        return None
    with exclusive(session.run.root / "ask.lock"):
        running = [t.user_attrs for t in running_trials(session) if "plan" in t.user_attrs]
        # what began with the weights that this file had before it was trained on says nothing of it
        known = [
            c.plan for c in candidates if c.parent == parent.trial or (c.parent is None and c.origin is Origin.MUTATED)
        ]
        known += [Plan.model_validate_json(own["plan"]) for own in running if own.get("parent") in (None, parent.trial)]
        plan = reduced(parent, ladder.guide, known)
        if plan is None:
            return None
        _enqueue_changed(ladder, plan, parent)
        return ask(session, START_UP_ESTIMATES)


def _enqueue_changed(ladder: Ladder, plan: Plan, parent: Candidate) -> None:
    attributes: dict[str, Any] = {
        "plan": plan.model_dump_json(),
        "origin": "mutated",
        "rung": "estimate",
        "outside": True,
    }
    # what only takes away from a trained network begins with its weights
    begins = can_go_on(parent) and ladder.shared.inherited(plan, parent) is not None
    attributes |= {"parent": parent.trial} if begins else {}
    ladder.session.study.enqueue_trial({}, user_attrs=attributes)


def estimate(ladder: Ladder, session: Session, current: Current, trial: optuna.Trial) -> Result:
    """F0, and where the tables let the plan pass, F1."""
    with current.clock.stage("plan"):
        current.plan = plan_of(session, trial)
    session.watcher.started(current.number, current.origin, describe(current.plan, current.name))
    with current.clock.stage("predict"):
        broken, estimate, found = beyond(ladder, current.plan)
    if broken:
        return Result(State.ESTIMATED, f"limit: {broken}, by the tables", estimate=estimate, violations=found)
    with current.clock.stage("score"):
        divergence, drop = ladder.shared.score(current.plan, current.parent)
    expected, passing = _expected_drop(ladder, current, divergence, drop)
    figures = {"divergence": divergence, "shared_drop_points": drop}
    figures |= {"drop_points": expected, "passing_drop_points": passing}
    if session.config.limits.max_accuracy_drop is not None:
        found = found | {"max_accuracy_drop": expected - session.config.limits.max_accuracy_drop}
    return Result(State.ESTIMATED, estimate=estimate.model_copy(update=figures), violations=found)


def _expected_drop(ladder: Ladder, current: Current, divergence: float, drop: float) -> tuple[float, float]:
    """After the usual steps, by how far a member diverges; of a changed trained network, what it lost before, what the change
    costs or brings in the end, and a part of what it costs at once. And that part, where it is of a smaller network and
    passes.
    """
    parent = current.parent
    if parent is not None and parent.measurement is not None and parent.measurement.validation is not None:
        own = parent.measurement.validation.drop_points
        in_the_end = ladder.least_drop_points(current.plan) - ladder.least_drop_points(parent.plan)
        kept = KEPT_OF_CHANGE * max(0.0, drop - own)
        if current.plan.network == parent.plan.network:
            return own + in_the_end + kept, 0.0
        return own + SHOWN_OF_CUT * in_the_end + kept, kept
    expectation = ladder.expectation(read_candidates(ladder.session.run))
    family = current.plan.architecture.family
    return expectation.drop_points(divergence, ladder.macs_ratio(current.plan), family), 0.0


def beyond(ladder: Ladder, plan: Plan) -> tuple[str, Estimate, dict[str, float]]:
    """Limits that a plan breaks by the tables, in words and as amounts, and what the tables say."""
    limits, baseline, predictor = ladder.session.config.limits, ladder.session.baseline, ladder.predictor
    found = predictor.operators(plan)
    ratio, size = predictor.latency_ratio(found), predictor.size_bytes(plan, found)
    assert baseline.latency is not None
    amounts = size_violations(limits, round(size), baseline.size_bytes)
    amounts |= latency_violations(limits, ratio * baseline.latency.latency_ms, ratio)
    # by less the tables may be wrong
    broken = describe_broken({name: amount for name, amount in amounts.items() if amount > TABLE_ERROR}, limits)
    return broken, Estimate(size_ratio=size / baseline.size_bytes, latency_ratio=ratio), amounts
