"""What the ladder knows of a small network: tables, predictions and a guide, with latencies that are made up."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benches import make_bench
from torch import nn

from autocompress.analysis import analyse
from autocompress.candidate import Latency, Measurement
from autocompress.config import LimitsSection, SpaceSection, TargetSection, TrainingSection
from autocompress.data.task import TaskData
from autocompress.deploy.latency_table import LatencyTable
from autocompress.engine.guided import Guide
from autocompress.engine.prediction import make_predictor
from autocompress.engine.space import Space, plain_int8
from autocompress.engine.tables import measure_tables
from autocompress.operators import FLOAT32, Operator
from autocompress.pipeline import Bench
from autocompress.plan import Precision

PRECISIONS = (Precision.W8A8, Precision.W6A8, Precision.W4A8, Precision.W3A8)
SECTION = SpaceSection(precision=PRECISIONS, sparsity=(0.0, 0.25, 0.5, 0.75))


class MadeUpTable(LatencyTable):
    """Times that follow from the shapes, so that a test decides alike on every machine and measures nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(1, folder)
        self._content.reference_ms, self._content.run_ms = 1.0, 1e-3

    def fill(self, operators: Iterable[Operator]) -> int:
        missing = self.missing(operators)
        for operator in missing:
            work = math.prod(operator.output) + math.prod(operator.output[2:]) * math.prod(operator.weight) * (
                4 if operator.arithmetic == FLOAT32 else 1
            )
            self._content.ratios[operator.key] = 1e-4 + 1e-7 * work
        return len(missing)


def with_inner(base: nn.Module, data: TaskData, space: Any = None) -> Bench:
    """A bench that knows the heads and hidden units of its base."""
    bench = make_bench(base, data, space)
    inner = analyse(base, data.example_inputs(2), data.axes, with_blocks=False).inner
    return Bench(base, data, bench.training, 8, space, bench.teacher, inner=inner)


def make_guide(
    bench: Bench,
    folder: Path,
    section: SpaceSection = SECTION,
    limits: LimitsSection | None = None,
    table: LatencyTable | None = None,
) -> Guide:
    """All that turns targets into plans, measured on a base; its file counts as four bytes for each parameter."""
    analysis = analyse(
        bench.base, bench.data.example_inputs(64), bench.data.axes, classification=bench.data.loss is None
    )
    space = Space(
        section, TrainingSection(steps=50), analysis, bench.data.example_inputs(2), "d" * 64, 100,
        bench.data.axes, bench.space,
    )  # fmt: skip
    tables = measure_tables(bench, analysis, section, {kind: max(own) for kind, own in space.base_ratios().items()})
    size = 4 * analysis.parameters
    predictor = make_predictor(bench, TargetSection(), tables, plain_int8(section), table or MadeUpTable(folder), size)
    latency = Latency(latency_ms=1.0, p90_ms=1.0, baseline_ms=1.0, ratio=1.0, ratio_low=1.0, ratio_high=1.0)
    baseline = Measurement(size_bytes=size, compressed_bytes=size, size_ratio=1.0, latency=latency)
    return Guide(
        space=space, analysis=analysis, tables=tables, predictor=predictor, limits=limits or LimitsSection(),
        baseline=baseline, bit_errors=lambda _plan: {}, families=tuple(space.families()),
    )  # fmt: skip
