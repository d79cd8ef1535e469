"""What counts as a weight layer, and how networks are traced: the shared vocabulary of all stages.

A network is traced by ``torch.export``, which takes whatever PyTorch code runs, and analysed as a graph of
ATen operators. What a layer is follows from its operator, so a convolution is one whatever class called it.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import operator
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from autocompress.errors import ModelError, first_line

aten = torch.ops.aten
Axes = Sequence[Mapping[int, str]]
"""For each input its axes of any length besides the first, by position."""

_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding)
_WEIGHT_ARGUMENT: dict[Any, int] = {
    aten.linear.default: 1,
    aten.addmm.default: 2,
    aten.embedding.default: 0,
} | dict.fromkeys(_CONVOLUTIONS, 1)
_BIAS_ARGUMENT: dict[Any, int] = {aten.linear.default: 2, aten.addmm.default: 0} | dict.fromkeys(_CONVOLUTIONS, 2)
_IN_PLACE = {"add_", "mul_", "relu_", "hardtanh_", "hardswish_", "hardsigmoid_", "silu_", "leaky_relu_", "elu_"}
"""Operators whose input is read afterwards through their output; writing into a slice is something else."""
_LIBRARIES = ("/torch/", "/importlib/", "<frozen", "<string>", "<eval_with_key>")


@dataclass(frozen=True)
class WeightLayer:
    """A weight that meets activations in one operator.

    Attributes:
        name: what plans call it: the parameter without ``.weight``.
        weight: the parameter.
        bias: its bias parameter, if it has one.
        kind: ``convolution``, ``linear`` or ``embedding``.
        out_axis: axis of the weight along which the layer's outputs lie (rows, of an embedding).
        inner_axes: axes of the input between the first and the channels; only known of linear layers.
    """

    name: str
    weight: str
    bias: str | None
    kind: str
    out_axis: int = 0
    inner_axes: int = 0


def weight_layers(traced: torch.fx.GraphModule) -> dict[str, WeightLayer]:
    """Convolutions, linear layers and embeddings of a traced network by name, in order of execution.

    A weight that several operators read is left out: no one grid and no one file entry would do.
    """
    found: dict[str, WeightLayer] = {}
    for node in traced.graph.nodes:
        layer = layer_of(node)
        if layer is not None and len(readers(traced, layer.weight)) == 1:
            found.setdefault(layer.name, layer)
    return found


def layer_of(node: torch.fx.Node) -> WeightLayer | None:
    """The weight layer that a node computes; None if it is none."""
    position = _WEIGHT_ARGUMENT.get(node.target)
    if node.op != "call_function" or position is None:
        return None
    weight = parameter_name(node.args[position])
    if weight is None:
        return None
    kind = "embedding" if position == 0 else "convolution" if node.target in _CONVOLUTIONS else "linear"
    return WeightLayer(
        name=weight.removesuffix(".weight"),
        weight=weight,
        bias=parameter_name(bias_node(node)),
        kind=kind,
        out_axis=1 if node.target is aten.addmm.default else 0,
        inner_axes=input_node(node).meta["val"].dim() - 2 if kind == "linear" else 0,
    )


def module_of(node: torch.fx.Node) -> str:
    """Path of the innermost module that a node was traced in; empty outside of any."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def input_node(node: torch.fx.Node) -> torch.fx.Node:
    """The activations that a weight layer reads."""
    position = 0 if node.target not in (aten.addmm.default, aten.embedding.default) else 1
    source = node.args[position]
    assert isinstance(source, torch.fx.Node)
    return source


def bias_node(node: torch.fx.Node) -> torch.fx.node.Argument:
    """The node of a layer's bias; None without one."""
    position = _BIAS_ARGUMENT.get(node.target)
    return node.args[position] if position is not None and len(node.args) > position else None


def parameter_name(node: object) -> str | None:
    """Name of the parameter that a node reads; None if it reads something else."""
    is_read = isinstance(node, torch.fx.Node) and node.op == "get_attr"
    return str(node.target) if is_read else None  # type: ignore[attr-defined]


def readers(traced: torch.fx.GraphModule, parameter: str) -> list[torch.fx.Node]:
    """Nodes that read a parameter."""
    reads = (node for node in traced.graph.nodes if node.op == "get_attr" and node.target == parameter)
    return [user for node in reads for user in node.users]


def matrices(model: nn.Module) -> list[str]:
    """Names of parameters of two or more dimensions: what blocks consist of, before any tracing."""
    return [name for name, parameter in model.named_parameters() if parameter.dim() >= 2]


def classifier_name(model: nn.Module) -> str | None:
    """Name of the last linear layer, whose input serves as the feature of hint losses; None without one."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


def trace(model: nn.Module, inputs: tuple[Tensor, ...], axes: Axes = ()) -> torch.fx.GraphModule:
    """The network as a graph of ATen operators; its parameters keep their names, and any batch size will do.

    Args:
        model: in evaluation mode; what depends on the mode (dropout, batch norm) is fixed by it.
        inputs: example inputs of two rows or more.
        axes: of the inputs, besides the first.

    Raises:
        ModelError: the forward function cannot be traced; names the line of the model's source.
    """
    shapes = tuple(
        dict.fromkeys([0, *(axes[i] if axes else ())], torch.export.Dim.DYNAMIC) for i, _ in enumerate(inputs)
    )
    try:
        with quiet(), torch.no_grad():
            exported = torch.export.export(model, inputs, dynamic_shapes=_as_arguments(model, shapes), strict=False)
            return _plain(exported.module(check_guards=False))
    except Exception as error:
        raise ModelError(
            f"a model must be traceable by torch.export; {type(model).__name__}{_source_line(error)}: "
            f"{first_line(error)}; remove control flow that depends on the values of tensors"
        ) from error


def _as_arguments(model: nn.Module, shapes: tuple[Any, ...]) -> Any:
    """One entry per parameter of the forward function: a variadic one takes all of them as one tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return (shapes,) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else shapes


def _plain(module: nn.Module) -> torch.fx.GraphModule:
    """Without checks of its inputs, without in-place operators, and with modes that may be set."""
    assert isinstance(module, torch.fx.GraphModule)
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default and not node.users:
            graph.erase_node(node)
        elif _out_of_place(node.target) is not None and not _is_read_by_another_name(node):
            node.target = _out_of_place(node.target)
            later = [user for user in node.args[0].users if user > node]
            for user in later:
                user.replace_input_with(node.args[0], node)
        elif node.op == "output":
            (node.args,) = node.args  # the one output itself, not a tuple of it
    graph.set_codegen(torch.fx.graph.CodeGen())  # inputs as they are, not as trees
    return torch.fx.GraphModule(module, graph).eval()


def _out_of_place(target: Any) -> Any:
    """The operator that computes the same and leaves its input alone; None where there is no need."""
    name = target._schema.name.removeprefix("aten::") if isinstance(target, torch._ops.OpOverload) else ""
    return getattr(getattr(aten, name[:-1]), target._overloadname, None) if name in _IN_PLACE else None


def _is_read_by_another_name(node: torch.fx.Node) -> bool:
    """Whether what an in-place operator overwrites is read afterwards otherwise than through its input or output.

    So it is where a slice is written into: there the operator stays as it is.
    """
    written = node.args[0]
    assert isinstance(written, torch.fx.Node)
    memory = _memory(written)
    names = (n for n in node.graph.nodes if n < node and n is not written and _memory(n) is memory)
    return any(user > node for name in names for user in name.users)


def _memory(node: torch.fx.Node) -> torch.fx.Node:
    """The node that made the memory that this one shows."""
    while _shows_memory_of_its_input(node):
        source = node.args[0]
        assert isinstance(source, torch.fx.Node)
        node = source
    return node


def _shows_memory_of_its_input(node: torch.fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    is_operator = isinstance(node.target, torch._ops.OpOverload) and bool(node.args)
    return is_operator and any(value.alias_info is not None for value in node.target._schema.returns)  # type: ignore[union-attr]


def _source_line(error: BaseException) -> str:
    """Where the model's own source was when tracing gave up."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for link in chain:
        frames = traceback.extract_tb(link.__traceback__)
        own = [f for f in frames if not any(part in f.filename for part in _LIBRARIES) and f.filename != __file__]
        if own and own[-1].filename.endswith(".py") and Path(own[-1].filename).parent != Path(__file__).parent:
            return f", {own[-1].filename} line {own[-1].lineno} ({own[-1].line})"
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Tracers and exporters warn of what is meant, log advice for their authors, and print graphs and progress."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def parameter_count(model: nn.Module) -> int:
    """Number of scalar parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def call(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The model's output for a tuple of inputs."""
    output: Tensor = model(*inputs)
    return output
