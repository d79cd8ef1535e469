"""What a run with thousands of recorded candidates costs: opening, reporting, resuming, and the next draw.

    python benchmarks/large_run.py runs/cifar10_resnet56 --at /tmp/large_run --candidates 5000 --out large_run.json

The run is made up: ``study.toml`` and ``baseline/`` of a real one, records written as a search writes them (nine in
ten only estimated), and an Optuna journal of as many finished trials with 15 parameters and 3 objectives. Each figure
is of a fresh process, imports counted apart, so that memory is the step's own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from autocompress.analysis import Analysis
from autocompress.candidate import Accuracy, Candidate, Estimate, Latency, Measurement, Origin, Parity, State
from autocompress.engine.continuation import next_continuation
from autocompress.engine.events import Silent
from autocompress.engine.pareto import front
from autocompress.engine.recovery import recover
from autocompress.engine.run_folder import (
    RunFolder,
    open_run,
    read_analysis,
    read_baseline,
    read_candidates,
    read_facts,
    record,
    run_config,
)
from autocompress.engine.samplers import make_sampler
from autocompress.engine.session import STUDY_NAME, Session, open_study, running_trials
from autocompress.engine.tell import tell
from autocompress.plan import (
    ArchitectureSpec,
    DistillationSpec,
    Plan,
    Precision,
    PruningSpec,
    QuantizationSpec,
    TrainingSpec,
)

ESTIMATED_SHARE = 0.9
PRECISIONS = (Precision.W8A8, Precision.W6A8, Precision.W4A8, Precision.W3A8)
RATIOS = (0.0, 0.25, 0.5, 0.75)
FAMILIES = ("base", "space")
OWN_PARAMETERS = 11
"""Of each family; with the family and the three of the distillation that is 15 a trial."""


TELL_PEAK = """
from pathlib import Path
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM")))
"""
"""The peak as the process itself sees it: what `wait4` says of a child includes its parent's before the exec."""
RUN_COMMAND = """
import runpy, sys
try:
    runpy.run_module("autocompress", run_name="__main__", alter_sys=True)
except SystemExit as end:
    if end.code:
        raise
"""


@dataclass(frozen=True)
class Figure:
    """What one step took, in a process of its own."""

    step: str
    seconds: float
    cpu_seconds: float
    peak_mb: float
    note: str = ""


class _InMemory(BaseJournalBackend):
    """A journal that is written to its file at the end: 100,000 synced appends would take minutes."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:  # type: ignore[override]
        """What was appended since."""
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep them as a file would give them back."""
        self.logs += [json.loads(json.dumps(log)) for log in logs]


def made_up_plan(generator: np.random.Generator, analysis: Analysis, trial: int) -> Plan:
    """A plan that decides on every layer and group, around centres as the search draws them."""
    precision, ratio = generator.integers(len(PRECISIONS)), generator.integers(len(RATIOS))
    precisions = np.clip(precision + generator.integers(-1, 2, len(analysis.layers)), 0, len(PRECISIONS) - 1)
    ratios = np.clip(ratio + generator.integers(-1, 2, len(analysis.groups)), 0, len(RATIOS) - 1)
    blocks = [block for run in analysis.runs for block in run.blocks]
    layers = zip(analysis.layers, precisions, strict=True)
    groups = zip(analysis.groups, ratios, strict=True)
    return Plan(
        architecture=ArchitectureSpec(dropped_blocks=tuple(b for b in blocks if generator.random() < 0.4)),
        pruning=PruningSpec(ratios={group.name: RATIOS[i] for group, i in groups}),
        distillation=DistillationSpec(
            alpha=float(generator.uniform(0.5, 1.0)), temperature=float(generator.uniform(2.0, 8.0))
        ),
        quantization=QuantizationSpec(precisions={layer.name: PRECISIONS[i] for layer, i in layers}),
        training=TrainingSpec(steps=350, start="2f21cff68c256f4805b714ac636bfae903a49a2527cead6d2e211ea8fb060d42"),
        seed=trial,
    )


def made_up_candidate(
    generator: np.random.Generator, analysis: Analysis, baseline: Measurement, trial: int, estimated: list[int]
) -> Candidate:
    """An estimated candidate, or one that was promoted from one of ``estimated``, trained and measured."""
    size, speed = float(np.exp(generator.uniform(-3.2, -1.0))), float(np.exp(generator.uniform(-2.2, -0.6)))
    drop = float(0.4 / (size + speed) - 0.8 + generator.normal(0, 0.7))
    measured = trial == 0 or generator.random() >= ESTIMATED_SHARE
    promoted = measured and bool(estimated)
    start = 60.0 + 0.6 * trial
    estimate = Estimate(
        size_ratio=size, latency_ratio=speed, divergence=0.1 * abs(drop), shared_drop_points=3 * drop, drop_points=drop
    )
    return Candidate(
        trial=trial,
        origin=Origin.PROMOTED if promoted else Origin.SAMPLED if measured else Origin.MUTATED,
        state=State.COMPLETE if measured else State.ESTIMATED,
        parent=int(generator.choice(estimated)) if promoted else None,
        total_steps=350 if measured else 0,
        violations={"max_accuracy_drop": drop - 3.0, "max_size_ratio": size - 0.125, "min_speedup": speed - 0.25},
        started_s=start,
        finished_s=start + 0.5,
        stage_seconds={"plan": 0.001, "build": 0.03, "train": 0.4} if measured else {"plan": 0.001, "estimate": 0.03},
        plan=made_up_plan(generator, analysis, trial),
        measurement=_measurement(generator, baseline, size, speed, drop) if measured else None,
        estimate=None if measured else estimate,
    )


def _measurement(
    generator: np.random.Generator, baseline: Measurement, size: float, speed: float, drop: float
) -> Measurement:
    assert baseline.latency is not None and baseline.validation is not None
    milliseconds, total = baseline.latency.latency_ms * speed, baseline.validation.total
    lost, gained = round(total * (0.02 + max(drop, 0) / 100)), round(total * (0.02 + max(-drop, 0) / 100))
    return Measurement(
        sha256=generator.bytes(32).hex(),
        size_bytes=round(baseline.size_bytes * size),
        compressed_bytes=round(0.9 * baseline.size_bytes * size),
        size_ratio=size,
        latency=Latency(
            latency_ms=milliseconds, p90_ms=1.05 * milliseconds, baseline_ms=baseline.latency.latency_ms,
            ratio=speed, ratio_low=0.99 * speed, ratio_high=1.01 * speed,
        ),
        parity=Parity(top1_agreement=1.0, examples=500),
        validation=Accuracy(
            correct=baseline.validation.correct - lost + gained, total=total, lost=lost, gained=gained
        ),
    )  # fmt: skip


def draw_parameters(trial: optuna.Trial) -> None:
    """15 parameters, most of them of one family."""
    family = trial.suggest_categorical("family", FAMILIES)
    trial.suggest_float("alpha", 0.5, 1.0)
    trial.suggest_float("temperature", 2.0, 8.0, log=True)
    trial.suggest_float("hint_weight", 0.0, 1.0)
    for number in range(OWN_PARAMETERS):
        trial.suggest_int(f"{family}.level:{number}", 0, 3)


def make_run(template: RunFolder, run: RunFolder, count: int) -> dict[str, float]:
    """Write a run of ``count`` candidates; returns the seconds that a record takes to write, by state."""
    shutil.rmtree(run.root, ignore_errors=True)
    run.root.mkdir(parents=True)
    shutil.copyfile(template.study_file, run.study_file)
    shutil.copytree(template.baseline, run.baseline)
    run.workers.mkdir()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    generator = np.random.default_rng(0)
    analysis, baseline = read_analysis(run), read_baseline(run)
    backend, estimated = _InMemory(), list[int]()
    study = optuna.create_study(
        storage=JournalStorage(backend), study_name=STUDY_NAME, directions=["minimize"] * 3,
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    session = cast(Session, SimpleNamespace(config=run_config(run), study=study, baseline=baseline))
    written: dict[str, list[float]] = {}
    for number in range(count):
        candidate = made_up_candidate(generator, analysis, baseline, number, estimated)
        began = time.perf_counter()
        record(run, candidate)
        written.setdefault(candidate.state.value, []).append(time.perf_counter() - began)
        if candidate.state is State.ESTIMATED:
            estimated.append(number)
        trial = study.ask()
        trial.set_user_attr("worker", "1-0")
        draw_parameters(trial)
        tell(session, trial, candidate)
    lines = (json.dumps(log, separators=(",", ":")) for log in backend.logs)
    run.journal.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {state: float(np.mean(seconds)) for state, seconds in written.items()}


def step_open(run: RunFolder) -> str:
    """Open a run, read its records, find its front."""
    candidates = read_candidates(open_run(run.root))
    return f"{len(candidates)} candidates, {len(front(candidates))} on the front"


def step_resume(run: RunFolder) -> str:
    """What a second search does before its first trial, apart from loading model and data."""
    config = run_config(run)
    study = open_study(run, config, None)
    facts, finished = read_facts(run), [c.finished_s for c in read_candidates(run)]
    assert finished and facts
    recover(cast(Session, SimpleNamespace(run=run, study=study, watcher=Silent())))
    return f"{len(study.get_trials(deepcopy=False))} trials in {run.journal.stat().st_size / 1e6:.0f} MB of journal"


def prepare_next(run: RunFolder) -> Callable[[], str]:
    """The state of a search that has read everything once; the step is its bookkeeping around one more trial."""
    config = run_config(run)
    study = open_study(run, config, None)
    session = cast(Session, SimpleNamespace(run=run, study=study))
    read_candidates(run)

    def bookkeeping() -> str:
        candidates = read_candidates(run)
        running_trials(session)
        study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        next_continuation(candidates, busy=set(), members=3, progress=0.5, seconds=100.0)
        front(read_candidates(run))
        return "records, running and waiting trials, continuation, front"

    return bookkeeping


def prepare_ask(run: RunFolder) -> Callable[[], str]:
    """A study that is loaded; the step is one draw by the sampler of the study."""
    config = run_config(run)
    study = open_study(run, config, None)
    draws = len(study.get_trials(deepcopy=False))

    def ask() -> str:
        study.sampler = make_sampler(config.study.sampler, config.study.seed, draws, 0)
        trial = study.ask()
        draw_parameters(trial)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return f"sampler {config.study.sampler}, {draws} trials"

    return ask


STEPS: dict[str, Callable[[RunFolder], Callable[[], str]]] = {
    "open": lambda run: lambda: step_open(run),
    "resume": lambda run: lambda: step_resume(run),
    "next trial": prepare_next,
    "ask": prepare_ask,
}
"""Step -> its preparation (not timed), which gives what is timed."""


def run_step(run: RunFolder, name: str) -> None:
    """Time one step in this process; its figures go to standard output as JSON."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    step = STEPS[name](run)
    began, cpu_began = time.perf_counter(), time.process_time()
    note = step()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "note": note}))
    exec(TELL_PEAK)


def measured(name: str, command: list[str], inside: bool) -> Figure:
    """A step in a fresh process: its own seconds if it tells them (``inside``), else the wall time."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed: {' '.join(command)}")
    *_, before_peak, peak = output.splitlines()
    peak_mb = float(peak)
    if not inside:
        return Figure(name, seconds, usage.ru_utime + usage.ru_stime, peak_mb, "command line, imports included")
    told = json.loads(before_peak)
    return Figure(name, told["seconds"], told["cpu_seconds"], peak_mb, told["note"])


def figures(run: RunFolder) -> list[Figure]:
    """All steps, each in a fresh process; the draw comes last, because it adds a trial."""
    python, here = sys.executable, str(Path(__file__).resolve())
    found = [
        measured(f"{command} command", [python, "-c", RUN_COMMAND + TELL_PEAK, command, str(run.root)], inside=False)
        for command in ("front", "report")
    ]
    return [
        *(measured(name, [python, here, str(run.root), "--step", name], inside=True) for name in STEPS),
        *found,
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a real run, whose study and baseline are copied")
    parser.add_argument("--at", type=Path, default=Path("runs/large_run"), help="folder of the made-up run; replaced")
    parser.add_argument("--candidates", type=int, default=5000)
    parser.add_argument("--keep", action="store_true", help="measure the run that lies at --at already")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(open_run(arguments.run), arguments.step)
        return
    run, written = RunFolder(arguments.at), dict[str, float]()
    if not arguments.keep:
        written = make_run(open_run(arguments.run), run, arguments.candidates)
    found = figures(run)
    for state, seconds in written.items():
        print(f"writing a record, {state}: {1000 * seconds:.1f} ms")
    print("seconds are wall time; 'cpu s' is what they would be on an idle core")
    print(f"{'step':<16}{'seconds':>9}{'cpu s':>8}{'peak MB':>9}  note")
    for figure in found:
        print(f"{figure.step:<16}{figure.seconds:>9.3f}{figure.cpu_seconds:>8.3f}{figure.peak_mb:>9.0f}  {figure.note}")
    page_mb = run.report.stat().st_size / 1e6
    print(f"report page: {page_mb:.1f} MB")
    if arguments.out:
        content = {
            "candidates": arguments.candidates,
            "record_seconds": written,
            "page_mb": page_mb,
            "steps": [asdict(figure) for figure in found],
        }
        arguments.out.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
