"""The chosen options are the best that meet both targets, by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.engine.solver import EXCESS, GAP, Option, solve

options = st.builds(
    Option,
    error=st.integers(0, 50).map(float),
    size_bytes=st.integers(0, 40).map(float),
    latency_ms=st.integers(0, 40).map(float),
)
instances = st.lists(st.lists(options, min_size=1, max_size=4), min_size=1, max_size=5)


def totals(units: Sequence[Sequence[Option]], chosen: Sequence[int]) -> tuple[float, float, float]:
    picked = [own[index] for own, index in zip(units, chosen, strict=True)]
    return (
        sum(option.error for option in picked),
        sum(option.size_bytes for option in picked),
        sum(option.latency_ms for option in picked),
    )


def choices(units: Sequence[Sequence[Option]]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(own)) for own in units)))


def least_error(units: Sequence[Sequence[Option]], size: float, latency: float) -> float | None:
    """Of all choices within both targets; None where there is none."""
    found = [totals(units, chosen) for chosen in choices(units)]
    return min((error for error, own, time in found if own <= size and time <= latency), default=None)


def excess(units: Sequence[Sequence[Option]], chosen: Sequence[int], size: float, latency: float) -> float:
    """How far both targets are exceeded, in units of the largest entry of each."""
    flat = [option for own in units for option in own]
    _, own, time = totals(units, chosen)
    largest = max(o.size_bytes for o in flat) or 1e-12, max(o.latency_ms for o in flat) or 1e-12
    return max(0.0, own - size) / largest[0] + max(0.0, time - latency) / largest[1]


@settings(max_examples=60)
@given(instances, st.integers(0, 120), st.integers(0, 120))
def test_what_is_chosen_is_the_best_by_brute_force(units: list[list[Option]], size: int, latency: int) -> None:
    best = least_error(units, size, latency)
    chosen = solve(units, size, latency)
    assert len(chosen) == len(units)
    error, own, time = totals(units, chosen)
    if best is not None:
        assert own <= size and time <= latency
        assert best <= error <= best * (1 + 2 * GAP) + 1e-9


@settings(max_examples=60)
@given(instances, st.integers(-20, 30), st.integers(-20, 30))
def test_a_target_out_of_reach_is_exceeded_as_little_as_possible(
    units: list[list[Option]], size: int, latency: int
) -> None:
    least = min(excess(units, chosen, size, latency) for chosen in choices(units))
    found = excess(units, solve(units, size, latency), size, latency)
    # errors count too, so little that they do not weigh an excess that can be told from none
    assert least - 1e-9 <= found <= least * (1 + 2 * GAP) + len(units) / EXCESS + 1e-9


@settings(max_examples=30)
@given(instances, st.integers(10, 80), st.integers(10, 80), st.integers(0, 40), st.integers(0, 40))
def test_looser_targets_never_cost_more(
    units: list[list[Option]], size: int, latency: int, more_size: int, more_latency: int
) -> None:
    if least_error(units, size, latency) is None:
        return
    tight, loose = (
        totals(units, solve(units, size, latency))[0],
        totals(units, solve(units, size + more_size, latency + more_latency))[0],
    )
    assert loose <= tight * (1 + 2 * GAP) + 1e-9


def test_without_targets_each_unit_takes_its_least_error() -> None:
    units = [[Option(3.0, 1.0, 1.0), Option(0.5, 9.0, 2.0)], [Option(0.1, 4.0, 4.0), Option(0.2, 0.0, 0.0)]]
    assert solve(units, float("inf"), float("inf")) == [1, 0]


def test_origins_do_not_matter() -> None:
    """Amounts may be differences to anything, so they may be negative."""
    units = [[Option(0.0, 0.0, 0.0), Option(1.0, -4.0, -2.0), Option(3.0, -6.0, -3.0)] for _ in range(3)]
    shifted = [[Option(o.error, o.size_bytes + 10, o.latency_ms + 10) for o in own] for own in units]
    assert sorted(solve(units, -8.0, 0.0)) == sorted(solve(shifted, 22.0, 30.0)) == [0, 1, 1]


def test_nothing_to_decide_is_nothing_chosen() -> None:
    assert solve([], 1.0, 1.0) == []


def test_many_units_are_solved_as_well_as_the_gap_says() -> None:
    """Bits of sixty layers: against the bound of the relaxed problem, which is a sort where there is one resource."""
    units = [
        [Option(4.0 ** (8 - bits) * (1 + k % 7), bits * (1 + k % 5), 0.0) for bits in (3, 4, 8)] for k in range(60)
    ]
    budget = 5.0 * sum(1 + k % 5 for k in range(60))
    error, size, _ = totals(units, solve(units, budget, 1.0))
    assert size <= budget
    moves = []  # from 3 bits upwards, each the less worth the later
    for own in units:
        for low, high in itertools.pairwise(own):
            moves.append(
                ((low.error - high.error) / (high.size_bytes - low.size_bytes), high.size_bytes - low.size_bytes)
            )
    bound, left = sum(own[0].error for own in units), budget - sum(own[0].size_bytes for own in units)
    for worth, amount in sorted(moves, reverse=True):
        bound -= worth * min(amount, left)
        left -= min(amount, left)
    assert bound <= error * (1 + 1e-9)
    assert error <= bound * 1.02
