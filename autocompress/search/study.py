"""The search itself: ask, build, measure, tell; resumable at any moment, by any number of processes.

A trial's files are written before Optuna is told, so a death between the two loses nothing: whoever
comes next reads the record and tells it.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from safetensors.torch import load_file
from torch import nn
from torch.fx import GraphModule

from autocompress.analysis import Analysis
from autocompress.candidate import Candidate, Measurement, Origin, State
from autocompress.config import StudyConfig
from autocompress.deploy.measure import measure_bytes
from autocompress.errors import RunError, StudyFailed, TrialFailed, first_line
from autocompress.models import state_digest
from autocompress.pipeline import Bench, build_network, draft, finish, least_size_bytes, parity, split_hits
from autocompress.plan import Plan, TrainingSpec
from autocompress.search.baseline import (
    Inputs,
    ensure_run,
    load_inputs,
    make_bench,
    measure_latency,
    paired_accuracy,
    restore_base,
    test_hits,
    validation_hits,
)
from autocompress.search.continuation import Continuation, next_continuation
from autocompress.search.events import Watcher
from autocompress.search.limits import describe_broken, limit_names, size_violations, violations
from autocompress.search.pareto import front, objective_vector, scalar_objective
from autocompress.search.run_folder import (
    RunFolder,
    read_analysis,
    read_baseline,
    read_candidate,
    read_candidates,
    read_facts,
    record,
    remove_trial,
)
from autocompress.search.samplers import make_sampler, parametrisation
from autocompress.search.space import Space, obvious_plans
from autocompress.search.workers import exclusive, is_alive, sweep, working
from autocompress.stage_clock import StageClock

STUDY_NAME = "autocompress"
WORST_DROP_POINTS = 20.0
"""Drop that the sampler is told for a plan that was not trained, and the most it is ever told."""

LEAST_STEPS = 20
"""Fewer steps than this are not worth an export."""

ENDING_SECONDS = 4.0
"""Kept back for each candidate's export, evaluation and timing when a training is cut to the time left."""


@dataclass
class Session:
    """One process at work on one run."""

    config: StudyConfig
    run: RunFolder
    bench: Bench
    space: Space
    study: optuna.Study
    baseline: Measurement
    baseline_hits: NDArray[np.bool_]
    watcher: Watcher
    worker: str
    rank: int
    offset_s: float
    began: float = field(default_factory=time.perf_counter)

    def elapsed_s(self) -> float:
        """Seconds of run time used, those of earlier sessions included."""
        return self.offset_s + time.perf_counter() - self.began

    def progress(self, finished: int) -> float:
        """Share of the run's totals that is used, in [0, 1]."""
        study = self.config.study
        by_time = 0.0 if study.timeout_s is None else self.elapsed_s() / study.timeout_s
        by_trials = 0.0 if study.trials is None else finished / study.trials
        return min(1.0, max(by_time, by_trials))


def search(config: StudyConfig, root: Path, watcher: Watcher, storage: str | None = None) -> RunFolder:
    """Run or resume a study until its totals are used.

    Args:
        config: the validated study.
        root: the run folder; made if it is not there.
        storage: an SQLAlchemy URL; without it a journal in the run folder.

    Raises:
        UserError: the input is wrong; nothing is left behind.
        StudyFailed: not one candidate could be made.
        KeyboardInterrupt: passed on when the running trial is put back.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if storage is not None:
        _reach(storage)
    inputs = load_inputs(config)
    run = ensure_run(root, inputs, watcher)
    rank = sweep(run.workers) if run.workers.is_dir() else 0
    with working(run.workers) as worker:
        session = _open(config, run, inputs, watcher, storage, worker, rank)
        watcher.baseline(session.baseline, read_analysis(run))
        _recover(session)
        _enqueue_obvious(session)
        while _one_trial(session):
            pass
        candidates = read_candidates(run)
        if not any(c.state is State.COMPLETE for c in candidates):
            raise StudyFailed(failure_summary(candidates))
        watcher.note("reading the test split for the members of the front")
        measure_test(session)
    return run


def _open(
    config: StudyConfig,
    run: RunFolder,
    inputs: Inputs,
    watcher: Watcher,
    storage: str | None,
    worker: str,
    rank: int,
) -> Session:
    digest = restore_base(run, inputs)
    facts = read_facts(run)
    study = open_study(run, config, storage)
    finished = [c.finished_s for c in read_candidates(run)]
    if finished and not study.get_trials(deepcopy=False):
        raise RunError(
            f"a run keeps its storage; {run.root} has {len(finished)} trials and this storage none; "
            "give the --storage that the run began with"
        )
    bench = make_bench(run, inputs, facts)
    return Session(
        config=config,
        run=run,
        bench=bench,
        space=make_space(config, inputs, read_analysis(run), digest),
        study=study,
        baseline=read_baseline(run),
        baseline_hits=validation_hits(run),
        watcher=watcher,
        worker=worker,
        rank=rank,
        offset_s=max([float(facts["baseline_s"]), *finished]),
    )


def make_space(config: StudyConfig, inputs: Inputs, analysis: Analysis, digest: str) -> Space:
    """The decisions of a study over what was found in its base."""
    return Space(
        section=config.space,
        training=config.training,
        base=analysis,
        inputs=inputs.data.example_inputs(2),
        base_digest=digest,
        seed=config.study.seed,
        model_space=inputs.space,
    )


def _reach(storage: str) -> None:
    try:
        optuna.storages.get_storage(storage)
    except Exception as error:
        raise RunError(
            f"--storage is a database that SQLAlchemy can reach, such as sqlite:///study.db; {storage}: {first_line(error)}; "
            "check the URL, the server and its driver"
        ) from error


def open_study(run: RunFolder, config: StudyConfig, storage: str | None) -> optuna.Study:
    """The run's Optuna study, made if it is not there."""
    backend: BaseStorage | str = storage or JournalStorage(JournalFileBackend(str(run.journal)))
    # several runs may share a database, a journal has one
    name = f"{config.study.name}@{run.root.resolve()}" if storage else STUDY_NAME
    best, least = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    directions = [best] if config.study.mode == "scalar" else [least] * 3
    study = optuna.create_study(storage=backend, study_name=name, directions=directions, load_if_exists=True)
    if config.study.mode == "pareto":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(["drop_points", "ln_size_ratio", "ln_latency_ratio"])
    return study


# What to do next


def _one_trial(session: Session) -> bool:
    """Do one trial; False when the totals are used or nothing is left to do."""
    with exclusive(session.run.root / "ask.lock"):
        candidates = read_candidates(session.run)
        running = _running(session)
        progress = session.progress(len(candidates) + len(running))
        if progress >= 1.0 or not _prepare_next(session, candidates, running, progress):
            return False
        trial = _ask(session)
    candidate = _attempt(session, trial)
    session.watcher.finished(candidate, read_candidates(session.run), session.progress(len(candidates) + 1))
    return True


def _running(session: Session) -> list[FrozenTrial]:
    return session.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _prepare_next(
    session: Session, candidates: Sequence[Candidate], running: Sequence[FrozenTrial], progress: float
) -> bool:
    """Enqueue a continuation where one is due; False if nothing is left to do in the time."""
    if session.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return True
    share = session.config.training.continued_fraction
    timeout = session.config.study.timeout_s
    if share > 0 and progress >= 1 - share:
        continuation = next_continuation(
            candidates,
            busy={int(t.user_attrs["parent"]) for t in running if "parent" in t.user_attrs},
            members=session.config.training.continued_members,
            progress=(progress - (1 - share)) / share,
            seconds=None if timeout is None else timeout * share,
        )
        if continuation is not None and _affordable_steps(session, continuation) >= LEAST_STEPS:
            _enqueue_continuation(session, continuation)
            return True
    return _has_time_for_another(session, candidates)


def _has_time_for_another(session: Session, candidates: Sequence[Candidate]) -> bool:
    """Whether a trial of the usual length ends before the timeout; the first ones are always tried."""
    timeout = session.config.study.timeout_s
    usual = [c.finished_s - c.started_s for c in candidates if c.origin is Origin.SAMPLED and c.state is State.COMPLETE]
    return timeout is None or not usual or session.elapsed_s() + statistics.median(usual) <= timeout


def _enqueue_continuation(session: Session, continuation: Continuation) -> None:
    parent = continuation.parent
    steps = _affordable_steps(session, continuation)
    start = state_digest(load_file(session.run.checkpoint(parent.trial)))
    plan = parent.plan.model_copy(
        update={"training": TrainingSpec(steps=steps, start=start), "seed": parent.plan.seed + 1000}
    )
    original = session.study.get_trials(deepcopy=False)[parent.trial]
    session.study.enqueue_trial(
        original.params,
        user_attrs={
            "plan": plan.model_dump_json(),
            "origin": "continued",
            "parent": parent.trial,
            "name": parent.name,
        },
    )


def _affordable_steps(session: Session, continuation: Continuation) -> int:
    """Steps that fit the continuation's seconds (or what is left of the study) at the parent's speed."""
    parent, timeout = continuation.parent, session.config.study.timeout_s
    if continuation.seconds is None or timeout is None:
        return parent.plan.training.steps * 3
    seconds_per_step = parent.stage_seconds["train"] / parent.plan.training.steps
    left = timeout - session.elapsed_s()
    return int((min(continuation.seconds, left) - ENDING_SECONDS) / seconds_per_step)


def _ask(session: Session) -> optuna.Trial:
    study = session.study
    draws = len(study.get_trials(deepcopy=False))
    study.sampler = make_sampler(session.config.study.sampler, session.config.study.seed, draws, session.rank)
    trial = study.ask()
    trial.set_user_attr("worker", session.worker)
    return trial


def _enqueue_obvious(session: Session) -> None:
    """Enqueue what is not yet: a death in between must neither lose a plan nor enqueue it twice."""
    with exclusive(session.run.root / "ask.lock"):
        trials = session.study.get_trials(deepcopy=False)
        known = {t.user_attrs["name"] for t in trials if t.user_attrs.get("origin") == "enqueued"}
        for named in obvious_plans(session.space, parametrisation(session.config.study.sampler)):
            if named.name in known:
                continue
            attributes = {"plan": named.plan.model_dump_json(), "origin": "enqueued", "name": named.name}
            outside = {} if named.params is not None else {"outside": True}
            session.study.enqueue_trial(named.params or {}, user_attrs=attributes | outside)


# Recovery


def _recover(session: Session) -> None:
    """Settle trials whose worker died: tell those whose record is complete, put the others back."""
    with exclusive(session.run.root / "ask.lock"):
        for trial in _running(session):
            if not is_alive(session.run.workers, str(trial.user_attrs.get("worker", "none"))):
                _settle(session, trial)


def _settle(session: Session, trial: FrozenTrial) -> None:
    candidate = read_candidate(session.run, trial.number)
    if trial.state.is_finished():
        return
    if candidate is not None:
        _tell(session, optuna.Trial(session.study, trial._trial_id), candidate)
        return
    remove_trial(session.run, trial.number)
    # first back, then failed: a death in between must not lose the plan
    _put_back(session, trial)
    session.study.tell(trial.number, state=TrialState.FAIL)
    session.watcher.note(f"trial {trial.number} was interrupted; what it left behind was removed")


def _put_back(session: Session, trial: FrozenTrial) -> None:
    """Enqueue the plan of an interrupted trial again, once; a sampled one has none."""
    again = any(t.user_attrs.get("again") == trial.number for t in session.study.get_trials(deepcopy=False))
    if "plan" in trial.user_attrs and not again:
        attributes = {key: value for key, value in trial.user_attrs.items() if key != "worker"}
        session.study.enqueue_trial(
            trial.system_attrs.get("fixed_params", {}), user_attrs=attributes | {"again": trial.number}
        )


# One trial


@dataclass
class _Trial:
    """What is known of the trial at hand, for its record."""

    number: int
    origin: Origin
    name: str
    parent: Candidate | None
    started_s: float
    plan: Plan = field(default_factory=Plan)  # until it is decided
    clock: StageClock = field(default_factory=StageClock)


def _attempt(session: Session, trial: optuna.Trial) -> Candidate:
    """Make one candidate; whatever fails in it is recorded and does not end the study."""
    attributes = trial.user_attrs
    current = _Trial(
        number=trial.number,
        origin=Origin(attributes.get("origin", "sampled")),
        name=attributes.get("name", ""),
        parent=read_candidate(session.run, int(attributes["parent"])) if "parent" in attributes else None,
        started_s=session.elapsed_s(),
    )
    try:
        session.run.trial(trial.number).mkdir(parents=True, exist_ok=True)
        candidate = _guarded(session, current, trial)
        record(session.run, candidate)
        _tell(session, trial, candidate)
    except BaseException:
        # interrupted: what is recorded counts, anything else a later session does again
        with exclusive(session.run.root / "ask.lock"):
            _settle(session, session.study.get_trials(deepcopy=False)[trial.number])
        raise
    return candidate


def _guarded(session: Session, current: _Trial, trial: optuna.Trial) -> Candidate:
    try:
        result = _make(session, current, trial)
    except TrialFailed as error:
        result = _Result(State.FAILED, f"{error.kind}: {error}")
    except MemoryError:
        result = _Result(State.FAILED, "memory: the candidate does not fit into memory")
    except Exception as error:
        kind = "memory" if "allocate memory" in str(error) else type(error).__name__
        result = _Result(State.FAILED, f"{kind}: {first_line(error)}")
    gc.collect()
    parent_steps = 0 if current.parent is None else current.parent.total_steps
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
    )


@dataclass(frozen=True)
class _Result:
    """How a trial ended."""

    state: State
    reason: str = ""
    measurement: Measurement | None = None
    violations: dict[str, float] = field(default_factory=dict)


def _make(session: Session, current: _Trial, trial: optuna.Trial) -> _Result:
    """Decide, draft, stop at a broken limit, else train and measure."""
    with current.clock.stage("plan"):
        current.plan = _plan(session, trial)
    session.watcher.started(current.number, current.origin, describe(current.plan, current.name))
    with current.clock.stage("build"):
        network = build_network(session.bench, current.plan)
    over = _over_limit_unbuilt(session, current, least_size_bytes(network, current.plan))
    if over is not None:
        return over
    path = session.run.artifact(current.number)
    unfinished = draft(session.bench, network, current.plan, path, current.clock)
    timed = _needs_latency_first(session, current.plan)
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
    return _Result(State.COMPLETE, "", measurement, found)


def _plan(session: Session, trial: optuna.Trial) -> Plan:
    """The plan of a trial: sampled, or the one it was enqueued with."""
    attributes = trial.user_attrs
    enqueued = Plan.model_validate_json(attributes["plan"]) if "plan" in attributes else None
    if enqueued is not None and attributes.get("outside"):
        return enqueued
    draw = parametrisation(session.config.study.sampler)(trial)
    # also for an enqueued plan: Optuna records given parameters only when they are suggested
    sampled = session.space.suggest_plan(draw, trial.number)
    return enqueued or sampled


def _over_limit_unbuilt(session: Session, current: _Trial, least_bytes: int) -> _Result | None:
    """Stop before the export where the packed weights alone break a limit on bytes."""
    found = size_violations(session.config.limits, least_bytes, session.baseline.size_bytes)
    broken = describe_broken(found, session.config.limits)
    if not broken or current.plan.training.steps == 0:
        return None
    return _Result(State.OVER_LIMIT, f"limit: {broken}, by its weights alone", None, found)


def _over_limit(session: Session, current: _Trial, measurement: Measurement) -> _Result | None:
    """Stop before the training where bytes or latency break a limit; what needs none is measured all the same."""
    found = violations(session.config.limits, measurement, session.baseline.size_bytes)
    broken = describe_broken(found, session.config.limits)
    if not broken or current.plan.training.steps == 0:
        return None
    return _Result(State.OVER_LIMIT, f"limit: {broken}", measurement, found)


def _measure_trained(session: Session, current: _Trial, deployable: GraphModule) -> Measurement:
    path = session.run.artifact(current.number)
    with current.clock.stage("parity"):
        agreement = parity(session.bench, path, deployable, current.plan)
    with current.clock.stage("evaluate"):
        own = split_hits(session.bench, path, session.bench.data.validation)
    np.save(session.run.trial(current.number) / "validation_hits.npy", own)
    figures = {"parity": agreement, "validation": paired_accuracy(own, session.baseline_hits)}
    return _measure_file(session, path, current.clock, timed=True).model_copy(update=figures)


def _needs_latency_first(session: Session, plan: Plan) -> bool:
    limits = session.config.limits
    return plan.training.steps > 0 and (limits.max_latency_ms is not None or limits.min_speedup is not None)


def _measure_file(session: Session, path: Path, clock: StageClock, timed: bool) -> Measurement:
    measurement = measure_bytes(path, session.baseline.size_bytes)
    if not timed:
        return measurement
    with clock.stage("time"):
        baseline = session.run.baseline / "model.onnx"
        latency = measure_latency(path, baseline, session.bench.data, session.config.target)
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


# Telling Optuna


def _tell(session: Session, trial: optuna.Trial, candidate: Candidate) -> None:
    """Report a record to Optuna: values, constraints, or that it failed."""
    if candidate.state is State.FAILED:
        session.study.tell(trial, state=TrialState.FAIL)
    elif trial.user_attrs.get("outside"):
        # samplers that intersect the spaces of all complete trials would be left with nothing
        session.study.tell(trial, state=TrialState.PRUNED)
    else:
        for name in limit_names(session.config.limits):
            trial.set_constraint(name, candidate.violations.get(name, WORST_DROP_POINTS))
        session.study.tell(trial, _values(session, candidate.measurement))


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


# The end


def measure_test(session: Session) -> None:
    """Read the test split for the members of the front that have not been scored on it."""
    with exclusive(session.run.root / "test.lock"):
        for candidate in front(read_candidates(session.run)):
            assert candidate.measurement is not None
            if candidate.measurement.test is None:
                yardstick = test_hits(session.run, session.bench)
                own = split_hits(session.bench, session.run.artifact(candidate.trial), session.bench.data.test)
                measurement = candidate.measurement.model_copy(update={"test": paired_accuracy(own, yardstick)})
                record(session.run, candidate.model_copy(update={"measurement": measurement}))


def failure_summary(candidates: Sequence[Candidate]) -> str:
    """Reasons of all failures on one line, most frequent first."""
    counts: dict[str, int] = {}
    for candidate in candidates:
        counts[candidate.reason] = counts.get(candidate.reason, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    reasons = "; ".join(f"{count} x {reason}" for reason, count in ranked)
    return f"a study needs one candidate that can be made; all {len(candidates)} trials failed: {reasons or 'none was started'}"
