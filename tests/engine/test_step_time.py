"""Seconds of a step, against lines that are known."""

from __future__ import annotations

from dataclasses import replace
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
from autocompress.engine.pace import steps_within
from autocompress.engine.step_time import FIXED_SHARE, affordable_steps, fit_step_time
from autocompress.pipeline import Bench
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


def file_of(family: str, seconds: float) -> Candidate:
    architecture = ArchitectureSpec(family=family, choices={"depth": 1} if family == "space" else {})
    plan = Plan(architecture=architecture, training=TrainingSpec(steps=2))
    stages = {"train": seconds}
    return Candidate(trial=1, origin=Origin.PROMOTED, state=State.COMPLETE, plan=plan, stage_seconds=stages)


def ladder_of(bench: Bench) -> Ladder:
    """What shared weights say of a step is a thousand times too much here."""
    record = {"base": {"macs": 1e6, "seconds_per_step": 500.0}}
    return Ladder(
        session=SimpleNamespace(bench=bench, config=SimpleNamespace(study=SimpleNamespace(timeout_s=60.0))),  # type: ignore[arg-type]
        guide=SimpleNamespace(),  # type: ignore[arg-type]
        predictor=SimpleNamespace(macs=lambda plan: 1e6),  # type: ignore[arg-type]
        shared=SimpleNamespace(record=lambda: record),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("files", [[], [file_of("space", 800.0)]])
def test_a_step_is_measured_once_where_no_file_says_how_long_it_takes(
    files: list[Candidate], trained: nn.Module, digits: TaskData
) -> None:
    ladder = ladder_of(make_bench(trained, digits))
    found = ladder.step_s(files, Plan())
    assert 0 < found < 10.0
    assert steps_within(ladder, files, Plan(), 100.0, "promote") > 5  # where shared weights say none
    assert ladder.step_s(files, Plan()) == found
    assert ladder.step_time(files, "base").seconds(1e6) == pytest.approx(found)
    assert ladder.step_time(files, "base").seconds(1e9) > found


def test_what_files_of_the_family_say_goes_before(trained: nn.Module, digits: TaskData) -> None:
    ladder = ladder_of(make_bench(trained, digits))
    ladder.step_s([], Plan())
    assert ladder.step_s([file_of("base", 800.0)], Plan()) == pytest.approx(400.0)


def test_no_time_is_not_measured_in(trained: nn.Module, digits: TaskData) -> None:
    ladder = ladder_of(make_bench(trained, digits))
    assert steps_within(ladder, [], Plan(), -1.0, "promote") == 0
    assert ladder.step_time([], "base").seconds(1e6) == pytest.approx(500.0)


def test_a_network_that_fails_leaves_what_shared_weights_say(trained: nn.Module, digits: TaskData) -> None:
    """Its failure is recorded by the training that follows."""

    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise MemoryError("too large")

    bench = replace(make_bench(trained, digits), base=Broken())
    assert ladder_of(bench).step_s([], Plan()) == pytest.approx(500.0)
