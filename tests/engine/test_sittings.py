"""A latency that was measured beside a neighbour is found by the run's other sittings, and measured again."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from searches import HEAD, Notes, copied, finish_in_own_process, lasting, short_sittings, with_replaced, write_and_load

from autocompress.candidate import Accuracy, Candidate, Latency, Measurement
from autocompress.config import StudyConfig
from autocompress.engine import second_sittings
from autocompress.engine.baseline import ensure_run, load_inputs
from autocompress.engine.events import Silent
from autocompress.engine.pareto import front
from autocompress.engine.run_folder import RunFolder, amend, read_baseline, read_candidates, record
from autocompress.engine.second_sittings import SecondSittings
from autocompress.engine.sittings import usual_baseline_ms
from autocompress.engine.study import search
from autocompress.plan import Plan, Precision, QuantizationSpec

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


SOME = Plan(quantization=QuantizationSpec(precisions={"layer": Precision.W4A8}))


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
    return Candidate(trial=trial, origin="sampled", state="complete", plan=SOME, measurement=measured)


def as_if_slowed(run: RunFolder, factor: float) -> Candidate:
    """Make the fastest member of the front one whose baseline took so much longer than it did."""
    members = [c for c in front(read_candidates(run)) if not c.plan.changes_nothing]
    member = min(members, key=lambda c: c.measurement.latency.ratio)
    found = member.measurement.latency
    slowed = found.model_copy(update={"baseline_ms": factor * found.baseline_ms, "ratio": found.ratio / factor})
    measured = member.measurement.model_copy(update={"latency": slowed})
    record(run, member.model_copy(update={"measurement": measured}))
    return member


def test_usual_is_the_lower_quartile_of_what_was_timed() -> None:
    timed = [candidate(n, measurement(ms)) for n, ms in enumerate([1.5, 1.4, None, 1.2, 1.3])]
    assert usual_baseline_ms(measurement(1.6), [*timed, candidate(9, None)]) == pytest.approx(1.3)
    assert usual_baseline_ms(measurement(1.6), []) == 1.6
    # whose sitting is the baseline's own
    uncompressed = candidate(5, measurement(1.0)).model_copy(update={"plan": Plan()})
    assert usual_baseline_ms(measurement(1.6), [uncompressed]) == 1.6


def test_a_slowed_member_of_the_front_is_timed_again(finished: tuple[RunFolder, StudyConfig], tmp_path: Path) -> None:
    run, config = finished
    again, watcher = copied(run, tmp_path / "run", config), Notes()
    before = as_if_slowed(again, SLOWED)
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
    "place", ["second_sittings:amend:1:before", "run_folder:write_json:3:before", "second_sittings:amend:1:after"]
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


def test_what_looks_slow_beside_a_slowed_baseline_is_timed_again_too(
    finished: tuple[RunFolder, StudyConfig], tmp_path: Path
) -> None:
    run, config = finished
    again = copied(run, tmp_path / "run", config)
    before = as_if_slowed(again, SLOWED)
    found = before.measurement.latency.model_copy(
        update={"baseline_ms": SLOWED * before.measurement.latency.baseline_ms, "ratio": 100.0}
    )
    wrong = Accuracy(correct=0, total=180, lost=170)
    measured = before.measurement.model_copy(update={"latency": found, "size_ratio": 2.0, "validation": wrong})
    record(again, before.model_copy(update={"measurement": measured}))
    assert before.trial not in {c.trial for c in front(read_candidates(again))}
    search(config, again.root, Silent())
    after = next(c for c in read_candidates(again) if c.trial == before.trial)
    assert after.measurement.latency.ratio < 10


@pytest.mark.parametrize("found_ms", [1.3, 1.6])
def test_the_faster_baseline_counts_whoever_was_first(
    found_ms: float, finished: tuple[RunFolder, StudyConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = finished
    again = copied(run, tmp_path / "run", config)
    stale = min(read_candidates(again), key=lambda c: c.plan.changes_nothing)
    session = SimpleNamespace(
        run=again, config=config, baseline=read_baseline(again), watcher=Silent(), bench=SimpleNamespace(data=None)
    )

    def amid_another(*_: object) -> Latency:
        amend(again, stale.trial, lambda c: with_baseline(c, 1.0))
        return latency(found_ms)

    monkeypatch.setattr(second_sittings, "measure_latency", amid_another)
    SecondSittings(session)._time_again(with_baseline(stale, 1.5), 0.9)
    (now,) = [c for c in read_candidates(again) if c.trial == stale.trial]
    assert now.measurement.latency.baseline_ms == 1.0


def with_baseline(c: Candidate, baseline_ms: float) -> Candidate:
    return c.model_copy(update={"measurement": c.measurement.model_copy(update={"latency": latency(baseline_ms)})})


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
    usual_ms = read_baseline(again).latency.baseline_ms
    for c in read_candidates(again):  # all alike, as on a quiet machine
        timed = c.measurement.latency.model_copy(update={"baseline_ms": usual_ms})
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
