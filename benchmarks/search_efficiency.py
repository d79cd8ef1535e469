"""Engines compared by hypervolume over wall time: the ladder, TPE and NSGA-II on whole trials, and one technique
after the other.

    python -m benchmarks.search_efficiency tune --data DIR --out OUT [--engine tpe] [--budgets 150 350 700]
    python -m benchmarks.search_efficiency all --seeds 0 1 --data DIR --out OUT [--pieces 1]
    python -m benchmarks.search_efficiency score --data DIR --out OUT
    python -m benchmarks.search_efficiency report --out OUT [--control FILE]

A piece is one engine with one seed: a process of its own, a run folder that a second call goes on with, and a
``result.json`` when it ends. ``all`` does the missing pieces, the engines in turn within each seed. Every piece
pays for everything from its start: the export and measurement of the base, and all training. ``score`` freezes the
fronts on validation and reads the test split once, for the files of all engines in one sitting; ``report`` draws.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs
from pydantic import BaseModel, ConfigDict
from rich.console import Console

from autocompress.candidate import Accuracy, Candidate, Origin, Score, State
from autocompress.config import LimitsSection, StudyConfig, load_study
from autocompress.deploy.latency_table import CACHE_VARIABLE
from autocompress.deploy.machine_lock import training_batch
from autocompress.engine.baseline import load_inputs, test_answers, training_threads
from autocompress.engine.limits import violations
from autocompress.engine.pareto import REFERENCE_POINT, ObjectiveVector, hypervolume
from autocompress.engine.run_folder import (
    RunFolder,
    open_run,
    read_baseline,
    read_candidates,
    read_facts,
    run_config,
    write_json,
)
from autocompress.engine.study import search
from autocompress.pipeline import Bench, answers, compare
from autocompress.plan import Plan
from autocompress.progress import watcher_for
from autocompress.report.style import FRONT_COLOUR, INK, layout
from autocompress.report.verdict import CLAIM_DROP_POINTS
from benchmarks.claim import lineage
from benchmarks.front_picture import _FLAGS, _PAGE, BROWSERS, SCALE
from benchmarks.sequential_recipe import sequential_search

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "studies" / "cifar10_resnet56.toml"
ENGINES: dict[str, dict[str, str]] = {
    "ladder": {"engine": "ladder"},
    "tpe": {"engine": "plain", "sampler": "tpe"},
    "sequential": {"engine": "plain", "sampler": "tpe"},
    "nsga2": {"engine": "plain", "sampler": "nsga2"},
}
STOCK = ("tpe", "nsga2")
MINUTES = 45.0
TUNE_SEED = 100
TUNE_MINUTES = 15.0
BUDGETS = (150, 350, 700)

GRACE_S = 60.0
"""A trial begun within the time may end so much later and still counts, for every engine: a last training is cut to
the seconds left at the speed of an earlier one, and export, evaluation and timing follow."""

LEAST_VOLUME_RATIO = 1.15
MOST_TIME_FRACTION = 1 / 5

COLOURS = {"ladder": FRONT_COLOUR, "tpe": "#d96f32", "nsga2": "#6b7f3f", "sequential": "#7d5ba6"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
WIDTH, HEIGHT = 1120, 520


class HandRecipe(NamedTuple):
    """A file made by hand: figures against its own float32 baseline of 88.34 %."""

    name: str
    test_accuracy: float
    kilobytes: float
    speed_up: float


HAND_SOURCE = "hand recipes measured on another machine (AMX)"
HAND_BASELINE_ACCURACY = 0.8834
HAND_RECIPES = (
    HandRecipe("baseline int8", 0.8833, 1086, 2.2),
    HandRecipe("half of the internal channels pruned, distilled, float32", 0.8808, 1870, 1.4),
    HandRecipe("half of the internal channels pruned, distilled, int8", 0.8800, 663, 2.5),
    HandRecipe("5 of 9 blocks a stage, 30 % of internal channels pruned, distilled, float32", 0.8749, 1402, 1.7),
    HandRecipe("5 of 9 blocks a stage, 30 % of internal channels pruned, distilled, int8", 0.8749, 466, 3.6),
    HandRecipe("ModelOpt FastNAS to half of the FLOPs, distilled, int8", 0.8810, 807, 2.2),
    # its accuracy is the float32 network's, its size and speed are the int8 file's
    HandRecipe("student 0,1,2 blocks of 32,64,128 from scratch", 0.8668, 600, 9.0),
)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MeasuredFile(_Record):
    """One file of a run that was measured in full."""

    trial: int
    origin: Origin
    root_origin: Origin
    name: str
    family: str
    steps: int
    total_steps: int
    finished_s: float
    drop_points: float
    size_bytes: int
    size_ratio: float
    latency_ms: float
    latency_ratio: float
    noisy: bool
    within_limits: bool
    sha256: str

    @property
    def vector(self) -> ObjectiveVector:
        """Objectives: validation drop in points, ln size ratio, ln latency ratio."""
        return self.drop_points, math.log(self.size_ratio), math.log(self.latency_ratio)


class Sitting(_Record):
    """One process that worked on a piece; without an end it was killed."""

    began: str
    command: str
    commit: str
    load: float
    ended: str | None = None
    wall_s: float | None = None
    cpu_s: float | None = None


class EngineRun(_Record):
    """A piece that has ended: one engine with one seed."""

    engine: str
    seed: int
    minutes: float
    steps: int
    limits: dict[str, float]
    baseline: MeasuredFile
    baseline_accuracy: float
    states: dict[str, int]
    files: tuple[MeasuredFile, ...]
    facts: dict[str, Any]
    sittings: tuple[Sitting, ...]

    @property
    def counted(self) -> tuple[MeasuredFile, ...]:
        """Files that were there in time, by the time at which they were."""
        in_time = (file for file in self.files if file.finished_s <= self.minutes * 60 + GRACE_S)
        return tuple(sorted(in_time, key=lambda file: file.finished_s))


class TestScore(_Record):
    """A front file on the test split."""

    __test__ = False  # no test for pytest, which would collect the name

    engine: str
    seed: int
    trial: int
    sha256: str
    accuracy: Accuracy | Score


class Pair(_Record):
    """A file of the sequential recipe, and the fastest one of the ladder that is no larger and no less accurate."""

    sequential: MeasuredFile
    ladder: MeasuredFile | None
    latency_ratio: float | None


class SeedFigures(_Record):
    """What one seed says of the engines."""

    seed: int
    volumes: dict[str, float]
    best_stock: str | None
    best_stock_took_s: float | None
    ladder_reached_s: float | None
    fraction_of_budget: float | None
    fraction_of_its_time: float | None
    volume_ratio: float | None
    pairs: tuple[Pair, ...]
    median_latency_ratio: float | None
    pick: MeasuredFile | None
    pick_test: Accuracy | Score | None


# What is compared


def volume_history(files: Iterable[MeasuredFile]) -> list[tuple[float, float]]:
    """(seconds of run time, hypervolume so far) after each file, in order of finishing.

    Files beyond a limit of the study count as any other: what counts is said by the reference point alone. The
    limits only spare all engines alike the training of what is slow or large.
    """
    history: list[tuple[float, float]] = []
    points: list[ObjectiveVector] = []
    for file in sorted(files, key=lambda file: file.finished_s):
        points.append(file.vector)
        history.append((file.finished_s, hypervolume(points)))
    return history


def final_volume(files: Iterable[MeasuredFile]) -> float:
    """Hypervolume of all files."""
    return hypervolume([file.vector for file in files])


def time_to_reach(history: Sequence[tuple[float, float]], volume: float) -> float | None:
    """Seconds after which the hypervolume is at least ``volume``; None if it never is."""
    return next((seconds for seconds, reached in history if reached >= volume), None)


def file_front(files: Iterable[MeasuredFile]) -> list[MeasuredFile]:
    """Files that no other one dominates, within the limits of the study or not, fastest first."""
    rivals = sorted(files, key=lambda file: (file.latency_ratio, file.trial))
    vectors = np.array([file.vector for file in rivals]).reshape(-1, 3)

    def dominated(vector: NDArray[np.float64]) -> bool:
        return bool(((vectors <= vector).all(axis=1) & (vectors < vector).any(axis=1)).any())

    return [file for file, vector in zip(rivals, vectors, strict=True) if not dominated(vector)]


def pairs(sequential: Iterable[MeasuredFile], ladder: Iterable[MeasuredFile]) -> list[Pair]:
    """For each trained front file of the recipe the fastest file of the ladder at equal accuracy and bytes.

    The plans that are enqueued and need no training are the same file in every engine, and are left out.
    """
    rivals, found = list(ladder), []
    for file in file_front(sequential):
        if file.steps == 0:
            continue
        able = [r for r in rivals if r.drop_points <= file.drop_points and r.size_bytes <= file.size_bytes]
        best = min(able, key=lambda rival: rival.latency_ratio, default=None)
        ratio = None if best is None else best.latency_ratio / file.latency_ratio
        found.append(Pair(sequential=file, ladder=best, latency_ratio=ratio))
    return found


def pick(files: Iterable[MeasuredFile]) -> MeasuredFile | None:
    """The rule of every claim: of the front, the fastest file found by the search with a small enough drop."""
    able = [f for f in file_front(files) if f.root_origin is not Origin.ENQUEUED and f.drop_points <= CLAIM_DROP_POINTS]
    return able[0] if able else None


def seed_figures(seed: int, runs: Mapping[str, EngineRun], scores: Sequence[TestScore]) -> SeedFigures:
    """All figures of one seed; None where an engine that they need has not ended."""
    volumes = {engine: final_volume(run.counted) for engine, run in runs.items()}
    best = max((engine for engine in STOCK if engine in runs), key=lambda engine: volumes[engine], default=None)
    took = reached = volume_ratio = budget = None
    if best is not None:
        took = time_to_reach(volume_history(runs[best].counted), volumes[best])
        budget = runs[best].minutes * 60
    ladder = runs["ladder"].counted if "ladder" in runs else ()
    if best is not None and ladder:
        reached = time_to_reach(volume_history(ladder), volumes[best])
        volume_ratio = volumes["ladder"] / volumes[best] if volumes[best] > 0 else None
    compared = pairs(runs["sequential"].counted, ladder) if ladder and "sequential" in runs else []
    ratios = [pair.latency_ratio for pair in compared if pair.latency_ratio is not None]
    picked = pick(ladder)
    tested = {score.trial: score.accuracy for score in scores if (score.engine, score.seed) == ("ladder", seed)}
    return SeedFigures(
        seed=seed,
        volumes=volumes,
        best_stock=best,
        best_stock_took_s=took,
        ladder_reached_s=reached,
        fraction_of_budget=None if reached is None or budget is None else reached / budget,
        fraction_of_its_time=None if reached is None or not took else reached / took,
        volume_ratio=volume_ratio,
        pairs=tuple(compared),
        median_latency_ratio=statistics.median(ratios) if ratios else None,
        pick=picked,
        pick_test=None if picked is None else tested.get(picked.trial),
    )


# Running


def piece_folder(out: Path, engine: str, seed: int) -> Path:
    """Where a piece lies."""
    return out / f"{engine}_seed{seed}"


def piece_config(arguments: argparse.Namespace, engine: str, steps: int | None) -> StudyConfig:
    """The study as an engine gets it.

    The limits of the study keep every engine from training what is slow or large. ``--limits reference`` leaves
    only those that the reference point itself sets: fair as well, and it shows the front from plain int8 on; but
    it spends the stock engines' time, who have no estimate to tell them off, on files that add little.
    """
    config = load_study(arguments.study, arguments.data, {"seed": arguments.seed, "timeout": arguments.minutes * 60})
    # the name tells the recipe's folder from that of TPE, whose settings are the same
    study = config.study.model_copy(update={**ENGINES[engine], "name": f"{config.study.name}_{engine}"})
    changes: dict[str, Any] = {"study": study}
    if arguments.limits == "reference":
        drop, size, latency = REFERENCE_POINT
        changes["limits"] = LimitsSection(
            max_accuracy_drop=drop, max_size_ratio=math.exp(size), min_speedup=math.exp(-latency)
        )
    if steps is not None:
        changes["training"] = config.training.model_copy(update={"steps": steps})
    return config.model_copy(update=changes)


def run_piece(arguments: argparse.Namespace) -> EngineRun:
    """Run one engine with one seed, or go on with it, and keep its result.

    Raises:
        SystemExit: the run is no run of that engine.
    """
    folder = piece_folder(arguments.out, arguments.engine, arguments.seed)
    result = folder / "result.json"
    if result.is_file():
        known = read_result(result)
        print(f"{folder}: has ended, hypervolume {final_volume(known.counted):.3f}")
        return known
    config = piece_config(arguments, arguments.engine, arguments.steps)
    folder.mkdir(parents=True, exist_ok=True)
    # the ladder's table of latencies is kept for the machine: here each piece pays for its own
    os.environ[CACHE_VARIABLE] = str((folder / "cache").resolve())
    number, began = _begin_sitting(folder), time.perf_counter()
    cpu_began_s = _cpu_s()
    with watcher_for(Console(), config) as watcher:
        engine = sequential_search if arguments.engine == "sequential" else search
        run = engine(config, folder / "run", watcher)
    _end_sitting(folder, number, time.perf_counter() - began, _cpu_s() - cpu_began_s)
    ended = engine_run(arguments.engine, run, config, read_sittings(folder))
    if arguments.engine == "ladder" and not _climbed(read_candidates(run)):
        sys.exit(f"a ladder promotes what it estimated; {run.root} has no such candidate: this checkout has no ladder")
    write_json(result, ended)
    print(f"{folder}: {len(ended.files)} files, hypervolume {final_volume(ended.counted):.3f}")
    return ended


def _climbed(candidates: Iterable[Candidate]) -> bool:
    return any(c.state is State.ESTIMATED or c.origin is Origin.PROMOTED for c in candidates)


def engine_run(engine: str, run: RunFolder, config: StudyConfig, sittings: Sequence[Sitting]) -> EngineRun:
    """What a run folder says, in one record."""
    candidates, baseline = read_candidates(run), read_baseline(run)
    assert config.study.timeout_s is not None and baseline.validation is not None
    uncompressed = Candidate(
        trial=-1, origin=Origin.ENQUEUED, state=State.COMPLETE, plan=Plan(), measurement=baseline, name="baseline"
    )
    measured = [c for c in candidates if c.state is State.COMPLETE]
    by_trial = {c.trial: c for c in candidates}
    return EngineRun(
        engine=engine,
        seed=config.study.seed,
        minutes=config.study.timeout_s / 60,
        steps=config.training.steps,
        limits={name: value for name, value in config.limits.model_dump().items() if value is not None},
        baseline=measured_file(uncompressed, {-1: uncompressed}, config.limits, baseline.size_bytes),
        baseline_accuracy=baseline.validation.fraction,
        states=dict(Counter(c.state.value for c in candidates)),
        files=tuple(measured_file(c, by_trial, config.limits, baseline.size_bytes) for c in measured),
        facts=read_facts(run),
        sittings=tuple(sittings),
    )


def measured_file(
    candidate: Candidate, by_trial: Mapping[int, Candidate], limits: LimitsSection, baseline_bytes: int
) -> MeasuredFile:
    """A candidate's figures. Its limits are those of the study, whatever a part of a recipe kept to."""
    measured = candidate.measurement
    assert measured is not None and measured.validation is not None and measured.latency is not None
    broken = [amount for amount in violations(limits, measured, baseline_bytes).values() if amount > 0]
    return MeasuredFile(
        trial=candidate.trial,
        origin=candidate.origin,
        root_origin=lineage(candidate, by_trial)[-1].origin,
        name=candidate.name,
        family=candidate.plan.architecture.family,
        steps=candidate.plan.training.steps,
        total_steps=candidate.total_steps,
        finished_s=candidate.finished_s,
        drop_points=measured.validation.drop_points,
        size_bytes=measured.size_bytes,
        size_ratio=measured.size_ratio,
        latency_ms=measured.latency.latency_ms,
        latency_ratio=measured.latency.ratio,
        noisy=measured.latency.noisy,
        within_limits=not broken,
        sha256=measured.sha256,
    )


def _begin_sitting(folder: Path) -> int:
    sittings = read_sittings(folder)
    command = shlex.join(["python", "-m", "benchmarks.search_efficiency", *sys.argv[1:]])
    began = Sitting(began=_now(), command=command, commit=git_commit(), load=os.getloadavg()[0])
    _write_sittings(folder, [*sittings, began])
    return len(sittings)


def _end_sitting(folder: Path, number: int, wall_s: float, cpu_s: float) -> None:
    sittings = read_sittings(folder)
    sittings[number] = sittings[number].model_copy(update={"ended": _now(), "wall_s": wall_s, "cpu_s": cpu_s})
    _write_sittings(folder, sittings)


def read_sittings(folder: Path) -> list[Sitting]:
    """All processes that worked on a piece."""
    path = folder / "sittings.json"
    return [Sitting.model_validate(entry) for entry in json.loads(path.read_text())] if path.is_file() else []


def _write_sittings(folder: Path, sittings: Sequence[Sitting]) -> None:
    write_json(folder / "sittings.json", [sitting.model_dump(mode="json") for sitting in sittings])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cpu_s() -> float:
    """Processor time of this process and of those that timed files for it."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def git_commit() -> str:
    """The commit of this checkout, with a note where files differ from it."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{commit or 'unknown'}{' with changes' if changed else ''}"


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def read_result(path: Path) -> EngineRun:
    """A piece's result."""
    return EngineRun.model_validate_json(path.read_text(encoding="utf-8"))


def read_results(out: Path) -> list[EngineRun]:
    """Results of all pieces that have ended, by seed, then by engine."""
    order = list(ENGINES)
    found = [read_result(path) for path in out.glob("*_seed*/result.json")]
    return sorted(found, key=lambda run: (run.seed, order.index(run.engine)))


def pieces(engines: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Engines in turn within each seed; each seed begins with another one, so that none is always first."""
    shifts = [place % len(engines) for place in range(len(seeds))]
    turns = [[*engines[shift:], *engines[:shift]] for shift in shifts]
    return [(engine, seed) for seed, turn in zip(seeds, turns, strict=True) for engine in turn]


def run_all(arguments: argparse.Namespace) -> None:
    """Do the missing pieces, each in a process of its own, so that none finds another one's caches warm."""
    missing = [
        (engine, seed)
        for engine, seed in pieces(arguments.engines, arguments.seeds)
        if not (piece_folder(arguments.out, engine, seed) / "result.json").is_file()
    ]
    for engine, seed in missing[: arguments.pieces]:
        print(f"{engine}, seed {seed}", flush=True)
        steps = arguments.steps or tuned_steps(arguments.out, engine)
        _run_apart(arguments, arguments.out, engine, seed, steps, arguments.minutes)


def _run_apart(
    arguments: argparse.Namespace, out: Path, engine: str, seed: int, steps: int | None, minutes: float
) -> None:
    command = [sys.executable, "-m", "benchmarks.search_efficiency", "run", "--engine", engine, "--seed", str(seed)]
    command += ["--out", str(out.resolve()), "--minutes", str(minutes), "--limits", arguments.limits]
    command += ["--study", str(arguments.study.resolve())]
    command += ["--data", str(Path(arguments.data).resolve())] if arguments.data else []
    command += ["--steps", str(steps)] if steps else []
    subprocess.run(command, check=True, cwd=ROOT)


# The budget of a trial, tuned on a seed of its own


def tune(arguments: argparse.Namespace) -> None:
    """Run a stock engine with several budgets a trial, and say which ends with the highest hypervolume.

    A shorter time favours shorter trainings somewhat: more of them fit, and few of them go on.
    """
    for steps in arguments.budgets:
        out = arguments.out / "tune" / f"steps{steps}"
        _run_apart(arguments, out, arguments.engine, arguments.seed, steps, arguments.minutes)
    for run in tuned_runs(arguments.out, arguments.engine):
        print(f"{run.engine}, {run.steps} steps a trial: hypervolume {final_volume(run.counted):.3f}")
    print(f"best: --steps {tuned_steps(arguments.out, arguments.engine)}")


def tuned_runs(out: Path, engine: str) -> list[EngineRun]:
    """What ``tune`` has found for an engine, by budget."""
    found = [read_result(path) for path in (out / "tune").glob(f"*/{engine}_seed*/result.json")]
    return sorted(found, key=lambda run: run.steps)


def tuned_steps(out: Path, engine: str) -> int | None:
    """The best budget of an engine; TPE's for those that were not tuned themselves, the study's for the ladder."""
    runs = tuned_runs(out, engine) or ([] if engine == "ladder" else tuned_runs(out, "tpe"))
    return max(runs, key=lambda run: final_volume(run.counted)).steps if runs else None


# The test split


def score(arguments: argparse.Namespace) -> None:
    """Freeze the fronts on validation, then score all their files on the test split in one sitting."""
    out = arguments.out
    frozen = freeze_fronts(out)
    scores: list[TestScore] = []
    benches: dict[int, Bench] = {}
    for entry in frozen:
        run = open_run(piece_folder(out, entry["engine"], entry["seed"]) / "run")
        if entry["seed"] not in benches:
            benches[entry["seed"]] = _scoring_bench(run, arguments)
        bench, yardstick = benches[entry["seed"]], test_answers(run, benches[entry["seed"]])
        by_trial = {candidate.trial: candidate for candidate in read_candidates(run)}
        for trial, digest in entry["files"].items():
            plan = by_trial[int(trial)].plan
            own = answers(bench, run.artifact(int(trial)), bench.data.test, plan)
            accuracy = compare(bench.data, bench.data.test, own, yardstick)
            named = {"engine": entry["engine"], "seed": entry["seed"], "trial": int(trial), "sha256": digest}
            scores.append(TestScore(**named, accuracy=accuracy))
            print(f"{entry['engine']}, seed {entry['seed']}, trial {trial}: {_percent(accuracy.fraction)}", flush=True)
    content = {"date": _now(), "scores": [score.model_dump(mode="json") for score in scores]}
    write_json(out / "test_scores.json", content)


def freeze_fronts(out: Path) -> list[dict[str, Any]]:
    """The front of each piece by validation, written once; what ends later is refused.

    Raises:
        SystemExit: the fronts were frozen, and are no longer those of the results.
    """
    path = out / "fronts.json"
    fronts = [
        {
            "engine": run.engine,
            "seed": run.seed,
            "files": {str(file.trial): file.sha256 for file in file_front(run.counted)},
        }
        for run in read_results(out)
    ]
    if not path.is_file():
        write_json(path, fronts)
    frozen: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    if frozen != fronts:
        sys.exit(f"test is read for fronts that were frozen before; {path} differs from the results; compare them")
    return frozen


def _scoring_bench(run: RunFolder, arguments: argparse.Namespace) -> Bench:
    config = load_study(run.study_file, arguments.data) if arguments.data else run_config(run)
    inputs = load_inputs(config)
    return Bench(
        inputs.base,
        inputs.data,
        config.training,
        config.space.channel_multiple,
        each_batch=training_batch,
        threads=training_threads(config),
        deployed_batch=config.target.batch_size,
    )


def read_scores(out: Path) -> list[TestScore]:
    """Test scores; empty before ``score``."""
    path = out / "test_scores.json"
    if not path.is_file():
        return []
    return [TestScore.model_validate(entry) for entry in json.loads(path.read_text(encoding="utf-8"))["scores"]]


# The report


def report(arguments: argparse.Namespace) -> None:
    """Write the figures as JSON, a table as Markdown, and the two pictures."""
    runs, scores = read_results(arguments.out), read_scores(arguments.out)
    if not runs:
        sys.exit(f"a report needs results; {arguments.out} has none; run `all` first")
    by_seed: dict[int, dict[str, EngineRun]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, {})[run.engine] = run
    figures = [seed_figures(seed, engines, scores) for seed, engines in by_seed.items()]
    control = read_control(arguments.control) if arguments.control is not None else {}
    tuned = [run for engine in ENGINES for run in tuned_runs(arguments.out, engine)]
    target: Path = arguments.to
    write_json(target.with_suffix(".json"), report_content(runs, figures, scores, control, tuned))
    target.with_suffix(".md").write_text(report_page(runs, figures, control, tuned), encoding="utf-8")
    pictures = {"volume": draw_volumes(runs), "front": draw_fronts(runs, scores, control)}
    for name, figure in pictures.items():
        write_picture(figure, target.with_name(f"{target.name}_{name}"), arguments.browser)


def report_content(
    runs: Sequence[EngineRun],
    figures: Sequence[SeedFigures],
    scores: Sequence[TestScore],
    control: Mapping[str, Mapping[str, float]],
    tuned: Sequence[EngineRun],
) -> dict[str, Any]:
    """Everything that the page and the pictures show."""
    tested = {(score.engine, score.seed, score.trial): score.accuracy for score in scores}

    def with_test(run: EngineRun, file: MeasuredFile) -> dict[str, Any]:
        accuracy = tested.get((run.engine, run.seed, file.trial))
        return file.model_dump(mode="json") | ({} if accuracy is None else {"test": test_figures(accuracy)})

    return {
        "date": _now(),
        "reference_point": REFERENCE_POINT,
        "grace_s": GRACE_S,
        "seeds": [figure.model_dump(mode="json") for figure in figures],
        "runs": [
            run.model_dump(mode="json", exclude={"files"})
            | {
                "history": volume_history(run.counted),
                "files_measured": len(run.files),
                "files_counted": len(run.counted),
                "front": [with_test(run, file) for file in file_front(run.counted)],
            }
            for run in runs
        ],
        "tuned": [{"engine": r.engine, "steps": r.steps, "volume": final_volume(r.counted)} for r in tuned],
        "control": control,
        "hand_recipes": {"source": HAND_SOURCE, "files": [recipe._asdict() for recipe in HAND_RECIPES]},
    }


def test_figures(accuracy: Accuracy | Score) -> dict[str, Any]:
    """Accuracy and drop on test, with the paired 95 % interval of the drop."""
    return {
        "accuracy": accuracy.fraction,
        "drop_points": accuracy.drop_points,
        "drop_interval_points": accuracy.drop_interval_points(),
    }


test_figures.__test__ = False  # type: ignore[attr-defined]  # no test for pytest, which would collect the name


def read_control(path: Path) -> dict[str, dict[str, float]]:
    """What benchmarks/control.py printed: by split the accuracy, the drop and its interval."""
    number = r"(-?\d+(?:\.\d+)?)"
    line = re.compile(rf"^(validation|test): {number}%, drop {number} points \[{number}, {number}\]", re.MULTILINE)
    found = line.findall(path.read_text(encoding="utf-8"))
    return {
        split: {"accuracy": float(accuracy) / 100, "drop_points": float(drop), "low": float(low), "high": float(high)}
        for split, accuracy, drop, low, high in found
    }


def report_page(
    runs: Sequence[EngineRun],
    figures: Sequence[SeedFigures],
    control: Mapping[str, Mapping[str, float]],
    tuned: Sequence[EngineRun],
) -> str:
    """The table of the benchmark as Markdown."""
    lines = ["# Search efficiency", "", *_machine_lines(runs), "", *_run_table(runs), ""]
    for figure in figures:
        lines += [f"## Seed {figure.seed}", "", *_claim_table(figure), "", *_pair_table(figure), ""]
    lines += ["## Beside it", "", *_beside_table(runs, control), ""]
    if tuned:
        budgets = "; ".join(f"{r.engine} {r.steps} steps: {final_volume(r.counted):.3f}" for r in tuned)
        lines += [f"Budgets a trial, tuned on seed {tuned[0].seed} in {tuned[0].minutes:g} minutes: {budgets}.", ""]
    return "\n".join(lines)


def _machine_lines(runs: Sequence[EngineRun]) -> list[str]:
    machines = sorted({f"{run.facts['cpu']}, {run.facts['cores']} cores" for run in runs})
    threads = sorted({str(run.facts["training_threads"]) for run in runs})
    sittings = [sitting for run in runs for sitting in run.sittings]
    dates = sorted(sitting.began[:10] for sitting in sittings) or ["unknown"]
    commits = sorted({sitting.commit for sitting in sittings})
    limits = sorted({json.dumps(run.limits) for run in runs})
    return [
        f"Machine: {'; '.join(machines)}; training threads {', '.join(threads)}. "
        f"{dates[0]} to {dates[-1]}. Commit {', '.join(commits)}.",
        "",
        f"Hypervolume of validation drop in points, ln size ratio and ln latency ratio, reference point "
        f"{REFERENCE_POINT}, of all measured files; limits on what is trained, for all engines: {'; '.join(limits)}.",
    ]


def _run_table(runs: Sequence[EngineRun]) -> list[str]:
    lines = [
        "| engine | seed | minutes | steps a trial | files measured | hypervolume | wall, s | processor, s | sittings |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        wall_s, cpu_s = (sum(getattr(s, key) or 0.0 for s in run.sittings) for key in ("wall_s", "cpu_s"))
        killed = sum(sitting.ended is None for sitting in run.sittings)
        sittings = f"{len(run.sittings)}{f', {killed} killed' if killed else ''}"
        volume = final_volume(run.counted)
        cells = [run.engine, run.seed, f"{run.minutes:g}", run.steps, len(run.counted), f"{volume:.3f}"]
        lines.append(_row([*cells, f"{wall_s:.0f}", f"{cpu_s:.0f}", sittings]))
    return lines


def _claim_table(figure: SeedFigures) -> list[str]:
    """What was asked for against what was measured."""
    stock = figure.best_stock
    lines = ["| | asked for | measured |", "|---|---|---|"]
    if stock is not None and figure.volume_ratio is not None:
        volumes = f"{figure.volumes['ladder']:.3f} against {figure.volumes[stock]:.3f}"
        lines.append(_row([f"hypervolume, ladder against {stock}", f"at least {LEAST_VOLUME_RATIO}x",
                           f"{figure.volume_ratio:.3f}x: {volumes}"]))  # fmt: skip
        asked = f"at most {MOST_TIME_FRACTION:g} of the time"
        if figure.ladder_reached_s is None:
            reached = "never"
        else:
            reached = f"{figure.ladder_reached_s:.0f} s: {figure.fraction_of_budget:.3f} of the whole time"
            if figure.fraction_of_its_time is not None:
                reached += (
                    f", {figure.fraction_of_its_time:.3f} of the {figure.best_stock_took_s:.0f} s that {stock} took"
                )
        lines.append(_row([f"ladder reaches the final hypervolume of {stock}", asked, reached]))
    if figure.pairs:
        missing = sum(pair.ladder is None for pair in figure.pairs)
        median = "none" if figure.median_latency_ratio is None else f"{figure.median_latency_ratio:.3f}"
        lines.append(_row(["latency, ladder / sequential at equal accuracy and bytes, median", "reported",
                           f"{median}; no such file of the ladder for {missing} of {len(figure.pairs)}"]))  # fmt: skip
    lines.append(_row([f"pick: fastest with a validation drop of at most {CLAIM_DROP_POINTS:g}", "reported",
                       _pick_text(figure)]))  # fmt: skip
    return lines


def _pick_text(figure: SeedFigures) -> str:
    if figure.pick is None:
        return "none"
    text = (
        f"trial {figure.pick.trial}: {1 / figure.pick.latency_ratio:.2f}x faster, {1 / figure.pick.size_ratio:.2f}x "
        f"smaller ({figure.pick.size_bytes:,} bytes), validation drop {figure.pick.drop_points:.2f}"
    )
    if figure.pick_test is None:
        return f"{text}; test not read yet"
    low, high = figure.pick_test.drop_interval_points()
    return f"{text}, test drop {figure.pick_test.drop_points:.2f} [{low:.2f}, {high:.2f}]"


def _pair_table(figure: SeedFigures) -> list[str]:
    """Each trained front file of the sequential recipe with its counterpart."""
    if not figure.pairs:
        return []
    lines = ["| sequential: trial, drop, bytes, speed-up | ladder: trial, drop, bytes, speed-up | latency ratio |"]
    lines += ["|---|---|---|"]
    for pair in figure.pairs:
        ratio = "" if pair.latency_ratio is None else f"{pair.latency_ratio:.3f}"
        lines.append(_row([_file_text(pair.sequential), _file_text(pair.ladder), ratio]))
    return lines


def _file_text(file: MeasuredFile | None) -> str:
    if file is None:
        return "no file as accurate and as small"
    return f"{file.trial}, {file.drop_points:.2f}, {file.size_bytes:,}, {1 / file.latency_ratio:.2f}x"


def _beside_table(runs: Sequence[EngineRun], control: Mapping[str, Mapping[str, float]]) -> list[str]:
    baseline = runs[0].baseline
    lines = ["| file | test accuracy (drop) | KB | speed-up |", "|---|---|---|---|"]
    for recipe in HAND_RECIPES:
        drop = 100 * (HAND_BASELINE_ACCURACY - recipe.test_accuracy)
        accuracy = f"{_percent(recipe.test_accuracy)} ({drop:.2f})"
        lines.append(_row([recipe.name, accuracy, f"{recipe.kilobytes:g}", f"{recipe.speed_up:g}x"]))
    if "test" in control:
        test = control["test"]
        drop_text = f"{test['drop_points']:.2f} [{test['low']:.2f}, {test['high']:.2f}]"
        lines.append(_row(["control: the base trained on for as many steps as the pick",
                           f"{_percent(test['accuracy'])} ({drop_text})", f"{baseline.size_bytes / 1000:.0f}", "1x"]))  # fmt: skip
    return [*lines, "", f"All but the control: {HAND_SOURCE}, each against its own float32 file."]


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def draw_volumes(runs: Sequence[EngineRun]) -> go.Figure:
    """Hypervolume over wall time: a colour for each engine, a dash for each seed."""
    figure = go.Figure(layout=layout(HEIGHT))
    seeds = sorted({run.seed for run in runs})
    for run in runs:
        history = volume_history(run.counted)
        ends = max(run.minutes * 60, history[-1][0] if history else 0.0)
        # nothing at first, and what there is at the end stays
        steps = [(0.0, 0.0), *history, (ends, history[-1][1] if history else 0.0)]
        line = {
            "color": COLOURS[run.engine],
            "shape": "hv",
            "width": 2,
            "dash": DASHES[seeds.index(run.seed) % len(DASHES)],
        }
        x, y = [seconds / 60 for seconds, _ in steps], [volume for _, volume in steps]
        figure.add_scatter(x=x, y=y, mode="lines", name=f"{run.engine}, seed {run.seed}", line=line)
    figure.update_xaxes(title="wall time, minutes, everything counted", rangemode="tozero")
    figure.update_yaxes(title="hypervolume of measured files", rangemode="tozero")
    return figure


def draw_fronts(
    runs: Sequence[EngineRun], scores: Sequence[TestScore], control: Mapping[str, Mapping[str, float]]
) -> go.Figure:
    """Test drop against speed-up of the frozen fronts, beside what was made by hand."""
    figure = go.Figure(layout=layout(HEIGHT))
    seeds = sorted({run.seed for run in runs})
    symbols = ("circle", "circle-open", "square", "square-open")
    for run in runs:
        tested = {s.trial: s.accuracy for s in scores if (s.engine, s.seed) == (run.engine, run.seed)}
        files = [file for file in file_front(run.counted) if file.trial in tested]
        marker = {
            "color": COLOURS[run.engine],
            "size": 9,
            "symbol": symbols[seeds.index(run.seed) % len(symbols)],
        }
        figure.add_scatter(
            x=[1 / file.latency_ratio for file in files],
            y=[tested[file.trial].drop_points for file in files],
            text=[f"trial {file.trial}, {file.size_bytes / 1000:.0f} KB" for file in files],
            mode="markers", name=f"{run.engine}, seed {run.seed}", marker=marker,
        )  # fmt: skip
    figure.add_scatter(
        x=[recipe.speed_up for recipe in HAND_RECIPES],
        y=[100 * (HAND_BASELINE_ACCURACY - recipe.test_accuracy) for recipe in HAND_RECIPES],
        text=[f"{recipe.name}, {recipe.kilobytes:g} KB" for recipe in HAND_RECIPES],
        mode="markers", name=HAND_SOURCE, marker={"color": INK, "size": 10, "symbol": "diamond-open"},
    )  # fmt: skip
    if "test" in control:
        figure.add_scatter(
            x=[1.0], y=[control["test"]["drop_points"]], mode="markers", name="control: the base trained on",
            marker={"color": INK, "size": 10, "symbol": "x"},
        )  # fmt: skip
    figure.update_xaxes(title="times faster than the uncompressed file", type="log")
    figure.update_yaxes(title="test drop, points", autorange="reversed")
    return figure


def write_picture(figure: go.Figure, path: Path, browser: str | None) -> Path:
    """A PNG where there is a Chromium to draw it, else a page that opens in any browser."""
    if browser is None:
        page = path.with_name(f"{path.name}.html")
        page.write_text(figure.to_html(include_plotlyjs=True), encoding="utf-8")
        return page
    picture = path.with_name(f"{path.name}.png")
    figure.update_layout(width=WIDTH, height=HEIGHT)
    drawing = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "picture.html"
        page.write_text(_PAGE.format(script=get_plotlyjs(), figure=drawing), encoding="utf-8")
        options = [f"--user-data-dir={folder}/profile", f"--screenshot={picture.resolve()}"]
        options += [f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}"]
        command = [browser, *_FLAGS, *options, "--virtual-time-budget=8000", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    return picture


# The command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=Path, required=True, help="folder of all pieces")
    loading = argparse.ArgumentParser(add_help=False)
    loading.add_argument("--data", help="data folder of the study; by default what the environment says")
    searching = argparse.ArgumentParser(add_help=False)
    searching.add_argument("--study", type=Path, default=STUDY)
    searching.add_argument("--limits", choices=["study", "reference"], default="study", help="what is not trained")
    searching.add_argument("--steps", type=int, help="of a trial; by default as tuned, else the study's")

    one = commands.add_parser("run", parents=[shared, loading, searching], help="one engine with one seed")
    one.add_argument("--engine", choices=ENGINES, required=True)
    one.add_argument("--seed", type=int, required=True)
    one.add_argument("--minutes", type=float, default=MINUTES)

    every = commands.add_parser("all", parents=[shared, loading, searching], help="the missing pieces, in turn")
    every.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    every.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    every.add_argument("--minutes", type=float, default=MINUTES)
    every.add_argument("--pieces", type=int, help="stop after so many")

    tuning = commands.add_parser("tune", parents=[shared, loading, searching], help="steps of a stock engine's trial")
    tuning.add_argument("--engine", choices=ENGINES, default="tpe")
    tuning.add_argument("--seed", type=int, default=TUNE_SEED)
    tuning.add_argument("--minutes", type=float, default=TUNE_MINUTES)
    tuning.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="steps to try")

    commands.add_parser("score", parents=[shared, loading], help="test figures, when all have ended")
    writing = commands.add_parser("report", parents=[shared], help="tables and pictures")
    writing.add_argument("--control", type=Path, help="what benchmarks/control.py printed")
    writing.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "search_efficiency", help="without suffix")
    writing.add_argument("--browser", default=next((name for name in BROWSERS if shutil.which(name)), None))
    return parser


def main() -> None:
    """Command line."""
    arguments = _parser().parse_args()
    commands = {"run": run_piece, "all": run_all, "tune": tune, "score": score, "report": report}
    commands[arguments.command](arguments)


if __name__ == "__main__":
    main()
