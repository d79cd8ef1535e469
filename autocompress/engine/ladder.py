"""The ladder: many plans scored in seconds, the best trained for a while, the best of those for long.

F0: bytes and latency from tables. F1: a member of the shared weights on a part of validation. F2: a short training that
starts from the shared weights. F3: training on, for longer and longer. Candidates of F2 and F3 are files that are
measured, and only they are on the front. What to do next is what lags most behind its share of the time, so there is a
front early, and a search that is stopped or killed goes on by the records alone.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.trial import TrialState
from safetensors.torch import load_file

from autocompress.analysis import Analysis
from autocompress.candidate import Candidate, Estimate, Origin, State
from autocompress.compression.distillation import NEXT_SEED
from autocompress.deploy.latency_table import LatencyTable
from autocompress.engine.expectation import (
    KEPT_SHARE,
    Curves,
    fit_curves,
    fit_expectation,
    least_drop_points,
    trained_seconds,
)
from autocompress.engine.guided import Guide, Targets
from autocompress.engine.limits import describe_broken, latency_violations, size_violations
from autocompress.engine.mutation import mutated
from autocompress.engine.pareto import ObjectiveVector, hypervolume
from autocompress.engine.prediction import Predictor, make_predictor
from autocompress.engine.promotion import (
    LEAST_ESTIMATES,
    climbing_order,
    hoped_for,
    leaves,
    next_to_polish,
    next_to_promote,
    next_to_train_on,
    objectives,
    untried_families,
)
from autocompress.engine.run_folder import read_candidates, write_json
from autocompress.engine.session import Session, ask, running_trials
from autocompress.engine.shared import TOLERANCE, Shared
from autocompress.engine.space import NamedPlan, PerLayer, Suggests, plain_int8
from autocompress.engine.tables import Tables, measure_tables
from autocompress.engine.trial import Current, Result, attempt, describe, make_file, plan_of
from autocompress.engine.warm_start import (
    TRAIN_DIGEST,
    earlier_run,
    front_plans,
    solver_plans,
    take_over_,
    train_digest,
)
from autocompress.errors import TrialFailed, first_line
from autocompress.file_lock import exclusive
from autocompress.models import state_digest
from autocompress.plan import DistillationSpec, Plan, TrainingSpec

SHARES = {"share": 0.15, "estimate": 0.06, "promote": 0.17, "train_on": 0.62}
"""Of the time so far: training the shared weights, estimating, short and long trainings.

One long training of the right member is worth more than many short ones, and sharing pays by its first minutes
(docs/log.md).
"""
SHARED_UNTIL = 0.7
"""Progress after which the shared weights are good enough."""
MUTATE_FROM = 0.4
"""Progress after which every second new plan is a front member with one decision changed."""
LENGTHS = {"share": 0.12, "promote": 0.10, "train_on": 0.70}
"""Seconds of an action, as a share of the run time so far: budgets grow with the study."""
LONG = 0.1
"""Of the whole time, for a training that goes on, at least."""
LEAST_STEPS = {"promote": 40, "train_on": 60, "polish": 60}
LONGER = 3
"""Times the steps before, for a training that goes on where only trials are counted."""
GROWTH = 1.5
"""A training that goes on is longer by this than all before it: a restart first loses what short ones gained."""
REST = 0.5
"""A training takes what is left of the time where that would be less than this part of it."""
KNEES, POLISH_SHARE = 3, 0.3
"""With ``--polish``, so many knee points of the front share this last part of the time."""
LEAST_CYCLES = 2
START_UP_ESTIMATES = 12
"""Random plans before the sampler's model steers: they are cheap."""
STALE = 24
POOL, FEW = 12, 4
TRAILING_SHARE = 1 / 6
LENIENT_REFERENCE = (50.0, 0.0, 0.0)
"""Where families are compared before any member is near the base."""
SLACK = 0.05
"""A plan is dropped by the tables only where it breaks a limit by more than their error."""
USUAL_OVERHEAD_S, USUAL_SECONDS_PER_MAC = 12.0, 2e-9
"""Of a trial beside its training, and of a step for each multiplication of one example, until one was seen."""


@dataclass
class Ladder:
    """A session with what the ladder knows."""

    session: Session
    guide: Guide
    predictor: Predictor
    shared: Shared
    overhead_s: float = USUAL_OVERHEAD_S
    _known: dict[int, tuple[float, float]] = field(default_factory=dict)

    def curves(self, candidates: Sequence[Candidate]) -> Curves:
        """What is left of drops after more training, by all that was trained so far."""
        rates = {family: _seconds_per_mac(self, candidates, family) for family in ("base", "space")}
        return fit_curves(
            candidates,
            lambda c: self._figures(c)[1],
            lambda c: rates[c.plan.architecture.family] * self._figures(c)[0],
        )

    def _figures(self, candidate: Candidate) -> tuple[float, float]:
        """Multiplications of a candidate, and the drop in points that it comes near in the end."""
        if candidate.trial not in self._known:
            predictor, plan = self.predictor, candidate.plan
            ratio = predictor.capacity(plan) / predictor.capacity(Plan())
            least = least_drop_points(ratio, predictor.shares_of_bits(plan))
            self._known[candidate.trial] = predictor.macs(plan), least
        return self._known[candidate.trial]

    @property
    def families(self) -> tuple[str, ...]:
        """Families of the study."""
        return self.guide.families


def make_ladder(session: Session, analysis: Analysis) -> Ladder | str:
    """Measure or read the tables of a run; or the reason why its model cannot be made elastic."""
    space, bench = session.space, session.bench
    if not analysis.groups and not analysis.runs and space.model_space is None:
        return "the model has no prunable group and no removable block"
    if session.config.training.steps == 0:
        return "training.steps = 0 trains nothing"
    shared = Shared(bench, session.run, session.config.study.seed)
    shared.folder.mkdir(exist_ok=True)
    path = shared.folder / "tables.json"
    try:
        with exclusive(shared.folder / "lock"):
            digest = train_digest(bench.data)
            (shared.folder / TRAIN_DIGEST).write_text(digest, encoding="utf-8")
            earlier = None if path.is_file() else earlier_run(session.run, session.config, digest)
            if earlier is not None:
                session.watcher.note(f"taking tables and shared weights from {earlier.root}")
                take_over_(session.run, earlier)
                write_json(
                    shared.folder / "taken_from.json",
                    [plan_and_name(p) for p in front_plans(earlier, space.base_digest)],
                )
            if not path.is_file():
                session.watcher.note("measuring what each unit of the base is worth")
                largest = {kind: max(ratios) for kind, ratios in space.base_ratios().items()}
                write_json(path, measure_tables(bench, analysis, space.section, largest))
        tables = Tables.model_validate_json(path.read_text(encoding="utf-8"))
        table = LatencyTable(session.config.target.threads)
        usual = plain_int8(space.section)
        size = session.baseline.size_bytes
        predictor = make_predictor(bench, session.config.target, tables, usual, table, size)
        guide = Guide(
            space=space,
            analysis=analysis,
            tables=tables,
            predictor=predictor,
            limits=session.config.limits,
            baseline=session.baseline,
            bit_errors=lambda plan: shared.bit_errors(plan, tables.bits),
            families=tuple(space.families()),
        )
        ladder = Ladder(session, guide, predictor, shared)
        return _disagreement(ladder) or ladder
    except TrialFailed as error:
        return f"{error.kind}: {error}"
    except Exception as error:  # whatever a model does that sharing cannot follow
        return f"sharing weights failed with {type(error).__name__}: {first_line(error)}"


def first_plans(ladder: Ladder) -> list[NamedPlan]:
    """What is estimated first: the solver's own front, and the front of an earlier run."""
    path = ladder.shared.folder / "taken_from.json"
    taken = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    known = [NamedPlan(entry["name"], Plan.model_validate(entry["plan"]), None) for entry in taken]
    return [*known, *solver_plans(ladder.guide)]


def plan_and_name(named: NamedPlan) -> dict[str, Any]:
    """A named plan as plain JSON."""
    return {"name": named.name, "plan": named.plan.model_dump(mode="json")}


def _disagreement(ladder: Ladder) -> str | None:
    """Why a member of the shared weights does not compute what the same network does; None if it does."""
    if not ladder.session.space.section.base:
        return None
    speedup, smaller = ladder.guide.easiest()
    plan = ladder.guide.base_plan(Targets(speedup, smaller, 4.0), DistillationSpec(), 0)
    found = ladder.shared.disagreement(plan)
    return None if found <= TOLERANCE else f"a member's outputs differ from its network's by {found:.1e}"


def climb(ladder: Ladder) -> bool:
    """Do what lags most behind its share of the time; False when the totals are used or nothing is left to do."""
    session = ladder.session
    candidates = read_candidates(session.run)
    ladder.predictor.fit_(candidates)
    ladder.overhead_s = _overhead_s(candidates)
    with exclusive(session.run.root / "ask.lock"):
        running = running_trials(session)
        done = sum(c.state is not State.ESTIMATED for c in candidates)
        progress = session.progress(done + sum(t.user_attrs.get("rung") == "train" for t in running))
        if progress >= 1.0:
            return False
        waiting = session.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        estimates_next = bool(waiting) and waiting[0].user_attrs.get("rung") == "estimate"
        too_early = estimates_next and _is_cold(ladder)
        trial = ask(session, START_UP_ESTIMATES) if waiting and not too_early else None
    session.suggests = ladder.guide
    if trial is None:
        exhausted = _is_exhausted(ladder, candidates)
        for action in _in_order_of_need(ladder, candidates, progress):
            if action == "share" and (_is_cold(ladder) or (progress < SHARED_UNTIL and not exhausted)):
                return _share(ladder, candidates)
            if action == "estimate" and not _nearly_over(ladder) and not exhausted:
                trial = _new_estimate(ladder, candidates, progress)
            elif action in LEAST_STEPS:
                trial = _enqueue_training(ladder, action)
            if trial is not None:
                break
    if trial is None:
        return False
    trains = trial.user_attrs.get("rung") == "train"  # what the sampler draws has none, and is estimated
    make = make_file if trains else lambda s, c, t: _estimate(ladder, s, c, t)
    candidate = attempt(session, trial, make)
    finished = read_candidates(session.run)
    done = sum(c.state is not State.ESTIMATED for c in finished)
    session.watcher.finished(candidate, finished, session.progress(done))
    return True


def _in_order_of_need(ladder: Ladder, candidates: Sequence[Candidate], progress: float) -> list[str]:
    """Actions, the one that lags most behind its share of the time first; none makes sense before the shared weights do."""
    if ladder.session.polish and progress >= 1 - POLISH_SHARE:
        return ["polish", "train_on"]
    if _is_cold(ladder):
        return list(SHARES)
    climbed = [c for c in candidates if c.origin in (Origin.PROMOTED, Origin.CONTINUED)]
    estimated = sum(c.state is State.ESTIMATED for c in candidates)
    if untried_families(candidates):  # before time is spent on what may be the worse one
        return ["promote", "estimate"]
    if ladder.session.config.study.timeout_s is None and estimated < LEAST_ESTIMATES * (len(climbed) + 1):
        return ["estimate", "promote", "train_on"]  # where files are counted, each is worth a choice
    spent = {
        "share": ladder.shared.seconds(),
        "estimate": sum(c.finished_s - c.started_s for c in candidates if c.state is State.ESTIMATED),
        "promote": sum(c.finished_s - c.started_s for c in candidates if c.origin is Origin.PROMOTED),
        "train_on": sum(c.finished_s - c.started_s for c in candidates if c.origin is Origin.CONTINUED),
    }
    total = sum(spent.values())
    return sorted(SHARES, key=lambda action: spent[action] - SHARES[action] * total)


def _overhead_s(candidates: Sequence[Candidate]) -> float:
    """Seconds that a file takes beside its training."""
    files = [c for c in candidates if c.state is State.COMPLETE]
    seconds = [c.finished_s - c.started_s - c.stage_seconds.get("train", 0.0) for c in files]
    return statistics.median(seconds) if seconds else USUAL_OVERHEAD_S


def _is_exhausted(ladder: Ladder, candidates: Sequence[Candidate]) -> bool:
    """Whether, where only trials are counted, plan after plan was estimated and none was new enough to be trained."""
    if ladder.session.config.study.timeout_s is not None:
        return False
    recent = sorted(candidates, key=lambda c: c.trial)[-STALE:]
    return len(recent) == STALE and all(c.state is State.ESTIMATED for c in recent)


def _is_cold(ladder: Ladder) -> bool:
    """Whether the shared weights of a family say nothing yet."""
    record = ladder.shared.record()
    return any(record.get(name, {"cycles": 0})["cycles"] < LEAST_CYCLES for name in ladder.families)


def _nearly_over(ladder: Ladder) -> bool:
    """Whether there is no time left to train what would be estimated."""
    return _seconds_left(ladder) < ladder.overhead_s


def _seconds(ladder: Ladder, action: str) -> float:
    """Length of an action, cut to the time that is left."""
    whole = ladder.session.config.study.timeout_s or 0.0
    lengths = {key: share * ladder.session.elapsed_s() for key, share in LENGTHS.items()}
    lengths |= {"train_on": max(lengths["train_on"], LONG * whole), "polish": POLISH_SHARE / KNEES * whole}
    return _cut(ladder, lengths[action])


def _cut(ladder: Ladder, length: float) -> float:
    """A length that leaves no time behind, or enough for something else."""
    left = _seconds_left(ladder)
    return left if left < (1 + REST) * length else length


def _seconds_left(ladder: Ladder) -> float:
    """For training, before the study ends."""
    timeout = ladder.session.config.study.timeout_s
    return math.inf if timeout is None else timeout - ladder.session.elapsed_s() - ladder.overhead_s


# --- shared weights


def _share(ladder: Ladder, candidates: Sequence[Candidate]) -> bool:
    """One cycle of a family."""
    family, seconds = _family_to_train(ladder, candidates, _seconds(ladder, "share"))
    plans = _pool(ladder, candidates, family)
    ladder.session.watcher.note(f"training the shared weights of {family} on {len(plans)} members")
    macs = statistics.mean(ladder.predictor.macs(plan) for plan in plans)
    ladder.shared.train_(family, plans, seconds, macs)
    return True


def _family_to_train(ladder: Ladder, candidates: Sequence[Candidate], length: float) -> tuple[str, float]:
    """The family that leads by what its trained members may reach; one that trails gets a small part of its time.

    Returns:
        The family, and the seconds of its cycle.
    """
    record = ladder.shared.record()
    seconds = {name: record.get(name, {"seconds": 0.0})["seconds"] for name in ladder.families}
    curves, horizon = ladder.curves(candidates), _seconds(ladder, "train_on")
    hopes: dict[str, list[ObjectiveVector]] = {name: [] for name in ladder.families}
    for c in leaves(candidates):
        hopes[c.plan.architecture.family].append(hoped_for(c, horizon, curves))
    if not all(hopes.values()):
        return min(seconds, key=lambda name: seconds[name]), length
    leader = max(hopes, key=lambda name: hypervolume(hopes[name], LENIENT_REFERENCE))
    short = TRAILING_SHARE * length
    for name in ladder.families:
        if name != leader and seconds[name] + short < TRAILING_SHARE * seconds[leader]:
            return name, short
    return leader, length


def _pool(ladder: Ladder, candidates: Sequence[Candidate], family: str) -> list[Plan]:
    """Members to train, dearest first: most of them the most promising so far, the others drawn afresh."""
    known = [
        (c, objectives(c)) for c in candidates if c.state is State.ESTIMATED and c.plan.architecture.family == family
    ]
    own = [c for c, point in known if point is not None]
    points = [point for _, point in known if point is not None]
    best = [own[k].plan for k in climbing_order(points, [])] or _waiting(ladder, family)
    best = best[: 2 * POOL // 3]
    cycle = int(ladder.shared.record().get(family, {}).get("cycles", 0))
    # a network of the model space must be built and traced to be drawn
    count = POOL - len(best) if family == "base" else FEW
    fresh = _drawn(ladder, family, count, ladder.session.config.study.seed + 31 * cycle, strict=bool(best))
    costs = {id(plan): ladder.predictor.macs(plan) for plan in (*best, *fresh)}
    return sorted([*best, *fresh], key=lambda plan: -costs[id(plan)])


def _waiting(ladder: Ladder, family: str) -> list[Plan]:
    """Plans that are enqueued to be estimated."""
    trials = ladder.session.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    plans = [Plan.model_validate_json(t.user_attrs["plan"]) for t in trials if t.user_attrs.get("rung") == "estimate"]
    return [plan for plan in plans if plan.architecture.family == family and not _beyond(ladder, plan)[0]]


def _drawn(ladder: Ladder, family: str, count: int, seed: int, strict: bool) -> list[Plan]:
    """Random plans of one family that the tables let pass, as far as they are found quickly.

    Args:
        strict: no others where too few are found.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    guide = replace(ladder.guide, bit_errors=lambda plan: {})  # bits need not be good to be trained
    found: list[Plan] = []
    rest: list[Plan] = []
    for number in range(2 * count):
        plan = guide.suggest_plan(OfFamily(study.ask(), family), number)
        (rest if _beyond(ladder, plan)[0] else found).append(plan)
        if len(found) == count:
            break
    return found if strict else [*found, *rest][:count]


class OfFamily(PerLayer):
    """Draws plans of one family only."""

    def __init__(self, trial: Suggests, family: str) -> None:
        super().__init__(trial)
        self._family = family

    def family(self, options: Sequence[str]) -> str:
        """The given one."""
        return super().family([self._family])


# --- estimates


def _new_estimate(ladder: Ladder, candidates: Sequence[Candidate], progress: float) -> optuna.Trial:
    """A trial to estimate: drawn by the sampler, or a front member with one decision changed."""
    session = ladder.session
    estimated = [c for c in candidates if c.state is State.ESTIMATED]
    late = progress >= MUTATE_FROM and len(estimated) % 2 == 1
    with exclusive(session.run.root / "ask.lock"):
        if late:
            number = len(session.study.get_trials(deepcopy=False))
            found = mutated(candidates, ladder.guide, session.config.study.seed + number)
            if found is not None:
                plan, parent = found
                attributes = {"plan": plan.model_dump_json(), "origin": "mutated", "rung": "estimate", "outside": True}
                attributes |= {} if parent is None else {"parent": parent.trial}
                session.study.enqueue_trial({}, user_attrs=attributes)
        return ask(session, START_UP_ESTIMATES)


def _estimate(ladder: Ladder, session: Session, current: Current, trial: optuna.Trial) -> Result:
    """F0, and where the tables let the plan pass, F1."""
    with current.clock.stage("plan"):
        current.plan = plan_of(session, trial)
    session.watcher.started(current.number, current.origin, describe(current.plan, current.name))
    with current.clock.stage("predict"):
        broken, estimate, found = _beyond(ladder, current.plan)
    if broken:
        return Result(State.ESTIMATED, f"limit: {broken}, by the tables", estimate=estimate, violations=found)
    with current.clock.stage("score"):
        trained = None if current.parent is None else session.run.checkpoint(current.parent.trial)
        divergence, drop = ladder.shared.score(current.plan, trained)
    expected = _expected_drop(session, current, drop)
    figures = {"divergence": divergence, "shared_drop_points": drop, "drop_points": expected}
    if session.config.limits.max_accuracy_drop is not None:
        found = found | {"max_accuracy_drop": expected - session.config.limits.max_accuracy_drop}
    return Result(State.ESTIMATED, estimate=estimate.model_copy(update=figures), violations=found)


def _expected_drop(session: Session, current: Current, drop: float) -> float:
    """After a short training; of a trained network with other bits, what it had and a part of what rounding adds."""
    parent = None if current.parent is None else current.parent.measurement
    if parent is not None and parent.validation is not None:
        own = parent.validation.drop_points
        return own + KEPT_SHARE * max(0.0, drop - own)
    expectation = fit_expectation(read_candidates(session.run))
    return expectation.drop_points(drop, current.plan.architecture.family)


def _beyond(ladder: Ladder, plan: Plan) -> tuple[str, Estimate, dict[str, float]]:
    """Limits that a plan breaks by the tables, in words and as amounts, and what the tables say."""
    limits, baseline, predictor = ladder.session.config.limits, ladder.session.baseline, ladder.predictor
    found = predictor.operators(plan)
    ratio, size = predictor.latency_ratio(found), predictor.size_bytes(plan, found)
    assert baseline.latency is not None
    amounts = size_violations(limits, round(size), baseline.size_bytes)
    amounts |= latency_violations(limits, ratio * baseline.latency.latency_ms, ratio)
    broken = describe_broken({name: amount for name, amount in amounts.items() if amount > SLACK}, limits)
    return broken, Estimate(size_ratio=size / baseline.size_bytes, latency_ratio=ratio), amounts


# --- training


def _enqueue_training(ladder: Ladder, action: str) -> optuna.Trial | None:
    """Enqueue the candidate that climbs, and ask for it; None if there is none or no time."""
    session = ladder.session
    with exclusive(session.run.root / "ask.lock"):
        attributes = _climber(ladder, read_candidates(session.run), action)
        if attributes is None:
            return None
        session.study.enqueue_trial({}, user_attrs=attributes)
        return ask(session, START_UP_ESTIMATES)


def _climber(ladder: Ladder, candidates: Sequence[Candidate], action: str) -> dict[str, Any] | None:
    """What to train next, as the attributes of a trial, with the weights that it starts from on disk."""
    session = ladder.session
    seconds = _seconds(ladder, action)
    states = (TrialState.RUNNING, TrialState.WAITING)
    running = session.study.get_trials(deepcopy=False, states=states)
    busy = {
        int(t.user_attrs["parent"]) for t in running if t.user_attrs.get("rung") == "train" and "parent" in t.user_attrs
    }
    # what is best after one long training, and not at the end, is trained next: there is a good front at any time
    horizon = _seconds(ladder, "train_on")
    if action == "promote":
        least = 1 if _is_exhausted(ladder, candidates) else LEAST_ESTIMATES
        shorts = {"base": seconds, "space": seconds * session.config.training.random_start_factor}
        parent = next_to_promote(candidates, busy, shorts, horizon, ladder.curves(candidates), least)
        seconds = seconds if parent is None else shorts[parent.plan.architecture.family]
    elif action == "polish":
        parent = next_to_polish(candidates, busy, KNEES)
    else:
        parent = next_to_train_on(candidates, busy, horizon, ladder.curves(candidates), _seconds_left(ladder) / GROWTH)
    if parent is None:
        return None
    if action == "train_on":
        seconds = _cut(ladder, max(seconds, GROWTH * trained_seconds(parent, candidates)))
    steps = _steps(ladder, candidates, parent.plan, seconds, action)
    if steps < min(LEAST_STEPS[action], parent.plan.training.steps):
        return None
    origin = Origin.PROMOTED if action == "promote" else Origin.CONTINUED
    start = session.run.checkpoint(parent.trial)
    if action == "promote" and parent.parent is not None:  # other bits for a trained network
        shutil.copyfile(session.run.checkpoint(parent.parent), start)
    digest = state_digest(load_file(start)) if start.is_file() else ladder.shared.write_start(parent.plan, start)
    update = {"training": TrainingSpec(steps=steps, start=digest), "seed": parent.plan.seed + NEXT_SEED}
    # the sampler has heard of this plan as an estimate; parts of its tree would count twice
    attributes: dict[str, Any] = {
        "plan": parent.plan.model_copy(update=update).model_dump_json(),
        "origin": origin.value,
    }
    return attributes | {"parent": parent.trial, "name": parent.name, "rung": "train", "outside": True}


def _steps(ladder: Ladder, candidates: Sequence[Candidate], plan: Plan, seconds: float, action: str) -> int:
    """Steps that fit into so many seconds, at the speed of what was trained before; multiples of the study's where
    time is free.
    """
    if ladder.session.config.study.timeout_s is None:
        return plan.training.steps * (1 if action == "promote" else LONGER)
    rate = _seconds_per_mac(ladder, candidates, plan.architecture.family)
    return int(seconds / (rate * ladder.predictor.macs(plan)))


def _seconds_per_mac(ladder: Ladder, candidates: Sequence[Candidate], family: str) -> float:
    """Seconds of a training step for each multiplication of one example: of the family's files, else of shared weights."""
    files = [c for c in candidates if c.state is State.COMPLETE and c.plan.training.steps > 0]
    record = ladder.shared.record()
    shared = [record[name] for name in (family, *record) if name in record and record[name]["macs"]]
    own = [c for c in files if c.plan.architecture.family == family] or ([] if shared else files)
    if own:
        macs = ladder.predictor.macs
        return statistics.median(c.stage_seconds["train"] / c.plan.training.steps / macs(c.plan) for c in own)
    return shared[0]["seconds_per_step"] / shared[0]["macs"] if shared else USUAL_SECONDS_PER_MAC
