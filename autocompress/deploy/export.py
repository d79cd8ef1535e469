"""torch -> ONNX graph: the structure of a candidate's file, before its weights are encoded."""

from __future__ import annotations

import copy

import onnx
import onnx_ir as ir
import torch
import torch.fx
from onnxscript import optimizer
from torch import Tensor

from autocompress.deploy.encoding import STAND_INS
from autocompress.errors import TrialFailed, first_line
from autocompress.layers import Axes, aten, bias_node, input_node, layer_of, quiet

OPSET = 21
ATTENTION_OPSET = 23
"""Has the operator Attention, which is one kernel where older sets need a dozen nodes."""


def export_graph(
    model: torch.fx.GraphModule, inputs: tuple[Tensor, ...], input_names: tuple[str, ...], axes: Axes = ()
) -> onnx.ModelProto:
    """The network as an ONNX graph with float32 weights and a dynamic first dimension.

    No parameter's value shapes the graph, so whatever training yields fits it. Linear layers and embeddings
    are stand-ins (:func:`autocompress.deploy.encoding.lower_` makes ONNX operators of them).

    Args:
        model: a traced network without parametrisations; activation quantisers export themselves.
        inputs: example inputs, two rows or more.
        input_names: names of the graph's inputs; the output is called ``logits``.
        axes: of the inputs that have any length, besides the first.

    Raises:
        TrialFailed: the network cannot be exported.
    """
    structure = _with_stand_ins(model)
    shapes = tuple({0: "batch", **(axes[i] if axes else {})} for i, _ in enumerate(inputs))
    attention = any(node.target is aten.scaled_dot_product_attention.default for node in model.graph.nodes)
    try:
        with quiet():
            program = torch.onnx.export(
                structure,
                inputs,
                dynamo=True,
                verbose=False,
                optimize=False,
                opset_version=ATTENTION_OPSET if attention else OPSET,
                input_names=list(input_names),
                output_names=["logits"],
                dynamic_shapes=shapes,
            )
    except Exception as error:
        raise TrialFailed(
            "export", f"the network must be exportable to ONNX; {first_line(_innermost(error))}"
        ) from error
    assert program is not None
    with quiet():
        return _optimised(program.model, set(structure.state_dict()))


def _optimised(model: ir.Model, trained: set[str]) -> onnx.ModelProto:
    """Fold what is constant. Trained tensors are made inputs meanwhile, or they would be folded as well."""
    graph = model.graph
    hidden = [value for name, value in graph.initializers.items() if name in trained]
    untrained = [value.const_value for value in hidden]
    for value in hidden:
        del graph.initializers[str(value.name)]
        value.const_value = None  # else a bias that is still zero is dropped
    graph.inputs.extend(hidden)
    optimizer.optimize(model)
    del graph.inputs[len(graph.inputs) - len(hidden) :]
    for value, tensor in zip(hidden, untrained, strict=True):
        value.const_value = tensor
        if value.uses():
            graph.register_initializer(value)
    return ir.to_proto(model)


def _with_stand_ins(model: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy whose linear layers and embeddings are operators that the exporter passes on untouched."""
    structure = copy.deepcopy(model)
    for node in list(structure.graph.nodes):
        layer = layer_of(node)
        if layer is None or layer.kind == "convolution":
            continue
        weight = next(n for n in node.all_input_nodes if n.op == "get_attr" and n.target == layer.weight)
        with structure.graph.inserting_before(node):
            if layer.kind == "embedding":
                other = structure.graph.call_function(_embedding, (weight, input_node(node)))
            else:
                arguments = (input_node(node), weight, bias_node(node), layer.out_axis)
                other = structure.graph.call_function(_linear, arguments)
        other.meta = dict(node.meta)
        node.replace_all_uses_with(other)
        structure.graph.erase_node(node)
    structure.recompile()
    return structure


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_axis: int) -> Tensor:
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return torch.onnx.ops.symbolic(
        f"{STAND_INS}::Linear",
        inputs,
        {"rank": x.dim(), "out_axis": out_axis},
        dtype=x.dtype,
        shape=(*x.shape[:-1], weight.shape[out_axis]),
        version=1,
    )


def _embedding(weight: Tensor, indices: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{STAND_INS}::Embedding",
        (weight, indices),
        dtype=weight.dtype,
        shape=(*indices.shape, weight.shape[1]),
        version=1,
    )


def fill_with_random_values_(structure: torch.fx.GraphModule) -> None:
    """Make all trained tensors differ, in place: equal ones are stored once, and would make an untrained file smaller.

    Zero points stay: the runtime fuses a ReLU only into a rounding whose zero point is 0.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in structure.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for name, buffer in structure.named_buffers():
            # what calibration or training changes: grids, and norms that could not be folded
            if name.endswith(("running_mean", "running_var")) or (name.endswith("scale") and buffer.dim() == 0):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)


def _innermost(error: BaseException) -> BaseException:
    """The exporter wraps the cause in advice for its authors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def initializer_names(graph: onnx.ModelProto) -> set[str]:
    """Names of the tensors stored in a graph."""
    return {tensor.name for tensor in graph.graph.initializer}
