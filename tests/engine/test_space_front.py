"""What the tables think worth a try in a model space, against looking at all of it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
from benches import make_bench
from ladders import PRECISIONS, SECTION, make_guide
from searches import CIFAR_RESNET
from torch import nn

from autocompress.config import LimitsSection, SpaceSection
from autocompress.data.task import TaskData
from autocompress.engine.guided import Guide
from autocompress.engine.space_front import space_front
from autocompress.models import load_space, space_labels
from autocompress.operators import arithmetic_of
from autocompress.plan import ArchitectureSpec, Plan, Precision

SMALL = {
    "in_channels": 1,
    "widths": [[8, 16], [16, 24], [24]],
    "depths": [[0, 1], [1, 2], [1]],
    "kernels": [3],
}


@pytest.fixture(scope="module")
def guide(trained: nn.Module, digits: TaskData, tmp_path_factory: pytest.TempPathFactory) -> Guide:
    space = load_space(f"{CIFAR_RESNET}:CifarResNetSpace", SMALL)
    section = SpaceSection(precision=PRECISIONS, sparsity=SECTION.sparsity, model_space="loaded")
    return make_guide(make_bench(trained, digits, space), tmp_path_factory.mktemp("table"), section)


def all_members(guide: Guide) -> list[ArchitectureSpec]:
    labels = space_labels(guide.space.model_space)
    found: list[ArchitectureSpec] = []
    for values in itertools.product(*labels.values()):
        used = guide.space.used_choices(dict(zip(labels, values, strict=True)))
        member = ArchitectureSpec(family="space", choices=used)
        if member not in found:
            found.append(member)
    return found


def figures(guide: Guide, member: ArchitectureSpec) -> tuple[float, float, int]:
    """Capacity, speed-up in 8 bits, and number of weights."""
    plan = Plan(architecture=member)
    usual = arithmetic_of(Precision.W8A8)
    operators = [o.computed_in(usual) if o.layer else o for o in guide.predictor.operators(plan)]
    layers = [o for o in operators if o.layer]
    weights = sum(guide.predictor.layer_bytes(o, Precision.FLOAT32) // 4 for o in layers)
    return (
        guide.predictor.macs(plan) * len(layers) * sum(math.prod(o.weight) for o in layers),
        1 / guide.predictor.latency_ratio(operators),
        int(weights),
    )


def test_the_largest_that_is_fast_enough_is_found(guide: Guide) -> None:
    known = {repr(member): figures(guide, member) for member in all_members(guide)}
    assert len(known) == 16
    speeds = sorted(speed for _, speed, _ in known.values())
    targets = [speeds[0] * 0.99, *speeds[4::4]]
    found = space_front(guide, targets, 0, 20.0)
    for target in targets:
        able = [capacity for capacity, speed, _ in known.values() if speed >= target]
        own = [known[repr(member)] for member in found if known[repr(member)][1] >= target]
        assert max(capacity for capacity, _, _ in own) == max(able)


def test_there_is_one_for_each_speed_up_to_the_first_that_none_reaches(guide: Guide) -> None:
    first, second = space_front(guide, [1e-4, 1e-3, 1e6], 0, 20.0)
    assert first == second  # the largest of all is the best for both
    assert space_front(guide, [1e6], 0, 20.0) == []


def test_members_that_cannot_be_built_are_left_out(
    trained: nn.Module, digits: TaskData, tmp_path_factory: pytest.TempPathFactory
) -> None:
    space = load_space(f"{Path(__file__).parents[1] / 'fragile_space.py'}:Fragile", {"num_classes": 10})
    section = SpaceSection(precision=PRECISIONS, model_space="loaded")
    guide = make_guide(make_bench(trained, digits, space), tmp_path_factory.mktemp("table"), section)
    (found,) = space_front(guide, [1e-3], 0, 20.0)
    assert found.choices == {"first.kernel": 3, "second.kernel": 3, "width": 24}


def test_what_cannot_be_small_enough_is_left_out(guide: Guide) -> None:
    known = {repr(member): figures(guide, member) for member in all_members(guide)}
    middle = sorted(weights for _, _, weights in known.values())[len(known) // 3]
    low, high = guide.bits_range()
    most_bytes = middle * (low * high) ** 0.5 / 8
    limits = LimitsSection(max_size_bytes=int(most_bytes) + 1)
    (found,) = space_front(replace(guide, limits=limits), [1e-3], 0, 20.0)
    assert known[repr(found)][2] <= middle * 1.1
