"""A latency that was measured beside a neighbour is found by the run's other sittings, and measured again."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from searches import HEAD, copied, finish_in_own_process, lasting, short_sittings, with_replaced, write_and_load

from autocompress.candidate import Candidate, Latency, Measurement
from autocompress.config import StudyConfig
from autocompress.engine.baseline import ensure_run, load_inputs
from autocompress.engine.events import Silent
from autocompress.engine.pareto import front
from autocompress.engine.run_folder import RunFolder, amend, read_candidates, record
from autocompress.engine.sittings import usual_baseline_ms
from autocompress.engine.study import search
from autocompress.plan import Plan

STUDY = f"""{with_replaced(HEAD, {'name = "tiny"': 'name = "tiny"' + chr(10) + 'engine = "plain"'})}
[training]
steps = 5
batch_size = 32
views = 1
continued_fraction = 0.0
[space]
precision = ["w4a8"]
sparsity = [0.0, 0.5]
[target]
training_threads = 1
"""
SLOWED = 4.0
"""By how much the baseline is made to have been slowed down: far more than short sittings differ by."""


class Notes(Silent):
    """Remembers what was noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunFolder, StudyConfig]]:
    """A study of four trials, done."""
    folder = tmp_path_factory.mktemp("sittings")
    config = write_and_load(folder, STUDY, 4)
    with short_sittings():
        run = ensure_run(folder / "run", load_inputs(config), Silent())
        yield search(config, run.root, Silent()), config


def latency(baseline_ms: float, noisy: bool = False) -> Latency:
    return Latency(
        latency_ms=0.1, p90_ms=0.1, baseline_ms=baseline_ms, ratio=0.1, ratio_low=0.1, ratio_high=0.1, noisy=noisy
    )


def measurement(baseline_ms: float | None) -> Measurement:
    timed = None if baseline_ms is None else latency(baseline_ms)
    return Measurement(size_bytes=1, compressed_bytes=1, size_ratio=1.0, latency=timed)


def candidate(trial: int, measured: Measurement | None) -> Candidate:
    return Candidate(trial=trial, origin="sampled", state="complete", plan=Plan(), measurement=measured)


def as_if_slowed(run: RunFolder, factor: float, **changes: Any) -> Candidate:
    """Make the fastest member of the front one whose baseline took so much longer than it did."""
    members = [c for c in front(read_candidates(run)) if not c.plan.changes_nothing]
    member = min(members, key=lambda c: c.measurement.latency.ratio)
    found = member.measurement.latency
    slowed = found.model_copy(
        update={"baseline_ms": factor * found.baseline_ms, "ratio": found.ratio / factor, **changes}
    )
    measured = member.measurement.model_copy(update={"latency": slowed})
    record(run, member.model_copy(update={"measurement": measured}))
    return member


def test_usual_is_the_lower_quartile_of_what_was_timed() -> None:
    timed = [candidate(n, measurement(ms)) for n, ms in enumerate([1.5, 1.4, None, 1.2, 1.3])]
    assert usual_baseline_ms(measurement(1.6), [*timed, candidate(9, None)]) == pytest.approx(1.3)
    assert usual_baseline_ms(measurement(1.6), []) == 1.6


@pytest.mark.parametrize("changes", [{}, {"noisy": True}])
def test_a_slowed_member_of_the_front_is_timed_again(
    changes: dict[str, bool], finished: tuple[RunFolder, StudyConfig], tmp_path: Path
) -> None:
    run, config = finished
    again, watcher = copied(run, tmp_path / "run", config), Notes()
    before = as_if_slowed(again, SLOWED, **changes)
    search(config, again.root, watcher)
    after = next(c for c in read_candidates(again) if c.trial == before.trial)
    was, found = before.measurement.latency, after.measurement.latency
    assert found.baseline_ms < SLOWED * was.baseline_ms
    assert abs(math.log(found.ratio / was.ratio)) < math.log(SLOWED) / 2
    assert any(note.startswith(f"timed trial {before.trial} again") for note in watcher.notes)
    kept = after.measurement.model_copy(update={"latency": was})
    assert kept == before.measurement
    assert [c.trial for c in read_candidates(again)] == [c.trial for c in read_candidates(run)]


@pytest.mark.parametrize(
    "place", ["sittings:amend:1:before", "run_folder:write_json:3:before", "sittings:amend:1:after"]
)
def test_a_death_while_a_record_is_rewritten_loses_nothing(
    place: str, finished: tuple[RunFolder, StudyConfig], tmp_path: Path
) -> None:
    run, config = finished
    write_and_load(tmp_path, STUDY, 4)
    again = copied(run, tmp_path / "run", config)
    before = as_if_slowed(again, SLOWED)
    assert finish_in_own_process(tmp_path, again, 4, place) == -signal.SIGKILL
    assert [lasting(c) for c in read_candidates(again)] == [lasting(c) for c in read_candidates(run)]
    search(config, again.root, Silent())
    after = next(c for c in read_candidates(again) if c.trial == before.trial)
    assert after.measurement.latency.baseline_ms < SLOWED * before.measurement.latency.baseline_ms
    assert lasting(after) == lasting(before)


def test_limits_hold_for_the_later_figure(finished: tuple[RunFolder, StudyConfig], tmp_path: Path) -> None:
    run, _ = finished
    speedups = [1 / c.measurement.latency.ratio for c in front(read_candidates(run))]
    text = STUDY + f"[limits]\nmin_speedup = {1.3 * max(speedups):.3f}\n"
    config = write_and_load(tmp_path / "limited", text, 4)
    again = copied(run, tmp_path / "run", config)
    before = as_if_slowed(again, SLOWED)
    search(config, again.root, Silent())
    after = next(c for c in read_candidates(again) if c.trial == before.trial)
    assert before.feasible
    assert not after.feasible
    assert after.violations.keys() == {"min_speedup"}


def test_what_is_as_usual_is_left_alone(finished: tuple[RunFolder, StudyConfig], tmp_path: Path) -> None:
    run, config = finished
    again = copied(run, tmp_path / "run", config)
    for c in read_candidates(again):  # all alike, as on a quiet machine
        timed = c.measurement.latency.model_copy(update={"baseline_ms": 0.1, "noisy": False})
        record(again, c.model_copy(update={"measurement": c.measurement.model_copy(update={"latency": timed})}))
    before = read_candidates(again)
    search(config, again.root, Silent())
    assert read_candidates(again) == before


def test_two_who_change_a_record_lose_nothing(finished: tuple[RunFolder, StudyConfig], tmp_path: Path) -> None:
    run = copied(finished[0], tmp_path / "run", finished[1])

    def count(_: int) -> None:
        own = RunFolder(run.root)
        for _ in range(20):
            amend(own, 0, lambda c: c.model_copy(update={"total_steps": c.total_steps + 1}))

    threads = [threading.Thread(target=count, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steps = {c.trial: c.total_steps for c in read_candidates(run)}
    assert steps[0] == 60
