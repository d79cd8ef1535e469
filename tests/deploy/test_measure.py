"""Sizes, answers and parity are those of the file, however its answers are wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from autocompress.deploy.measure import check_parity, compare_hits, compare_scores, measure_bytes, outputs
from autocompress.errors import TrialFailed

WEIGHT = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def linear_file(folder: Path, weight: np.ndarray = WEIGHT) -> Path:
    """An ONNX file that computes logits = x weight."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weight.shape[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def examples(count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 6)).astype(np.float32)


def test_sizes_are_those_of_the_file_and_of_its_download(tmp_path: Path) -> None:
    noise, zeros = tmp_path / "noise", tmp_path / "zeros"
    noise.write_bytes(np.random.default_rng(0).bytes(10_000))
    zeros.write_bytes(bytes(10_000))
    measured = measure_bytes(noise, 40_000)
    assert measured.size_bytes == 10_000 <= measured.compressed_bytes < 10_100
    assert measured.size_ratio == 0.25
    assert measured.sha256 == hashlib.sha256(noise.read_bytes()).hexdigest()
    measured = measure_bytes(zeros)
    assert measured.size_bytes == 10_000 and measured.compressed_bytes < 100
    assert measured.size_ratio == 1.0
    packed = zstandard.ZstdCompressor(level=19).compress(noise.read_bytes())
    assert zstandard.ZstdDecompressor().decompress(packed) == noise.read_bytes()


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_outputs_are_those_of_numpy_in_the_order_of_the_split(tmp_path: Path, batch_size: int) -> None:
    x = examples(40)
    batches = ((x[i : i + batch_size],) for i in range(0, 40, batch_size))
    found = outputs(linear_file(tmp_path), batches, threads=1)
    assert found.shape == (40, 4) and found.dtype == np.float32
    np.testing.assert_allclose(found, x @ WEIGHT, rtol=1e-5, atol=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_pairs_are_counted_one_by_one(pairs: list[tuple[bool, bool]]) -> None:
    own, baseline = (np.array(column) for column in zip(*pairs, strict=True))
    found = compare_hits(own, baseline)
    assert found.correct == sum(mine for mine, _ in pairs)
    assert found.total == len(pairs)
    assert found.lost == pairs.count((False, True))
    assert found.gained == pairs.count((True, False))
    assert found.drop_points == pytest.approx(100 * (baseline.mean() - own.mean()))


# A metric of one's own

Targets = np.ndarray


def accuracy_of(labels: Targets) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda outputs, rows: float((outputs.argmax(axis=1) == labels[rows]).mean())


def r2_of(targets: Targets) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda outputs, rows: float(1 - np.square(outputs - targets[rows]).mean() / targets[rows].var())


def answers(labels: np.ndarray, right: float, rng: np.random.Generator) -> np.ndarray:
    """Logits (examples, 3) that are right with this probability."""
    chosen = np.where(rng.random(len(labels)) < right, labels, (labels + 1) % 3)
    return np.eye(3, dtype=np.float32)[chosen]


@given(st.integers(20, 200), st.integers(0, 1000))
def test_of_accuracy_a_score_is_what_pairs_of_hits_say(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    own, baseline = answers(labels, 0.7, rng), answers(labels, 0.8, rng)
    score = compare_scores(own, baseline, accuracy_of(labels))
    hits = compare_hits(own.argmax(axis=1) == labels, baseline.argmax(axis=1) == labels)
    assert score.fraction == pytest.approx(hits.fraction)
    assert score.drop_points == pytest.approx(hits.drop_points)
    assert score.total == hits.total == count
    low, high = score.interval()
    assert low <= score.fraction <= high
    # another method for the same interval: as wide to a third, and in the same place to a fifth of its width
    (found_low, found_high), (low, high) = score.drop_interval_points(), hits.drop_interval_points()
    assert found_high - found_low == pytest.approx(high - low, rel=0.35)
    assert found_low + found_high == pytest.approx(low + high, abs=0.4 * (high - low))


@pytest.mark.parametrize("metric", [accuracy_of, r2_of])
def test_a_score_loses_nothing_against_itself(metric: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 50)
    own = answers(targets, 0.7, rng) if metric is accuracy_of else rng.standard_normal(50).astype(np.float32)
    for baseline in (own, own.copy()):
        score = compare_scores(own, baseline, metric(targets))
        assert score.drop_points == 0.0
        assert score.drop_interval_points() == (0.0, 0.0)
        assert score.value == score.baseline
        assert score.low < score.value < score.high


def test_the_interval_brackets_the_true_drop_in_about_95_of_100_samples() -> None:
    """Of a coefficient of determination, whose drop is known where the noise is."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        targets, shared = rng.standard_normal(150), rng.standard_normal(150) * 0.3
        baseline = targets + shared
        own = baseline + rng.standard_normal(150) * 0.2
        score = compare_scores(own.astype(np.float32), baseline.astype(np.float32), r2_of(targets))
        low, high = score.drop_interval_points()
        covered += low <= 100 * 0.2**2 <= high
        assert low <= score.drop_points <= high
    assert 88 <= covered <= 100


def test_a_score_does_not_change_from_call_to_call() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 80)
    own, baseline = answers(labels, 0.7, rng), answers(labels, 0.9, rng)
    assert compare_scores(own, baseline, accuracy_of(labels)) == compare_scores(own, baseline, accuracy_of(labels))


# Parity


def test_a_float_file_agrees_within_a_ten_thousandth(tmp_path: Path) -> None:
    path, x = linear_file(tmp_path), examples(30)
    expected = x @ WEIGHT
    inputs = [(x[:20],), (x[20:],)]
    close, far = expected.copy(), expected.copy()
    close[7, 2] += 0.9e-4 * np.abs(expected).max()
    far[7, 2] += 1.2e-4 * np.abs(expected).max()
    parity = check_parity(path, inputs, close, quantized=False, threads=1)
    assert parity.relative_error == pytest.approx(0.9e-4, rel=0.02)
    assert parity.top1_agreement is None and parity.examples == 30
    with pytest.raises(TrialFailed, match="relative error") as failure:
        check_parity(path, inputs, far, quantized=False, threads=1)
    assert failure.value.kind == "parity"


@pytest.mark.parametrize(("flipped", "passes"), [(0, True), (2, True), (3, False), (200, False)])
def test_a_quantised_file_agrees_on_99_of_100_classes(tmp_path: Path, flipped: int, passes: bool) -> None:
    path, x = linear_file(tmp_path), examples(200)
    expected = x @ WEIGHT
    expected[:flipped] *= -1
    if passes:
        parity = check_parity(path, [(x,)], expected, quantized=True, threads=1)
        assert parity.top1_agreement == pytest.approx(1 - flipped / 200)
        assert parity.relative_error is None
    else:
        with pytest.raises(TrialFailed, match="agreement") as failure:
            check_parity(path, [(x,)], expected, quantized=True, threads=1)
        assert failure.value.kind == "parity"


@pytest.mark.parametrize("quantized", [False, True])
def test_logits_that_do_not_vary_say_nothing(tmp_path: Path, quantized: bool) -> None:
    path = linear_file(tmp_path, np.zeros((6, 4), np.float32))
    with pytest.raises(TrialFailed, match="must vary"):
        check_parity(path, [(examples(10),)], np.zeros((10, 4), np.float32), quantized, threads=1)


@pytest.mark.parametrize("quantized", [False, True])
def test_logits_that_are_no_numbers_fail(tmp_path: Path, quantized: bool) -> None:
    x = examples(10)
    path = linear_file(tmp_path, np.full((6, 4), np.nan, np.float32))
    with pytest.raises(TrialFailed) as failure:
        check_parity(path, [(x,)], x @ WEIGHT, quantized, threads=1)
    assert failure.value.kind == "parity"


def test_a_network_of_no_numbers_has_no_parity_with_its_file(tmp_path: Path) -> None:
    """Both answer NaN, and argmax makes class 0 of it on both sides."""
    x, weight = examples(10), WEIGHT.copy()
    weight[:, 1] = np.nan
    path = linear_file(tmp_path, weight)
    with pytest.raises(TrialFailed) as failure:
        check_parity(path, [(x,)], x @ weight, quantized=True, threads=1)
    assert failure.value.kind == "parity"


@pytest.mark.parametrize(("noise", "passes"), [(0.0, True), (0.02, True), (0.04, False)])
def test_integers_without_classes_are_compared_by_their_spread(tmp_path: Path, noise: float, passes: bool) -> None:
    path, x = linear_file(tmp_path), examples(300)
    expected = x @ WEIGHT + 100.0  # a mean far from zero says nothing about the spread
    graph = onnx.load(path)
    graph.graph.node[0].output[0] = "product"
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(100.0), "mean"))
    graph.graph.node.append(helper.make_node("Add", ["product", "mean"], ["logits"]))
    onnx.save(graph, path)
    spread = float((expected - expected.mean(axis=0)).std())
    off = expected + np.random.default_rng(5).standard_normal(expected.shape).astype(np.float32) * noise * spread
    if passes:
        parity = check_parity(path, [(x,)], off, quantized=True, threads=1, classes=False)
        assert parity.top1_agreement is None
        assert parity.relative_error == pytest.approx(noise, rel=0.1, abs=1e-5)
    else:
        with pytest.raises(TrialFailed, match="spread") as failure:
            check_parity(path, [(x,)], off, quantized=True, threads=1, classes=False)
        assert failure.value.kind == "parity"


def test_a_file_that_does_not_load_fails_the_trial(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(TrialFailed) as failure:
        check_parity(broken, [(examples(3),)], examples(3), quantized=False, threads=1)
    assert failure.value.kind == "runtime"
