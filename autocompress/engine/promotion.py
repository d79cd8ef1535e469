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
LEAST_GROWTH = 0.5
"""Of the front's mean growth so far, that less of a trained file must bring for its seconds."""
LEAST_ESTIMATES = 8
"""Estimates that must wait before one of them is promoted."""


def climbing_order(
    points: Sequence[ObjectiveVector], taken: Sequence[ObjectiveVector], seconds: Sequence[float] | None = None
) -> list[int]:
    """Indices of ``points``, best first: by the hypervolume added to ``taken``, then by rank, then by drop.

    A point that adds hypervolume is not dominated by what is taken. Of thousands of points, which a long search has,
    only the :data:`CONTENDERS` that add most (or, of those that add nothing, lose least) are ranked and returned.

    Args:
        seconds: that each point costs; then what counts is the hypervolume added in a second (Snoek et al. 2012, Practical
            Bayesian Optimization, section 3.2, of expected improvement).
    """
    if not points:
        return []
    added = added_hypervolumes(points, taken)
    added = added if seconds is None else [gain / cost for gain, cost in zip(added, seconds, strict=True)]
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
    """The estimated candidate to train first; None while too few wait.

    It is the one that adds most to the files for each second of its short training; where none adds anything so soon, the
    one that adds most after a long one to the files and to what the trained ones can hope for by then.

    Args:
        busy: trials that are being promoted or trained on.
        short_s: seconds of the training that a newcomer gets.
        seconds: how long the trained candidates can hope to be trained on; what they reach by then is what a
            newcomer has to add to.
        curves: what is left of a drop after more training.
        least: estimates that must wait.
        overhead_s: of a file beside its training.
    """
    waiting = _waiting(candidates, busy)
    if len(waiting) < least:
        return None
    # a trained network in other bits begins with its weights, as an estimate of its own
    networks = {c.plan.network for c in candidates if can_go_on(c) or c.trial in busy}
    waiting = [c for c in waiting if c.parent is not None or c.plan.network not in networks]
    if not waiting:
        return None
    # scores of two sets of shared weights, of which one began at random, are no comparison; that one waits
    untried = sorted(untried_families(candidates), key=lambda family: family == "space")[:1]
    waiting = [c for c in waiting if c.plan.architecture.family in untried] or waiting
    measured = [_vector(c) for c in candidates if c.state is State.COMPLETE]
    first = None if untried else _adds_most_soon(waiting, measured, short_s, curves, overhead_s, 0.0)
    if first is not None:
        return first
    taken = [*measured, *(hoped_for(c, seconds, curves) for c in leaves(candidates))]
    points = [expected_after(c, short_s(c) + seconds, curves) for c in waiting]
    return waiting[climbing_order(points, taken)[0]]


def next_to_reduce(
    candidates: Sequence[Candidate],
    busy: set[int],
    parent: Candidate,
    short_s: Callable[[Candidate], float],
    curves: Curves,
    elapsed_s: float,
    overhead_s: float = USUAL_OVERHEAD_S,
) -> Candidate | None:
    """What is less than a trained candidate, in bits or in layers, and adds most to the files for each second of its short
    training; None where nothing adds :data:`LEAST_GROWTH` of what a second has brought so far.

    Args:
        parent: the trained one.
        elapsed_s: in which the files were made.
        busy, short_s, curves, overhead_s: as of :func:`next_to_promote`.
    """
    waiting = [c for c in _waiting(candidates, busy) if c.parent == parent.trial]
    measured = [_vector(c) for c in candidates if c.state is State.COMPLETE]
    taken = [_vector(c) for c in candidates if c.origin is Origin.TAKEN and c.state is State.COMPLETE]
    grown = hypervolume(np.array(measured).reshape(-1, 3)) - hypervolume(np.array(taken).reshape(-1, 3))
    growth = grown / max(elapsed_s, 1.0)
    return _adds_most_soon(waiting, measured, short_s, curves, overhead_s, LEAST_GROWTH * growth)


def _waiting(candidates: Sequence[Candidate], busy: set[int]) -> list[Candidate]:
    """Estimates of which no file was made."""
    gone = _climbed(candidates, busy)
    # the same decisions begun with another file's weights, as those of one that was trained on since, are another start
    begun = {(c.plan.decisions, c.parent) for c in candidates if c.trial in gone}
    begun |= {(c.plan.decisions, None) for c in candidates if c.state is State.COMPLETE}
    recorded = {None, *(c.trial for c in candidates)}  # a user may remove a damaged one
    waiting = [c for c in candidates if is_waiting(c) and c.trial not in gone and c.parent in recorded]
    return [c for c in waiting if (c.plan.decisions, c.parent) not in begun]


def _adds_most_soon(
    waiting: Sequence[Candidate],
    measured: Sequence[ObjectiveVector],
    short_s: Callable[[Candidate], float],
    curves: Curves,
    overhead_s: float,
    least_each_s: float,
) -> Candidate | None:
    """The one that adds most for each second; None if that is not more than so much."""
    if not waiting:
        return None
    soon = [expected_after(c, short_s(c), curves) for c in waiting]
    costs = [short_s(c) + overhead_s for c in waiting]
    first = climbing_order(soon, measured, costs)[0]
    return waiting[first] if added_hypervolumes([soon[first]], measured)[0] > least_each_s * costs[first] else None


def untried_families(candidates: Sequence[Candidate]) -> set[str]:
    """Families of which something waits and nothing was promoted or taken from an earlier run."""
    tried = {c.plan.architecture.family for c in candidates if c.origin in (Origin.PROMOTED, Origin.TAKEN)}
    return {c.plan.architecture.family for c in candidates if is_waiting(c)} - tried


def next_to_train_on(
    candidates: Sequence[Candidate],
    busy: set[int],
    seconds: float,
    curves: Curves,
) -> Candidate | None:
    """The trained candidate from which ``seconds`` more of training add most to the hypervolume, or an estimate of less
    of one, in bits or in layers: what was cut out of a network goes on as well as the whole.

    Once a file is as accurate as the base, as far as validation can tell, being better than the base is worth nothing
    more: the minutes are for what is smaller.

    Args:
        curves: what is left of a drop after more training.
    """
    gone = _climbed(candidates, busy)
    # one that loses nothing has nothing to gain
    files = [c for c in candidates if can_go_on(c) and c.trial not in gone and _vector(c)[0] > 0]
    less = [c for c in _waiting(candidates, busy) if c.parent is not None]
    taken = [_vector(c) for c in candidates if c.state is State.COMPLETE]
    hopes = [hoped_for(c, seconds, curves) for c in files]
    points = [
        *(hope if is_behind(c) else _no_better_than_base(hope) for c, hope in zip(files, hopes, strict=True)),
        *(_no_better_than_base(expected_after(c, seconds, curves)) for c in less),
    ]
    return [*files, *less][climbing_order(points, taken)[0]] if points else None


def is_behind(candidate: Candidate) -> bool:
    """Whether a file loses accuracy beyond doubt: the 95 % interval of its drop does not reach 0."""
    assert candidate.measurement is not None and candidate.measurement.validation is not None
    return candidate.measurement.validation.drop_interval_points()[0] > 0


def _no_better_than_base(point: ObjectiveVector) -> ObjectiveVector:
    return max(point[0], 0.0), *point[1:]


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
    return sorted(able, key=lambda c: (-loss[c.trial], _vector(c)[0], c.trial))[:count]


def next_to_polish(candidates: Sequence[Candidate], busy: set[int], count: int, began_s: float) -> Candidate | None:
    """The first of the knee points that nothing was continued from; None when all were.

    Args:
        began_s: run time in seconds at which polishing began: what was polished is no knee of its own.
    """
    gone = _climbed(candidates, busy)
    before = [c for c in candidates if c.started_s < began_s]
    return next((c for c in knee_points(before, count) if c.trial not in gone), None)


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


def expected_after(candidate: Candidate, seconds: float, curves: Curves) -> ObjectiveVector:
    """Objectives of an estimated candidate when it is trained for so many seconds.

    Its expected drop is that after the usual steps; a network that computes more makes fewer in the same time. What a cut
    costs passes with the steps since then, whatever those before.
    """
    point = objectives(candidate)
    assert point is not None and candidate.estimate is not None
    usual = curves.usual_steps[candidate.plan.architecture.family]
    spent, later = candidate.total_steps, seconds / curves.seconds_per_step(candidate)
    passing = candidate.estimate.passing_drop_points
    lasting = curves.drop_at(candidate, point[0] - passing, spent + usual, spent + later)
    return lasting + passing * usual / max(later, 1.0), *point[1:]


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
