"""Engines compared by hypervolume over time: the figures on made-up files, and the recipe at a small size."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from processors import EIGHT_BITS
from searches import HEAD, lasting

from autocompress.candidate import Accuracy, Candidate, Latency, Measurement, Origin, State
from autocompress.config import LimitsSection, StudyConfig, load_study
from autocompress.deploy import timing
from autocompress.engine import baseline, trial
from autocompress.engine.events import Silent
from autocompress.engine.pareto import REFERENCE_POINT, front
from autocompress.engine.run_folder import RunFolder, read_baseline, read_candidates
from autocompress.engine.session import Session
from autocompress.pipeline import Bench
from autocompress.plan import Plan, Precision, TrainingSpec
from benchmarks import efficiency_figures as figures_of
from benchmarks import search_efficiency as bench
from benchmarks import sequential_recipe
from benchmarks.efficiency_figures import EngineRun, MeasuredFile, Sitting, TestScore
from benchmarks.efficiency_report import HAND_SOURCE, report, report_page
from benchmarks.sequential_recipe import FEW, limits_before_bits, sequential_search

BASELINE_BYTES, BASELINE_MS = 3_400_000, 1.3


def made_file(trial: int, drop: float, size_ratio: float, latency_ratio: float, **changes: Any) -> MeasuredFile:
    """A file that took 100 seconds, after the ones before it."""
    figures: dict[str, Any] = {
        "trial": trial, "origin": Origin.SAMPLED, "root_origin": Origin.SAMPLED, "name": "", "family": "base",
        "steps": 300, "total_steps": 300, "finished_s": 100.0 * (trial + 1), "drop_points": drop,
        "size_bytes": round(size_ratio * BASELINE_BYTES), "size_ratio": size_ratio,
        "latency_ms": latency_ratio * BASELINE_MS, "latency_ratio": latency_ratio, "noisy": False,
        "within_limits": True, "sha256": f"{trial:064d}",
    }  # fmt: skip
    return MeasuredFile(**figures | changes)


def made_run(engine: str, seed: int, files: Sequence[MeasuredFile]) -> EngineRun:
    """A piece of 20 minutes."""
    sitting = Sitting(began="2026-11-22T10:00:00+00:00", command="run", commit="abc", load=0.5, ended="", wall_s=1190.0)
    return EngineRun(
        engine=engine, seed=seed, minutes=20.0, steps=300, limits={"min_speedup": 4.0},
        baseline=made_file(-1, 0.0, 1.0, 1.0, finished_s=0.0), baseline_accuracy=0.8846, states={"complete": len(files)},
        files=tuple(files), facts={"cpu": "a processor", "cores": 2, "training_threads": 1}, sittings=(sitting,),
    )  # fmt: skip


def random_files(seed: int, count: int) -> list[MeasuredFile]:
    """Files some of which lie beyond the reference point."""
    generator = np.random.default_rng(seed)
    return [
        made_file(i, *generator.uniform([-0.5, 0.05, 0.1], [4.0, 1.2, 1.2]), finished_s=float(generator.uniform(0, 1200)))
        for i in range(count)
    ]  # fmt: skip


def brute_force_volume(files: Sequence[MeasuredFile]) -> float:
    """Sum of all cells of the grid through the files' coordinates that some file dominates."""
    vectors = [file.vector for file in files]
    axes = [
        sorted({*(v[k] for v in vectors if v[k] < REFERENCE_POINT[k]), REFERENCE_POINT[k]}) for k in range(3)
    ]  # fmt: skip
    volume = 0.0
    for cell in itertools.product(*(itertools.pairwise(axis) for axis in axes)):
        if any(all(v[k] <= cell[k][0] for k in range(3)) for v in vectors):
            volume += float(np.prod([high - low for low, high in cell]))
    return volume


@pytest.mark.parametrize("seed", range(5))
def test_the_hypervolume_over_time_equals_brute_force(seed: int) -> None:
    files = random_files(seed, 9)
    history = figures_of.volume_history(files)
    assert [seconds for seconds, _ in history] == sorted(file.finished_s for file in files)
    for seconds, volume in history:
        done = [file for file in files if file.finished_s <= seconds]
        assert volume == pytest.approx(brute_force_volume(done))
    assert history[-1][1] == pytest.approx(figures_of.final_volume(files))


def test_files_beyond_a_limit_count() -> None:
    inside, beyond = made_file(0, 1.0, 0.2, 0.2), made_file(1, 0.1, 0.4, 0.4, within_limits=False)
    assert figures_of.final_volume([inside, beyond]) > figures_of.final_volume([inside])


def test_time_to_reach() -> None:
    history = [(10.0, 0.0), (20.0, 1.5), (30.0, 1.5), (40.0, 2.0)]
    assert figures_of.time_to_reach(history, 1.5) == 20.0
    assert figures_of.time_to_reach(history, 1.6) == 40.0
    assert figures_of.time_to_reach(history, 2.1) is None


def test_the_front_is_that_of_the_search_without_limits() -> None:
    files = random_files(7, 30)
    candidates = [made_candidate(file.trial, file.drop_points, file.size_ratio, file.latency_ratio) for file in files]
    by_trial = {c.trial: c for c in candidates}
    again = [bench.measured_file(c, by_trial, LimitsSection(), BASELINE_BYTES) for c in candidates]
    assert [file.trial for file in figures_of.file_front(again)] == [c.trial for c in front(candidates)]
    assert figures_of.file_front([]) == []


def made_candidate(number: int, drop: float, size_ratio: float, latency_ratio: float, **changes: Any) -> Candidate:
    """A measured candidate; 1,000 validation examples."""
    net = round(10 * drop)
    latency = Latency(
        latency_ms=latency_ratio * BASELINE_MS, p90_ms=1.0, baseline_ms=BASELINE_MS, ratio=latency_ratio,
        ratio_low=latency_ratio, ratio_high=latency_ratio,
    )  # fmt: skip
    measurement = Measurement(
        size_bytes=round(size_ratio * BASELINE_BYTES), compressed_bytes=1, size_ratio=size_ratio, latency=latency,
        validation=Accuracy(correct=880 - net, total=1000, lost=50 + net, gained=50),
    )  # fmt: skip
    plan = Plan(training=TrainingSpec(steps=300))
    settings: dict[str, Any] = {"origin": Origin.SAMPLED, "state": State.COMPLETE, "measurement": measurement}
    return Candidate(**{"trial": number, "plan": plan, **settings, **changes})


def test_limits_are_the_studys_whatever_a_part_kept_to() -> None:
    candidate = made_candidate(0, 1.0, 0.3, 0.2, violations={"max_size_ratio": -0.1})
    file = bench.measured_file(candidate, {0: candidate}, LimitsSection(max_size_ratio=0.125), BASELINE_BYTES)
    assert not file.within_limits


def test_a_file_descends_from_where_its_line_began() -> None:
    first = made_candidate(0, 3.0, 0.1, 0.2, origin=Origin.ENQUEUED)
    second = made_candidate(1, 1.0, 0.1, 0.2, origin=Origin.CONTINUED, parent=0)
    file = bench.measured_file(second, {0: first, 1: second}, LimitsSection(), BASELINE_BYTES)
    assert (file.origin, file.root_origin) == (Origin.CONTINUED, Origin.ENQUEUED)


def test_each_file_of_the_recipe_meets_the_fastest_that_is_as_accurate_and_as_small() -> None:
    sequential = [made_file(0, 1.0, 0.10, 0.25), made_file(1, 0.2, 0.10, 0.40), made_file(2, 0.0, 0.3, 0.45, steps=0)]
    ladder = [
        made_file(0, 1.0, 0.10, 0.20),  # equal is enough
        made_file(1, 0.9, 0.09, 0.15),
        made_file(2, 1.1, 0.09, 0.10),  # less accurate
        made_file(3, 0.5, 0.11, 0.10),  # larger
    ]
    slow, fast = sorted(figures_of.pairs(sequential, ladder), key=lambda pair: pair.sequential.drop_points)
    assert fast.ladder == ladder[1]
    assert fast.latency_ratio == pytest.approx(0.15 / 0.25)
    assert slow.sequential.trial == 1  # the untrained file is the same in every engine
    assert (slow.ladder, slow.latency_ratio) == (None, None)


def test_the_pick_is_the_fastest_within_a_point_that_the_search_found() -> None:
    files = [
        made_file(0, 0.9, 0.10, 0.20),
        made_file(1, 0.8, 0.12, 0.25),
        made_file(2, 1.1, 0.08, 0.10),
        made_file(3, 0.9, 0.08, 0.15, root_origin=Origin.ENQUEUED),
        made_file(4, 0.5, 0.08, 0.30),
    ]
    assert figures_of.pick(files) == files[1]  # the one before it is dominated by an enqueued one
    assert figures_of.pick(files[2:4]) is None


def test_what_ends_long_after_the_time_does_not_count() -> None:
    files = [made_file(i, 1.0, 0.1, 0.2, finished_s=seconds) for i, seconds in enumerate((1300.0, 1200.5, 20.0))]
    assert [file.trial for file in made_run("tpe", 0, files).counted] == [2, 1]


def made_seed(seed: int) -> list[EngineRun]:
    """Four engines; the ladder is ahead of TPE's end after 200 seconds."""
    return [
        made_run("ladder", seed, [made_file(0, 2.0, 0.12, 0.3), made_file(1, 0.8, 0.08, 0.15)]),
        made_run("tpe", seed, [made_file(0, 2.5, 0.3, 0.4), made_file(9, 1.2, 0.12, 0.22)]),
        made_run("sequential", seed, [made_file(3, 1.0, 0.10, 0.25)]),
        made_run("nsga2", seed, [made_file(5, 2.6, 0.12, 0.25)]),
    ]


def test_figures_of_a_seed() -> None:
    runs = {run.engine: run for run in made_seed(0)}
    figures = figures_of.seed_figures(0, runs, [])
    assert figures.best_stock == "tpe"
    assert (figures.best_stock_took_s, figures.ladder_reached_s) == (1000.0, 200.0)
    assert figures.fraction_of_budget == pytest.approx(200 / 1200)
    assert figures.fraction_of_its_time == pytest.approx(0.2)
    assert figures.volume_ratio == pytest.approx(
        brute_force_volume(runs["ladder"].files) / brute_force_volume(runs["tpe"].files)
    )
    assert figures.median_latency_ratio == pytest.approx(0.6)
    assert figures.pick is not None and figures.pick.trial == 1


def test_figures_say_nothing_of_engines_that_have_not_ended() -> None:
    ladder, tpe, *_ = made_seed(0)
    alone = figures_of.seed_figures(0, {"ladder": ladder}, [])
    assert (alone.best_stock, alone.volume_ratio, alone.pairs) == (None, None, ())
    assert figures_of.seed_figures(0, {"tpe": tpe}, []).ladder_reached_s is None


def test_engines_take_turns_within_a_seed() -> None:
    assert bench.pieces(["a", "b", "c"], [0, 1]) == [("a", 0), ("b", 0), ("c", 0), ("b", 1), ("c", 1), ("a", 1)]


def write_pieces(out: Path, runs: Sequence[EngineRun]) -> None:
    """Results as ``run`` leaves them."""
    for run in runs:
        folder = figures_of.piece_folder(out, run.engine, run.seed)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(run.model_dump_json(), encoding="utf-8")


def test_a_report_is_written_from_results(tmp_path: Path) -> None:
    runs = [*made_seed(0), *made_seed(1)]
    write_pieces(tmp_path / "out", runs)
    accuracy = Accuracy(correct=8700, total=10_000, lost=300, gained=166)
    for run in runs:
        named = {"engine": run.engine, "seed": run.seed, "accuracy": accuracy}
        scores = [TestScore(trial=f.trial, sha256=f.sha256, **named) for f in figures_of.file_front(run.files)]
        written = {"scores": [score.model_dump(mode="json") for score in scores]}
        folder = figures_of.piece_folder(tmp_path / "out", run.engine, run.seed)
        (folder / figures_of.SCORES).write_text(json.dumps(written), encoding="utf-8")
    control = tmp_path / "control.txt"
    control.write_text(
        "validation: 88.40%, drop 0.06 points [-0.30, 0.42]\ntest: 88.20%, drop 0.14 points [-0.11, 0.39]\n"
        "9770 steps in 2050 s\n"
    )
    target = tmp_path / "search_efficiency"
    report(argparse.Namespace(out=tmp_path / "out", control=control, to=target, browser=None))

    content = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
    assert [figure["volume_ratio"] for figure in content["seeds"]] == [content["seeds"][0]["volume_ratio"]] * 2
    assert content["control"]["test"] == {
        "accuracy": 0.882,
        "drop_points": 0.14,
        "low": -0.11,
        "high": 0.39,
        "steps": 9770,
    }
    assert content["runs"][0]["front"][0]["test"]["drop_points"] == pytest.approx(1.34)
    page = target.with_suffix(".md").read_text(encoding="utf-8")
    assert "## Seed 1" in page and "6.67x faster, 12.50x smaller" in page
    assert "test drop 1.34 [0.92, 1.76]" in page
    assert HAND_SOURCE in page and "control: the base trained on for 9,770 steps" in page
    for name in ("volume", "front"):
        assert target.with_name(f"search_efficiency_{name}.html").is_file()


def test_the_budget_is_the_best_that_was_tuned(tmp_path: Path) -> None:
    assert figures_of.tuned_steps(tmp_path, "tpe") is None
    for steps, drop in ((150, 1.5), (350, 0.5), (700, 2.5)):
        run = made_run("tpe", 100, [made_file(0, drop, 0.1, 0.2)]).model_copy(update={"steps": steps})
        write_pieces(tmp_path / "tune" / f"steps{steps}", [run])
    assert [figures_of.tuned_steps(tmp_path, engine) for engine in ("tpe", "nsga2", "sequential")] == [350] * 3
    assert figures_of.tuned_steps(tmp_path, "ladder") is None


def test_wall_times_of_different_processors_are_not_compared_silently() -> None:
    ladder, tpe, *_ = made_seed(0)
    elsewhere = tpe.model_copy(update={"facts": tpe.facts | {"cpu": "another one"}})
    pages = [
        report_page(runs, [figures_of.seed_figures(0, {r.engine: r for r in runs}, [])], {}, [])
        for runs in ([ladder, tpe], [ladder, elsewhere])
    ]
    assert ["tpe on another one" in page for page in pages] == [False, True]
    assert ["do not compare" in page for page in pages] == [False, True]


def test_what_was_scored_is_not_read_again(tmp_path: Path) -> None:
    write_pieces(tmp_path, made_seed(0))
    for folder in tmp_path.iterdir():
        (folder / figures_of.SCORES).write_text('{"scores": []}', encoding="utf-8")
    bench.score(argparse.Namespace(out=tmp_path, data=None))  # there is neither a run folder nor a study
    assert figures_of.read_scores(tmp_path) == []


def test_another_file_than_the_measured_one_is_not_scored(tmp_path: Path) -> None:
    ladder, *_ = made_seed(0)
    run = RunFolder(tmp_path)
    artifact = run.artifact(ladder.files[0].trial)
    artifact.parent.mkdir(parents=True)
    artifact.write_bytes(b"another file")
    with pytest.raises(SystemExit, match="another one"):
        bench._test_score(cast(Bench, None), np.zeros(0), run, ladder, ladder.files[0])


def test_a_checkout_without_a_ladder_is_not_taken_for_one() -> None:
    plain = [made_candidate(0, 1.0, 0.1, 0.2)]
    assert not bench._climbed(plain)
    assert bench._climbed([*plain, made_candidate(1, 1.0, 0.1, 0.2, origin=Origin.PROMOTED)])


def test_limits_on_bytes_wait_for_the_bits() -> None:
    limits = LimitsSection(max_size_ratio=0.125, max_size_bytes=300_000, min_speedup=4.0)
    before = limits_before_bits(limits, 3)
    assert before.max_size_ratio == pytest.approx(0.125 * 8 / 3)
    assert before.max_size_bytes == 800_000
    assert before.min_speedup == 4.0
    assert limits_before_bits(limits, 8) == limits


STUDY = f"""{HEAD.replace("trials = 8", 'timeout = "26s"')}
[training]
steps = 40
batch_size = 32
views = 2
[space]
precision = ["w8a8", "w4a8", "w3a8"]
sparsity = [0.0, 0.5]
[limits]
max_accuracy_drop = 20.0
[target]
training_threads = 1
"""


@pytest.fixture
def tiny_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    """A study of a dozen trials, by a clock that makes each of them two seconds long, however busy the machine is."""

    def elapsed_s(session: Session) -> float:
        folder = session.run.root / "trials"
        begun = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
        done = len(read_candidates(session.run))
        return 2.0 * done + (1.8 if begun > done else 0.0)

    monkeypatch.setattr(Session, "elapsed_s", elapsed_s)
    monkeypatch.setattr(sequential_recipe, "LEAST_STEPS", 1)  # what a real step takes says nothing by that clock
    timed = functools.partial(timing.time_latency, seconds=0.2)
    monkeypatch.setattr(baseline, "time_latency", timed)
    path = tmp_path / "study.toml"
    path.write_text(STUDY, encoding="utf-8")
    return load_study(path)


@pytest.mark.slow
def test_the_recipe_makes_candidates_of_all_three_parts(tiny_config: StudyConfig, tmp_path: Path) -> None:
    run = sequential_search(tiny_config, tmp_path / "run", Silent())
    candidates = read_candidates(run)
    assert [c.trial for c in candidates] == list(range(len(candidates)))
    architectures = [c for c in candidates if c.parent is None]
    of_bits = [c for c in candidates if c.parent in {a.trial for a in architectures}]
    of_losses = [c for c in candidates if c.parent in {b.trial for b in of_bits}]
    assert len(architectures) + len(of_bits) + len(of_losses) == len(candidates)
    assert of_bits and of_losses and {c.name for c in architectures} >= {"uncompressed", "plain int8"}
    assert max(c.finished_s for c in candidates) <= 26.0
    by_trial = {c.trial: c for c in candidates}
    for candidate in architectures:
        assert set(candidate.plan.quantization.precisions.values()) <= {EIGHT_BITS, Precision.FLOAT32}
    for candidate in of_bits:
        parent = by_trial[candidate.parent or 0].plan
        assert candidate.plan.architecture == parent.architecture and candidate.plan.pruning == parent.pruning
        assert candidate.plan.distillation == parent.distillation
        assert candidate.plan.training.start != parent.training.start
        assert candidate.plan.training.quantized_fraction == 1.0  # what is trained in float32 is only rounded
    for candidate in of_losses:
        parent = by_trial[candidate.parent or 0].plan
        assert candidate.plan.quantization == parent.quantization
        rate = candidate.plan.training.learning_rate
        assert rate is not None and rate <= tiny_config.training.learning_rate
    assert len({c.parent for c in of_bits}) <= FEW
    measured = bench.engine_run("sequential", run, tiny_config, [])
    assert len(measured.files) == sum(c.state is State.COMPLETE for c in candidates)
    assert measured.baseline.size_bytes == read_baseline(run).size_bytes


@pytest.mark.slow
def test_an_interrupted_recipe_goes_on(
    tiny_config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trial.finish

    def stops_at(number: int) -> None:
        def interrupted(*arguments: Any) -> Any:
            if arguments[3].parent.name == f"{number:04d}":
                raise KeyboardInterrupt
            return whole(*arguments)

        monkeypatch.setattr(trial, "finish", interrupted)

    for number in (1, 5):  # one that is enqueued, and a later one
        stops_at(number)
        with pytest.raises(KeyboardInterrupt):
            sequential_search(tiny_config, tmp_path / "run", Silent())
    monkeypatch.setattr(trial, "finish", whole)
    run = sequential_search(tiny_config, tmp_path / "run", Silent())
    candidates = read_candidates(run)
    assert not {1, 5} & {c.trial for c in candidates}
    names = [c.name for c in candidates if c.name]
    assert len(names) == len(set(names)) and {"uncompressed", "plain int8"} <= set(names)
    assert sequential_recipe.sequential_search(tiny_config, tmp_path / "run", Silent()) == RunFolder(tmp_path / "run")
    assert [lasting(c) for c in read_candidates(run)] == [lasting(c) for c in candidates]


def test_a_kept_command_names_no_folder_of_a_machine() -> None:
    given = ["run", "--engine", "tpe", "--data", "/home/me/my data", "--out=/tmp/out", "--steps", "1400"]
    kept = "python -m benchmarks.search_efficiency run --engine tpe --data DIR --out OUT --steps 1400"
    assert bench.kept_command(given) == kept
