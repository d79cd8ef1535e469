"""Quantisation-aware training on the network as it will be deployed.

Batch norm is folded first, so that the weights that are quantised are the weights that ship. Weights are
quantised per output channel on a symmetric grid whose step is learned (LSQ, Esser et al. 2020);
activations per tensor to unsigned 8 bits, with ranges from PyTorch's histogram observer. The points
where activations are quantised are those at which ONNX Runtime fuses integer kernels: the input and
the output of each integer layer (after its ReLU), and both inputs and the output of an addition between them.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization.observer import HistogramObserver
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrize

from autocompress.layers import WEIGHT_LAYERS, call, trace, weight_layers
from autocompress.plan import Precision

_STEP_CANDIDATES = torch.linspace(0.3, 1.0, 36)


def fold_batch_norm(model: nn.Module) -> torch.fx.GraphModule:
    """A traced copy in which each batch norm is folded into the convolution before it.

    Raises:
        ModelError: the model cannot be traced.
    """
    traced = trace(copy.deepcopy(model).eval())
    folded = fuse(traced, inplace=True)
    assert isinstance(folded, torch.fx.GraphModule)
    return folded


def weight_range(bits: int) -> tuple[int, int]:
    """Least and greatest integer of a signed grid of ``bits`` bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


class WeightFakeQuantizer(nn.Module):
    """Parametrisation of a weight (out, ...): rounded to a learned grid per output channel (LSQ)."""

    step: nn.Parameter

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        _, high = weight_range(bits)
        per_channel = weight[0].numel()
        # LSQ section 2.2: keeps the step's updates in proportion to the weights'
        self.gradient_scale = (per_channel * high) ** -0.5
        self.step = nn.Parameter(best_steps(weight.detach().flatten(1), bits))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid; gradients pass straight through the rounding."""
        step = self._positive_step(weight)
        g = self.gradient_scale
        step = step.detach() + (step * g - (step * g).detach())
        low, high = weight_range(self.bits)
        scaled = (weight / step).clamp(low, high)
        rounded = scaled + (scaled.round() - scaled).detach()
        grid: Tensor = rounded * step
        return grid

    def integers(self, weight: Tensor) -> Tensor:
        """int8 tensor of the shape of ``weight``; times the step it is exactly ``forward(weight)``."""
        low, high = weight_range(self.bits)
        return (weight / self._positive_step(weight)).clamp(low, high).round().to(torch.int8)

    def scales(self) -> Tensor:
        """Positive steps, (out,)."""
        return self.step.detach().abs().clamp_min(1e-8)

    def _positive_step(self, weight: Tensor) -> Tensor:
        return self.step.abs().clamp_min(1e-8).reshape(-1, *[1] * (weight.dim() - 1))


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
    integer = {name for name, precision in precisions.items() if precision.integer_activations}
    names: dict[torch.fx.Node, str] = {}
    for number, node in enumerate(quantized_tensors(model, integer)):
        # what only moves values keeps the grid of its input, so that the runtime can do it on integers
        source = _source(node, model)
        name = names.setdefault(source, f"activation_{number}")
        if name == f"activation_{number}":
            model.add_submodule(name, ActivationFakeQuantizer())
        with model.graph.inserting_after(node):
            quantized = model.graph.call_module(name, (node,))
        node.replace_all_uses_with(quantized)
        quantized.replace_input_with(quantized, node)
    model.graph.lint()
    model.recompile()


def attach_weight_quantizers_(model: nn.Module, precisions: Mapping[str, Precision]) -> None:
    """Parametrise each layer's weight by its fake quantiser, in place; grids start at the least squared error.

    Raises:
        KeyError: a name is not a weight layer of the network.
    """
    layers = weight_layers(model)
    for name, precision in precisions.items():
        weight = layers[name].weight
        assert isinstance(weight, Tensor)
        if precision.weight_bits is not None:
            quantizer = WeightFakeQuantizer(weight, precision.weight_bits)
            parametrize.register_parametrization(layers[name], "weight", quantizer)


def quantized_tensors(model: torch.fx.GraphModule, integer_layers: set[str]) -> list[torch.fx.Node]:
    """Nodes whose output is quantised, in order of execution."""
    chosen: dict[torch.fx.Node, None] = {}

    def is_quantized(node: torch.fx.Node) -> bool:
        return node in chosen or (_only_moves_values(node, model) and is_quantized(node.all_input_nodes[0]))

    for node in model.graph.nodes:
        if node.op == "call_module" and node.target in integer_layers:
            chosen[node.all_input_nodes[0]] = None
            output = _through_relu(node, model)
            if not any(user.op == "output" for user in output.users):
                chosen[output] = None
        elif _is_addition(node) and len(node.all_input_nodes) == 2 and all(map(is_quantized, node.all_input_nodes)):
            for operand in node.all_input_nodes:
                chosen[operand] = None
            chosen[_through_relu(node, model)] = None
    return [node for node in model.graph.nodes if node in chosen]


def _through_relu(node: torch.fx.Node, model: torch.fx.GraphModule) -> torch.fx.Node:
    """The ReLU that is the node's only user, else the node: the runtime fuses a ReLU into the rounding."""
    users = list(node.users)
    return users[0] if len(users) == 1 and _is_relu(users[0], model) else node


def _is_relu(node: torch.fx.Node, model: torch.fx.GraphModule) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), nn.ReLU)
    return node.target in (F.relu, torch.relu, torch.relu_, "relu", "relu_")


def _is_addition(node: torch.fx.Node) -> bool:
    return node.target in (operator.add, operator.iadd, torch.add, "add", "add_")


def _source(node: torch.fx.Node, model: torch.fx.GraphModule) -> torch.fx.Node:
    """Where the node's values come from, through quantisers and operations that only move values."""
    while _only_moves_values(node, model) or _is_quantizer(node, model):
        node = node.all_input_nodes[0]
    return node


def _is_quantizer(node: torch.fx.Node, model: torch.fx.GraphModule) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), ActivationFakeQuantizer)


def _only_moves_values(node: torch.fx.Node, model: torch.fx.GraphModule) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), nn.Identity | nn.Dropout | nn.Flatten | nn.MaxPool2d)
    return node.target in (
        operator.getitem,
        F.pad,
        torch.flatten,
        F.dropout,
        F.max_pool2d,
        "flatten",
        "view",
        "reshape",
    )


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


def integer_weights(model: nn.Module) -> dict[str, tuple[Tensor, Tensor, int]]:
    """For each layer with quantised weights: int8 values (out, ...), float32 scales (out,) and bits."""
    found = {}
    for name, layer in weight_layers(model).items():
        if parametrize.is_parametrized(layer, "weight"):
            quantizer, original = _weight_quantizer(layer)
            found[name] = (quantizer.integers(original), quantizer.scales(), quantizer.bits)
    return found


def _weight_quantizer(layer: nn.Module) -> tuple[WeightFakeQuantizer, Tensor]:
    """The quantiser of a parametrised layer and the weight before rounding."""
    chain: Any = layer.parametrizations["weight"]  # type: ignore[index]
    quantizer = chain[0]
    assert isinstance(quantizer, WeightFakeQuantizer)
    return quantizer, chain.original.detach()


def with_rounded_biases(model: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy that adds biases as integer kernels do: rounded to multiples of input scale times weight scale.

    Without it one output in a thousand rounds to the neighbouring level, which deep networks amplify.
    """
    rounded = copy.deepcopy(model)
    for node in rounded.graph.nodes:
        layer = rounded.get_submodule(node.target) if node.op == "call_module" else None
        source = node.all_input_nodes[0] if layer is not None else node
        if not isinstance(layer, WEIGHT_LAYERS) or not _is_quantizer(source, rounded) or layer.bias is None:
            continue
        if parametrize.is_parametrized(layer, "weight"):
            grid = _weight_quantizer(layer)[0].scales() * rounded.get_buffer(f"{source.target}.scale")
            layer.bias.data = (layer.bias.data / grid).round() * grid
    return rounded


def deployment_tensors(model: nn.Module) -> dict[str, Tensor]:
    """State of the network under the names it has in the exported graph, weights on their grids."""
    tensors = {name: value for name, value in model.state_dict().items() if "parametrizations" not in name}
    for name, layer in weight_layers(model).items():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        tensors[f"{name}.weight"] = weight.detach()
    return tensors
