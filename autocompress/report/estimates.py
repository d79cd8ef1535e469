"""How far the cheap estimates of a run were from what was measured of the plans that were trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import pandas as pd

from autocompress.candidate import Candidate, Estimate, Origin, State
from autocompress.engine.pareto import ObjectiveVector, objective_vector

LEAST_RANKED = 5
"""Fewer pairs have no order to speak of."""


class EstimateCheck(NamedTuple):
    """Counts of estimated plans, and the errors of the estimates over the ``compared`` plans measured in full.

    Errors are medians of the amount: percent of the measured ratio for size and latency, points for the drop.
    ``rank_correlation`` (Spearman) is of the expected and the measured drop; None below ``LEAST_RANKED`` pairs.
    """

    estimated: int
    promoted: int
    compared: int
    size_error_percent: float | None
    latency_error_percent: float | None
    drop_error_points: float | None
    rank_correlation: float | None


def estimate_check(candidates: Sequence[Candidate]) -> EstimateCheck:
    """Estimates beside measurements; a promoted trial may carry its estimate or leave it with its parent."""
    estimates = {c.trial: c.estimate for c in candidates if c.estimate is not None}
    pairs = [pair for c in candidates if (pair := _pair(c, estimates)) is not None]
    drops = [(e.drop_points, drop) for e, (drop, _, _) in pairs if e.drop_points is not None]
    estimated = [c.trial for c in candidates if c.state is State.ESTIMATED]
    parents = {c.parent for c in candidates if c.origin is Origin.PROMOTED}
    return EstimateCheck(
        estimated=len(estimated),
        promoted=len(parents.intersection(estimated)),
        compared=len(pairs),
        size_error_percent=_median_percent([(estimate.size_ratio, size) for estimate, (_, size, _) in pairs]),
        latency_error_percent=_median_percent([(estimate.latency_ratio, speed) for estimate, (_, _, speed) in pairs]),
        drop_error_points=median(abs(expected - found) for expected, found in drops) if drops else None,
        rank_correlation=_rank_correlation(drops),
    )


def _pair(candidate: Candidate, estimates: dict[int, Estimate]) -> tuple[Estimate, ObjectiveVector] | None:
    """Only of first trainings: what was trained on is another candidate than the one that was estimated."""
    if candidate.state is not State.COMPLETE or candidate.origin is Origin.CONTINUED:
        return None
    parent = candidate.parent if candidate.origin is Origin.PROMOTED else None
    estimate = candidate.estimate or (None if parent is None else estimates.get(parent))
    return (
        None
        if estimate is None or candidate.measurement is None
        else (estimate, objective_vector(candidate.measurement))
    )


def _median_percent(pairs: Sequence[tuple[float, float]]) -> float | None:
    return median(100.0 * abs(expected / math.exp(ln) - 1.0) for expected, ln in pairs) if pairs else None


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    if len(pairs) < LEAST_RANKED:
        return None
    ranks = pd.DataFrame(pairs).rank()
    if (ranks.nunique() < 2).any():  # all alike: no order
        return None
    correlation = float(ranks[0].corr(ranks[1]))
    return None if math.isnan(correlation) else correlation
