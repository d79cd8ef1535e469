"""torch -> ONNX graph: the structure of a candidate's file, before its weights are encoded."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import onnx.numpy_helper
import torch
import torch.fx
from torch import Tensor

from autocompress.errors import TrialFailed, first_line

OPSET = 21


def export_graph(
    model: torch.fx.GraphModule, inputs: tuple[Tensor, ...], input_names: tuple[str, ...]
) -> onnx.ModelProto:
    """The network as an ONNX graph with float32 weights and a dynamic first dimension.

    Args:
        model: what :func:`with_random_values` made of a plain network (no parametrisations); activation
            quantisers export themselves.
        inputs: example inputs, any batch size.
        input_names: names of the graph's inputs; the output is called ``logits``.

    Raises:
        TrialFailed: the network cannot be exported.
    """
    batch = torch.export.Dim("batch", min=1, max=65536)
    example = tuple(torch.cat([x[:1], x[:1]]) for x in inputs)
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                example,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(input_names),
                output_names=["logits"],
                dynamic_shapes=tuple({0: batch} for _ in inputs),
            )
    except Exception as error:
        raise TrialFailed(
            "export", f"the network must be exportable to ONNX; {first_line(_innermost(error))}"
        ) from error
    assert program is not None
    graph = program.model_proto
    _separate_zero_points_(graph)
    return graph


def _separate_zero_points_(model: onnx.ModelProto) -> None:
    """Give each activation quantiser its own zero point: the exporter shares those of equal value."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            own = node.input[1].removesuffix(".scale") + ".zero_point"
            if own not in stored:
                stored[own] = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(stored[node.input[2]]), own)
                graph.initializer.append(stored[own])
            node.input[2] = own
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def with_random_values(model: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy with meaningless parameters, to draw the structure of a file from.

    The exporter's optimiser looks at values (it removes a bias that is all zero, and merges equal tensors),
    but the graph must fit whatever the training will yield. Zero points stay: the runtime fuses a ReLU only
    into a rounding whose zero point is 0.
    """
    structure = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in structure.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for name, buffer in structure.named_buffers():
            # what calibration or training changes: grids, and norms that could not be folded
            if name.endswith(("running_mean", "running_var")) or (name.endswith("scale") and buffer.dim() == 0):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return structure


def _innermost(error: BaseException) -> BaseException:
    """The exporter wraps the cause in advice for its authors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and logs advice for its authors."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def initializer_names(graph: onnx.ModelProto) -> set[str]:
    """Names of the tensors stored in a graph."""
    return {tensor.name for tensor in graph.graph.initializer}
