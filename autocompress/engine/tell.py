"""What Optuna is told of a candidate: objectives, constraints, or that it failed."""

from __future__ import annotations

import math

import optuna
from optuna.trial import TrialState

from autocompress.candidate import Candidate, Measurement, State
from autocompress.engine.limits import limit_names
from autocompress.engine.pareto import objective_vector, scalar_objective, scalarise
from autocompress.engine.session import Session

WORST_DROP_POINTS = 20.0
"""Drop that the sampler is told for a plan that was not trained, and the most it is ever told."""


def tell(session: Session, trial: optuna.Trial, candidate: Candidate) -> None:
    """Report a record to Optuna: values, constraints, or that it failed."""
    if candidate.state is State.FAILED:
        session.study.tell(trial, state=TrialState.FAIL)
    elif trial.user_attrs.get("outside"):
        # samplers that intersect the spaces of all complete trials would be left with nothing
        session.study.tell(trial, state=TrialState.PRUNED)
    else:
        for name in limit_names(session.config.limits):
            trial.set_constraint(name, candidate.violations.get(name, WORST_DROP_POINTS))
        session.study.tell(trial, _estimated(session, candidate) or _values(session, candidate.measurement))


def _estimated(session: Session, candidate: Candidate) -> list[float] | None:
    """Objectives of an estimated candidate; None of any other."""
    estimate = candidate.estimate
    if candidate.state is not State.ESTIMATED or estimate is None:
        return None
    drop = WORST_DROP_POINTS if estimate.drop_points is None else min(estimate.drop_points, WORST_DROP_POINTS)
    if session.config.study.mode == "pareto":
        return [drop, math.log(estimate.size_ratio), math.log(estimate.latency_ratio)]
    assert session.baseline.validation is not None
    accuracy = session.baseline.validation.fraction - drop / 100
    return [scalarise(accuracy, estimate.size_ratio, estimate.latency_ratio, session.config.objective)]


def _values(session: Session, measurement: Measurement | None) -> list[float]:
    """Objectives; the worst ones where a plan was stopped at a limit and has none."""
    if session.config.study.mode == "scalar":
        return [_scalar_value(session, measurement)]
    if measurement is None:
        return [WORST_DROP_POINTS, 0.0, 0.0]
    if measurement.validation is None:
        latency = 0.0 if measurement.latency is None else math.log(measurement.latency.ratio)
        return [WORST_DROP_POINTS, math.log(measurement.size_ratio), latency]
    drop, size, latency = objective_vector(measurement)
    return [min(drop, WORST_DROP_POINTS), size, latency]


def _scalar_value(session: Session, measurement: Measurement | None) -> float:
    if measurement is not None and measurement.validation is not None:
        return scalar_objective(measurement, session.config.objective)
    return -session.config.objective.beta
