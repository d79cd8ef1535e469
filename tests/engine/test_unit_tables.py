"""The tables of a base: what rounding a layer and pruning a group cost, and which axes pruning shortens."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from benches import make_bench
from ladders import SECTION, with_inner
from networks import Grouped, with_random_norms
from sequences import Encoder
from sequences import task as sequence_task
from torch import nn

from autocompress.analysis import Analysis, analyse, divergence
from autocompress.compression.elastic import fake_quantize
from autocompress.compression.pruning import prune
from autocompress.config import SpaceSection
from autocompress.data.task import TaskData
from autocompress.engine.tables import LEAST_BITS, TABLE_EXAMPLES, Tables, measure_tables
from autocompress.pipeline import Bench
from autocompress.plan import Precision

RATIOS = {"channels": 0.75, "heads": 0.5, "mlp": 0.75}


def measured(bench: Bench, section: SpaceSection = SECTION) -> tuple[Tables, Analysis]:
    analysis = analyse(bench.base, bench.data.example_inputs(8), bench.data.axes)
    return measure_tables(bench, analysis, section, RATIOS), analysis


def residual_bench(trained: nn.Module, digits: TaskData) -> Bench:
    return make_bench(trained, digits)


def grouped_bench(digits: TaskData, groups: int = 4) -> Bench:
    torch.manual_seed(1)
    return make_bench(with_random_norms(Grouped(groups=groups)), digits)


def encoder_bench() -> Bench:
    torch.manual_seed(1)
    return with_inner(Encoder(2).eval(), sequence_task(numbers=False))


@pytest.fixture(scope="module")
def residual(trained: nn.Module, digits: TaskData) -> tuple[Bench, Tables, Analysis]:
    bench = residual_bench(trained, digits)
    return bench, *measured(bench)


def of_calibration(bench: Bench, network: nn.Module) -> float:
    """Divergence of a network from the base, on the rows that tables are measured on."""
    inputs = bench.data.model_inputs(
        bench.data.calibration, torch.arange(min(TABLE_EXAMPLES, len(bench.data.calibration)))
    )
    with torch.no_grad():
        return divergence(network(*inputs), bench.base(*inputs), classification=True)


def rounded(base: nn.Module, layer: str, bits: int) -> nn.Module:
    network = copy.deepcopy(base)
    with torch.no_grad():
        weight = network.get_submodule(layer).weight
        weight.copy_(fake_quantize(weight, bits))
    return network


# Layers


def test_a_layers_error_is_that_of_rounding_it_alone(residual: tuple[Bench, Tables, Analysis]) -> None:
    bench, tables, analysis = residual
    assert set(tables.layers) == {layer.name for layer in analysis.layers}
    for layer, error in tables.layers.items():
        assert error > 0
        assert tables.layer_error(layer, tables.bits) == error
        assert error == pytest.approx(of_calibration(bench, rounded(bench.base, layer, tables.bits)), rel=1e-4)


def test_each_bit_more_leaves_a_quarter(residual: tuple[Bench, Tables, Analysis]) -> None:
    _, tables, _ = residual
    for bits in range(tables.bits, 8):
        assert tables.layer_error("stem", bits) == pytest.approx(4 * tables.layer_error("stem", bits + 1))
    assert tables.layer_error("stem", None) == 0.0


def test_the_law_between_bits_is_about_what_is_measured(residual: tuple[Bench, Tables, Analysis]) -> None:
    bench, tables, _ = residual
    wrong = []
    for layer in tables.layers:
        found = of_calibration(bench, rounded(bench.base, layer, tables.bits + 2))
        wrong.append(tables.layer_error(layer, tables.bits + 2) / found)
    assert 0.4 < sorted(wrong)[len(wrong) // 2] < 2.5


@pytest.mark.parametrize(
    ("precision", "bits"),
    [
        ((Precision.W8A8, Precision.W4A8), 4),
        ((Precision.W8A8, Precision.W2A8), LEAST_BITS),
        ((Precision.W8,), 8),
        ((Precision.FLOAT32,), 8),
    ],
)
def test_layers_are_measured_at_the_fewest_bits_that_say_something(
    precision: tuple[Precision, ...], bits: int, trained: nn.Module, digits: TaskData
) -> None:
    bench = residual_bench(trained, digits)
    analysis = analyse(bench.base, digits.example_inputs(2)).model_copy(update={"groups": ()})
    assert measure_tables(bench, analysis, SpaceSection(precision=precision), RATIOS).bits == bits


# Groups


def test_a_groups_error_is_that_of_pruning_it_alone(residual: tuple[Bench, Tables, Analysis]) -> None:
    bench, tables, analysis = residual
    assert set(tables.groups) == {group.name for group in analysis.groups}
    for group, error in tables.groups.items():
        assert tables.ratios[group] == 0.75
        assert tables.group_error(group, 0.75) == pytest.approx(error)
        pruned = prune(bench.base, bench.data.example_inputs(2), {group: 0.75}, bench.channel_multiple)
        assert error == pytest.approx(of_calibration(bench, pruned.eval()), rel=1e-4)


def test_pruning_more_costs_more_and_nothing_costs_nothing(residual: tuple[Bench, Tables, Analysis]) -> None:
    _, tables, _ = residual
    for group in tables.groups:
        errors = [tables.group_error(group, ratio) for ratio in (0.0, 0.25, 0.5, 0.75)]
        assert errors[0] == 0.0
        assert errors == sorted(errors)
        assert errors[1] < errors[3] / 3 + 1e-12  # the least important channels go first


def test_a_kind_that_is_not_pruned_is_not_measured(trained: nn.Module, digits: TaskData) -> None:
    bench = residual_bench(trained, digits)
    analysis = analyse(bench.base, digits.example_inputs(2))
    tables = measure_tables(bench, analysis, SECTION, dict.fromkeys(RATIOS, 0.0))
    assert tables.groups == tables.narrowed == tables.ratios == {}
    assert all(tables.group_error(group.name, 0.0) == 0.0 for group in analysis.groups)


# Axes


def check_axes(bench: Bench, tables: Tables, analysis: Analysis) -> None:
    """Every layer's shape under several ratios of each group follows from the table."""
    before = {name: parameter.shape for name, parameter in bench.base.named_parameters() if parameter.dim() > 1}
    layers = {name: name if name in before else f"{name}.weight" for name in tables.shapes}
    for group in analysis.groups:
        for ratio in (0.25, 0.4, 0.5, 0.75):
            pruned = prune(
                bench.base, bench.data.example_inputs(2), {group.name: ratio}, bench.channel_multiple, analysis.inner
            )
            shapes = {name: tuple(parameter.shape) for name, parameter in pruned.named_parameters()}
            gone = tables.units_gone(group.name, ratio)
            for layer, weight in layers.items():
                expected = list(tables.shapes[layer])
                for axis, channels in tables.narrowed[group.name].get(layer, {}).items():
                    expected[axis] -= gone * channels
                assert tuple(expected) == shapes[weight], (group.name, ratio, layer)


def test_the_axes_of_a_residual_network(residual: tuple[Bench, Tables, Analysis]) -> None:
    check_axes(*residual)


@pytest.mark.parametrize("groups", [4, 16])
def test_the_axes_of_depthwise_and_grouped_convolutions(groups: int, digits: TaskData) -> None:
    bench = grouped_bench(digits, groups)
    check_axes(bench, *measured(bench))


def test_the_axes_of_heads_and_hidden_units() -> None:
    bench = encoder_bench()
    tables, analysis = measured(bench)
    assert {group.kind for group in analysis.groups} >= {"heads", "mlp"}
    check_axes(bench, tables, analysis)
    heads = next(group for group in analysis.groups if group.kind == "heads")
    # four channels go with each of four heads
    assert {channels for axes in tables.narrowed[heads.name].values() for channels in axes.values()} == {4}


# Side effects


@pytest.mark.parametrize(
    "make", [residual_bench, lambda _trained, digits: grouped_bench(digits), lambda *_: encoder_bench()]
)
def test_the_base_is_unchanged(
    make: Callable[[nn.Module, TaskData], Bench], trained: nn.Module, digits: TaskData
) -> None:
    bench = make(trained, digits)
    before = {name: value.clone() for name, value in bench.base.state_dict().items()}
    measured(bench)
    after = bench.base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not bench.base.training


def test_tables_survive_their_json(residual: tuple[Bench, Tables, Analysis]) -> None:
    _, tables, _ = residual
    assert Tables.model_validate_json(tables.model_dump_json()) == tables
