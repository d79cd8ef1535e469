"""What a search may change in a network, found by tracing and trying: blocks, channel groups, layers."""

from __future__ import annotations

import math
import time

import torch
import torch.fx
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from autocompress.compression.architecture import drop_blocks, find_blocks
from autocompress.compression.inner_widths import InnerWidth, find_inner_widths
from autocompress.compression.pruning import find_groups
from autocompress.layers import Axes, call, module_of, parameter_count, trace, weight_layers

TIMED_RUNS = 5


class _Found(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BlockRun(_Found):
    """Droppable blocks of one sequence, least missed first.

    ``sensitivities`` say how far the network's outputs are from its outputs without the block, on calibration
    data: the Kullback-Leibler divergence (nats) of class probabilities, or the squared distance in units of
    the outputs' variance where there are no classes.
    """

    name: str
    blocks: tuple[str, ...]
    sensitivities: tuple[float, ...]

    @property
    def in_order(self) -> tuple[str, ...]:
        """The blocks in order of depth; block 10 follows block 9."""
        return tuple(
            sorted(self.blocks, key=lambda name: [(p.isdigit(), int(p) if p.isdigit() else p) for p in name.split(".")])
        )


class ChannelGroup(_Found):
    """A prunable group: root layer, channels, and the layers that shrink with it.

    ``inner`` says how, where the channels are the heads of an attention or the hidden units of an MLP; of heads
    ``channels`` counts the heads.
    """

    name: str
    channels: int
    layers: tuple[str, ...]
    inner: InnerWidth | None = None

    @property
    def kind(self) -> str:
        """``channels``, ``heads`` or ``mlp``."""
        return "channels" if self.inner is None else self.inner.kind


class Layer(_Found):
    """A layer whose precision can be chosen; ``kind`` is ``convolution``, ``linear`` or ``embedding``."""

    name: str
    kind: str
    parameters: int


class Analysis(_Found):
    """Everything the decisions of a search refer to, and what was left out with the reason."""

    parameters: int
    runs: tuple[BlockRun, ...]
    groups: tuple[ChannelGroup, ...]
    layers: tuple[Layer, ...]
    left_out: dict[str, str]

    @property
    def inner(self) -> dict[str, InnerWidth]:
        """Heads and hidden widths by the name of their group."""
        return {group.name: group.inner for group in self.groups if group.inner is not None}

    @property
    def decides_nothing(self) -> bool:
        """Whether no plan could differ from the network."""
        return not self.runs and not self.groups and not self.layers


def analyse(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    axes: Axes = (),
    with_blocks: bool = True,
    classification: bool = True,
) -> Analysis:
    """Find blocks, groups and layers of a network.

    Args:
        network: in evaluation mode, unchanged by this.
        inputs: calibration inputs (rows first), on which blocks are ranked; two rows serve for the rest.
        axes: of the inputs that have any length, besides the first.

    Raises:
        ModelError: the network cannot be traced.
    """
    pair = tuple(x[:2] for x in inputs)
    traced = trace(network, pair, axes)
    layers = find_layers(network, traced)
    inner, bad_widths = find_inner_widths(network, traced, pair)
    groups, bad_groups = find_groups(network, pair, inner)
    blocks, bad_blocks = find_blocks(network, pair) if with_blocks else ([], {})
    runs: dict[str, list[tuple[float, str]]] = {}
    missed = _sensitivities(network, [block.name for block in blocks], inputs, classification)
    for block in blocks:
        runs.setdefault(block.run, []).append((missed[block.name], block.name))
    ranked = {name: sorted(members) for name, members in runs.items()}
    whole = [ChannelGroup(name=w.name, channels=w.units, layers=w.layers, inner=w) for w in inner]
    whole += [ChannelGroup(name=g.name, channels=g.channels, layers=g.layers) for g in groups]
    order = {name: place for place, (name, _) in enumerate(network.named_modules())}
    return Analysis(
        parameters=parameter_count(network),
        runs=tuple(
            BlockRun(name=name, blocks=tuple(b for _, b in members), sensitivities=tuple(s for s, _ in members))
            for name, members in ranked.items()
        ),
        groups=tuple(sorted(whole, key=lambda group: order.get(group.name, len(order)))),
        layers=layers,
        left_out={f"heads or hidden units {name}": reason for name, reason in bad_widths.items()}
        | {f"group {name}": reason for name, reason in bad_groups.items()}
        | {f"block {name}": reason for name, reason in bad_blocks.items()}
        | _uncovered(network, layers),
    )


def find_layers(network: nn.Module, traced: torch.fx.GraphModule) -> tuple[Layer, ...]:
    """Layers whose precision can be chosen, in order of execution."""
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return tuple(
        Layer(name=name, kind=layer.kind, parameters=sizes.get(layer.weight, 0))
        for name, layer in weight_layers(traced).items()
    )


def _uncovered(network: nn.Module, layers: tuple[Layer, ...]) -> dict[str, str]:
    """Weights that no layer holds: what a recurrent or an unknown operator reads, or several read, or none."""
    known = {layer.name for layer in layers}
    return {
        f"precision of {name}": "no convolution, linear layer or embedding alone reads it"
        for name, parameter in network.named_parameters()
        if sum(size > 1 for size in parameter.shape) > 1
        and name not in known
        and name.removesuffix(".weight") not in known
    }


def _sensitivities(
    network: nn.Module, blocks: list[str], inputs: tuple[Tensor, ...], classification: bool
) -> dict[str, float]:
    """How far the outputs move without each block."""
    if not blocks:
        return {}
    with torch.no_grad():
        whole = call(network, inputs)
        return {
            block: divergence(call(drop_blocks(network, (block,)), inputs), whole, classification) for block in blocks
        }


def divergence(outputs: Tensor, reference: Tensor, classification: bool) -> float:
    """How far outputs (rows, ...) are from a reference: nats of Kullback-Leibler divergence of class probabilities,
    or the squared distance in units of the reference's variance where there are no classes.
    """
    if not classification:
        return float((outputs - reference).square().mean() / reference.var().clamp_min(1e-12))
    own, expected = F.log_softmax(outputs, dim=-1), F.log_softmax(reference, dim=-1)
    return float(F.kl_div(own, expected, reduction="batchmean", log_target=True))


class _Timed(torch.fx.Interpreter):
    """Runs a graph and notes how long each operator took."""

    def __init__(self, traced: torch.fx.GraphModule) -> None:
        super().__init__(traced)
        self.seconds: dict[torch.fx.Node, float] = {}

    def run_node(self, n: torch.fx.Node) -> object:
        """One operator; the fastest of its runs counts."""
        start = time.perf_counter()
        result: object = super().run_node(n)
        self.seconds[n] = min(time.perf_counter() - start, self.seconds.get(n, math.inf))
        return result


def time_shares(network: nn.Module, inputs: tuple[Tensor, ...], axes: Axes, analysis: Analysis) -> dict[str, float]:
    """Share of the time of one example in PyTorch, on one thread, of ``blocks``, ``groups`` and ``layers``.

    Operators are counted with the module that they stand in, so a block's share holds its activations too.
    """
    timed = _Timed(trace(network, inputs, axes))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for _ in range(TIMED_RUNS):
                timed.run(*(x[:1] for x in inputs))
    finally:
        torch.set_num_threads(threads)
    blocks = [block for run in analysis.runs for block in run.blocks]
    layers = [layer.name for layer in analysis.layers]
    grouped = [layer for group in analysis.groups for layer in group.layers]
    whole = sum(timed.seconds.values())

    def share(names: list[str]) -> float:
        prefixes = tuple(f"{name}." for name in names)
        inside = (s for node, s in timed.seconds.items() if f"{module_of(node)}.".startswith(prefixes))
        return sum(inside) / whole

    return {"blocks": share(blocks), "groups": share(grouped), "layers": share(layers)}
