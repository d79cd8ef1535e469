"""A trained network's weights for a smaller one: the channels that matter most, without the blocks that are gone.

Training large and then removing is cheaper than training each size (Li et al. 2020, Train Large, Then Compress; Cai et
al. 2020, Once-for-All, section 3.2), because what is left has learned already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from autocompress.compression.inner_widths import InnerWidth
from autocompress.compression.pruning import prune

Inner = Mapping[str, InnerWidth]


def shrunken_state(
    trained: nn.Module, smaller: nn.Module, groups: Iterable[str], inputs: tuple[Tensor, ...], inner: Inner, kept: Inner
) -> dict[str, Tensor] | None:
    """State of ``smaller`` with the trained network's most important units of each group.

    Args:
        trained: in evaluation mode, unchanged by this.
        smaller: of the same names, with no more units in any group, and perhaps with fewer blocks.
        groups: names of the groups that may differ.
        inputs: one batch of model inputs.
        inner: the trained network's inner widths by name.
        kept: those of the smaller one.

    Returns:
        The state; None where the smaller network has something that the trained one lacks.
    """
    before, after = dict(trained.named_modules()), dict(smaller.named_modules())
    ratios = {}
    for name in groups:
        if name in inner:
            own, wanted = inner[name].units, kept[name].units if name in kept else 0
        else:
            own, wanted = _width(before.get(name)), _width(after.get(name))
        if 0 < wanted < own:
            ratios[name] = 1 - wanted / own
    state = prune(trained, inputs, ratios, 1, inner).state_dict()
    target = smaller.state_dict()
    fits = all(name in state and state[name].shape == value.shape for name, value in target.items())
    return {name: state[name].contiguous().clone() for name in target} if fits else None


def _width(layer: nn.Module | None) -> int:
    """Output channels of a layer; 0 of what is none."""
    return int(getattr(layer, "out_channels", getattr(layer, "out_features", 0)))
