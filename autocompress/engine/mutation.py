"""Changes of a good plan: one decision at random, where the guided parametrisation cannot reach; and less of a trained one."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from autocompress.candidate import Candidate
from autocompress.engine.guided import KNOTS, Guide, Targets
from autocompress.engine.promotion import climbing_order, leaves, objectives
from autocompress.errors import ModelError
from autocompress.models import space_labels
from autocompress.plan import ArchitectureSpec, Plan, PruningSpec, QuantizationSpec

PARENTS = 4
"""Of the best candidates, one is changed."""
FEWER_BITS = (1.3, 1.7)
"""How many times smaller files become for which a trained network is rounded to fewer bits."""
LEAST_SMALLER = 1.1
"""What a file must become smaller by for that to be worth a try."""
FASTER = (1.3, 1.7)
"""How many times faster and smaller the networks are that are cut out of a trained base."""
LEAST_FASTER = 1.15
"""What a smaller network must be faster by to be worth a try."""


def mutated(candidates: Sequence[Candidate], guide: Guide, seed: int) -> tuple[Plan, Candidate] | None:
    """One of the best plans with one layer's bits, all bits, one group's ratio, one block or one choice changed.

    Returns:
        The plan, and whose it was; None if there is nothing to change.
    """
    # networks that were trained lend their weights; before there are any, the best estimates are changed
    known = leaves(candidates) or [c for c in candidates if objectives(c) is not None]
    known = [c for c in known if c.plan.quantization.precisions]
    order = climbing_order([point for c in known if (point := objectives(c)) is not None], [])
    if not order:
        return None
    rng = random.Random(seed)
    parent = known[rng.choice(order[:PARENTS])]
    network = _other_block if parent.plan.architecture.family == "base" else _other_choice
    kinds = [_all_bits, _all_bits, _other_bits, _other_ratio, network, network]
    rng.shuffle(kinds)
    for change in kinds:
        with suppress(ModelError):  # a member of the model space that cannot be built
            plan = change(parent.plan, guide, rng)
            if plan is not None and plan != parent.plan:
                return _untrained(plan, guide), parent
    return None


def reduced(parent: Candidate, guide: Guide, known: Sequence[Plan]) -> Plan | None:
    """The first plan that is less than a trained one and not known yet: in fewer bits, then of a smaller network.

    Args:
        known: plans that are not worth another estimate.
    """
    if not parent.plan.quantization.precisions:
        return None
    seen = {plan.decisions for plan in known}
    plans = itertools.chain(_in_fewer_bits(parent.plan, guide), _smaller(parent.plan, guide))
    return next((_untrained(plan, guide) for plan in plans if plan.decisions not in seen), None)


def _in_fewer_bits(plan: Plan, guide: Guide) -> Iterator[Plan]:
    """For files smaller by :data:`FEWER_BITS`."""
    if len(guide.space.section.precision) < 2:
        return
    own = guide.predictor.size_ratio(plan)
    for smaller in FEWER_BITS:
        child = guide.with_bits(plan, smaller / own, (0.0,) * KNOTS)
        if guide.predictor.size_ratio(child) * LEAST_SMALLER <= own:
            yield child


def _smaller(plan: Plan, guide: Guide) -> Iterator[Plan]:
    """Networks that a trained one contains: faster by :data:`FASTER`, or in the model space with one label an option less."""
    own = _latency_ratio(plan, guide)
    children = _smaller_bases if plan.architecture.family == "base" else _smaller_members
    for child in children(plan, guide):
        with suppress(ModelError):  # it cannot be traced
            if _latency_ratio(child, guide) * LEAST_FASTER <= own:
                yield child


def _smaller_bases(plan: Plan, guide: Guide) -> Iterator[Plan]:
    own = _latency_ratio(plan, guide)
    bits = guide.predictor.mean_stored_bits(plan)
    for faster in FASTER:
        targets = Targets(faster / own, faster / guide.predictor.size_ratio(plan), bits)
        yield guide.base_plan(targets, plan.distillation, plan.seed, within=plan)


def _smaller_members(plan: Plan, guide: Guide) -> Iterator[Plan]:
    labels = space_labels(guide.space.model_space)
    for name, current in sorted(plan.architecture.choices.items()):
        less = [option for option in labels[name] if isinstance(option, int | float) and option < current]
        if less:
            with suppress(ModelError):
                yield _with_choice(plan, name, max(less), guide, random.Random(plan.seed))


def _latency_ratio(plan: Plan, guide: Guide) -> float:
    return guide.predictor.latency_ratio(guide.predictor.operators(plan))


def _untrained(plan: Plan, guide: Guide) -> Plan:
    steps = guide.space.steps(plan.architecture.family)
    training = plan.training.model_copy(update={"steps": steps, "start": guide.space.base_digest})
    return plan.model_copy(update={"training": training})


def _all_bits(plan: Plan, guide: Guide, rng: random.Random) -> Plan | None:
    """All bits anew, for a file that is up to half as large again or as small."""
    if len(guide.space.section.precision) < 2:
        return None
    smaller = math.exp(rng.uniform(-0.4, 0.7)) / guide.predictor.size_ratio(plan)
    rounding = tuple(rng.uniform(-1.0, 1.0) for _ in range(KNOTS))
    return guide.with_bits(plan, smaller, rounding)


def _other_bits(plan: Plan, guide: Guide, rng: random.Random) -> Plan | None:
    options = guide.space.section.precision
    precisions = dict(plan.quantization.precisions)
    layers = {layer.name: layer.kind for layer in guide.space.layers_of(plan.architecture)}
    if len(options) < 2 or not layers:
        return None
    name = rng.choice(sorted(layers))
    own = list(dict.fromkeys(option.for_layer(layers[name]) for option in options))
    if len(own) < 2:
        return None
    precisions[name] = _neighbour(own, precisions.get(name, own[0]), rng)
    return plan.model_copy(update={"quantization": QuantizationSpec(precisions=precisions)})


def _other_ratio(plan: Plan, guide: Guide, rng: random.Random) -> Plan | None:
    groups = {group.name: group.kind for group in guide.analysis.groups}
    names = sorted(set(plan.pruning.ratios) & set(groups)) if plan.architecture.family == "base" else []
    if not names:
        return None
    name = rng.choice(names)
    options = guide.space.base_ratios()[groups[name]]
    if len(options) < 2:
        return None
    ratios = plan.pruning.ratios | {name: _neighbour(options, plan.pruning.ratios[name], rng)}
    return plan.model_copy(update={"pruning": PruningSpec(ratios=ratios)})


def _other_block(plan: Plan, guide: Guide, rng: random.Random) -> Plan | None:
    """One block more or one less; what comes back is not pruned and as coarse as the other layers."""
    blocks = [block for run in guide.analysis.runs for block in run.blocks]
    if not blocks or not guide.space.section.drop_blocks:
        return None
    dropped = set(plan.architecture.dropped_blocks) ^ {rng.choice(sorted(blocks))}
    return _over(plan, ArchitectureSpec(dropped_blocks=tuple(sorted(dropped))), guide, rng)


def _other_choice(plan: Plan, guide: Guide, rng: random.Random) -> Plan | None:
    """One label of the model space at a neighbouring option."""
    labels = space_labels(guide.space.model_space)
    names = sorted(
        label for label, options in labels.items() if label in plan.architecture.choices and len(options) > 1
    )
    if not names:
        return None
    name = rng.choice(names)
    return _with_choice(plan, name, _neighbour(labels[name], plan.architecture.choices[name], rng), guide, rng)


def _with_choice(plan: Plan, name: str, option: Any, guide: Guide, rng: random.Random) -> Plan:
    choices = plan.architecture.choices | {name: option}
    labels = space_labels(guide.space.model_space)
    complete = {label: choices.get(label, options[0]) for label, options in labels.items()}
    used = guide.space.used_choices(complete)
    return _over(plan, ArchitectureSpec(family="space", choices=used), guide, rng)


def _over(plan: Plan, architecture: ArchitectureSpec, guide: Guide, rng: random.Random) -> Plan:
    """The plan's decisions for another architecture; a layer that is new takes those of one that was there."""
    layers = guide.space.layers_of(architecture)
    known = plan.quantization.precisions
    some = rng.choice(sorted(known.values())) if known else guide.space.section.precision[0]
    names = {layer.name for layer in layers}
    ratios = {name: ratio for name, ratio in plan.pruning.ratios.items() if name in names}
    precisions = {layer.name: known.get(layer.name, some.for_layer(layer.kind)) for layer in layers}
    update = {
        "architecture": architecture,
        "pruning": PruningSpec(ratios=ratios),
        "quantization": QuantizationSpec(precisions=precisions),
    }
    return plan.model_copy(update=update)


def _neighbour(options: Sequence[Any], current: Any, rng: random.Random) -> Any:
    """An option next to the current one."""
    place = list(options).index(current) if current in options else 0
    near = [k for k in (place - 1, place + 1) if 0 <= k < len(options)]
    return options[rng.choice(near)]
