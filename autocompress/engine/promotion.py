"""Which candidates climb: by non-dominated rank, and within a rank by what they add to what is there.

Multi-objective successive halving (Jamieson and Talwalkar 2016; Schmucker et al. 2021 for several objectives), with
the hypervolume that a point adds as the spread: of two neighbours only one adds much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from autocompress.candidate import Candidate, Origin, State
from autocompress.engine.expectation import Curves, can_go_on
from autocompress.engine.pareto import ObjectiveVector, front, hypervolume, objective_vector, ranks
from autocompress.engine.time_left import USUAL_OVERHEAD_S

CONTENDERS = 256
LEAST_ESTIMATES = 8
"""Estimates that must wait before one of them is promoted."""


def climbing_order(points: Sequence[ObjectiveVector], taken: Sequence[ObjectiveVector]) -> list[int]:
    """Indices of ``points``, best first: by the hypervolume added to ``taken``, then by rank, then by drop.

    A point that adds hypervolume is not dominated by what is taken. Of thousands of points, which a long search has,
    only the :data:`CONTENDERS` that add most (or, of those that add nothing, lose least) are ranked and returned.
    """
    if not points:
        return []
    added = added_hypervolumes(points, taken)
    contenders = sorted(range(len(points)), key=lambda k: (-added[k], points[k][0]))[:CONTENDERS]
    rank = dict(zip(contenders, ranks([points[k] for k in contenders]).tolist(), strict=True))
    return sorted(contenders, key=lambda k: (-added[k], rank[k], points[k][0]))


def added_hypervolumes(points: Sequence[ObjectiveVector], taken: Sequence[ObjectiveVector]) -> list[float]:
    """What each of ``points`` adds alone to the hypervolume of ``taken``."""
    base = hypervolume(np.array(taken).reshape(-1, 3))
    return [max(0.0, hypervolume(np.array([*taken, point])) - base) for point in points]


def next_to_promote(
    candidates: Sequence[Candidate],
    busy: set[int],
    short_s: Callable[[Candidate], float],
    seconds: float,
    curves: Curves,
    least: int = LEAST_ESTIMATES,
    overhead_s: float = USUAL_OVERHEAD_S,
) -> Candidate | None:
    """The estimated candidate to train first; None while too few wait, or if training on is worth more.

    It is the one that adds most to the files for each second of its short training (Snoek et al. 2012, Practical Bayesian
    Optimization, section 3.2, of expected improvement). Where a trained one adds more for each second of a long training, or
    nothing adds anything so soon, it is the one that adds most after a long one to the files and to what the trained ones
    can hope for by then, unless a trained one adds more in that time.

    Args:
        busy: trials that are being promoted or trained on.
        short_s: seconds of the training that a newcomer gets.
        seconds: how long the trained candidates can hope to be trained on; what they reach by then is what a
            newcomer has to add to.
        curves: what is left of a drop after more training.
        least: estimates that must wait.
        overhead_s: of a file beside its training.
    """
    gone = _climbed(candidates, busy)
    waiting = _promotable(candidates, busy, gone, least)
    if not waiting:
        return None
    # scores of two sets of shared weights, of which one began at random, are no comparison; that one waits
    untried = sorted(untried_families(candidates), key=lambda family: family == "space")[:1]
    waiting = [c for c in waiting if c.plan.architecture.family in untried] or waiting
    measured = [_vector(c) for c in candidates if c.state is State.COMPLETE]
    points = [_estimated(c, short_s(c) + seconds, curves) for c in waiting]
    if not untried:
        longer = [hoped_for(c, seconds, curves) for c in _trainable_on(candidates, gone)]
        gain_of_longer = max(added_hypervolumes(longer, measured), default=0.0)
        gains = added_hypervolumes([_estimated(c, short_s(c), curves) for c in waiting], measured)
        rates = [gain / (short_s(c) + overhead_s) for c, gain in zip(waiting, gains, strict=True)]
        best = max(range(len(waiting)), key=lambda k: rates[k])
        # what is left of a trained network needs little; another network only puts off what adds more for its seconds
        comes_first = waiting[best].parent is not None or rates[best] >= gain_of_longer / (seconds + overhead_s)
        if rates[best] > 0 and comes_first:
            return waiting[best]
        if gain_of_longer > max(added_hypervolumes(points, measured)):
            return None
    taken = [*measured, *(hoped_for(c, seconds, curves) for c in leaves(candidates))]
    return waiting[climbing_order(points, taken)[0]]


def _promotable(candidates: Sequence[Candidate], busy: set[int], gone: set[int], least: int) -> list[Candidate]:
    """Estimates of what was not trained yet; none while fewer than ``least`` wait."""
    # the same decisions begun with another file's weights, as those of one that was trained on since, are another start
    begun = {(c.plan.decisions, c.parent) for c in candidates if c.trial in gone}
    begun |= {(c.plan.decisions, None) for c in candidates if c.state is State.COMPLETE}
    waiting = [
        c for c in candidates if is_waiting(c) and c.trial not in gone and (c.plan.decisions, c.parent) not in begun
    ]
    # a trained network in other bits begins with its weights, as an estimate of its own
    networks = {c.plan.network for c in candidates if can_go_on(c) or c.trial in busy}
    own = [c for c in waiting if c.parent is not None or c.plan.network not in networks]
    return own if len(waiting) >= least else []


def most_worthwhile_s(
    newcomer: Candidate, candidates: Sequence[Candidate], lengths_s: Sequence[float], curves: Curves, overhead_s: float
) -> float:
    """Of several lengths, that of a first training which adds most to the files for each second.

    Args:
        newcomer: an estimate that was scored.
        lengths_s: seconds; the first where none adds anything.
        overhead_s: of a file beside its training.
    """
    measured = [_vector(c) for c in candidates if c.state is State.COMPLETE]
    gains = added_hypervolumes([_estimated(newcomer, seconds, curves) for seconds in lengths_s], measured)
    return max(zip(gains, lengths_s, strict=True), key=lambda pair: pair[0] / (pair[1] + overhead_s))[1]


def untried_families(candidates: Sequence[Candidate]) -> set[str]:
    """Families of which something waits and nothing was promoted."""
    tried = {c.plan.architecture.family for c in candidates if c.origin is Origin.PROMOTED}
    return {c.plan.architecture.family for c in candidates if is_waiting(c)} - tried


def next_to_train_on(
    candidates: Sequence[Candidate],
    busy: set[int],
    seconds: float,
    curves: Curves,
) -> Candidate | None:
    """The trained candidate from which ``seconds`` more of training add most to the hypervolume.

    Args:
        curves: what is left of a drop after more training.
    """
    free = _trainable_on(candidates, _climbed(candidates, busy))
    taken = [_vector(c) for c in candidates if c.state is State.COMPLETE]
    points = [hoped_for(c, seconds, curves) for c in free]
    return free[climbing_order(points, taken)[0]] if free else None


def _trainable_on(candidates: Sequence[Candidate], gone: set[int]) -> list[Candidate]:
    """Trained candidates that can be trained on; one that loses nothing has nothing to gain."""
    return [c for c in candidates if can_go_on(c) and c.trial not in gone and _vector(c)[0] > 0]


def knee_points(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Members of the front without which it would lose most hypervolume, that can be trained on, the greatest first.

    Knees in the sense of Branke et al. 2004: to give up a little of one objective there costs much of another.
    """
    members = front(candidates)
    points = [_vector(c) for c in members]
    whole = hypervolume(np.array(points).reshape(-1, 3))
    loss = {
        c.trial: whole - hypervolume(np.array([*points[:k], *points[k + 1 :]]).reshape(-1, 3))
        for k, c in enumerate(members)
    }
    able = [c for c in members if can_go_on(c)]
    return sorted(able, key=lambda c: (-loss[c.trial], c.trial))[:count]


def next_to_polish(candidates: Sequence[Candidate], busy: set[int], count: int) -> Candidate | None:
    """The first of the knee points that nothing was continued from; None when all were."""
    gone = _climbed(candidates, busy)
    return next((c for c in knee_points(candidates, count) if c.trial not in gone), None)


def leaves(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Trained candidates that nothing was continued from."""
    gone = _climbed(candidates, set())
    return [c for c in candidates if can_go_on(c) and c.trial not in gone]


def _climbed(candidates: Sequence[Candidate], busy: set[int]) -> set[int]:
    """Candidates that were trained on, or are being; an estimate with other bits takes nothing from its parent."""
    return busy | {c.parent for c in candidates if c.parent is not None and c.state is not State.ESTIMATED}


def hoped_for(candidate: Candidate, seconds: float, curves: Curves) -> ObjectiveVector:
    """Objectives of a trained candidate when it is trained on."""
    drop, size, latency = _vector(candidate)
    return curves.drop_after(candidate, drop, candidate.total_steps, seconds), size, latency


def is_waiting(candidate: Candidate) -> bool:
    """Whether it was scored on shared weights or on a file's, and may be trained."""
    return (
        candidate.state is State.ESTIMATED
        and candidate.estimate is not None
        and candidate.estimate.drop_points is not None
    )


def _estimated(candidate: Candidate, seconds: float, curves: Curves) -> ObjectiveVector:
    """Objectives of an estimated candidate when it is trained for so many seconds.

    Its expected drop is that after the usual steps; a network that computes more makes fewer in the same time.
    """
    point = objectives(candidate)
    assert point is not None
    usual = curves.usual_steps[candidate.plan.architecture.family]
    spent, later = candidate.total_steps, seconds / curves.seconds_per_step(candidate)
    return curves.drop_at(candidate, point[0], spent + usual, spent + later), *point[1:]


def _vector(candidate: Candidate) -> ObjectiveVector:
    assert candidate.measurement is not None
    return objective_vector(candidate.measurement)


def objectives(candidate: Candidate) -> ObjectiveVector | None:
    """Measured objectives, or estimated ones; None of a candidate that has neither."""
    if candidate.state is State.COMPLETE:
        return _vector(candidate)
    estimate = candidate.estimate
    if estimate is None or estimate.drop_points is None:
        return None
    return estimate.drop_points, math.log(estimate.size_ratio), math.log(estimate.latency_ratio)
