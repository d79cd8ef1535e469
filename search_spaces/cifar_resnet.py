"""Residual networks for small images: the base networks, and a space of wider and shallower ones.

He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2. At batch 1 a runtime is paid by
the layer and hardly by the channel, so the space reaches networks of a few wide blocks; they keep the base's
outer names (``conv1 bn1 layer1 layer2 layer3 linear``), by which weights of equal shape are inherited.

The networks need torch alone. NNI, which takes seconds to import, is loaded with ``CifarResNetSpace``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BasicBlock", "CifarResNet", "CifarResNetSpace", "PaddedShortcut", "resnet20", "resnet56"]

CifarResNetSpace: type  # made by __getattr__ when first asked for


class PaddedShortcut(nn.Module):
    """Option A of He et al.: every second pixel, zeros on both sides of the channels; no parameters."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) -> (n, out_channels, ceil(h / 2), ceil(w / 2))."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two convolutions with batch norm, added to the shortcut."""

    def __init__(self, conv1: nn.Module, bn1: nn.Module, conv2: nn.Module, bn2: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = conv1, bn1, conv2, bn2
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) -> (n, out_channels, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Stem, three stages, global average pooling and a linear classifier."""

    def __init__(
        self,
        conv1: nn.Module,
        bn1: nn.Module,
        layer1: nn.Module,
        layer2: nn.Module,
        layer3: nn.Module,
        linear: nn.Module,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv1, bn1
        self.layer1, self.layer2, self.layer3 = layer1, layer2, layer3
        self.linear = linear
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, "Delving Deep into Rectifiers"
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, h, w) -> (n, num_classes) logits."""
        return _forward(self, x)


def _forward(network: Any, x: Tensor) -> Tensor:
    x = F.relu(network.bn1(network.conv1(x)))
    x = network.layer3(network.layer2(network.layer1(x)))
    logits: Tensor = network.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
    return logits


def resnet20(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """3 stages of 3 blocks with 16, 32 and 64 channels: 0.27 M parameters."""
    return _base(3, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """3 stages of 9 blocks with 16, 32 and 64 channels: 0.85 M parameters."""
    return _base(9, num_classes, in_channels)


def _base(depth: int, num_classes: int, in_channels: int) -> CifarResNet:
    return CifarResNet(
        conv1=nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(16),
        layer1=_base_stage(16, 16, depth),
        layer2=_base_stage(16, 32, depth),
        layer3=_base_stage(32, 64, depth),
        linear=nn.Linear(64, num_classes),
    )


def _base_stage(in_width: int, width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(_base_block(in_width if index == 0 else width, width) for index in range(depth)))


def _base_block(in_width: int, width: int) -> BasicBlock:
    changes = in_width != width
    return BasicBlock(
        conv1=nn.Conv2d(in_width, width, 3, stride=2 if changes else 1, padding=1, bias=False),
        bn1=nn.BatchNorm2d(width),
        conv2=nn.Conv2d(width, width, 3, padding=1, bias=False),
        bn2=nn.BatchNorm2d(width),
        shortcut=PaddedShortcut(in_width, width) if changes else nn.Identity(),
    )


def __getattr__(name: str) -> Any:
    if name == "CifarResNetSpace":
        return _space_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _space_class() -> type:
    from autocompress.models import import_nni

    import_nni()
    import nni
    from nni.nas.nn.pytorch import ModelSpace, MutableBatchNorm2d, MutableConv2d, MutableLinear, Repeat
    from nni.nas.nn.pytorch.base import recursive_freeze

    def choice(label: str, options: Sequence[int]) -> Any:
        """A labelled choice; a single option is a constant, so that no search spends trials on it."""
        return nni.choice(label, list(options)) if len(options) > 1 else options[0]

    def block(in_width: Any, width: Any, stride: int, kernel: Any) -> BasicBlock:
        shortcut: nn.Module = nn.Identity()
        if stride != 1:
            projection = MutableConv2d(in_width, width, 1, stride=stride, bias=False)
            shortcut = nn.Sequential(projection, MutableBatchNorm2d(width))
        return BasicBlock(
            conv1=MutableConv2d(in_width, width, kernel, stride=stride, padding=kernel // 2, bias=False),
            bn1=MutableBatchNorm2d(width),
            conv2=MutableConv2d(width, width, 3, padding=1, bias=False),
            bn2=MutableBatchNorm2d(width),
            shortcut=shortcut,
        )

    def stage(number: int, in_width: Any, width: Any, depths: Sequence[int], kernels: Sequence[int]) -> Any:
        def build(index: int) -> BasicBlock:
            kernel = choice(f"stage{number}.block{index}.kernel", kernels)
            first = index == 0 and number > 1
            return block(in_width if first else width, width, 2 if first else 1, kernel)

        return Repeat(build, choice(f"stage{number}.depth", depths))

    class CifarResNetSpace(ModelSpace):  # type: ignore[misc] # NNI carries no types
        """Basic blocks with 1x1 projections where the shape changes.

        Labels: ``stem.width`` (of the stem and, as in He et al., of stage 1), ``stem.stride``, and for each
        stage ``stageN.depth``, ``stageN.width`` (N > 1) and ``stageN.blockM.kernel`` (first convolution).

        Args:
            num_classes: outputs.
            in_channels: channels of the input images.
            widths: options of channels for each stage; multiples of 16 fill the integer kernels.
            depths: options of blocks for each stage; stages 2 and 3 halve the image and have at least one.
            kernels: options of odd kernel sizes.
            stem_strides: options; 2 quarters the arithmetic of everything that follows.

        Raises:
            ValueError: a list that is empty or breaks these rules.
        """

        def __init__(
            self,
            num_classes: int = 10,
            in_channels: int = 3,
            widths: Sequence[Sequence[int]] = ((16, 32, 48), (32, 64, 96), (64, 128, 192)),
            depths: Sequence[Sequence[int]] = ((0, 1, 2), (1, 2, 3), (1, 2, 3)),
            kernels: Sequence[int] = (3, 5),
            stem_strides: Sequence[int] = (1,),
        ) -> None:
            super().__init__()
            _check_options(widths, depths, kernels, stem_strides)
            width1 = choice("stem.width", widths[0])
            width2, width3 = choice("stage2.width", widths[1]), choice("stage3.width", widths[2])
            stride = choice("stem.stride", stem_strides)
            self.conv1 = MutableConv2d(in_channels, width1, 3, stride=stride, padding=1, bias=False)
            self.bn1 = MutableBatchNorm2d(width1)
            self.layer1 = stage(1, width1, width1, depths[0], kernels)
            self.layer2 = stage(2, width1, width2, depths[1], kernels)
            self.layer3 = stage(3, width2, width3, depths[2], kernels)
            self.linear = MutableLinear(width3, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            """(n, in_channels, h, w) -> (n, num_classes) logits of the space's default member."""
            return _forward(self, x)

        def freeze(self, sample: dict[str, Any]) -> CifarResNet:
            """The member with these choices, free of NNI."""
            parts = {name: recursive_freeze(part, sample)[0] for name, part in self.named_children()}
            return CifarResNet(**parts)

    return CifarResNetSpace


def _check_options(
    widths: Sequence[Sequence[int]],
    depths: Sequence[Sequence[int]],
    kernels: Sequence[int],
    strides: Sequence[int],
) -> None:
    if len(widths) != 3 or len(depths) != 3:
        raise ValueError(f"widths and depths list options for 3 stages; got {widths} and {depths}")
    if not all([*widths, *depths, kernels, strides]):
        raise ValueError("every list of options has at least one")
    if any(kernel % 2 == 0 for kernel in kernels):
        raise ValueError(f"kernel sizes are odd; got {list(kernels)}")
    if max(depths[0]) < 1 or min(*depths[1], *depths[2]) < 1:
        raise ValueError(f"stages 2 and 3 have at least one block, and stage 1 may; got depths {depths}")
