"""Candidates -> one table, a row a trial; every view, text and JSON list is made from it.

Accuracies are fractions in [0, 1], drops are percentage points, ratios are candidate / baseline.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from autocompress.candidate import Accuracy, Candidate, Estimate, Latency, Measurement, Score, State
from autocompress.config import ObjectiveSection
from autocompress.deploy.timing import is_slowed
from autocompress.engine import pareto
from autocompress.engine.sittings import usual_baseline_ms
from autocompress.plan import Plan

_SPLITS = {"val": "validation", "test": "test"}
_ACCURACY_COLUMNS: dict[str, Callable[[Accuracy | Score], float]] = {
    "accuracy": lambda accuracy: accuracy.fraction,
    "low": lambda accuracy: accuracy.interval()[0],
    "high": lambda accuracy: accuracy.interval()[1],
    "drop_points": lambda accuracy: accuracy.drop_points,
    "drop_low": lambda accuracy: accuracy.drop_interval_points()[0],
    "drop_high": lambda accuracy: accuracy.drop_interval_points()[1],
}
_LATENCY_COLUMNS: dict[str, Callable[[Latency], float]] = {
    "latency_ms": lambda latency: latency.latency_ms,
    "latency_p90_ms": lambda latency: latency.p90_ms,
    "latency_ratio": lambda latency: latency.ratio,
    "latency_ratio_low": lambda latency: latency.ratio_low,
    "latency_ratio_high": lambda latency: latency.ratio_high,
    "latency_speedup": lambda latency: 1.0 / latency.ratio,
}
_ESTIMATE_COLUMNS: dict[str, Callable[[Estimate], float | None]] = {
    "estimated_drop_points": lambda estimate: estimate.drop_points,
    "estimated_size_ratio": lambda estimate: estimate.size_ratio,
    "estimated_latency_ratio": lambda estimate: estimate.latency_ratio,
}
_TEXT = ("origin", "state", "name", "family", "reason", "artifact", "plan")
_FLAGS = ("on_front", "feasible", "noisy")
# Counts can be missing, which pandas' plain integers cannot say.
_COUNTS = ("trial", "parent", "size_bytes", "compressed_bytes", "steps", "total_steps")


def candidates_frame(
    candidates: Sequence[Candidate], baseline: Measurement, objective: ObjectiveSection
) -> pd.DataFrame:
    """One row a trial in order of trials; what was not measured is missing.

    Columns: ``trial origin state name parent family on_front feasible``; for the splits ``val`` and ``test``
    each ``*_accuracy *_low *_high`` (Wilson 95 % interval) and ``*_drop_points *_drop_low *_drop_high``
    (paired 95 % interval); ``size_bytes compressed_bytes size_ratio size_reduction compressed_ratio``;
    ``latency_ms latency_p90_ms latency_ratio latency_ratio_low latency_ratio_high latency_speedup noisy``;
    ``h``; ``steps total_steps started_s finished_s reason``; ``artifact`` (path in the run folder); ``plan``
    (a summary); ``estimated_drop_points estimated_size_ratio estimated_latency_ratio`` (what was expected before
    anything was trained).
    """
    members = {candidate.trial for candidate in pareto.front(candidates)}
    usual_ms = usual_baseline_ms(baseline, candidates)
    ordered = sorted(candidates, key=lambda candidate: candidate.trial)
    rows = [
        {
            **_record_columns(candidate),
            "on_front": candidate.trial in members,
            **_measurement_columns(candidate.measurement, baseline, objective, usual_ms),
            **_estimate_columns(candidate.estimate),
        }
        for candidate in ordered
    ]
    return _typed(pd.DataFrame(rows, columns=_columns()))


def front_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The front, fastest first, as values that JSON knows; what is missing is None."""
    members = front_rows(frame)
    records: list[dict[str, Any]] = json.loads(members.to_json(orient="records", double_precision=15))
    return records


def front_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the front, fastest first."""
    return frame[frame["on_front"]].sort_values(["latency_ratio", "size_ratio", "trial"])


def plan_summary(plan: Plan) -> str:
    """What a plan decides, in one line."""
    architecture, ratios = plan.architecture, plan.pruning.ratios.values()
    choices = ", ".join(f"{label}={choice}" for label, choice in architecture.choices.items())
    dropped = len(architecture.dropped_blocks)
    precisions = Counter(precision.value for precision in plan.quantization.precisions.values())
    parts = [
        choices,
        f"{dropped} {'block' if dropped == 1 else 'blocks'} dropped" if dropped else "",
        f"mean pruning ratio {sum(ratios) / len(ratios):.2f}" if any(ratios) else "",
        ", ".join(f"{count} layers {precision}" for precision, count in precisions.most_common()),
    ]
    return "; ".join(part for part in parts if part)


def _columns() -> list[str]:
    accuracy = [f"{split}_{column}" for split in _SPLITS for column in _ACCURACY_COLUMNS]
    size = ["size_bytes", "compressed_bytes", "size_ratio", "size_reduction", "compressed_ratio"]
    before = ["trial", "origin", "state", "name", "parent", "family", "on_front", "feasible"]
    after = ["noisy", "h", "steps", "total_steps", "started_s", "finished_s", "reason", "artifact", "plan"]
    return [*before, *accuracy, *size, *_LATENCY_COLUMNS, *after, *_ESTIMATE_COLUMNS]


def _record_columns(candidate: Candidate) -> dict[str, Any]:
    return {
        "trial": candidate.trial,
        "origin": candidate.origin.value,
        "state": candidate.state.value,
        "name": candidate.name,
        "parent": candidate.parent,
        "family": candidate.plan.architecture.family,
        "feasible": candidate.feasible,
        "steps": candidate.plan.training.steps,
        "total_steps": candidate.total_steps,
        "started_s": candidate.started_s,
        "finished_s": candidate.finished_s,
        "reason": candidate.reason,
        "artifact": f"trials/{candidate.trial:04d}/model.onnx" if candidate.state is State.COMPLETE else None,
        "plan": plan_summary(candidate.plan),
    }


def _measurement_columns(
    measurement: Measurement | None, baseline: Measurement, objective: ObjectiveSection, usual_ms: float
) -> dict[str, Any]:
    if measurement is None:
        return {"noisy": False}
    in_full = measurement.validation is not None and measurement.latency is not None
    return {
        **_size_columns(measurement, baseline),
        **_latency_columns(measurement.latency, usual_ms),
        **_accuracy_columns("val", measurement.validation),
        **_accuracy_columns("test", measurement.test),
        "h": pareto.scalar_objective(measurement, objective) if in_full else None,
    }


def _size_columns(measurement: Measurement, baseline: Measurement) -> dict[str, Any]:
    return {
        "size_bytes": measurement.size_bytes,
        "compressed_bytes": measurement.compressed_bytes,
        "size_ratio": measurement.size_ratio,
        "size_reduction": 1.0 / measurement.size_ratio,
        "compressed_ratio": measurement.compressed_bytes / baseline.compressed_bytes,
    }


def _latency_columns(latency: Latency | None, usual_ms: float) -> dict[str, Any]:
    if latency is None:
        return {"noisy": False}
    # by all sittings of the run, not by those that had been when it was timed
    return {"noisy": is_slowed(latency.baseline_ms, usual_ms)} | {
        name: column(latency) for name, column in _LATENCY_COLUMNS.items()
    }


def _accuracy_columns(split: str, accuracy: Accuracy | Score | None) -> dict[str, float]:
    if accuracy is None:
        return {}
    return {f"{split}_{name}": column(accuracy) for name, column in _ACCURACY_COLUMNS.items()}


def _estimate_columns(estimate: Estimate | None) -> dict[str, float | None]:
    return {} if estimate is None else {name: column(estimate) for name, column in _ESTIMATE_COLUMNS.items()}


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    kinds: dict[str, str] = dict.fromkeys(frame.columns, "float64")
    kinds |= dict.fromkeys(_TEXT, "object") | dict.fromkeys(_FLAGS, "bool") | dict.fromkeys(_COUNTS, "Int64")
    return frame.astype(kinds)
