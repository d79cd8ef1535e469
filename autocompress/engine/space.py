"""trial -> Plan: every decision of a candidate, drawn from Optuna and frozen.

Two parametrisations of one space. TPE and random search see a variable per decision, grouped by family
(:class:`PerLayer`). GP and NSGA-II sample only the variables that all trials share, so they see one
fixed-length list of variables by stage of depth, which either family decodes (:class:`PerStage`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from autocompress.analysis import Analysis, BlockRun, ChannelGroup, Layer, analyse, find_layers
from autocompress.config import SpaceSection, TrainingSection
from autocompress.layers import Axes, trace
from autocompress.models import ModelSpace, freeze, space_labels
from autocompress.plan import (
    ArchitectureSpec,
    DistillationSpec,
    Plan,
    Precision,
    PruningSpec,
    QuantizationSpec,
    TrainingSpec,
)

STAGES = 4
SPARSITY_KINDS = {"channels": "sparsity", "heads": "heads", "mlp": "mlp"}
"""What each kind of group is called among the variables: each has a centre of its own."""
STAGE_KINDS = ("architecture", *SPARSITY_KINDS.values(), "precision", "embedding")
"""Kinds of decisions of which a fixed-length parametrisation has a variable for each stage."""
_RESOLUTION = 60
"""Levels of a stage variable; divisible by every usual number of options."""


class Suggests(Protocol):
    """The part of an Optuna trial that draws."""

    def suggest_int(self, name: str, low: int, high: int) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class Draw(Protocol):
    """How decisions become variables. ``position`` in [0, 1) is the depth of what is decided on."""

    def family(self, options: Sequence[str]) -> str: ...
    def architecture(self, label: str, options: Sequence[Any], position: float) -> Any: ...
    def level(self, kind: str, name: str, options: Sequence[Any], position: float) -> Any: ...
    def amount(self, name: str, low: float, high: float, log: bool = False) -> float: ...


class PerLayer:
    """A variable per decision, conditional on the family.

    Ordered decisions (pruning ratios, precisions) are a centre that all layers share and a step of -1, 0 or
    +1 for each layer: with tens of layers, independent uniform draws would all average to the same network.
    """

    def __init__(self, trial: Suggests) -> None:
        self._trial = trial
        self._prefix = ""

    def family(self, options: Sequence[str]) -> str:
        """Which family; later names carry it as a prefix."""
        chosen = options[0] if len(options) == 1 else str(self._trial.suggest_categorical("family", options))
        self._prefix = f"{chosen}."
        return chosen

    def architecture(self, label: str, options: Sequence[Any], position: float) -> Any:
        """One labelled choice, as its index: options of an architecture are ordered (depths, widths)."""
        return options[self._index(f"{self._prefix}{label}", len(options))]

    def level(self, kind: str, name: str, options: Sequence[Any], position: float) -> Any:
        """The option at the shared centre plus this layer's own step."""
        if len(options) == 1:
            return options[0]
        centre = self._index(f"{self._prefix}{kind}", len(options))
        step = self._trial.suggest_int(f"{self._prefix}{kind}:{name}", -1, 1)
        return options[min(max(centre + step, 0), len(options) - 1)]

    def amount(self, name: str, low: float, high: float, log: bool = False) -> float:
        """A number that means the same in every family."""
        return low if low == high else self._trial.suggest_float(name, low, high, log=log and low > 0)

    def _index(self, name: str, options: int) -> int:
        return 0 if options == 1 else self._trial.suggest_int(name, 0, options - 1)


class PerStage:
    """A fixed list of variables: a family, and one per kind of decision and stage of depth."""

    def __init__(self, trial: Suggests, kinds: Sequence[str] = STAGE_KINDS) -> None:
        self._trial = trial
        self._stages = {
            (kind, stage): trial.suggest_int(f"{kind}.{stage}", 0, _RESOLUTION - 1)
            for kind in kinds
            for stage in range(STAGES)
        }

    def family(self, options: Sequence[str]) -> str:
        """Which family."""
        return options[0] if len(options) == 1 else str(self._trial.suggest_categorical("family", options))

    def architecture(self, label: str, options: Sequence[Any], position: float) -> Any:
        """The option that the stage variable points at."""
        return self.level("architecture", label, options, position)

    def level(self, kind: str, name: str, options: Sequence[Any], position: float) -> Any:
        """The option that the stage variable points at."""
        return options[self._stages[kind, int(position * STAGES)] * len(options) // _RESOLUTION]

    def amount(self, name: str, low: float, high: float, log: bool = False) -> float:
        """A number that means the same in every family."""
        return low if low == high else self._trial.suggest_float(name, low, high, log=log and low > 0)


@dataclass(frozen=True)
class Space:
    """All a plan can decide in one study.

    ``saturates`` says that the machine's integer kernels are not exact with 8-bit weights: ``section`` has none then.
    """

    section: SpaceSection
    training: TrainingSection
    base: Analysis
    inputs: tuple[Tensor, ...]
    base_digest: str
    seed: int
    axes: Axes = ()
    model_space: ModelSpace | None = None
    saturates: bool = False
    _members: dict[str, tuple[tuple[Layer, ...], tuple[ChannelGroup, ...]]] = field(default_factory=dict)

    def exact(self, plan: Plan) -> Plan:
        """A plan that was not drawn from this space, without what saturates here."""
        own = plan.quantization.precisions
        if not self.saturates or all(p.without_saturation() is p for p in own.values()):
            return plan
        exact = {name: p.without_saturation() for name, p in own.items()}
        return plan.model_copy(update={"quantization": QuantizationSpec(precisions=exact)})

    @property
    def stage_kinds(self) -> tuple[str, ...]:
        """Kinds of decisions that :meth:`suggest_plan` draws by level."""
        return STAGE_KINDS

    def families(self) -> list[str]:
        """Families of this study."""
        return ["base"] * self.section.base + ["space"] * (self.model_space is not None)

    def suggest_plan(self, draw: Draw, number: int) -> Plan:
        """Draw one plan; ``number`` is the trial's, and only seeds the plan."""
        family = draw.family(self.families())
        architecture, layers, groups, ratios = self.network(draw, family)
        section = self.section
        return Plan(
            architecture=architecture,
            pruning=PruningSpec(
                ratios={
                    group.name: draw.level(SPARSITY_KINDS[group.kind], group.name, ratios[group.kind], position)
                    for group, position in positions(groups)
                }
            ),
            distillation=DistillationSpec(
                alpha=draw.amount("alpha", *section.alpha),
                temperature=draw.amount("temperature", *section.temperature, log=True),
                hint_weight=draw.amount("hint_weight", *section.hint_weight),
                hidden_weight=draw.amount("hidden_weight", *section.hidden_weight),
                relation_weight=draw.amount("relation_weight", *section.relation_weight),
            ),
            quantization=QuantizationSpec(
                precisions={layer.name: self._precision(draw, layer, position) for layer, position in positions(layers)}
            ),
            training=TrainingSpec(steps=self.steps(family), start=self.base_digest),
            seed=self.seed + number,
        )

    def _precision(self, draw: Draw, layer: Layer, position: float) -> Precision:
        """A table of embeddings has a centre of its own: its bytes weigh as much as the rest, and its time nothing."""
        kind = "embedding" if layer.kind == "embedding" else "precision"
        return Precision(draw.level(kind, layer.name, self.section.precision, position)).for_layer(layer.kind)

    def steps(self, family: str) -> int:
        """Short budget of a candidate: more for one that starts from random weights."""
        return round(self.training.steps * (self.training.random_start_factor if family == "space" else 1.0))

    def network(
        self, draw: Draw, family: str
    ) -> tuple[ArchitectureSpec, tuple[Layer, ...], tuple[ChannelGroup, ...], dict[str, tuple[float, ...]]]:
        """Architecture, its layers, its prunable groups, and the pruning ratios to choose from by kind of group."""
        if family == "base":
            dropped = self._dropped_blocks(draw) if self.section.drop_blocks else ()
            layers = tuple(layer for layer in self.base.layers if not _inside(layer.name, dropped))
            groups = tuple(group for group in self.base.groups if not _inside(group.name, dropped))
            return ArchitectureSpec(dropped_blocks=dropped), layers, groups, self.base_ratios()
        labels = list(space_labels(self.model_space))
        member, choices = freeze(
            self.model_space,
            lambda label, options: draw.architecture(label, options, labels.index(label) / len(labels)),
        )
        layers, groups = self._member(member, repr(sorted(choices.items())))
        ratios = dict.fromkeys(SPARSITY_KINDS, self.section.model_space_sparsity)
        return ArchitectureSpec(family="space", choices=choices), layers, groups, ratios

    def layers_of(self, architecture: ArchitectureSpec) -> tuple[Layer, ...]:
        """Layers of a plan's network."""
        if architecture.family == "base":
            return tuple(layer for layer in self.base.layers if not _inside(layer.name, architecture.dropped_blocks))
        member, choices = freeze(self.model_space, lambda label, _options: architecture.choices[label])
        return self._member(member, repr(sorted(choices.items())))[0]

    def used_choices(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """Of a value for every label, those that the member has: not those of blocks beyond its depth."""
        _, used = freeze(self.model_space, lambda label, _options: choices[label])
        return used

    def base_ratios(self) -> dict[str, tuple[float, ...]]:
        """Pruning ratios of the base's groups by kind."""
        section = self.section
        own = {"channels": section.sparsity, "heads": section.head_sparsity, "mlp": section.mlp_sparsity}
        return {kind: ratios if ratios is not None else section.sparsity for kind, ratios in own.items()}

    def _member(self, member: nn.Module, key: str) -> tuple[tuple[Layer, ...], tuple[ChannelGroup, ...]]:
        """Layers and groups of a member; samplers ask for the same ones again and again."""
        if key not in self._members:
            member.eval()
            if any(self.section.model_space_sparsity):
                analysis = analyse(member, self.inputs, self.axes, with_blocks=False)
                self._members[key] = analysis.layers, analysis.groups
            else:
                self._members[key] = find_layers(member, trace(member, self.inputs, self.axes)), ()
        return self._members[key]

    def _dropped_blocks(self, draw: Draw) -> tuple[str, ...]:
        dropped: list[str] = []
        order = draw.architecture("block_order", ["sensitivity", "even"], 0.0)
        for number, run in enumerate(self.base.runs):
            # kept counts fall with the index, so that the first option changes nothing
            gone = draw.architecture(f"dropped:{run.name}", range(len(run.blocks) + 1), number / len(self.base.runs))
            dropped += _least_missed(run, gone) if order == "sensitivity" else _evenly_spaced(run, gone)
        return tuple(sorted(dropped))


def _least_missed(run: BlockRun, count: int) -> list[str]:
    return list(run.blocks[:count])


def _evenly_spaced(run: BlockRun, count: int) -> list[str]:
    """Every n-th block in order of depth, the last of each stretch."""
    in_order = run.in_order
    return [in_order[(k + 1) * len(in_order) // count - 1] for k in range(count)]


def _inside(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


_Named = TypeVar("_Named", Layer, ChannelGroup)


def positions(members: Sequence[_Named]) -> Iterator[tuple[_Named, float]]:
    """Each layer or group with its depth in [0, 1)."""
    return ((member, index / len(members)) for index, member in enumerate(members))


class UniformChoices:
    """Answers like a trial, from a uniform rule, and remembers the answers: how obvious plans are enqueued.

    ``None`` for a rule means the first option: nothing dropped, nothing pruned.
    """

    def __init__(self, levels: dict[str, int], options: dict[str, int], amounts: dict[str, float]) -> None:
        self._levels, self._options, self._amounts = levels, options, amounts
        self.params: dict[str, Any] = {}

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """The rule's index, scaled to a stage variable where the name is one; 0 for steps and all else."""
        kind, _, stage = name.removeprefix("base.").partition(".")
        index = 0 if ":" in name else self._levels.get(kind, 0)
        if stage.isdigit() and kind in self._options:
            options = self._options[kind]
            index = -(-index * _RESOLUTION // options)
        self.params[name] = index
        return index

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The rule's number, or the nearest in range."""
        self.params[name] = min(max(self._amounts.get(name, low), low), high)
        return float(self.params[name])

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The first choice."""
        self.params[name] = choices[0]
        return choices[0]


@dataclass(frozen=True)
class NamedPlan:
    """A plan to enqueue; ``params`` are None where the study's own options cannot express it."""

    name: str
    plan: Plan
    params: dict[str, Any] | None


def obvious_plans(space: Space, parametrisation: Callable[[Suggests], Draw]) -> list[NamedPlan]:
    """What anyone would try first: nothing, plain int8, and uniform pruning with uniform bits."""
    section = space.section
    plans = []
    for name, precision in (("uncompressed", Precision.FLOAT32), ("plain int8", plain_int8(section, space.saturates))):
        everywhere = {layer.name: precision.for_layer(layer.kind) for layer in space.base.layers}
        training = TrainingSpec(steps=0, start=space.base_digest)
        quantization = QuantizationSpec(precisions=everywhere)
        plan = Plan(quantization=quantization, training=training, seed=space.seed)
        plans.append(NamedPlan(name, plan, None))
    if not section.base:
        return plans
    for precision_index in _uniform_levels(section):
        bits = ("precision", "embedding")
        ratios = {SPARSITY_KINDS[kind]: options for kind, options in space.base_ratios().items()}
        middle = {kind: len(options) // 2 for kind, options in ratios.items()}
        choices = UniformChoices(
            dict.fromkeys(bits, precision_index) | middle,
            dict.fromkeys(bits, len(section.precision)) | {kind: len(options) for kind, options in ratios.items()},
            {"alpha": 0.7, "temperature": 4.0, "hint_weight": 0.0},
        )
        plan = space.suggest_plan(parametrisation(choices), 0)
        share = max(options[middle[kind]] for kind, options in ratios.items())
        name = f"uniform {section.precision[precision_index]}, {share:.0%} pruned"
        plans.append(NamedPlan(name, plan, choices.params))
    return plans


def plain_int8(section: SpaceSection, saturates: bool = False) -> Precision:
    """8-bit weights and activations, in the way in which the study quantises activations; 7-bit where 8 saturate."""
    dynamic = any(precision.dynamic for precision in section.precision)
    plain = Precision.W8A8_DYNAMIC if dynamic else Precision.W8A8
    return plain.without_saturation() if saturates else plain


def _uniform_levels(section: SpaceSection) -> list[int]:
    """Indices of the finest integer precision and of the middle one."""
    integer = [i for i, p in enumerate(section.precision) if p.integer_activations] or [0]
    return list(dict.fromkeys([integer[0], integer[len(integer) // 2]]))
