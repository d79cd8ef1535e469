"""Quantised weights in an ONNX file, stored in the bits they need.

Weights of 7 and 8 bits are plain INT8 initialisers. Narrower ones are packed in 24-bit words, which hold 2, 3, 4
and 6 bits without a gap, and a constant subgraph unpacks them: stock ONNX Runtime folds it when the session
is made, so the packed file runs like the 8-bit one and needs no loader of ours.

A layer with integer activations gets the pattern that ONNX Runtime fuses into its integer kernels
(DequantizeLinear on weights and bias, or DynamicQuantizeLinear before and MatMulInteger instead of MatMul); a
weight-only layer gets ``Cast(integers) * scales``, which folds into a float constant; a table of embeddings
keeps its integers, and only the rows that are looked up are scaled.
"""

from __future__ import annotations

import itertools
import string
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from autocompress.deploy.session import PROVIDERS, open_session, session_options
from autocompress.errors import TrialFailed

BITS = (2, 3, 4, 6, 7, 8)
_PLAIN_BITS = (7, 8)
STAND_INS = "autocompress"
"""Domain of the operators that stand for layers in an exported graph until it is encoded."""
_WORD_BYTES = 3
_BIAS_LIMIT = 2.0**30  # leaves room below 2^31 for the rounding of scales
# ONNX Runtime moves QuantizeLinear and DequantizeLinear past these before it looks for integer layers
_MOVES = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice")
_CONV_DEFAULTS = {"strides": 1, "dilations": 1, "pads": 0}


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The trained integers of one convolution or linear layer: weight = values * scales.

    Attributes:
        values: int8 [out, ...], each in [-2^(bits-1), 2^(bits-1) - 1].
        scales: float32 [out], positive.
        bits: bits of their grid: 2, 3, 4, 6, 7 or 8.
        integer_activations: the layer's input is quantised to 8 bits and integer kernels run.
        dynamic: the range of the input is found when it arrives.
        out_axis: axis of the outputs in ``values``, of which ``scales`` has one entry each.
    """

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    bits: int
    integer_activations: bool
    dynamic: bool = False
    out_axis: int = 0

    @property
    def column(self) -> npt.NDArray[np.float32]:
        """Scales in the shape in which they multiply the values."""
        shape = [1] * self.values.ndim
        shape[self.out_axis] = -1
        return self.scales.reshape(shape)


def encode_weights(
    graph: onnx.ModelProto, layers: Mapping[str, LayerWeights], tensors: Mapping[str, npt.NDArray[Any]]
) -> onnx.ModelProto:
    """A copy of an exported graph with other tensors and with quantised weights.

    Args:
        graph: has float32 initialisers ``<layer>.weight`` (or ``<layer>``, where that is the whole name), each
            read by one Conv, Gemm, ``autocompress::Linear`` or ``autocompress::Embedding``; a DequantizeLinear
            produces the input of a layer with integer activations of fixed range.
        layers: weights by layer name.
        tensors: values by initialiser name; shape and dtype are those of the graph.

    Raises:
        TrialFailed: kind ``export``; a tensor is missing, shared, transposed or of another shape or dtype, an
            integer is out of its range, a layer's input is not quantised, or a bias does not fit 32 bits.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    _replace_tensors_(model.graph, tensors)
    lower_(model, {name for name, weights in layers.items() if weights.dynamic})
    nodes = _layer_nodes(model.graph, layers)
    integer = {node.output[0] for name, node in nodes.items() if layers[name].integer_activations}
    writer = _Writer(model.graph)
    _keep_float_(writer, [node for node in model.graph.node if node.output[0] not in integer])
    decoded = {n for n, node in nodes.items() if not layers[n].integer_activations and node.op_type != "Gather"}
    stored = _store_integers(writer, {name: layers[name] for name in nodes}, decoded)
    for name, node in nodes.items():
        _attach_(writer, node, stored[name], layers[name])
    writer.finish_()
    _share_initializers_(model.graph)
    return model


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model without what no runtime needs; it computes the same.

    Names of nodes, documentation, metadata, shapes of inner tensors and attributes at their defaults go;
    inner tensors get the shortest names. Names, types and dynamic dimensions of inputs and outputs stay.
    """
    small = helper.make_model(onnx.GraphProto(name="g"), ir_version=model.ir_version)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    domains = {node.domain for node in model.graph.node} | {""}
    del small.opset_import[:]
    small.opset_import.extend(entry for entry in model.opset_import if entry.domain in domains)
    small.functions.extend(model.functions)
    small.graph.node.extend(_bare_node(node, opsets) for node in model.graph.node)
    small.graph.initializer.extend(_bare_tensor(tensor) for tensor in model.graph.initializer)
    small.graph.input.extend(_bare_value(value) for value in model.graph.input)
    small.graph.output.extend(_bare_value(value) for value in model.graph.output)
    _share_initializers_(small.graph)
    _shorten_names_(small.graph)
    return small


def unpack_weights(model: onnx.ModelProto) -> list[npt.NDArray[np.int8]]:
    """Integers [out, ...] of every quantised layer in graph order, as the runtime decodes them."""
    producers = {output: node for node in model.graph.node for output in node.output}
    sources = (producers.get(node.input[1]) for node in model.graph.node if node.op_type in ("Conv", "Gemm"))
    quantised = ("DequantizeLinear", "Mul")
    names = [node.input[0] for node in sources if node is not None and node.op_type in quantised]
    decoded = _evaluate_constants(model, names)
    return [decoded[name].astype(np.int8) for name in names]


def count_fused(path: Path) -> dict[str, int]:
    """How often each operator occurs in the graph that ONNX Runtime really runs.

    Raises:
        TrialFailed: kind ``runtime``; the runtime does not load the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads=1)
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        open_session(path, 1, options)
        optimized = onnx.load(options.optimized_model_filepath)
    return dict(Counter(node.op_type for node in optimized.graph.node))


# --- the graph under work -----------------------------------------------------------------------------------


class _Writer:
    """New constants and nodes of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constant_nodes: list[onnx.NodeProto] = []
        self._inserted: dict[str, list[onnx.NodeProto]] = {}
        self._count = 0
        self._quantized: dict[str, tuple[str, str, str]] = {}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {output: node for node in graph.node for output in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def _fresh(self) -> str:
        self._count += 1
        return f"encoded.{self._count}"

    def constant(self, array: npt.NDArray[Any]) -> str:
        """Name of a new initialiser."""
        name = self._fresh()
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Name of the output of a new node that depends on initialisers alone."""
        return self.nodes(op_type, inputs, 1, **attributes)[0]

    def nodes(self, op_type: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        """Names of the outputs of a new node that depends on initialisers alone."""
        names = [self._fresh() for _ in range(outputs)]
        self._constant_nodes.append(helper.make_node(op_type, list(inputs), names, **attributes))
        return names

    def insert_before_(self, node: onnx.NodeProto, op_type: str, inputs: Sequence[str]) -> None:
        """Feed a node's first input from a new node, which comes after those inserted here before."""
        node.input[0] = self._fresh()
        inserted = helper.make_node(op_type, list(inputs), [node.input[0]])
        self._inserted.setdefault(node.output[0], []).append(inserted)

    def after_(self, node: onnx.NodeProto, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Name of the output of a new node that runs where ``node`` runs, after those put there before."""
        name = self._fresh()
        inserted = helper.make_node(op_type, list(inputs), [name], **attributes)
        self._inserted.setdefault(node.output[0], []).append(inserted)
        return name

    def replace_(self, node: onnx.NodeProto, op_type: str, inputs: Sequence[str], output: str) -> None:
        """Make a node another one with the same output."""
        node.CopyFrom(helper.make_node(op_type, list(inputs), [output]))

    def dynamically_quantized(self, node: onnx.NodeProto) -> tuple[str, str, str]:
        """uint8 values, scale and zero point of a node's first input; made once for all that read it."""
        source = node.input[0]
        if source not in self._quantized:
            names = (self._fresh(), self._fresh(), self._fresh())
            inserted = helper.make_node("DynamicQuantizeLinear", [source], list(names))
            self._inserted.setdefault(node.output[0], []).append(inserted)
            self._quantized[source] = names
        return self._quantized[source]

    def weight_read_by(self, node: onnx.NodeProto) -> str:
        """The stored weight among a node's inputs."""
        return next(str(name) for name in node.input[:2] if name in self._initializers)

    def initial(self, name: str) -> npt.NDArray[Any]:
        """Value of one of the graph's own initialisers."""
        if name not in self._initializers:
            raise TrialFailed("export", f"{name!r} must be an initialiser of the graph; it is computed")
        return numpy_helper.to_array(self._initializers[name])

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of one of the graph's own initialisers; None if the tensor is computed."""
        return tuple(self._initializers[name].dims) if name in self._initializers else None

    def finish_(self) -> None:
        """Put all nodes in order; drop nodes and initialisers that nothing reads any more."""
        nodes = [*self._constant_nodes]
        for node in self._graph.node:
            nodes += [*self._inserted.get(node.output[0], []), node]
        nodes = _ancestors(nodes, [value.name for value in self._graph.output])
        used = {name for node in nodes for name in node.input} | {value.name for value in self._graph.output}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        for field, entries in (("node", nodes), ("initializer", kept), ("value_info", [])):
            self._graph.ClearField(field)
            getattr(self._graph, field).extend(entries)


def _replace_tensors_(graph: onnx.GraphProto, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for name, array in tensors.items():
        if name not in initializers:
            raise TrialFailed("export", f"the graph has no initialiser {name!r}; exporters merge equal ones")
        old = initializers[name]
        if tuple(old.dims) != array.shape or old.data_type != helper.np_dtype_to_tensor_dtype(array.dtype):
            rule = f"{name} is {helper.tensor_dtype_to_np_dtype(old.data_type)} {list(old.dims)}"
            raise TrialFailed("export", f"{rule}; got {array.dtype} {list(array.shape)}")
        old.CopyFrom(numpy_helper.from_array(array, name))


def _layer_nodes(graph: onnx.GraphProto, layers: Mapping[str, LayerWeights]) -> dict[str, onnx.NodeProto]:
    """The node that reads each layer's weight, in graph order; every layer is checked."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    weight_of = {name: name if name in shapes else f"{name}.weight" for name in layers}
    layer_of = {weight: name for name, weight in weight_of.items()}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for tensor in set(node.input) & layer_of.keys():
            readers.setdefault(layer_of[tensor], []).append(node)
    for name, weights in layers.items():
        shape = shapes.get(weight_of[name])
        if shape is None or name not in readers:
            raise TrialFailed("export", f"no layer reads {name}.weight; the exporter merged or renamed it")
        _check_reader(name, weight_of[name], readers[name])
        _check_weights(name, weights, shape)
    return {name: nodes[0] for name, nodes in readers.items()}


def _check_reader(name: str, weight: str, readers: list[onnx.NodeProto]) -> None:
    node = readers[0]
    if len(readers) > 1:
        raise TrialFailed("export", f"{weight} must be one layer's weight; {len(readers)} nodes read it")
    expected = {"Conv": 1, "Gemm": 1, "MatMul": 1, "Transpose": 0, "Gather": 0}
    if expected.get(node.op_type) != list(node.input).index(weight):
        raise TrialFailed("export", f"{weight} must be a layer's weight; it is read by {node.op_type}")
    defaults = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    found = defaults | {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Gemm" and found != defaults | {"transB": 1}:
        raise TrialFailed("export", f"{weight} must feed Gemm with transB=1; got {found}")


def _check_weights(name: str, weights: LayerWeights, shape: tuple[int, ...]) -> None:
    if weights.values.shape != shape or len(weights.scales) != shape[weights.out_axis]:
        got = f"{list(weights.values.shape)} and {list(weights.scales.shape)}"
        raise TrialFailed("export", f"{name}.weight is {list(shape)}; integers and scales are {got}")
    if weights.bits not in BITS or weights.values.dtype != np.int8 or weights.scales.dtype != np.float32:
        got = f"{weights.bits} bits, {weights.values.dtype}, {weights.scales.dtype}"
        raise TrialFailed("export", f"{name}: bits in {BITS}, integers int8, scales float32; got {got}")
    limit = 2 ** (weights.bits - 1)
    if weights.values.min() < -limit or weights.values.max() >= limit:
        raise TrialFailed("export", f"{name}: {weights.bits} bits hold integers in [{-limit}, {limit - 1}]")
    if not (np.isfinite(weights.scales) & (weights.scales > 0)).all():
        raise TrialFailed("export", f"{name}: scales must be positive and finite")


# --- layers as ONNX operators ------------------------------------------------------------------------------


def lower_(model: onnx.ModelProto, dynamic: Collection[str]) -> None:
    """Replace the exporter's stand-ins for layers by ONNX operators, in place.

    ``autocompress::Linear`` on matrices becomes a Gemm, which the runtime fuses between quantised tensors. On
    anything else, and for ``dynamic`` layers, it becomes MatMul and Add; the runtime folds the transposition of
    a weight when the session is made. ``autocompress::Embedding`` becomes a Gather.
    """
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes += _lowered(node, dynamic) if node.domain == STAND_INS else [node]
    if len(nodes) > len(model.graph.node) or any(node.domain == STAND_INS for node in model.graph.node):
        model.graph.ClearField("node")
        model.graph.node.extend(nodes)
        kept = [entry for entry in model.opset_import if entry.domain != STAND_INS]
        del model.opset_import[:]
        model.opset_import.extend(kept)


def _lowered(node: onnx.NodeProto, dynamic: Collection[str]) -> list[onnx.NodeProto]:
    output = node.output[0]
    if node.op_type == "Embedding":
        return [helper.make_node("Gather", list(node.input), [output])]
    source, weight, *bias = node.input
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    transposed = not found["out_axis"]
    if found["rank"] == 2 and transposed and weight.removesuffix(".weight") not in dynamic:
        return [helper.make_node("Gemm", [source, weight, *bias], [output], transB=1)]
    product = f"{output}.product" if bias else output
    matrix = f"{output}.matrix" if transposed else weight
    steps = [helper.make_node("Transpose", [weight], [matrix], perm=[1, 0])] if transposed else []
    steps.append(helper.make_node("MatMul", [source, matrix], [product]))
    if bias:
        steps.append(helper.make_node("Add", [product, bias[0]], [output]))
    return steps


# --- one layer ----------------------------------------------------------------------------------------------


def _attach_(writer: _Writer, node: onnx.NodeProto, integers: str, weights: LayerWeights) -> None:
    """Feed the node that reads a layer's weight from its stored integers."""
    if node.op_type == "Gather":
        _look_up_(writer, node, integers, weights)
    elif not weights.integer_activations:
        place = list(node.input).index(writer.weight_read_by(node))
        node.input[place] = writer.node("Mul", [integers, writer.constant(weights.column)])
    elif node.op_type in ("Conv", "Gemm"):
        _fuse_(writer, node, integers, weights)
    else:
        _multiply_(writer, node, integers, weights)


def _look_up_(writer: _Writer, node: onnx.NodeProto, integers: str, weights: LayerWeights) -> None:
    """Rows of a table: look up integers and scale, then multiply; nothing the size of the table is made."""
    output = node.output[0]
    rows = writer.after_(node, "Gather", [integers, node.input[1]])
    rows = writer.after_(node, "Cast", [rows], to=onnx.TensorProto.FLOAT)
    scales = writer.after_(node, "Gather", [writer.constant(weights.column), node.input[1]])
    writer.replace_(node, "Mul", [rows, scales], output)


def _multiply_(writer: _Writer, node: onnx.NodeProto, integers: str, weights: LayerWeights) -> None:
    """A product of matrices on integers whose result is float; ``node`` is it, or what transposes its weight."""
    if node.op_type == "Transpose":
        (product,) = writer.consumers[node.output[0]]
        matrix = writer.node("Transpose", [integers], perm=[1, 0])
    else:
        product, matrix = node, integers
    scales, zero_point = writer.constant(weights.scales), writer.constant(np.zeros(len(weights.scales), np.int8))
    if not weights.dynamic:
        _input_scale(writer, product)
        product.input[1] = writer.node("DequantizeLinear", [matrix, scales, zero_point], axis=1)
        return
    values, scale, offset = writer.dynamically_quantized(product)
    whole = writer.after_(product, "MatMulInteger", [values, matrix, offset, zero_point])
    real = writer.after_(product, "Cast", [whole], to=onnx.TensorProto.FLOAT)
    factor = writer.after_(product, "Mul", [scale, scales])
    writer.replace_(product, "Mul", [real, factor], product.output[0])


def _fuse_(writer: _Writer, node: onnx.NodeProto, integers: str, weights: LayerWeights) -> None:
    """A Conv or Gemm between quantised tensors."""
    name, input_scale, bias = node.input[1], _input_scale(writer, node), _bias_name(node)
    scales = weights.scales
    if bias is not None:
        scales = _scales_for_bias(name, weights, writer.initial(bias), writer.initial(input_scale))
    scale_name = writer.constant(scales)
    # Gemm, unlike Conv, fuses only if its weights have a zero point
    zero_point = [writer.constant(np.zeros(len(scales), np.int8))] if node.op_type == "Gemm" else []
    node.input[1] = writer.node("DequantizeLinear", [integers, scale_name, *zero_point], axis=0)
    if bias is not None:
        # The integer kernels take the bias at input scale times weight scale: with another scale a Conv does
        # not fuse and a Gemm answers wrongly. As a product that the runtime folds, the scale costs a node
        # instead of four bytes a channel.
        product = (writer.initial(input_scale) * scales).astype(np.float32)
        values = np.rint(writer.initial(bias).astype(np.float64) / product).astype(np.int32)
        bias_scale = writer.node("Mul", [input_scale, scale_name])
        node.input[2] = writer.node("DequantizeLinear", [writer.constant(values), bias_scale], axis=0)


def _bias_name(node: onnx.NodeProto) -> str | None:
    return str(node.input[2]) if len(node.input) > 2 and node.input[2] else None


def _input_scale(writer: _Writer, node: onnx.NodeProto) -> str:
    source = _dequantize_before(writer, node)
    if source is None:
        raise TrialFailed("export", f"{node.input[1]}: its layer needs a DequantizeLinear before it")
    return str(source.input[1])


def _keep_float_(writer: _Writer, nodes: Iterable[onnx.NodeProto]) -> None:
    """Stop ONNX Runtime from computing layers on integers that are not meant to be.

    Its WeightBiasQuantization pass quantises the float weights of a Conv or Gemm by itself, with one scale
    for all channels, if the layer's input comes from a DequantizeLinear with a scalar scale and its output
    leads to a QuantizeLinear. A layer between two integer layers looks like that, and its answers are then
    off by percents. The pass leaves a layer alone whose input has a scale per channel: repeat the scalar.
    """
    for node in nodes:
        if node.op_type not in ("Conv", "Gemm") or not _leads_to_quantize(writer, node):
            continue
        source, shape = _dequantize_before(writer, node), writer.shape(node.input[1])
        if source is None or shape is None:
            continue
        if source.output[0] != node.input[0]:
            # the values still lie on the grid; the runtime merges this with the DequantizeLinear before
            writer.insert_before_(node, "QuantizeLinear", [node.input[0], *source.input[1:]])
            source = onnx.NodeProto(input=[node.input[0], *source.input[1:]])
        found = {attribute.name: attribute.i for attribute in node.attribute}
        transposed = node.op_type == "Gemm" and not found.get("transB", 0)
        channels = shape[0] if transposed else shape[1] * found.get("group", 1)
        target = writer.constant(np.array([channels], np.int64))
        repeated = [writer.node("Expand", [name, target]) for name in source.input[1:]]
        writer.insert_before_(node, "DequantizeLinear", [source.input[0], *repeated])


def _dequantize_before(writer: _Writer, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The DequantizeLinear whose values reach a layer, at most moved on the way."""
    producer = writer.producers.get(node.input[0])
    while producer is not None and producer.op_type in _MOVES:
        producer = writer.producers.get(producer.input[0])
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _leads_to_quantize(writer: _Writer, node: onnx.NodeProto) -> bool:
    consumers = writer.consumers.get(node.output[0], [])
    while len(consumers) == 1 and consumers[0].op_type in ("Relu", "Clip", *_MOVES):
        consumers = writer.consumers.get(consumers[0].output[0], [])
    return len(consumers) == 1 and consumers[0].op_type == "QuantizeLinear"


def _scales_for_bias(
    name: str, weights: LayerWeights, bias: npt.NDArray[np.float32], input_scale: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Weight scales [out] under which round(bias / (input scale * weight scale)) fits 32 bits.

    A channel whose integers are all 0 may have any scale, and pruned channels tend to have a tiny one.
    """
    least = np.abs(bias.astype(np.float64)) / input_scale.item() / _BIAS_LIMIT
    dead = ~weights.values.reshape(len(bias), -1).any(axis=1)
    if (~dead & (weights.scales < least)).any():
        raise TrialFailed("export", f"{name}: a bias exceeds 32 bits at input scale times weight scale")
    return np.where(dead, np.maximum(weights.scales, least), weights.scales).astype(np.float32)


# --- integers -----------------------------------------------------------------------------------------------


def _store_integers(writer: _Writer, layers: Mapping[str, LayerWeights], decoded: set[str]) -> dict[str, str]:
    """Tensor with each layer's integers [out, ...]: int8, or float32 for those that are decoded to float."""
    stored: dict[str, str] = {}
    for bits in sorted({weights.bits for weights in layers.values()}):
        members = {name: weights for name, weights in layers.items() if weights.bits == bits}
        store = _store_plain if bits in _PLAIN_BITS else _store_packed
        stored |= store(writer, members, decoded)
    return stored


def _store_plain(writer: _Writer, layers: Mapping[str, LayerWeights], decoded: set[str]) -> dict[str, str]:
    stored = {name: writer.constant(weights.values) for name, weights in layers.items()}
    for name in sorted(decoded & layers.keys()):
        stored[name] = writer.node("Cast", [stored[name]], to=onnx.TensorProto.FLOAT)
    return stored


def _store_packed(writer: _Writer, layers: Mapping[str, LayerWeights], decoded: set[str]) -> dict[str, str]:
    """All layers of one bit-width in one tensor.

    Layers that differ in their output channels only are unpacked as one tensor and split, which costs a few
    bytes a layer instead of a node.
    """
    bits = next(iter(layers.values())).bits
    groups: dict[tuple[tuple[int, ...], bool], list[str]] = {}
    for name, weights in layers.items():
        groups.setdefault((weights.values.shape[1:], name in decoded), []).append(name)
    flat = np.concatenate([layers[name].values.reshape(-1) for names in groups.values() for name in names])
    sizes = [sum(layers[name].values.size for name in names) for names in groups.values()]
    padding = -len(flat) % (8 * _WORD_BYTES // bits)
    parts = _split(writer, _unpacked(writer, pack(flat, bits), bits), [*sizes, padding] if padding else sizes)
    stored: dict[str, str] = {}
    for ((trailing, to_float), names), part in zip(groups.items(), parts, strict=False):
        group = writer.node("Reshape", [part, writer.constant(np.array([-1, *trailing], np.int64))])
        if to_float:
            group = writer.node("Cast", [group], to=onnx.TensorProto.FLOAT)
        channels = [len(layers[name].values) for name in names]
        stored |= dict(zip(names, _split(writer, group, channels), strict=True))
    return stored


def _split(writer: _Writer, tensor: str, lengths: list[int]) -> list[str]:
    """Consecutive pieces along the first axis."""
    if len(lengths) == 1:
        return [tensor]
    return writer.nodes("Split", [tensor, writer.constant(np.array(lengths, np.int64))], len(lengths))


def pack(values: npt.NDArray[np.int8], bits: int) -> npt.NDArray[np.uint8]:
    """24-bit little-endian words, uint8 [words, 3], of integers [n]; the first integer has the lowest bits.

    Integers are stored plus 2^(bits-1), 24 // bits to a word.
    """
    per_word = 8 * _WORD_BYTES // bits
    padded = np.zeros(-(-len(values) // per_word) * per_word, np.uint32)
    padded[: len(values)] = values.astype(np.int32) + 2 ** (bits - 1)
    shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(bits)
    words = np.bitwise_or.reduce(padded.reshape(-1, per_word) << shifts, axis=1)
    octets: npt.NDArray[np.uint8] = words.astype("<u4").view(np.uint8).reshape(-1, 4)
    return octets[:, :_WORD_BYTES].copy()


def _unpacked(writer: _Writer, packed: npt.NDArray[np.uint8], bits: int) -> str:
    """Constant subgraph: uint8 [words, 3] -> int8 [words * 24 // bits]."""
    shifts = np.arange(0, 8 * _WORD_BYTES, bits, dtype=np.uint32)
    column = np.array([[1], [1 << 8], [1 << 16]], np.uint32)
    octets = writer.node("Cast", [writer.constant(packed)], to=onnx.TensorProto.UINT32)
    words = writer.node("MatMul", [octets, writer.constant(column)])
    shifted = writer.node("BitShift", [words, writer.constant(shifts)], direction="RIGHT")
    fields = writer.node("BitwiseAnd", [shifted, writer.constant(np.array([2**bits - 1], np.uint32))])
    # in int32, because ONNX Runtime before 1.21 has no kernel that subtracts int8
    signed = writer.node("Cast", [fields], to=onnx.TensorProto.INT32)
    centred = writer.node("Sub", [signed, writer.constant(np.array([2 ** (bits - 1)], np.int32))])
    narrow = writer.node("Cast", [centred], to=onnx.TensorProto.INT8)
    return writer.node("Reshape", [narrow, writer.constant(np.array([-1], np.int64))])


def _evaluate_constants(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Values of tensors that depend on initialisers alone, computed by ONNX Runtime."""
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in names}
    wanted = [name for name in dict.fromkeys(names) if name not in values]
    if not wanted:
        return values
    nodes = _ancestors(model.graph.node, wanted)
    used = {name for node in nodes for name in node.input}
    part = helper.make_graph(
        nodes,
        "constants",
        [],
        [onnx.ValueInfoProto(name=name) for name in wanted],
        [tensor for tensor in model.graph.initializer if tensor.name in used],
    )
    runnable = helper.make_model(part, ir_version=model.ir_version, opset_imports=model.opset_import)
    session = ort.InferenceSession(runnable.SerializeToString(), session_options(1), providers=PROVIDERS)
    return values | dict(zip(wanted, session.run(wanted, {}), strict=True))


def _ancestors(nodes: Sequence[onnx.NodeProto], names: Iterable[str]) -> list[onnx.NodeProto]:
    """Nodes that the tensors are computed from, in the given order."""
    needed, found = set(names), []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            found.append(node)
    return found[::-1]


# --- stripping ----------------------------------------------------------------------------------------------


def _bare_node(node: onnx.NodeProto, opsets: Mapping[str, int]) -> onnx.NodeProto:
    bare = onnx.NodeProto(op_type=node.op_type, input=node.input, output=node.output)
    if node.domain:
        bare.domain = node.domain
    bare.attribute.extend(entry for entry in node.attribute if not _is_default(node, entry, opsets))
    for attribute in bare.attribute:
        attribute.ClearField("doc_string")
    return bare


def _is_default(node: onnx.NodeProto, attribute: onnx.AttributeProto, opsets: Mapping[str, int]) -> bool:
    value = helper.get_attribute_value(attribute)
    if node.op_type == "Conv" and not node.domain:
        # the schema cannot say these defaults because their length is that of the kernel
        if attribute.name in _CONV_DEFAULTS:
            return all(entry == _CONV_DEFAULTS[attribute.name] for entry in value)
        if attribute.name == "kernel_shape":
            return True  # the weight has it too
    if not onnx.defs.has(node.op_type, node.domain):
        return False
    schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    known = schema.attributes.get(attribute.name)
    if known is None or not known.default_value.name:
        return False
    return bool(helper.get_attribute_value(known.default_value) == value)


def _bare_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    array = numpy_helper.to_array(tensor)
    bare = numpy_helper.from_array(array, tensor.name)
    if tensor.data_type == onnx.TensorProto.INT64:
        # small shapes and lengths take one or two bytes as varints, eight in raw form
        short = helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.reshape(-1).tolist())
        return min(bare, short, key=lambda candidate: candidate.ByteSize())
    return bare


def _bare_value(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    return onnx.ValueInfoProto(name=value.name, type=value.type)


def _share_initializers_(graph: onnx.GraphProto) -> None:
    """Store equal initialisers once."""
    if _has_subgraphs(graph):
        return
    outputs = {value.name for value in graph.output}
    first: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    for tensor in [*graph.initializer]:
        content = onnx.TensorProto()
        content.CopyFrom(tensor)
        content.ClearField("name")
        kept = first.setdefault(content.SerializeToString(deterministic=True), tensor.name)
        if kept != tensor.name and tensor.name not in outputs:
            renamed[tensor.name] = kept
            graph.initializer.remove(tensor)
    _rename_(graph, renamed)


def _shorten_names_(graph: onnx.GraphProto) -> None:
    """Shortest names for inner tensors; the most frequent get the shortest."""
    if _has_subgraphs(graph):
        return
    fixed = {value.name for value in [*graph.input, *graph.output]} | {""}
    uses = Counter(name for node in graph.node for name in [*node.input, *node.output])
    uses.update(tensor.name for tensor in graph.initializer)
    inner = [name for name, _ in uses.most_common() if name not in fixed]
    short = (name for name in _short_names() if name not in fixed)
    _rename_(graph, dict(zip(inner, short, strict=False)))


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_letters + string.digits, repeat=length))


def _rename_(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def _has_subgraphs(graph: onnx.GraphProto) -> bool:
    # the body of an If or Loop sees outer names; renaming there is not worth its code
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(attribute.type in kinds for node in graph.node for attribute in node.attribute)
