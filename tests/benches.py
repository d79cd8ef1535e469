"""What candidates of a test share."""

from __future__ import annotations

from typing import Any

from torch import nn

from autocompress.compression.distillation import Acceleration, Teacher
from autocompress.config import TrainingSection
from autocompress.data.task import TaskData
from autocompress.pipeline import Bench


def make_bench(base: nn.Module, data: TaskData, space: Any = None) -> Bench:
    """A bench with a teacher that has answered nothing yet."""
    training = TrainingSection(steps=6, batch_size=32, learning_rate=0.02, views=2, quantized_fraction=0.5)
    teacher = Teacher(base, data, training.views, Acceleration())
    return Bench(base, data, training, 8, space, teacher)
