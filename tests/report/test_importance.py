"""Importance finds the parameter that decides, in studies whose families have parameters of their own."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from made_up_run import Run, measurement

from autocompress.candidate import Candidate, Origin, State
from autocompress.plan import Plan
from autocompress.report.importance import (
    LEAST_TRIALS,
    OBJECTIVES,
    draw_importance,
    importance,
    most_important,
)


def made_up(count: int, origin: Origin = Origin.SAMPLED) -> tuple[optuna.Study, list[Candidate]]:
    """Size follows ``base.x``, latency ``space.y``, accuracy ``z``; a trial has ``x`` or ``y``."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    generator = np.random.default_rng(0)
    unit = optuna.distributions.FloatDistribution(0.0, 1.0)
    study, candidates = optuna.create_study(directions=["minimize"] * 3), []
    for trial in range(count):
        own = "base.x" if trial % 2 else "space.y"
        params = {name: float(generator.random()) for name in (own, "z", "noise")}
        size = 0.2 + 0.7 * params.get("base.x", 1.0)
        latency = 0.2 + 0.7 * params.get("space.y", 1.0)
        # The storage's own values are worthless here: figures come from the candidates.
        distributions: dict[str, optuna.distributions.BaseDistribution] = dict.fromkeys(params, unit)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, values=[0.0] * 3))
        measured = measurement(size, latency, 3.0 * params["z"])
        candidates.append(
            Candidate(trial=trial, origin=origin, state=State.COMPLETE, plan=Plan(), measurement=measured)
        )
    return study, candidates


def test_the_deciding_parameter_leads_its_objective() -> None:
    found = importance(*made_up(80))
    assert found is not None and found.trials == 80
    leaders = {objective: max(shares, key=lambda name: shares[name]) for objective, shares in found.shares.items()}
    assert leaders == {"validation drop": "z", "size": "base.x", "latency": "space.y"}
    assert all(sum(shares.values()) == pytest.approx(1.0) for shares in found.shares.values())
    assert found.presence == {"base.x": 0.5, "space.y": 0.5, "z": 1.0, "noise": 1.0}
    assert set(most_important(found, 3)) == {"z", "base.x", "space.y"}


def test_too_few_trials_or_no_study_give_nothing() -> None:
    study, candidates = made_up(LEAST_TRIALS)
    assert importance(study, candidates) is not None
    assert importance(study, candidates[:-1]) is None
    assert importance(None, candidates) is None
    assert importance(*made_up(40, Origin.CONTINUED)) is None


def test_bars_say_what_they_cover(run: Run) -> None:
    found = importance(run.study, run.candidates)
    assert found is not None
    figure = draw_importance(found)
    assert len(figure.data) == len(OBJECTIVES)
    assert all("of trials" in label for label in figure.data[0].y)
