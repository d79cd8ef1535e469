"""One process at work on one run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from numpy.typing import NDArray
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from autocompress.analysis import Analysis
from autocompress.candidate import Measurement
from autocompress.config import StudyConfig
from autocompress.engine.baseline import SATURATES, Inputs
from autocompress.engine.events import Watcher
from autocompress.engine.run_folder import (
    RunFolder,
)
from autocompress.engine.samplers import make_sampler
from autocompress.engine.space import Draw, NamedPlan, Space
from autocompress.errors import RunError, first_line
from autocompress.pipeline import Bench
from autocompress.plan import Plan

STUDY_NAME = "autocompress"


class SuggestsPlans(Protocol):
    """What turns the variables of a trial into a plan: the space itself, or the ladder's guide."""

    @property
    def stage_kinds(self) -> tuple[str, ...]: ...

    def suggest_plan(self, draw: Draw, number: int) -> Plan: ...


@dataclass
class Session:
    """One process at work on one run."""

    config: StudyConfig
    run: RunFolder
    bench: Bench
    space: Space
    suggests: SuggestsPlans
    study: optuna.Study
    baseline: Measurement
    baseline_answers: NDArray[Any]
    watcher: Watcher
    worker: str
    rank: int
    offset_s: float
    polish: bool = False
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


def make_space(config: StudyConfig, inputs: Inputs, analysis: Analysis, digest: str, facts: Mapping[str, Any]) -> Space:
    """The decisions of a study over what was found in its base and of the machine that it began on."""
    section, saturates = config.space, bool(facts.get(SATURATES))
    if saturates:
        exact = tuple(dict.fromkeys(p.without_saturation() for p in section.precision))
        section = section.model_copy(update={"precision": exact})
    return Space(
        section=section,
        training=config.training,
        base=analysis,
        inputs=inputs.data.example_inputs(2),
        base_digest=digest,
        seed=config.study.seed,
        axes=inputs.data.axes,
        model_space=inputs.space,
        saturates=saturates,
    )


def reach(storage: str) -> None:
    """Try a storage before anything is made.

    Raises:
        RunError: nothing answers at this URL, or it is none.
    """
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


def ask(session: Session, start_up: int) -> optuna.Trial:
    """The next trial, drawn or enqueued, as this worker's.

    Args:
        start_up: trials before the sampler's model steers; those told as pruned teach it nothing and do not count.
    """
    study, config = session.study, session.config.study
    trials = study.get_trials(deepcopy=False)
    silent = sum(trial.state is TrialState.PRUNED for trial in trials)
    study.sampler = make_sampler(config.sampler, config.seed, len(trials), session.rank, silent + start_up)
    trial = study.ask()
    trial.set_user_attr("worker", session.worker)
    return trial


def enqueue(session: Session, plans: Sequence[NamedPlan], origin: str, is_guided: bool) -> None:
    """Enqueue what is not yet, under the lock: a death in between must neither lose a plan nor enqueue it twice.

    Args:
        is_guided: whether the study's variables are the guide's, in which no given plan can be expressed.
    """
    known = {t.user_attrs.get("name") for t in session.study.get_trials(deepcopy=False)}
    for named in plans:
        if named.name in known:
            continue
        trains = not is_guided or named.plan.training.steps == 0
        attributes: dict[str, Any] = {"plan": named.plan.model_dump_json(), "origin": origin, "name": named.name}
        attributes["rung"] = "train" if trains else "estimate"
        params = None if is_guided else named.params
        outside = {} if params is not None else {"outside": True}
        session.study.enqueue_trial(params or {}, user_attrs=attributes | outside)


def running_trials(session: Session) -> list[FrozenTrial]:
    """Trials that some worker, living or dead, has begun and not ended."""
    return session.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
