"""Micro files become the kernels that whole files run, and copies of them compute alike."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from autocompress.deploy import machine_lock, operator_timing
from autocompress.deploy.operator_timing import (
    REFERENCE,
    copies,
    measure,
    micro_model,
    optimized,
    time_operators,
)
from autocompress.deploy.session import PROVIDERS, session_options
from autocompress.errors import TrialFailed
from autocompress.operators import (
    DEQUANTIZE,
    FLOAT32,
    INT8,
    INT8_DYNAMIC,
    QUANTIZE,
    QUANTIZE_DYNAMIC,
    Operator,
)

IMAGE = (1, 16, 8, 8)
WORDS = (1, 6, 32)
CONVOLUTION = Operator("conv2d", "", "", (IMAGE,), (1, 24, 8, 8), (24, 16, 3, 3), (1, 1), (1, 1), (1, 1))
CLASSIFIER = Operator("linear", "", "", ((1, 32),), (1, 10), (10, 32))
PRODUCT = Operator("linear", "", "", (WORDS,), (1, 6, 48), (48, 32))
ADDITION = Operator("add", "", "", (IMAGE, IMAGE), IMAGE)
POOLING = Operator("max_pool2d", "", "", (IMAGE,), (1, 16, 4, 4), (), (2, 2), (1, 1), (1, 1), (3, 3), arithmetic=INT8)
LAYOUTS = {"Transpose", "ReorderInput", "ReorderOutput"}


def kernels(operator: Operator) -> list[str]:
    """What the runtime runs for one copy, changes of layout aside."""
    graph = copies(optimized(micro_model(operator)), 1).graph
    return [node.op_type for node in graph.node if node.op_type not in LAYOUTS]


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (CONVOLUTION.computed_in(INT8), ["QLinearConv"]),
        (CONVOLUTION, ["Conv"]),
        (CLASSIFIER.computed_in(INT8), ["QGemm"]),
        (CLASSIFIER, ["Gemm"]),
        (PRODUCT.computed_in(INT8_DYNAMIC), ["MatMulIntegerToFloat"]),
        (ADDITION.computed_in(INT8), ["QLinearAdd"]),
        (ADDITION, ["Add"]),
        (POOLING, ["NhwcMaxPool"]),
        (Operator(QUANTIZE, "", "", (IMAGE,), IMAGE, arithmetic=INT8), ["QuantizeLinear"]),
        (Operator(DEQUANTIZE, "", "", (IMAGE,), IMAGE, arithmetic=INT8), ["DequantizeLinear"]),
        (Operator(QUANTIZE_DYNAMIC, "", "", (WORDS,), WORDS, arithmetic=INT8_DYNAMIC), ["DynamicQuantizeLinear"]),
        (Operator("layer_norm", "", "", (WORDS,), WORDS), ["LayerNormalization"]),
        (Operator("scaled_dot_product_attention", "", "", ((1, 4, 6, 8),) * 3, (1, 4, 6, 8)), ["Attention"]),
        (Operator("gelu", "", "", (WORDS,), WORDS), ["Gelu"]),
        (Operator("cumsum", "", "", (WORDS,), WORDS), ["Add"]),  # without a form of its own
    ],
)
def test_micro_files_become_the_kernels_of_whole_files(operator: Operator, expected: list[str]) -> None:
    assert kernels(operator) == expected


def test_integer_pooling_has_its_channels_last() -> None:
    session = ort.InferenceSession(micro_model(POOLING).SerializeToString(), session_options(1), providers=PROVIDERS)
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 16)).astype(np.uint8)
    (output,) = session.run(None, {session.get_inputs()[0].name: image})
    assert output.shape == (1, 4, 4, 16)
    assert output[0, 1, 1, 3] == image[0, 1:4, 1:4, 3].max()


def test_an_integer_product_of_sequences_multiplies_integers() -> None:
    assert any("Integer" in name or name.startswith("Q") for name in kernels(PRODUCT.computed_in(INT8)))


@pytest.mark.parametrize(
    "operator",
    [
        replace(CONVOLUTION, stride=(2, 2), output=(1, 24, 4, 4)),
        replace(CONVOLUTION, weight=(24, 16, 4, 4), padding=(1, 1)),  # "same" padding of an even kernel
        replace(CONVOLUTION, output=(1, 16, 8, 8), weight=(16, 1, 3, 3), groups=16, arithmetic=INT8),
        Operator("conv1d", "", "", ((1, 4, 50),), (1, 8, 24), (8, 4, 3), (2,), (0,), (1,), arithmetic=INT8),
        Operator("pad", "", "", (IMAGE,), (1, 32, 8, 8), arithmetic=INT8),
        Operator("slice", "", "", (IMAGE,), (1, 16, 4, 8), arithmetic=INT8),
        replace(POOLING, arithmetic=FLOAT32),
        Operator("matmul", "", "", ((1, 2, 6, 8), (1, 2, 8, 6)), (1, 2, 6, 6)),
        Operator("embedding", "", "", ((1, 6),), WORDS, (500, 32)),
        Operator("adaptive_avg_pool2d", "", "", (IMAGE,), (1, 16, 1, 1)),
    ],
)
def test_micro_files_compute_the_shape_they_are_asked_for(operator: Operator) -> None:
    session = ort.InferenceSession(micro_model(operator).SerializeToString(), session_options(1), providers=PROVIDERS)
    feeds = {}
    for node in session.get_inputs():
        dtype = np.float32 if node.type == "tensor(float)" else np.uint8
        feeds[node.name] = np.ones([operator.output[0], *node.shape[1:]] if node.shape else [], dtype)
    (output,) = session.run(None, feeds)[:1]
    if operator.name not in ("adaptive_avg_pool2d", "embedding"):
        assert output.shape == operator.output
    assert np.isfinite(output).all()


@pytest.mark.parametrize("operator", [CONVOLUTION, CONVOLUTION.computed_in(INT8), PRODUCT.computed_in(INT8_DYNAMIC)])
def test_copies_share_their_inputs_and_no_weights(operator: Operator) -> None:
    model = optimized(micro_model(operator))
    one, many = copies(model, 1), copies(model, 3)
    counts = [Counter(node.op_type for node in graph.graph.node) for graph in (one, many)]
    for name, count in counts[0].items():
        assert counts[1][name] == (count if name in LAYOUTS else 3 * count)
    assert len({tensor.name for tensor in many.graph.initializer}) == 3 * len(one.graph.initializer)
    outputs = _answers(many)
    assert len(outputs) == 3
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


def _answers(model: onnx.ModelProto) -> list[np.ndarray]:
    options = session_options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)
    rng = np.random.default_rng(0)
    feeds = {}
    for node in session.get_inputs():
        shape = [1, *node.shape[1:]] if node.shape else []
        values = rng.integers(1, 200, shape)
        feeds[node.name] = np.asarray(values).astype(np.float32 if node.type == "tensor(float)" else np.uint8)
    return session.run(None, feeds)


def test_times_of_operators_come_with_the_reference() -> None:
    times = measure([REFERENCE, ADDITION], threads=1)
    assert times.reference_ms > 0 and times.run_ms >= 0
    assert len(times.ratios) == 2 and all(ratio >= 0 for ratio in times.ratios)


def test_what_the_runtime_refuses_is_priced_by_its_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    priced: list[Operator] = []

    def ratio(reference: object, operator: Operator, threads: int) -> float:
        if operator.name == "conv2d":
            raise RuntimeError("no kernel")
        priced.append(operator)
        return 0.25

    monkeypatch.setattr(operator_timing, "ratio_to", ratio)
    found = measure([CONVOLUTION], threads=1)
    assert (priced[0].inputs, priced[0].output) == (CONVOLUTION.inputs, CONVOLUTION.output)
    assert priced[0].arithmetic == FLOAT32 and not priced[0].weight
    assert found.ratios[0] > 0


# --- the process --------------------------------------------------------------------------------------------


def test_the_process_holds_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    @contextlib.contextmanager
    def recorded() -> Iterator[None]:
        turns.append("taken")
        yield
        turns.append("given back")

    monkeypatch.setattr(machine_lock, "timing", recorded)
    times = time_operators([ADDITION], threads=1)
    assert turns == ["taken", "given back"]
    assert len(times.ratios) == 1


def test_the_process_is_light() -> None:
    script = (
        "import runpy, sys\n"
        "runpy.run_module('autocompress.deploy.operator_timing', run_name='__main__')\n"
        "loaded = {'torch', 'pydantic', 'optuna', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    request = json.dumps({"operators": [ADDITION.as_json()], "threads": 1})
    done = subprocess.run([sys.executable, "-c", script], input=request, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"reference_ms", "run_ms", "ratios"}


def test_a_process_that_fails_says_why_in_one_line() -> None:
    with pytest.raises(TrialFailed, match="operators could not be timed") as failure:
        time_operators([ADDITION], threads="many")  # type: ignore[arg-type]
    assert failure.value.kind == "timing"
    assert "\n" not in str(failure.value)


def test_a_process_that_takes_too_long_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_timing, "_TIMEOUT_S", 0.01)
    monkeypatch.setattr(operator_timing, "_TIMEOUT_PER_OPERATOR_S", 0.0)
    with pytest.raises(TrialFailed, match="must be timed within"):
        time_operators([ADDITION], threads=1)
