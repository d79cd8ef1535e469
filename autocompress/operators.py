"""What a deployed graph computes, operator by operator, with all that its time in the runtime depends on.

The graph is the one that is exported: batch norm is folded, and quantisers stand where the runtime's integer
kernels round. What the runtime fuses into another operator, or does without moving a byte, is left out.

The process that times operators imports this file, so torch and pydantic are imported only where a graph is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.fx

    from autocompress.layers import WeightLayer
    from autocompress.plan import Precision

FLOAT32 = "float32"
INT8 = "int8"
INT8_DYNAMIC = "int8_dynamic"
QUANTIZE = "quantize"
QUANTIZE_DYNAMIC = "quantize_dynamic"
DEQUANTIZE = "dequantize"
"""What has no ATen operator: rounding on the way into integer arithmetic, and the way back."""

Shape = tuple[int, ...]

_FREE = {
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone", "alias", "detach",
    "dropout", "feature_dropout", "lift_fresh_copy", "to", "_to_copy", "type_as", "sym_size",
}  # fmt: skip
"""Neither computes nor moves anything in the runtime, or is a constant by then."""
_MOVES = {"slice", "pad", "constant_pad_nd", "max_pool2d", "max_pool1d", "permute", "transpose"}
"""What only moves values, so that it works on integers as well."""
_FUSED_CLIPS = {"relu", "hardtanh"}
"""The runtime's layers end with them at no cost."""


@dataclass(frozen=True)
class Operator:
    """One operator of a deployed graph.

    Attributes:
        name: of the ATen operator, without overload; or one of the names of this module.
        layer: the weight layer's name as plans call it; empty otherwise.
        module: path of the innermost module it was traced in; empty outside of any.
        inputs: shapes of the activations that it reads.
        output: shape of what it computes; of several outputs, the largest.
        weight: shape of its weight with the outputs first; empty without one.
        stride: of a convolution or pooling, as are ``padding`` and ``dilation``; empty otherwise.
        kernel: of a pooling; a convolution's is in its weight.
        groups: of a convolution.
        arithmetic: ``float32``, ``int8`` (ranges fixed by calibration) or ``int8_dynamic``.
    """

    name: str
    layer: str
    module: str
    inputs: tuple[Shape, ...]
    output: Shape
    weight: Shape = ()
    stride: Shape = ()
    padding: Shape = ()
    dilation: Shape = ()
    kernel: Shape = ()
    groups: int = 1
    arithmetic: str = FLOAT32

    @property
    def key(self) -> str:
        """All that the time depends on, as text: the same for operators that differ in layer and module alone."""
        parts = [
            self.name,
            self.arithmetic,
            "+".join(_text(shape) for shape in self.inputs),
            f"to {_text(self.output)}",
        ]
        if self.weight:
            parts.append(f"weight {_text(self.weight)}")
        for label in ("stride", "padding", "dilation", "kernel"):
            values = getattr(self, label)
            parts += [f"{label} {_text(values)}"] if values else []
        return " ".join([*parts, f"groups {self.groups}"] if self.groups > 1 else parts)

    @property
    def is_convolution(self) -> bool:
        """Whether the weight slides over positions."""
        return len(self.weight) > 2

    def resized(self, in_channels: int | None = None, out_channels: int | None = None) -> Operator:
        """The same operator with other channel counts; None leaves a count as it is.

        Channels are axis 1 of images and of a convolution's activations, else the last axis. A depthwise
        convolution has as many outputs as inputs, so one count gives both; a table of embeddings has outputs alone.

        Raises:
            ValueError: the counts do not fit the groups.
        """
        axis = 1 if self.is_convolution or len(self.output) > 3 else len(self.output) - 1
        old_in, old_out = self.inputs[0][min(axis, len(self.inputs[0]) - 1)], self.output[axis]
        depthwise = 1 < self.groups == old_in == old_out
        new_in = in_channels or (depthwise and out_channels) or old_in
        new_out = out_channels or (depthwise and in_channels) or old_out
        if self.name == "embedding":
            return replace(self, output=_with(self.output, axis, new_out), weight=(self.weight[0], new_out))
        groups = new_in if depthwise else self.groups
        if new_in % groups or new_out % groups:
            raise ValueError(
                f"channels must be divisible by the groups; {self.layer or self.name} has {groups} groups, "
                f"got {new_in} and {new_out} channels; give multiples of {groups}"
            )
        weight = (new_out, new_in // groups, *self.weight[2:]) if self.weight else ()
        inputs = tuple(
            _with(shape, axis, new_in) if shape[axis : axis + 1] == (old_in,) else shape for shape in self.inputs
        )
        return replace(self, inputs=inputs, output=_with(self.output, axis, new_out), weight=weight, groups=groups)

    def computed_in(self, arithmetic: str) -> Operator:
        """The same operator in another arithmetic."""
        return replace(self, arithmetic=arithmetic)

    def as_json(self) -> dict[str, Any]:
        """Plain values; :func:`from_json` reads them."""
        return asdict(self)


def from_json(content: Mapping[str, Any]) -> Operator:
    """The operator that :meth:`Operator.as_json` gave, also after a JSON round trip."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    return Operator(**values | {"inputs": tuple(tuple(shape) for shape in content["inputs"])})


def _text(shape: Iterable[int]) -> str:
    return "x".join(str(size) for size in shape) or "()"


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def arithmetic_of(precision: Precision | None) -> str:
    """What a layer of this precision computes in; weights alone in few bits are decoded to float32."""
    if precision is None or not precision.integer_activations:
        return FLOAT32
    return INT8_DYNAMIC if precision.dynamic else INT8


def operators(
    deployable: torch.fx.GraphModule, precisions: Mapping[str, Precision], batch_size: int, sequence_length: int
) -> list[Operator]:
    """What the runtime will compute, in order of execution.

    Args:
        deployable: a traced network, folded, with quantisers where the plan rounds; shapes are in ``meta["val"]``.
        precisions: by layer name; layers that are not named compute in float32.
        batch_size: length of the first axis of the inputs.
        sequence_length: of all other axes of any length.
    """
    return _Reader(deployable, precisions, batch_size, sequence_length).read()


class _Reader:
    """Reads one graph."""

    def __init__(
        self, graph: torch.fx.GraphModule, precisions: Mapping[str, Precision], batch_size: int, sequence_length: int
    ) -> None:
        self._graph = graph
        self._precisions = precisions
        self._sequence_length = sequence_length
        values = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        batches = [value.shape[0] for value in values if getattr(value, "ndim", 0)]
        self._lengths = {str(size): batch_size for size in batches if not isinstance(size, int)}

    def read(self) -> list[Operator]:
        found: list[Operator] = []
        for node in self._graph.graph.nodes:
            if node.op == "call_module":
                found += self._rounding(node)
            elif node.op == "call_function" and not self._is_free(node):
                found.append(self._operator(node))
        return found

    def _operator(self, node: torch.fx.Node) -> Operator:
        from autocompress.layers import layer_of, module_of

        layer = layer_of(node)
        operator = Operator(
            name=_name(node),
            layer="" if layer is None else layer.name,
            module=module_of(node),
            inputs=tuple(self._shape(source) for source in _activations(node)),
            output=self._shape(node),
            arithmetic=self._arithmetic(node, layer),
            **_window(node),
        )
        return operator if layer is None else replace(operator, weight=self._weight(layer))

    def _rounding(self, node: torch.fx.Node) -> list[Operator]:
        """What a quantiser costs: nothing between two integer kernels."""
        from autocompress.layers import module_of

        (source,) = node.all_input_nodes
        shape, module = self._shape(node), module_of(source)

        def step(name: str, arithmetic: str) -> Operator:
            return Operator(name, "", module, (shape,), shape, arithmetic=arithmetic)

        if not self._is_static(node):
            return [step(QUANTIZE_DYNAMIC, INT8_DYNAMIC)]
        found = [] if self._gives_integers(source) else [step(QUANTIZE, INT8)]
        if not all(self._takes_integers(user) for user in node.users):
            found.append(step(DEQUANTIZE, INT8))
        return found

    def _gives_integers(self, node: torch.fx.Node) -> bool:
        """Whether the runtime has a node's result in integers, which a quantiser follows."""
        from autocompress.layers import layer_of

        if node.op == "call_module":
            return self._is_static(node)
        if _name(node) in _FUSED_CLIPS or self._moves(node):
            return self._gives_integers(node.all_input_nodes[0])
        layer = layer_of(node)
        return self._arithmetic(node, layer) == INT8 and (layer is None or layer.inner_axes == 0)

    def _takes_integers(self, node: torch.fx.Node) -> bool:
        from autocompress.layers import layer_of

        if node.op == "call_module":
            return True
        if self._moves(node):
            return all(self._takes_integers(user) for user in node.users)
        return self._arithmetic(node, layer_of(node)) == INT8

    def _arithmetic(self, node: torch.fx.Node, layer: WeightLayer | None) -> str:
        if layer is not None:
            return FLOAT32 if layer.kind == "embedding" else arithmetic_of(self._precisions.get(layer.name))
        if node.op != "call_function" or (_name(node) != "add" and not self._moves(node)):
            return FLOAT32
        sources = node.all_input_nodes
        integer = bool(sources) and all(map(self._reads_grid, sources)) and self._reaches_grid(_end_of_fusion(node))
        return INT8 if integer else FLOAT32

    def _reads_grid(self, node: torch.fx.Node) -> bool:
        """Whether a node's values come from a fixed quantiser, at most moved since."""
        while self._moves(node) and node.all_input_nodes:
            node = node.all_input_nodes[0]
        return self._is_static(node)

    def _reaches_grid(self, node: torch.fx.Node) -> bool:
        """Whether a fixed quantiser rounds what a node computes, at most moved before."""
        return any(self._is_static(user) or (self._moves(user) and self._reaches_grid(user)) for user in node.users)

    def _is_static(self, node: torch.fx.Node) -> bool:
        """Whether a node is a quantiser with a fixed range: it keeps its scale."""
        return node.op == "call_module" and hasattr(self._graph.get_submodule(str(node.target)), "scale")

    def _is_free(self, node: torch.fx.Node) -> bool:
        from autocompress.layers import layer_of

        if self._largest(node) is None or _name(node) in _FREE or not _activations(node):
            return True
        if _name(node) == "slice":  # of a whole axis, as an index like x[:, ::2] has them
            return self._shape(node) == self._shape(node.all_input_nodes[0])
        if _name(node) not in _FUSED_CLIPS:
            return False
        source = node.all_input_nodes[0]
        alone = len(source.users) == 1 and source.op == "call_function"
        return alone and (layer_of(source) is not None or self._arithmetic(source, None) == INT8)

    def _moves(self, node: torch.fx.Node) -> bool:
        return _name(node) in _MOVES or _name(node) in _FREE

    def _weight(self, layer: WeightLayer) -> Shape:
        owner, _, attribute = layer.weight.rpartition(".")
        shape = tuple(getattr(self._graph.get_submodule(owner), attribute).shape)
        return shape[::-1] if layer.out_axis == 1 else shape

    def _shape(self, node: torch.fx.Node) -> Shape:
        value = self._largest(node)
        return () if value is None else tuple(self._length(size) for size in value.shape)

    def _largest(self, node: torch.fx.Node) -> torch.Tensor | None:
        """The tensor that a node computes; of several, the one of most elements; None if it computes numbers."""
        value: Any = node.meta.get("val")
        tensors: list[torch.Tensor] = [
            x for x in (value if isinstance(value, (tuple, list)) else [value]) if hasattr(x, "shape")
        ]
        return max(tensors, key=lambda x: math.prod([self._length(size) for size in x.shape]), default=None)

    def _length(self, size: Any) -> int:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        free = {s: self._lengths.get(str(s), self._sequence_length) for s in expression.free_symbols}
        return int(expression.subs(free))


def _name(node: torch.fx.Node) -> str:
    """Of the ATen operator, without overload; empty for what Python computes itself."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).partition("::")[2].removesuffix("_")


def _activations(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Inputs that are computed, as against stored."""
    return [s for s in node.all_input_nodes if s.op != "get_attr" and hasattr(s.meta.get("val"), "shape")]


def _window(node: torch.fx.Node) -> dict[str, Any]:
    """Stride, padding and dilation of a convolution or pooling as tuples, and its groups."""
    schema = getattr(node.target, "_schema", None)
    arguments = [] if schema is None else schema.arguments
    values: dict[str, Any] = {
        a.name: node.kwargs.get(a.name, a.default_value if a.has_default_value() else None) for a in arguments
    }
    values |= dict(zip((a.name for a in arguments), node.args, strict=False))
    if "stride" not in values:
        return {}
    sizes = {
        "stride": values["stride"] or values.get("kernel_size"),
        "padding": values.get("padding"),
        "dilation": values.get("dilation"),
        "kernel": values.get("kernel_size"),
    }
    window: dict[str, Any] = {
        name: _per_axis(value, node)
        for name, value in sizes.items()
        if value is not None and not isinstance(value, str)
    }
    if sizes["padding"] == "same":
        kernel = values["weight"].meta["val"].shape[2:]
        window["padding"] = tuple(d * (k - 1) // 2 for d, k in zip(window["dilation"], kernel, strict=True))
    elif sizes["padding"] == "valid":
        window["padding"] = (0,) * len(window["stride"])
    return window | {"groups": int(values.get("groups") or 1)}


def _per_axis(value: Any, node: torch.fx.Node) -> Shape:
    """One entry for each axis that a window slides along; an empty list means the window's own size."""
    axes = node.meta["val"].dim() - 2 if hasattr(node.meta["val"], "dim") else len(value)
    entries = [int(v) for v in (value if isinstance(value, (tuple, list)) else [value])]
    return tuple(entries * axes) if len(entries) == 1 else tuple(entries)


def _end_of_fusion(node: torch.fx.Node) -> torch.fx.Node:
    """The ReLU that is a node's only user, else the node."""
    users = list(node.users)
    return users[0] if len(users) == 1 and _name(users[0]) in _FUSED_CLIPS else node
