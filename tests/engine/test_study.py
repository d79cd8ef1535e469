"""The whole search at a small size, by the plain engine: what it promises about plans, files, interruptions and failures."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState, create_trial
from processors import EIGHT_BITS
from safetensors.torch import load_file
from searches import (
    HEAD,
    MODEL_SPACE,
    SPACE,
    copied,
    finish_in_own_process,
    lasting,
    searching,
    short_sittings,
    wait_until,
    with_replaced,
    write_and_load,
)

from autocompress.analysis import Analysis
from autocompress.candidate import Candidate, Measurement, Origin, State
from autocompress.config import StudyConfig, load_study
from autocompress.engine.baseline import SATURATES, ensure_run, load_inputs, make_bench, restore_base
from autocompress.engine.events import Silent
from autocompress.engine.pareto import front, objective_vector, scalar_objective
from autocompress.engine.run_folder import (
    RunFolder,
    read_analysis,
    read_baseline,
    read_candidates,
    read_facts,
    run_config,
)
from autocompress.engine.session import make_space, open_study
from autocompress.engine.study import _since_last_end_s, failure_summary, search
from autocompress.engine.tell import WORST_DROP_POINTS
from autocompress.errors import ModelError, RunError, StudyFailed, UserError
from autocompress.pipeline import build_network, draft, finish, quantized_steps
from autocompress.plan import Plan
from autocompress.stage_clock import StageClock
from autocompress.weights import state_digest, weights_digest

STUDY = f"""{HEAD.replace('name = "tiny"', 'name = "tiny"' + chr(10) + 'engine = "plain"')}
[training]
steps = 7
batch_size = 32
views = 2
continued_fraction = 0.3
continued_members = 2{SPACE}"""
OBVIOUS = ["uncompressed", "plain int8", f"uniform {EIGHT_BITS}, 50% pruned", "uniform w4a8, 50% pruned"]


def study(folder: Path, trials: int, **replaced: str) -> StudyConfig:
    """The study above from a file, with parts of its text replaced (``trials`` is a total of the run)."""
    return write_and_load(folder, with_replaced(STUDY, replaced), trials)


@pytest.fixture(autouse=True, scope="module")
def moments() -> Iterator[None]:
    with short_sittings():
        yield


class Notes(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def baseline(self, measurement: Measurement, analysis: Analysis) -> None:
        self.events.append(("baseline", analysis.layers))

    def started(self, trial: int, origin: Origin, what: str) -> None:
        self.events.append(("started", trial))

    def finished(self, candidate: Candidate, candidates: Sequence[Candidate], progress: float) -> None:
        self.events.append(("finished", (candidate.trial, len(candidates), progress)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with its baseline and no trials; to be copied."""
    folder = tmp_path_factory.mktemp("prepared")
    return ensure_run(folder / "run", load_inputs(study(folder, 1)), Silent())


@pytest.fixture(scope="module")
def finished(prepared: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, StudyConfig, Notes]:
    """A study of seven trials, done."""
    folder = tmp_path_factory.mktemp("finished")
    config, watcher = study(folder, 7), Notes()
    run = search(config, copied(prepared, folder / "run", config).root, watcher)
    return run, config, watcher


def optuna_trials(run: RunFolder, config: StudyConfig) -> list[optuna.trial.FrozenTrial]:
    return open_study(run, config, None).get_trials()


def check_whole(run: RunFolder, config: StudyConfig, enqueued: Sequence[str] = OBVIOUS) -> list[Candidate]:
    """Whatever happened on the way: all trials are there, each once, and nothing else is."""
    candidates = read_candidates(run)
    assert len(candidates) == config.study.trials
    names = [c.name for c in candidates if c.origin is Origin.ENQUEUED]
    assert sorted(names) == sorted(enqueued)
    plans = [c.plan.model_dump_json() for c in candidates if c.origin is not Origin.SAMPLED]
    assert len(set(plans)) == len(plans)
    parents = [c.parent for c in candidates if c.parent is not None]
    assert len(set(parents)) == len(parents)
    states = {trial.number: trial.state for trial in optuna_trials(run, config)}
    assert not {TrialState.RUNNING, TrialState.WAITING} & set(states.values())
    told = {number for number, state in states.items() if state in (TrialState.COMPLETE, TrialState.PRUNED)}
    assert told == {c.trial for c in candidates if c.state is not State.FAILED}
    assert {c.trial for c in candidates} <= states.keys()
    for folder in (run.root / "trials").iterdir():
        assert (folder / "candidate.json").is_file()
        assert not list(folder.glob("*.partial"))
    for c in candidates:
        assert run.artifact(c.trial).is_file() is (c.state is State.COMPLETE)
    assert list(run.workers.iterdir()) == []
    return candidates


# A finished study


def test_a_study_does_its_trials_and_leaves_nothing_else(finished: tuple[RunFolder, StudyConfig, Notes]) -> None:
    run, config, _ = finished
    candidates = check_whole(run, config)
    assert all(c.state is State.COMPLETE for c in candidates)
    assert sorted(entry.name for entry in run.trial(4).iterdir()) == [
        "candidate.json", "measurement.json", "model.onnx", "plan.json", "validation_answers.npy", "weights.safetensors",
    ]  # fmt: skip


def test_obvious_plans_come_first_and_are_marked(finished: tuple[RunFolder, StudyConfig, Notes]) -> None:
    run, _, _ = finished
    candidates = read_candidates(run)
    assert [c.name for c in candidates[:4]] == OBVIOUS
    assert [c.origin for c in candidates[:4]] == [Origin.ENQUEUED] * 4
    assert Origin.ENQUEUED not in [c.origin for c in candidates[4:]]
    assert {str(p) for p in candidates[1].plan.quantization.precisions.values()} == {str(EIGHT_BITS)}
    uncompressed = candidates[0].measurement
    assert uncompressed is not None and uncompressed.size_ratio == 1.0
    assert uncompressed.validation is not None and (uncompressed.validation.lost, uncompressed.validation.gained) == (
        0,
        0,
    )


@pytest.mark.parametrize(("facts", "eight"), [({SATURATES: True}, "w7a8"), ({SATURATES: False}, "w8a8"), ({}, "w8a8")])
def test_a_run_keeps_the_bits_that_it_began_with(
    facts: dict[str, bool], eight: str, prepared: RunFolder, tmp_path: Path
) -> None:
    config = study(tmp_path, 1)
    space = make_space(config, load_inputs(config), read_analysis(prepared), "d" * 64, facts)
    assert space.section.precision == (eight, "w4a8")
    assert space.saturates is (eight == "w7a8")


def test_the_front_equals_brute_force(finished: tuple[RunFolder, StudyConfig, Notes]) -> None:
    run, _, _ = finished
    candidates = read_candidates(run)
    vectors = {c.trial: objective_vector(c.measurement) for c in candidates if c.measurement is not None}

    def dominated(trial: int) -> bool:
        mine = vectors[trial]
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in vectors.values()
        )

    assert {c.trial for c in front(candidates)} == {trial for trial in vectors if not dominated(trial)}


def test_the_test_split_is_read_for_the_front_only(finished: tuple[RunFolder, StudyConfig, Notes]) -> None:
    run, _, _ = finished
    candidates = read_candidates(run)
    members = {c.trial for c in front(candidates)}
    assert {c.trial for c in candidates if c.measurement is not None and c.measurement.test is not None} == members
    assert read_baseline(run).test is not None


def test_figures_are_those_of_the_files(finished: tuple[RunFolder, StudyConfig, Notes], tmp_path: Path) -> None:
    run, config, _ = finished
    data = load_inputs(config).data
    (images,) = data.model_inputs(data.validation, np.arange(len(data.validation)))
    base_hits = np.load(run.baseline / "validation_answers.npy")
    for c in read_candidates(run):
        path, measured = run.artifact(c.trial), c.measurement
        assert measured is not None and measured.latency is not None and measured.validation is not None
        assert measured.size_bytes == path.stat().st_size
        assert measured.size_ratio == pytest.approx(path.stat().st_size / (run.baseline / "model.onnx").stat().st_size)
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        logits = session.run(None, {data.input_names[0]: images.numpy()})[0]
        hits = logits.argmax(axis=1) == data.validation.labels.numpy()
        # evaluated in batches, so a rounding may fall the other way
        assert abs(int(hits.sum()) - measured.validation.correct) <= 1
        assert measured.validation.drop_points == pytest.approx(100 * (base_hits.mean() - measured.validation.fraction))
        assert 0.0 < measured.latency.ratio_low <= measured.latency.ratio <= measured.latency.ratio_high
        assert measured.parity is not None


def test_front_members_are_trained_on_from_where_they_stopped(finished: tuple[RunFolder, StudyConfig, Notes]) -> None:
    run, _, _ = finished
    by_trial = {c.trial: c for c in read_candidates(run)}
    continued = [c for c in by_trial.values() if c.origin is Origin.CONTINUED]
    assert continued
    for c in continued:
        parent = by_trial[c.parent]
        assert c.total_steps == parent.total_steps + c.plan.training.steps > parent.total_steps
        assert c.plan.architecture == parent.plan.architecture
        assert c.plan.quantization == parent.plan.quantization
        assert c.plan.pruning == parent.plan.pruning
        assert run.artifact(c.trial).read_bytes() != run.artifact(parent.trial).read_bytes()
        network = build_network_of(run, parent.plan)
        network.load_state_dict(load_file(run.checkpoint(parent.trial)))
        assert c.plan.training.start == weights_digest(network)
        assert c.plan.training.start != state_digest(load_file(run.checkpoint(c.trial)))  # which learned something
        settings = run_config(run).training
        before, rounded = (quantized_steps(settings, plan) for plan in (parent.plan, c.plan))
        assert before <= rounded < c.plan.training.steps


@functools.cache
def bench_of(root: Path) -> Any:
    run = RunFolder(root)
    inputs = load_inputs(load_study(run.study_file))
    restore_base(run, inputs)
    return make_bench(run, inputs, read_facts(run))


def build_network_of(run: RunFolder, plan: Plan) -> Any:
    return build_network(bench_of(run.root), plan)


def test_a_trial_can_be_replayed_from_its_plan_file(
    finished: tuple[RunFolder, StudyConfig, Notes], tmp_path: Path
) -> None:
    run, _, _ = finished
    trial = next(c.trial for c in read_candidates(run) if c.origin is Origin.SAMPLED)
    plan = Plan.model_validate_json((run.trial(trial) / "plan.json").read_text())
    path, clock = tmp_path / "model.onnx", StageClock()
    unfinished = draft(bench_of(run.root), build_network_of(run, plan), plan, path, clock)
    finish(bench_of(run.root), unfinished, plan, path, tmp_path / "weights.safetensors", clock)
    assert path.read_bytes() == run.artifact(trial).read_bytes()


def was_timed_again(candidate: Candidate, watcher: Notes) -> bool:
    """Whether the record has another latency than the one that Optuna was told."""
    return any(note.startswith(f"timed trial {candidate.trial} again") for note in watcher.notes)


def test_optuna_was_told_what_is_recorded(finished: tuple[RunFolder, StudyConfig, Notes]) -> None:
    run, config, watcher = finished
    trials = {trial.number: trial for trial in optuna_trials(run, config)}
    for c in read_candidates(run):
        trial = trials[c.trial]
        if c.name in OBVIOUS[:2]:
            assert trial.state is TrialState.PRUNED  # outside of the space of the samplers
        else:
            drop, size, latency = objective_vector(c.measurement)
            if was_timed_again(c, watcher):
                latency = trial.values[2]  # it keeps the figure that it was told
            assert trial.values == pytest.approx([min(drop, WORST_DROP_POINTS), size, latency])
            assert trial.params


def test_whoever_watches_is_told_everything_in_order(finished: tuple[RunFolder, StudyConfig, Notes]) -> None:
    _, _, watcher = finished
    kinds = [kind for kind, _ in watcher.events]
    assert kinds == ["baseline", *["started", "finished"] * 7]
    ends = [what for kind, what in watcher.events if kind == "finished"]
    assert [(trial, count) for trial, count, _ in ends] == [(n, n + 1) for n in range(7)]
    progress = [share for _, _, share in ends]
    assert progress == pytest.approx([(n + 1) / 7 for n in range(7)])


def test_a_record_says_when_and_where_its_time_went(finished: tuple[RunFolder, StudyConfig, Notes]) -> None:
    run, _, _ = finished
    candidates = read_candidates(run)
    for before, after in itertools.pairwise(candidates):
        assert before.started_s < before.finished_s <= after.started_s
    for c in candidates:
        stages = (
            {"plan"} if c.plan.changes_nothing else {"plan", "build", "export", "train", "parity", "evaluate", "time"}
        )
        assert c.stage_seconds.keys() >= stages
        assert sum(c.stage_seconds.values()) <= c.finished_s - c.started_s + 0.01


# Resuming


def test_resuming_with_a_larger_total_adds_the_difference(
    finished: tuple[RunFolder, StudyConfig, Notes], tmp_path: Path
) -> None:
    run, _, _ = finished
    again = RunFolder(tmp_path / "run")
    shutil.copytree(run.root, again.root)
    before, config, watcher = read_candidates(again), study(tmp_path, 9), Notes()
    search(config, again.root, watcher)
    after = check_whole(again, config)
    assert [lasting(c) for c in after[:7]] == [lasting(c) for c in before]
    assert [what for kind, what in watcher.events if kind == "started"] == [7, 8]
    assert after[7].started_s >= before[6].finished_s
    sampled = [c.plan.model_copy(update={"seed": 0}).model_dump_json() for c in after if c.origin is Origin.SAMPLED]
    assert len(set(sampled)) == len(sampled)
    nothing_left = Notes()
    search(config, again.root, nothing_left)
    assert [kind for kind, _ in nothing_left.events] == ["baseline"]
    assert [lasting(c) for c in read_candidates(again)] == [lasting(c) for c in after]


def test_a_run_of_another_study_is_not_touched(finished: tuple[RunFolder, StudyConfig, Notes], tmp_path: Path) -> None:
    run, _, _ = finished
    files = sorted(run.root.rglob("*"))
    with pytest.raises(RunError, match=r"space\.sparsity"):
        search(study(tmp_path, 9, **{"[0.0, 0.5]": "[0.0, 0.25]"}), run.root, Silent())
    assert sorted(run.root.rglob("*")) == files


def test_a_run_keeps_the_storage_it_began_with(finished: tuple[RunFolder, StudyConfig, Notes], tmp_path: Path) -> None:
    run, config, _ = finished
    before = read_candidates(run)
    with pytest.raises(RunError, match="--storage"):
        search(config, run.root, Silent(), f"sqlite:///{tmp_path / 'other.db'}")
    assert read_candidates(run) == before
    assert list(run.workers.iterdir()) == []


class Interrupts(Silent):
    """Presses Ctrl-C when a trial begins."""

    def __init__(self, trial: int) -> None:
        self.trial = trial

    def started(self, trial: int, origin: Origin, what: str) -> None:
        if trial == self.trial:
            raise KeyboardInterrupt


def test_an_interrupted_trial_is_put_back(prepared: RunFolder, tmp_path: Path) -> None:
    config = study(tmp_path, 4)
    run = copied(prepared, tmp_path / "run", config)
    with pytest.raises(KeyboardInterrupt):
        search(config, run.root, Interrupts(1))
    assert [c.name for c in read_candidates(run)] == OBVIOUS[:1]
    assert [entry.name for entry in (run.root / "trials").iterdir()] == ["0000"]
    assert list(run.workers.iterdir()) == []
    search(config, run.root, Silent())
    candidates = check_whole(run, config)
    assert candidates[0].name == OBVIOUS[0]


# Processes


def test_two_processes_do_the_total_between_them(prepared: RunFolder, tmp_path: Path) -> None:
    config = study(tmp_path, 6)
    run = copied(prepared, tmp_path / "run", config)
    with searching(tmp_path, run, 6) as first, searching(tmp_path, run, 6) as second:
        for process in (first, second):
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    candidates = check_whole(run, config)
    overlapping = [
        (a.trial, b.trial) for a in candidates for b in candidates if a.trial < b.trial and b.started_s < a.finished_s
    ]
    assert overlapping  # they did work at the same time


def kill_repeatedly(run: RunFolder, folder: Path, config: StudyConfig, kills: int, seed: int) -> None:
    """SIGKILL at random moments within the first trials of each session, then a session to the end."""
    draw, known = random.Random(seed), {}
    for _ in range(kills):
        done = len(read_candidates(run)) if run.root.exists() else 0
        with searching(folder, run, config.study.trials or 0) as process:
            wait_until(
                lambda done=done: (run.root / "trials").is_dir() and len(list((run.root / "trials").iterdir())) > done,
                process,
            )
            time.sleep(draw.uniform(0.0, 1.5))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for c in read_candidates(run):
            assert known.setdefault(c.trial, lasting(c)) == lasting(c)
    assert finish_in_own_process(folder, run, config.study.trials or 0) == 0
    candidates = check_whole(run, config)
    found = {c.trial: lasting(c) for c in candidates}
    assert all(found[trial] == c for trial, c in known.items())


def test_a_killed_search_goes_on_where_it_stopped(prepared: RunFolder, tmp_path: Path) -> None:
    config = study(tmp_path, 4)
    kill_repeatedly(copied(prepared, tmp_path / "run", config), tmp_path, config, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_search_killed_many_times_loses_and_repeats_nothing(seed: int, prepared: RunFolder, tmp_path: Path) -> None:
    config = study(tmp_path, 9)
    kill_repeatedly(copied(prepared, tmp_path / "run", config), tmp_path, config, kills=6, seed=seed)


@pytest.mark.slow
def test_killed_while_the_baseline_is_made_there_is_no_run(tmp_path: Path) -> None:
    config = study(tmp_path, 1)
    run, preparing = RunFolder(tmp_path / "runs" / "run"), tmp_path / "runs" / ".run.preparing"
    with searching(tmp_path, run, 1) as process:
        wait_until(lambda: (preparing / "baseline" / "weights.safetensors").exists(), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert preparing.is_dir() and not run.root.exists()
    search(config, run.root, Silent())
    assert len(read_candidates(run)) == 1
    assert not preparing.exists()


PLACES = [
    "optuna:Study.enqueue_trial:2:after", "optuna:Study.ask:2:after", "trial:draft:3:after", "trial:finish:2:after",
    "trial:finish:4:after", "trial:record:1:before", "trial:record:3:after", "trial:tell:2:before",
    "study:measure_test:1:before",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_death_between_any_two_steps_loses_nothing(place: str, prepared: RunFolder, tmp_path: Path) -> None:
    config = study(tmp_path, 5)
    run = copied(prepared, tmp_path / "run", config)
    assert finish_in_own_process(tmp_path, run, 5, place) == -signal.SIGKILL
    known = read_candidates(run)
    # and a second death while the first is being settled
    second = finish_in_own_process(tmp_path, run, 5, "recovery:_put_back:1:after")
    assert second == 0 or place not in ("trial:record:3:after", "trial:tell:2:before")
    search(config, run.root, Silent())
    found = {c.trial: lasting(c) for c in check_whole(run, config)}
    assert all(found[c.trial] == lasting(c) for c in known)


# Samplers, modes and families


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pareto", "scalar"])
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_every_sampler_works_in_every_mode(sampler: str, mode: str, prepared: RunFolder, tmp_path: Path) -> None:
    trials = 13 if sampler in ("gp", "tpe") else 9
    config = study(tmp_path, trials, **{"seed = 3": f'seed = 3\nsampler = "{sampler}"\nmode = "{mode}"'})
    run = copied(prepared, tmp_path / "run", config)
    search(config, run.root, Silent())
    assert {c.origin for c in check_whole(run, config)} == {Origin.ENQUEUED, Origin.SAMPLED, Origin.CONTINUED}


def test_scalar_mode_maximises_h_and_limits_are_constraints(prepared: RunFolder, tmp_path: Path) -> None:
    config = study(
        tmp_path, 6,
        **{
            "seed = 3": 'seed = 6\nsampler = "nsga2"\nmode = "scalar"', "continued_fraction = 0.3": "continued_fraction = 0.0",
            "[target]": "[limits]\nmax_size_bytes = 2900\nmax_accuracy_drop = 90\n[target]",
        },
    )  # fmt: skip
    run, watcher = copied(prepared, tmp_path / "run", config), Notes()
    search(config, run.root, watcher)
    candidates, trials = check_whole(run, config), optuna_trials(run, config)
    over = [c for c in candidates if c.state is State.OVER_LIMIT]
    assert Origin.SAMPLED in [c.origin for c in over]
    # one is known to be too large by its weights alone, another by its file
    assert {c.measurement is None for c in over} == {True, False}
    assert Origin.SAMPLED in [c.origin for c in candidates if c.feasible]
    assert all(c.plan.training.steps > 0 and c.total_steps == 0 for c in over)
    # what needs no training is measured even where it breaks a limit, and is then no member of the front
    assert all(c.state is State.COMPLETE and not c.feasible for c in candidates[:2])
    for c in candidates:
        trial = trials[c.trial]
        if c.state is State.OVER_LIMIT:
            assert "max_size_bytes" in c.reason and c.violations["max_size_bytes"] > 0
            assert trial.values == [-config.objective.beta]
        elif trial.state is TrialState.COMPLETE:
            assert c.measurement is not None
            if not was_timed_again(c, watcher):
                assert trial.values == pytest.approx([scalar_objective(c.measurement, config.objective)])
            assert c.violations.keys() == {"max_size_bytes", "max_accuracy_drop"}
    feasible = [c for c in candidates if c.feasible and c.measurement is not None]
    assert {c.trial for c in front(candidates)} <= {c.trial for c in feasible}


@pytest.mark.slow
def test_two_families_share_a_study(prepared: RunFolder, tmp_path: Path) -> None:
    config = study(tmp_path, 12, **{"sparsity = [0.0, 0.5]\n[target]": f"sparsity = [0.0, 0.5]{MODEL_SPACE}"})
    run = copied(prepared, tmp_path / "run", config)
    search(config, run.root, Silent())
    candidates = check_whole(run, config)
    families = {c.plan.architecture.family for c in candidates if c.origin is Origin.SAMPLED}
    assert families == {"base", "space"}
    for c in candidates:
        steps = 14 if c.plan.architecture.family == "space" else 7
        assert c.plan.training.steps in (0, steps, 3 * steps, 9 * steps)


@pytest.mark.slow
def test_a_database_can_keep_several_runs(prepared: RunFolder, tmp_path: Path) -> None:
    config, storage = study(tmp_path, 5), f"sqlite:///{tmp_path / 'study.db'}"
    for name in ("one", "two"):
        run = copied(prepared, tmp_path / name, config)
        search(config, run.root, Silent(), storage)
        assert len(read_candidates(run)) == 5
        assert not run.journal.exists()
        trials = open_study(run, config, storage).get_trials()
        assert [trial.state for trial in trials].count(TrialState.COMPLETE) == 3
    assert len(optuna.get_all_study_names(storage)) == 2


# Failures


@pytest.mark.parametrize(
    "storage", ["nonsense", "sqlite:////nowhere/at/all/study.db", "mysql://nobody@localhost:1/none"]
)
def test_a_storage_that_cannot_be_reached_is_an_error_before_anything_is_made(storage: str, tmp_path: Path) -> None:
    config = study(tmp_path, 1)
    with pytest.raises(RunError, match="SQLAlchemy") as error:
        search(config, tmp_path / "runs" / "run", Silent(), storage)
    assert "\n" not in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.toml"]


def test_a_model_that_cannot_be_exported_is_an_error_and_leaves_no_folder(tmp_path: Path) -> None:
    config = study(tmp_path, 3, OneBlock="NeedsBessel")
    with pytest.raises(UserError, match="export") as error:
        search(config, tmp_path / "runs" / "run", Silent())
    assert isinstance(error.value, ModelError) and "\n" not in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.toml"]


def test_a_base_no_better_than_chance_is_an_error_and_leaves_no_folder(tmp_path: Path) -> None:
    config = study(tmp_path, 3, **{"steps = 60": "steps = 1\nlearning_rate = 1e-9"})
    with pytest.raises(ModelError, match="chance"):
        search(config, tmp_path / "runs" / "run", Silent())
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.toml"]


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(RunError, match="--out"):
        search(study(tmp_path, 1), tmp_path / "mine", Silent())
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_study_in_which_every_trial_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    monkeypatch.setenv("FAIL_ONCE_THIS_EXISTS", str(run.study_file))
    config = study(
        tmp_path,
        7,
        **{"OneBlock": "FailsOnceMeasured", "[0.0, 0.5]": "[0.5]", "\n[target]": "\ndrop_blocks = false\n[target]"},
    )
    with pytest.raises(StudyFailed) as error:
        search(config, run.root, Silent())
    text = str(error.value)
    assert "of 6 trials none was" in text
    # plain int8 is whole, all others are pruned
    assert (
        text.index("5 x ModelError")
        < text.index("a pruned network is refused")
        < text.index("1 x ModelError")
        < text.index("a whole network")
    )
    whole, *candidates = check_whole(run, config, OBVIOUS)
    assert whole.state is State.COMPLETE and whole.plan.changes_nothing
    assert all(c.state is State.FAILED and c.measurement is None and "refused" in c.reason for c in candidates)
    assert {trial.state for trial in optuna_trials(run, config)[1:]} == {TrialState.FAIL}


def test_the_uncompressed_file_is_the_baselines_and_is_measured_once(
    finished: tuple[RunFolder, StudyConfig, Notes],
) -> None:
    run, _, _ = finished
    (whole,) = [c for c in read_candidates(run) if c.plan.changes_nothing]
    baseline = read_baseline(run)
    assert whole.name == "uncompressed"
    assert whole.measurement is not None and whole.measurement.latency == baseline.latency
    assert run.artifact(whole.trial).read_bytes() == (run.baseline / "model.onnx").read_bytes()
    assert whole.measurement.sha256 == hashlib.sha256(run.artifact(whole.trial).read_bytes()).hexdigest()
    base = load_file(run.baseline / "weights.safetensors")
    kept = load_file(run.checkpoint(whole.trial))
    assert kept.keys() == base.keys() and all(torch.equal(kept[name], value) for name, value in base.items())


def test_what_joins_late_counts_what_others_work_on() -> None:
    def trial(began_ago_s: float, ended_ago_s: float | None) -> FrozenTrial:
        now = datetime.now()
        made = create_trial(value=0.0) if ended_ago_s is not None else create_trial(state=TrialState.RUNNING)
        made.datetime_start = now - timedelta(seconds=began_ago_s)
        made.datetime_complete = None if ended_ago_s is None else now - timedelta(seconds=ended_ago_s)
        return made

    assert _since_last_end_s([]) == 0.0
    assert _since_last_end_s([create_trial(state=TrialState.WAITING)]) == 0.0
    assert _since_last_end_s([trial(70, None), trial(20, None)]) == pytest.approx(70, abs=1)
    assert _since_last_end_s([trial(90, 60), trial(60, 50), trial(50, None)]) == pytest.approx(50, abs=1)


def test_reasons_are_counted_and_ranked() -> None:
    def failed(trial: int, reason: str) -> Candidate:
        return Candidate(trial=trial, origin=Origin.SAMPLED, state=State.FAILED, reason=reason, plan=Plan())

    reasons = ["export: a", "memory: b", "memory: b", "parity: c", "memory: b", "parity: c"]
    estimate = failed(9, "").model_copy(update={"state": State.ESTIMATED})  # of which no file was to be made
    text = failure_summary([estimate, *(failed(n, reason) for n, reason in enumerate(reasons))])
    assert "of 6 trials none was: 3 x memory: b; 2 x parity: c; 1 x export: a; `autocompress check`" in text
    assert "none was begun" in failure_summary([])


def test_records_are_plain_json(finished: tuple[RunFolder, StudyConfig, Notes]) -> None:
    run, _, _ = finished
    for path in [*run.root.rglob("*.json")]:
        json.loads(path.read_text())
