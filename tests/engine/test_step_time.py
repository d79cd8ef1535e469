"""Seconds of a step, against lines that are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from benches import make_bench
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autocompress.candidate import Candidate, Origin, State
from autocompress.data.task import TaskData
from autocompress.engine.ladder import Ladder
from autocompress.engine.step_time import FIXED_SHARE, affordable_steps, fit_step_time
from autocompress.plan import ArchitectureSpec, Plan, TrainingSpec

MACS = st.floats(1e3, 1e12)
SECONDS = st.floats(1e-4, 10.0)


@given(MACS, SECONDS)
def test_one_training_is_met_with_the_usual_fixed_part(macs: float, seconds: float) -> None:
    found = fit_step_time([(macs, seconds)])
    assert found.seconds(macs) == pytest.approx(seconds)
    assert found.fixed_s == pytest.approx(FIXED_SHARE * seconds)


@given(st.floats(0.0, 0.1), st.floats(1e-10, 1e-8))
def test_a_line_is_found_again_from_many_trainings(fixed: float, per_mac: float) -> None:
    macs = [1e6 * (1 + k % 97) for k in range(1000)]
    found = fit_step_time([(m, fixed + per_mac * m) for m in macs])
    for m in (1e6, 5e7, 9e7):
        assert found.seconds(m) == pytest.approx(fixed + per_mac * m, rel=0.05)


@given(st.lists(st.tuples(MACS, SECONDS), min_size=1, max_size=5), MACS, MACS)
def test_more_multiplications_never_take_less_time(seen: list[tuple[float, float]], one: float, other: float) -> None:
    found = fit_step_time(seen)
    least, most = sorted([one, other])
    assert 0 <= found.seconds(least) <= found.seconds(most)
    assert found.seconds(most) > 0


def test_a_tiny_network_does_not_make_as_many_more_steps_as_it_has_fewer_multiplications() -> None:
    found = fit_step_time([(5e7, 0.07)])
    assert found.seconds(5e6) > 0.07 / 4


def test_what_the_teacher_still_has_to_answer_is_taken_from_the_time(trained: nn.Module, digits: TaskData) -> None:
    bench = make_bench(trained, digits)
    settings = bench.training
    assert affordable_steps(bench, 10.0, 0.5) == 20  # the teacher was not timed yet
    assert bench.teacher is not None
    indices = torch.arange(32)
    bench.teacher.outputs(indices, 0, digits.training_inputs(indices, 0))
    waits_s = bench.teacher.expected_seconds(1, 20 * settings.batch_size)
    assert waits_s > 0
    assert affordable_steps(bench, 20.5 * waits_s, 1.025 * waits_s) == 19
    assert affordable_steps(bench, waits_s / 2, waits_s / 40) == 0


def test_no_time_has_no_steps(trained: nn.Module, digits: TaskData) -> None:
    assert affordable_steps(make_bench(trained, digits), -3.0, 0.5) == 0


@pytest.mark.parametrize("trained_in", [None, "space", "base"])
def test_a_step_is_measured_until_a_file_of_its_family_says_how_long_it_takes(
    trained_in: str | None, trained: nn.Module, digits: TaskData
) -> None:
    """What shared weights, or files of another family, say of it is a thousand times too much here."""
    record = {"base": {"macs": 1e6, "seconds_per_step": 500.0}}
    ladder = Ladder(
        session=SimpleNamespace(bench=make_bench(trained, digits)),  # type: ignore[arg-type]
        guide=SimpleNamespace(),  # type: ignore[arg-type]
        predictor=SimpleNamespace(macs=lambda plan: 1e6),  # type: ignore[arg-type]
        shared=SimpleNamespace(record=lambda: record),  # type: ignore[arg-type]
    )
    choices = {"depth": 1} if trained_in == "space" else {}
    plan = Plan(
        architecture=ArchitectureSpec(family=trained_in or "base", choices=choices), training=TrainingSpec(steps=2)
    )
    file = Candidate(trial=1, origin=Origin.PROMOTED, state=State.COMPLETE, plan=plan, stage_seconds={"train": 800.0})
    found = ladder.step_s([] if trained_in is None else [file], Plan())
    assert found == pytest.approx(400.0) if trained_in == "base" else 0 < found < 100
