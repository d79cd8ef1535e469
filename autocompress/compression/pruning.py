"""Structured pruning: which channel groups exist, and removing channels for real.

Two kinds of group. Inner widths (heads, hidden units: :mod:`.inner_widths`) are read off the traced graph. For
all other channels the dependency graph is Torch-Pruning's (Fang et al. 2023, DepGraph). Every group is tried
once on a copy, because a group that is sized wrongly must not reach the search.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from autocompress.compression.inner_widths import InnerWidth, unit_importance, without_units_
from autocompress.errors import first_line
from autocompress.layers import call

ROOTS = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""Modules that Torch-Pruning starts a group from."""

TIME_LIMIT_S = 10.0
"""For all channels of one group. The index maps of windows that are rolled and cut (Swin) grow without bound."""


@dataclass(frozen=True)
class Group:
    """Channels (or units of several channels) that can only be removed together; named after its root layer."""

    name: str
    channels: int
    layers: tuple[str, ...]


class _TooLong(Exception):
    """A group took longer than :data:`TIME_LIMIT_S`."""


def find_groups(
    model: nn.Module, inputs: tuple[Tensor, ...], inner: Sequence[InnerWidth] = ()
) -> tuple[list[Group], dict[str, str]]:
    """All channel groups that survive a dry run, in the network's order, and the reason for each that does not.

    Args:
        model: the network, in evaluation mode, unchanged by this.
        inputs: one batch of model inputs.
        inner: inner widths that were found before; no other group takes from their layers' outputs.
    """
    taken = {producer.weight.rpartition(".")[0] for width in inner for producer in width.producers}
    names = {module: name for name, module in model.named_modules()}
    try:
        graph = _graph(model, inputs)
        groups, left_out = _groups_of(graph, model, names, taken)
    except Exception as error:
        return [], {"all channels": f"Torch-Pruning gives up: {first_line(error)}"}
    order = {name: place for place, name in enumerate(names.values())}
    groups.sort(key=lambda group: order[group.name])
    left_out |= _failures(model, groups, inputs)
    return [group for group in groups if group.name not in left_out], left_out


def _groups_of(
    graph: Any, model: nn.Module, names: Mapping[nn.Module, str], taken: set[str]
) -> tuple[list[Group], dict[str, str]]:
    """Groups of the dependency graph, each once; what takes too long is left out, and after it all that is left."""
    found: list[Group] = []
    left_out: dict[str, str] = {}
    members: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, ROOTS) or module not in graph.module2node or name in members | taken:
            continue
        try:
            with _time_limit(TIME_LIMIT_S):
                group = _group_of(graph, module, None)
        except _TooLong:
            left_out[name] = f"its channels' dependencies take longer than {TIME_LIMIT_S:.0f} s to follow"
            break
        made = {
            names.get(item.dep.target.module, "") for item in group if graph.is_out_channel_pruning_fn(item.dep.handler)
        }
        members |= made - {""}
        if not made & taken:
            found.append(_describe(group, names))
    return found, left_out


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupts Python code that takes too long; without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _failures(model: nn.Module, groups: list[Group], inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """Reason by name of each group that fails; halving, since nearly all groups of a network pass."""
    reason = _dry_run(model, groups, inputs) if groups else None
    if reason is None:
        return {}
    if len(groups) == 1:
        return {groups[0].name: reason}
    half = len(groups) // 2
    return _failures(model, groups[:half], inputs) | _failures(model, groups[half:], inputs)


def prune(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    ratios: Mapping[str, float],
    multiple: int,
    inner: Mapping[str, InnerWidth] | None = None,
) -> nn.Module:
    """A copy of the network without the least important channels of each group: :func:`kept_units`, then
    :func:`with_units`.

    Raises:
        KeyError: a ratio names no group of the network.
    """
    return with_units(model, inputs, kept_units(model, inputs, ratios, multiple, inner), inner)


def kept_units(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    ratios: Mapping[str, float],
    multiple: int,
    inner: Mapping[str, InnerWidth] | None = None,
) -> dict[str, Tensor]:
    """Which units of each group stay, in order; groups that keep all of them are left out.

    Importance is the group's L2 magnitude (Torch-Pruning's ``GroupMagnitudeImportance``). The channels
    that stay are a multiple of ``multiple``, or all of them where the group has fewer; heads stay one by one.

    Args:
        ratios: share of channels to remove, in [0, 1), by group name.
        inner: the network's inner widths by name.

    Raises:
        KeyError: a ratio names no group of the network.
    """
    inner, modules = inner or {}, dict(model.named_modules())
    found: dict[str, Tensor] = {}
    graph = None
    for name, ratio in ratios.items():
        if name in inner:
            scores, parts = unit_importance(model, inner[name]), 1
            own_multiple = multiple if inner[name].size == 1 else 1
        else:
            layer = modules[name]
            if not ratio:
                continue
            graph = graph or _graph(model, inputs)
            group = _group_of(graph, layer, None)
            scores, parts = (
                tp.importance.GroupMagnitudeImportance(p=2, normalizer=None)(group),
                _convolution_groups(group),
            )
            own_multiple = math.lcm(multiple, parts)
        kept = kept_channels(len(scores), ratio, own_multiple)
        if kept < len(scores):
            # each group of a grouped convolution gives the same number; a stable sort, so that equal scores give
            # the same channels on every run
            order = scores.detach().reshape(parts, -1).argsort(dim=1, descending=True, stable=True)[:, : kept // parts]
            first = torch.arange(parts)[:, None] * (len(scores) // parts)
            found[name] = (order + first).flatten().sort().values
    return found


def unit_multiples(
    model: nn.Module, inputs: tuple[Tensor, ...], names: Sequence[str], multiple: int, inner: Mapping[str, InnerWidth]
) -> dict[str, int]:
    """Of what multiple the units are that stay in each group: heads one by one, channels also evenly over the groups
    of convolutions.
    """
    modules, graph = dict(model.named_modules()), None
    found = {}
    for name in names:
        if name in inner:
            found[name] = multiple if inner[name].size == 1 else 1
        else:
            graph = graph or _graph(model, inputs)
            found[name] = math.lcm(multiple, _convolution_groups(_group_of(graph, modules[name], None)))
    return found


def with_units(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    kept: Mapping[str, Tensor],
    inner: Mapping[str, InnerWidth] | None = None,
) -> nn.Module:
    """A copy of the network that has only the given units of each named group."""
    student, inner = copy.deepcopy(model), inner or {}
    for name in inner.keys() & kept.keys():
        without_units_(student, inner[name], kept[name])
    modules = dict(student.named_modules())
    layers = {modules[name]: units for name, units in kept.items() if name not in inner}
    graph = _graph(student, inputs) if layers else None
    for layer, units in layers.items():
        stays = set(units.tolist())
        gone = [unit for unit in range(graph.get_out_channels(layer)) if unit not in stays]  # type: ignore[union-attr]
        _group_of(graph, layer, gone).prune()
    return student


def _convolution_groups(group: Any) -> int:
    """Into how many groups a convolution divides these channels; 1 where none does, or each is one by itself."""
    modules = [item.dep.target.module for item in group]
    divided = [m.groups for m in modules if isinstance(m, nn.Conv1d | nn.Conv2d) and 1 < m.groups < m.in_channels]
    return math.lcm(*divided)


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
