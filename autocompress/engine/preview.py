"""What ``check`` says before any search: does everything load, can the limits be met, how long will it take."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from autocompress.analysis import Analysis, time_shares
from autocompress.candidate import Measurement
from autocompress.config import LimitsSection, StudyConfig
from autocompress.data.task import TaskData
from autocompress.deploy.measure import measure_bytes
from autocompress.deploy.saturation import SATURATION
from autocompress.engine.baseline import (
    SATURATES,
    Inputs,
    load_inputs,
    make_bench,
    measure_baseline,
    measure_latency,
    restore_base,
    validation_answers,
)
from autocompress.engine.events import Silent
from autocompress.engine.limits import limit_names, violations
from autocompress.engine.run_folder import RunFolder, read_analysis, read_baseline, read_facts
from autocompress.engine.session import make_space
from autocompress.engine.sittings import usual_baseline_ms
from autocompress.engine.space import SPARSITY_KINDS, PerLayer, Space
from autocompress.engine.trial import describe
from autocompress.errors import TrialFailed
from autocompress.pipeline import Bench, answers, build_network, compare, draft, finish, parity
from autocompress.plan import Plan, TrainingSpec
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
        if inputs.train_base:
            yield f"base: training it for {config.baseline.steps} steps"
        measure_baseline(run, inputs, Silent())
        digest = restore_base(run, inputs)
        baseline, analysis = read_baseline(run), read_analysis(run)
        yield from _baseline_lines(baseline)
        yield from _analysis_lines(analysis, inputs)
        facts = read_facts(run)
        bench = make_bench(run, inputs, facts)
        if facts[SATURATES]:
            yield f"note: {SATURATION}, so w8a8 is done as w7a8"
        space = make_space(config, inputs, analysis, digest, facts)
        yield from _limit_lines(run, bench, space, config, baseline)
        yield from _duration_lines(run, bench, space, config, float(facts["baseline_s"]))


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
    )


def _analysis_lines(analysis: Analysis, inputs: Inputs) -> Iterator[str]:
    """What may be changed, how much of the network that is, and what was left out."""
    shares = time_shares(inputs.base, inputs.data.example_inputs(2), inputs.data.axes, analysis)
    blocks = tuple(block for run in analysis.runs for block in run.blocks)
    grouped = {layer for group in analysis.groups for layer in group.layers}
    chosen = {layer.name for layer in analysis.layers}
    kinds = Counter(group.kind for group in analysis.groups)
    precisions = Counter(layer.kind for layer in analysis.layers)
    rows: dict[str, tuple[str, Callable[[str], bool]]] = {
        "blocks": (f"{len(blocks)} removable blocks", lambda name: name.startswith(tuple(f"{b}." for b in blocks))),
        "groups": (
            f"{len(analysis.groups)} prunable groups{_counts(kinds)}",
            lambda name: name in grouped or name.rpartition(".")[0] in grouped,
        ),
        "layers": (
            f"{len(analysis.layers)} layers whose precision can be chosen{_counts(precisions)}",
            lambda name: name in chosen or name.rpartition(".")[0] in chosen,
        ),
    }
    for key, (title, belongs) in rows.items():
        parameters = sum(p.numel() for name, p in inputs.base.named_parameters() if belongs(name))
        part = parameters / max(1, analysis.parameters)
        yield f"found: {title}: {part:.0%} of {analysis.parameters:,} parameters, {shares[key]:.0%} of the time in PyTorch"
    for run in analysis.runs:
        yield f"blocks of {run.name or 'the network'}, least missed first: {', '.join(run.blocks)}"
    for reason, names in _by_reason(analysis.left_out).items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield f"left out: {shown}: {reason}"


def _counts(kinds: Counter[str]) -> str:
    return f" ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})" if kinds else ""


def _by_reason(left_out: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        found.setdefault(reason, []).append(name)
    return found


class _Extreme:
    """Answers like a trial, always with the last option (least precise, most pruned) or the first (smallest member)."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """High for what is removed or coarsened, low for what the model space builds."""
        kind = name.partition(":")[0].rpartition(".")[2]
        shrinks = name.startswith("base.") or kind in ("precision", "embedding", *SPARSITY_KINDS.values())
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
    found: dict[str, dict[str, float]] = {}
    for family in space.families():
        plan = space.suggest_plan(PerLayer(_ExtremeOf(family)), 0)
        path = run.root / f"{family}.onnx"
        draft(bench, build_network(bench, plan), plan, path, StageClock())
        usual_ms = usual_baseline_ms(baseline, ())
        latency = measure_latency(path, run.baseline / "model.onnx", bench.data, config.target, usual_ms)
        measurement = measure_bytes(path, baseline.size_bytes).model_copy(update={"latency": latency})
        yield (
            f"smallest plan of family {family}: {measurement.size_bytes:,} bytes ({1 / measurement.size_ratio:.1f}x smaller), "
            f"{latency.latency_ms:.3g} ms ({1 / latency.ratio:.1f}x faster)"
        )
        found[family] = violations(config.limits, measurement, baseline.size_bytes)
    yield from _limits_table(config.limits, found)


def _limits_table(limits: LimitsSection, found: dict[str, dict[str, float]]) -> Iterator[str]:
    """A row for each limit: what the smallest plan of each family makes of it."""
    names = limit_names(limits)
    if not names:
        yield "limits: the study sets none"
        return
    rows = [["limit", "value", *found, "verdict"]]
    values = limits.model_dump()
    for name in names:
        amounts = [amounts.get(name) for amounts in found.values()]
        cells = ["-" if a is None else "met" if a <= 0 else f"{math.exp(a):.2f} times over" for a in amounts]
        known = [a for a in amounts if a is not None]
        verdict = (
            "only training can tell" if not known else "can be met" if min(known) <= 0 else "CANNOT be met: loosen it"
        )
        rows.append([name, str(values[name]), *cells, verdict])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    yield from ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


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
    if study.timeout_s is not None and study.engine == "ladder":
        rest = max(0.0, study.timeout_s - baseline_s)
        yield f"the study takes {study.timeout_s / 60:.0f} minutes, baseline included: time for about {rest / average:.0f} such trials; the ladder estimates many plans and trains the best of them, for longer"
    elif study.timeout_s is not None:
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
    with suppress(TrialFailed):  # of so few steps; what counts is how long it takes
        parity(bench, path, deployable, short)
    split = bench.data.validation
    compare(bench.data, split, answers(bench, path, split, short), validation_answers(run))
    usual_ms = usual_baseline_ms(read_baseline(run), ())
    measure_latency(path, run.baseline / "model.onnx", bench.data, config.target, usual_ms)
    whole = time.perf_counter() - started
    steps = max(1, short.training.steps)
    return whole + (clock.seconds["train"] + clock.seconds["teach"]) * (plan.training.steps - steps) / steps
