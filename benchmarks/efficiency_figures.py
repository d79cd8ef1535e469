"""What a piece of the comparison of engines leaves behind, and what follows from all of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from autocompress.candidate import Accuracy, Origin, Score
from autocompress.config import LimitsSection
from autocompress.engine.pareto import REFERENCE_POINT, ObjectiveVector, hypervolume
from autocompress.report.verdict import CLAIM_DROP_POINTS

ENGINES: dict[str, dict[str, str]] = {
    "ladder": {"engine": "ladder"},
    "tpe": {"engine": "plain", "sampler": "tpe"},
    "sequential": {"engine": "plain", "sampler": "tpe"},
    "nsga2": {"engine": "plain", "sampler": "nsga2"},
}
STOCK = ("tpe", "nsga2")
SCORES = "test_scores.json"
"""Beside a piece's ``result.json``."""
GRACE_S = 60.0
"""A trial begun within the time may end so much later and still counts, for every engine: a last training is cut to
the seconds left at the speed of an earlier one, and export, evaluation and timing follow."""


REFERENCE_LIMITS = LimitsSection(
    max_accuracy_drop=REFERENCE_POINT[0],
    max_size_ratio=math.exp(REFERENCE_POINT[1]),
    min_speedup=math.exp(-REFERENCE_POINT[2]),
)
"""Those that the reference point of the hypervolume sets by itself."""


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
    peak_memory_mb: float | None = None


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


# What was kept


def piece_folder(out: Path, engine: str, seed: int) -> Path:
    """Where a piece lies."""
    return out / f"{engine}_seed{seed}"


def read_result(path: Path) -> EngineRun:
    """A piece's result."""
    return EngineRun.model_validate_json(path.read_text(encoding="utf-8"))


def read_results(out: Path) -> list[EngineRun]:
    """Results of all pieces that have ended, by seed, then by engine."""
    order = list(ENGINES)
    found = [read_result(path) for path in out.glob("*_seed*/result.json")]
    return sorted(found, key=lambda run: (run.seed, order.index(run.engine)))


def read_scores(out: Path) -> list[TestScore]:
    """Test scores of all pieces that were scored."""
    written = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(f"*_seed*/{SCORES}"))]
    return [TestScore.model_validate(entry) for content in written for entry in content["scores"]]


def tuned_runs(out: Path, engine: str) -> list[EngineRun]:
    """What ``tune`` has found for an engine, by budget."""
    found = [read_result(path) for path in (out / "tune").glob(f"*/{engine}_seed*/result.json")]
    return sorted(found, key=lambda run: run.steps)


def tuned_steps(out: Path, engine: str) -> int | None:
    """The best budget of an engine; TPE's for those that were not tuned themselves, the study's for the ladder."""
    runs = tuned_runs(out, engine) or ([] if engine == "ladder" else tuned_runs(out, "tpe"))
    return max(runs, key=lambda run: final_volume(run.counted)).steps if runs else None


def now() -> str:
    """The time, for records."""
    return datetime.now(UTC).isoformat(timespec="seconds")
