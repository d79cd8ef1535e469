"""Bytes and latency of a plan from tables, before there is a file of it.

Both are corrected by what was measured: on every file for the bytes, and on the files of the run for the latency.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autocompress.candidate import Candidate, State
from autocompress.config import TargetSection
from autocompress.deploy.latency_table import Correction, LatencyTable, fit_correction
from autocompress.engine.tables import Tables
from autocompress.layers import weight_layers
from autocompress.operators import Operator, arithmetic_of, operators
from autocompress.pipeline import Bench, build_network, deployable_of, trace_network
from autocompress.plan import Plan, Precision

SCALE_BYTES = 4
"""Of an output channel's scale, and of its bias."""


@dataclass
class Predictor:
    """Operators of plans, and what they cost.

    Attributes:
        usual: the precision at which networks are traced; a plan's own replaces it layer by layer.
        latency_table: of this machine.
        baseline: operators of the uncompressed network.
    """

    bench: Bench
    target: TargetSection
    tables: Tables
    usual: Precision
    latency_table: LatencyTable
    baseline: list[Operator] = field(default_factory=list)
    baseline_bytes: int = 1
    correction: Correction | None = None
    bytes_per_layer: float = 0.0
    _traced: dict[str, tuple[list[Operator], dict[str, int]]] = field(default_factory=dict)

    def operators(self, plan: Plan) -> list[Operator]:
        """What the plan's file computes."""
        architecture = plan.architecture
        if architecture.family == "base":
            found, _ = self._of_network(Plan())
            stay = [operator for operator in found if not inside(operator.module, architecture.dropped_blocks)]
            found = self.narrowed(stay, plan.pruning.ratios)
        else:
            found, _ = self._of_network(Plan(architecture=architecture, pruning=plan.pruning))
        precisions = plan.quantization.precisions
        return [o.computed_in(arithmetic_of(precisions.get(o.layer))) if o.layer else o for o in found]

    def usual_operators(self, plan: Plan) -> list[Operator]:
        """What a file of the plan's network computes in the usual precision, whatever bits the plan has."""
        usual = arithmetic_of(self.usual)
        return [o.computed_in(usual) if o.layer else o for o in self.operators(plan)]

    def narrowed(self, found: Sequence[Operator], ratios: Mapping[str, float]) -> list[Operator]:
        """Operators of the base with some of its groups pruned."""
        lengths = self._channels({name: ratio for name, ratio in ratios.items() if ratio})
        _, out_axes = self._of_network(Plan())
        return [self._narrowed(operator, lengths, out_axes) for operator in found]

    def macs(self, plan: Plan) -> float:
        """Multiplications of one example in the plan's layers."""
        return _macs(self.operators(plan))

    def capacity(self, plan: Plan) -> float:
        """Multiplications times weights times layers, by which students rank (docs/log.md): width or depth alone
        saturate (Tan and Le 2019, EfficientNet, section 3.2).
        """
        layers = [o for o in self.operators(plan) if o.layer]
        weights = sum(math.prod(o.weight) for o in layers)
        return _macs(layers) * max(1, weights) * max(1, len(layers))

    def shares_of_bits(self, plan: Plan) -> dict[int, float]:
        """Share of the plan's weights by their bits; float weights have 32."""
        weights: Counter[int] = Counter()
        for precision, count in self._weights_by_precision(plan).items():
            weights[precision.weight_bits or 32] += count
        total = weights.total()
        return {bits: count / total for bits, count in weights.items()}

    def mean_stored_bits(self, plan: Plan) -> float:
        """Bits that a weight of the plan takes in its file."""
        weights = self._weights_by_precision(plan)
        return sum(precision.stored_bits * count for precision, count in weights.items()) / weights.total()

    def _weights_by_precision(self, plan: Plan) -> Counter[Precision]:
        weights: Counter[Precision] = Counter()
        for operator in (o for o in self.operators(plan) if o.layer):
            weights[plan.quantization.precisions.get(operator.layer, Precision.FLOAT32)] += math.prod(operator.weight)
        return weights

    def run_ratio(self) -> float:
        """The fixed part of :meth:`latency_ratio`."""
        return self._corrected().weights[3] * self.latency_table.run_ms

    def _of_network(self, plan: Plan) -> tuple[list[Operator], dict[str, int]]:
        """Operators of an architecture at the usual precision, and the axis of each layer's outputs."""
        key = plan.network
        if key not in self._traced:
            network = build_network(self.bench, plan)
            traced = trace_network(self.bench, network)
            layers = weight_layers(traced)
            precisions = {name: self.usual.for_layer(layer.kind) for name, layer in layers.items()}
            deployable = deployable_of(network, traced, precisions)
            found = operators(deployable, precisions, self.target.batch_size, self.target.sequence_length)
            self._traced[key] = found, {name: layer.out_axis for name, layer in layers.items()}
        return self._traced[key]

    def _channels(self, ratios: Mapping[str, float]) -> dict[str, dict[int, int]]:
        """Length of each shortened axis by layer, in the weight's own order of axes."""
        lengths: dict[str, dict[int, int]] = {}
        for group, ratio in ratios.items():
            gone = self.tables.units_gone(group, ratio)
            shortened = self.tables.narrowed.get(group, {})
            for layer, axes in ((name, axes) for name, axes in shortened.items() if name in self.tables.shapes):
                for axis, channels in axes.items():
                    own = lengths.setdefault(layer, {})
                    own[axis] = own.get(axis, self.tables.shapes[layer][axis]) - round(gone * channels)
        return lengths

    def _narrowed(
        self, operator: Operator, lengths: Mapping[str, Mapping[int, int]], axes: Mapping[str, int]
    ) -> Operator:
        own = lengths.get(operator.layer) if operator.layer else None
        if own is None:
            return operator
        if operator.name == "embedding":
            return operator.resized(out_channels=own.get(1))
        out = axes[operator.layer]
        inside = own.get(1 - out)
        if inside is not None:
            inside *= operator.groups if operator.groups > 1 else 1
        return operator.resized(inside, own.get(out))

    def layer_bytes(self, operator: Operator, precision: Precision) -> float:
        """Packed weights of a layer with their scales and biases."""
        weights = math.prod(operator.weight) * precision.stored_bits / 8
        return weights + operator.weight[0] * SCALE_BYTES * (1 + (precision.weight_bits is not None))

    def size_ratio(self, plan: Plan) -> float:
        """Expected bytes of the plan's file over the baseline's."""
        return self.size_bytes(plan, self.operators(plan)) / self.baseline_bytes

    def size_bytes(self, plan: Plan, found: Sequence[Operator]) -> float:
        """Expected bytes of a file with these operators."""
        return self._weight_bytes(plan, found) + self.bytes_per_layer * _layers(found)

    def _weight_bytes(self, plan: Plan, found: Iterable[Operator]) -> float:
        precisions = plan.quantization.precisions
        return sum(self.layer_bytes(o, precisions.get(o.layer, Precision.FLOAT32)) for o in found if o.layer)

    def latency_ratio(self, found: Sequence[Operator]) -> float:
        """Expected time of a file with these operators over the baseline's."""
        self.latency_table.fill(found)
        return self._corrected().ratio(self.latency_table.features(found))

    def operator_ratio(self, operator: Operator) -> float:
        """One operator's part of :meth:`latency_ratio`."""
        self.latency_table.fill([operator])
        weights = np.array(self._corrected().weights)[:3]
        return float(weights @ self.latency_table.features([operator]).vector()[:3])

    def _corrected(self) -> Correction:
        if self.correction is None:
            self.fit_([])
        assert self.correction is not None
        return self.correction

    def fit_(self, candidates: Iterable[Candidate]) -> None:
        """Correct by what was measured so far."""
        measured = [c for c in candidates if c.state is State.COMPLETE and c.measurement is not None]
        found = {c.trial: self.operators(c.plan) for c in measured}
        extra = [
            (c.measurement.size_bytes - self._weight_bytes(c.plan, found[c.trial])) / max(1, _layers(found[c.trial]))
            for c in measured
            if c.measurement is not None and c.plan.quantization.precisions
        ]
        self.bytes_per_layer = max(0.0, statistics.median(extra)) if extra else 0.0
        self.latency_table.fill([o for operators in [self.baseline, *found.values()] for o in operators])
        # of one sitting: another one may find the processor at another speed (docs/log.md)
        pairs = [
            (self.latency_table.features(found[c.trial]), c.measurement.latency.ratio)
            for c in measured
            if c.measurement is not None and c.measurement.latency is not None
        ]
        self.correction = fit_correction(self.latency_table.features(self.baseline), pairs)


def make_predictor(
    bench: Bench, target: TargetSection, tables: Tables, usual: Precision, table: LatencyTable, baseline_bytes: int
) -> Predictor:
    """A predictor that knows the uncompressed network."""
    predictor = Predictor(bench, target, tables, usual, table, baseline_bytes=baseline_bytes)
    return replace(predictor, baseline=predictor.operators(Plan()))


def _macs(found: Iterable[Operator]) -> float:
    return max(1.0, sum(math.prod(o.weight) * _positions(o) for o in found if o.layer))


def _positions(operator: Operator) -> int:
    """How often an operator's weight is applied to one example."""
    batch = max(1, operator.output[0])
    return math.prod(operator.output) // (operator.weight[0] * batch) if operator.name != "embedding" else 0


def _layers(found: Iterable[Operator]) -> int:
    return sum(bool(operator.layer) for operator in found)


def inside(module: str, blocks: Sequence[str]) -> bool:
    """Whether a module is one of the blocks or in one."""
    return any(module == block or module.startswith(f"{block}.") for block in blocks)
