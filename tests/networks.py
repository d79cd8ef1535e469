"""Small networks that tests compress; also loaded by path, as the networks of study files are."""

from __future__ import annotations

import os
from pathlib import Path

import torch
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


class Grouped(nn.Module):
    """Depthwise and grouped convolutions between plain ones."""

    def __init__(self, num_classes: int = 10, groups: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.pointwise = nn.Conv2d(16, 32, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(32)
        self.grouped = nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=groups)
        self.linear = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm2(self.depthwise(F.relu(self.norm1(self.stem(x))))))
        x = F.relu(self.grouped(F.relu(self.norm3(self.pointwise(x)))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class OneBlock(nn.Module):
    """As little as a search can work on: a stem, a block and a classifier."""

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width))
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class NeedsBessel(OneBlock):
    """Trains well, and ONNX has no operator for it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-3 * torch.special.bessel_j0(x).mean()


class FailsOnceMeasured(OneBlock):
    """Cannot be traced any more as soon as the file named by the environment exists: every trial fails."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting() and Path(os.environ["FAIL_ONCE_THIS_EXISTS"]).exists():
            message = f"a {'pruned' if self.stem.out_channels < 16 else 'whole'} network is refused"
            raise RuntimeError(message)
        return super().forward(x)


def with_random_norms(model: nn.Module) -> nn.Module:
    """The network in evaluation mode, with batch norms that do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low in (
                    (module.weight, 0.5),
                    (module.running_var, 0.5),
                    (module.bias, -0.2),
                    (module.running_mean, -0.2),
                ):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (1.0 if low > 0 else 0.4) + low)
    return model.eval()
