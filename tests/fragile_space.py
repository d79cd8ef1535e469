"""A model space most of whose members cannot be: their kernels are larger than what is left of an 8x8 image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from autocompress.models import import_nni

import_nni()
import nni  # noqa: E402
from nni.nas.nn.pytorch import ModelSpace, MutableConv2d, MutableLinear  # noqa: E402


class Fragile(ModelSpace):  # type: ignore[misc] # NNI carries no types
    """Only 3x3 kernels leave something: 8 -> 3 -> 1; 5x5 ones leave 2 or less."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        first, second = nni.choice("first.kernel", [3, 5]), nni.choice("second.kernel", [3, 5])
        width: Any = nni.choice("width", [8, 16, 24])
        self.conv1 = MutableConv2d(1, width, first, stride=2)
        self.conv2 = MutableConv2d(width, width, second)
        self.linear = MutableLinear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, 8, 8) -> (n, num_classes)."""
        return self.linear(self.conv2(self.conv1(x).relu()).relu().mean((2, 3)))
