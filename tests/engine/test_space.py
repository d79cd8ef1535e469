"""Every draw is a plan that can be built, in either parametrisation and either family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
import torch
from benches import make_bench
from torch import nn

from autocompress.analysis import analyse
from autocompress.config import SpaceSection, TrainingSection
from autocompress.data.task import TaskData
from autocompress.engine.space import PerLayer, PerStage, Space, UniformChoices, obvious_plans
from autocompress.layers import trace, weight_layers
from autocompress.models import freeze, space_labels
from autocompress.pipeline import Bench, build_network
from autocompress.plan import Plan, Precision

PRECISIONS = (Precision.W8A8, Precision.W4A8, Precision.W3, Precision.FLOAT32)
SECTION = SpaceSection(
    precision=PRECISIONS, sparsity=(0.0, 0.25, 0.5), model_space_sparsity=(0.0, 0.5), model_space="loaded below",
    alpha=(0.2, 0.9), temperature=(2.0, 6.0), hint_weight=(0.0, 0.5),
)  # fmt: skip
DRAWS = 30
PARAMETRISATIONS = [PerLayer, PerStage]
both = pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)


def make_space(network: nn.Module, data: TaskData, model_space: Any, section: SpaceSection = SECTION) -> Space:
    return Space(
        section=section, training=TrainingSection(steps=10, random_start_factor=2.5), base=analyse(network, data.example_inputs(8)),
        inputs=data.example_inputs(2), base_digest="d" * 64, seed=100, model_space=model_space,
    )  # fmt: skip


@pytest.fixture(scope="module")
def space(resnet20: nn.Module, digits: TaskData, small_space: Any) -> Space:
    return make_space(resnet20, digits, small_space)


@pytest.fixture(scope="module")
def resnet_bench(resnet20: nn.Module, digits: TaskData, small_space: Any) -> Bench:
    return make_bench(resnet20, digits, small_space)


def new_study(seed: int = 0) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


Drawn = list[tuple[Plan, optuna.Trial]]


def draw_plans(space: Space, parametrisation: Callable[..., Any], count: int = DRAWS) -> Drawn:
    study = new_study()
    trials = [study.ask() for _ in range(count)]
    return [(space.suggest_plan(parametrisation(trial), trial.number), trial) for trial in trials]


@pytest.fixture(scope="module")
def drawn(space: Space) -> dict[Any, Drawn]:
    return {parametrisation: draw_plans(space, parametrisation) for parametrisation in PARAMETRISATIONS}


# Every draw


@both
def test_both_families_are_drawn(parametrisation: Any, drawn: dict[Any, Drawn]) -> None:
    families = [plan.architecture.family for plan, _ in drawn[parametrisation]]
    assert 5 <= families.count("base") <= DRAWS - 5
    assert set(families) == {"base", "space"}


@both
def test_every_plan_fits_the_network_as_it_is_built(
    parametrisation: Any, drawn: dict[Any, Drawn], resnet_bench: Bench
) -> None:
    inputs = resnet_bench.data.example_inputs(2)
    for plan, _ in drawn[parametrisation]:
        network = build_network(resnet_bench, plan)
        layers = weight_layers(trace(network, inputs))
        assert set(plan.quantization.precisions) == set(layers)
        assert set(plan.pruning.ratios) <= set(layers)
        with torch.no_grad():
            assert network(*inputs).shape == (2, 10)


@both
def test_every_decision_is_an_option_of_the_study(parametrisation: Any, drawn: dict[Any, Drawn], space: Space) -> None:
    labels = space_labels(space.model_space)
    for plan, _ in drawn[parametrisation]:
        base = plan.architecture.family == "base"
        assert set(plan.quantization.precisions.values()) <= set(PRECISIONS)
        assert set(plan.pruning.ratios.values()) <= set(SECTION.sparsity if base else SECTION.model_space_sparsity)
        assert SECTION.alpha[0] <= plan.distillation.alpha <= SECTION.alpha[1]
        assert SECTION.temperature[0] <= plan.distillation.temperature <= SECTION.temperature[1]
        assert SECTION.hint_weight[0] <= plan.distillation.hint_weight <= SECTION.hint_weight[1]
        assert all(value in labels[label] for label, value in plan.architecture.choices.items())
        assert bool(plan.architecture.choices) is not base
        assert base or plan.architecture.dropped_blocks == ()
        assert plan.training.steps == (10 if base else 25)
        assert plan.training.start == "d" * 64


@both
def test_plans_survive_their_json_and_differ(parametrisation: Any, drawn: dict[Any, Drawn]) -> None:
    plans = [plan for plan, _ in drawn[parametrisation]]
    assert all(Plan.model_validate_json(plan.model_dump_json()) == plan for plan in plans)
    assert [plan.seed for plan in plans] == [100 + number for number in range(DRAWS)]
    assert len({plan.model_copy(update={"seed": 0}).model_dump_json() for plan in plans}) == DRAWS


@both
def test_every_option_is_reached(parametrisation: Any, space: Space) -> None:
    plans = [plan for plan, _ in draw_plans(space, parametrisation, 50)]
    assert {p for plan in plans for p in plan.quantization.precisions.values()} == set(PRECISIONS)
    base = [plan for plan in plans if plan.architecture.family == "base"]
    assert {r for plan in base for r in plan.pruning.ratios.values()} == set(SECTION.sparsity)
    for run in space.base.runs:
        counts = {sum(block in plan.architecture.dropped_blocks for block in run.blocks) for plan in base}
        assert counts == set(range(len(run.blocks) + 1))
    for label, options in space_labels(space.model_space).items():
        assert {plan.architecture.choices[label] for plan in plans if label in plan.architecture.choices} == set(
            options
        )


def test_neighbouring_layers_are_alike_and_networks_are_not(drawn: dict[Any, Drawn]) -> None:
    """Independent draws for each layer would all average to the same network."""
    indices = [[PRECISIONS.index(p) for p in plan.quantization.precisions.values()] for plan, _ in drawn[PerLayer]]
    assert all(max(levels) - min(levels) <= 2 for levels in indices)
    means = [sum(levels) / len(levels) for levels in indices]
    assert min(means) < 0.8 and max(means) > 2.2


# Variables


def test_per_stage_has_the_same_variables_in_every_trial(drawn: dict[Any, Drawn]) -> None:
    spaces = [trial.distributions for _, trial in drawn[PerStage]]
    assert all(each == spaces[0] for each in spaces)
    assert len(spaces[0]) == 6 * 4 + 1 + 3


def test_per_layer_asks_for_nothing_that_is_not_there(drawn: dict[Any, Drawn], space: Space) -> None:
    labels = set(space_labels(space.model_space))
    runs = {f"dropped:{run.name}" for run in space.base.runs}
    for plan, trial in drawn[PerLayer]:
        family = plan.architecture.family
        own = {name.removeprefix(f"{family}.") for name in trial.params if name.startswith(f"{family}.")}
        assert set(trial.params) == {f"{family}.{name}" for name in own} | {
            "family",
            "alpha",
            "temperature",
            "hint_weight",
        }
        layers = {name.removeprefix("precision:") for name in own if name.startswith("precision:")}
        groups = {name.removeprefix("sparsity:") for name in own if name.startswith("sparsity:")}
        assert layers == set(plan.quantization.precisions)
        assert groups == set(plan.pruning.ratios)
        blocks = plan.architecture.dropped_blocks
        assert not [name for name in layers | groups if name.startswith(tuple(f"{block}." for block in blocks))]
        rest = {name for name in own if ":" not in name or name.startswith("dropped:")} - {"precision", "sparsity"}
        # a label that a shallow member does not use has no variable, and a constant one never has
        assert rest == (runs | {"block_order"} if family == "base" else set(plan.architecture.choices) & labels)


def test_inactive_labels_are_not_in_the_plan(drawn: dict[Any, Drawn]) -> None:
    for parametrisation in PARAMETRISATIONS:
        plans = [plan for plan, _ in drawn[parametrisation] if plan.architecture.family == "space"]
        for plan in plans:
            choices = plan.architecture.choices
            kernels = [label for label in choices if label.startswith("stage1.block")]
            assert len(kernels) == choices["stage1.depth"]


def test_a_decision_with_one_option_is_no_variable(resnet20: nn.Module, digits: TaskData) -> None:
    section = SpaceSection(
        precision=(Precision.W8A8,), sparsity=(0.0,), drop_blocks=False, alpha=(0.5, 0.5), temperature=(3.0, 3.0),
        hint_weight=(0.0, 0.0),
    )  # fmt: skip
    ((plan, trial),) = draw_plans(make_space(resnet20, digits, None, section), PerLayer, 1)
    assert trial.params == {}
    assert set(plan.quantization.precisions.values()) == {Precision.W8A8}
    assert plan.distillation.alpha == 0.5


@pytest.mark.parametrize(
    ("base", "with_space", "families"),
    [(True, False, ["base"]), (False, True, ["space"]), (True, True, ["base", "space"])],
)
@both
def test_a_study_has_the_families_it_names(
    parametrisation: Any,
    base: bool,
    with_space: bool,
    families: list[str],
    resnet20: nn.Module,
    digits: TaskData,
    small_space: Any,
) -> None:
    section = SpaceSection(base=base, model_space="loaded" if with_space else None, precision=PRECISIONS)
    space = make_space(resnet20, digits, small_space if with_space else None, section)
    assert space.families() == families
    plans = draw_plans(space, parametrisation, 12)
    assert {plan.architecture.family for plan, _ in plans} == set(families)
    assert all(("family" in trial.params) is (len(families) == 2) for _, trial in plans)


# Dropped blocks


@pytest.fixture(scope="module")
def deep_space(resnet56: nn.Module, digits: TaskData) -> Space:
    return make_space(resnet56, digits, None, SpaceSection())


@pytest.mark.parametrize("gone", range(10))
def test_blocks_go_evenly_or_by_what_is_missed_least(gone: int, deep_space: Space) -> None:
    run = deep_space.base.runs[0]
    for order in (0, 1):
        study = new_study()
        study.enqueue_trial(
            {"base.block_order": order, "base.dropped:layer1": gone, "base.dropped:layer2": 0, "base.dropped:layer3": 0}
        )
        dropped = deep_space.suggest_plan(PerLayer(study.ask()), 0).architecture.dropped_blocks
        assert len(set(dropped)) == gone
        if order == 0:
            assert set(dropped) == set(run.blocks[:gone])
        else:
            positions = sorted(int(name.removeprefix("layer1.")) for name in dropped)
            gaps = [b - a for a, b in zip([-1, *positions], positions, strict=False)]
            assert not gaps or max(gaps) - min(gaps) <= 1


# Obvious plans


@both
def test_obvious_plans_reproduce_themselves_from_their_params(parametrisation: Any, space: Space) -> None:
    named = obvious_plans(space, parametrisation)
    assert [each.name for each in named[:2]] == ["uncompressed", "plain int8"]
    assert len(named) >= 4 and len({each.name for each in named}) == len(named)
    for each in named:
        if each.params is None:
            continue
        study = new_study(seed=9)
        study.enqueue_trial(each.params)
        trial = study.ask()
        again = space.suggest_plan(parametrisation(trial), 0)
        assert again == each.plan
        assert trial.params == each.params


@both
def test_obvious_plans_are_what_their_names_say(parametrisation: Any, space: Space, resnet_bench: Bench) -> None:
    for each in obvious_plans(space, parametrisation):
        plan = each.plan
        assert plan.architecture.family == "base" and plan.architecture.dropped_blocks == ()
        assert set(plan.quantization.precisions) == {layer.name for layer in space.base.layers}
        (precision,) = set(plan.quantization.precisions.values())
        if each.name == "uncompressed":
            assert precision is Precision.FLOAT32
        elif each.name == "plain int8":
            assert precision is Precision.W8A8
        else:
            (ratio,) = set(plan.pruning.ratios.values())
            assert each.name == f"uniform {precision}, {ratio:.0%} pruned"
            assert ratio in SECTION.sparsity and set(plan.pruning.ratios) == {group.name for group in space.base.groups}
            assert plan.distillation.alpha == 0.7 and plan.distillation.temperature == 4.0
        assert (plan.training.steps == 0) is (each.params is None)
        assert build_network(resnet_bench, plan)(*resnet_bench.data.example_inputs(2)).shape == (2, 10)


def test_where_integer_kernels_saturate_nothing_has_8_bits_there(space: Space) -> None:
    exact = replace(space, saturates=True)
    plain = next(named.plan for named in obvious_plans(exact, PerLayer) if named.name == "plain int8")
    assert set(plain.quantization.precisions.values()) == {Precision.W7A8}
    for plan, _ in draw_plans(space, PerLayer, 10):
        found = exact.exact(plan).quantization.precisions
        for name, before in plan.quantization.precisions.items():
            assert found[name] is (Precision.W7A8 if before is Precision.W8A8 else before)
        assert exact.exact(plan).model_copy(update={"quantization": plan.quantization}) == plan
        assert space.exact(plan) is plan


@both
def test_a_study_of_the_model_space_alone_still_measures_the_base(
    parametrisation: Any, resnet20: nn.Module, digits: TaskData, small_space: Any
) -> None:
    space = make_space(resnet20, digits, small_space, SpaceSection(base=False, model_space="loaded"))
    assert [each.name for each in obvious_plans(space, parametrisation)] == ["uncompressed", "plain int8"]


@both
@pytest.mark.parametrize(
    "precisions",
    [(Precision.FLOAT32,), (Precision.W8A8,), (Precision.W4, Precision.W8A8, Precision.W2A8, Precision.W6)],
)
@pytest.mark.parametrize("sparsity", [(0.0,), (0.5,), (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)])
def test_obvious_plans_exist_for_any_lists_of_options(
    parametrisation: Any,
    precisions: tuple[Precision, ...],
    sparsity: tuple[float, ...],
    resnet20: nn.Module,
    digits: TaskData,
) -> None:
    section = SpaceSection(
        precision=precisions, sparsity=sparsity, alpha=(0.8, 1.0), temperature=(5.0, 6.0), hint_weight=(0.1, 0.2)
    )
    space = make_space(resnet20, digits, None, section)
    for each in obvious_plans(space, parametrisation)[2:]:
        study = new_study()
        study.enqueue_trial(each.params)
        assert space.suggest_plan(parametrisation(study.ask()), 0) == each.plan
        assert set(each.plan.quantization.precisions.values()) <= set(precisions)
        assert each.plan.distillation.alpha == 0.8 and each.plan.distillation.temperature == 5.0


def test_uniform_choices_answer_within_the_range() -> None:
    choices = UniformChoices({"precision": 2}, {"precision": 4}, {"alpha": 0.7})
    assert choices.suggest_float("alpha", 0.0, 0.5) == 0.5
    assert choices.suggest_float("alpha", 0.9, 1.0) == 0.9
    assert choices.suggest_float("other", 0.25, 1.0) == 0.25
    assert choices.suggest_int("precision.3", 0, 59) * 4 // 60 == 2
    assert choices.suggest_int("base.precision", 0, 3) == 2
    assert choices.suggest_int("base.precision:conv1", -1, 1) == 0
    assert choices.suggest_categorical("family", ["base", "space"]) == "base"


def test_choices_of_a_plan_build_the_same_member_again(drawn: dict[Any, Drawn], small_space: Any) -> None:
    plan = next(plan for plan, _ in drawn[PerStage] if plan.architecture.family == "space")
    _, choices = freeze(small_space, lambda label, options: plan.architecture.choices[label])
    assert choices == plan.architecture.choices
