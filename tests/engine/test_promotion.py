"""Which candidates climb: what adds most goes first, and nothing climbs twice."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.candidate import Accuracy, Candidate, Estimate, Latency, Measurement, Origin, State
from autocompress.engine.expectation import EXPONENTS, Curves
from autocompress.engine.pareto import REFERENCE_POINT, ObjectiveVector
from autocompress.engine.promotion import (
    LEAST_ESTIMATES,
    climbing_order,
    expected_after,
    hoped_for,
    is_behind,
    knee_points,
    leaves,
    next_to_polish,
    next_to_promote,
    next_to_reduce,
    next_to_train_on,
    objectives,
)
from autocompress.plan import ArchitectureSpec, Plan, Precision, PruningSpec, QuantizationSpec, TrainingSpec

grid = st.tuples(st.integers(-4, 12), st.integers(-12, 2), st.integers(-12, 2))
points_of = st.lists(grid.map(lambda p: (p[0] / 4, p[1] / 4, p[2] / 4)), min_size=1, max_size=7)
SECONDS = 60.0


CURVES = Curves(EXPONENTS, {"base": 100.0, "space": 200.0}, lambda _: -2.0, lambda _: 0.1)


def short_s(newcomer: Candidate) -> float:
    return 30.0 if newcomer.plan.architecture.family == "space" else 15.0


def plan_of(trial: int, steps: int = 300) -> Plan:
    """Each trial's decisions are its own."""
    return Plan(pruning=PruningSpec(ratios={"layer": trial / 1000}), training=TrainingSpec(steps=steps))


def estimated(
    trial: int, drop: float | None, size: float = 0.1, latency: float = 0.1, parent: int | None = None
) -> Candidate:
    estimate = Estimate(
        size_ratio=size, latency_ratio=latency, divergence=drop, shared_drop_points=drop, drop_points=drop
    )
    plan = plan_of(trial)
    origin = Origin.SAMPLED if parent is None else Origin.MUTATED
    return Candidate(trial=trial, origin=origin, state=State.ESTIMATED, plan=plan, estimate=estimate, parent=parent)


def trained(
    trial: int, drop: float, size: float = 0.1, latency: float = 0.1, *, parent: int | None = None,
    origin: Origin = Origin.PROMOTED, state: State = State.COMPLETE, steps: int = 300, seconds: float = 10.0,
    violations: dict[str, float] | None = None,
) -> Candidate:  # fmt: skip
    lost = round(drop * 100)
    measurement = Measurement(
        size_bytes=round(1e6 * size), compressed_bytes=1, size_ratio=size,
        latency=Latency(latency_ms=latency, p90_ms=latency, baseline_ms=1, ratio=latency, ratio_low=latency, ratio_high=latency),
        validation=Accuracy(correct=9000 - lost, total=10_000, lost=max(lost, 0), gained=max(-lost, 0)),
    )  # fmt: skip
    return Candidate(
        trial=trial, origin=origin, state=state, parent=parent, plan=plan_of(trial, steps),
        measurement=measurement if state is State.COMPLETE else None, violations=violations or {},
        stage_seconds={"train": seconds}, total_steps=steps,
    )  # fmt: skip


def crowd(count: int, seed: int = 0, first: int = 0) -> list[Candidate]:
    draw = random.Random(seed)
    return [
        estimated(first + n, draw.uniform(0.2, 2.5), draw.uniform(0.05, 0.3), draw.uniform(0.05, 0.3))
        for n in range(count)
    ]


# The order


def dominates(one: ObjectiveVector, other: ObjectiveVector) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def rank_of(point: ObjectiveVector, points: list[ObjectiveVector]) -> int:
    left, rank = list(points), 0
    while any(dominates(other, point) for other in left):
        left = [p for p in left if any(dominates(other, p) for other in left)]
        rank += 1
    return rank


def volume(points: list[ObjectiveVector]) -> float:
    """Of the union of boxes up to the reference point, cell by cell."""
    axes = [sorted({min(p[k], REFERENCE_POINT[k]) for p in points} | {REFERENCE_POINT[k]}) for k in range(3)]
    total = 0.0
    for cell in itertools.product(*(itertools.pairwise(axis) for axis in axes)):
        low = tuple(side[0] for side in cell)
        if any(all(a <= b for a, b in zip(p, low, strict=True)) for p in points):
            total += math.prod(side[1] - side[0] for side in cell)
    return total


@settings(max_examples=60)
@given(points_of, st.lists(points_of.map(lambda p: p[0]), max_size=4))
def test_the_order_is_by_what_is_added_and_then_by_rank(
    points: list[ObjectiveVector], taken: list[ObjectiveVector]
) -> None:
    order = climbing_order(points, taken)
    assert sorted(order) == list(range(len(points)))
    added = [volume([*taken, point]) - volume(taken) for point in points]
    rank = [rank_of(point, points) for point in points]
    for earlier, later in itertools.pairwise(order):
        assert added[earlier] >= added[later] - 1e-9
        if max(added[earlier], added[later]) == 0:
            assert (rank[earlier], points[earlier][0]) <= (rank[later], points[later][0])


@settings(max_examples=40)
@given(points_of)
def test_no_point_comes_before_one_that_dominates_it_where_both_add_something(points: list[ObjectiveVector]) -> None:
    place = {k: n for n, k in enumerate(climbing_order(points, []))}
    for one, other in itertools.permutations(range(len(points)), 2):
        if dominates(points[one], points[other]) and volume([points[other]]) > 0:
            inside = all(a < b for a, b in zip(points[one], REFERENCE_POINT, strict=True))
            assert not inside or volume([points[one]]) <= volume([points[other]]) or place[one] < place[other]


def test_a_twin_of_what_is_taken_comes_last() -> None:
    taken = [(1.0, -2.0, -2.0)]
    points = [(1.0, -2.0, -2.0), (2.9, -2.1, -0.1), (0.5, -1.0, -1.0)]
    assert climbing_order(points, taken)[-1] == 0


def test_nothing_has_no_order() -> None:
    assert climbing_order([], [(1.0, -1.0, -1.0)]) == []


# Promotion


def test_too_few_estimates_are_left_waiting() -> None:
    assert next_to_promote(crowd(LEAST_ESTIMATES - 1), set(), short_s, SECONDS, CURVES) is None
    assert next_to_promote(crowd(LEAST_ESTIMATES), set(), short_s, SECONDS, CURVES) is not None


def test_what_the_tables_dropped_does_not_wait() -> None:
    dropped = [estimated(100 + n, None) for n in range(LEAST_ESTIMATES)]
    assert next_to_promote([*crowd(LEAST_ESTIMATES - 1), *dropped], set(), short_s, SECONDS, CURVES) is None


def test_each_estimate_is_promoted_once() -> None:
    candidates, busy, taken = crowd(LEAST_ESTIMATES + 3), set[int](), []
    while (parent := next_to_promote(candidates, busy, short_s, SECONDS, CURVES)) is not None:
        taken.append(parent.trial)
        if len(taken) % 2:
            busy.add(parent.trial)
        else:  # one that fails has had its turn as well
            candidates.append(trained(100 + len(taken), 0.0, parent=parent.trial, state=State.FAILED))
    assert len(taken) == len(set(taken)) == 4


def test_decisions_that_were_trained_are_not_promoted_again() -> None:
    waiting = crowd(LEAST_ESTIMATES + 1)
    first = next_to_promote(waiting, set(), short_s, SECONDS, CURVES)
    assert first is not None
    twin = waiting[0 if first.trial else 1].model_copy(update={"plan": first.plan.model_copy(update={"seed": 9})})
    others = [twin if c.trial == twin.trial else c for c in waiting]
    second = next_to_promote([*others, estimated(70, 1.0, 0.2)], {first.trial}, short_s, SECONDS, CURVES)
    assert second is not None and second.plan.pruning != first.plan.pruning
    assert next_to_promote(others, {first.trial}, short_s, SECONDS, CURVES) is None  # of the nine two are trained


def test_each_family_is_tried_before_families_are_compared() -> None:
    """Scores of two sets of shared weights, of which one began at random, are no comparison."""

    def of_space(c: Candidate) -> Candidate:
        return c.model_copy(
            update={"plan": c.plan.model_copy(update={"architecture": ArchitectureSpec(family="space")})}
        )

    good, bad = crowd(LEAST_ESTIMATES), [of_space(estimated(20 + n, 60.0, 0.2, 0.2)) for n in range(3)]
    better = [of_space(estimated(30 + n, -2.0, 0.01, 0.01)) for n in range(3)]
    first = next_to_promote([*good, *better], set(), short_s, SECONDS, CURVES)
    assert first is not None and first.plan.architecture.family == "base"  # whose weights are trained
    first = next_to_promote([*good, *bad], set(), short_s, SECONDS, CURVES)
    assert first is not None
    file = trained(40, 2.0, parent=first.trial)
    file = file if first.plan.architecture.family == "base" else of_space(file)
    second = next_to_promote([*good, *bad, file], set(), short_s, SECONDS, CURVES)
    assert second is not None
    assert {c.plan.architecture.family for c in (first, second)} == {"base", "space"}
    other = trained(41, 9.0, 0.2, 0.2, parent=second.trial)
    other = other if second.plan.architecture.family == "base" else of_space(other)
    third = next_to_promote([*good, *bad, file, other], set(), short_s, SECONDS, CURVES)
    assert third is not None and third.plan.architecture.family == "base"


def test_what_files_have_already_is_no_merit_of_an_estimate() -> None:
    """Alone the one that loses less has the larger volume; beside plain int8 the one that is faster and smaller adds more."""
    flat = Curves(dict.fromkeys(EXPONENTS, 0.0), CURVES.usual_steps, CURVES.least, CURVES.seconds_per_step)
    finer, faster = estimated(1, 0.7, 1 / 9.7, 1 / 4.7), estimated(2, 1.4, 1 / 13.3, 1 / 6.2)
    int8 = trained(3, 0.0, 1 / 3.9, 1 / 2.6, origin=Origin.ENQUEUED, steps=0)
    assert next_to_promote([finer, faster], set(), short_s, SECONDS, flat, least=1) == finer
    assert next_to_promote([finer, faster, int8], set(), short_s, SECONDS, flat, least=1) == faster


def test_an_estimate_like_a_trained_file_is_not_the_next() -> None:
    """Of two neighbours one is enough."""
    twins = [estimated(n, 1.0, 0.05, 0.05) for n in range(LEAST_ESTIMATES)]
    other = estimated(50, 1.0, 0.2, 0.03)
    file = trained(60, 0.3, 0.05, 0.05, parent=0)
    parent = next_to_promote([*twins, other, file], set(), short_s, SECONDS, CURVES)
    assert parent is not None and parent.trial == 50


def test_a_network_that_was_trained_is_not_trained_anew_in_other_bits() -> None:
    """What begins with its weights gains by them; what begins with the shared ones pays for them again."""
    file = trained(60, 2.0, 0.1, 0.1)
    coarse = QuantizationSpec(precisions={"layer": Precision.W4A8})
    plan = file.plan.model_copy(update={"quantization": coarse})
    anew, begun = (
        estimated(n, 0.1, 0.05, 0.05, parent).model_copy(update={"plan": plan}) for n, parent in ((1, None), (2, 60))
    )
    others = [estimated(10 + n, 2.9, 0.9, 0.9) for n in range(LEAST_ESTIMATES)]
    best = [next_to_promote([file, c, *others], set(), short_s, SECONDS, CURVES) for c in (anew, begun)]
    assert best[0] is not None and best[0].trial >= 10
    assert best[1] == begun
    # they wait all the same: the next is not kept back until more are estimated
    twins = [anew.model_copy(update={"trial": 100 + n}) for n in range(LEAST_ESTIMATES - 1)]
    assert next_to_promote([file, *twins, others[0]], set(), short_s, SECONDS, CURVES) == others[0]
    assert next_to_promote([file, *twins, anew], set(), short_s, SECONDS, CURVES) is None
    failed = trained(60, 2.0, state=State.FAILED)  # lends nothing
    assert next_to_promote([failed, anew, *others], set(), short_s, SECONDS, CURVES) == anew


def test_the_same_bits_are_another_start_when_the_file_was_trained_on() -> None:
    """What was rounded early is rounded again with better weights, but not twice with the same."""
    early, later = trained(1, 1.5, 0.1, 0.1), trained(3, -0.4, 0.1, 0.1, parent=1, origin=Origin.CONTINUED)
    coarse = early.plan.model_copy(update={"quantization": QuantizationSpec(precisions={"layer": Precision.W4A8})})
    of_early, of_later, anew = (
        estimated(n, drop, 0.06, 0.1, parent).model_copy(update={"plan": coarse, "total_steps": 300})
        for n, drop, parent in ((10, 1.7, 1), (11, 0.2, 3), (12, 0.1, None))
    )
    rounded = trained(13, 1.7, 0.06, 0.1, parent=10).model_copy(update={"plan": coarse})
    others = [estimated(20 + n, 50.0) for n in range(LEAST_ESTIMATES)]
    files = [early, of_early, rounded, later, *others]
    found = next_to_promote([*files, of_later, anew], set(), short_s, SECONDS, CURVES)
    assert found == of_later
    again = of_later.model_copy(update={"trial": 14})
    found = next_to_promote([*files, of_later, again], {of_later.trial}, short_s, SECONDS, CURVES)
    assert found is not None and found.trial >= 20


def test_an_estimate_with_other_bits_takes_nothing_from_its_parent() -> None:
    file = trained(20, 0.5)
    same = estimated(21, 2.0, 0.2, parent=20)
    assert leaves([file, same]) == [file]
    found = next_to_train_on([file, same], set(), SECONDS, CURVES)
    assert found is not None and found.trial == 20


# Training on


def test_what_can_be_trained_away_is_trained_on() -> None:
    """A drop that is halved adds more where it is large and the file is small."""
    near, small = trained(0, 0.05, 0.2, 0.2), trained(1, 2.0, 0.05, 0.05)
    found = next_to_train_on([near, small], set(), SECONDS, CURVES)
    assert found is not None and found.trial == 1


@pytest.mark.parametrize(
    "unable",
    [
        trained(0, 1.0, state=State.FAILED),
        trained(0, 1.0, steps=0),
        trained(0, 1.0, violations={"min_speedup": 0.1}),
        estimated(0, 1.0),
    ],
)
def test_what_cannot_be_trained_on_is_not(unable: Candidate) -> None:
    assert next_to_train_on([unable], set(), SECONDS, CURVES) is None


def test_a_drop_beyond_its_limit_may_be_trained_away() -> None:
    hopeful = trained(0, 2.0, violations={"max_accuracy_drop": 1.0})
    assert next_to_train_on([hopeful], set(), SECONDS, CURVES) == hopeful


def test_each_file_is_trained_on_once() -> None:
    first = trained(0, 1.0)
    second = trained(1, 0.8, parent=0, origin=Origin.CONTINUED)
    found = next_to_train_on([first, second], set(), SECONDS, CURVES)
    assert found is not None and found.trial == 1
    assert next_to_train_on([first, second], {1}, SECONDS, CURVES) is None
    assert leaves([first, second]) == [second]


def test_the_long_training_goes_to_less_of_a_file_where_that_adds_more() -> None:
    """A cut-down network begins with the file's weights; what begins with the shared ones has not been tried yet."""
    file = trained(0, 1.0, 0.2, 0.2)
    smaller, worse, anew = (
        estimated(1, 2.0, 0.05, 0.05, parent=0),
        estimated(2, 9.0, 0.19, 0.19, parent=0),
        estimated(3, 0.5, 0.02, 0.02),
    )
    assert next_to_train_on([file, worse, anew], set(), SECONDS, CURVES) == file
    found = next_to_train_on([file, worse, smaller, anew], set(), SECONDS, CURVES)
    assert found == smaller
    soon, later = (expected_after(smaller, seconds, CURVES)[0] for seconds in (0.1 * SECONDS, SECONDS))
    assert later < soon
    went_on = trained(4, 0.9, 0.05, 0.05, parent=1, origin=Origin.CONTINUED)
    found = next_to_train_on([file, smaller, went_on], set(), SECONDS, CURVES)
    assert found == went_on
    # the file's own training goes on where what was cut out of it loses nothing any more
    done = trained(4, 0.0, 0.05, 0.05, parent=1, origin=Origin.CONTINUED)
    assert next_to_train_on([file, smaller, done], set(), SECONDS, CURVES) == file


def test_a_file_that_may_be_as_accurate_as_the_base_is_not_trained_on_to_be_better_than_it() -> None:
    """The same drop, certain or not: of a certain one what is won beyond the base counts as well."""
    certain, small = trained(0, 0.3, 0.1, 0.115), trained(1, 1.0, 0.1, 0.1)
    accuracy = Accuracy(correct=8970, total=10_000, lost=330, gained=300)
    assert certain.measurement is not None and certain.measurement.validation is not None
    assert accuracy.drop_points == certain.measurement.validation.drop_points
    doubtful = certain.model_copy(
        update={"measurement": certain.measurement.model_copy(update={"validation": accuracy})}
    )
    assert is_behind(certain) and not is_behind(doubtful)
    assert hoped_for(doubtful, SECONDS, CURVES)[0] < 0
    assert next_to_train_on([certain, small], set(), SECONDS, CURVES) == certain
    assert next_to_train_on([doubtful, small], set(), SECONDS, CURVES) == small
    # nor is what is cut out of a file worth more for being better than the base
    better, smaller = estimated(2, 0.3, 0.09, 0.09, parent=1), estimated(3, 1.8, 0.08, 0.08, parent=1)
    later = {c.trial: expected_after(c, SECONDS, CURVES)[0] for c in (better, smaller)}
    assert later[2] < 0
    assert next_to_train_on([doubtful, small, better, smaller], set(), SECONDS, CURVES) == smaller


def test_hopes_shrink_with_the_training_behind() -> None:
    first = trained(0, 1.0, steps=100)
    long_trained = trained(1, 1.0, steps=5000)
    drop, size, latency = hoped_for(first, SECONDS, CURVES)
    assert drop < hoped_for(long_trained, SECONDS, CURVES)[0] < 1.0
    assert (size, latency) == pytest.approx((math.log(0.1), math.log(0.1)))


# Polishing


def test_knees_are_what_the_front_would_miss_most() -> None:
    knee = trained(0, 0.5, 0.05, 0.05)
    neighbours = [trained(1, 0.45, 0.052, 0.052), trained(2, 2.9, 0.049, 0.05)]
    whole = trained(3, 0.0, 0.9, 0.9, steps=0)
    found = knee_points([knee, *neighbours, whole], 3)
    assert whole not in found
    points = {c.trial: objectives(c) for c in [knee, *neighbours, whole]}
    loss = {
        trial: volume([p for p in points.values() if p]) - volume([p for t, p in points.items() if p and t != trial])
        for trial in points
    }
    assert [c.trial for c in found] == sorted((0, 1, 2), key=lambda trial: -loss[trial])


def test_each_knee_is_polished_once_and_then_nothing() -> None:
    files = [trained(n, 0.5 + n, 0.2 / (n + 1), 0.2 / (n + 1)) for n in range(3)]
    busy: set[int] = set()
    for _ in range(2):
        found = next_to_polish(files, busy, 2, 100.0)
        assert found is not None and found.trial not in busy
        busy.add(found.trial)
    assert next_to_polish(files, busy, 2, 100.0) is None


def test_what_was_polished_is_not_polished_again_though_it_is_the_greatest_knee() -> None:
    files = [trained(n, 0.5 + n, 0.2 / (n + 1), 0.2 / (n + 1)) for n in range(3)]
    first = next_to_polish(files, set(), 2, 100.0)
    assert first is not None and first.measurement is not None
    ratio = first.measurement.size_ratio
    better = trained(7, -1.0, ratio, ratio, parent=first.trial, origin=Origin.CONTINUED)
    assert knee_points([*files, better], 1) == [better]
    found = next_to_polish([*files, better.model_copy(update={"started_s": 100.0})], set(), 2, 100.0)
    assert found is not None and found.trial not in (first.trial, better.trial)
    # one that was trained on before is a knee like another
    assert next_to_polish([*files, better], set(), 2, 100.0) == better


# Objectives


def test_objectives_are_measured_or_estimated_or_none() -> None:
    assert objectives(estimated(0, 1.5, 0.2, 0.3)) == pytest.approx((1.5, math.log(0.2), math.log(0.3)))
    assert objectives(trained(0, 1.5, 0.2, 0.3)) == pytest.approx((1.5, math.log(0.2), math.log(0.3)))
    assert objectives(estimated(0, None)) is None
    assert objectives(trained(0, 1.0, state=State.FAILED)) is None


# What a short training adds


def test_what_adds_to_the_files_after_a_short_training_goes_before_what_promises_more() -> None:
    """A trained network in fewer bits needs little; another network would be worth more after a long training only."""
    enqueued, file = trained(0, 0.0, 0.3, 0.4, origin=Origin.ENQUEUED), trained(1, 1.0, 0.1, 0.2)
    # its parent has made its steps, so it has nothing to catch up with
    finer = estimated(2, 1.2, 0.08, 0.2, parent=1).model_copy(update={"total_steps": 300})
    bold = estimated(3, 2.6, 0.05, 0.1)
    others = [estimated(10 + n, 50.0) for n in range(LEAST_ESTIMATES)]
    candidates = [enqueued, file, finer, bold, *others]
    chosen = next_to_promote(candidates, set(), lambda _: 2.0, 600.0, CURVES)
    assert chosen is not None and chosen.trial == 2
    # without it nothing adds anything so soon, and the bold one is worth a long training
    chosen = next_to_promote([c for c in candidates if c.trial != 2], set(), lambda _: 2.0, 600.0, CURVES)
    assert chosen is not None and chosen.trial == 3
    # a family's first training is long at once
    chosen = next_to_promote([c for c in candidates if c.trial != 1], set(), lambda _: 2.0, 600.0, CURVES)
    assert chosen is not None and chosen.trial == 3


def test_what_adds_most_for_its_seconds_goes_before_what_adds_most() -> None:
    """A rounding of a minute and then a training of ten are both done; the other way round there is time for one."""
    file = trained(1, 0.0, 0.1, 0.1)
    cheap, dear = estimated(2, 0.2, 0.07, 0.1, parent=1), estimated(3, 0.2, 0.03, 0.07)
    candidates = [file, cheap, dear, *(estimated(10 + n, 50.0) for n in range(LEAST_ESTIMATES))]
    flat = Curves(dict.fromkeys(EXPONENTS, 0.0), CURVES.usual_steps, CURVES.least, CURVES.seconds_per_step)

    def chosen(dear_s: float, overhead_s: float) -> Candidate | None:
        def length(c: Candidate) -> float:
            return dear_s if c.trial == 3 else 20.0

        return next_to_promote(candidates, set(), length, SECONDS, flat, overhead_s=overhead_s)

    assert chosen(600.0, 10.0) == cheap
    assert chosen(20.0, 10.0) == dear
    assert chosen(600.0, 10_000.0) == dear  # where files themselves take long, fewer and better ones


def test_what_a_cut_costs_passes_with_the_steps_since_then() -> None:
    """A network cut out of one of many steps wins back soon what the cut costs, and not what that one lost before."""
    usual = CURVES.usual_steps["base"]
    whole = estimated(2, 3.0, parent=1).model_copy(update={"total_steps": 100_000})
    assert whole.estimate is not None
    cut = whole.model_copy(update={"estimate": whole.estimate.model_copy(update={"passing_drop_points": 2.0})})
    per_step = CURVES.seconds_per_step(cut)
    for times in (0.5, 1.0, 2.0, 8.0):
        lasting, _, _ = expected_after(cut.model_copy(update={"estimate": whole.estimate.model_copy(update={"drop_points": 1.0})}),
                                   times * usual * per_step, CURVES)  # fmt: skip
        drop, size, latency = expected_after(cut, times * usual * per_step, CURVES)
        assert drop == pytest.approx(lasting + 2.0 / times)
        assert (size, latency) == (math.log(0.1), math.log(0.1))
    later = expected_after(whole, 8 * usual * per_step, CURVES)[0]
    assert 2.9 < later < 3.0  # as a network of so many steps that was not cut


def test_only_less_of_the_file_that_adds_something_is_made_right_after_it() -> None:
    flat = Curves(dict.fromkeys(EXPONENTS, 0.0), CURVES.usual_steps, CURVES.least, CURVES.seconds_per_step)
    file, other = trained(1, 0.5, 0.1, 0.1), trained(4, 1.0, 0.2, 0.2)
    rounded, cut, worse = (estimated(n, drop, size, fast, parent=1) for n, drop, size, fast in
                           ((2, 0.8, 0.06, 0.1), (3, 1.5, 0.05, 0.05), (5, 0.9, 0.1, 0.1)))  # fmt: skip
    elsewhere, anew = estimated(6, 0.1, 0.02, 0.02, parent=4), estimated(7, 0.1, 0.02, 0.02)

    def chosen(*waiting: Candidate, elapsed_s: float = 1e6) -> Candidate | None:
        return next_to_reduce([file, other, *waiting], set(), file, short_s, flat, elapsed_s)

    assert chosen(rounded, cut, worse, elsewhere, anew) == cut
    assert chosen(rounded, worse) == rounded
    assert chosen(worse, elsewhere, anew) is None
    assert chosen() is None
    assert next_to_reduce([file, rounded], {rounded.trial}, file, short_s, flat, 1e6) is None
    # the front has grown faster than that: there is better to do
    assert chosen(rounded, worse, elapsed_s=1.0) is None
