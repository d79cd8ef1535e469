"""What a search may change in a network, found by tracing and trying: blocks, channel groups, layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from autocompress.compression.architecture import drop_blocks, find_blocks
from autocompress.compression.pruning import find_groups
from autocompress.layers import call, parameter_count, weight_layers


class _Found(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BlockRun(_Found):
    """Droppable blocks of one sequence, least missed first.

    ``sensitivities`` are the Kullback-Leibler divergences (nats) of the network's outputs from its outputs
    without the block, on calibration data.
    """

    name: str
    blocks: tuple[str, ...]
    sensitivities: tuple[float, ...]


class ChannelGroup(_Found):
    """A prunable group: root layer, channels, and the layers that shrink with it."""

    name: str
    channels: int
    layers: tuple[str, ...]


class Analysis(_Found):
    """Everything the decisions of a search refer to, and what was left out with the reason."""

    parameters: int
    runs: tuple[BlockRun, ...]
    groups: tuple[ChannelGroup, ...]
    layers: tuple[str, ...]
    left_out: dict[str, str]


def analyse(network: nn.Module, inputs: tuple[Tensor, ...], with_blocks: bool = True) -> Analysis:
    """Find blocks, groups and layers of a network.

    Args:
        network: in evaluation mode, unchanged by this.
        inputs: calibration inputs (rows first), on which blocks are ranked; two rows serve for the rest.
    """
    pair = tuple(x[:2] for x in inputs)
    groups, bad_groups = find_groups(network, pair)
    blocks, bad_blocks = find_blocks(network, pair) if with_blocks else ([], {})
    runs: dict[str, list[tuple[float, str]]] = {}
    for block in blocks:
        runs.setdefault(block.run, []).append((_sensitivity(network, block.name, inputs), block.name))
    ranked = {name: sorted(members) for name, members in runs.items()}
    return Analysis(
        parameters=parameter_count(network),
        runs=tuple(
            BlockRun(name=name, blocks=tuple(b for _, b in members), sensitivities=tuple(s for s, _ in members))
            for name, members in ranked.items()
        ),
        groups=tuple(ChannelGroup(name=g.name, channels=g.channels, layers=g.layers) for g in groups),
        layers=tuple(weight_layers(network)),
        left_out={f"group {name}": reason for name, reason in bad_groups.items()}
        | {f"block {name}": reason for name, reason in bad_blocks.items()},
    )


def _sensitivity(network: nn.Module, block: str, inputs: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        whole = F.log_softmax(call(network, inputs), dim=-1)
        without = F.log_softmax(call(drop_blocks(network, (block,)), inputs), dim=-1)
    return float(F.kl_div(without, whole, reduction="batchmean", log_target=True))
