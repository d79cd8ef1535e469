"""One technique after the other, each tuned by itself: what practitioners do, and what a joint search is held against.

A third of the time goes to architecture and pruning: networks are trained in float32 and quantised afterwards, to
8 bits everywhere, with distillation as it is by default. A third goes to the bits: the best few architectures are
frozen, and only the precision of each layer is decided, every trial starting from their trained float32 weights.
A third goes to distillation: the best few plans train longer, and only alpha, temperature and hint weight are
decided. Each part is an Optuna study of its own under TPE. Candidates are those of a search, in a run folder of
the same form, numbered on from part to part.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from safetensors.torch import load_file

from autocompress.candidate import Candidate, State
from autocompress.config import LimitsSection, StudyConfig, TrainingSection
from autocompress.engine.baseline import (
    Inputs,
    ensure_run,
    load_inputs,
    make_bench,
    restore_base,
    validation_answers,
)
from autocompress.engine.continuation import continued_rate, promising
from autocompress.engine.events import Watcher
from autocompress.engine.recovery import recover
from autocompress.engine.run_folder import (
    RunFolder,
    read_analysis,
    read_baseline,
    read_candidate,
    read_candidates,
    read_facts,
)
from autocompress.engine.samplers import make_sampler
from autocompress.engine.second_sittings import SecondSittings
from autocompress.engine.session import Session, make_space
from autocompress.engine.space import Draw, PerLayer, Space, obvious_plans, plain_int8
from autocompress.engine.step_time import affordable_steps
from autocompress.engine.study import LEAST_STEPS
from autocompress.engine.time_left import training_time_left_s, usual_overhead_s
from autocompress.engine.trial import attempt
from autocompress.engine.workers import working
from autocompress.file_lock import exclusive
from autocompress.models import state_digest
from autocompress.pipeline import QUANTIZED_STEPS, Bench
from autocompress.plan import DistillationSpec, Plan, QuantizationSpec, TrainingSpec

PARTS = ("architecture", "bits", "distillation")
FEW = 3
"""Architectures that go on to the bits, and plans that go on to the distillation."""

DISTILLATION_TRIALS = 4
"""The last part's time is cut into so many trainings: fewer make each longer, and what goes on gains by length."""

PLAIN_BITS = 8


@dataclass(frozen=True)
class Decision:
    """A plan to enqueue: the parameters that give it, under a name."""

    name: str
    params: dict[str, Any]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One technique's share of the time.

    ``parents`` are the candidates that its trials start from, by what the study calls them; none in the first part.
    ``has_time`` says whether another trial is worth beginning.
    """

    session: Session
    first: int
    parents: Mapping[str, Candidate]
    enqueued: Sequence[Decision]
    has_time: Callable[[Sequence[Candidate]], bool]

    def is_over(self) -> bool:
        """Whether a later part has begun: then this one gets no more trials, though an interruption gave time back."""
        storage = JournalStorage(JournalFileBackend(str(self.session.run.journal)))
        later = PARTS[PARTS.index(self.session.study.study_name) + 1 :]
        return not set(later).isdisjoint(optuna.get_all_study_names(storage))


@dataclass(frozen=True)
class BitsSpace:
    """Only the precision of each layer of a frozen architecture."""

    space: Space
    parents: Mapping[str, Candidate]
    starts: Mapping[str, str]
    quantized_fraction: float

    @property
    def stage_kinds(self) -> tuple[str, ...]:
        """No decisions by stage: each layer has its own."""
        return ()

    def suggest_plan(self, draw: Draw, number: int) -> Plan:
        """A parent's plan with other bits, trained on from its float32 weights."""
        name = draw.family(list(self.parents))
        parent = self.parents[name].plan
        layers, options = list(parent.quantization.precisions), self.space.section.precision
        precisions = {
            layer: draw.level("precision", layer, options, place / len(layers)) for place, layer in enumerate(layers)
        }
        # the float32 weights are trained already, so a trial pays for the quantised phase of a joint trial alone
        steps = min(round(self.space.steps(parent.architecture.family) * self.quantized_fraction), QUANTIZED_STEPS)
        changes = {
            "quantization": QuantizationSpec(precisions=precisions),
            "training": TrainingSpec(steps=steps, start=self.starts[name], quantized_fraction=1.0),
            "seed": self.space.seed + number,
        }
        return parent.model_copy(update=changes)


@dataclass(frozen=True)
class DistillationSpace:
    """Only the weights of the losses, over a long training."""

    space: Space
    settings: TrainingSection
    parents: Mapping[str, Candidate]
    starts: Mapping[str, str]
    affordable_steps: Callable[[Candidate], int]

    @property
    def stage_kinds(self) -> tuple[str, ...]:
        """No decisions by stage: each layer has its own."""
        return ()

    def suggest_plan(self, draw: Draw, number: int) -> Plan:
        """A parent's plan under other losses, trained on from its float32 weights."""
        name, section = draw.family(list(self.parents)), self.space.section
        parent = self.parents[name]
        distillation = DistillationSpec(
            alpha=draw.amount("alpha", *section.alpha),
            temperature=draw.amount("temperature", *section.temperature, log=True),
            hint_weight=draw.amount("hint_weight", *section.hint_weight),
        )
        # time has passed since the trial was begun
        steps = max(self.affordable_steps(parent), LEAST_STEPS)
        rate = continued_rate(self.settings, parent.plan.architecture.family, parent.total_steps, steps)
        changes = {
            "distillation": distillation,
            "training": TrainingSpec(steps=steps, start=self.starts[name], learning_rate=rate),
            "seed": self.space.seed + number,
        }
        return parent.plan.model_copy(update=changes)


def sequential_search(config: StudyConfig, root: Path, watcher: Watcher, inputs: Inputs | None = None) -> RunFolder:
    """Run the recipe, or go on with it where it stopped; by one process, until the study's timeout.

    Args:
        config: the validated study; it needs a timeout, and TPE as its sampler.
        root: the run folder; made if it is not there.
        watcher: told of every trial.
        inputs: model and data that are loaded already.

    Raises:
        UserError: the input is wrong; nothing is left behind.
        KeyboardInterrupt: passed on when the running trial is put back.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    inputs = inputs or load_inputs(config)
    run = ensure_run(root, inputs, watcher)
    with working(run.workers) as worker:
        session = _open(config, run, inputs, watcher, worker)
        watcher.baseline(session.baseline, read_analysis(run))
        found: list[Candidate] = []
        sittings = SecondSittings(session)  # by the limits of the study, whatever a part keeps to
        for make_part in (_architecture_part, _bits_part, _distillation_part):
            part = make_part(session, found)
            if part is None:  # no time was left to make anything that could go on
                break
            found += _carry_out(part, sittings)
        sittings.take_()
    return run


def _open(config: StudyConfig, run: RunFolder, inputs: Inputs, watcher: Watcher, worker: str) -> Session:
    digest, facts = restore_base(run, inputs), read_facts(run)
    space = make_space(config, inputs, read_analysis(run), digest, facts)
    return Session(
        config=config,
        run=run,
        bench=make_bench(run, inputs, facts),
        space=space,
        suggests=space,
        study=_part_study(run, PARTS[0], 0),
        baseline=read_baseline(run),
        baseline_answers=validation_answers(run),
        watcher=watcher,
        worker=worker,
        rank=0,
        offset_s=max([float(facts["baseline_s"]), *(c.finished_s for c in read_candidates(run))]),
    )


def _part_study(run: RunFolder, name: str, first: int) -> optuna.Study:
    """A part's study, whose own trials begin at the number ``first``."""
    storage = JournalStorage(JournalFileBackend(str(run.journal)))
    study = optuna.create_study(storage=storage, study_name=name, directions=["minimize"] * 3, load_if_exists=True)
    # failed trials, which TPE does not see, so that all parts number into one folder
    for _ in range(first - len(study.get_trials(deepcopy=False))):
        study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    return study


def _timeout_s(session: Session) -> float:
    timeout = session.config.study.timeout_s
    assert timeout is not None, "the recipe divides a time; the study has none"
    return timeout


def _without_quantized_training(session: Session) -> Bench:
    """The bench for networks that are trained in float32 and rounded afterwards."""
    training = session.bench.training.model_copy(update={"quantized_fraction": 0.0})
    return replace(session.bench, training=training)


def _usual_time_left(session: Session, ends_s: float) -> Callable[[Sequence[Candidate]], bool]:
    """Whether a trial of the usual length ends within the part."""

    def has_time(candidates: Sequence[Candidate]) -> bool:
        trained = [c for c in candidates if c.state is State.COMPLETE and c.plan.training.steps > 0]
        usual_s = statistics.median(c.finished_s - c.started_s for c in trained) if trained else 0.0
        return session.elapsed_s() + usual_s <= ends_s

    return has_time


def _by_name(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    return {str(candidate.trial): candidate for candidate in candidates}


def _starts(session: Session, parents: Mapping[str, Candidate]) -> dict[str, str]:
    """Digest of the float32 weights of each parent."""
    return {name: state_digest(load_file(session.run.checkpoint(c.trial))) for name, c in parents.items()}


# Architecture and pruning


def _architecture_part(session: Session, _: Sequence[Candidate]) -> Part:
    section = session.space.section.model_copy(
        update={
            "precision": (plain_int8(session.space.section, session.space.saturates),),
            "alpha": (0.7, 0.7),
            "temperature": (4.0, 4.0),
            "hint_weight": (0.0, 0.0),
        }
    )
    bits = [p.stored_bits for p in session.space.section.precision]
    limits = limits_before_bits(session.config.limits, min([PLAIN_BITS, *bits]))
    space = replace(session.space, section=section)
    own = replace(
        session,
        config=session.config.model_copy(update={"limits": limits}),
        space=space,
        suggests=space,
        bench=_without_quantized_training(session),
    )
    enqueued = [
        Decision(
            named.name,
            named.params or {},
            {"plan": named.plan.model_dump_json(), "origin": "enqueued"}
            | ({"outside": True} if named.params is None else {}),
        )
        for named in obvious_plans(own.space, PerLayer)
    ]
    usual = _usual_time_left(session, _timeout_s(session) / 3)

    def has_time(candidates: Sequence[Candidate]) -> bool:
        # whatever it takes, the other parts need something to go on with
        stuck = not promising(candidates, 1, by_family=False)
        return usual(candidates) or (stuck and session.elapsed_s() < _timeout_s(session))

    return Part(own, 0, {}, enqueued, has_time)


def limits_before_bits(limits: LimitsSection, least_bits: int) -> LimitsSection:
    """Limits for 8-bit files whose bits come later: the bytes may still shrink to the fewest bits of the space."""
    factor = PLAIN_BITS / least_bits
    changes: dict[str, Any] = {}
    if limits.max_size_ratio is not None:
        changes["max_size_ratio"] = min(1.0, limits.max_size_ratio * factor)
    if limits.max_size_bytes is not None:
        changes["max_size_bytes"] = int(limits.max_size_bytes * factor)
    return limits.model_copy(update=changes)


# Bits


def _bits_part(session: Session, found: Sequence[Candidate]) -> Part | None:
    parents = _by_name(promising(found, FEW, by_family=False))
    if not parents:
        return None
    first = _next_number(session, PARTS[0])
    space = BitsSpace(session.space, parents, _starts(session, parents), session.bench.training.quantized_fraction)
    own = replace(
        session,
        study=_part_study(session.run, PARTS[1], first),
        suggests=space,
    )
    enqueued = [_uniform_bits(session, name, parent) for name, parent in parents.items()]
    ends_s = 2 * _timeout_s(session) / 3
    return Part(own, first, parents, enqueued, _usual_time_left(session, ends_s))


def _uniform_bits(session: Session, name: str, parent: Candidate) -> Decision:
    """The middle precision everywhere, as the other engines have it enqueued."""
    options = session.space.section.precision
    middle = len(options) // 2
    steps = {f"{name}.precision:{layer}": 0 for layer in parent.plan.quantization.precisions}
    params = {"family": name, f"{name}.precision": middle} | steps
    return Decision(f"uniform {options[middle]} of trial {name}", params, {})


def _next_number(session: Session, name: str) -> int:
    return len(_part_study(session.run, name, 0).get_trials(deepcopy=False))


# Distillation


def _distillation_part(session: Session, found: Sequence[Candidate]) -> Part | None:
    with_bits = [candidate for candidate in found if candidate.parent is not None]
    # where no choice of bits kept to the limits, the architectures themselves go on
    parents = _by_name(promising(with_bits, FEW, by_family=False) or promising(found, FEW, by_family=False))
    if not parents:
        return None
    first, timeout = _next_number(session, PARTS[1]), _timeout_s(session)
    seconds = timeout / 3 / DISTILLATION_TRIALS

    def steps_of(parent: Candidate) -> int:
        rest_s = usual_overhead_s([parent])
        # a training is at least half of its trial, however short the part
        own_s = min(max(seconds - rest_s, rest_s), training_time_left_s(session, rest_s))
        return affordable_steps(session.bench, own_s, _seconds_per_step(session, parent))

    space = DistillationSpace(session.space, session.config.training, parents, _starts(session, parents), steps_of)
    own = replace(session, study=_part_study(session.run, PARTS[2], first), suggests=space)
    defaults = DistillationSpec()
    params = {
        "alpha": defaults.alpha,
        "temperature": defaults.temperature,
        "hint_weight": defaults.hint_weight,
    }
    enqueued = [Decision(f"longer training of trial {name}", {"family": name} | params, {}) for name in parents]

    def has_time(_: Sequence[Candidate]) -> bool:
        worth_it = min(steps_of(parent) for parent in parents.values()) >= LEAST_STEPS
        return worth_it and timeout - session.elapsed_s() >= seconds / 2

    return Part(own, first, parents, enqueued, has_time)


def _seconds_per_step(session: Session, parent: Candidate) -> float:
    """Of both phases: the float32 steps as the architecture's training ran, the quantised ones as the parent's did."""
    ancestor = None if parent.parent is None else read_candidate(session.run, parent.parent)
    quantized = session.bench.training.quantized_fraction
    rates = [c.stage_seconds["train"] / c.plan.training.steps for c in (ancestor or parent, parent)]
    return (1 - quantized) * rates[0] + quantized * rates[1]


# Any part


def _carry_out(part: Part, sittings: SecondSittings) -> list[Candidate]:
    """Do a part's trials while it has time; returns its candidates, those of earlier sessions included."""
    recover(part.session)
    if not part.is_over():
        _enqueue(part)
    while not part.is_over() and part.has_time(_own_candidates(part)):
        _one_trial(part)
        sittings.take_()
    return _own_candidates(part)


def _own_candidates(part: Part) -> list[Candidate]:
    last = len(part.session.study.get_trials(deepcopy=False))
    return [c for c in read_candidates(part.session.run) if part.first <= c.trial < last]


def _enqueue(part: Part) -> None:
    """Enqueue what is neither waiting nor done; an interrupted trial is neither."""
    session = part.session
    with exclusive(session.run.root / "ask.lock"):
        trials = session.study.get_trials(deepcopy=False)
        alive = [t for t in trials if t.state is not TrialState.FAIL or read_candidate(session.run, t.number)]
        known = {t.user_attrs.get("name") for t in alive}
        for decision in part.enqueued:
            if decision.name not in known:
                session.study.enqueue_trial(decision.params, user_attrs={"name": decision.name} | decision.attributes)


def _one_trial(part: Part) -> None:
    session, study = part.session, part.session.study
    with exclusive(session.run.root / "ask.lock"):
        draws = len(study.get_trials(deepcopy=False))
        study.sampler = make_sampler("tpe", session.config.study.seed, draws, session.rank)
        trial = study.ask()
        trial.set_user_attr("worker", session.worker)
    if part.parents:
        # drawn here, because the parent must be known before the plan; asked for again, it is the same
        parent = part.parents[PerLayer(trial).family(list(part.parents))]
        trial.set_user_attr("parent", parent.trial)
        trial.set_user_attr("origin", "continued")
    candidate = attempt(session, trial)
    session.watcher.finished(candidate, read_candidates(session.run), session.progress(0))
