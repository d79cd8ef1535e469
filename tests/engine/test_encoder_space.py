"""A search over a transformer decides on heads, hidden units, blocks and tables, each in its own right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
import torch
from sequences import HEADS, Encoder, task
from torch import nn

from autocompress.analysis import Analysis, analyse
from autocompress.compression.inner_widths import InnerWidth
from autocompress.config import SpaceSection, TrainingSection
from autocompress.data.task import TaskData
from autocompress.engine.space import PerLayer, PerStage, Space, obvious_plans
from autocompress.pipeline import Bench, build_network
from autocompress.plan import Plan, Precision

PRECISIONS = (Precision.FLOAT32, Precision.W8A8_DYNAMIC, Precision.W4A8_DYNAMIC, Precision.W4)
SECTION = SpaceSection(
    precision=PRECISIONS, sparsity=(0.0, 0.25, 0.5, 0.75), hidden_weight=(0.0, 1.0), relation_weight=(0.5, 0.5)
)
DRAWS = 40
both = pytest.mark.parametrize("parametrisation", [PerLayer, PerStage])


@pytest.fixture(scope="module")
def data() -> TaskData:
    return task(numbers=False)


@pytest.fixture(scope="module")
def base() -> nn.Module:
    torch.manual_seed(0)
    return Encoder(2).eval()


@pytest.fixture(scope="module")
def analysis(base: nn.Module, data: TaskData) -> Analysis:
    return analyse(base, data.example_inputs(16), data.axes)


@pytest.fixture(scope="module")
def space(analysis: Analysis, data: TaskData) -> Space:
    training = TrainingSection(steps=10)
    inputs = data.example_inputs(2)
    return Space(SECTION, training, analysis, inputs, base_digest="d" * 64, seed=100, axes=data.axes)


@pytest.fixture(scope="module")
def bench(base: nn.Module, data: TaskData, analysis: Analysis) -> Bench:
    return Bench(base, data, TrainingSection(), 8, inner=analysis.inner)


def drawn(space: Space, parametrisation: Callable[..., Any], count: int = DRAWS) -> list[tuple[Plan, optuna.Trial]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(count)]
    return [(space.suggest_plan(parametrisation(trial), trial.number), trial) for trial in trials]


@both
def test_every_plan_builds_a_network_with_the_heads_and_units_it_says(
    parametrisation: Any, space: Space, bench: Bench
) -> None:
    inputs = bench.data.example_inputs(2)
    for plan, _ in drawn(space, parametrisation, 15):
        network = build_network(bench, plan)
        names = {name for name, _ in network.named_modules()}
        assert set(plan.pruning.ratios) <= names and set(plan.quantization.precisions) <= names
        for name, ratio in plan.pruning.ratios.items():
            layer = name.rpartition(".")[0]
            if name.endswith(".q"):
                heads = network.get_submodule(layer).q.out_features // 4
                assert heads == max(1, round(HEADS * (1 - ratio)))
            elif name.endswith(".up"):
                assert network.get_submodule(name).out_features == 32 * (1 - ratio)
        with torch.no_grad():
            assert network(*inputs).shape == (2, 2)


@both
def test_layers_get_precisions_that_their_kind_has(parametrisation: Any, space: Space) -> None:
    kinds = {layer.name: layer.kind for layer in space.base.layers}
    seen: dict[str, set[Precision]] = {"linear": set(), "embedding": set()}
    for plan, _ in drawn(space, parametrisation):
        for name, precision in plan.quantization.precisions.items():
            seen[kinds[name]].add(precision)
    assert seen["linear"] == set(PRECISIONS)
    assert seen["embedding"] == {Precision.FLOAT32, Precision.W8, Precision.W4}


def test_each_kind_of_decision_has_a_centre_of_its_own(space: Space) -> None:
    centres = {"base.heads", "base.mlp", "base.precision", "base.embedding"}
    names = set().union(*(trial.params for _, trial in drawn(space, PerLayer)))
    assert centres <= names
    groups = {f"base.{'heads' if g.kind == 'heads' else 'mlp'}:{g.name}" for g in space.base.groups if g.inner}
    assert groups <= names
    # whatever the heads do, the hidden units may do otherwise
    study = optuna.create_study()
    steps = {name: 0 for name in names if ":" in name}
    study.enqueue_trial(steps | {"base.heads": 2, "base.mlp": 0, "base.precision": 1, "base.embedding": 3})
    plan = space.suggest_plan(PerLayer(study.ask()), 0)
    assert {ratio for name, ratio in plan.pruning.ratios.items() if name.endswith(".q")} == {0.5}
    assert {ratio for name, ratio in plan.pruning.ratios.items() if name.endswith(".up")} == {0.0}
    precisions = dict(plan.quantization.precisions)
    assert precisions.pop("words") is Precision.W4
    assert set(precisions.values()) == {Precision.W8A8_DYNAMIC}


def test_per_stage_has_the_same_variables_in_every_trial(space: Space) -> None:
    spaces = [trial.distributions for _, trial in drawn(space, PerStage, 8)]
    assert all(each == spaces[0] for each in spaces)
    assert {name.partition(".")[0] for name in spaces[0] if "." in name} == {
        "architecture", "sparsity", "heads", "mlp", "precision", "embedding"
    }  # fmt: skip


@both
def test_weights_of_inner_losses_are_drawn_where_they_are_a_range(parametrisation: Any, space: Space) -> None:
    plans = drawn(space, parametrisation)
    weights = [plan.distillation.hidden_weight for plan, _ in plans]
    assert min(weights) < 0.2 and max(weights) > 0.8
    assert {plan.distillation.relation_weight for plan, _ in plans} == {0.5}
    assert all("hidden_weight" in trial.params and "relation_weight" not in trial.params for _, trial in plans)


@both
def test_obvious_plans_of_a_dynamic_study_are_dynamic(parametrisation: Any, space: Space, bench: Bench) -> None:
    named = {each.name: each for each in obvious_plans(space, parametrisation)}
    plain = dict(named["plain int8"].plan.quantization.precisions)
    assert plain.pop("words") is Precision.W8
    assert set(plain.values()) == {Precision.W8A8_DYNAMIC}
    assert set(named["uncompressed"].plan.quantization.precisions.values()) == {Precision.FLOAT32}
    for each in named.values():
        if each.params is not None:
            study = optuna.create_study()
            study.enqueue_trial(each.params)
            assert space.suggest_plan(parametrisation(study.ask()), 0) == each.plan
            ratios = {r for name, r in each.plan.pruning.ratios.items() if space.base.inner.get(name)}
            assert len(ratios) == 1
        assert build_network(bench, each.plan)(*bench.data.example_inputs(2)).shape == (2, 2)


@both
def test_dropped_layers_take_their_heads_and_precisions_along(parametrisation: Any, space: Space) -> None:
    depths = set()
    for plan, _ in drawn(space, parametrisation):
        dropped = plan.architecture.dropped_blocks
        depths.add(len(dropped))
        names = [*plan.pruning.ratios, *plan.quantization.precisions]
        assert not [name for name in names if name.startswith(tuple(f"{block}." for block in dropped) or "-")]
    assert depths == {0, 1, 2, 3}


def test_a_width_of_an_analysis_is_found_again_by_its_name(analysis: Analysis) -> None:
    assert all(isinstance(width, InnerWidth) and width.name == name for name, width in analysis.inner.items())
    assert {width.kind for width in analysis.inner.values()} == {"heads", "mlp"}


@both
def test_heads_and_hidden_units_may_have_ratios_of_their_own(
    parametrisation: Any, analysis: Analysis, data: TaskData, bench: Bench
) -> None:
    section = SpaceSection(sparsity=(0.0, 0.5), head_sparsity=(0.0, 0.25, 0.75), mlp_sparsity=(0.0,))
    space = Space(section, TrainingSection(steps=10), analysis, data.example_inputs(2), "d" * 64, 100, data.axes)
    seen: dict[str, set[float]] = {"channels": set(), "heads": set(), "mlp": set()}
    kinds = {group.name: group.kind for group in analysis.groups}
    for plan, trial in drawn(space, parametrisation):
        for name, ratio in plan.pruning.ratios.items():
            seen[kinds[name]].add(ratio)
        assert parametrisation is PerStage or not [name for name in trial.params if name.startswith("base.mlp")]
    assert seen == {"channels": {0.0, 0.5}, "heads": {0.0, 0.25, 0.75}, "mlp": {0.0}}
    for each in obvious_plans(space, parametrisation)[2:]:
        assert {r for name, r in each.plan.pruning.ratios.items() if kinds[name] == "heads"} == {0.25}
        assert build_network(bench, each.plan)(*data.example_inputs(2)).shape == (2, 2)
