"""A dozen variables become a plan that meets its targets by the tables, and spares what is said to be worth more."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from benches import make_bench
from ladders import PRECISIONS, make_guide, with_inner
from sequences import Encoder
from sequences import task as sequence_task
from torch import nn

from autocompress.config import LimitsSection, SpaceSection
from autocompress.data.task import TaskData
from autocompress.engine.guided import Guide, Targets
from autocompress.engine.space import PerLayer, PerStage
from autocompress.layers import trace, weight_layers
from autocompress.pipeline import build_network
from autocompress.plan import DistillationSpec, Plan, Precision

SPACE_SECTION = SpaceSection(precision=PRECISIONS, sparsity=(0.0, 0.25, 0.5, 0.75), model_space="loaded")
ALIKE = (0.0,) * 4


@pytest.fixture(scope="module")
def guide(resnet20: nn.Module, digits: TaskData, tmp_path_factory: pytest.TempPathFactory) -> Guide:
    return make_guide(make_bench(resnet20, digits), tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def with_space(
    trained: nn.Module, digits: TaskData, small_space: Any, tmp_path_factory: pytest.TempPathFactory
) -> Guide:
    bench = make_bench(trained, digits, small_space)
    return make_guide(bench, tmp_path_factory.mktemp("table"), SPACE_SECTION)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Guide:
    torch.manual_seed(1)
    section = SpaceSection(precision=(Precision.W8A8_DYNAMIC, Precision.W4A8_DYNAMIC), sparsity=(0.0, 0.5))
    bench = with_inner(Encoder(2).eval(), sequence_task(numbers=False))
    return make_guide(bench, tmp_path_factory.mktemp("table"), section)


def base_plan(guide: Guide, targets: Targets) -> Plan:
    return guide.base_plan(targets, DistillationSpec(), 0)


def ratios(guide: Guide, plan: Plan) -> tuple[float, float]:
    """Bytes and latency by the tables, over the baseline's."""
    found = guide.predictor.operators(plan)
    return guide.predictor.size_bytes(plan, found) / guide.baseline.size_bytes, guide.predictor.latency_ratio(found)


def asked(seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


# Targets


def least_ratios(guide: Guide) -> tuple[float, float]:
    """Bytes and latency of what is left when everything is taken that can be."""
    return ratios(guide, base_plan(guide, Targets(1e6, 1e6, 3.0)))


@pytest.mark.parametrize("speedup", [1.5, 3.0, 4.5])
@pytest.mark.parametrize("smaller", [3.0, 6.0, 15.0])
def test_targets_are_met_by_the_tables(guide: Guide, speedup: float, smaller: float) -> None:
    smallest, fastest = least_ratios(guide)
    assert smallest < 1 / smaller and fastest < 1 / speedup  # they can be
    size, latency = ratios(guide, base_plan(guide, Targets(speedup, smaller, 5.0)))
    assert size <= 1.01 / smaller
    assert latency <= 1.01 / speedup


def test_easy_targets_change_nothing(guide: Guide) -> None:
    plan = base_plan(guide, Targets(0.5, 0.5, 32.0))
    assert plan.architecture.dropped_blocks == ()
    assert set(plan.pruning.ratios.values()) <= {0.0}
    assert set(plan.quantization.precisions.values()) == {Precision.W8A8}


def test_a_target_out_of_reach_takes_all_that_can_be_taken(guide: Guide) -> None:
    plan = base_plan(guide, Targets(1e6, 1e6, 3.0))
    assert set(plan.architecture.dropped_blocks) == {b for run in guide.analysis.runs for b in run.blocks}
    assert set(plan.quantization.precisions.values()) == {Precision.W3A8}


def test_tighter_targets_are_never_larger_or_slower(guide: Guide) -> None:
    sizes = [ratios(guide, base_plan(guide, Targets(1.5, smaller, 5.0)))[0] for smaller in (3, 4, 6, 9, 14, 20)]
    times = [ratios(guide, base_plan(guide, Targets(speedup, 3.0, 5.0)))[1] for speedup in (3, 4, 5, 7, 10, 14)]
    for found in (sizes, times):
        assert all(tighter <= looser * 1.01 for looser, tighter in itertools.pairwise(found))
        assert found[-1] < found[0] / 2


def test_fewer_bits_keep_more_of_the_structure(guide: Guide) -> None:
    """The bits of a draw say how bytes are shared between structure and rounding."""

    def operations(bits: float) -> float:
        return guide.predictor.macs(base_plan(guide, Targets(0.5, 8.0, bits)))

    assert operations(3.0) > operations(8.0)


def test_limits_are_the_easiest_targets(resnet20: nn.Module, guide: Guide) -> None:
    def easiest(**limits: Any) -> tuple[float, float]:
        return replace(guide, limits=LimitsSection(**limits)).easiest()

    assert easiest() == (1.5, 3.0)
    assert easiest(min_speedup=4.0, max_size_ratio=0.1) == pytest.approx((4.0, 10.0))
    assert easiest(max_latency_ms=0.2, max_size_bytes=guide.baseline.size_bytes // 5) == pytest.approx(
        (5.0, 5.0), rel=1e-3
    )
    # what the baseline keeps to already asks for nothing
    assert easiest(max_latency_ms=50.0, max_size_bytes=10 * guide.baseline.size_bytes) == easiest()
    assert easiest(min_speedup=0.5, max_size_ratio=0.1) == pytest.approx((1.5, 10.0))


# What errors are worth


@pytest.mark.parametrize("knot", range(4))
def test_bits_spare_the_depth_whose_errors_are_worth_more(guide: Guide, knot: int) -> None:
    curve = tuple(1.5 if k == knot else -1.5 for k in range(4))

    def mean_bits(rounding: tuple[float, ...]) -> float:
        plan = base_plan(guide, Targets(0.5, 7.0, 3.0, rounding=rounding))
        bits = [p.weight_bits or 32 for p in plan.quantization.precisions.values()]
        place = round(knot / 3 * (len(bits) - 1))
        return sum(bits[max(0, place - 2) : place + 3]) / len(bits[max(0, place - 2) : place + 3])

    assert mean_bits(curve) > mean_bits(tuple(-value for value in curve))


@pytest.mark.parametrize("stage", [1, 3])
def test_structure_spares_the_depth_whose_errors_are_worth_more(guide: Guide, stage: int) -> None:
    dear = (1.5, 1.5, -1.5, -1.5) if stage == 1 else (-1.5, -1.5, 1.5, 1.5)

    def kept(structure: tuple[float, ...]) -> int:
        plans = [base_plan(guide, Targets(speedup, 0.5, 5.0, structure=structure)) for speedup in (5.0, 7.0, 9.0)]
        found = [operator for plan in plans for operator in guide.predictor.operators(plan)]
        return sum(operator.output[1] for operator in found if operator.layer.startswith(f"layer{stage}."))

    assert kept(dear) > kept(tuple(-value for value in dear))


# Every draw


@pytest.mark.parametrize("name", ["guide", "with_space", "words"])
def test_every_plan_builds_and_has_a_precision_for_each_layer(name: str, request: pytest.FixtureRequest) -> None:
    guide: Guide = request.getfixturevalue(name)
    study, bench = asked(0), guide.predictor.bench
    families = set()
    for number in range(10):
        plan = guide.suggest_plan(PerLayer(study.ask()), number)
        families.add(plan.architecture.family)
        network = build_network(bench, plan)
        layers = weight_layers(trace(network, bench.data.example_inputs(2), bench.data.axes))
        assert set(plan.quantization.precisions) == set(layers)
        with torch.no_grad():
            assert torch.isfinite(network(*bench.data.example_inputs(2))).all()
        assert plan.seed == 100 + number
        assert plan.training.start == "d" * 64
    assert families == set(guide.space.families())


def test_draws_differ(guide: Guide) -> None:
    study = asked(1)
    plans = [guide.suggest_plan(PerLayer(study.ask()), 0) for _ in range(12)]
    structures = {plan.model_dump_json(include={"architecture", "pruning", "quantization"}) for plan in plans}
    assert len(structures) >= 10


@pytest.mark.parametrize("draws", [PerLayer, PerStage])
def test_few_variables_are_drawn(draws: type[PerLayer] | type[PerStage], guide: Guide) -> None:
    """However many layers there are."""
    trial = asked(0).ask()
    guide.suggest_plan(PerStage(trial, guide.stage_kinds) if draws is PerStage else PerLayer(trial), 0)
    assert 10 <= len(trial.params) < 30


def test_the_same_draw_gives_the_same_plan(guide: Guide) -> None:
    first = asked(3).ask()
    plan = guide.suggest_plan(PerLayer(first), 7)
    again = optuna.trial.FixedTrial(first.params)
    assert guide.suggest_plan(PerLayer(again), 7) == plan


def test_new_bits_for_a_plan_change_nothing_but_bits(guide: Guide) -> None:
    plan = base_plan(guide, Targets(3.0, 6.0, 5.0))
    size = ratios(guide, plan)[0]
    smaller = guide.with_bits(plan, 1.3 / size, ALIKE)
    assert smaller.model_copy(update={"quantization": plan.quantization}) == plan
    assert ratios(guide, smaller)[0] <= size / 1.3 * 1.001
    assert smaller.quantization.precisions.keys() == plan.quantization.precisions.keys()


def test_many_groups_in_a_block_share_their_place_in_the_lists(words: Guide) -> None:
    """A block's options stay few, and all of them are options of the study."""
    options = words.space.base_ratios()
    kinds = {group.name: group.kind for group in words.analysis.groups}
    study = asked(5)
    for number in range(8):
        plan = words.suggest_plan(PerLayer(study.ask()), number)
        assert all(ratio in options[kinds[name]] for name, ratio in plan.pruning.ratios.items())


def test_without_dropping_blocks_none_is_dropped(resnet20: nn.Module, guide: Guide) -> None:
    section = guide.space.section.model_copy(update={"drop_blocks": False})
    whole = replace(guide, space=replace(guide.space, section=section))
    plan = base_plan(whole, Targets(1e6, 1e6, 3.0))
    assert plan.architecture.dropped_blocks == ()
    blocks = [block for run in guide.analysis.runs for block in run.blocks]
    inside = [group for group in guide.analysis.groups if group.name.startswith(tuple(blocks))]
    channels = {o.layer: o.weight[0] for o in guide.predictor.operators(plan) if o.layer}
    assert len(inside) == 7
    # a quarter of what there was, or the fewest that may stay
    assert all(channels[group.name] == max(8, group.channels // 4) for group in inside)


def test_bits_of_a_member_of_the_model_space_follow_its_own_errors(with_space: Guide) -> None:
    """What its layers cost in rounding is measured on the member, not in the base's tables."""
    study = asked(2)
    plans = [with_space.suggest_plan(PerLayer(study.ask()), number) for number in range(12)]
    plan = next(p for p in plans if p.architecture.family == "space" and len(p.quantization.precisions) > 4)
    largest = max((o for o in with_space.predictor.operators(plan) if o.layer), key=lambda o: math.prod(o.weight))
    dear = largest.layer
    easy = with_space.space_plan(plan.architecture, plan.pruning, Targets(0.1, 0.1, 8.0), DistillationSpec(), 0)
    targets = Targets(0.1, 1.4 / ratios(with_space, easy)[0], 8.0)

    def bits(worth: float) -> int:
        errors = dict.fromkeys(plan.quantization.precisions, 1.0) | {dear: worth}
        own = replace(with_space, bit_errors=lambda _plan: errors)
        found = own.space_plan(plan.architecture, plan.pruning, targets, DistillationSpec(), 0)
        return found.quantization.precisions[dear].weight_bits or 32

    assert bits(1e4) > bits(1e-4)


def test_a_guide_needs_no_clock(tmp_path: Path, trained: nn.Module, digits: TaskData) -> None:
    """Two guides of the same tables turn the same targets into the same plan."""
    plans = {
        base_plan(make_guide(make_bench(trained, digits), tmp_path / str(k)), Targets(2.0, 5.0, 5.0)).model_dump_json()
        for k in range(2)
    }
    assert len(plans) == 1
