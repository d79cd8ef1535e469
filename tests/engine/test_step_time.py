"""Seconds of a step, against lines that are known."""

from __future__ import annotations

import pytest
import torch
from benches import make_bench
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autocompress.data.task import TaskData
from autocompress.engine.step_time import FIXED_SHARE, affordable_steps, fit_step_time

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
