"""Timing is paired, notices a drifting baseline, and runs without torch."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.deploy import machine_lock, timing
from autocompress.deploy.timing import InputSpec, Sitting, bootstrap_interval, measure, sit, time_latency
from autocompress.errors import TrialFailed

INPUTS = [("features", (1, 64), "float32")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A linear layer, 64 -> 64."""
    weight = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "weight"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]),
        tmp_path / "model.onnx",
    )
    return tmp_path / "model.onnx"


def steady(pairs: int = 20, change: float = 0.0) -> Sitting:
    """Blocks of three runs of about a second; the baseline slows down by ``change`` half way."""
    rng = np.random.default_rng(0)
    noise = 1 + 0.001 * rng.standard_normal((2, pairs, 3))
    slow = np.where(np.arange(pairs) < pairs // 2, 1.0, 1.0 + change)[:, None]
    return Sitting(candidate=0.5 * slow * noise[0], baseline=slow * noise[1])


# --- the figures --------------------------------------------------------------------------------------------


def test_figures_of_a_known_sitting() -> None:
    figures = steady().figures()
    assert figures["ratio"] == pytest.approx(0.5, rel=1e-3)
    assert figures["ratio_low"] <= figures["ratio"] <= figures["ratio_high"]
    assert figures["latency_ms"] == pytest.approx(500, rel=1e-3)
    assert figures["baseline_ms"] == pytest.approx(1000, rel=1e-3)
    assert figures["latency_ms"] < figures["p90_ms"] < 505


def test_the_paired_ratio_ignores_what_hits_both() -> None:
    assert steady(change=3.0).figures()["ratio"] == pytest.approx(0.5, rel=1e-3)


def test_drift_is_noticed() -> None:
    assert steady().drift() < 0.2
    assert steady(change=0.04).drift() < 1 < steady(change=0.06).drift()
    baseline = np.where(np.arange(20) % 2, 1.0, 1.5)[:, None]
    assert Sitting(baseline, baseline).drift() > 1


def test_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(np.exp(0.1 * rng.standard_normal(30))) for _ in range(200)]
    covered = np.mean([low <= 1 <= high for low, high in intervals])
    assert 0.88 <= covered <= 0.99


def test_interval_of_equal_values_is_a_point() -> None:
    assert bootstrap_interval(np.full(9, 0.7)) == (0.7, 0.7)


def test_inputs_have_their_shape_and_dtype() -> None:
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float16", "int64", "int32", "bool", "uint8"):
        array = InputSpec("x", (2, 3), dtype).draw(rng)
        assert (array.shape, array.dtype) == ((2, 3), np.dtype(dtype))


# --- the sitting --------------------------------------------------------------------------------------------


def test_blocks_alternate_and_change_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def run(name: str) -> None:
        calls.append(name)
        time.sleep(0.002)

    monkeypatch.setattr(timing, "_warm_up", lambda run: timing._BLOCK_S / 2)
    sitting = sit(lambda: run("a"), lambda: run("b"), seconds=0.0)
    assert sitting.candidate.shape == sitting.baseline.shape == (timing._LEAST_PAIRS, 2)
    assert "".join(calls) == "aabbbbaa" * (timing._LEAST_PAIRS // 2)


def test_blocks_take_equal_time_not_equal_runs() -> None:
    sitting = sit(lambda: time.sleep(0.0005), lambda: time.sleep(0.004), seconds=0.1)
    assert sitting.candidate.shape[1] > sitting.baseline.shape[1]
    figures = sitting.figures()
    assert figures["ratio_low"] <= figures["ratio"] <= figures["ratio_high"] < 1


@pytest.mark.parametrize(
    ("changes", "sittings", "noisy"),
    [([0.0], 1, False), ([0.2, 0.0], 2, False), ([0.2, 0.1, 0.3], 3, True)],
)
def test_drifting_sittings_are_repeated(
    changes: list[float], sittings: int, noisy: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = iter(changes)
    taken: list[Sitting] = []

    def pretend(candidate: object, baseline: object, seconds: float) -> Sitting:
        taken.append(steady(change=next(planned)))
        return taken[-1]

    monkeypatch.setattr(timing, "sit", pretend)
    figures = measure(request(model))
    assert len(taken) == sittings
    assert figures["noisy"] is noisy
    kept = min(taken, key=Sitting.drift)
    assert figures["baseline_ms"] == kept.figures()["baseline_ms"]


def request(model: Path) -> dict[str, object]:
    return {
        "candidate": str(model),
        "baseline": str(model),
        "inputs": [{"name": name, "shape": shape, "dtype": dtype} for name, shape, dtype in INPUTS],
        "threads": 1,
        "seconds": 0.2,
    }


# --- the process --------------------------------------------------------------------------------------------


def test_a_file_against_itself(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    @contextlib.contextmanager
    def recorded() -> Iterator[None]:
        turns.append("taken")
        yield
        turns.append("given back")

    monkeypatch.setattr(machine_lock, "timing", recorded)
    latency = time_latency(model, model, INPUTS, threads=1, seconds=0.3)
    assert turns == ["taken", "given back"]
    assert 0 < latency.latency_ms <= latency.p90_ms
    assert latency.baseline_ms > 0
    assert latency.ratio_low <= latency.ratio <= latency.ratio_high
    assert 0.5 < latency.ratio < 2


def test_the_timing_process_is_light(model: Path) -> None:
    script = (
        "import runpy, sys\n"
        "runpy.run_module('autocompress.deploy.timing', run_name='__main__')\n"
        "loaded = {'torch', 'pydantic', 'onnx', 'optuna'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    command = [sys.executable, "-c", script]
    content = json.dumps(request(model))
    done = subprocess.run(command, input=content, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) >= {"latency_ms", "ratio", "noisy"}


@pytest.mark.parametrize("inputs", [[("features", (1, 63), "float32")], [("pixels", (1, 64), "float32")]])
def test_inputs_that_do_not_fit_fail_in_one_line(model: Path, inputs: list[tuple[str, tuple[int, ...], str]]) -> None:
    with pytest.raises(TrialFailed, match="could not be timed") as failure:
        time_latency(model, model, inputs, threads=1)
    assert failure.value.kind == "timing"
    assert "\n" not in str(failure.value)


def test_a_missing_file_fails(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrialFailed, match=r"absent\.onnx does not load"):
        time_latency(tmp_path / "absent.onnx", model, INPUTS, threads=1)


def test_timing_that_takes_too_long_fails(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "TIMEOUT_S", 0.01)
    with pytest.raises(TrialFailed, match="must end within"):
        time_latency(model, model, INPUTS, threads=1)
