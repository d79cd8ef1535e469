"""Engines compared by hypervolume over wall time: the ladder, TPE and NSGA-II on whole trials, and one technique
after the other.

    python -m benchmarks.search_efficiency tune --data DIR --out OUT [--engine tpe] [--budgets 350 700 1400 2800]
    python -m benchmarks.search_efficiency all --seeds 0 1 --data DIR --out OUT [--pieces 1]
    python -m benchmarks.search_efficiency score --data DIR --out OUT
    python -m benchmarks.search_efficiency report --out OUT [--control FILE]

A piece is one engine with one seed: a process of its own, a run folder that a second call goes on with, and a
``result.json`` when it ends. ``all`` does the missing pieces, the engines in turn within each seed. Every piece
pays for everything from its start: the export and measurement of the base, and all training. A result is final, so
its front is chosen by validation alone; ``score`` then reads the test split for it, once; ``report`` draws.
``result.json`` and ``test_scores.json`` hold all that ``report`` needs: pieces may be run on several days.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console

from autocompress.candidate import Candidate, Origin, State
from autocompress.config import LimitsSection, StudyConfig, load_study
from autocompress.deploy.card import sha256
from autocompress.deploy.latency_table import CACHE_VARIABLE
from autocompress.deploy.machine_lock import training_batch
from autocompress.engine.baseline import load_inputs, test_answers, training_threads
from autocompress.engine.limits import violations
from autocompress.engine.run_folder import (
    RunFolder,
    open_run,
    read_baseline,
    read_candidate,
    read_candidates,
    read_facts,
    run_config,
    write_json,
)
from autocompress.engine.study import search
from autocompress.pipeline import Bench, answers, compare
from autocompress.plan import Plan
from autocompress.progress import watcher_for
from benchmarks.claim import lineage
from benchmarks.efficiency_figures import (
    ENGINES,
    REFERENCE_LIMITS,
    SCORES,
    EngineRun,
    MeasuredFile,
    Sitting,
    TestScore,
    file_front,
    final_volume,
    now,
    piece_folder,
    read_result,
    read_results,
    tuned_runs,
    tuned_steps,
)
from benchmarks.efficiency_report import percent, report
from benchmarks.front_picture import BROWSERS
from benchmarks.sequential_recipe import sequential_search

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "studies" / "cifar10_resnet56.toml"
MINUTES = 45.0
TUNE_SEED = 100
TUNE_MINUTES = 15.0
BUDGETS = (350, 700, 1400, 2800)
FOLDERS = {"--data": "DIR", "--out": "OUT"}
"""Options whose values are folders of one machine, and what is kept of them."""

# Running


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
        changes["limits"] = REFERENCE_LIMITS
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
    began = Sitting(began=now(), command=kept_command(sys.argv[1:]), commit=git_commit(), load=os.getloadavg()[0])
    _write_sittings(folder, [*sittings, began])
    return len(sittings)


def kept_command(options: Sequence[str]) -> str:
    """The command line to give anywhere: without the folders of this machine."""
    split = [part for option in options for part in (option.split("=", 1) if option.startswith("--") else [option])]
    told = [FOLDERS.get(before, part) for before, part in zip(["", *split], split, strict=False)]
    return shlex.join(["python", "-m", "benchmarks.search_efficiency", *told])


def _end_sitting(folder: Path, number: int, wall_s: float, cpu_s: float) -> None:
    sittings = read_sittings(folder)
    peak_memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    figures = {"ended": now(), "wall_s": wall_s, "cpu_s": cpu_s, "peak_memory_mb": peak_memory_mb}
    sittings[number] = sittings[number].model_copy(update=figures)
    _write_sittings(folder, sittings)


def read_sittings(folder: Path) -> list[Sitting]:
    """All processes that worked on a piece."""
    path = folder / "sittings.json"
    return [Sitting.model_validate(entry) for entry in json.loads(path.read_text())] if path.is_file() else []


def _write_sittings(folder: Path, sittings: Sequence[Sitting]) -> None:
    write_json(folder / "sittings.json", [sitting.model_dump(mode="json") for sitting in sittings])


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
    command += ["--study", os.path.relpath(arguments.study.resolve(), ROOT)]
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


# The test split


def score(arguments: argparse.Namespace) -> None:
    """Score the front of each piece that has ended, as validation has it, on the test split; once."""
    benches: dict[int, Bench] = {}
    for ended in read_results(arguments.out):
        folder = piece_folder(arguments.out, ended.engine, ended.seed)
        if (folder / SCORES).is_file():
            continue
        run = open_run(folder / "run")
        if ended.seed not in benches:
            benches[ended.seed] = _scoring_bench(run, arguments)
        bench, yardstick = benches[ended.seed], test_answers(run, benches[ended.seed])
        scores = [_test_score(bench, yardstick, run, ended, file) for file in file_front(ended.counted)]
        content = {"date": now(), "scores": [score.model_dump(mode="json") for score in scores]}
        write_json(folder / SCORES, content)


def _test_score(
    bench: Bench, yardstick: NDArray[Any], run: RunFolder, ended: EngineRun, file: MeasuredFile
) -> TestScore:
    artifact = run.artifact(file.trial)
    if sha256(artifact) != file.sha256:
        sys.exit(f"test is read for the file that was measured; {artifact} is another one; run the piece anew")
    own = answers(bench, artifact, bench.data.test, read_candidate(run, file.trial).plan)
    accuracy = compare(bench.data, bench.data.test, own, yardstick)
    print(f"{ended.engine}, seed {ended.seed}, trial {file.trial}: {percent(accuracy.fraction)}", flush=True)
    return TestScore(engine=ended.engine, seed=ended.seed, trial=file.trial, sha256=file.sha256, accuracy=accuracy)


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

    commands.add_parser("score", parents=[shared, loading], help="test figures of the pieces that have ended")
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
