"""Networks as the graphs that the stages work on."""

from __future__ import annotations

import torch.fx
from torch import Tensor, nn

from autocompress.compression.quantization import fold_batch_norm_
from autocompress.layers import Axes, trace


def folded(network: nn.Module, *inputs: Tensor, axes: Axes = ()) -> torch.fx.GraphModule:
    """A traced network with its batch norms folded; the network itself stays."""
    graph = trace(network.eval(), inputs, axes)
    fold_batch_norm_(graph)
    return graph


def targets(graph: torch.fx.GraphModule) -> list[object]:
    """What the nodes of a graph call."""
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]
