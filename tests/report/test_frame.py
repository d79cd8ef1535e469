"""The table: a row a trial, figures as the records have them, JSON without NaN."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from made_up_run import Run

from autocompress.candidate import State
from autocompress.engine.pareto import front, scalar_objective
from autocompress.report.frame import candidates_frame, front_records, front_rows, plan_summary

COLUMNS = (
    "trial origin state name parent family on_front feasible "
    "val_accuracy val_low val_high val_drop_points val_drop_low val_drop_high "
    "test_accuracy test_low test_high test_drop_points test_drop_low test_drop_high "
    "size_bytes compressed_bytes size_ratio size_reduction latency_ms latency_p90_ms "
    "latency_ratio latency_ratio_low latency_ratio_high latency_speedup "
    "noisy h steps total_steps started_s finished_s reason artifact"
)


@pytest.fixture(scope="module")
def frame(run: Run) -> pd.DataFrame:
    return candidates_frame(run.candidates, run.baseline, run.config.objective)


def test_every_column_is_there_also_without_candidates(run: Run, frame: pd.DataFrame) -> None:
    empty = candidates_frame([], run.baseline, run.config.objective)
    assert set(COLUMNS.split()) <= set(frame.columns)
    assert list(empty.columns) == list(frame.columns)
    assert front_records(empty) == []


def test_figures_are_those_of_the_record(run: Run, frame: pd.DataFrame) -> None:
    candidate = next(c for c in run.candidates if c.measurement and c.measurement.test)
    measured = candidate.measurement
    assert measured and measured.validation and measured.test and measured.latency
    row = frame.set_index("trial").loc[candidate.trial]
    assert row["val_accuracy"] == measured.validation.fraction
    assert (row["val_low"], row["val_high"]) == measured.validation.interval()
    assert (row["test_drop_low"], row["test_drop_high"]) == measured.test.drop_interval_points()
    assert row["size_reduction"] == pytest.approx(1 / measured.size_ratio)
    assert row["latency_speedup"] == pytest.approx(1 / measured.latency.ratio)
    assert row["h"] == scalar_objective(measured, run.config.objective)
    assert row["artifact"] == f"trials/{candidate.trial:04d}/model.onnx"


def test_what_was_not_measured_is_missing(frame: pd.DataFrame) -> None:
    stopped = frame[frame["state"] == State.OVER_LIMIT.value]
    failed = frame[frame["state"] == State.FAILED.value]
    assert len(stopped) and stopped["size_bytes"].notna().all() and stopped["latency_ms"].notna().all()
    assert stopped[["val_accuracy", "h", "artifact"]].isna().all(axis=None)
    assert len(failed) and failed[["size_bytes", "latency_ms", "h", "artifact"]].isna().all(axis=None)


def test_the_front_is_the_front(run: Run, frame: pd.DataFrame) -> None:
    members = [candidate.trial for candidate in front(run.candidates)]
    assert list(front_rows(frame)["trial"]) == members
    assert [record["trial"] for record in front_records(frame)] == members


def test_records_are_plain_json(run: Run) -> None:
    untested = [
        c.model_copy(update={"measurement": c.measurement.model_copy(update={"test": None})})
        for c in run.candidates
        if c.measurement
    ]
    records = front_records(candidates_frame(untested, run.baseline, run.config.objective))
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert all(record["test_accuracy"] is None for record in records)
    assert all(isinstance(record["size_bytes"], int) for record in records)
    assert all(isinstance(record["on_front"], bool) for record in records)


def test_a_plan_is_told_in_one_line(run: Run) -> None:
    uncompressed, int8 = run.candidates[0].plan, run.candidates[1].plan
    assert plan_summary(uncompressed) == "56 layers float32"
    assert plan_summary(int8) == "56 layers w8a8"
    halved = plan_summary(run.candidates[3].plan)
    assert halved.startswith("mean pruning ratio 0.") and halved.endswith("; 56 layers w8a8")
