"""The encoded file holds the trained integers, runs on the intended kernels, and costs what it should."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from autocompress.deploy import encoding
from autocompress.deploy.encoding import (
    BITS,
    LayerWeights,
    count_fused,
    encode_weights,
    pack,
    strip,
    unpack_weights,
)
from autocompress.deploy.saturation import saturates
from autocompress.deploy.session import session_options
from autocompress.errors import TrialFailed

LAYERS = {"first": (16, 3, 3, 3), "second": (16, 16, 3, 3), "third": (24, 16, 3, 3), "head": (10, 24)}
DECODING = {"Cast", "Mul", "MatMul", "BitShift", "BitwiseAnd", "Sub", "Split"}


class GraphBuilder:
    """Nodes and initialisers as the exporter writes them, names and superfluous attributes included."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.count = 0

    def init(self, name: str, array: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        self.count += 1
        name = f"a_long_name_of_a_tensor_{self.count}"
        node = helper.make_node(op, inputs, [name], name=f"node_{name}", **attributes)
        node.doc_string = "from the exporter"
        self.nodes.append(node)
        return name

    def quantised(self, x: str, scale: float, zero_point: int) -> str:
        grid = [
            self.init(f"{x}.scale", np.float32(scale)),
            self.init(f"{x}.zero_point", np.uint8(zero_point)),
        ]
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, *grid), *grid)

    def layer(self, x: str, name: str, shape: tuple[int, ...], stride: int = 1) -> str:
        deviation = 1 / math.sqrt(math.prod(shape[1:]))
        weight = self.init(f"{name}.weight", self.rng.normal(0, deviation, shape).astype(np.float32))
        bias = self.init(f"{name}.bias", self.rng.normal(0, 0.1, shape[0]).astype(np.float32))
        if len(shape) == 2:
            return self.node("Gemm", x, weight, bias, transB=1, alpha=1.0, beta=1.0)
        window = {"strides": [stride] * 2, "dilations": [1, 1], "pads": [1] * 4, "kernel_shape": shape[2:]}
        return self.node("Conv", x, weight, bias, group=1, auto_pad="NOTSET", **window)

    def model(self, output: str, classes: list[int | str | None]) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [output], ["logits"]))
        graph = helper.make_graph(
            self.nodes,
            "main_graph",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", *classes])],
            self.initializers,
        )
        opset = [helper.make_opsetid("", 21)]
        return helper.make_model(graph, ir_version=10, opset_imports=opset, producer_name="exporter")


def network(activations: bool) -> onnx.ModelProto:
    """A small residual network, with or without quantised activations."""
    builder = GraphBuilder()

    def grid(x: str, scale: float, zero_point: int) -> str:
        return builder.quantised(x, scale, zero_point) if activations else x

    image = grid("image", 0.03, 128)
    first = grid(builder.node("Relu", builder.layer(image, "first", LAYERS["first"])), 0.01, 0)
    second = grid(builder.layer(first, "second", LAYERS["second"]), 0.02, 128)
    joined = grid(builder.node("Relu", builder.node("Add", second, first)), 0.02, 0)
    pooled = builder.node("MaxPool", joined, kernel_shape=[2, 2], strides=[2, 2])
    third = grid(builder.node("Relu", builder.layer(pooled, "third", LAYERS["third"], stride=2)), 0.02, 0)
    flat = grid(builder.node("Flatten", builder.node("GlobalAveragePool", third)), 0.01, 0)
    return builder.model(builder.layer(flat, "head", LAYERS["head"]), [10])


def weights_of(model: onnx.ModelProto, bits: int, integer: bool) -> dict[str, LayerWeights]:
    """The network's float weights on the nearest grid of ``bits`` bits."""
    values = initial_values(model)
    limit = 2 ** (bits - 1)
    found = {}
    for name in LAYERS:
        weight = values[f"{name}.weight"]
        column = [-1] + [1] * (weight.ndim - 1)
        scales = (np.abs(weight).reshape(len(weight), -1).max(axis=1) / limit).astype(np.float32)
        integers = np.clip(np.rint(weight / scales.reshape(column)), -limit, limit - 1).astype(np.int8)
        found[name] = LayerWeights(integers, scales, bits, integer)
    return found


def dequantised(layers: dict[str, LayerWeights]) -> dict[str, np.ndarray]:
    """Float weights by the name of their initialiser."""
    return {
        f"{name}.weight": layer.values.astype(np.float32) * layer.scales.reshape([-1] + [1] * (layer.values.ndim - 1))
        for name, layer in layers.items()
    }


def initial_values(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def run(model: onnx.ModelProto, x: np.ndarray, optimise: bool = True) -> np.ndarray:
    options = session_options(1)
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def images(count: int = 8) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 3, 8, 8), dtype=np.float32)


def fused(model: onnx.ModelProto, folder: Path) -> dict[str, int]:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return count_fused(path)


# --- the integers survive -----------------------------------------------------------------------------------


@st.composite
def layer_sets(draw: st.DrawFn) -> dict[str, LayerWeights]:
    """One to four layers of any shapes, widths and activations."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    layers = {}
    for number in range(draw(st.integers(1, 4))):
        outputs, inputs = draw(st.integers(1, 9)), draw(st.integers(1, 4))
        kernel = draw(st.sampled_from([(), (1, 1), (3, 2)]))
        bits = draw(st.sampled_from(BITS))
        limit = 2 ** (bits - 1)
        values = rng.integers(-limit, limit, (outputs, inputs, *kernel)).astype(np.int8)
        scales = rng.uniform(0.01, 1, outputs).astype(np.float32)
        layers[f"layer{number}"] = LayerWeights(values, scales, bits, draw(st.booleans()))
    return layers


def parallel_graph(layers: dict[str, LayerWeights]) -> onnx.ModelProto:
    """Each layer on its own quantised input."""
    builder = GraphBuilder()
    inputs, outputs = [], []
    for name, layer in layers.items():
        shape = layer.values.shape
        inputs.append(helper.make_tensor_value_info(f"{name}.x", TensorProto.FLOAT, [1, *shape[1:]]))
        output = builder.layer(builder.quantised(f"{name}.x", 0.1, 7), name, shape)
        outputs.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    graph = helper.make_graph(builder.nodes, "parallel", inputs, outputs, builder.initializers)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


@settings(max_examples=60, deadline=None)
@given(layers=layer_sets())
def test_integers_survive_the_file_exactly(layers: dict[str, LayerWeights]) -> None:
    content = strip(encode_weights(parallel_graph(layers), layers, {})).SerializeToString()
    decoded = unpack_weights(onnx.load_from_string(content))
    assert len(decoded) == len(layers)
    for array, layer in zip(decoded, layers.values(), strict=True):
        assert array.dtype == np.int8
        np.testing.assert_array_equal(array, layer.values)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("integer", [True, False])
def test_every_width_survives(bits: int, integer: bool) -> None:
    model = network(activations=True)
    layers = weights_of(model, bits, integer)
    limit = 2 ** (bits - 1)
    assert {int(layers["second"].values.min()), int(layers["second"].values.max())} == {-limit, limit - 1}
    decoded = unpack_weights(strip(encode_weights(model, layers, {})))
    for array, layer in zip(decoded, layers.values(), strict=True):
        np.testing.assert_array_equal(array, layer.values)


def test_words_are_little_endian_and_hold_the_first_integer_lowest() -> None:
    np.testing.assert_array_equal(pack(np.array([-4, -3, 3], np.int8), 3), [[0b11001000, 0b00000001, 0]])


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("integer", [True, False])
def test_weights_cost_their_bits(bits: int, integer: bool) -> None:
    model = network(activations=True)
    weights = sum(math.prod(shape) for shape in LAYERS.values())
    rest = strip(encode_weights(model, weights_of(model, 8, integer), {})).ByteSize() - weights
    size = strip(encode_weights(model, weights_of(model, bits, integer), {})).ByteSize()
    assert size - rest <= math.ceil(bits / 8 * weights) + 560


# --- the answers are right ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_weight_only_file_equals_float_graph_with_dequantised_weights(bits: int) -> None:
    model = network(activations=False)
    layers = weights_of(model, bits, integer=False)
    expected = run(encode_weights(model, {}, dequantised(layers)), images())
    found = run(strip(encode_weights(model, layers, {})), images())
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("bits", [bits for bits in BITS if bits < 8 or not saturates()])
def test_integer_file_equals_simulated_quantisation(bits: int) -> None:
    model = network(activations=True)
    layers = weights_of(model, bits, integer=True)
    expected = run(encode_weights(model, {}, dequantised(layers)), images(), optimise=False)
    found = run(strip(encode_weights(model, layers, {})), images())
    # kernels may round a tie the other way, which moves a logit by a small part of its range
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_tensors_replace_biases_and_grids() -> None:
    model = network(activations=True)
    layers = weights_of(model, 4, integer=True)
    tensors = {"first.bias": np.linspace(-1, 1, 16, dtype=np.float32), "image.scale": np.array(0.05, "f")}
    expected = run(encode_weights(model, {}, tensors | dequantised(layers)), images(), optimise=False)
    before = run(encode_weights(model, {}, dequantised(layers)), images(), optimise=False)
    found = run(encode_weights(model, layers, tensors), images())
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max() < np.abs(before - expected).max()


def test_the_graph_that_is_encoded_stays_as_it_is() -> None:
    model = network(activations=True)
    content = model.SerializeToString(deterministic=True)
    strip(encode_weights(model, weights_of(model, 3, True), {"first.bias": np.zeros(16, np.float32)}))
    assert model.SerializeToString(deterministic=True) == content


def test_encoding_is_deterministic() -> None:
    model = network(activations=True)
    files = [strip(encode_weights(model, weights_of(model, 3, True), {})) for _ in range(2)]
    assert files[0].SerializeToString() == files[1].SerializeToString()


# --- the kernels are the intended ones ----------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_integer_layers_fuse_and_decoding_folds(bits: int, tmp_path: Path) -> None:
    model = network(activations=True)
    operators = fused(strip(encode_weights(model, weights_of(model, bits, True), {})), tmp_path)
    assert operators["QLinearConv"] == 3
    assert operators["QGemm"] == 1
    assert operators.get("QLinearAdd") == 1
    assert not operators.keys() & (DECODING | {"Conv", "FusedConv", "Gemm"})
    assert operators.get("DequantizeLinear", 0) <= 1  # before the global average, none on a weight


@pytest.mark.parametrize("bits", BITS)
def test_weight_only_layers_decode_to_constants(bits: int, tmp_path: Path) -> None:
    model = network(activations=False)
    operators = fused(strip(encode_weights(model, weights_of(model, bits, False), {})), tmp_path)
    assert not operators.keys() & (DECODING | {"DequantizeLinear", "QLinearConv"})


def test_a_bias_of_another_scale_does_not_fuse(tmp_path: Path) -> None:
    model = network(activations=True)
    encoded = encode_weights(model, weights_of(model, 4, True), {})
    product = next(node for node in encoded.graph.node if node.op_type == "Mul")
    encoded.graph.initializer.append(numpy_helper.from_array(np.array(0.033, np.float32), "another_scale"))
    product.input[0] = "another_scale"
    assert fused(encoded, tmp_path)["QLinearConv"] == 2


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("weight_only", [False, True])
def test_layers_between_quantised_tensors_stay_float(
    pooled: bool, weight_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode() -> onnx.ModelProto:
        return strip(encode_weights(model, {"layer": own} if weight_only else {}, {"layer.weight": weight}))

    def error(encoded: onnx.ModelProto) -> float:
        return float(np.abs(run(encoded, images(64)) - run(encoded, images(64), optimise=False)).mean())

    builder = GraphBuilder()
    x = builder.quantised("image", 0.03, 128)
    if pooled:
        x = builder.node("MaxPool", x, kernel_shape=[2, 2])
    x = builder.node("Relu", builder.layer(x, "layer", (16, 3, 3, 3)))
    model = builder.model(builder.quantised(x, 0.01, 0), [16, None, None])
    # channels of unequal size, because the runtime by itself would use one scale for all
    values = np.random.default_rng(0).integers(-128, 128, (16, 3, 3, 3)).astype(np.int8)
    own = LayerWeights(values, np.geomspace(1e-5, 1e-3, 16, dtype=np.float32), 8, False)
    weight = dequantised({"layer": own})["layer.weight"]
    kept = encode()
    assert "QLinearConv" not in fused(kept, tmp_path)
    monkeypatch.setattr(encoding, "_keep_float_", lambda writer, nodes: None)
    assert fused(encode(), tmp_path)["QLinearConv"] == 1
    assert error(kept) < 0.01 * error(encode())


# --- stripping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", [True, False])
def test_strip_keeps_the_answers_and_shrinks(activations: bool) -> None:
    encoded = encode_weights(network(activations), weights_of(network(activations), 8, activations), {})
    small = strip(encoded)
    np.testing.assert_array_equal(run(small, images()), run(encoded, images()))
    assert small.ByteSize() < encoded.ByteSize() - 1000
    onnx.checker.check_model(small, full_check=True)


def test_strip_keeps_the_interface_only() -> None:
    model = network(activations=True)
    small = strip(model)
    assert [value.name for value in small.graph.input] == ["image"]
    assert [value.name for value in small.graph.output] == ["logits"]
    assert small.graph.input[0].type == model.graph.input[0].type
    inner = {name for node in small.graph.node for name in [*node.input, *node.output]} - {"image", "logits"}
    assert max(map(len, inner)) <= 2
    assert not any(node.name or node.doc_string for node in small.graph.node)
    assert not small.producer_name
    assert small.SerializeToString() == strip(small).SerializeToString()


def test_strip_keeps_attributes_that_matter() -> None:
    convolutions = [node for node in strip(network(activations=False)).graph.node if node.op_type == "Conv"]
    kept = [sorted(attribute.name for attribute in node.attribute) for node in convolutions]
    assert kept == [["pads"], ["pads"], ["pads", "strides"]]


def test_equal_initialisers_are_stored_once() -> None:
    small = strip(network(activations=True))
    zero_points = [int(value) for value in initial_values(small).values() if value.dtype == np.uint8]
    assert sorted(zero_points) == [0, 128]


# --- what cannot be encoded ---------------------------------------------------------------------------------


def one_layer(**changes: object) -> dict[str, LayerWeights]:
    layer = weights_of(network(activations=True), 4, True)["first"]
    fields = {name: getattr(layer, name) for name in ("values", "scales", "bits", "integer_activations")}
    return {"first": LayerWeights(**(fields | changes))}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.full((16, 3, 3, 3), 8, np.int8)}, "4 bits hold integers"),
        ({"values": np.zeros((16, 3, 3), np.int8)}, "first.weight is"),
        ({"values": np.zeros((16, 3, 3, 3), np.int32)}, "int32"),
        ({"scales": np.ones(3, np.float32)}, "integers and scales"),
        ({"scales": np.zeros(16, np.float32)}, "positive"),
        ({"bits": 5}, "5 bits"),
    ],
)
def test_wrong_weights_fail(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TrialFailed, match=message) as failure:
        encode_weights(network(activations=True), one_layer(**changes), {})
    assert failure.value.kind == "export"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"first.gain": np.zeros(16, np.float32)}, "no initialiser 'first.gain'"),
        ({"first.bias": np.zeros(15, np.float32)}, r"first.bias is float32 \[16\]"),
        ({"first.bias": np.zeros(16, np.float64)}, "got float64"),
    ],
)
def test_wrong_tensors_fail(tensors: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(TrialFailed, match=message):
        encode_weights(network(activations=True), {}, tensors)


def test_graphs_that_hide_a_weight_fail() -> None:
    model = network(activations=True)
    layers = one_layer()
    shared, transposed, missing = onnx.ModelProto(), onnx.ModelProto(), onnx.ModelProto()
    for copy in (shared, transposed, missing):
        copy.CopyFrom(model)
    by_name = {node.input[1]: node for node in shared.graph.node if len(node.input) > 1}
    by_name["second.weight"].input[1] = "first.weight"
    with pytest.raises(TrialFailed, match="2 nodes read it"):
        encode_weights(shared, layers, {})
    next(node for node in missing.graph.node if "first.weight" in node.input).input[1] = "renamed"
    with pytest.raises(TrialFailed, match=r"no layer reads first\.weight"):
        encode_weights(missing, layers, {})
    gemm = next(node for node in transposed.graph.node if node.op_type == "Gemm")
    next(attribute for attribute in gemm.attribute if attribute.name == "transB").i = 0
    with pytest.raises(TrialFailed, match="transB=1"):
        encode_weights(transposed, {"head": weights_of(model, 4, True)["head"]}, {})


def test_integer_layers_need_a_quantised_input() -> None:
    with pytest.raises(TrialFailed, match="needs a DequantizeLinear before it"):
        encode_weights(network(activations=False), one_layer(), {})


def test_biases_beyond_32_bits_fail_unless_the_channel_is_dead(tmp_path: Path) -> None:
    model = network(activations=True)
    layers = weights_of(model, 4, True)
    own, tensors = layers["first"], {"first.bias": np.full(16, 5.0, np.float32)}
    tiny = np.where(np.arange(16) == 3, np.float32(1e-8), own.scales)
    with pytest.raises(TrialFailed, match="exceeds 32 bits"):
        encode_weights(model, layers | {"first": LayerWeights(own.values, tiny, 4, True)}, tensors)
    values = np.where(tiny.reshape(-1, 1, 1, 1) < 1e-6, np.int8(0), own.values)
    layers["first"] = LayerWeights(values, tiny, 4, True)
    encoded = encode_weights(model, layers, tensors)
    expected = run(encode_weights(model, {}, tensors | dequantised(layers)), images(), optimise=False)
    assert np.abs(run(encoded, images()) - expected).max() <= 0.02 * np.abs(expected).max()
    assert fused(encoded, tmp_path)["QLinearConv"] == 3
