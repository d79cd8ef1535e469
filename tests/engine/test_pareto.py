"""The front equals brute force, the hypervolume equals what sampling and inclusion-exclusion say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.candidate import Accuracy, Candidate, Latency, Measurement, Origin, State
from autocompress.config import ObjectiveSection
from autocompress.engine.pareto import (
    REFERENCE_POINT,
    front,
    hypervolume,
    hypervolume_history,
    objective_vector,
    scalar_objective,
)
from autocompress.plan import Plan


def measurement(lost: int = 0, size_ratio: float = 1.0, latency_ratio: float = 1.0) -> Measurement:
    latency = Latency(
        latency_ms=latency_ratio, p90_ms=latency_ratio, baseline_ms=1.0,
        ratio=latency_ratio, ratio_low=latency_ratio, ratio_high=latency_ratio,
    )  # fmt: skip
    validation = Accuracy(correct=900 - lost, total=1000, lost=lost)
    size_bytes = round(1e6 * size_ratio)
    return Measurement(
        size_bytes=size_bytes, compressed_bytes=size_bytes, size_ratio=size_ratio,
        latency=latency, validation=validation,
    )  # fmt: skip


def candidate(trial: int, measured: Measurement | None, **changes: object) -> Candidate:
    record = {"origin": Origin.SAMPLED, "state": State.COMPLETE, "finished_s": float(trial), **changes}
    return Candidate(trial=trial, plan=Plan(), measurement=measured, **record)


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def inclusion_exclusion(points: list[tuple[float, ...]]) -> float:
    """Hypervolume by the sum over all subsets of the volume that all of a subset dominate."""
    total = 0.0
    for count in range(1, len(points) + 1):
        for subset in itertools.combinations(points, count):
            shared = np.clip(np.array(REFERENCE_POINT) - np.max(subset, axis=0), 0.0, None)
            total += (-1) ** (count + 1) * float(np.prod(shared))
    return total


# A coarse grid, so that ties and duplicates are common.
grid_ratios = st.sampled_from([0.1, 0.2, 0.5, 1.0, 1.2])
grid_points = st.tuples(st.integers(-5, 40), grid_ratios, grid_ratios)
volume_points = st.tuples(st.floats(-2.0, 4.0), st.floats(-3.0, 0.5), st.floats(-3.0, 0.5))


@given(st.lists(grid_points, max_size=25))
def test_front_equals_brute_force(points: list[tuple[int, float, float]]) -> None:
    candidates = [candidate(trial, measurement(*point)) for trial, point in enumerate(points)]
    vectors = [objective_vector(c.measurement) for c in candidates if c.measurement is not None]
    expected = {v: vectors.index(v) for v in vectors if not any(dominates(w, v) for w in vectors)}
    members = front(candidates)
    assert {member.trial for member in members} == set(expected.values())
    assert len(members) == len(expected)
    ratios = [m.measurement.latency.ratio for m in members if m.measurement and m.measurement.latency]
    assert ratios == sorted(ratios)


def test_front_leaves_out_what_is_not_feasible_and_keeps_the_earliest_duplicate() -> None:
    best = measurement(-10, 0.01, 0.01)
    untrained = Measurement(size_bytes=1, compressed_bytes=1, size_ratio=0.01)
    candidates = [
        candidate(7, measurement(5, 0.5, 0.5)),
        candidate(3, measurement(5, 0.5, 0.5)),
        candidate(1, best, violations={"max_accuracy_drop": 0.5}),
        candidate(2, untrained, state=State.OVER_LIMIT),
        candidate(4, None, state=State.FAILED, reason="export: no"),
    ]
    assert [member.trial for member in front(candidates)] == [3]
    assert front([]) == []


@settings(max_examples=60)
@given(st.lists(volume_points, max_size=6))
def test_hypervolume_equals_inclusion_exclusion(points: list[tuple[float, float, float]]) -> None:
    assert hypervolume(points) == pytest.approx(inclusion_exclusion(points), abs=1e-9)


def test_hypervolume_equals_monte_carlo() -> None:
    generator = np.random.default_rng(0)
    points = generator.uniform((-1, -3, -3), (3, 0, 0), size=(12, 3))
    samples = generator.uniform((-1, -3, -3), (3, 0, 0), size=(50_000, 3))
    share = (points[None] <= samples[:, None]).all(axis=2).any(axis=1).mean()
    assert hypervolume(points) == pytest.approx(share * 4 * 3 * 3, rel=0.02)


@given(st.lists(volume_points, min_size=1, max_size=8))
def test_hypervolume_never_falls_when_a_point_is_added(points: list[tuple[float, float, float]]) -> None:
    assert hypervolume(points) >= hypervolume(points[:-1]) - 1e-9


def test_hypervolume_is_zero_without_a_point_that_dominates_the_reference() -> None:
    assert hypervolume([]) == 0.0
    assert hypervolume([REFERENCE_POINT, (0.0, 0.0, 0.0), (3.5, -2.0, -2.0)]) == 0.0
    assert hypervolume([(1.0, -1.0, -2.0)]) == pytest.approx(4.0)


@settings(max_examples=50)
@given(st.lists(grid_points, max_size=12))
def test_history_is_the_hypervolume_of_every_prefix(points: list[tuple[int, float, float]]) -> None:
    candidates = [candidate(trial, measurement(*point)) for trial, point in enumerate(points)]
    vectors = [objective_vector(c.measurement) for c in candidates if c.measurement is not None]
    expected = [(float(n), hypervolume(vectors[: n + 1])) for n in range(len(vectors))]
    history = hypervolume_history(reversed(candidates))
    assert [time for time, _ in history] == [time for time, _ in expected]
    assert [volume for _, volume in history] == pytest.approx([volume for _, volume in expected])


def test_scalar_objective_by_hand() -> None:
    measured = measurement(lost=20, size_ratio=0.2, latency_ratio=0.5)
    # f = 0.88, g = (3 * 0.2 + 1 * 0.5) / 4 = 0.275
    objective = ObjectiveSection(alpha=2.0, beta=0.4, size_weight=3.0, latency_weight=1.0)
    assert scalar_objective(measured, objective) == pytest.approx(2.0 * 0.88 - 0.4 * 0.275)
    assert scalar_objective(measurement(), ObjectiveSection()) == pytest.approx(0.9 - 0.1)


def test_objectives_by_hand_and_what_they_need() -> None:
    assert objective_vector(measurement(15, 0.5, 0.25)) == pytest.approx((1.5, math.log(0.5), math.log(0.25)))
    bare = Measurement(size_bytes=1, compressed_bytes=1, size_ratio=0.5)
    with pytest.raises(ValueError, match="not measured in full"):
        objective_vector(bare)
    with pytest.raises(ValueError, match="not measured in full"):
        scalar_objective(bare, ObjectiveSection())
