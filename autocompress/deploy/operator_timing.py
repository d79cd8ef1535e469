"""Latency of single operators in the runtime, in a process without torch.

``python -m autocompress.deploy.operator_timing`` reads operators as JSON from stdin and writes their times as
JSON to stdout; :func:`time_operators` starts it. For each operator a micro file is made as the export would write it
(integers as QuantizeLinear and DequantizeLinear around a float operator). The runtime optimises it; out of the
optimised graph the kernels are cut that the operator became, without the changes of layout around them, and put
into a graph several times over. The difference between several copies and one copy is what a copy costs in a
file: the kernel and its launch, and nothing of a run's fixed costs.

The machine's clock and its neighbours vary by tens of percents, so blocks of all graphs alternate with blocks of a
reference graph, and times are ratios to it.
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from autocompress.deploy.session import PROVIDERS, open_session, session_options
from autocompress.errors import TrialFailed, first_line
from autocompress.operators import (
    DEQUANTIZE,
    FLOAT32,
    INT8,
    INT8_DYNAMIC,
    QUANTIZE,
    QUANTIZE_DYNAMIC,
    Operator,
    Shape,
    from_json,
)

REFERENCE = Operator(
    "conv2d", "", "", ((1, 32, 16, 16),), (1, 32, 16, 16), (32, 32, 3, 3), (1, 1), (1, 1), (1, 1), arithmetic=INT8
)
"""Whose time is the unit: an integer convolution of a middling size."""
OPSET, ATTENTION_OPSET = 21, 23
"""Those of :mod:`autocompress.deploy.export`, which imports torch."""
_TIMEOUT_S = 60.0
_TIMEOUT_PER_OPERATOR_S = 3.0
_BUDGET_S = 0.10
_BLOCK_S = 0.002
_LEAST_ROUNDS = 8
_COPIES = 8
RUNTIME_DOMAIN = "com.microsoft"
_SAME_SHAPE = {
    "gelu": "Gelu", "softmax": "Softmax", "sigmoid": "Sigmoid", "tanh": "Tanh", "hardswish": "HardSwish",
    "hardsigmoid": "HardSigmoid", "erf": "Erf", "relu": "Relu",
}  # fmt: skip
_BINARY = {"add": "Add", "mul": "Mul", "sub": "Sub", "div": "Div", "matmul": "MatMul", "bmm": "MatMul"}
_ATTENTION = "scaled_dot_product_attention"
_LAYOUT = ("Transpose", "ReorderInput", "ReorderOutput")
"""What the runtime puts around kernels that want another order of axes; in a file it is shared or cancels."""
_SCALE = 0.05
_ZERO_POINT = 128

Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OperatorTimes:
    """What a timing process found.

    Attributes:
        reference_ms: time of :data:`REFERENCE`.
        run_ms: fixed cost of a session's run, beside its operators.
        ratios: time of each operator, as a multiple of the reference's.
    """

    reference_ms: float
    run_ms: float
    ratios: tuple[float, ...]


def time_operators(operators: Sequence[Operator], threads: int) -> OperatorTimes:
    """Time operators while nothing trains; waits for the machine.

    Args:
        threads: intra-op threads of the runtime.

    Raises:
        TrialFailed: kind ``timing``; the process fails or takes too long.
    """
    from autocompress.deploy import machine_lock

    request = json.dumps({"operators": [operator.as_json() for operator in operators], "threads": threads})
    with machine_lock.timing():
        found = json.loads(_run_process(request, threads, _TIMEOUT_S + _TIMEOUT_PER_OPERATOR_S * len(operators)))
    return OperatorTimes(found["reference_ms"], found["run_ms"], tuple(found["ratios"]))


def _run_process(request: str, threads: int, timeout_s: float) -> str:
    command = [sys.executable, "-m", "autocompress.deploy.operator_timing"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TrialFailed("timing", f"operators must be timed within {timeout_s:.0f} s; they were not") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise TrialFailed("timing", f"operators could not be timed: {lines[-1]}")
    return done.stdout


# --- micro files --------------------------------------------------------------------------------------------


class _Graph:
    """A graph that is written node by node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.opset = OPSET
        self._random = np.random.default_rng(0)

    def input(self, shape: Shape, dtype: int) -> str:
        name = f"input_{len(self.inputs)}"
        # as in a real file, whose batch has any size: the runtime fuses otherwise where it knows the size
        self.inputs.append(helper.make_tensor_value_info(name, dtype, ("batch", *shape[1:]) if shape else ()))
        return name

    def constant(self, array: npt.NDArray[Any]) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, shape: Shape) -> str:
        return self.constant(self._random.standard_normal(shape).astype(np.float32))

    def integer_weights(self, shape: Shape, channel_axis: int) -> str:
        """Float weights that are stored as int8 with a scale for each channel."""
        values = self.constant(self._random.integers(-127, 128, shape).astype(np.int8))
        scales = self.constant(np.full(shape[channel_axis], _SCALE, np.float32))
        zero_points = self.constant(np.zeros(shape[channel_axis], np.int8))
        return self.node("DequantizeLinear", [values, scales, zero_points], axis=channel_axis)

    def integer_bias(self, length: int) -> str:
        """At input scale times weight scale: with another one the runtime does not fuse the layer."""
        values = self.constant(self._random.integers(-1000, 1000, length).astype(np.int32))
        scales = self.constant(np.full(length, np.float32(_SCALE) * np.float32(_SCALE), np.float32))
        return self.node("DequantizeLinear", [values, scales], axis=0)

    def node(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def quantized(self, source: str) -> str:
        return self.node("QuantizeLinear", [source, *self._grid()])

    def dequantized(self, source: str) -> str:
        return self.node("DequantizeLinear", [source, *self._grid()])

    def _grid(self) -> tuple[str, str]:
        return self.constant(np.array(_SCALE, np.float32)), self.constant(np.array(_ZERO_POINT, np.uint8))

    def model(self, outputs: Sequence[tuple[str, int, Shape]]) -> onnx.ModelProto:
        values = [
            helper.make_tensor_value_info(name, dtype, ("batch", *shape[1:]) if shape else ())
            for name, dtype, shape in outputs
        ]
        graph = helper.make_graph(self.nodes, "micro", self.inputs, values, self.initializers)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(RUNTIME_DOMAIN, 1)]
        return helper.make_model(graph, ir_version=10, opset_imports=opsets)


def micro_model(operator: Operator) -> onnx.ModelProto:
    """A file of one operator as the export writes it; integers come in and go out as uint8.

    An operator without a form of its own is priced as an addition of a number to as many elements.
    """
    graph = _Graph()
    if operator.arithmetic == INT8_DYNAMIC and operator.name != QUANTIZE_DYNAMIC:
        return _dynamic_product(graph, operator)
    if operator.name in (QUANTIZE, DEQUANTIZE, QUANTIZE_DYNAMIC):
        return _rounding(graph, operator)
    if operator.name == "max_pool2d" and operator.arithmetic == INT8:
        return _integer_max_pool(graph, operator)
    build = _builder(operator)
    integer = operator.arithmetic == INT8
    dtype = TensorProto.UINT8 if integer else TensorProto.FLOAT
    sources = [graph.input(shape, dtype) for shape in _read(operator)]
    if integer:
        sources = [graph.dequantized(source) for source in sources]
    output = build(graph, operator, sources)
    if integer and not _gives_float(operator):
        output = graph.quantized(output)
    else:
        dtype = TensorProto.FLOAT
    return graph.model([(output, dtype, operator.output)])


def _read(operator: Operator) -> tuple[Shape, ...]:
    """What the micro file reads: a table of embeddings is priced by its output."""
    return operator.inputs if operator.weight and operator.name != "embedding" else _operands(operator)


def _operands(operator: Operator) -> tuple[Shape, ...]:
    if operator.name in ("slice", "pad", "constant_pad_nd", "max_pool2d", "max_pool1d", "matmul", "bmm"):
        return operator.inputs
    if operator.name in ("add", "mul", "sub", "div") and len(operator.inputs) == 2:
        return operator.inputs
    if operator.name == _ATTENTION:
        return operator.inputs[:3]  # without the mask
    return (max((*operator.inputs, operator.output), key=math.prod),)


def _gives_float(operator: Operator) -> bool:
    """A product of more than matrices gives float, whatever it reads."""
    return bool(operator.weight) and not operator.is_convolution and len(operator.output) > 2


Builder = Callable[[_Graph, Operator, Sequence[str]], str]


def _builder(operator: Operator) -> Builder:
    if operator.weight and operator.name != "embedding":
        if operator.is_convolution:
            return _convolution
        return _matrix_product if len(operator.output) > 2 else _gemm
    if operator.name in _BINARY and len(operator.inputs) == 2:
        return lambda graph, _, sources: graph.node(_BINARY[operator.name], sources)
    if operator.name in _SAME_SHAPE:
        return lambda graph, _, sources: graph.node(_SAME_SHAPE[operator.name], sources)
    return {
        "slice": _slice, "pad": _pad, "constant_pad_nd": _pad, "max_pool2d": _max_pool, "max_pool1d": _max_pool,
        "layer_norm": _layer_norm, _ATTENTION: _attention,
    }.get(operator.name, _elementwise)  # fmt: skip


def _convolution(graph: _Graph, operator: Operator, sources: Sequence[str]) -> str:
    shape, pads = operator.weight, list(operator.padding or [0] * (len(operator.weight) - 2))
    integer = operator.arithmetic == INT8
    weight = graph.integer_weights(shape, 0) if integer else graph.weights(shape)
    bias = graph.integer_bias(shape[0]) if integer else graph.weights((shape[0],))
    return graph.node(
        "Conv",
        [sources[0], weight, bias],
        kernel_shape=list(shape[2:]),
        strides=list(operator.stride),
        dilations=list(operator.dilation or [1] * len(pads)),
        pads=[*pads, *_end_pads(operator, pads)],
        group=operator.groups,
    )


def _end_pads(operator: Operator, pads: Sequence[int]) -> list[int]:
    """Where "same" padding of an even kernel needs one more at the end, the output's shape tells."""
    ends = []
    for axis, pad in enumerate(pads):
        size, out = operator.inputs[0][2 + axis], operator.output[2 + axis]
        stride, dilation = operator.stride[axis], (operator.dilation or [1] * len(pads))[axis]
        reach = dilation * (operator.weight[2 + axis] - 1) + 1
        ends.append(max(pad, (out - 1) * stride + reach - size - pad))
    return ends


def _gemm(graph: _Graph, operator: Operator, sources: Sequence[str]) -> str:
    integer = operator.arithmetic == INT8
    weight = graph.integer_weights(operator.weight, 0) if integer else graph.weights(operator.weight)
    bias = graph.integer_bias(operator.weight[0]) if integer else graph.weights(operator.weight[:1])
    return graph.node("Gemm", [sources[0], weight, bias], transB=1)


def _matrix_product(graph: _Graph, operator: Operator, sources: Sequence[str]) -> str:
    shape = operator.weight[::-1]
    weight = graph.integer_weights(shape, 1) if operator.arithmetic == INT8 else graph.weights(shape)
    product = graph.node("MatMul", [sources[0], weight])
    return graph.node("Add", [product, graph.weights((operator.weight[0],))])


def _dynamic_product(graph: _Graph, operator: Operator) -> onnx.ModelProto:
    """On an input that was rounded before, because layers that read one tensor share its rounding."""
    values = graph.input(operator.inputs[0], TensorProto.UINT8)
    scale, zero_point = graph.input((), TensorProto.FLOAT), graph.input((), TensorProto.UINT8)
    outputs = operator.weight[0]
    matrix = graph.constant(np.ones(operator.weight[::-1], np.int8))
    whole = graph.node("MatMulInteger", [values, matrix, zero_point, graph.constant(np.zeros(outputs, np.int8))])
    real = graph.node("Cast", [whole], to=TensorProto.FLOAT)
    factor = graph.node("Mul", [scale, graph.constant(np.full(outputs, _SCALE, np.float32))])
    product = graph.node("Mul", [real, factor])
    output = graph.node("Add", [product, graph.weights((outputs,))])
    return graph.model([(output, TensorProto.FLOAT, operator.output)])


def _rounding(graph: _Graph, operator: Operator) -> onnx.ModelProto:
    shape, real, whole = operator.output, TensorProto.FLOAT, TensorProto.UINT8
    if operator.name == QUANTIZE:
        return graph.model([(graph.quantized(graph.input(shape, real)), whole, shape)])
    if operator.name == DEQUANTIZE:
        return graph.model([(graph.dequantized(graph.input(shape, whole)), real, shape)])
    names = ["values", "scale", "zero_point"]
    graph.nodes.append(helper.make_node("DynamicQuantizeLinear", [graph.input(shape, real)], names))
    return graph.model([(names[0], whole, shape), (names[1], real, ()), (names[2], whole, ())])


def _layer_norm(graph: _Graph, operator: Operator, sources: Sequence[str]) -> str:
    channels = operator.output[-1:]
    return graph.node("LayerNormalization", [sources[0], graph.weights(channels), graph.weights(channels)])


def _attention(graph: _Graph, _: Operator, sources: Sequence[str]) -> str:
    graph.opset = ATTENTION_OPSET
    return graph.node("Attention", sources)


def _elementwise(graph: _Graph, _: Operator, sources: Sequence[str]) -> str:
    return graph.node("Add", [sources[0], graph.weights((1,))])


def _slice(graph: _Graph, operator: Operator, sources: Sequence[str]) -> str:
    """Every n-th entry where the axis shrinks n-fold, else the first ones."""
    pairs = list(zip(operator.inputs[0], operator.output, strict=True))
    axes = [axis for axis, (old, new) in enumerate(pairs) if old != new]
    steps = [max(1, pairs[axis][0] // max(1, pairs[axis][1])) for axis in axes]
    ends = [min(pairs[axis][0], pairs[axis][1] * step) for axis, step in zip(axes, steps, strict=True)]
    parts = [np.array(part, np.int64) for part in ([0] * len(axes), ends, axes, steps)]
    return graph.node("Slice", [sources[0], *(graph.constant(part) for part in parts)])


def _pad(graph: _Graph, operator: Operator, sources: Sequence[str]) -> str:
    more = [new - old for old, new in zip(operator.inputs[0], operator.output, strict=True)]
    pads = np.array([n // 2 for n in more] + [n - n // 2 for n in more], np.int64)
    return graph.node("Pad", [sources[0], graph.constant(pads)])


def _integer_max_pool(graph: _Graph, operator: Operator) -> onnx.ModelProto:
    """Between integer convolutions the runtime has channels last, and a kernel for it; alone it would not use it."""
    images = graph.input(_channels_last(operator.inputs[0]), TensorProto.UINT8)
    output = _max_pool(graph, operator, [images])
    graph.nodes[-1].op_type, graph.nodes[-1].domain = "NhwcMaxPool", RUNTIME_DOMAIN
    return graph.model([(output, TensorProto.UINT8, _channels_last(operator.output))])


def _channels_last(shape: Shape) -> Shape:
    return (shape[0], *shape[2:], shape[1])


def _max_pool(graph: _Graph, operator: Operator, sources: Sequence[str]) -> str:
    pads = list(operator.padding or [0] * len(operator.kernel))
    return graph.node(
        "MaxPool", sources, kernel_shape=list(operator.kernel), strides=list(operator.stride), pads=[*pads, *pads]
    )


# --- from a micro file to copies of its kernels ------------------------------------------------------------


def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """What the runtime makes of a model."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "micro.onnx", Path(folder) / "optimized.onnx"
        onnx.save(model, source)
        options = session_options(threads=1)
        options.optimized_model_filepath = str(target)
        open_session(source, 1, options)
        return onnx.load(target)


def copies(model: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """The kernels of an optimised model ``count`` times over, each with weights of its own, on the same inputs.

    What changes the layout of the inputs stays once; what changes the layout of outputs goes.
    """
    shared, kernels = _split(model.graph)
    produced = {name for node in kernels for name in node.output}
    read = {name for node in kernels for name in node.input}
    outputs = [name for node in kernels for name in node.output if name not in read]
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    many = onnx.ModelProto()
    many.CopyFrom(model)
    for field in ("node", "output", "value_info", "initializer"):
        many.graph.ClearField(field)
    many.graph.node.extend(shared)
    many.graph.initializer.extend(stored[name] for node in shared for name in node.input if name in stored)
    for number in range(count):
        names = {name: f"{name}.{number}" for name in produced | (read & stored.keys())}
        for node in kernels:
            many.graph.node.append(_renamed(node, names))
        for name in sorted(read & stored.keys()):
            tensor = many.graph.initializer.add()
            tensor.CopyFrom(stored[name])
            tensor.name = names[name]
        # the runtime infers types and shapes
        many.graph.output.extend(onnx.ValueInfoProto(name=names[name]) for name in outputs)
    return many


def _split(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Changes of layout before the first kernel, and the kernels."""
    layouts = [node for node in graph.node if node.op_type in _LAYOUT]
    if len(layouts) == len(graph.node):
        return [], list(graph.node)
    of_inputs = {value.name for value in graph.input}
    before: list[onnx.NodeProto] = []
    for node in layouts:
        if node.input[0] in of_inputs:
            before.append(node)
            of_inputs |= set(node.output)
    consumed = {name for node in graph.node if node.op_type not in _LAYOUT for name in node.input}
    inner = [n for n in graph.node if n not in before and (n.op_type not in _LAYOUT or set(n.output) & consumed)]
    return before, inner


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    other = onnx.NodeProto()
    other.CopyFrom(node)
    other.ClearField("name")
    other.input[:] = [names.get(name, name) for name in node.input]
    other.output[:] = [names.get(name, name) for name in node.output]
    return other


# --- the timing ---------------------------------------------------------------------------------------------


class _Bench:
    """A graph of copies, ready to run."""

    def __init__(self, model: onnx.ModelProto, batch_size: int, threads: int) -> None:
        options = session_options(threads)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimised already
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)
        rng = np.random.default_rng(0)
        self._feeds = {node.name: _drawn(node, batch_size, rng) for node in self._session.get_inputs()}
        # the runtime computes what is not fetched as well
        self._fetched = [self._session.get_outputs()[0].name]
        self.runs = 1

    def block(self) -> float:
        """Seconds of a run: the median over a block of runs, of which neighbours interrupt some."""
        run, fetched, feeds = self._session.run, self._fetched, self._feeds
        stamps = [time.perf_counter()]
        for _ in range(self.runs):
            run(fetched, feeds)
            stamps.append(time.perf_counter())
        return float(np.median(np.diff(stamps)))

    def warm_up_(self) -> float:
        """Find how many runs make a block; returns seconds of a run."""
        self.block()
        seconds = min(self.block() for _ in range(5))
        self.runs = max(3, round(_BLOCK_S / seconds))
        return seconds


def _drawn(node: Any, batch_size: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    shape = [batch_size, *node.shape[1:]] if node.shape else []
    if node.type == "tensor(float)":
        return rng.standard_normal(shape, dtype=np.float32) if shape else np.array(_SCALE, np.float32)
    return np.asarray(rng.integers(0, 256, shape)).astype(np.uint8)


def _bench(model: onnx.ModelProto, operator: Operator, count: int, threads: int) -> _Bench:
    return _Bench(copies(model, count), operator.output[0] if operator.output else 1, threads)


class _Reference:
    """The graph that times are compared with."""

    def __init__(self, threads: int) -> None:
        model = optimized(micro_model(REFERENCE))
        self.one, self.many = _bench(model, REFERENCE, 1, threads), _bench(model, REFERENCE, _COPIES, threads)
        for bench in (self.one, self.many):
            bench.warm_up_()

    def seconds(self) -> tuple[float, float]:
        """Of the reference itself, and of all that a run costs beside it."""
        times = np.array([(self.one.block(), self.many.block()) for _ in range(5 * _LEAST_ROUNDS)])
        one, many = np.median(times, axis=0)
        each = (many - one) / (_COPIES - 1)
        return float(each), float(max(0.0, one - each))


def ratio_to(reference: _Reference, operator: Operator, threads: int, budget_s: float = _BUDGET_S) -> float:
    """Time of one copy of an operator, as a multiple of a run of the reference's copies; blocks take turns."""
    model = optimized(micro_model(operator))
    one = _bench(model, operator, 1, threads)
    count = 1 + (_COPIES - 1 if one.warm_up_() < _BLOCK_S / 4 else 2)
    many = _bench(model, operator, count, threads)
    many.warm_up_()
    times: list[tuple[float, float, float]] = []
    end = time.perf_counter() + budget_s
    while time.perf_counter() < end or len(times) < _LEAST_ROUNDS:
        times.append((one.block(), many.block(), reference.many.block()))
    ones, manies, references = np.array(times).T
    return float(max(0.0, np.median((manies - ones) / references)) / (count - 1))


def measure(operators: Sequence[Operator], threads: int) -> OperatorTimes:
    """Times of operators; one that the runtime does not take is priced by its elements."""
    reference = _Reference(threads)
    gc.disable()
    try:
        each, fixed = reference.seconds()
        whole = fixed + each * _COPIES
        ratios = [_ratio_or_price(reference, operator, threads) * whole / each for operator in operators]
    finally:
        gc.enable()
    return OperatorTimes(1e3 * each, 1e3 * fixed, tuple(ratios))


def _ratio_or_price(reference: _Reference, operator: Operator, threads: int) -> float:
    try:
        return ratio_to(reference, operator, threads)
    except Exception:  # the runtime's own exception classes have no common public base
        plain = Operator("unknown", "", "", operator.inputs, operator.output, arithmetic=FLOAT32)
        return ratio_to(reference, plain, threads)


def main() -> None:
    """Entry point of the timing process."""
    try:
        request = json.load(sys.stdin)
        times = measure([from_json(entry) for entry in request["operators"]], request["threads"])
    except Exception as error:
        sys.exit(first_line(error))
    json.dump({"reference_ms": times.reference_ms, "run_ms": times.run_ms, "ratios": times.ratios}, sys.stdout)


if __name__ == "__main__":
    main()
