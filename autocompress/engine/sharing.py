"""A cycle of the shared weights: of which family, and on which members."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import optuna
from optuna.trial import TrialState

from autocompress.candidate import Candidate, State
from autocompress.engine.estimating import beyond
from autocompress.engine.ladder import Ladder
from autocompress.engine.pace import cold_families, length_s
from autocompress.engine.pareto import ObjectiveVector, hypervolume
from autocompress.engine.promotion import climbing_order, hoped_for, leaves, objectives
from autocompress.engine.space import PerLayer, Suggests
from autocompress.errors import ModelError
from autocompress.plan import Plan

POOL, FEW = 12, 4
TRAILING_SHARE = 1 / 6
LENIENT_REFERENCE = (50.0, 0.0, 0.0)
"""Where families are compared before any member is near the base."""


def share(ladder: Ladder, candidates: Sequence[Candidate]) -> bool:
    """One cycle of a family."""
    family, seconds = _family_to_train(ladder, candidates, length_s(ladder, "share"))
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
    cold = cold_families(ladder)
    if cold:
        return cold[0], length
    curves, horizon = ladder.curves(candidates), length_s(ladder, "train_on")
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
    return [plan for plan in plans if plan.architecture.family == family and not beyond(ladder, plan)[0]]


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
        with suppress(ModelError):  # a member that cannot be built
            plan = guide.suggest_plan(OfFamily(study.ask(), family), number)
            (rest if beyond(ladder, plan)[0] else found).append(plan)
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
