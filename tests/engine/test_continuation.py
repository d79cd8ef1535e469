"""Successive halving over records: what goes on, how often and for how long."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.candidate import Accuracy, Candidate, Latency, Measurement, Origin, State
from autocompress.config import TrainingSection
from autocompress.engine.continuation import (
    HOPED_FOR_SHARE,
    Continuation,
    continued_rate,
    continued_training,
    least_steps,
    next_continuation,
    promising,
    rounds,
)
from autocompress.engine.pareto import hypervolume, objective_vector
from autocompress.pipeline import quantized_steps
from autocompress.plan import ArchitectureSpec, Plan, Precision, QuantizationSpec, TrainingSpec

PHASE_S = 1200.0


def measurement(drop: float, size: float, latency: float) -> Measurement:
    lost = round(drop * 100)
    return Measurement(
        size_bytes=round(1e6 * size), compressed_bytes=1, size_ratio=size,
        latency=Latency(latency_ms=latency, p90_ms=latency, baseline_ms=1, ratio=latency, ratio_low=latency, ratio_high=latency),
        validation=Accuracy(correct=9000 - lost, total=10_000, lost=max(lost, 0), gained=max(-lost, 0)),
    )  # fmt: skip


def candidate(
    trial: int, drop: float, size: float = 0.1, latency: float = 0.1, *, family: str = "base", parent: int | None = None, steps: int = 300,
    state: State = State.COMPLETE, violations: dict[str, float] | None = None,
) -> Candidate:  # fmt: skip
    plan = Plan(architecture=ArchitectureSpec(family=family), training=TrainingSpec(steps=steps))
    return Candidate(
        trial=trial, origin=Origin.SAMPLED if parent is None else Origin.CONTINUED, state=state, parent=parent, plan=plan,
        violations=violations or {}, measurement=None if state is State.FAILED else measurement(drop, size, latency),
    )  # fmt: skip


def population(families: str = "base", count: int = 20, seed: int = 0) -> list[Candidate]:
    """Candidates of random figures; a family named second is behind by a point."""
    draw = random.Random(seed)
    names = families.split()
    return [
        candidate(
            n, draw.uniform(0.5, 2.5) + (n % len(names)), draw.uniform(0.05, 0.2), draw.uniform(0.05, 0.3),
            family=names[n % len(names)],
        )
        for n in range(count)
    ]  # fmt: skip


def trained_on(parent: Candidate, trial: int, gain: float) -> Candidate:
    assert parent.measurement is not None
    drop, _, _ = objective_vector(parent.measurement)
    return candidate(
        trial, drop * gain, parent.measurement.size_ratio, parent.measurement.latency.ratio,
        family=parent.plan.architecture.family, parent=parent.trial,
    )  # fmt: skip


def simulate(candidates: list[Candidate], members: int, gain: float = 0.6, overhead: float = 0.0) -> list[Continuation]:
    """A study's last part by hand: each continuation takes its seconds, and improves by ``gain``."""
    done, used, known = [], 0.0, list(candidates)
    while used < PHASE_S * (1 - 1e-9):
        step = next_continuation(known, set(), members, used / PHASE_S, PHASE_S)
        if step is None or step.seconds is None:
            break
        known.append(trained_on(step.parent, len(known), gain))
        used += step.seconds + overhead
        done.append(step)
    return done


# Rounds


@pytest.mark.parametrize(("members", "expected"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4)])
def test_rounds_halve_until_one_is_left(members: int, expected: int) -> None:
    assert rounds(members) == expected
    assert members >> (expected - 1) == 1


@pytest.mark.parametrize("members", [1, 2, 4, 8])
@pytest.mark.parametrize("gain", [0.3, 0.9, 1.0, 1.3])
@pytest.mark.parametrize("families", ["base", "base space"])
def test_widths_halve_and_seconds_add_up_to_the_phase(members: int, gain: float, families: str) -> None:
    """Whatever training on brings: nothing at all, or even harm."""
    done = simulate(population(families), members, gain)
    widths = [len(list(group)) for _, group in itertools.groupby(done, key=lambda step: step.round)]
    assert widths == [members >> number for number in range(rounds(members))]
    assert [step.round for step in done] == sorted(step.round for step in done)
    assert sum(step.seconds or 0 for step in done) == pytest.approx(PHASE_S)
    for _, group in itertools.groupby(done, key=lambda step: step.round):
        assert sum(step.seconds or 0 for step in group) == pytest.approx(PHASE_S / rounds(members))


def test_later_rounds_go_on_from_those_before() -> None:
    done = simulate(population(), members=4)
    first, second, last = ([step.parent for step in done if step.round == number] for number in range(3))
    assert {c.parent for c in second} <= {c.trial for c in first}
    assert {c.parent for c in last} <= {c.trial for c in second}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("overhead", [0.0, 20.0, 150.0])
def test_no_trial_is_continued_twice(seed: int, overhead: float) -> None:
    done = simulate(population("base space", seed=seed), members=4, overhead=overhead)
    trials = [step.parent.trial for step in done]
    assert len(trials) == len(set(trials)) > 0


@pytest.mark.parametrize("seed", range(5))
def test_every_family_has_a_place_in_the_first_round(seed: int) -> None:
    done = simulate(population("base space", seed=seed), members=4)
    families = [step.parent.plan.architecture.family for step in done if step.round == 0]
    assert sorted(families) == ["base", "base", "space", "space"]


def test_a_family_with_few_members_leaves_its_places_to_the_other() -> None:
    candidates = [*population(count=8), candidate(8, 2.0, family="space")]
    done = simulate(candidates, members=4)
    families = [step.parent.plan.architecture.family for step in done if step.round == 0]
    assert sorted(families) == ["base", "base", "base", "space"]


def test_the_first_round_takes_what_the_greedy_rule_ranks() -> None:
    candidates = population()
    done = simulate(candidates, members=4, gain=1.0)
    expected = [c.trial for c in promising(candidates, 4, by_family=True)]
    assert [step.parent.trial for step in done if step.round == 0] == expected


# Several workers


def test_a_busy_trial_is_never_taken_again() -> None:
    """Four workers that all ask before one is done."""
    candidates, busy = population("base space"), set()
    for _ in range(4):
        step = next_continuation(candidates, busy, 4, 0.0, PHASE_S)
        assert step is not None and step.round == 0
        assert step.parent.trial not in busy
        busy.add(step.parent.trial)
    assert len(busy) == 4
    fifth = next_continuation(candidates, busy, 4, 0.0, PHASE_S)
    assert fifth is None or (fifth.round > 0 and fifth.parent.trial not in busy)


@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_do_the_same_rounds(workers: int) -> None:
    known, running, done, used = population("base space"), [], [], 0.0
    while True:
        busy = {step.parent.trial for step in running}
        step = next_continuation(known, busy, 4, min(used / PHASE_S, 1.0), PHASE_S)
        if step is not None and len(running) < workers:
            running.append(step)
            continue
        if not running:
            break
        ended = running.pop(0)
        known.append(trained_on(ended.parent, len(known), 0.6))
        used += (ended.seconds or 0) / workers
        done.append(ended)
    trials = [step.parent.trial for step in done]
    assert len(trials) == len(set(trials)) == 4 + 2 + 1


def test_a_place_taken_early_counts_when_better_ones_turn_up() -> None:
    parents = [candidate(n, 2.0, 0.1 + n / 100, 0.1) for n in range(4)]
    early = candidate(4, 1.9, 0.1, 0.1, parent=0)
    first = next_continuation([*parents, early], {1, 2, 3}, 4, 0.0, PHASE_S)
    assert first is not None and (first.round, first.parent.trial) == (1, 4)
    better = [candidate(4 + n, 0.1, 0.05, 0.1 - n / 100, parent=n) for n in (1, 2, 3)]
    second = next_continuation([*parents, early, *better], {4}, 4, 0.3, PHASE_S)
    assert second is not None and second.round == 1 and second.parent in better
    third = next_continuation([*parents, early, *better], {4, second.parent.trial}, 4, 0.3, PHASE_S)
    assert third is None or third.round == 2


# Progress and failures


def test_a_round_whose_time_is_over_is_left() -> None:
    step = next_continuation(population(), set(), 4, 0.5, PHASE_S)
    assert step is not None and step.round == 1
    assert step.seconds == pytest.approx(PHASE_S / 3 / 2)
    last = next_continuation(population(), set(), 4, 1.0, PHASE_S)
    assert last is not None and last.round == 2


def test_a_continuation_that_failed_has_had_its_turn() -> None:
    candidates = population()
    first = next_continuation(candidates, set(), 4, 0.0, PHASE_S)
    assert first is not None
    failed = candidate(len(candidates), 0.0, parent=first.parent.trial, state=State.FAILED)
    second = next_continuation([*candidates, failed], set(), 4, 0.1, PHASE_S)
    assert second is not None and second.parent.trial not in (first.parent.trial, failed.trial)


def test_where_only_trials_are_counted_the_rounds_end_when_their_places_are_taken() -> None:
    known = population("base space")
    done = []
    for used in range(30):
        step = next_continuation(known, set(), 4, used / 30, None)
        if step is None:  # the study samples on instead
            known.append(candidate(len(known), 0.4, 0.02, 0.02))
        else:
            done.append(step)
            known.append(trained_on(step.parent, len(known), 1.2))
    assert [step.round for step in done] == [0] * 4 + [1] * 2 + [2]


def test_where_only_trials_are_counted_there_are_no_seconds() -> None:
    step = next_continuation(population(), set(), 4, 0.0, None)
    assert step is not None and step.seconds is None


def test_without_a_usable_candidate_nothing_goes_on() -> None:
    useless = [
        candidate(0, 0.0, steps=0),
        candidate(1, 0.0, state=State.FAILED),
        candidate(2, 0.0, state=State.OVER_LIMIT),
        candidate(3, 0.0, violations={"min_speedup": 0.1}),
        candidate(4, 0.0, violations={"max_accuracy_drop": -1.0, "max_size_bytes": 0.1}),
    ]
    assert promising(useless, 5, by_family=False) == []
    assert next_continuation(useless, set(), 4, 0.0, PHASE_S) is None


def test_a_drop_beyond_the_limit_may_still_be_trained_away() -> None:
    hopeful = candidate(0, 4.0, violations={"max_accuracy_drop": 1.0, "min_speedup": -0.5})
    assert promising([hopeful], 1, by_family=False) == [hopeful]


# What is promising


def hoped_for(c: Candidate) -> tuple[float, float, float]:
    assert c.measurement is not None
    drop, size, latency = objective_vector(c.measurement)
    return max(drop, 0.0) * HOPED_FOR_SHARE, size, latency


figures = st.tuples(st.integers(-50, 900).map(lambda n: n / 100), st.floats(0.02, 1.0), st.floats(0.02, 1.0))


@settings(max_examples=60)
@given(st.lists(figures, min_size=1, max_size=10))
def test_the_best_one_adds_the_most_hypervolume(points: list[tuple[float, float, float]]) -> None:
    candidates = [candidate(n, *point) for n, point in enumerate(points)]
    (best,) = promising(candidates, 1, by_family=False)
    assert hypervolume([hoped_for(best)]) == max(hypervolume([hoped_for(c)]) for c in candidates)


@settings(max_examples=40)
@given(st.lists(figures, min_size=2, max_size=7), st.integers(2, 4))
def test_greedy_is_within_its_bound_of_the_best_set(points: list[tuple[float, float, float]], count: int) -> None:
    """Hypervolume is submodular, so greedy reaches 1 - 1/e of the best (Nemhauser et al. 1978)."""
    candidates = [candidate(n, *point) for n, point in enumerate(points)]
    chosen = promising(candidates, count, by_family=False)
    assert len({c.trial for c in chosen}) == min(count, len(points))
    reached = hypervolume([hoped_for(c) for c in chosen])
    best = max(
        hypervolume([hoped_for(c) for c in subset]) for subset in itertools.combinations(candidates, len(chosen))
    )
    assert (1 - 1 / 2.718281828) * best - 1e-9 <= reached <= best + 1e-9


def test_of_those_that_add_nothing_the_smallest_drop_goes_first() -> None:
    candidates = [candidate(n, drop, 1.2, 1.2) for n, drop in enumerate((4.0, 1.0, 2.0))]
    assert [c.trial for c in promising(candidates, 3, by_family=False)] == [1, 2, 0]


# The training


@pytest.mark.parametrize("trained, fraction", [(7, None), (300, None), (9000, None), (220, 1.0)])
@pytest.mark.parametrize("more", [0, 1, 500])
def test_the_fewest_steps_that_go_on_train_before_they_round(trained: int, fraction: float | None, more: int) -> None:
    section = TrainingSection()
    plan = Plan(
        quantization=QuantizationSpec(precisions={"layer": Precision.W4A8}),
        training=TrainingSpec(steps=trained, quantized_fraction=fraction),
    )
    file = Candidate(trial=1, origin=Origin.PROMOTED, state=State.COMPLETE, plan=plan, total_steps=trained)
    steps = least_steps(section, plan, 60) + more
    training = continued_training(section, file, plan, steps, "a" * 64)
    rounded = quantized_steps(section, plan.model_copy(update={"training": training}))
    assert rounded >= quantized_steps(section, plan)
    assert steps - rounded >= min(60, trained, steps - round(0.3 * steps))


# The rate


@pytest.mark.parametrize(("family", "whole"), [("base", 0.04), ("space", 0.2)])
def test_a_short_training_does_not_undo_what_it_goes_on_from(family: str, whole: float) -> None:
    training = TrainingSection(learning_rate=0.04, random_start_learning_rate=0.2)
    rates = [continued_rate(training, family, before=100, steps=steps) for steps in (15, 75, 150, 1000)]
    assert rates == pytest.approx([whole / 10, whole / 2, whole, whole])
