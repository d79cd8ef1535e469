"""The search itself: ask, build, measure, tell; resumable at any moment, by any number of processes.

A trial's files are written before Optuna is told, so a death between the two loses nothing: whoever
comes next reads the record and tells it.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from safetensors.torch import load_file

from autocompress.candidate import Accuracy, Candidate, Origin, Score, State
from autocompress.compression.distillation import NEXT_SEED
from autocompress.config import StudyConfig
from autocompress.deploy.saturation import SATURATION, saturates
from autocompress.engine.baseline import (
    SATURATES,
    Inputs,
    ensure_run,
    load_inputs,
    make_bench,
    restore_base,
    test_answers,
    validation_answers,
)
from autocompress.engine.climb import climb
from autocompress.engine.continuation import Continuation, continued_training, least_steps, next_continuation
from autocompress.engine.events import Watcher
from autocompress.engine.ladder import Ladder, begin_, make_ladder
from autocompress.engine.pareto import front
from autocompress.engine.recovery import recover
from autocompress.engine.run_folder import (
    RunFolder,
    amend,
    read_analysis,
    read_baseline,
    read_candidates,
    read_facts,
)
from autocompress.engine.samplers import START_UP_TRIALS, parametrisation
from autocompress.engine.second_sittings import SecondSittings
from autocompress.engine.session import Session, ask, enqueue, make_space, open_study, reach, running_trials
from autocompress.engine.space import PerLayer, obvious_plans
from autocompress.engine.step_time import affordable_steps
from autocompress.engine.taken_files import enqueue_taken
from autocompress.engine.time_left import training_time_left_s, usual_overhead_s
from autocompress.engine.trial import attempt
from autocompress.engine.workers import sweep, working
from autocompress.errors import ConfigError, RunError, StudyFailed
from autocompress.file_lock import exclusive
from autocompress.models import state_digest
from autocompress.pipeline import answers, compare

LEAST_STEPS = 20
"""Fewer steps than this are not worth an export."""


def search(
    config: StudyConfig,
    root: Path,
    watcher: Watcher,
    storage: str | None = None,
    inputs: Inputs | None = None,
    polish: bool = False,
) -> RunFolder:
    """Run or resume a study until its totals are used.

    Args:
        config: the validated study.
        root: the run folder; made if it is not there.
        storage: an SQLAlchemy URL; without it a journal in the run folder.
        inputs: model and data that are loaded already; by default those that the study names.
        polish: give the last part of the time to a few knee points of the front.

    Raises:
        UserError: the input is wrong; nothing is left behind.
        StudyFailed: not one compressed candidate could be made.
        KeyboardInterrupt: passed on when the running trial is put back.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if polish and config.study.engine != "ladder":
        raise ConfigError(
            f'polishing is a part of the ladder; study.engine is "{config.study.engine}"; '
            'set engine = "ladder", or leave out --polish'
        )
    if storage is not None:
        reach(storage)
    inputs = inputs or load_inputs(config)
    run = ensure_run(root, inputs, watcher)
    rank = sweep(run.workers) if run.workers.is_dir() else 0
    with working(run.workers) as worker:
        session = open_session(config, run, inputs, watcher, storage, worker, rank)
        watcher.baseline(session.baseline, read_analysis(run))
        session.polish = polish
        recover(session)
        step = _engine(session)
        sittings = SecondSittings(session)
        while step():
            sittings.take_()
        sittings.take_()
        candidates = read_candidates(run)
        if not candidates:
            raise StudyFailed(
                f"a study needs time for a trial; the baseline alone took {session.elapsed_s():.0f} s; "
                "call the search again with a longer --timeout: it goes on from there"
            )
        made = [c for c in candidates if not c.plan.changes_nothing]  # the baseline's file was there before
        if not any(c.state is State.COMPLETE for c in made or candidates):
            raise StudyFailed(failure_summary(made))
        watcher.note("reading the test split for the members of the front")
        measure_test(session)
    return run


def open_session(
    config: StudyConfig,
    run: RunFolder,
    inputs: Inputs,
    watcher: Watcher,
    storage: str | None,
    worker: str,
    rank: int,
) -> Session:
    """Be a worker of a run that has its baseline.

    Raises:
        RunError: the storage is not the one that the run began with.
    """
    digest = restore_base(run, inputs)
    facts = read_facts(run)
    if saturates() and not facts.get(SATURATES):
        watcher.note(f"{SATURATION}; this run began without a regard for it: its files with w8a8 may fail parity")
    finished = [c.finished_s for c in read_candidates(run)]
    began_elsewhere = bool(finished) and storage is None and not run.journal.is_file()
    study = None if began_elsewhere else open_study(run, config, storage)
    trials = [] if study is None else study.get_trials(deepcopy=False)
    if study is None or (finished and not trials):
        raise RunError(
            f"a run keeps its storage; {run.root} has {len(finished)} trials and this storage none; "
            "give the --storage that the run began with"
        )
    bench = make_bench(run, inputs, facts)
    space = make_space(config, inputs, read_analysis(run), digest, facts)
    since_s = _since_last_end_s(trials) if rank else 0.0
    return Session(
        config=config,
        run=run,
        bench=bench,
        space=space,
        suggests=space,
        study=study,
        baseline=read_baseline(run),
        baseline_answers=validation_answers(run),
        watcher=watcher,
        worker=worker,
        rank=rank,
        offset_s=max([float(facts["baseline_s"]), *finished]) + since_s,
    )


def _since_last_end_s(trials: Sequence[FrozenTrial]) -> float:
    """Seconds since a trial ended, or the first one began: the run time that another process has used meanwhile."""
    ended = [t.datetime_complete for t in trials if t.datetime_complete is not None]
    began = [t.datetime_start for t in trials if t.datetime_start is not None]
    last = max(ended, default=min(began, default=None))
    # Optuna's times have no zone
    return 0.0 if last is None else max(0.0, (datetime.now() - last).total_seconds())


def _engine(session: Session) -> Callable[[], bool]:
    """What does the next piece of the search; the plain engine where the model cannot be made elastic."""
    if session.config.study.engine == "ladder":
        ladder = make_ladder(session, read_analysis(session.run))
        if isinstance(ladder, Ladder):
            session.suggests = ladder.guide
            with exclusive(session.run.root / "ask.lock"):
                enqueue(session, obvious_plans(session.space, PerLayer), "enqueued", is_guided=True)
            enqueue_taken(session)
            for family in ladder.families:
                begin_(ladder, family)
            return partial(climb, ladder)
        session.watcher.note(f"using the plain engine, because {ladder}")
    named = obvious_plans(session.space, parametrisation(session.config.study.sampler))
    with exclusive(session.run.root / "ask.lock"):
        enqueue(session, named, "enqueued", is_guided=False)
    return partial(_one_trial, session)


def _one_trial(session: Session) -> bool:
    """Do one trial; False when the totals are used or nothing is left to do."""
    with exclusive(session.run.root / "ask.lock"):
        candidates = read_candidates(session.run)
        running = running_trials(session)
        progress = session.progress(len(candidates) + len(running))
        if progress >= 1.0 or not _prepare_next(session, candidates, running, progress):
            return False
        trial = ask(session, START_UP_TRIALS)
    candidate = attempt(session, trial)
    session.watcher.finished(candidate, read_candidates(session.run), session.progress(len(candidates) + 1))
    return True


def _prepare_next(
    session: Session, candidates: Sequence[Candidate], running: Sequence[FrozenTrial], progress: float
) -> bool:
    """Enqueue a continuation where one is due; False if nothing is left to do in the time."""
    if session.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return True
    share = session.config.training.continued_fraction
    timeout = session.config.study.timeout_s
    has_time = _has_time_for_another(session, candidates)
    if share > 0 and (progress >= 1 - share or not has_time):
        continuation = next_continuation(
            candidates,
            busy={int(t.user_attrs["parent"]) for t in running if "parent" in t.user_attrs},
            members=session.config.training.continued_members,
            progress=max(0.0, progress - (1 - share)) / share,
            seconds=None if timeout is None else timeout * share,
        )
        if continuation is not None:
            steps = _affordable_steps(session, continuation, usual_overhead_s(candidates))
            if steps >= least_steps(session.config.training, continuation.parent.plan, LEAST_STEPS):
                _enqueue_continuation(session, continuation.parent, steps)
                return True
    return has_time


def _has_time_for_another(session: Session, candidates: Sequence[Candidate]) -> bool:
    """Whether a trial of the usual length ends before the timeout; the first ones are always tried."""
    timeout = session.config.study.timeout_s
    usual = [c.finished_s - c.started_s for c in candidates if c.origin is Origin.SAMPLED and c.state is State.COMPLETE]
    return timeout is None or not usual or session.elapsed_s() + statistics.median(usual) <= timeout


def _enqueue_continuation(session: Session, parent: Candidate, steps: int) -> None:
    start = state_digest(load_file(session.run.checkpoint(parent.trial)))
    training = continued_training(session.config.training, parent, parent.plan, steps, start)
    plan = parent.plan.model_copy(update={"training": training, "seed": parent.plan.seed + NEXT_SEED})
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


def _affordable_steps(session: Session, continuation: Continuation, overhead_s: float) -> int:
    """Steps that fit the continuation's seconds (or what is left of the study) at the parent's speed."""
    parent = continuation.parent
    if continuation.seconds is None:
        return parent.plan.training.steps * 3
    seconds_per_step = parent.stage_seconds["train"] / parent.plan.training.steps
    seconds = min(continuation.seconds - overhead_s, training_time_left_s(session, overhead_s))
    return affordable_steps(session.bench, seconds, seconds_per_step)


def measure_test(session: Session) -> None:
    """Read the test split for the members of the front that have not been scored on it."""
    with exclusive(session.run.root / "test.lock"):
        for candidate in front(read_candidates(session.run)):
            assert candidate.measurement is not None
            if candidate.measurement.test is None:
                data, artifact = session.bench.data, session.run.artifact(candidate.trial)
                yardstick = test_answers(session.run, session.bench)
                own = answers(session.bench, artifact, data.test, candidate.plan)
                figures = {"test": compare(data, data.test, own, yardstick)}
                amend(session.run, candidate.trial, partial(_with_figures, figures))


def _with_figures(figures: dict[str, Accuracy | Score], candidate: Candidate) -> Candidate:
    assert candidate.measurement is not None
    return candidate.model_copy(update={"measurement": candidate.measurement.model_copy(update=figures)})


def failure_summary(candidates: Sequence[Candidate]) -> str:
    """Reasons of all failures on one line, most frequent first."""
    reasons = Counter(candidate.reason for candidate in candidates if candidate.state is not State.ESTIMATED)
    shown = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common()) or "none was begun"
    return (
        f"a study needs one compressed candidate that can be made; of {reasons.total()} trials none was: {shown}; "
        "`autocompress check` says what a candidate takes and which limits can be met"
    )
