"""The ladder at a small size: estimates, files, and what survives of both when processes die."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState
from safetensors.torch import load_file
from searches import (
    LADDER_STUDY,
    MODEL_SPACE,
    NETWORKS,
    copied,
    lasting,
    searching,
    short_sittings,
    start,
    wait_until,
    with_replaced,
    write_and_load,
)

from autocompress.candidate import Candidate, Origin, State
from autocompress.config import StudyConfig, load_study
from autocompress.engine.baseline import ensure_run, load_inputs, make_bench, restore_base
from autocompress.engine.estimating import estimate, estimate_reduced
from autocompress.engine.events import Silent
from autocompress.engine.guided import Guide
from autocompress.engine.ladder import Ladder, make_ladder
from autocompress.engine.next_training import enqueue_training
from autocompress.engine.pace import KNEES, trained_for_long
from autocompress.engine.pareto import front
from autocompress.engine.promotion import knee_points, leaves
from autocompress.engine.run_folder import RunFolder, read_analysis, read_candidates, read_facts, run_config
from autocompress.engine.session import open_study
from autocompress.engine.shared import Shared
from autocompress.engine.space import NamedPlan
from autocompress.engine.study import open_session, search
from autocompress.engine.tables import Tables
from autocompress.engine.trial import attempt
from autocompress.engine.warm_start import solver_plans
from autocompress.engine.workers import working
from autocompress.errors import ConfigError
from autocompress.pipeline import Bench, build_network, draft, finish, quantized_steps
from autocompress.plan import ArchitectureSpec, Plan, Precision, PruningSpec, QuantizationSpec
from autocompress.stage_clock import StageClock
from autocompress.weights import state_digest

MOST_ESTIMATES = 120
"""A study this small that has more goes on for ever."""


def study(folder: Path, trials: int, timeout: int | None = None, **replaced: str) -> StudyConfig:
    """The study above from a file, with parts of its text replaced."""
    text = LADDER_STUDY
    if timeout is not None:
        text = text.replace("trials = 8", f'timeout = "{timeout}s"')
    return write_and_load(folder, with_replaced(text, replaced), trials if timeout is None else None)


@pytest.fixture(autouse=True, scope="module")
def moments() -> Iterator[None]:
    with short_sittings():
        yield


class Bounded(Silent):
    """Remembers what it was told, and stops a study that does not end."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.progress: list[float] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finished(self, candidate: Candidate, candidates: Sequence[Candidate], progress: float) -> None:
        self.progress.append(progress)
        if len(candidates) > MOST_ESTIMATES:
            raise AssertionError(f"{len(candidates)} candidates and no end")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with its baseline and no trials; to be copied."""
    folder = tmp_path_factory.mktemp("prepared")
    return ensure_run(folder / "run", load_inputs(study(folder, 1)), Silent())


def files(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [c for c in candidates if c.state is State.COMPLETE]


def estimates(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [c for c in candidates if c.state is State.ESTIMATED]


def check_whole(run: RunFolder, config: StudyConfig) -> list[Candidate]:
    """Whatever happened on the way: each trial is told as it is recorded, and no parent climbed twice."""
    candidates = read_candidates(run)
    by_trial = {c.trial: c for c in candidates}
    climbed = [c.parent for c in candidates if c.origin in (Origin.PROMOTED, Origin.CONTINUED)]
    assert None not in climbed and len(set(climbed)) == len(climbed)
    assert all(c.parent in by_trial for c in candidates if c.parent is not None)
    trials = {trial.number: trial for trial in open_study(run, config, None).get_trials()}
    assert not {TrialState.RUNNING, TrialState.WAITING} & {trial.state for trial in trials.values()}
    for c in candidates:
        told = trials[c.trial].state
        assert told is (
            TrialState.FAIL
            if c.state is State.FAILED
            else TrialState.PRUNED
            if trials[c.trial].user_attrs.get("outside")
            else TrialState.COMPLETE
        )
        assert run.artifact(c.trial).is_file() is (c.state is State.COMPLETE)
        assert (c.measurement is None) or c.state is not State.ESTIMATED
        assert (c.estimate is not None) is (c.state is State.ESTIMATED)
    for folder in (run.root / "trials").iterdir():
        assert (folder / "candidate.json").is_file()
    names = [c.name for c in candidates if c.origin is Origin.ENQUEUED]
    assert len(set(names)) == len(names) >= 3  # one where there is one precision
    assert list(run.workers.iterdir()) == []
    return candidates


@pytest.fixture(scope="module")
def finished(prepared: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, StudyConfig, Bounded]:
    """A study of eight files, done."""
    folder = tmp_path_factory.mktemp("finished")
    config, watcher = study(folder, 8), Bounded()
    run = search(config, copied(prepared, folder / "run", config).root, watcher)
    return run, config, watcher


@functools.cache
def bench_of(root: Path) -> Bench:
    run = RunFolder(root)
    inputs = load_inputs(load_study(run.study_file))
    restore_base(run, inputs)
    return make_bench(run, inputs, read_facts(run))


Finished = tuple[RunFolder, StudyConfig, Bounded]


# A finished study


@pytest.mark.slow
def test_a_total_of_trials_counts_files_and_not_estimates(finished: Finished) -> None:
    run, config, _ = finished
    candidates = check_whole(run, config)
    assert len(candidates) - len(estimates(candidates)) == 8
    assert len(estimates(candidates)) >= 8


@pytest.mark.slow
def test_candidates_climb_from_estimates_to_files(finished: Finished) -> None:
    run, _, _ = finished
    candidates = read_candidates(run)
    by_trial = {c.trial: c for c in candidates}
    promoted = [c for c in candidates if c.origin is Origin.PROMOTED]
    assert promoted and {c.origin for c in candidates} >= {Origin.ENQUEUED, Origin.SAMPLED, Origin.PROMOTED}
    for c in promoted:
        parent = by_trial[c.parent]  # type: ignore[index]
        assert parent.state is State.ESTIMATED and parent.trial < c.trial
        assert c.plan.model_copy(update={"training": parent.plan.training, "seed": parent.plan.seed}) == parent.plan
    for c in (c for c in candidates if c.origin is Origin.CONTINUED):
        parent = by_trial[c.parent]  # type: ignore[index]
        trained = parent if parent.parent is None or parent.state is State.COMPLETE else by_trial[parent.parent]
        assert trained.state is State.COMPLETE  # a file, or what an estimate takes away from one
        assert c.total_steps == parent.total_steps + c.plan.training.steps
        settings = run_config(run).training
        before, rounded = (quantized_steps(settings, plan) for plan in (trained.plan, c.plan))
        assert before <= rounded < c.plan.training.steps


@pytest.mark.slow
def test_only_files_are_on_the_front(finished: Finished) -> None:
    run, _, _ = finished
    candidates = read_candidates(run)
    members = front(candidates)
    assert members and all(c.state is State.COMPLETE for c in members)
    assert {c.trial for c in members} == {c.trial for c in candidates if c.measurement and c.measurement.test}


@pytest.mark.slow
def test_a_promoted_file_starts_from_its_parents_weights_and_can_be_replayed(
    finished: Finished, tmp_path: Path
) -> None:
    run, _, _ = finished
    promoted = [c for c in read_candidates(run) if c.origin is Origin.PROMOTED and c.state is State.COMPLETE]
    for c in promoted:
        assert c.parent is not None
        assert c.plan.training.start == state_digest(load_file(run.checkpoint(c.parent)))
    c, path, clock = promoted[0], tmp_path / "model.onnx", StageClock()
    assert c.parent is not None
    bench = bench_of(run.root)
    unfinished = draft(bench, build_network(bench, c.plan), c.plan, path, clock)
    unfinished.network.load_state_dict(load_file(run.checkpoint(c.parent)))
    finish(bench, unfinished, c.plan, path, tmp_path / "weights.safetensors", clock)
    assert path.read_bytes() == run.artifact(c.trial).read_bytes()


@pytest.mark.slow
def test_a_plan_that_only_takes_away_begins_with_what_is_left_of_a_trained_file(
    finished: Finished, tmp_path: Path
) -> None:
    run, _, _ = finished
    shared = Shared(bench_of(run.root), run, 0)
    parent = next(c for c in read_candidates(run) if c.origin is Origin.PROMOTED and c.state is State.COMPLETE)
    trained = load_file(run.checkpoint(parent.trial))
    coarse = QuantizationSpec(precisions=dict.fromkeys(parent.plan.quantization.precisions, Precision.W4A8))
    same = shared.inherited(parent.plan.model_copy(update={"quantization": coarse}), parent)
    assert same is not None and all(torch.equal(same[name], value) for name, value in trained.items())
    kept = parent.plan.architecture.dropped_blocks
    block = next(b for r in read_analysis(run).runs for b in r.blocks if b not in kept)
    ratios = {name: r for name, r in parent.plan.pruning.ratios.items() if not name.startswith(f"{block}.")}
    architecture = ArchitectureSpec(dropped_blocks=tuple(sorted((*kept, block))))
    smaller = parent.plan.model_copy(update={"architecture": architecture, "pruning": PruningSpec(ratios=ratios)})
    left = shared.inherited(smaller, parent)
    assert left is not None and 0 < len(left) < len(trained)
    assert all(torch.equal(value, trained[name]) for name, value in left.items())
    # its score is its own: not that of shared weights
    assert shared.score(smaller, parent) != shared.score(smaller)
    start = tmp_path / "start.safetensors"
    assert shared.write_start(smaller, start, parent) == state_digest(load_file(start))
    larger = parent.plan.model_copy(update={"architecture": ArchitectureSpec(), "pruning": PruningSpec()})
    assert shared.inherited(larger, parent) is None


@contextmanager
def opened(run: RunFolder, config: StudyConfig) -> Iterator[Ladder]:
    """The ladder of a process at work on a run."""
    with working(run.workers) as worker:
        session = open_session(config, run, load_inputs(config), Silent(), None, worker, 0)
        ladder = make_ladder(session, read_analysis(run))
        assert isinstance(ladder, Ladder)
        session.suggests = ladder.guide
        yield ladder


@pytest.mark.slow
def test_what_was_trained_for_long_last_is_estimated_in_fewer_bits_once(finished: Finished, tmp_path: Path) -> None:
    run, _, _ = finished
    config = study(tmp_path, 9)
    place = copied(run, tmp_path / "run", config)
    last = max(trained_for_long(files(read_candidates(place))), key=lambda c: c.finished_s)
    most = QuantizationSpec(precisions=dict.fromkeys(last.plan.quantization.precisions, Precision.W8A8))
    whole = last.model_copy(update={"plan": last.plan.model_copy(update={"quantization": most})})
    with opened(place, config) as ladder:
        trial = estimate_reduced(ladder, [whole])
        assert trial is not None
        candidate = attempt(ladder.session, trial, partial(estimate, ladder))
        again = estimate_reduced(ladder, [whole, candidate])
        # the same bits of what this file was before it was trained on are no estimate of it
        older = candidate.model_copy(update={"parent": 0})
        once_more = estimate_reduced(ladder, [whole, older])
    assert (candidate.state, candidate.parent, candidate.origin) == (State.ESTIMATED, last.trial, Origin.MUTATED)
    plan = candidate.plan
    assert (plan.architecture, plan.pruning) == (whole.plan.architecture, whole.plan.pruning)
    assert Precision.W4A8 in plan.quantization.precisions.values()
    assert candidate.estimate is not None and candidate.estimate.drop_points is not None
    if again is not None:
        other = Plan.model_validate_json(again.user_attrs["plan"])
        assert other.quantization != plan.quantization
    assert once_more is not None
    assert Plan.model_validate_json(once_more.user_attrs["plan"]).decisions == plan.decisions


@pytest.mark.slow
def test_the_last_file_of_the_total_is_trained_by_one_process_only(finished: Finished, tmp_path: Path) -> None:
    run, _, _ = finished
    config = study(tmp_path, 9)
    place = copied(run, tmp_path / "run", config)
    with opened(place, config) as ladder:
        # both chose to train when eight files of nine were there
        assert enqueue_training(ladder, "train_on") is not None
        assert enqueue_training(ladder, "train_on") is None
        assert enqueue_training(ladder, "promote") is None


@pytest.mark.slow
def test_estimates_are_told_to_the_sampler_as_they_are_recorded(finished: Finished) -> None:
    run, config, _ = finished
    trials = {trial.number: trial for trial in open_study(run, config, None).get_trials()}
    found = [c for c in estimates(read_candidates(run)) if c.origin is Origin.SAMPLED]
    sampled = [c for c in found if not trials[c.trial].user_attrs.get("outside")]
    assert sampled
    for c in sampled:
        values = trials[c.trial].values
        assert trials[c.trial].params and c.estimate is not None and c.estimate.drop_points is not None
        assert values[0] == pytest.approx(min(c.estimate.drop_points, 20.0))


@pytest.mark.slow
def test_shared_weights_and_tables_are_kept_in_the_run(finished: Finished) -> None:
    run, _, watcher = finished
    tables = Tables.model_validate_json((run.root / "shared" / "tables.json").read_text())
    assert tables.layers and tables.groups
    assert (run.root / "shared" / "base.safetensors").is_file()
    assert not list((run.root / "shared").glob("*.partial"))
    assert sum("training the shared weights" in note for note in watcher.notes) >= 1
    assert watcher.progress == sorted(watcher.progress) and watcher.progress[-1] == 1.0


@pytest.mark.slow
def test_resuming_with_a_larger_total_adds_files_and_measures_nothing_again(finished: Finished, tmp_path: Path) -> None:
    run, _, _ = finished
    again = RunFolder(tmp_path / "run")
    shutil.copytree(run.root, again.root)
    before, config, watcher = read_candidates(again), study(tmp_path, 10), Bounded()
    search(config, again.root, watcher)
    after = check_whole(again, config)
    assert len(after) - len(estimates(after)) == 10
    assert [c.plan for c in after[: len(before)]] == [c.plan for c in before]
    assert not any("what each unit" in note for note in watcher.notes)
    nothing_left = Bounded()
    search(config, again.root, nothing_left)
    assert nothing_left.progress == []


@pytest.mark.slow
def test_a_total_of_seconds_is_kept(prepared: RunFolder, tmp_path: Path) -> None:
    config, watcher = study(tmp_path, 0, timeout=75), Bounded()
    run = copied(prepared, tmp_path / "run", config)
    began = time.monotonic()
    search(config, run.root, watcher)
    assert time.monotonic() - began < 3 * 75
    candidates = check_whole(run, config)
    assert estimates(candidates)
    assert {c.origin for c in files(candidates)} > {Origin.ENQUEUED}


# Studies that the rungs do not fit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trials", "replaced"),
    [
        pytest.param(4, {}, id="no progress left for shared weights"),
        pytest.param(6, {"steps = 60\nbatch": "steps = 7\nbatch"}, id="fewer steps than a promotion needs"),
        pytest.param(
            6,
            {
                'precision = ["w8a8", "w4a8"]': 'precision = ["w8a8"]',
                "sparsity = [0.0, 0.5]": "sparsity = [0.0, 0.5]\ndrop_blocks = false",
            },
            id="fewer plans than have to wait",
        ),
        pytest.param(6, {"[target]": "[limits]\nmax_size_ratio = 0.01\n[target]"}, id="limits that no plan meets"),
    ],
)
def test_a_total_of_trials_ends(trials: int, replaced: dict[str, str], prepared: RunFolder, tmp_path: Path) -> None:
    config = study(tmp_path, trials, **replaced)
    run = copied(prepared, tmp_path / "run", config)
    search(config, run.root, Bounded())
    check_whole(run, config)


FLAT = """
from torch import nn

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def test_a_model_with_nothing_to_prune_or_to_drop_uses_the_plain_engine_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text(FLAT)
    source = {f"{NETWORKS}:OneBlock": f"{tmp_path / 'flat.py'}:network"}
    config, watcher = study(tmp_path, 4, **source), Bounded()
    run = search(config, tmp_path / "run", watcher)
    lines = [note for note in watcher.notes if "plain engine" in note]
    assert len(lines) == 1 and "no prunable group" in lines[0] and "\n" not in lines[0]
    candidates = read_candidates(run)
    assert len(candidates) == 4
    assert not estimates(candidates)


@pytest.mark.slow
def test_the_last_part_of_the_files_trains_the_knees_of_the_front_before_it_on_each_once(tmp_path: Path) -> None:
    config = study(tmp_path, trials=8)
    run = search(config, tmp_path / "run", Bounded(), polish=True)
    made = sorted(files(check_whole(run, config)), key=lambda c: c.started_s)
    assert len(made) == 8
    before, polished = made[:6], made[6:]
    assert {c.origin for c in polished} == {Origin.CONTINUED} and len({c.parent for c in polished}) == 2
    knees = [c.trial for c in knee_points(before, KNEES) if c in leaves(before)][:2]
    assert [c.parent for c in polished][: len(knees)] == knees  # a front of few trained files has but one


def test_polishing_is_no_part_of_the_plain_engine(prepared: RunFolder, tmp_path: Path) -> None:
    config = study(tmp_path, 4, **{"seed = 3": 'seed = 3\nengine = "plain"'})
    with pytest.raises(ConfigError, match="--polish"):
        search(config, tmp_path / "run", Silent(), polish=True)
    assert not (tmp_path / "run").exists()


# Samplers, modes and families


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "mode"), [("nsga2", "pareto"), ("gp", "pareto"), ("random", "pareto"), ("tpe", "scalar")]
)
def test_every_sampler_and_mode_climbs(sampler: str, mode: str, prepared: RunFolder, tmp_path: Path) -> None:
    config = study(tmp_path, 6, **{"seed = 3": f'seed = 3\nsampler = "{sampler}"\nmode = "{mode}"'})
    run = copied(prepared, tmp_path / "run", config)
    search(config, run.root, Bounded())
    candidates = check_whole(run, config)
    assert Origin.PROMOTED in {c.origin for c in files(candidates)}
    trials = open_study(run, config, None).get_trials()
    found = [trials[c.trial] for c in estimates(candidates) if c.origin is Origin.SAMPLED]
    told = [trial for trial in found if not trial.user_attrs.get("outside")]
    assert told and all(len(trial.values) == (1 if mode == "scalar" else 3) for trial in told)


@pytest.mark.slow
def test_both_families_are_estimated(prepared: RunFolder, tmp_path: Path) -> None:
    config = study(tmp_path, 8, **{"sparsity = [0.0, 0.5]\n[target]": f"sparsity = [0.0, 0.5]{MODEL_SPACE}"})
    run = copied(prepared, tmp_path / "run", config)
    search(config, run.root, Bounded())
    candidates = check_whole(run, config)
    assert {c.plan.architecture.family for c in estimates(candidates)} == {"base", "space"}


@pytest.mark.slow
def test_members_that_cannot_be_built_end_no_search(prepared: RunFolder, tmp_path: Path) -> None:
    fragile = f'\nmodel_space = "{Path(__file__).parents[1] / "fragile_space.py"}:Fragile"'
    config = study(tmp_path, 8, **{"sparsity = [0.0, 0.5]\n[target]": f"sparsity = [0.0, 0.5]{fragile}\n[target]"})
    run = copied(prepared, tmp_path / "run", config)
    search(config, run.root, Bounded())
    candidates = check_whole(run, config)
    members = [c for c in candidates if c.plan.architecture.family == "space" and c.state is not State.FAILED]
    assert members
    assert all(c.plan.architecture.choices["first.kernel"] == 3 for c in members)


@pytest.mark.slow
def test_the_first_plans_of_a_family_are_looked_for_once(
    prepared: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study(tmp_path, 8, **{"sparsity = [0.0, 0.5]\n[target]": f"sparsity = [0.0, 0.5]{MODEL_SPACE}"})
    run = copied(prepared, tmp_path / "run", config)
    looked: list[str] = []

    def counted(guide: Guide, family: str, timeout_s: float | None) -> Iterator[NamedPlan]:
        looked.append(family)
        return solver_plans(guide, family, timeout_s)

    monkeypatch.setattr("autocompress.engine.ladder.solver_plans", counted)
    search(config, run.root, Bounded())
    search(config, run.root, Bounded())
    assert looked == ["base", "space"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_death_while_a_family_joins_does_not_keep_it_out(moment: str, prepared: RunFolder, tmp_path: Path) -> None:
    replaced = {"sparsity = [0.0, 0.5]\n[target]": f"sparsity = [0.0, 0.5]{MODEL_SPACE}"}
    config = study(tmp_path, 8, **replaced)
    run = copied(prepared, tmp_path / "run", config)
    process = start(tmp_path, run, 8, f"ladder:Ladder.join_:1:{moment}")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, errors
    search(config, run.root, Bounded())
    assert {c.plan.architecture.family for c in estimates(check_whole(run, config))} == {"base", "space"}


# Processes


def goes_on_to_the_end(run: RunFolder, config: StudyConfig, known: Sequence[Candidate]) -> None:
    search(config, run.root, Bounded())
    found = {c.trial: lasting(c) for c in check_whole(run, config)}
    assert len([c for c in found.values() if c.state is not State.ESTIMATED]) == config.study.trials
    assert all(found[c.trial] == lasting(c) for c in known)


PLACES = [
    "ladder:measure_tables:1:after", "ladder:write_json:1:before", "shared:train_:1:before", "shared:train_:1:after",
    "shared:Shared._keep:1:before", "shared:Shared._keep:1:after", "shared:write_json:1:after",
    "shared:Shared.score:2:after", "shared:Shared.write_start:1:after", "optuna:Study.enqueue_trial:5:after",
    "optuna:Study.ask:5:after", "trial:record:3:before", "trial:record:4:after", "trial:finish:2:after",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_death_between_any_two_steps_loses_nothing(place: str, prepared: RunFolder, tmp_path: Path) -> None:
    config = study(tmp_path, 6)
    run = copied(prepared, tmp_path / "run", config)
    process = start(tmp_path, run, 6, place)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, errors
    goes_on_to_the_end(run, config, read_candidates(run))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_search_killed_at_random_moments_loses_and_repeats_nothing(
    seed: int, prepared: RunFolder, tmp_path: Path
) -> None:
    config, draw = study(tmp_path, 7), random.Random(seed)
    run, known = copied(prepared, tmp_path / "run", config), dict[int, Candidate]()
    for _ in range(5):
        with searching(tmp_path, run, 7) as process:
            wait_until(lambda: any(run.workers.glob("*.lock")), process)
            time.sleep(draw.uniform(0.0, 6.0))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for c in read_candidates(run):
            assert known.setdefault(c.trial, lasting(c)) == lasting(c)
    goes_on_to_the_end(run, config, list(known.values()))


@pytest.mark.slow
def test_killed_while_shared_weights_are_trained_the_tables_and_records_stay(
    prepared: RunFolder, tmp_path: Path
) -> None:
    config = study(tmp_path, 6)
    run = copied(prepared, tmp_path / "run", config)
    with searching(tmp_path, run, 6, "shared:train_:2:before") as process:
        process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    tables = (run.root / "shared" / "tables.json").read_bytes()
    weights = (run.root / "shared" / "base.safetensors").read_bytes()
    assert weights  # of the cycle before
    goes_on_to_the_end(run, config, read_candidates(run))
    assert (run.root / "shared" / "tables.json").read_bytes() == tables


@pytest.mark.slow
def test_two_processes_do_the_total_between_them(prepared: RunFolder, tmp_path: Path) -> None:
    config = study(tmp_path, 9)
    run = copied(prepared, tmp_path / "run", config)
    with searching(tmp_path, run, 9) as first, searching(tmp_path, run, 9) as second:
        for process in (first, second):
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    candidates = check_whole(run, config)
    assert len(candidates) - len(estimates(candidates)) == 9
    assert any(a.trial < b.trial and b.started_s < a.finished_s for a in candidates for b in candidates)


@pytest.mark.slow
def test_a_database_can_keep_a_ladder(prepared: RunFolder, tmp_path: Path) -> None:
    config, storage = study(tmp_path, 5), f"sqlite:///{tmp_path / 'study.db'}"
    run = copied(prepared, tmp_path / "run", config)
    search(config, run.root, Bounded(), storage)
    assert len(optuna.get_all_study_names(storage)) == 1
    assert len(files(read_candidates(run))) == 5
