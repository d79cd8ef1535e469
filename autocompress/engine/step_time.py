"""Seconds of a training step, by the multiplications of one example.

A step has a part that is the same for all networks (batches, augmentation, the optimiser), so a network with a tenth
of the multiplications does not make ten times the steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from autocompress.compression.distillation import worthwhile_views
from autocompress.pipeline import Bench

FIXED_SHARE = 0.25
"""Of the usual step, before networks of different sizes were trained; weighs as much as one of them."""


@dataclass(frozen=True)
class StepTime:
    """Fixed seconds, and seconds for each multiplication."""

    fixed_s: float
    per_mac_s: float

    def seconds(self, macs: float) -> float:
        """Of one step."""
        return self.fixed_s + self.per_mac_s * macs


def affordable_steps(bench: Bench, seconds: float, seconds_per_step: float) -> int:
    """Steps that fit into a time in which the teacher also gives the answers that it has not given yet."""
    steps, settings = max(0.0, seconds) / seconds_per_step, bench.training
    if bench.teacher is not None:
        examples = steps * settings.batch_size
        views = worthwhile_views(settings.views, examples / len(bench.data.train))
        steps -= min(steps, bench.teacher.expected_seconds(views, round(examples)) / seconds_per_step)
    return int(steps)


def fit_step_time(seen: Sequence[tuple[float, float]]) -> StepTime:
    """The non-negative line that is least off in proportion.

    Args:
        seen: multiplications and seconds of a step of trainings; at least one.
    """
    usual = statistics.median(seconds for _, seconds in seen)
    rows = [(1 / seconds, macs / seconds) for macs, seconds in seen] + [(1 / usual, 0.0)]
    # of about equal size, or the solver takes the small coefficient for zero
    scale = statistics.median(macs for macs, _ in seen)
    found, _ = nnls(np.array(rows) / [1.0, scale], np.array([1.0] * len(seen) + [FIXED_SHARE]))
    return StepTime(float(found[0]), float(found[1]) / scale)
