"""Structured pruning: which channel groups exist, and removing channels for real.

The dependency graph is Torch-Pruning's (Fang et al. 2023, DepGraph); every group is tried once on a copy,
because a group that the graph sizes wrongly must not reach the search.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from autocompress.errors import first_line
from autocompress.layers import WEIGHT_LAYERS, call


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together; named after the layer whose outputs they are."""

    name: str
    channels: int
    layers: tuple[str, ...]


def find_groups(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Group], dict[str, str]]:
    """All channel groups that survive a dry run, in the network's order, and the reason for each that does not.

    Args:
        model: the network, in evaluation mode, unchanged by this.
        inputs: one batch of model inputs.
    """
    names = {module: name for name, module in model.named_modules()}
    groups = [_describe(group, names) for group in _all_groups(_graph(model, inputs))]
    groups.sort(key=lambda group: list(names.values()).index(group.name))
    left_out = _failures(model, groups, inputs)
    return [group for group in groups if group.name not in left_out], left_out


def _failures(model: nn.Module, groups: list[Group], inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """Reason by name of each group that fails; halving, since nearly all groups of a network pass."""
    reason = _dry_run(model, groups, inputs) if groups else None
    if reason is None:
        return {}
    if len(groups) == 1:
        return {groups[0].name: reason}
    half = len(groups) // 2
    return _failures(model, groups[:half], inputs) | _failures(model, groups[half:], inputs)


def prune(model: nn.Module, inputs: tuple[Tensor, ...], ratios: Mapping[str, float], multiple: int) -> nn.Module:
    """A copy of the network without the least important channels of each group.

    Importance is the group's L2 magnitude (Torch-Pruning's ``GroupMagnitudeImportance``). The channels
    that stay are a multiple of ``multiple``, or all of them where the group has fewer.

    Args:
        ratios: share of channels to remove, in [0, 1), by group name.

    Raises:
        KeyError: a ratio names no group of the network.
    """
    student = copy.deepcopy(model)
    modules = dict(student.named_modules())
    layers = {name: modules[name] for name in ratios}
    if not any(ratios.values()):
        return student
    graph = _graph(student, inputs)
    importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer=None)
    for name, ratio in ratios.items():
        group = _group_of(graph, layers[name], None)
        scores = importance(group)
        kept = kept_channels(len(scores), ratio, multiple)
        if kept < len(scores):
            # a stable sort, so that equal scores give the same channels on every run
            order = torch.argsort(scores, stable=True)
            _group_of(graph, layers[name], order[: len(scores) - kept].tolist()).prune()
    return student


def kept_channels(channels: int, ratio: float, multiple: int) -> int:
    """Channels that stay: the multiple nearest to ``channels * (1 - ratio)``, at least one multiple."""
    if channels <= multiple or ratio == 0:
        return channels
    kept = round(channels * (1 - ratio) / multiple) * multiple
    return min(channels, max(multiple, kept))


def _graph(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    was_training = model.training
    with torch.enable_grad():  # the graph is read off autograd's tape
        graph = tp.DependencyGraph().build_dependency(model.eval(), example_inputs=inputs, verbose=False)
    model.train(was_training)
    return graph


def _all_groups(graph: Any) -> Iterator[Any]:
    yield from graph.get_all_groups(ignored_layers=[], root_module_types=list(WEIGHT_LAYERS))


def _group_of(graph: Any, module: nn.Module, indices: list[int] | None) -> Any:
    function = graph.get_pruner_of_module(module).prune_out_channels
    channels = graph.get_out_channels(module)
    return graph.get_pruning_group(module, function, list(range(channels)) if indices is None else indices)


def _describe(group: Any, names: Mapping[nn.Module, str]) -> Group:
    layers = [names.get(item.dep.target.module, "") for item in group]
    return Group(layers[0], len(group[0].idxs), tuple(dict.fromkeys(name for name in layers if name)))


def _dry_run(model: nn.Module, groups: list[Group], inputs: tuple[Tensor, ...]) -> str | None:
    """Why pruning half of these groups' channels breaks the network; None if it does not."""
    try:
        with torch.no_grad():
            before = call(model, inputs)
            after = call(prune(model, inputs, {group.name: 0.5 for group in groups}, 1), inputs)
    except Exception as error:
        return first_line(error)
    return None if after.shape == before.shape else "its channels are the model's output"
