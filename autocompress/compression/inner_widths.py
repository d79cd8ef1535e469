"""Widths that only a few linear layers see: the heads of an attention and the hidden units of an MLP.

They are found in the traced graph: what lies between the layers that make the units and the layer that reads
them must be attention or act on each unit by itself. Taking units out then equals setting the reader's weights
for them to zero, and that is checked, number by number, before a search may rely on it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.fx
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from autocompress.errors import first_line
from autocompress.layers import WeightLayer, aten, call, input_node, layer_of, readers

TOLERANCE = 1e-3

_COPIES = {aten.clone, aten.contiguous, aten.dropout, aten.to}
_ACTIVATIONS = {aten.gelu, aten.relu, aten.silu, aten.tanh, aten.sigmoid, aten.hardswish, aten.hardsigmoid, aten.mish}
_ACTIVATIONS |= {aten.hardtanh, aten.leaky_relu, aten.elu, aten.softplus, aten.clamp}
_ARITHMETIC = {aten.mul, aten.add, aten.sub, aten.div, aten.pow, aten.neg, aten.square, aten.sqrt, aten.erf, aten.exp}
_RESHAPES = {aten.view, aten.reshape, aten.flatten}
_ELEMENTWISE = _COPIES | _ACTIVATIONS | _ARITHMETIC
_MOVES = _COPIES | _RESHAPES | {aten.transpose, aten.permute, aten.unflatten, aten.unsqueeze, aten.squeeze, aten.expand}
_MOVES |= {aten.select, aten.unbind, aten.split, aten.split_with_sizes, aten.chunk, aten.slice}
_PRODUCTS = {aten.matmul, aten.bmm}


class Producer(BaseModel):
    """A linear layer whose outputs are units: ``parts`` of them, as where one layer makes query, key and value.

    ``by_unit`` says that a unit's parts lie side by side; else all units of a part do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: str
    bias: str | None
    out_axis: int
    parts: int = 1
    by_unit: bool = False

    def channels(self, units: Tensor, count: int, size: int) -> Tensor:
        """Output channels of the given units, of ``count`` units of ``size`` channels each."""
        shape = (count, self.parts, size) if self.by_unit else (self.parts, count, size)
        table = torch.arange(self.parts * count * size).reshape(shape)
        return table.index_select(0 if self.by_unit else 1, units).flatten()


class InnerWidth(BaseModel):
    """``units`` of ``size`` channels each, made by ``producers`` and read by one layer alone.

    ``attributes`` are numbers in the model's modules that say the width, with what each is of one unit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    units: int
    size: int
    producers: tuple[Producer, ...]
    reader: str
    reader_in_axis: int
    attributes: tuple[tuple[str, str, int], ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all layers that shrink with it."""
        return tuple(name.removesuffix(".weight") for name in (*(p.weight for p in self.producers), self.reader))


def find_inner_widths(
    model: nn.Module, traced: torch.fx.GraphModule, inputs: tuple[Tensor, ...]
) -> tuple[list[InnerWidth], dict[str, str]]:
    """All inner widths that can be taken from, in order of execution, and the reason for each that cannot.

    Args:
        model: the network, in evaluation mode, unchanged by this.
        traced: its graph.
        inputs: example inputs, two rows or more.
    """
    found, left_out = [], {}
    hopeless: dict[tuple[object, ...], str] = {}
    model = copy.deepcopy(model)
    with torch.no_grad():
        for candidates in _candidates(traced):
            form = _form(candidates[0])
            if form in hopeless:  # one of a row of equal blocks has failed in every way
                left_out[candidates[0].name] = hopeless[form]
                continue
            reasons = []
            for candidate in candidates:
                width, reason = _tried(model, candidate, inputs)
                if width is not None:
                    found.append(width)
                    break
                reasons.append(reason)
            else:
                left_out[candidates[0].name] = hopeless[form] = reasons[0]
    return found, left_out


def _form(width: InnerWidth) -> tuple[object, ...]:
    """What blocks that are built alike have in common."""
    return width.kind, width.size, len(width.producers), width.producers[0].parts


def _candidates(traced: torch.fx.GraphModule) -> Iterator[list[InnerWidth]]:
    """For each layer that may read units the ways in which they may lie."""
    for node in traced.graph.nodes:
        layer = layer_of(node)
        if layer is None or layer.kind != "linear" or len(readers(traced, layer.weight)) > 1:
            continue
        attention = _attention(node, layer)
        mlp = None if attention else _mlp(node, layer)
        if attention:
            yield attention
        elif mlp:
            yield [mlp]


# Hidden units of an MLP


def _mlp(reader: torch.fx.Node, layer: WeightLayer) -> InnerWidth | None:
    region, producers = _elementwise_region(reader)
    if not producers or any(user not in region and user is not reader for node in region for user in node.users):
        return None
    layers = [layer_of(node) for node in producers]
    widths = {node.meta["val"].shape[-1] for node in producers}
    if len(widths) > 1:
        return None
    made = tuple(Producer(weight=p.weight, bias=p.bias, out_axis=p.out_axis) for p in layers if p is not None)
    return InnerWidth(
        name=made[0].weight.removesuffix(".weight"),
        kind="mlp",
        units=int(next(iter(widths))),
        size=1,
        producers=made,
        reader=layer.weight,
        reader_in_axis=1 - layer.out_axis,
    )


def _elementwise_region(reader: torch.fx.Node) -> tuple[set[torch.fx.Node], list[torch.fx.Node]]:
    """Nodes from the reader back to linear layers, all of which act on each element; the layers, in order."""
    region: set[torch.fx.Node] = set()
    producers: list[torch.fx.Node] = []
    waiting = [input_node(reader)]
    width = waiting[0].meta["val"].shape[-1]
    while waiting:
        node = waiting.pop()
        if node in region:
            continue
        region.add(node)
        layer = layer_of(node)
        if layer is not None and layer.kind == "linear":
            producers.append(node)
            continue
        if _packet(node) not in _ELEMENTWISE | _RESHAPES or not node.all_input_nodes:
            return set(), []
        if node.meta["val"].shape[-1] != width or any(n.op == "get_attr" for n in node.all_input_nodes):
            return set(), []
        waiting += [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    order = {node: place for place, node in enumerate(reader.graph.nodes)}
    return region, sorted(producers, key=order.__getitem__)


def _packet(node: torch.fx.Node) -> object:
    return node.target.overloadpacket if isinstance(node.target, torch._ops.OpOverload) else node.target


# Heads of an attention


def _attention(reader: torch.fx.Node, layer: WeightLayer) -> list[InnerWidth]:
    core = _through_moves(input_node(reader))
    operands = _operands(core)
    if operands is None:
        return []
    value = operands[2].meta["val"]
    if value.dim() < 3:
        return []
    heads, size = int(value.shape[-3]), int(value.shape[-1])
    sources = [_through_moves(node) for node in operands]
    layers = [layer_of(node) for node in sources]
    if any(found is None or found.kind != "linear" for found in layers):
        return []
    unique = list(dict.fromkeys(found for found in layers if found is not None))
    lengths = {node.meta["val"].shape[-1] for node in sources}
    parts = 3 if len(unique) == 1 else 1
    if len(unique) == 2 or lengths != {parts * heads * size}:
        return []
    orders = (False, True) if parts == 3 else (False,)
    return [
        InnerWidth(
            name=unique[0].name,
            kind="heads",
            units=heads,
            size=size,
            producers=tuple(
                Producer(weight=p.weight, bias=p.bias, out_axis=p.out_axis, parts=parts, by_unit=by_unit)
                for p in unique
            ),
            reader=layer.weight,
            reader_in_axis=1 - layer.out_axis,
        )
        for by_unit in orders
    ]


def _operands(core: torch.fx.Node) -> tuple[torch.fx.Node, torch.fx.Node, torch.fx.Node] | None:
    """Query, key and value of an attention; None if the node is none."""
    if _packet(core) is aten.scaled_dot_product_attention:
        query, key, value = core.args[:3]
    elif _packet(core) in _PRODUCTS:
        probabilities, value = core.args[:2]
        scores = _back_to_product(probabilities)
        if scores is None:
            return None
        query, key = scores.args[:2]
    else:
        return None
    operands = (query, key, value)
    return operands if all(isinstance(node, torch.fx.Node) for node in operands) else None  # type: ignore[return-value]


def _back_to_product(node: object) -> torch.fx.Node | None:
    """The product of queries and keys that a softmax was taken of, scaled and masked on the way."""
    seen_softmax = False
    while isinstance(node, torch.fx.Node) and node.op == "call_function":
        if _packet(node) in _PRODUCTS:
            return node if seen_softmax else None
        seen_softmax = seen_softmax or _packet(node) in (aten.softmax, aten._softmax)
        node = node.args[0] if node.args else None
    return None


def _through_moves(node: torch.fx.Node) -> torch.fx.Node:
    """Where values come from, through what only moves them or multiplies all by one number."""
    while node.op == "call_function" and (_packet(node) in _MOVES or _is_getitem(node) or _is_scaling(node)):
        source = node.args[0]
        assert isinstance(source, torch.fx.Node)
        node = source
    return node


def _is_getitem(node: torch.fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def _is_scaling(node: torch.fx.Node) -> bool:
    return _packet(node) in (aten.mul, aten.div) and len(node.all_input_nodes) == 1


# Taking units out


def without_units_(model: nn.Module, width: InnerWidth, kept: Tensor) -> None:
    """Keep only the given units (sorted int64), in place."""
    for producer in width.producers:
        channels = producer.channels(kept, width.units, width.size)
        _select_(model, producer.weight, producer.out_axis, channels)
        if producer.bias is not None:
            _select_(model, producer.bias, 0, channels)
        owner = model.get_submodule(producer.weight.rpartition(".")[0])
        if isinstance(owner, nn.Linear):
            owner.out_features = len(channels)
    channels = Producer(weight="", bias=None, out_axis=0).channels(kept, width.units, width.size)
    _select_(model, width.reader, width.reader_in_axis, channels)
    owner = model.get_submodule(width.reader.rpartition(".")[0])
    if isinstance(owner, nn.Linear):
        owner.in_features = len(channels)
    for module, attribute, per_unit in width.attributes:
        setattr(model.get_submodule(module), attribute, per_unit * len(kept))


def unit_importance(model: nn.Module, width: InnerWidth) -> Tensor:
    """L2 magnitude of each unit over all weights that go with it; (units,)."""
    scores = torch.zeros(width.units)
    for producer in width.producers:
        rows = model.get_parameter(producer.weight).detach().movedim(producer.out_axis, 0).flatten(1)
        order = producer.channels(torch.arange(width.units), width.units, width.size)
        shape = (width.units, -1) if producer.by_unit else (producer.parts, width.units, width.size)
        squares = rows.square().sum(dim=1)[order].reshape(shape)
        scores += squares.sum(dim=1) if producer.by_unit else squares.sum(dim=(0, 2))
    columns = model.get_parameter(width.reader).detach().movedim(width.reader_in_axis, 0).flatten(1)
    return scores + columns.square().sum(dim=1).reshape(width.units, width.size).sum(dim=1)


def _select_(model: nn.Module, name: str, axis: int, kept: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    parameter = model.get_parameter(name)
    selected = nn.Parameter(parameter.detach().index_select(axis, kept).clone(), parameter.requires_grad)
    setattr(model.get_submodule(owner), attribute, selected)


def _tried(model: nn.Module, width: InnerWidth, inputs: tuple[Tensor, ...]) -> tuple[InnerWidth | None, str]:
    """The width with the attributes that must change, or why units cannot be taken out; the model stays."""
    if width.units < 2:
        return None, "it has one unit"
    kept = torch.arange(0, width.units, 2)
    with _restored(model, width, []):
        _silence_(model, width, kept)
        expected = call(model, inputs)
    reason = ""
    for attributes in _attribute_choices(model, width):
        attempt = width.model_copy(update={"attributes": tuple(attributes)})
        try:
            with _restored(model, width, attributes):
                without_units_(model, attempt, kept)
                answer = call(model, inputs)
        except Exception as error:
            reason = reason or first_line(error)
            continue
        if answer.shape == expected.shape and _close(answer, expected):
            return attempt, ""
        reason = reason or "the network without these units does not answer like one that ignores them"
    return None, reason


@contextmanager
def _restored(model: nn.Module, width: InnerWidth, attributes: Sequence[tuple[str, str, int]]) -> Iterator[None]:
    """Puts back the weights and numbers that taking units out changes: copying the network costs more."""
    layers = [*width.producers, Producer(weight=width.reader, bias=None, out_axis=0)]
    names = [name for layer in layers for name in (layer.weight, layer.bias) if name is not None]
    owners = [model.get_submodule(name.rpartition(".")[0]) for name in names]
    owners += [model.get_submodule(module) for module, _, _ in attributes]
    before = [(owner, dict(owner._parameters), dict(vars(owner))) for owner in owners]
    try:
        yield
    finally:
        for owner, parameters, values in before:
            owner._parameters.update(parameters)
            vars(owner).update({name: value for name, value in values.items() if type(value) is int})


def _close(found: Tensor, expected: Tensor) -> bool:
    scale = float(expected.abs().max()) or 1.0
    return bool(float((found - expected).abs().max()) <= TOLERANCE * scale)


def _silence_(model: nn.Module, width: InnerWidth, kept: Tensor) -> None:
    """Make the reader ignore all units but the kept ones, in place."""
    channels = Producer(weight="", bias=None, out_axis=0).channels(kept, width.units, width.size)
    weight = model.get_parameter(width.reader)
    mask = torch.zeros(weight.shape[width.reader_in_axis])
    mask[channels] = 1.0
    shape = [1] * weight.dim()
    shape[width.reader_in_axis] = -1
    owner, _, attribute = width.reader.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Parameter(weight * mask.reshape(shape)))


def _attribute_choices(model: nn.Module, width: InnerWidth) -> Iterator[list[tuple[str, str, int]]]:
    """Sets of numbers that may have to change: none; the count of units; widths; all of them.

    Looked for in the modules around the layers, where code keeps what it reshapes by.
    """
    names = [*(p.weight for p in width.producers), width.reader]
    around = _modules_around(names)
    channels = width.units * width.size
    parts = width.producers[0].parts
    sizes = {width.units: 1, channels: width.size, parts * channels: parts * width.size}
    found = [
        (module, attribute, value, sizes[value])
        for module in around
        for attribute, value in vars(model.get_submodule(module)).items()
        if type(value) is int and value in sizes and value > 1
    ]
    own = [
        (owner, attribute, value, sizes[value])
        for owner in dict.fromkeys(p.weight.rpartition(".")[0] for p in width.producers)
        for attribute, value in vars(model.get_submodule(owner)).items()
        if type(value) is int and value == parts * channels and not isinstance(model.get_submodule(owner), nn.Linear)
    ]
    wanted: Sequence[Callable[[int], bool]] = (
        lambda value: False,
        lambda value: value == width.units,
        lambda value: value != width.units,
        lambda value: True,
    )
    seen = []
    for use in wanted:
        choice = [(m, a, per) for m, a, value, per in found if use(value)]
        for with_own in ([], own):
            full = choice + [(m, a, per) for m, a, _, per in with_own]
            if full not in seen:
                seen.append(full)
                yield full


def _modules_around(parameters: Sequence[str]) -> list[str]:
    """Modules between the layers and their nearest common ancestor, that one included."""
    paths = [name.split(".")[:-1] for name in parameters]
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    inner = [path[:depth] for path in paths for depth in range(shared, len(path))]
    return list(dict.fromkeys(".".join(path) for path in inner))
