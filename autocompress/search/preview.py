"""What ``check`` says before any search: does everything load, can the limits be met, how long will it take."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autocompress.analysis import Analysis
from autocompress.candidate import Measurement
from autocompress.config import LimitsSection, StudyConfig
from autocompress.data.task import TaskData
from autocompress.deploy.measure import compare_hits, measure_bytes
from autocompress.pipeline import Bench, build_network, draft, finish, parity, split_hits
from autocompress.plan import Plan, TrainingSpec
from autocompress.search.baseline import (
    Inputs,
    load_inputs,
    make_bench,
    measure_baseline,
    measure_latency,
    restore_base,
    validation_hits,
)
from autocompress.search.events import Silent
from autocompress.search.limits import limit_names, violations
from autocompress.search.run_folder import RunFolder, read_analysis, read_baseline, read_facts
from autocompress.search.session import make_space
from autocompress.search.space import PerLayer, Space
from autocompress.search.trial import describe
from autocompress.stage_clock import StageClock

PROBE_STEPS = 20


def preview(config: StudyConfig) -> Iterator[str]:
    """Lines to print, each as soon as it is known. Everything happens in a temporary folder.

    Raises:
        UserError: what a search of this study would raise.
    """
    inputs = load_inputs(config)
    yield from _data_lines(inputs.data)
    with tempfile.TemporaryDirectory(prefix="autocompress-check-") as folder:
        run = RunFolder(Path(folder))
        run.baseline.mkdir()
        if config.model.weights is None:
            yield f"base: no weights given, training it for {config.baseline.steps} steps"
        measure_baseline(run, inputs, Silent())
        digest = restore_base(run, inputs)
        baseline, analysis = read_baseline(run), read_analysis(run)
        yield from _baseline_lines(baseline)
        yield from _analysis_lines(analysis, inputs)
        bench = make_bench(run, inputs, read_facts(run))
        space = make_space(config, inputs, analysis, digest)
        yield from _limit_lines(run, bench, space, config, baseline)
        yield from _duration_lines(run, bench, space, config, float(read_facts(run)["baseline_s"]))


def _data_lines(data: TaskData) -> Iterator[str]:
    counts = ", ".join(f"{len(getattr(data, name))} {name}" for name in ("train", "calibration", "validation", "test"))
    shapes = ", ".join(
        f"{name} {tuple(x.shape[1:])}" for name, x in zip(data.input_names, data.example_inputs(1), strict=True)
    )
    yield f"data: {counts}; {len(data.class_names)} classes; inputs {shapes}"


def _baseline_lines(baseline: Measurement) -> Iterator[str]:
    assert baseline.validation is not None and baseline.latency is not None
    low, high = baseline.validation.interval()
    yield (
        f"base: validation accuracy {baseline.validation.fraction:.2%} ({low:.2%} to {high:.2%}), "
        f"{baseline.size_bytes:,} bytes, {baseline.latency.latency_ms:.3g} ms"
        f"{' (noisy machine)' if baseline.latency.noisy else ''}"
    )


def _analysis_lines(analysis: Analysis, inputs: Inputs) -> Iterator[str]:
    covered = {layer for group in analysis.groups for layer in group.layers}
    sizes = {name: sum(p.numel() for p in inputs.base.get_submodule(name).parameters()) for name in analysis.layers}
    share = sum(size for name, size in sizes.items() if name in covered) / max(1, analysis.parameters)
    yield f"found: {len(analysis.groups)} prunable groups that touch {share:.0%} of {analysis.parameters:,} parameters"
    for run in analysis.runs:
        yield f"found: {len(run.blocks)} removable blocks in {run.name or 'the network'}, least missed first: {', '.join(run.blocks)}"
    yield f"found: {len(analysis.layers)} layers whose precision can be chosen"
    for name, reason in analysis.left_out.items():
        yield f"left out: {name}: {reason}"


class _Extreme:
    """Answers like a trial, always with the last option (least precise, most pruned) or the first (smallest member)."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """High for what is removed or coarsened, low for what the model space builds."""
        shrinks = name.startswith("base.") or name.partition(":")[0].endswith((".precision", ".sparsity"))
        return high if shrinks and not name.endswith("block_order") else low

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Low."""
        return low

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The family that is asked for."""
        return choices[0]


class _ExtremeOf(_Extreme):
    def __init__(self, family: str) -> None:
        self._family = family

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The family that is asked for."""
        return self._family


def _limit_lines(
    run: RunFolder, bench: Bench, space: Space, config: StudyConfig, baseline: Measurement
) -> Iterator[str]:
    """The smallest plan of each family, and which limits on bytes and latency it meets."""
    least: dict[str, float] = {}
    for family in space.families():
        plan = space.suggest_plan(PerLayer(_ExtremeOf(family)), 0)
        path = run.root / f"{family}.onnx"
        draft(bench, build_network(bench, plan), plan, path, StageClock())
        latency = measure_latency(path, run.baseline / "model.onnx", bench.data, config.target)
        measurement = measure_bytes(path, baseline.size_bytes).model_copy(update={"latency": latency})
        yield (
            f"smallest plan of family {family}: {measurement.size_bytes:,} bytes ({1 / measurement.size_ratio:.1f}x smaller), "
            f"{latency.latency_ms:.3g} ms ({1 / latency.ratio:.1f}x faster)"
        )
        for name, amount in violations(config.limits, measurement, baseline.size_bytes).items():
            least[name] = min(amount, least.get(name, math.inf))
    yield from _verdicts(config.limits, least)


def _verdicts(limits: LimitsSection, least: dict[str, float]) -> Iterator[str]:
    values = limits.model_dump()
    for name in limit_names(limits):
        if name not in least:
            yield f"limit {name} = {values[name]}: only training can tell"
        elif least[name] <= 0:
            yield f"limit {name} = {values[name]}: can be met"
        else:
            yield f"limit {name} = {values[name]}: CANNOT be met, the smallest plan is {math.exp(least[name]):.2f} times over; loosen it"


def _duration_lines(
    run: RunFolder, bench: Bench, space: Space, config: StudyConfig, baseline_s: float
) -> Iterator[str]:
    """Try one candidate of each family for a few steps and extrapolate."""
    seconds = []
    for family in space.families():
        plan = space.suggest_plan(PerLayer(_ExtremeOf(family)), 0)
        seconds.append(_trial_seconds(run, bench, plan, config))
        yield f"one trial of family {family}: about {seconds[-1]:.0f} s ({plan.training.steps} steps; tried: {describe(plan)[:80]})"
    average = sum(seconds) / len(seconds)
    study = config.study
    if study.timeout_s is not None:
        rest = max(0.0, study.timeout_s * (1 - config.training.continued_fraction) - baseline_s)
        yield f"the study takes {study.timeout_s / 60:.0f} minutes, baseline included: about {rest / average:.0f} short trials, then continued training"
    if study.trials is not None:
        yield f"{study.trials} trials take about {(baseline_s + study.trials * average) / 60:.0f} minutes"


def _trial_seconds(run: RunFolder, bench: Bench, plan: Plan, config: StudyConfig) -> float:
    """Wall seconds of a whole trial, from one whose training is cut to a few steps."""
    short = plan.model_copy(update={"training": TrainingSpec(steps=min(PROBE_STEPS, plan.training.steps))})
    path, clock, started = run.root / "tried.onnx", StageClock(), time.perf_counter()
    unfinished = draft(bench, build_network(bench, short), short, path, clock)
    deployable = finish(bench, unfinished, short, path, run.root / "tried.safetensors", clock)
    parity(bench, path, deployable, short)
    compare_hits(split_hits(bench, path, bench.data.validation), validation_hits(run))
    measure_latency(path, run.baseline / "model.onnx", bench.data, config.target)
    whole = time.perf_counter() - started
    steps = max(1, short.training.steps)
    return whole + clock.seconds["train"] * (plan.training.steps - steps) / steps
