"""The last part of a study: train the front's members on, fewer and longer from round to round.

Successive halving (Jamieson and Talwalkar 2016) over candidates that exist as files. The rule needs no
memory of its own: what to do next follows from the recorded candidates, so it survives any interruption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.candidate import Candidate
from autocompress.config import TrainingSection
from autocompress.engine.expectation import can_go_on
from autocompress.engine.pareto import hypervolume, objective_vector
from autocompress.pipeline import quantized_steps
from autocompress.plan import Plan, TrainingSpec

HOPED_FOR_SHARE = 0.5
"""Share of its drop that a member is expected to keep when trained on; only ranks members by it."""

NEW_START = 1.5
"""Times the steps so far, from which on a training that goes on is worth its family's whole learning rate."""


def continued_rate(training: TrainingSection, family: str, before: int, steps: int) -> float:
    """Learning rate of ``steps`` more after the steps ``before``: the fewer, the lower, since a high one first loses
    what only a long training wins back (docs/log.md).
    """
    return training.peak_rate(family) * min(1.0, steps / (NEW_START * before))


def least_steps(settings: TrainingSection, file: Plan, usual: int) -> int:
    """Fewest steps for which a file goes on: as many as round it anew, which leave its weights as they are, and
    ``usual`` others, or as many as it had.
    """
    return min(usual, file.training.steps) + quantized_steps(settings, file)


def continued_training(
    settings: TrainingSection, goes_on: Candidate, file: Plan, steps: int, start: str
) -> TrainingSpec:
    """The training of what goes on for ``steps`` more.

    A file's float weights are those before they were rounded, so its quantised phase is to be made anew: with no fewer
    steps than it had, if there are so many (docs/log.md).

    Args:
        goes_on: a trained candidate, or an estimate of less of one.
        file: plan of the trained one, whose weights it begins with.
        start: digest of the weights.
    """
    rate = continued_rate(settings, goes_on.plan.architecture.family, goes_on.total_steps, steps)
    training = TrainingSpec(steps=steps, start=start, learning_rate=rate)
    least = min(steps, quantized_steps(settings, file))
    if quantized_steps(settings, goes_on.plan.model_copy(update={"training": training})) >= least:
        return training
    return training.model_copy(update={"quantized_fraction": least / steps})


@dataclass(frozen=True)
class Continuation:
    """Train on from ``parent`` for ``seconds`` (None: a multiple of its budget)."""

    parent: Candidate
    round: int
    seconds: float | None


def rounds(members: int) -> int:
    """Rounds of halving from ``members`` to one."""
    return int(math.log2(members)) + 1


def next_continuation(
    candidates: Sequence[Candidate], busy: set[int], members: int, progress: float, seconds: float | None
) -> Continuation | None:
    """What to train on next; None when the last round is over.

    Args:
        candidates: all finished ones.
        busy: trials whose continuation is running.
        members: members of the first round; halved each round.
        progress: share of the phase's total that is used, in [0, 1].
        seconds: length of the whole phase, or None where only trials are counted.
    """
    total = rounds(members)
    current = min(int(progress * total), total - 1)
    gone_on = busy | {c.parent for c in candidates if c.parent is not None}
    for number in range(current, total):
        width = max(1, members >> number)
        entrants = _entrants(candidates, number)
        # all that take part in a round are ranked together, so that a place taken stays taken
        free = [c for c in promising(entrants, width, by_family=number == 0) if c.trial not in gone_on]
        taken = sum(c.trial in gone_on for c in entrants)
        if free and taken < width:
            return Continuation(free[0], number, None if seconds is None else seconds / total / width)
    return None


def _entrants(candidates: Sequence[Candidate], number: int) -> list[Candidate]:
    """What the round before made; where it made nothing that can go on, what the one before that made."""
    parents = {c.trial: c.parent for c in candidates}
    generations = {c.trial: _generation(c, parents) for c in candidates if can_go_on(c)}
    latest = max((generation for generation in generations.values() if generation <= number), default=0)
    return [c for c in candidates if generations.get(c.trial) == latest]


def _generation(candidate: Candidate, parents: Mapping[int, int | None]) -> int:
    generation, parent = 0, candidate.parent
    while parent is not None:
        generation, parent = generation + 1, parents.get(parent)
    return generation


def promising(candidates: Sequence[Candidate], count: int, by_family: bool) -> list[Candidate]:
    """Up to ``count`` trained candidates within the limits on bytes and latency, best first.

    Greedy by the hypervolume that each adds, with a hoped-for share of its drop. ``by_family`` gives each
    family its part: a family that starts from random weights is behind after a short budget.
    """
    usable = [c for c in candidates if can_go_on(c)]
    if not by_family:
        return _greedy(usable, count)
    families = sorted({c.plan.architecture.family for c in usable})
    ranked = [_greedy([c for c in usable if c.plan.architecture.family == family], count) for family in families]
    interleaved = [c for place in range(count) for members in ranked for c in members[place : place + 1]]
    return interleaved[:count]


def _greedy(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    chosen: list[Candidate] = []
    points = {c.trial: _hoped_for(c) for c in candidates}
    left = sorted(candidates, key=lambda c: c.trial)
    while left and len(chosen) < count:
        taken = [points[c.trial] for c in chosen]
        # the drop decides between candidates that add nothing
        best = max(left, key=lambda c: (hypervolume(np.array([*taken, points[c.trial]])), -points[c.trial][0]))
        chosen.append(best)
        left.remove(best)
    return chosen


def _hoped_for(candidate: Candidate) -> tuple[float, float, float]:
    assert candidate.measurement is not None
    drop, size, latency = objective_vector(candidate.measurement)
    return max(drop, 0.0) * HOPED_FOR_SHARE, size, latency
