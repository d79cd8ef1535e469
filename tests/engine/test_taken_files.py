"""A run begins with the files of an earlier one beside it, measured anew, and trains on from them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from report.made_up_run import base_plan, measurement
from safetensors.torch import load_file, save_file
from searches import LADDER_STUDY, Notes, finish_in_own_process, lasting, short_sittings, write_and_load

from autocompress.candidate import Candidate, Origin, State
from autocompress.config import LimitsSection, StudyConfig
from autocompress.deploy.card import sha256
from autocompress.engine.baseline import ensure_run, load_inputs
from autocompress.engine.events import Silent
from autocompress.engine.promotion import knee_points
from autocompress.engine.run_folder import RunFolder, read_candidates, record, write_json
from autocompress.engine.study import search
from autocompress.engine.taken_files import FILES, take_files_, taken_folder
from autocompress.plan import Plan, Precision
from autocompress.weights import state_digest


@pytest.fixture(autouse=True, scope="module")
def moments() -> Iterator[None]:
    with short_sittings():
        yield


# What is copied


def made_up(root: Path, trials: int) -> RunFolder:
    """A run whose files are all on its front: the greater a trial's number, the smaller, the faster and the worse."""
    run, generator = RunFolder(root), np.random.default_rng(0)
    run.baseline.mkdir(parents=True)
    write_json(run.baseline / "measurement.json", measurement(1.0, 1.0, 0.0))
    for trial in range(trials):
        folder = run.trial(trial)
        folder.mkdir(parents=True)
        run.artifact(trial).write_bytes(b"file %d" % trial)
        save_file({"w": torch.full((2,), float(trial))}, run.checkpoint(trial))
        figures = measurement(0.3 / (trial + 1), 0.4 / (trial + 1), 0.2 * (trial + 1))
        figures = figures.model_copy(update={"sha256": sha256(run.artifact(trial))})
        record(run, Candidate(
            trial=trial, origin=Origin.CONTINUED, state=State.COMPLETE, total_steps=700,
            plan=base_plan(generator, 1, 0.5, [Precision.W4A8]), measurement=figures,
        ))  # fmt: skip
    return run


def same(plan: Plan) -> Plan:
    return plan


def test_the_files_that_the_earlier_front_needs_most_are_copied_with_weights_and_records(tmp_path: Path) -> None:
    own, other = RunFolder(tmp_path / "own"), made_up(tmp_path / "other", FILES + 3)
    take_files_(own, other, LimitsSection(), same)
    copies = taken_folder(own)
    expected = {c.trial for c in knee_points(read_candidates(other), FILES)}
    found = read_candidates(copies)
    assert {c.trial for c in found} == expected and len(expected) == FILES
    for c in found:
        assert c.name == f"trial {c.trial} of other"
        assert copies.artifact(c.trial).read_bytes() == b"file %d" % c.trial
        assert float(load_file(copies.checkpoint(c.trial))["w"][0]) == c.trial
    take_files_(own, other, LimitsSection(), same)  # a death in between is made up for
    assert read_candidates(taken_folder(own)) == found


@pytest.mark.parametrize("damage", ["changed", "gone", "without weights", "other bits"])
def test_a_file_that_is_not_as_it_was_measured_is_left(damage: str, tmp_path: Path) -> None:
    own, other = RunFolder(tmp_path / "own"), made_up(tmp_path / "other", 3)
    if damage == "changed":
        other.artifact(1).write_bytes(b"something else")
    if damage == "gone":
        other.artifact(1).unlink()
    if damage == "without weights":
        other.checkpoint(1).unlink()
    inexact = read_candidates(other)[1].plan if damage == "other bits" else None
    take_files_(own, other, LimitsSection(), lambda plan: Plan() if plan == inexact else plan)
    assert [c.trial for c in read_candidates(taken_folder(own))] == [0, 2]


def test_what_is_best_is_judged_by_the_limits_of_the_run_that_begins(tmp_path: Path) -> None:
    own, other = RunFolder(tmp_path / "own"), made_up(tmp_path / "other", 5)
    for c in read_candidates(other):  # by its own limits the earlier run has one file on its front
        record(other, c.model_copy(update={"violations": {"min_speedup": 1.0 if c.trial else -1.0}}))
    take_files_(own, other, LimitsSection(min_speedup=5.0, max_accuracy_drop=0.9), same)
    assert [c.trial for c in read_candidates(taken_folder(own))] == [1, 2, 3]


# Whole searches


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, StudyConfig]:
    folder = tmp_path_factory.mktemp("earlier")
    config = write_and_load(folder, LADDER_STUDY, 8)
    return search(config, folder / "runs" / "earlier", Silent()), config


def beside(earlier: RunFolder, runs: Path, config: StudyConfig) -> RunFolder:
    """A run without trials beside a copy of the earlier one, and with its base, which is kept beside them."""
    shutil.copytree(earlier.root.parent, runs)
    return ensure_run(runs / "own", load_inputs(config), Silent())


@pytest.mark.slow
def test_a_damaged_record_of_another_run_ends_no_search(earlier: tuple[RunFolder, StudyConfig], tmp_path: Path) -> None:
    other, config = earlier
    run = beside(other, tmp_path / "runs", config)
    (tmp_path / "runs" / "earlier" / "trials" / "0001" / "candidate.json").write_text("{")
    watcher = Notes()
    candidates = read_candidates(search(config, run.root, watcher))
    assert any(note.startswith("going on without the rest of it: a trial's record") for note in watcher.notes)
    assert not any("plain engine" in note for note in watcher.notes)
    assert len([c for c in candidates if c.state is not State.ESTIMATED]) == config.study.trials


@pytest.mark.slow
def test_a_run_beside_another_has_its_files_first_and_trains_on_from_them(
    earlier: tuple[RunFolder, StudyConfig], tmp_path: Path
) -> None:
    other, config = earlier
    run = beside(other, tmp_path / "runs", config)
    taken_of = knee_points(read_candidates(other), FILES)
    candidates = read_candidates(search(config, run.root, Silent()))
    own_files = [c for c in candidates if c.state is not State.ESTIMATED and c.origin is not Origin.TAKEN]
    assert len(own_files) == config.study.trials
    taken = {c.name: c for c in candidates if c.origin is Origin.TAKEN}
    assert taken_of and set(taken) == {f"trial {c.trial} of earlier" for c in taken_of}
    for c in taken_of:
        own = taken[f"trial {c.trial} of earlier"]
        assert own.state is State.COMPLETE and own.plan == c.plan and own.total_steps == c.total_steps
        assert own.measurement is not None and c.measurement is not None
        assert own.measurement.sha256 == c.measurement.sha256 == sha256(run.artifact(own.trial))
        assert own.measurement.validation == c.measurement.validation
        assert own.measurement.latency != c.measurement.latency  # a sitting of its own
    trained = [c for c in candidates if c.origin in (Origin.PROMOTED, Origin.CONTINUED)]
    assert min(c.trial for c in trained) > max(c.trial for c in taken.values())
    heirs = [c for c in trained if c.parent in {t.trial for t in taken.values()}]
    assert heirs
    for c in heirs:
        assert c.parent is not None
        assert c.plan.training.start == state_digest(load_file(run.checkpoint(c.parent)))
        assert c.total_steps > next(t.total_steps for t in taken.values() if t.trial == c.parent)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        "ladder:take_over_:1:before",
        "study:enqueue_taken:1:after",
        "taken_files:measure_finished:2:after",
    ],
)
def test_a_death_while_files_are_taken_neither_loses_nor_repeats_one(
    place: str, earlier: tuple[RunFolder, StudyConfig], tmp_path: Path
) -> None:
    other, _ = earlier
    config = write_and_load(tmp_path, LADDER_STUDY, 8)
    run = beside(other, tmp_path / "runs", config)
    assert finish_in_own_process(tmp_path, run, 8, place) < 0
    before = {c.trial: c for c in read_candidates(run)}
    assert finish_in_own_process(tmp_path, run, 8) == 0
    candidates = read_candidates(run)
    taken = [c.name for c in candidates if c.origin is Origin.TAKEN]
    assert sorted(taken) == sorted(f"trial {c.trial} of earlier" for c in knee_points(read_candidates(other), FILES))
    kept = {c.trial: c for c in candidates if c.trial in before}
    assert {k: lasting(c) for k, c in kept.items()} == {k: lasting(c) for k, c in before.items()}
