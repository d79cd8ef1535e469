"""Intervals against published figures and by brute force; what counts as feasible."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autocompress.candidate import Accuracy, Candidate, Measurement, Origin, State
from autocompress.plan import Plan


def paired(lost: int, gained: int, total: int, correct: int | None = None) -> Accuracy:
    return Accuracy(correct=total // 2 if correct is None else correct, total=total, lost=lost, gained=gained)


# One accuracy


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_the_published_one(correct: int, total: int, low: float, high: float) -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
    assert Accuracy(correct=correct, total=total).interval() == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_where_the_score_test_accepts(counts: tuple[int, int]) -> None:
    correct, total = counts
    accuracy = Accuracy(correct=correct, total=total)
    for bound in accuracy.interval():
        assert 0.0 <= bound <= 1.0
        if 0.0 < bound < 1.0:  # (p_hat - p)^2 = z^2 p (1 - p) / n defines the bounds
            deviation = (accuracy.fraction - bound) ** 2
            assert deviation == pytest.approx(1.959964**2 * bound * (1 - bound) / total, rel=1e-6, abs=1e-12)
    low, high = accuracy.interval()
    assert low - 1e-12 <= accuracy.fraction <= high + 1e-12


def test_mirrored_counts_have_mirrored_intervals() -> None:
    low, high = Accuracy(correct=30, total=200).interval()
    assert Accuracy(correct=170, total=200).interval() == pytest.approx((1 - high, 1 - low))


# A drop


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_interval_of_a_drop_equals_the_formula_of_its_paper(lost: int, gained: int) -> None:
    # Agresti and Min 2005, section 3: Wald for paired proportions with half added to each of the four cells
    n = 600
    adjusted = {"lost": (lost + 0.5) / (n + 2), "gained": (gained + 0.5) / (n + 2)}
    centre = adjusted["lost"] - adjusted["gained"]
    variance = (adjusted["lost"] + adjusted["gained"] - centre**2) / (n + 2)
    expected = [100 * (centre + sign * 1.959964 * math.sqrt(variance)) for sign in (-1, 1)]
    assert paired(lost, gained, n).drop_interval_points() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("p_lost", "p_gained", "n"), [(0.03, 0.02, 500), (0.01, 0.01, 180), (0.06, 0.01, 200), (0.002, 0.001, 1000)]
)
def test_the_interval_of_a_drop_covers_it_in_95_of_100_samples(p_lost: float, p_gained: float, n: int) -> None:
    rest = 1 - p_lost - p_gained
    counts = np.random.default_rng(0).multinomial(n, [p_lost, p_gained, rest], size=4000)
    cells, repeats = np.unique(counts[:, :2], axis=0, return_counts=True)
    true_drop = 100 * (p_lost - p_gained)
    covered = sum(
        int(times)
        for (lost, gained), times in zip(cells.tolist(), repeats, strict=True)
        if (interval := paired(lost, gained, n).drop_interval_points())[0] <= true_drop <= interval[1]
    )
    assert 0.935 < covered / 4000 <= 1.0


def test_pairing_narrows_the_interval() -> None:
    # both models are right on 450 of 500; paired, they differ on 10 examples only
    low, high = paired(5, 5, 500, correct=450).drop_interval_points()
    unpaired = 2 * 1.96 * 100 * math.sqrt(2 * 0.9 * 0.1 / 500)
    assert (high - low) < 0.4 * unpaired


def test_equal_files_have_an_interval_around_zero() -> None:
    low, high = paired(0, 0, 1000).drop_interval_points()
    assert low == pytest.approx(-high) and 0 < high < 0.5


def test_drop_is_in_points() -> None:
    assert paired(30, 10, 1000).drop_points == pytest.approx(2.0)
    assert paired(0, 5, 1000).drop_points == pytest.approx(-0.5)
    assert Accuracy(correct=9, total=12).fraction == 0.75


# Candidates


def candidate(state: State, violations: dict[str, float]) -> Candidate:
    measured = Measurement(size_bytes=1, compressed_bytes=1, size_ratio=1.0)
    return Candidate(
        trial=0, origin=Origin.SAMPLED, state=state, violations=violations, plan=Plan(), measurement=measured
    )


@pytest.mark.parametrize(
    ("state", "violations", "feasible"),
    [
        (State.COMPLETE, {}, True),
        (State.COMPLETE, {"max_size_bytes": 0.0, "min_speedup": -1.0}, True),
        (State.COMPLETE, {"max_size_bytes": -1.0, "min_speedup": 1e-9}, False),
        (State.OVER_LIMIT, {}, False),
        (State.FAILED, {}, False),
    ],
)
def test_feasible_is_complete_and_within_every_limit(
    state: State, violations: dict[str, float], feasible: bool
) -> None:
    assert candidate(state, violations).feasible is feasible


def test_a_record_survives_its_json_and_is_frozen() -> None:
    one = candidate(State.COMPLETE, {"min_speedup": -0.5})
    assert Candidate.model_validate_json(one.model_dump_json(indent=1)) == one
    with pytest.raises(ValidationError, match="frozen"):
        one.trial = 3
