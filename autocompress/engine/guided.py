"""The guided parametrisation: Optuna draws targets and what errors are worth; the solver makes the plan.

Tens of decisions a layer are too many for a hundred trials. A dozen variables say how fast and how small a plan
should be and what errors cost at each depth; an integer programme over the tables turns them into blocks, pruning
ratios and bits (after HAWQ-V3, Yao et al. 2021, and OFA's search under constraints, Cai et al. 2020).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.analysis import Analysis, ChannelGroup
from autocompress.candidate import Measurement
from autocompress.config import LimitsSection
from autocompress.engine.prediction import Predictor, inside
from autocompress.engine.solver import Option, solve
from autocompress.engine.space import SPARSITY_KINDS, Draw, Space, positions
from autocompress.engine.tables import Tables
from autocompress.operators import Operator, arithmetic_of
from autocompress.plan import (
    ArchitectureSpec,
    DistillationSpec,
    Plan,
    Precision,
    PruningSpec,
    QuantizationSpec,
    TrainingSpec,
)

KNOTS = 4
"""Points of the curve that says what errors are worth at each depth."""
CURVE = (-1.5, 1.5)
"""Range of its logarithm: a factor of twenty between the cheapest and the dearest depth."""
REACH = 6.0
"""Targets go to so many times the limits."""
EASIEST_SPEEDUP, EASIEST_SMALLER = 1.5, 3.0
TOO_SLOW = 0.1
"""Share by which a network must miss the limit on latency to be given up before its bits are decided."""
LARGEST_PRODUCT = 64
"""Options of a block at most: with more groups inside, they share one ratio."""

BitErrors = Callable[[Plan], Mapping[str, float]]


@dataclass(frozen=True)
class Targets:
    """What a plan should reach: ``bits`` are those at which the structure's bytes are counted."""

    speedup: float
    smaller: float
    bits: float
    structure: tuple[float, ...] = (0.0,) * KNOTS
    rounding: tuple[float, ...] = (0.0,) * KNOTS


@dataclass(frozen=True)
class _Part:
    """A part of the base that is decided on by itself: its operators, and the ways to prune it with what is left."""

    name: str
    operators: Sequence[Operator]
    prunings: Sequence[tuple[dict[str, float], Sequence[Operator]]]


@dataclass(frozen=True)
class Guide:
    """All that turns targets into plans in one study.

    ``families`` are those that are drawn. ``bit_errors`` gives the error of rounding each layer of a member of the model space, whose layers no table knows.
    """

    space: Space
    analysis: Analysis
    tables: Tables
    predictor: Predictor
    limits: LimitsSection
    baseline: Measurement
    bit_errors: BitErrors
    families: tuple[str, ...]

    @property
    def stage_kinds(self) -> tuple[str, ...]:
        """Kinds of decisions that :meth:`suggest_plan` draws by level: those of a model space."""
        if self.space.model_space is None:
            return ()
        pruned = any(self.space.section.model_space_sparsity)
        return ("architecture", *(SPARSITY_KINDS.values() if pruned else ()))

    def suggest_plan(self, draw: Draw, number: int) -> Plan:
        """Draw one plan; ``number`` is the trial's, and only seeds the plan."""
        family = draw.family(self.families)
        section, targets = self.space.section, self._draw_targets(draw)
        distillation = DistillationSpec(
            alpha=draw.amount("alpha", *section.alpha),
            temperature=draw.amount("temperature", *section.temperature, log=True),
            hint_weight=draw.amount("hint_weight", *section.hint_weight),
            hidden_weight=draw.amount("hidden_weight", *section.hidden_weight),
            relation_weight=draw.amount("relation_weight", *section.relation_weight),
        )
        if family == "base":
            return self.base_plan(targets, distillation, number)
        architecture, _, groups, ratios = self.space.network(draw, family)
        pruning = {g.name: draw.level(SPARSITY_KINDS[g.kind], g.name, ratios[g.kind], p) for g, p in positions(groups)}
        return self.space_plan(architecture, PruningSpec(ratios=pruning), targets, distillation, number)

    def base_plan(
        self, targets: Targets, distillation: DistillationSpec, number: int, within: Plan | None = None
    ) -> Plan:
        """The shrunken base with the least errors that meets the targets.

        Args:
            within: a shrunken base of which nothing that is gone comes back.
        """
        architecture, pruning = self._structure(targets, within or Plan())
        plan = Plan(architecture=architecture, pruning=pruning, distillation=distillation)
        return self._finished(plan, targets, self.tables.layer_error, number)

    def space_plan(
        self,
        architecture: ArchitectureSpec,
        pruning: PruningSpec,
        targets: Targets,
        distillation: DistillationSpec,
        number: int,
    ) -> Plan:
        """A member of the model space with the bits that meet the target of bytes."""
        plan = Plan(architecture=architecture, pruning=pruning, distillation=distillation)
        return self._finished(plan, targets, self._error_in_space(plan), number)

    def with_bits(self, plan: Plan, smaller: float, rounding: tuple[float, ...]) -> Plan:
        """The plan with the bits that make its file so many times smaller than the baseline's."""
        bare = Plan(architecture=plan.architecture, pruning=plan.pruning)
        error = self.tables.layer_error if plan.architecture.family == "base" else self._error_in_space(bare)
        precisions = self._precisions(plan, Targets(EASIEST_SPEEDUP, smaller, 8.0, rounding=rounding), error)
        return plan.model_copy(update={"quantization": QuantizationSpec(precisions=precisions)})

    def _error_in_space(self, plan: Plan) -> Callable[[str, int | None], float]:
        errors = {} if self._is_too_slow(plan) else self.bit_errors(plan)
        typical = float(np.median(list(errors.values()))) if errors else 1.0
        least = self.tables.bits
        return lambda layer, bits: 0.0 if bits is None else errors.get(layer, typical) * 4.0 ** (least - bits)

    def easiest(self) -> tuple[float, float]:
        """Least speed-up and least factor of bytes that are worth a plan: the limits, or a little."""
        return (
            self._asked_speedup if self.limits_latency else EASIEST_SPEEDUP,
            self._asked_factor if self.limits_size else EASIEST_SMALLER,
        )

    @property
    def limits_latency(self) -> bool:
        """Whether the study says how much faster than the baseline a plan has to be."""
        return self._asked_speedup > 1

    @property
    def limits_size(self) -> bool:
        """Whether the study says how much smaller than the baseline a file has to be."""
        return self._asked_factor > 1

    @property
    def _asked_speedup(self) -> float:
        limits, latency = self.limits, self.baseline.latency
        assert latency is not None
        return max(limits.min_speedup or 0.0, latency.latency_ms / (limits.max_latency_ms or math.inf))

    @property
    def _asked_factor(self) -> float:
        limits, size_bytes = self.limits, self.baseline.size_bytes
        return max(1 / (limits.max_size_ratio or math.inf), size_bytes / (limits.max_size_bytes or math.inf))

    def _is_too_slow(self, plan: Plan) -> bool:
        """Whether a network is beyond the limit on latency in any bits, and not worth a measurement."""
        found = self.predictor.usual_operators(plan)
        return self.limits_latency and self.predictor.latency_ratio(found) * self.easiest()[0] > 1 + TOO_SLOW

    def _draw_targets(self, draw: Draw) -> Targets:
        speedup, smaller = self.easiest()
        low, high = self.bits_range()
        return Targets(
            speedup=draw.amount("speedup", speedup, speedup * REACH, log=True),
            smaller=draw.amount("smaller", smaller, smaller * REACH, log=True),
            bits=draw.amount("bits", low, high, log=True),
            structure=tuple(draw.amount(f"error.{k}", *CURVE) for k in range(KNOTS)),
            rounding=tuple(draw.amount(f"rounding.{k}", *CURVE) for k in range(KNOTS)),
        )

    def bits_range(self) -> tuple[float, float]:
        """Fewest and most bits of a weight in this study."""
        bits = [float(p.stored_bits) for p in self.space.section.precision]
        return min(bits), max(bits)

    def _finished(self, plan: Plan, targets: Targets, error: Callable[[str, int | None], float], number: int) -> Plan:
        precisions = self._precisions(plan, targets, error)
        steps = self.space.steps(plan.architecture.family)
        return plan.model_copy(
            update={
                "quantization": QuantizationSpec(precisions=precisions),
                "training": TrainingSpec(steps=steps, start=self.space.base_digest),
                "seed": self.space.seed + number,
            }
        )

    # --- structure: which blocks go, and how far each group is pruned

    def _structure(self, targets: Targets, within: Plan) -> tuple[ArchitectureSpec, PruningSpec]:
        full = self.predictor.usual_operators(Plan())
        blocks = self._blocks()
        parts = [_narrower(part, within.pruning.ratios) for part in self._parts(full, tuple(blocks))]
        # all at once: each process that times operators takes time to start
        self.predictor.latency_table.fill(o for part in parts for _, found in part.prunings for o in found)
        units: list[list[Option]] = []
        decisions: list[list[tuple[str | None, dict[str, float]]]] = []
        depth = {o.module: place / len(full) for place, o in reversed(list(enumerate(full)))}
        for part in parts:
            weight = _worth(targets.structure, _depth(depth, part.name))
            errors = [sum(self.tables.group_error(g, r) for g, r in pruned.items()) for pruned, _ in part.prunings]
            options = [
                self._option(error * weight, found, targets.bits)
                for error, (_, found) in zip(errors, part.prunings, strict=True)
            ]
            choices: list[tuple[str | None, dict[str, float]]] = [(None, pruned) for pruned, _ in part.prunings]
            if part.name in within.architecture.dropped_blocks:
                units.append([Option(0.0, 0.0, 0.0)])
                decisions.append([(part.name, {})])
            elif part.name in blocks:
                units.append([Option(blocks[part.name] * weight, 0.0, 0.0), *options])
                decisions.append([(part.name, {}), *choices])
            else:
                whole = self._option(0.0, part.operators, targets.bits)
                units.append([_difference(option, whole) for option in options])
                decisions.append(choices)
        rest = [o for o in full if not inside(o.module, tuple(blocks))]
        fixed = self._option(0.0, rest, targets.bits)
        chosen = solve(
            units,
            self.baseline.size_bytes / targets.smaller - fixed.size_bytes,
            1 / targets.speedup - fixed.latency_ms - self.predictor.run_ratio(),
        )
        picked = [options[index] for options, index in zip(decisions, chosen, strict=True)]
        dropped = tuple(sorted(block for block, _ in picked if block is not None))
        pruned = {name: ratio for _, ratios in picked for name, ratio in ratios.items()}
        return ArchitectureSpec(dropped_blocks=dropped), PruningSpec(ratios=pruned)

    def _blocks(self) -> dict[str, float]:
        """Blocks that may go, with their errors."""
        if not self.space.section.drop_blocks:
            return {}
        pairs = [zip(run.blocks, run.sensitivities, strict=True) for run in self.analysis.runs]
        return dict(itertools.chain.from_iterable(pairs))

    def _parts(self, full: Sequence[Operator], blocks: tuple[str, ...]) -> Iterator[_Part]:
        """Blocks that may go, and groups outside of them."""
        ratios = self.space.base_ratios()
        for block in blocks:
            own = [o for o in full if inside(o.module, (block,))]
            groups = [g for g in self.analysis.groups if inside(g.name, (block,))]
            yield self._part(block, own, _products(groups, ratios))
        for group in self.analysis.groups:
            if not inside(group.name, blocks):
                own = [o for o in full if o.layer in self.tables.narrowed.get(group.name, {})]
                yield self._part(group.name, own, [{group.name: ratio} for ratio in ratios[group.kind]])

    def _part(self, name: str, own: Sequence[Operator], prunings: Sequence[dict[str, float]]) -> _Part:
        return _Part(name, own, [(pruned, self.predictor.narrowed(own, pruned)) for pruned in prunings])

    def _option(self, error: float, found: Sequence[Operator], bits: float) -> Option:
        """Costs of some operators; latency as a part of the baseline's."""
        size = sum(math.prod(o.weight) * bits / 8 + self.predictor.bytes_per_layer for o in found if o.layer)
        return Option(error, size, sum(self.predictor.operator_ratio(o) for o in found))

    # --- bits of each layer

    def _precisions(
        self, plan: Plan, targets: Targets, error: Callable[[str, int | None], float]
    ) -> dict[str, Precision]:
        found = self.predictor.operators(plan)
        layers = [o for o in found if o.layer]
        kinds = {layer.name: layer.kind for layer in self.space.layers_of(plan.architecture)}
        options = []
        for place, operator in enumerate(layers):
            worth = _worth(targets.rounding, place / len(layers))
            own = [p.for_layer(kinds.get(operator.layer, "linear")) for p in self.space.section.precision]
            options.append(
                [
                    Option(
                        error(operator.layer, p.weight_bits) * worth,
                        self.predictor.layer_bytes(operator, p),
                        self.predictor.operator_ratio(operator.computed_in(arithmetic_of(p))),
                    )
                    for p in own
                ]
            )
        others = sum(self.predictor.operator_ratio(o) for o in found if not o.layer) + self.predictor.run_ratio()
        size = self.baseline.size_bytes / targets.smaller - self.predictor.bytes_per_layer * len(layers)
        chosen = solve(options, size, 1 / targets.speedup - others)
        return {
            o.layer: self.space.section.precision[index].for_layer(kinds.get(o.layer, "linear"))
            for o, index in zip(layers, chosen, strict=True)
        }


def _narrower(part: _Part, ratios: Mapping[str, float]) -> _Part:
    """The part without prunings that keep more than ``ratios`` do, if there are others."""
    left = [own for own in part.prunings if all(ratio >= ratios.get(group, 0.0) for group, ratio in own[0].items())]
    return _Part(part.name, part.operators, left or part.prunings)


def _products(groups: Sequence[ChannelGroup], ratios: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """All combinations of ratios of a block's groups; of many groups only those with one place in the lists."""
    lists = [ratios[g.kind] for g in groups]
    if math.prod(len(options) for options in lists) <= LARGEST_PRODUCT:
        return [dict(zip((g.name for g in groups), chosen, strict=True)) for chosen in itertools.product(*lists)]
    longest = max(len(options) for options in lists)
    return [
        {
            g.name: options[k * (len(options) - 1) // max(1, longest - 1)]
            for g, options in zip(groups, lists, strict=True)
        }
        for k in range(longest)
    ]


def _difference(option: Option, origin: Option) -> Option:
    return Option(option.error, option.size_bytes - origin.size_bytes, option.latency_ms - origin.latency_ms)


def _worth(curve: Sequence[float], position: float) -> float:
    """The curve's factor at a depth in [0, 1]."""
    return math.exp(float(np.interp(position, np.linspace(0, 1, len(curve)), curve)))


def _depth(depths: Mapping[str, float], module: str) -> float:
    """Where a module begins, as a share of the operators before it."""
    return min((depth for name, depth in depths.items() if inside(name, (module,))), default=0.5)
