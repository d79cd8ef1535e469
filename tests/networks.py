"""Small networks that tests compress; also loaded by path, as the networks of study files are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block that keeps its input's shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


class TinyResNet(nn.Module):
    """Stem, a run of two blocks, a convolution of stride 2, a run of one block, a classifier."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stage1 = nn.Sequential(Block(width), Block(width))
        self.reduce = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.stage2 = nn.Sequential(Block(2 * width))
        self.linear = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(F.relu(self.norm(self.stem(x))))
        x = self.stage2(F.relu(self.reduce(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def tiny_resnet(num_classes: int = 10, in_channels: int = 1, width: int = 16) -> TinyResNet:
    """The network of most tests."""
    return TinyResNet(num_classes, in_channels, width)
