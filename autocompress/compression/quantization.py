"""Quantisation-aware training on the network as it will be deployed.

Batch norm is folded first, so that the weights that are quantised are the weights that ship. Weights are
quantised per output channel on a symmetric grid whose step is learned (LSQ, Esser et al. 2020);
activations per tensor to unsigned 8 bits, with ranges from PyTorch's histogram observer. The points
where activations are quantised are those at which ONNX Runtime fuses integer kernels: the input and
the output of each integer layer (after its ReLU), and both inputs and the output of an addition between them.
A linear layer on sequences is a product whose result the runtime gives in float: only its input is rounded.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.ao.quantization.observer import HistogramObserver
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from autocompress.layers import (
    WeightLayer,
    aten,
    call,
    input_node,
    layer_of,
    parameter_name,
    readers,
    weight_layers,
)
from autocompress.plan import Precision

_MOVES = {
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.unflatten.int,
    aten.slice.Tensor,
    aten.pad.default,
    aten.max_pool2d.default,
    aten.max_pool1d.default,
    aten.dropout.default,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.contiguous.default,
    aten.clone.default,
}
_STEP_CANDIDATES = torch.linspace(0.3, 1.0, 36)


def fold_batch_norm_(traced: torch.fx.GraphModule) -> None:
    """Fold each batch norm into the convolution or linear layer that alone feeds it, in place."""
    for norm in list(traced.graph.nodes):
        if norm.target is aten.batch_norm.default and _is_foldable(norm, traced):
            _fold_(norm, traced)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()


def _is_foldable(norm: torch.fx.Node, traced: torch.fx.GraphModule) -> bool:
    source = norm.args[0]
    assert isinstance(source, torch.fx.Node)
    layer = layer_of(source)
    if layer is None or len(source.users) > 1 or len(readers(traced, layer.weight)) > 1:
        return False
    # a batch norm's channels are axis 1, a linear layer's outputs the last one
    return layer.kind == "convolution" or (layer.kind == "linear" and layer.inner_axes == 0 and layer.out_axis == 0)


def _fold_(norm: torch.fx.Node, traced: torch.fx.GraphModule) -> None:
    source, *statistics = norm.args[:5]
    assert isinstance(source, torch.fx.Node)
    layer = layer_of(source)
    assert layer is not None
    scale, shift, mean, variance = (None if n is None else _tensor(traced, str(parameter_name(n))) for n in statistics)
    epsilon = norm.args[7]
    assert mean is not None and variance is not None and isinstance(epsilon, float)
    weight = _tensor(traced, layer.weight)
    bias = None if layer.bias is None else _tensor(traced, layer.bias)
    fuse = fuse_conv_bn_weights if layer.kind == "convolution" else fuse_linear_bn_weights
    new_weight, new_bias = fuse(weight, bias, mean, variance, epsilon, scale, shift)  # type: ignore[arg-type]
    _set_tensor(traced, layer.weight, new_weight)
    bias_name = layer.bias or f"{layer.name}.bias"
    _set_tensor(traced, bias_name, new_bias)
    if layer.bias is None:
        with traced.graph.inserting_before(source):
            read = traced.graph.get_attr(bias_name)
        source.args = (*source.args[:2], read, *source.args[3:])
    norm.replace_all_uses_with(source)
    source.meta["val"] = norm.meta["val"]
    traced.graph.erase_node(norm)


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    value = getattr(model.get_submodule(owner), attribute)
    assert isinstance(value, Tensor)
    return value


def _set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Parameter(value.detach().clone()))


def weight_range(bits: int) -> tuple[int, int]:
    """Least and greatest integer of a signed grid of ``bits`` bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


class WeightFakeQuantizer(nn.Module):
    """Parametrisation of a weight: rounded to a learned grid per output channel (LSQ).

    A table of embeddings has tens of thousands of rows, of which a batch reads a few; rounding all of them
    in each step would cost more than the rest of the network, so ``fixed`` rounds once and learns nothing.
    """

    step: nn.Parameter

    def __init__(self, weight: Tensor, bits: int, out_axis: int = 0, fixed: bool = False) -> None:
        super().__init__()
        self.bits, self.out_axis = bits, out_axis
        _, high = weight_range(bits)
        rows = weight.detach().movedim(out_axis, 0).flatten(1)
        # LSQ section 2.2: keeps the step's updates in proportion to the weights'
        self.gradient_scale = (rows.shape[1] * high) ** -0.5
        self.step = nn.Parameter(best_steps(rows, bits), requires_grad=not fixed)
        self.fixed = fixed
        self._rounded: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid; gradients pass straight through the rounding."""
        if self.fixed:
            if self._rounded is None or self._rounded.device != weight.device:
                with torch.no_grad():
                    self._rounded = self._on_grid(weight.detach(), self._positive_step(weight))
            return self._rounded
        step = self._positive_step(weight)
        g = self.gradient_scale
        return self._on_grid(weight, step.detach() + (step * g - (step * g).detach()))

    def _on_grid(self, weight: Tensor, step: Tensor) -> Tensor:
        low, high = weight_range(self.bits)
        scaled = (weight / step).clamp(low, high)
        rounded = scaled + (scaled.round() - scaled).detach()
        return rounded * step

    def integers(self, weight: Tensor) -> Tensor:
        """int8 tensor of the shape of ``weight``; times the step it is exactly ``forward(weight)``."""
        low, high = weight_range(self.bits)
        return (weight / self._positive_step(weight)).clamp(low, high).round().to(torch.int8)

    def scales(self) -> Tensor:
        """Positive steps, (out,)."""
        return self.step.detach().abs().clamp_min(1e-8)

    def _positive_step(self, weight: Tensor) -> Tensor:
        shape = [1] * weight.dim()
        shape[self.out_axis] = -1
        return self.step.abs().clamp_min(1e-8).reshape(shape)


def best_steps(rows: Tensor, bits: int) -> Tensor:
    """Grid step of each row (out, n) with the least squared error among clipped maxima; (out,)."""
    low, high = weight_range(bits)
    largest = rows.abs().amax(dim=1).clamp_min(1e-8) / max(high, 1)
    best, least = largest.clone(), torch.full_like(largest, torch.inf)
    for fraction in _STEP_CANDIDATES:
        step = (largest * fraction)[:, None]
        error = ((rows / step).round().clamp(low, high) * step - rows).square().sum(dim=1)
        best = torch.where(error < least, step[:, 0], best)
        least = torch.minimum(error, least)
    return best


class ActivationFakeQuantizer(nn.Module):
    """Rounds a tensor to 256 levels; ranges are observed first, then fixed.

    In an ONNX export it becomes a QuantizeLinear and a DequantizeLinear with its own named scale and zero point.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.uint8))
        self.observer: HistogramObserver | None = None

    def observe_(self) -> None:
        """Start collecting ranges."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.observer = HistogramObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine)

    def freeze_(self) -> None:
        """Fix scale and zero point from what was observed."""
        assert self.observer is not None
        scale, zero_point = self.observer.calculate_qparams()
        self.scale.copy_(scale.reshape(()))
        self.zero_point.copy_(zero_point.reshape(()).to(torch.uint8))
        self.observer = None

    def forward(self, x: Tensor) -> Tensor:
        """Observed and passed on while calibrating; else on the grid, in the dtype of ``x``."""
        if torch.compiler.is_exporting():
            grid = (self.scale, self.zero_point)
            symbolic = torch.onnx.ops.symbolic
            q = symbolic("QuantizeLinear", (x, *grid), dtype=torch.uint8, shape=x.shape, version=21)
            return symbolic("DequantizeLinear", (q, *grid), dtype=x.dtype, shape=x.shape, version=21)
        if self.observer is not None:
            self.observer(x.detach().float())
            return x
        rounded: Tensor = _RoundToGrid.apply(  # type: ignore[no-untyped-call]
            x, float(self.scale), int(self.zero_point)
        )
        return rounded


class DynamicActivationFakeQuantizer(nn.Module):
    """Rounds a tensor to 256 levels between its own extremes, as ONNX's DynamicQuantizeLinear does.

    An export leaves it out: where the graph is encoded, the operator takes its place.
    """

    def forward(self, x: Tensor) -> Tensor:
        """On the grid of the batch at hand, which always holds 0."""
        if torch.compiler.is_exporting():
            return x
        with torch.no_grad():
            extremes = torch.aminmax(x.detach().float())
            low, high = extremes.min.clamp_max(0.0), extremes.max.clamp_min(0.0)
            step = (high - low) / 255  # in float32, as the runtime does
            scale = float(step) or 1.0
            zero_point = int((-low / scale).round().clamp(0, 255))
        rounded: Tensor = _RoundToGrid.apply(x, scale, zero_point)  # type: ignore[no-untyped-call]
        return rounded


class _RoundToGrid(torch.autograd.Function):
    """QuantizeLinear then DequantizeLinear as ONNX defines them, gradients passing straight through.

    PyTorch's own fake quantisation computes in float32 only, which halves the speed of bfloat16 training.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, zero_point: int) -> Tensor:
        return x.div(scale).round_().clamp_(-zero_point, 255 - zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


def insert_activation_quantizers_(model: torch.fx.GraphModule, precisions: Mapping[str, Precision]) -> None:
    """Put fake quantisers where the runtime's integer kernels round, in place.

    Args:
        model: a folded, traced network.
        precisions: by layer name; layers that are not named compute in float32.
    """
    layers = weight_layers(model)
    integer = {name: layers[name] for name, precision in precisions.items() if precision.integer_activations}
    static = {name for name in integer if not precisions[name].dynamic}
    fused = {name for name in static if _fuses_output(integer[name])}
    names: dict[torch.fx.Node, str] = {}
    for number, node in enumerate(quantized_tensors(model, fused)):
        # what only moves values keeps the grid of its input, so that the runtime can do it on integers
        source = _source(node, model)
        name = names.setdefault(source, f"activation_{number}")
        if name == f"activation_{number}":
            model.add_submodule(name, ActivationFakeQuantizer())
        with model.graph.inserting_after(node):
            quantized = model.graph.call_module(name, (node,))
        quantized.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(quantized)
        quantized.replace_input_with(quantized, node)
    _insert_before_layers_(model, static - fused, ActivationFakeQuantizer, "input")
    _insert_before_layers_(model, set(integer) - static, DynamicActivationFakeQuantizer, "dynamic")
    model.graph.lint()
    model.recompile()


def _fuses_output(layer: WeightLayer) -> bool:
    """Whether the runtime's kernel takes integers and gives integers: not the product of more than matrices."""
    return layer.inner_axes == 0


def _insert_before_layers_(
    model: torch.fx.GraphModule, layers: set[str], quantizer: type[nn.Module], prefix: str
) -> None:
    """Quantise what these layers read, for them alone; layers that read one tensor share its quantiser."""
    quantized: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in list(model.graph.nodes):
        layer = layer_of(node)
        if layer is None or layer.name not in layers or _is_quantizer(input_node(node), model):
            continue
        source = input_node(node)
        if source not in quantized:
            name = f"{prefix}_{len(quantized)}"
            model.add_submodule(name, quantizer())
            with model.graph.inserting_after(source):
                quantized[source] = model.graph.call_module(name, (source,))
            quantized[source].meta["val"] = source.meta["val"]
        node.replace_input_with(source, quantized[source])


def attach_weight_quantizers_(model: torch.fx.GraphModule, precisions: Mapping[str, Precision]) -> None:
    """Parametrise each layer's weight by its fake quantiser, in place; grids start at the least squared error.

    Raises:
        KeyError: a name is not a weight layer of the network.
    """
    layers = weight_layers(model)
    for name, precision in precisions.items():
        layer = layers[name]
        if precision.weight_bits is not None:
            is_table = layer.kind == "embedding"
            weight = _tensor(model, layer.weight)
            quantizer = WeightFakeQuantizer(weight, precision.weight_bits, layer.out_axis, fixed=is_table)
            owner, _, attribute = layer.weight.rpartition(".")
            parametrize.register_parametrization(model.get_submodule(owner), attribute, quantizer)
            weight.requires_grad_(not is_table)


def quantized_tensors(model: torch.fx.GraphModule, integer_layers: set[str]) -> list[torch.fx.Node]:
    """Nodes whose output is quantised, in order of execution."""
    chosen: dict[torch.fx.Node, None] = {}

    def is_quantized(node: torch.fx.Node) -> bool:
        return node in chosen or (_only_moves_values(node) and is_quantized(node.all_input_nodes[0]))

    for node in model.graph.nodes:
        layer = layer_of(node)
        if layer is not None and layer.name in integer_layers:
            chosen[input_node(node)] = None
            output = _through_relu(node)
            if not any(user.op == "output" for user in output.users):
                chosen[output] = None
        elif _is_addition(node) and len(node.all_input_nodes) == 2 and all(map(is_quantized, node.all_input_nodes)):
            for operand in node.all_input_nodes:
                chosen[operand] = None
            chosen[_through_relu(node)] = None
    return [node for node in model.graph.nodes if node in chosen]


def _through_relu(node: torch.fx.Node) -> torch.fx.Node:
    """The ReLU that is the node's only user, else the node: the runtime fuses a ReLU into the rounding."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target is aten.relu.default else node


def _is_addition(node: torch.fx.Node) -> bool:
    return node.target is aten.add.Tensor


def _source(node: torch.fx.Node, model: torch.fx.GraphModule) -> torch.fx.Node:
    """Where the node's values come from, through quantisers and operations that only move values."""
    while _only_moves_values(node) or _is_quantizer(node, model):
        node = node.all_input_nodes[0]
    return node


def _is_quantizer(node: torch.fx.Node, model: torch.fx.GraphModule) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), ActivationFakeQuantizer)


def _only_moves_values(node: torch.fx.Node) -> bool:
    return node.target in _MOVES


def calibrate_(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Observe the activations of the given batches and fix all ranges, in place."""
    quantizers = [module for module in model.modules() if isinstance(module, ActivationFakeQuantizer)]
    for quantizer in quantizers:
        quantizer.observe_()
    model.eval()
    if quantizers:
        with torch.no_grad():
            for inputs in batches:
                call(model, inputs)
    for quantizer in quantizers:
        quantizer.freeze_()


@dataclass(frozen=True)
class IntegerWeight:
    """A quantised weight: ``values`` int8 of the parameter's shape, ``scales`` (out,), and its layer."""

    values: Tensor
    scales: Tensor
    bits: int
    layer: WeightLayer


def integer_weights(model: torch.fx.GraphModule) -> dict[str, IntegerWeight]:
    """The quantised weights of a network by layer name."""
    found = {}
    for name, layer in weight_layers(model).items():
        parametrised = _weight_quantizer(model, layer)
        if parametrised is not None:
            quantizer, original = parametrised
            found[name] = IntegerWeight(quantizer.integers(original), quantizer.scales(), quantizer.bits, layer)
    return found


def _weight_quantizer(model: nn.Module, layer: WeightLayer) -> tuple[WeightFakeQuantizer, Tensor] | None:
    """The quantiser of a parametrised layer and the weight before rounding."""
    owner, _, attribute = layer.weight.rpartition(".")
    module = model.get_submodule(owner)
    if not parametrize.is_parametrized(module, attribute):
        return None
    chain: Any = module.parametrizations[attribute]  # type: ignore[index]
    quantizer = chain[0]
    assert isinstance(quantizer, WeightFakeQuantizer)
    return quantizer, chain.original.detach()


def with_rounded_biases(model: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy that adds biases as integer kernels do: rounded to multiples of input scale times weight scale.

    Without it one output in a thousand rounds to the neighbouring level, which deep networks amplify.
    """
    rounded = copy.deepcopy(model)
    for node in rounded.graph.nodes:
        layer = layer_of(node)
        if layer is None or layer.bias is None or not _fuses_output(layer):
            continue
        source, parametrised = input_node(node), _weight_quantizer(rounded, layer)
        if parametrised is not None and _is_quantizer(source, rounded):
            grid = parametrised[0].scales() * rounded.get_buffer(f"{source.target}.scale")
            bias = _tensor(rounded, layer.bias)
            bias.data = (bias.data / grid).round() * grid
    return rounded


def deployment_tensors(model: torch.fx.GraphModule) -> dict[str, Tensor]:
    """State of the network under the names it has in the exported graph, weights on their grids."""
    tensors = {name: value for name, value in model.state_dict().items() if "parametrizations" not in name}
    for layer in weight_layers(model).values():
        tensors[layer.weight] = _tensor(model, layer.weight).detach()
    return tensors
