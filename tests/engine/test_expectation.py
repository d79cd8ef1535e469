"""What a cheap score says of a trained file is learnt from those that were trained."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.candidate import Accuracy, Candidate, Estimate, Measurement, Origin, State
from autocompress.engine.expectation import (
    EXPONENTS,
    KEPT_OF_ROOT,
    ROOM_POINTS,
    Curves,
    Expectation,
    can_go_on,
    fit_curves,
    fit_expectation,
    handicap,
    least_drop_points,
)
from autocompress.plan import ArchitectureSpec, Plan, TrainingSpec

TOTAL = 100_000
FLOOR = -2.0
USUAL = {"base": 50, "space": 50}
WHOLE = 1.0
CURVES = Curves({"base": 0.5, "space": 0.5}, USUAL, lambda _: FLOOR, lambda _: 1.0)


def pair(
    number: int, divergence: float, trained: float, family: str = "base", origin: Origin = Origin.PROMOTED
) -> list[Candidate]:
    """An estimate and the file that it was promoted to."""
    plan = Plan(architecture=ArchitectureSpec(family=family), training=TrainingSpec(steps=50))
    estimate = Estimate(
        size_ratio=0.1, latency_ratio=0.1, divergence=divergence, shared_drop_points=20.0, drop_points=2.0
    )
    lost = round(trained * TOTAL / 100)
    validation = Accuracy(correct=TOTAL - lost, total=TOTAL, lost=max(0, lost), gained=max(0, -lost))
    measurement = Measurement(size_bytes=1, compressed_bytes=1, size_ratio=0.1, validation=validation)
    return [
        Candidate(trial=2 * number, origin=Origin.SAMPLED, state=State.ESTIMATED, plan=plan, estimate=estimate),
        Candidate(
            trial=2 * number + 1, origin=origin, state=State.COMPLETE, plan=plan, parent=2 * number,
            measurement=measurement, stage_seconds={"train": 10.0},
        ),
    ]  # fmt: skip


def pairs(count: int, slope: float, offset: float, of_space: float = 0.0, families: str = "base") -> list[Candidate]:
    draw, names, found = random.Random(0), families.split(), []
    for number in range(count):
        family, nats = names[number % len(names)], draw.uniform(0.0, 0.6)
        trained = slope * math.sqrt(nats) + offset + (of_space if family == "space" else 0.0) + draw.gauss(0.0, 0.1)
        found += pair(number, nats, trained, family)
    return found


def expected_of(candidates: list[Candidate]) -> Expectation:
    """Of candidates that compute as much as the base."""
    return fit_expectation(candidates, CURVES, lambda _: WHOLE)


def test_without_pairs_a_drop_is_expected_by_the_root_of_the_divergence() -> None:
    expectation = expected_of([])
    assert expectation == Expectation(KEPT_OF_ROOT, 0.0, 0.0)
    assert (
        expectation.drop_points(0.25, WHOLE, "base")
        == expectation.drop_points(0.25, WHOLE, "space")
        == 0.5 * KEPT_OF_ROOT
    )


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.3), (4.0, -0.5), (2.5, 2.0)])
def test_a_line_is_found_again_from_many_pairs(slope: float, offset: float) -> None:
    found = expected_of(pairs(800, slope, offset))
    assert found.slope == pytest.approx(slope, abs=0.25)
    assert found.offset == pytest.approx(offset, abs=0.25)
    for nats in (0.0, 0.2, 0.5):
        assert found.drop_points(nats, WHOLE, "base") == pytest.approx(slope * math.sqrt(nats) + offset, abs=0.3)


def test_what_computes_less_is_expected_to_lose_more_where_members_diverge_alike() -> None:
    """Members that diverge alike, of which the smaller ones' files lose more, teach what the base's own would lose."""
    ratios = [1.0, 0.5, 0.25, 0.1, 0.05]
    divergences = [0.1, 0.5, 0.3, 1.0, 0.4]
    found = [
        c
        for number, (nats, ratio) in enumerate(zip(10 * divergences, 10 * ratios, strict=True))
        for c in pair(number, nats, 4.0 * handicap(nats, ratio))
    ]
    expectation = fit_expectation(found, CURVES, lambda c: ratios[c.trial // 2 % len(ratios)])
    assert expectation.slope == pytest.approx(4.0, abs=0.15)
    drops = [expectation.drop_points(0.4, ratio, "base") for ratio in ratios]
    assert drops == sorted(drops)
    assert drops[-1] > 2 * drops[0] > 0


def test_each_family_has_an_offset_of_its_own() -> None:
    found = expected_of(pairs(200, 2.0, 0.2, of_space=3.0, families="base space"))
    assert found.drop_points(0.2, WHOLE, "space") - found.drop_points(0.2, WHOLE, "base") == pytest.approx(3.0, abs=0.3)


def test_a_few_pairs_move_the_prior_only_a_little() -> None:
    few, many = (expected_of(pairs(count, 0.5, 0.0)).slope for count in (1, 60))
    assert KEPT_OF_ROOT > few > many > 0.25


def test_a_greater_divergence_never_promises_a_smaller_drop() -> None:
    assert expected_of(pairs(50, -10.0, 10.0)).slope >= 0.0


@pytest.mark.parametrize("family", ["base", "space"])
def test_a_file_of_other_steps_says_what_the_usual_ones_would_have_left(family: str) -> None:
    """Files of one curve, trained for other lengths, teach the same as if all had the usual steps."""
    usual = [c for k in range(40) for c in pair(k, (1.0 + k % 10) / 20, 0.4 * (1.0 + k % 10), family)]
    long = [
        c
        if c.measurement is None
        else file_after(c, 4 * USUAL[family], FLOOR + (0.4 * (1.0 + c.trial // 2 % 10) - FLOOR) / 2)
        for c in usual
    ]
    asked, told = expected_of(usual), expected_of(long)
    for nats in (0.05, 0.25, 0.5):
        assert told.drop_points(nats, WHOLE, family) == pytest.approx(asked.drop_points(nats, WHOLE, family), abs=0.01)


def file_after(candidate: Candidate, steps: int, drop_points: float) -> Candidate:
    """The file after other steps, with another drop."""
    measurement = pair(0, 0.1, drop_points)[1].measurement
    plan = candidate.plan.model_copy(update={"training": TrainingSpec(steps=steps)})
    return candidate.model_copy(update={"plan": plan, "measurement": measurement})


def test_only_promoted_estimates_are_pairs() -> None:
    others = pair(0, 0.4, 9.0, origin=Origin.CONTINUED)
    unmeasured = [c.model_copy(update={"measurement": None}) for c in pair(1, 0.4, 9.0)]
    orphan = pair(2, 0.4, 9.0)[1:]
    assert expected_of([*others, *unmeasured, *orphan]) == Expectation(KEPT_OF_ROOT, 0.0, 0.0)


def test_trained_networks_with_other_bits_are_no_pairs() -> None:
    estimate, file = pair(5, 0.4, 9.0)
    with_parent = estimate.model_copy(update={"parent": 3, "origin": Origin.MUTATED})
    assert expected_of([with_parent, file]) == Expectation(KEPT_OF_ROOT, 0.0, 0.0)


# Training on


FILE = pair(0, 0.4, 1.0)[1]


@given(st.floats(0.01, 20.0), st.floats(0.0, 1000.0), st.lists(st.floats(0.0, 5000.0), min_size=2, max_size=6))
def test_longer_training_leaves_less(drop: float, spent: float, more: list[float]) -> None:
    left = [CURVES.drop_after(FILE, drop, spent, seconds) for seconds in sorted(more)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(left))
    assert all(FLOOR < value <= drop + 1e-9 for value in left)


@given(st.floats(-5.0, 20.0), st.floats(0.0, 1000.0))
def test_no_training_changes_nothing(drop: float, spent: float) -> None:
    assert CURVES.drop_after(FILE, drop, spent, 0.0) == pytest.approx(drop)


def test_the_longer_the_training_behind_the_less_the_same_time_brings() -> None:
    gains = [5.0 - CURVES.drop_after(FILE, 5.0, spent, 60.0) for spent in (10.0, 60.0, 600.0)]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 2 * gains[2] > 0


def test_what_is_below_its_floor_stays_there() -> None:
    assert CURVES.drop_after(FILE, FLOOR - 0.5, 10.0, 100.0) == FLOOR - 0.5


@given(st.floats(1e-4, 2.0), st.floats(1e-4, 2.0), st.integers(2, 8), st.integers(2, 8))
def test_what_computes_less_or_in_fewer_bits_ends_higher(one: float, other: float, bits: int, more: int) -> None:
    least = partial(least_drop_points, "base")
    assert one < other or least(one, {bits: 1.0}) <= least(other, {bits: 1.0})
    assert bits > more or least(one, {bits: 1.0}) >= least(one, {more: 1.0})
    mixed = least(one, Counter({bits: 0.5}) + Counter({more: 0.5}))
    ends = sorted([least(one, {bits: 1.0}), least(one, {more: 1.0})])
    assert ends[0] - 1e-9 <= mixed <= ends[1] + 1e-9
    assert least(1.0, {32: 1.0}) == pytest.approx(-ROOM_POINTS["base"])


def test_what_begins_with_the_teachers_weights_stays_nearer_to_it() -> None:
    ends = {family: least_drop_points(family, 0.1, {4: 1.0}) for family in ROOM_POINTS}
    assert ends["base"] > ends["space"]
    assert ends["base"] - ends["space"] == pytest.approx(ROOM_POINTS["space"] - ROOM_POINTS["base"])


# Learning curves


def lineage(family: str, drops: list[float], steps: list[int], first: int = 0) -> list[Candidate]:
    """A candidate that was promoted, and what was continued from it."""
    found: list[Candidate] = []
    for place, (drop, total) in enumerate(zip(drops, steps, strict=True)):
        _, file = pair(first, 50.0, drop, family=family, origin=Origin.CONTINUED if place else Origin.PROMOTED)
        parent = found[-1].trial if found else None
        found.append(file.model_copy(update={"trial": first + place, "parent": parent, "total_steps": total}))
    return found


def exponents_of(candidates: list[Candidate]) -> Mapping[str, float]:
    return fit_curves(candidates, USUAL, lambda _: FLOOR, lambda _: 1.0).exponents


def test_without_a_training_that_went_on_the_prior_counts() -> None:
    assert exponents_of([]) == EXPONENTS
    assert exponents_of(lineage("space", [9.0], [10])) == EXPONENTS


@pytest.mark.parametrize("family", ["base", "space"])
def test_exponents_come_near_the_curve_that_was_seen(family: str) -> None:
    """Drops that lie on a curve of exponent 1 pull the exponent of their family there, and of no other."""
    drops = [16.0 / 2**k + FLOOR for k in range(8)]
    steps = [10 * 2**k for k in range(8)]
    found = exponents_of(lineage(family, drops, steps))
    assert found[family] == pytest.approx((EXPONENTS[family] + 7) / 8, abs=0.02)
    (other,) = set(EXPONENTS) - {family}
    assert found[other] == EXPONENTS[other]
    curve = Curves({family: 1.0}, USUAL, lambda _: FLOOR, lambda _: 1.0)
    assert curve.drop_after(lineage(family, drops, steps)[0], drops[0], 10.0, 10.0) == pytest.approx(drops[1])


def cut_out(passing: float, drops: list[float], steps: list[int], before: int = 1000) -> list[Candidate]:
    """An estimate of a network cut out of a trained one, what was promoted of it, and what was continued from that."""
    estimate, _ = pair(0, 9.0, 9.0)
    assert estimate.estimate is not None
    figures = estimate.estimate.model_copy(update={"passing_drop_points": passing})
    cut = estimate.model_copy(update={"estimate": figures, "origin": Origin.MUTATED, "total_steps": before})
    files = lineage("base", drops, list(itertools.accumulate(steps, initial=before))[1:], first=cut.trial + 1)
    made = [
        file.model_copy(update={"plan": file.plan.model_copy(update={"training": TrainingSpec(steps=own)})})
        for file, own in zip(files, steps, strict=True)
    ]
    return [cut, made[0].model_copy(update={"parent": cut.trial}), *made[1:]]


def curves_of(candidates: list[Candidate]) -> Curves:
    return fit_curves(candidates, USUAL, lambda _: FLOOR, lambda _: 1.0)


def test_what_a_cut_cost_a_file_passes_with_its_own_steps() -> None:
    """Three points of the file's drop are of the cut after twice the usual steps, and one after six times."""
    candidates = cut_out(6.0, [5.0, 2.5], [100, 200], before=100_000)
    curves = curves_of(candidates)
    _, file, later = candidates
    assert [curves.passing_points(c) for c in candidates[1:]] == pytest.approx([3.0, 1.0])
    assert curves.drop_after(file, 5.0, file.total_steps, 0.0) == pytest.approx(5.0)
    assert curves.drop_after(file, 5.0, file.total_steps, 200.0) == pytest.approx(3.0, abs=0.01)
    assert curves.drop_after(later, 2.5, later.total_steps, 300.0) == pytest.approx(2.0, abs=0.01)
    # no more of it can pass than the file can gain
    assert curves.drop_after(file, FLOOR + 1.0, file.total_steps, 1e9) >= FLOOR


def test_what_passes_of_a_cut_is_no_part_of_the_learning_curve() -> None:
    steps = [100, 900, 1000]
    lasting = [FLOOR + 8.0 * (1000 / total) ** 0.5 for total in (1100, 2000, 3000)]
    passing = [6.0 * 50 / since for since in (100, 1000, 2000)]
    drops = [own + gone for own, gone in zip(lasting, passing, strict=True)]
    assert curves_of(cut_out(6.0, drops, steps)).exponents["base"] == pytest.approx(
        (EXPONENTS["base"] + 1.0) / 3, abs=0.01
    )


def test_only_a_trained_file_within_its_limits_can_go_on() -> None:
    estimate, file = pair(0, 0.4, 1.0)
    untrained = file.model_copy(update={"plan": Plan()})
    slow = file.model_copy(update={"violations": {"min_speedup": 0.2, "max_accuracy_drop": -1.0}})
    inexact = file.model_copy(update={"violations": {"min_speedup": -0.2, "max_accuracy_drop": 1.0}})
    assert [can_go_on(c) for c in (estimate, file, untrained, slow, inexact)] == [False, True, False, False, True]
