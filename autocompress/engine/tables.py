"""What each unit of the base costs in accuracy, measured once on calibration data, one unit at a time.

Errors are divergences from the base's own outputs. They add up only roughly, and training takes most of them
back; they rank the units, and the search learns what they are worth at each depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from autocompress.analysis import Analysis, divergence
from autocompress.compression.elastic import fake_quantize
from autocompress.compression.pruning import kept_channels, kept_units, unit_multiples, with_units
from autocompress.config import SpaceSection
from autocompress.layers import call
from autocompress.pipeline import Bench

TABLE_EXAMPLES = 64
LEAST_BITS = 3
"""Two bits are so coarse that their error says nothing about other widths."""


class Tables(BaseModel):
    """Errors of the base's units.

    Attributes:
        bits: bits at which ``layers`` were measured.
        layers: error of each layer's weights in so many bits.
        ratios: pruning ratio at which each group was measured.
        groups: error of each group at this ratio.
        narrowed: for each group, the axes of the layers' weights that it shortens, with the channels a unit has (less
            than one where they lie in groups of a convolution).
        shapes: of each layer's weight.
        units: how many units each group has, and of what multiple the ones that stay are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: int
    layers: dict[str, float]
    ratios: dict[str, float]
    groups: dict[str, float]
    narrowed: dict[str, dict[str, dict[int, float]]]
    shapes: dict[str, tuple[int, ...]]
    units: dict[str, tuple[int, int]]

    def layer_error(self, layer: str, bits: int | None) -> float:
        """Error of a layer in so many bits: each bit less raises the squared rounding error fourfold."""
        return 0.0 if bits is None else self.layers.get(layer, 0.0) * 4.0 ** (self.bits - bits)

    def group_error(self, group: str, ratio: float) -> float:
        """Error of pruning a group: the least important channels go first, so it grows faster than their share."""
        return self.groups[group] * (ratio / self.ratios[group]) ** 2 if ratio else 0.0

    def units_gone(self, group: str, ratio: float) -> int:
        """Units that a pruning ratio takes from a group."""
        count, multiple = self.units[group]
        return count - kept_channels(count, ratio, multiple)


def measure_tables(bench: Bench, analysis: Analysis, section: SpaceSection, ratios: Mapping[str, float]) -> Tables:
    """Change one unit after the other and compare the outputs.

    Args:
        ratios: largest pruning ratio by kind of group.
    """
    rows = torch.arange(min(TABLE_EXAMPLES, len(bench.data.calibration)))
    inputs = bench.data.model_inputs(bench.data.calibration, rows)
    classification = bench.data.loss is None
    with torch.no_grad():
        reference = call(bench.base, inputs)

    def error(network: nn.Module) -> float:
        with bench.each_batch(), torch.no_grad():
            return divergence(call(network, inputs), reference, classification)

    bits = [p.weight_bits for p in section.precision if p.weight_bits]
    least = max(LEAST_BITS, min(bits, default=8))
    names = [group.name for group in analysis.groups]
    example = bench.data.example_inputs(2)
    multiples = unit_multiples(bench.base, example, names, bench.channel_multiple, analysis.inner)
    units = {group.name: (group.channels, multiples[group.name]) for group in analysis.groups}
    largest = {group.name: ratios[group.kind] for group in analysis.groups if ratios[group.kind]}
    kept = kept_units(bench.base, example, largest, bench.channel_multiple, analysis.inner)
    groups, narrowed = {}, {}
    for name, ratio in largest.items():
        count, multiple = units[name]
        gone = count - kept_channels(count, ratio, multiple)
        narrow = with_units(bench.base, example, {name: kept[name]}, analysis.inner) if name in kept else bench.base
        groups[name], narrowed[name] = error(narrow), _axes(bench.base, narrow, gone)
    parameters = dict(bench.base.named_parameters())
    weights = {layer.name: _weight_name(layer.name, parameters) for layer in analysis.layers}
    return Tables(
        bits=least,
        layers={layer: _with_rounded(bench.base, weight, least, error) for layer, weight in weights.items()},
        ratios=largest,
        groups=groups,
        narrowed=narrowed,
        units=units,
        shapes={layer: tuple(parameters[weight].shape) for layer, weight in weights.items()},
    )


def _weight_name(layer: str, parameters: Mapping[str, Tensor]) -> str:
    return layer if layer in parameters else f"{layer}.weight"


def _with_rounded(base: nn.Module, weight: str, bits: int, error: Callable[[nn.Module], float]) -> float:
    parameter = base.get_parameter(weight)
    original = parameter.detach().clone()
    try:
        parameter.data = fake_quantize(original, bits)
        return error(base)
    finally:
        parameter.data = original


def _axes(base: nn.Module, narrow: nn.Module, gone: int) -> dict[str, dict[int, float]]:
    """Axes of weights that are shorter without ``gone`` units, with the channels that go with one unit."""
    shapes = {name: p.shape for name, p in base.named_parameters() if p.dim() > 1}
    found: dict[str, dict[int, float]] = {}
    for name, parameter in narrow.named_parameters():
        if name in shapes and gone:
            lost = [a - b for a, b in zip(shapes[name], parameter.shape, strict=True)]
            axes = {axis: count / gone for axis, count in enumerate(lost) if count}
            if axes:
                found[name.removesuffix(".weight")] = axes
    return found
