"""Sizes, hits and parity are those of the file, however its answers are wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from autocompress.deploy.measure import check_parity, compare_hits, hits, measure_bytes
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
def test_hits_are_those_of_numpy_in_the_order_of_the_split(tmp_path: Path, batch_size: int) -> None:
    x = examples(40)
    labels = np.random.default_rng(2).integers(0, 4, 40)
    batches = [((x[i : i + batch_size],), labels[i : i + batch_size]) for i in range(0, 40, batch_size)]
    found = hits(linear_file(tmp_path), iter(batches), threads=1)
    np.testing.assert_array_equal(found, (x @ WEIGHT).argmax(axis=1) == labels)
    assert 0 < found.sum() < 40


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_pairs_are_counted_one_by_one(pairs: list[tuple[bool, bool]]) -> None:
    own, baseline = (np.array(column) for column in zip(*pairs, strict=True))
    found = compare_hits(own, baseline)
    assert found.correct == sum(mine for mine, _ in pairs)
    assert found.total == len(pairs)
    assert found.lost == pairs.count((False, True))
    assert found.gained == pairs.count((True, False))
    assert found.drop_points == pytest.approx(100 * (baseline.mean() - own.mean()))


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


def test_a_file_that_does_not_load_fails_the_trial(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(TrialFailed) as failure:
        check_parity(broken, [(examples(3),)], examples(3), quantized=False, threads=1)
    assert failure.value.kind == "runtime"
