"""One trial: decide, draft, stop at a broken limit, else train and measure; then record and tell."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
from safetensors.torch import load_file
from torch.fx import GraphModule

from autocompress.candidate import Candidate, Estimate, Measurement, Origin, Parity, State
from autocompress.deploy.measure import measure_bytes
from autocompress.engine.baseline import measure_latency
from autocompress.engine.limits import TABLE_ERROR, describe_broken, latency_violations, size_violations, violations
from autocompress.engine.recovery import settle
from autocompress.engine.run_folder import (
    read_candidate,
    read_candidates,
    record,
)
from autocompress.engine.samplers import parametrisation
from autocompress.engine.session import Session
from autocompress.engine.sittings import usual_baseline_ms
from autocompress.engine.space import PerLayer, PerStage
from autocompress.engine.tell import tell
from autocompress.errors import TrialFailed, first_line
from autocompress.file_lock import exclusive
from autocompress.pipeline import answers, build_network, compare, draft, finish, least_size_bytes, parity
from autocompress.plan import Plan
from autocompress.stage_clock import StageClock


@dataclass
class Current:
    """What is known of the trial at hand, for its record."""

    number: int
    origin: Origin
    name: str
    parent: Candidate | None
    started_s: float
    plan: Plan = field(default_factory=Plan)  # until it is decided
    clock: StageClock = field(default_factory=StageClock)


Make = Callable[["Session", "Current", optuna.Trial], "Result"]
"""One way to make a candidate of a trial."""


def attempt(session: Session, trial: optuna.Trial, make: Make | None = None) -> Candidate:
    """Make one candidate; whatever fails in it is recorded and does not end the study.

    Args:
        make: how; by default a whole trial, with a file that is measured.
    """
    attributes = trial.user_attrs
    current = Current(
        number=trial.number,
        origin=Origin(attributes.get("origin", "sampled")),
        name=attributes.get("name", ""),
        parent=read_candidate(session.run, int(attributes["parent"])) if "parent" in attributes else None,
        started_s=session.elapsed_s(),
    )
    try:
        session.run.trial(trial.number).mkdir(parents=True, exist_ok=True)
        candidate = _guarded(session, current, trial, make or make_file)
        record(session.run, candidate)
        tell(session, trial, candidate)
    except BaseException:
        # interrupted: what is recorded counts, anything else a later session does again
        with exclusive(session.run.root / "ask.lock"):
            settle(session, session.study.get_trials(deepcopy=False)[trial.number])
        raise
    return candidate


def _guarded(session: Session, current: Current, trial: optuna.Trial, make: Make) -> Candidate:
    try:
        if current.parent is None and "parent" in trial.user_attrs:
            raise TrialFailed(
                "parent", f"it goes on from trial {trial.user_attrs['parent']}, which has no record any more"
            )
        result = make(session, current, trial)
    except TrialFailed as error:
        result = Result(State.FAILED, f"{error.kind}: {error}")
    except MemoryError:
        result = Result(State.FAILED, "memory: the candidate does not fit into memory")
    except Exception as error:
        kind = "memory" if "allocate memory" in str(error) else type(error).__name__
        result = Result(State.FAILED, f"{kind}: {first_line(error)}")
    gc.collect()
    parent_steps = result.steps_before or (0 if current.parent is None else current.parent.total_steps)
    trained = current.plan.training.steps if result.state is State.COMPLETE else 0
    return Candidate(
        trial=current.number,
        origin=current.origin,
        state=result.state,
        name=current.name,
        reason=result.reason,
        parent=None if current.parent is None else current.parent.trial,
        total_steps=parent_steps + trained,
        violations=result.violations,
        started_s=current.started_s,
        finished_s=session.elapsed_s(),
        stage_seconds={name: round(seconds, 4) for name, seconds in current.clock.seconds.items()},
        plan=current.plan,
        measurement=result.measurement,
        estimate=result.estimate,
    )


@dataclass(frozen=True)
class Result:
    """How a trial ended."""

    state: State
    reason: str = ""
    measurement: Measurement | None = None
    estimate: Estimate | None = None
    violations: dict[str, float] = field(default_factory=dict)
    steps_before: int = 0
    """Training steps that came before the plan's own, where no parent tells."""


def make_file(session: Session, current: Current, trial: optuna.Trial) -> Result:
    """Decide, draft, stop at a broken limit, else train and measure."""
    with current.clock.stage("plan"):
        current.plan = plan_of(session, trial)
    session.watcher.started(current.number, current.origin, describe(current.plan, current.name))
    if current.plan.changes_nothing:
        return _baseline(session, current)
    with current.clock.stage("build"):
        network = build_network(session.bench, current.plan)
    over = _over_limit_unbuilt(session, current, least_size_bytes(network, current.plan))
    if over is not None:
        return over
    path = session.run.artifact(current.number)
    unfinished = draft(session.bench, network, current.plan, path, current.clock)
    timed = needs_latency_first(session, current)
    over = _over_limit(session, current, _measure_file(session, path, current.clock, timed))
    if over is not None:
        path.unlink()
        return over
    if current.parent is not None:
        unfinished.network.load_state_dict(load_file(session.run.checkpoint(current.parent.trial)))
    checkpoint = session.run.checkpoint(current.number)
    deployable = finish(session.bench, unfinished, current.plan, path, checkpoint, current.clock)
    measurement = _measure_trained(session, current, deployable)
    found = violations(session.config.limits, measurement, session.baseline.size_bytes)
    return Result(State.COMPLETE, "", measurement, violations=found)


def _baseline(session: Session, current: Current) -> Result:
    """The baseline's own file, which was measured before."""
    made, run = session.run.baseline, session.run
    shutil.copyfile(made / "model.onnx", run.artifact(current.number))
    shutil.copyfile(made / "weights.safetensors", run.checkpoint(current.number))
    np.save(run.trial(current.number) / "validation_answers.npy", session.baseline_answers)
    measurement = session.baseline.model_copy(update={"test": None})  # read for members of the front, in the end
    found = violations(session.config.limits, measurement, session.baseline.size_bytes)
    return Result(State.COMPLETE, "", measurement, violations=found)


def plan_of(session: Session, trial: optuna.Trial) -> Plan:
    """The plan of a trial: sampled, or the one it was enqueued with."""
    attributes = trial.user_attrs
    enqueued = Plan.model_validate_json(attributes["plan"]) if "plan" in attributes else None
    if enqueued is not None and attributes.get("outside"):
        return enqueued
    per_stage = parametrisation(session.config.study.sampler) is PerStage
    draw = PerStage(trial, session.suggests.stage_kinds) if per_stage else PerLayer(trial)
    # also for an enqueued plan: Optuna records given parameters only when they are suggested
    sampled = session.suggests.suggest_plan(draw, trial.number)
    return enqueued or sampled


def _over_limit_unbuilt(session: Session, current: Current, least_bytes: int) -> Result | None:
    """Stop before the export where the packed weights alone break a limit on bytes."""
    found = size_violations(session.config.limits, least_bytes, session.baseline.size_bytes)
    broken = describe_broken(found, session.config.limits)
    if not broken or current.plan.training.steps == 0:
        return None
    return Result(State.OVER_LIMIT, f"limit: {broken}, by its weights alone", violations=found)


def _over_limit(session: Session, current: Current, measurement: Measurement) -> Result | None:
    """Stop before the training where bytes or latency break a limit; what needs none is measured all the same."""
    found = violations(session.config.limits, measurement, session.baseline.size_bytes)
    broken = describe_broken(found, session.config.limits)
    if not broken or current.plan.training.steps == 0:
        return None
    return Result(State.OVER_LIMIT, f"limit: {broken}", measurement, violations=found)


def _measure_trained(session: Session, current: Current, deployable: GraphModule) -> Measurement:
    path = session.run.artifact(current.number)
    with current.clock.stage("parity"):
        agreement = parity(session.bench, path, deployable, current.plan)
    return measure_finished(session, current, agreement)


def measure_finished(session: Session, current: Current, agreement: Parity) -> Measurement:
    """All figures of the trial's file.

    Args:
        agreement: of the file with torch.
    """
    path = session.run.artifact(current.number)
    with current.clock.stage("evaluate"):
        data = session.bench.data
        own = answers(session.bench, path, data.validation, current.plan)
        compared = compare(data, data.validation, own, session.baseline_answers)
    np.save(session.run.trial(current.number) / "validation_answers.npy", own)
    figures = {"parity": agreement, "validation": compared}
    return _measure_file(session, path, current.clock, timed=True).model_copy(update=figures)


def needs_latency_first(session: Session, current: Current) -> bool:
    """Whether a training may be in vain because a limit on latency is broken, and what is known does not rule it out."""
    limits, parent = session.config.limits, current.parent
    if current.plan.training.steps == 0 or (limits.max_latency_ms is None and limits.min_speedup is None):
        return False
    if parent is None or parent.plan.decisions != current.plan.decisions:
        return True
    if parent.measurement is not None and parent.measurement.latency is not None:
        ratio, error = parent.measurement.latency.ratio, 0.0
    elif parent.estimate is not None:
        ratio, error = parent.estimate.latency_ratio, TABLE_ERROR
    else:
        return True
    assert session.baseline.latency is not None
    found = latency_violations(limits, ratio * session.baseline.latency.latency_ms, ratio)
    return any(amount + error > 0 for amount in found.values())


def _measure_file(session: Session, path: Path, clock: StageClock, timed: bool) -> Measurement:
    measurement = measure_bytes(path, session.baseline.size_bytes)
    if not timed:
        return measurement
    with clock.stage("time"):
        baseline = session.run.baseline / "model.onnx"
        usual_ms = usual_baseline_ms(session.baseline, read_candidates(session.run))
        latency = measure_latency(path, baseline, session.bench.data, session.config.target, usual_ms)
    return measurement.model_copy(update={"latency": latency})


def describe(plan: Plan, name: str = "") -> str:
    """One line about a plan, for people."""
    architecture = plan.architecture
    if architecture.family == "base":
        body = f"base without {len(architecture.dropped_blocks)} blocks" if architecture.dropped_blocks else "base"
    else:
        body = "space " + " ".join(f"{label}={value}" for label, value in architecture.choices.items())
    bits = sorted({str(p) for p in plan.quantization.precisions.values()})
    pruned = [r for r in plan.pruning.ratios.values() if r > 0]
    parts = [
        body,
        f"{len(pruned)} groups pruned" if pruned else "",
        "/".join(bits),
        f"{plan.training.steps} steps",
    ]
    return ", ".join(([name] if name else []) + [part for part in parts if part])
