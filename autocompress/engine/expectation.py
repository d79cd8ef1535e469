"""What training will make of a candidate: corrected cheap scores, and learning curves.

A member of the shared weights is not a trained file. A ridge regression of the file's drop on the root of the member's
divergence, over a power of its multiplications, around a prior, is fitted as pairs arrive: what has gone further wins a
greater part of it back, and what computes less wins less of it. From then on what can still be gained
falls with training time as a power law (Hestness et al. 2017, Deep Learning Scaling is Predictable), whose exponent each
family has of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.linear_model import Ridge

from autocompress.candidate import Candidate, Estimate, Origin, State

KEPT_OF_ROOT = 3.0
"""Points expected to be left after the study's usual steps for each square root of a nat by which a member diverges, if it
computes as much as the base, before any pair is known (docs/log.md)."""
LEARNING_EXPONENT = 0.35
"""Of the multiplications, over the base's: twenty plans whose members lose alike keep the more the less they compute
(docs/log.md)."""
KEPT_OF_CHANGE = 0.1
"""Of what a trained network loses with other bits or fewer channels, the share that a short training does not win back
(docs/log.md)."""
SHOWN_OF_CUT = 0.5
"""Of what a smaller network is thought to lose in the end, the share that shows when it was cut out of a trained one a short
training ago (docs/log.md)."""
SHRINKAGE = 2.0
"""Pairs that weigh as much as the prior."""
TYPICAL_HANDICAP = 0.65
"""Of a member that diverges by 0.2 nats and has a third of the base's multiplications."""
EXPONENTS = {"base": 0.4, "space": 0.65}
"""Of the power law, before any training that went on is known; what starts at random learns for longer."""
EXPONENT_RANGE = (0.05, 1.5)
ROOM_POINTS = {"base": 2.0, "space": 3.5}
"""How far beyond its teacher a student of the same size is thought to come in the end; one that begins with the teacher's weights
stays nearer to it."""
POINTS_PER_SQUARED_FOLD = 0.16
"""What a student of less capacity loses of that, by the square of the logarithm of the capacities' ratio: on CIFAR-10
ResNets of 44, 32 and 20 layers lose 0.2, 0.5 and 1.8 points to that of 56 (He et al. 2016, table 6), and the logarithms
are 0.7, 1.8 and 3.3."""
POINTS_AT_3_BITS = 0.7
"""What weights of 3 bits cost in the end (docs/log.md), and four times as much for each bit less (Esser et al. 2020,
Learned Step Size Quantization, table 1: ResNet-18 at 4, 3 and 2 bits)."""


@dataclass(frozen=True)
class Expectation:
    """Trained drop as a linear function of a member's :func:`handicap`; of each family an offset of its own."""

    slope: float
    offset: float
    offset_of_space: float

    def drop_points(self, divergence: float, macs_ratio: float, family: str) -> float:
        """Expected drop of the file after the study's usual steps.

        Args:
            divergence: of the member from the base, in nats; of one that answers other than by classes, squared.
            macs_ratio: multiplications of the network, over the base's.
            family: of the plan.
        """
        own = self.offset_of_space if family == "space" else 0.0
        return self.slope * handicap(divergence, macs_ratio) + self.offset + own


def handicap(divergence: float, macs_ratio: float) -> float:
    """What a trained drop is proportional to: the root of a member's divergence, and the more the less it computes.

    A divergence of few images says more than their hits do: near the base those rank by chance (docs/log.md).
    """
    return math.sqrt(max(0.0, divergence)) / math.pow(macs_ratio, LEARNING_EXPONENT)


def fit_expectation(
    candidates: Iterable[Candidate], curves: Curves, macs_ratio: Callable[[Candidate], float]
) -> Expectation:
    """The correction under which the promoted candidates come out right.

    Args:
        curves: by which a drop after other steps than the usual ones is made one after those.
        macs_ratio: multiplications of a candidate, over the base's.
    """
    by_trial = {c.trial: c for c in candidates}
    pairs = [
        (
            handicap(parent.estimate.divergence, macs_ratio(c)),
            c.plan.architecture.family == "space",
            curves.drop_at(
                c,
                c.measurement.validation.drop_points,
                c.plan.training.steps,
                curves.usual_steps[c.plan.architecture.family],
            ),
        )
        for c in by_trial.values()
        if c.origin is Origin.PROMOTED
        and c.parent is not None
        and (parent := by_trial.get(c.parent)) is not None
        and isinstance(parent.estimate, Estimate)
        and parent.estimate.divergence is not None
        and parent.parent is None  # not a trained network that was changed
        and c.measurement is not None
        and c.measurement.validation is not None
    ]
    if not pairs:
        return Expectation(KEPT_OF_ROOT, 0.0, 0.0)
    handicaps, is_space, trained = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    # in units in which each coefficient is about as uncertain
    features = np.column_stack([handicaps / TYPICAL_HANDICAP, np.ones(len(handicaps)), is_space])
    fit = Ridge(alpha=SHRINKAGE, fit_intercept=False).fit(features, trained - KEPT_OF_ROOT * handicaps)
    change, offset, own = (float(value) for value in fit.coef_)
    return Expectation(max(0.0, KEPT_OF_ROOT + change / TYPICAL_HANDICAP), offset, own)


def least_drop_points(family: str, capacity_ratio: float, bits: Mapping[int, float]) -> float:
    """Drop that a student is thought to come near in the end.

    Args:
        family: where its weights come from.
        capacity_ratio: over that of the base.
        bits: share of its weights by their bits.
    """
    rounding = sum(share * POINTS_AT_3_BITS * 4.0 ** (3 - width) for width, share in bits.items())
    return rounding + POINTS_PER_SQUARED_FOLD * math.log(min(1.0, capacity_ratio)) ** 2 - ROOM_POINTS[family]


@dataclass(frozen=True)
class Curves:
    """What is left of a drop after more steps.

    Attributes:
        exponents: of each family.
        usual_steps: of each family, after which an expected drop holds.
        least: drop that a candidate comes near in the end.
        seconds_per_step: of a candidate's training.
        cut: points that it cost to cut a file's network out of a trained one, after the usual steps, and the steps since then.
    """

    exponents: Mapping[str, float]
    usual_steps: Mapping[str, float]
    least: Callable[[Candidate], float]
    seconds_per_step: Callable[[Candidate], float]
    cut: Callable[[Candidate], tuple[float, int]] = lambda _: (0.0, 0)

    def drop_at(self, candidate: Candidate, drop_points: float, steps: float, later: float) -> float:
        """Expected drop after ``later`` steps in all, where ``steps`` leave ``drop_points``."""
        least, exponent = self.least(candidate), self.exponents[candidate.plan.architecture.family]
        if drop_points <= least:
            return drop_points
        return least + (drop_points - least) * float((max(steps, 1.0) / max(later, 1.0)) ** exponent)

    def drop_after(self, candidate: Candidate, drop_points: float, steps: float, seconds: float) -> float:
        """Expected drop when a candidate with so many steps is trained on for so many seconds; what a cut costs passes with
        the steps since then, whatever those before.
        """
        later, (_, since) = seconds / self.seconds_per_step(candidate), self.cut(candidate)
        passing = min(self.passing_points(candidate), max(0.0, drop_points - self.least(candidate)))
        lasting = self.drop_at(candidate, drop_points - passing, steps, steps + later)
        return lasting + passing * max(since, 1) / (max(since, 1) + later)

    def passing_points(self, candidate: Candidate) -> float:
        """Part of a file's drop that is of a cut and passes."""
        cost, since = self.cut(candidate)
        return cost * self.usual_steps[candidate.plan.architecture.family] / max(since, 1)


def fit_curves(
    candidates: Sequence[Candidate],
    usual_steps: Mapping[str, float],
    least: Callable[[Candidate], float],
    seconds_per_step: Callable[[Candidate], float],
) -> Curves:
    """Curves whose exponents are the mean of the prior and of all trainings that went on."""
    by_trial = {c.trial: c for c in candidates}
    prior = Curves(EXPONENTS, usual_steps, least, seconds_per_step, lambda c: _cut(c, by_trial))
    seen = {family: [exponent] for family, exponent in EXPONENTS.items()}
    for c in candidates:
        parent = by_trial.get(c.parent) if c.origin is Origin.CONTINUED and c.parent is not None else None
        if parent is None:
            continue
        before, after = _room(parent, prior), _room(c, prior)
        if before > 0 and after > 0 and 0 < parent.total_steps < c.total_steps:
            found = math.log(before / after) / math.log(c.total_steps / parent.total_steps)
            seen[c.plan.architecture.family].append(min(max(found, EXPONENT_RANGE[0]), EXPONENT_RANGE[1]))
    return replace(prior, exponents={family: sum(found) / len(found) for family, found in seen.items()})


def _cut(candidate: Candidate, by_trial: Mapping[int, Candidate]) -> tuple[float, int]:
    """Of a file by the estimate that it goes back to."""
    steps = 0
    while candidate.estimate is None:
        steps += candidate.plan.training.steps
        if candidate.parent is None or candidate.parent not in by_trial:
            return 0.0, steps
        candidate = by_trial[candidate.parent]
    return candidate.estimate.passing_drop_points, steps


def _room(candidate: Candidate, curves: Curves) -> float:
    """Points that a candidate can still gain, beside what passes of itself; none where nothing was measured."""
    measured = None if candidate.measurement is None else candidate.measurement.validation
    if measured is None:
        return 0.0
    return measured.drop_points - curves.least(candidate) - curves.passing_points(candidate)


def can_go_on(candidate: Candidate) -> bool:
    """Whether a candidate was trained, and its bytes and latency are within the limits."""
    within = all(amount <= 0 for name, amount in candidate.violations.items() if name != "max_accuracy_drop")
    return candidate.state is State.COMPLETE and candidate.plan.training.steps > 0 and within
