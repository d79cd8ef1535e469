"""Timing is paired, sees through neighbours, notices a slowed baseline, and runs without torch."""

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


def shared(pairs: int = 90, busy: float = 0.8, slower: tuple[float, float] = (1.7, 1.25)) -> Sitting:
    """Blocks of three runs, of 0.5 and 1 s on a quiet machine, a share of them beside a neighbour.

    Args:
        slower: by how much the neighbour slows candidate and baseline down.
    """
    rng = np.random.default_rng(0)
    noise = 1 + 0.001 * rng.standard_normal((2, pairs, 3))
    is_busy = rng.permutation(pairs) < busy * pairs
    factors = [np.where(is_busy, factor, 1.0)[:, None] for factor in slower]
    return Sitting(candidate=0.5 * factors[0] * noise[0], baseline=factors[1] * noise[1])


# --- the figures --------------------------------------------------------------------------------------------


def test_figures_of_a_known_sitting() -> None:
    figures = shared(busy=0.0).figures()
    assert figures["ratio"] == pytest.approx(0.5, rel=1e-3)
    assert figures["ratio_low"] <= figures["ratio"] <= figures["ratio_high"]
    assert figures["latency_ms"] == pytest.approx(500, rel=2e-3)
    assert figures["baseline_ms"] == pytest.approx(1000, rel=2e-3)
    assert figures["latency_ms"] < figures["p90_ms"] < 505


@pytest.mark.parametrize("slower", [(1.7, 1.25), (1.0, 1.4), (1.4, 1.0)])
def test_a_neighbour_who_slows_one_file_more_does_not_move_the_ratio(slower: tuple[float, float]) -> None:
    sitting = shared(slower=slower)
    of_all = np.median(np.median(sitting.candidate, axis=1) / np.median(sitting.baseline, axis=1))
    assert abs(of_all / 0.5 - 1) > 0.25
    assert sitting.figures()["ratio"] == pytest.approx(0.5, rel=2e-3)
    assert sitting.figures()["p90_ms"] == pytest.approx(500 * slower[0], rel=0.01)


def test_quiet_pairs_favour_neither_file() -> None:
    rng = np.random.default_rng(1)
    times = np.exp(0.2 * rng.standard_normal((2, 300, 400, 3)))
    ratios = [Sitting(candidate, baseline).figures()["ratio"] for candidate, baseline in zip(*times, strict=True)]
    assert abs(np.mean(np.log(ratios))) < 4 * np.std(np.log(ratios)) / np.sqrt(len(ratios))


@pytest.mark.parametrize(("pairs", "quiet"), [(6, 6), (20, 6), (40, 10), (90, 22), (270, 24)])
def test_how_many_pairs_are_quiet(pairs: int, quiet: int) -> None:
    sitting = shared(pairs)
    found = sitting.quiet()
    assert found.candidate.shape == found.baseline.shape == (quiet, 3)
    products = np.median(sitting.candidate, axis=1) * np.median(sitting.baseline, axis=1)
    of_quiet = np.median(found.candidate, axis=1) * np.median(found.baseline, axis=1)
    assert sorted(of_quiet) == sorted(products)[:quiet]


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
    sitting = next(sit(lambda: run("a"), lambda: run("b"), seconds=0.0))
    assert sitting.candidate.shape == sitting.baseline.shape == (timing._LEAST_PAIRS, 2)
    assert "".join(calls) == "aabbbbaa" * (timing._LEAST_PAIRS // 2)


def test_blocks_take_equal_time_not_equal_runs() -> None:
    sitting = next(sit(lambda: time.sleep(0.0005), lambda: time.sleep(0.004), seconds=0.1))
    assert sitting.candidate.shape[1] > sitting.baseline.shape[1]
    figures = sitting.figures()
    assert figures["ratio_low"] <= figures["ratio"] <= figures["ratio_high"] < 1


def test_a_sitting_goes_on_with_the_pairs_that_it_has() -> None:
    shorter, longer, longest = sit(lambda: time.sleep(0.001), lambda: time.sleep(0.001), seconds=0.1)
    assert len(shorter.baseline) < len(longer.baseline) < len(longest.baseline)
    assert (longest.baseline[: len(shorter.baseline)] == shorter.baseline).all()


@pytest.mark.parametrize(
    ("usual_ms", "slower", "parts", "noisy"),
    [
        (1000.0, [1.05], 1, False),
        (1000.0, [1.2, 1.05], 2, False),
        (1000.0, [1.2, 1.3, 1.2], 3, True),
        (None, [1.0, 1.0, 1.2], 3, False),
    ],
)
def test_a_sitting_goes_on_while_the_baseline_is_slowed_down(
    usual_ms: float | None,
    slower: list[float],
    parts: int,
    noisy: bool,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[Sitting] = []

    def pretend(candidate: object, baseline: object, seconds: float) -> Iterator[Sitting]:
        for factor in slower:
            taken.append(shared(busy=1.0, slower=(1.0, factor)))
            yield taken[-1]

    monkeypatch.setattr(timing, "sit", pretend)
    figures = measure({**request(model), "usual_ms": usual_ms})
    assert len(taken) == parts
    assert figures["noisy"] is noisy
    assert figures["baseline_ms"] == taken[-1].figures()["baseline_ms"]


def request(model: Path) -> dict[str, object]:
    return {
        "candidate": str(model),
        "baseline": str(model),
        "inputs": [{"name": name, "shape": shape, "dtype": dtype} for name, shape, dtype in INPUTS],
        "threads": 1,
        "usual_ms": None,
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
