"""The training that a candidate gets when it climbs, by where its weights come from."""

from __future__ import annotations

import math

import pytest

from autocompress.candidate import Candidate, Estimate, Origin, State
from autocompress.config import TrainingSection
from autocompress.engine.expectation import Curves
from autocompress.engine.next_training import loses, needed_s, short_training_s, training_of
from autocompress.pipeline import QUANTIZED_STEPS, quantized_steps
from autocompress.plan import ArchitectureSpec, Plan, Precision, PruningSpec, QuantizationSpec, TrainingSpec

SETTINGS = TrainingSection(steps=300)
START = "a" * 64


def candidate(
    trial: int, state: State, precision: Precision, blocks: tuple[str, ...] = (), steps: int = 0
) -> Candidate:
    plan = Plan(
        architecture=ArchitectureSpec(dropped_blocks=blocks),
        pruning=PruningSpec(ratios={"layer1": 0.5}),
        quantization=QuantizationSpec(precisions={"layer1": precision}),
    )
    return Candidate(trial=trial, origin=Origin.PROMOTED, state=state, plan=plan, total_steps=steps)


def trained_for(c: Candidate, steps: int, fraction: float | None = None) -> Candidate:
    training = TrainingSpec(steps=steps, quantized_fraction=fraction)
    return c.model_copy(update={"plan": c.plan.model_copy(update={"training": training})})


FILE = trained_for(candidate(1, State.COMPLETE, Precision.W8A8, steps=1000), 1000)
UNROUNDED = candidate(4, State.COMPLETE, Precision.FLOAT32, steps=1000)
FINER = candidate(2, State.ESTIMATED, Precision.W4A8)
SMALLER = candidate(3, State.ESTIMATED, Precision.W4A8, ("stage1.0",))


@pytest.mark.parametrize("steps, expected", [(300, 300), (42, 42), (9000, QUANTIZED_STEPS)])
def test_a_trained_network_in_other_bits_makes_quantised_steps_only(steps: int, expected: int) -> None:
    training = training_of(SETTINGS, FINER, FILE, Origin.PROMOTED, steps, START)
    assert (training.steps, training.quantized_fraction, training.start) == (expected, 1.0, START)


def test_what_is_left_of_a_trained_network_is_trained_before_it_is_rounded() -> None:
    training = training_of(SETTINGS, SMALLER, FILE, Origin.PROMOTED, 300, START)
    assert (training.steps, training.quantized_fraction) == (300, None)
    assert training.learning_rate == SETTINGS.learning_rate


def test_a_member_of_the_shared_weights_has_the_rate_of_its_family() -> None:
    training = training_of(SETTINGS, FINER, None, Origin.PROMOTED, 300, START)
    assert (training.steps, training.quantized_fraction, training.learning_rate) == (300, None, None)


def test_a_file_that_is_trained_on_has_a_rate_by_its_length() -> None:
    short, long = (training_of(SETTINGS, FILE, None, Origin.CONTINUED, steps, START) for steps in (150, 3000))
    assert short.learning_rate == pytest.approx(0.1 * SETTINGS.learning_rate)
    assert long.learning_rate == SETTINGS.learning_rate


@pytest.mark.parametrize("trained, fraction", [(1000, None), (9000, None), (220, 1.0), (40, None)])
@pytest.mark.parametrize("steps", [60, 150, 500, 900, 3000])
@pytest.mark.parametrize("less", [False, True])
def test_a_file_is_rounded_anew_with_no_fewer_steps_than_before(
    trained: int, fraction: float | None, steps: int, less: bool
) -> None:
    file = trained_for(FILE, trained, fraction)
    goes_on = FINER.model_copy(update={"total_steps": file.total_steps}) if less else file
    training = training_of(SETTINGS, goes_on, file if less else None, Origin.CONTINUED, steps, START)
    before = quantized_steps(SETTINGS, file.plan)
    made = quantized_steps(SETTINGS, file.plan.model_copy(update={"training": training}))
    assert training.steps == steps
    assert made == max(min(before, steps), min(round(0.3 * steps), QUANTIZED_STEPS))


def test_what_was_not_rounded_is_trained_on_as_the_study_says() -> None:
    assert training_of(SETTINGS, UNROUNDED, None, Origin.CONTINUED, 150, START).quantized_fraction is None
    never = SETTINGS.model_copy(update={"quantized_fraction": 0.0})
    assert training_of(never, FILE, None, Origin.CONTINUED, 150, START).quantized_fraction is None


def test_what_goes_on_as_less_of_a_file_has_the_rate_of_one_that_goes_on() -> None:
    """Rounded or cut down: a long training is none of quantised steps alone."""
    for less in (FINER, SMALLER):
        begun = less.model_copy(update={"total_steps": FILE.total_steps})
        training = training_of(SETTINGS, begun, FILE, Origin.CONTINUED, 3000, START)
        assert training == training_of(SETTINGS, FILE, None, Origin.CONTINUED, 3000, START)


@pytest.mark.parametrize(
    "left, student_s, base_s", [(math.inf, 250.0, 100.0), (240.0, 240.0, 100.0), (60.0, 60.0, 60.0)]
)
def test_a_random_start_gets_more_time_but_never_more_than_is_left(
    left: float, student_s: float, base_s: float
) -> None:
    def seconds(family: str, parent: int | None = None) -> float:
        plan = Plan(architecture=ArchitectureSpec(family=family, choices={"depth": 1} if family == "space" else {}))
        newcomer = Candidate(trial=1, origin=Origin.SAMPLED, state=State.ESTIMATED, plan=plan, parent=parent)
        return short_training_s(100.0, left, 2.5, newcomer)

    assert seconds("space") == student_s
    assert seconds("base") == seconds("space", parent=0) == base_s  # what was trained before is no random start


@pytest.mark.parametrize(
    "newcomer, given_s, expected_s", [(FINER, 9e9, 0.5 * QUANTIZED_STEPS), (FINER, 3.0, 3.0), (SMALLER, 9e9, 9e9)]
)
def test_a_rounding_costs_its_few_steps_whatever_time_there_is(
    newcomer: Candidate, given_s: float, expected_s: float
) -> None:
    curves = Curves({}, {}, lambda _: 0.0, lambda _: 0.5)
    begun = newcomer.model_copy(update={"parent": FILE.trial})
    assert needed_s({1: FILE}, lambda _: given_s, curves, begun) == expected_s
    assert needed_s({1: FILE}, lambda _: given_s, curves, newcomer) == given_s  # begins with shared weights


@pytest.mark.parametrize("drop, expected", [(None, True), (2.5, True), (0.0, False), (-0.3, False)])
def test_what_is_thought_to_lose_nothing_has_nothing_to_gain(drop: float | None, expected: bool) -> None:
    estimate = Estimate(size_ratio=0.1, latency_ratio=0.2, drop_points=drop)
    assert loses(FINER.model_copy(update={"estimate": estimate})) is expected
