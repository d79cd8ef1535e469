"""Operators hold all that their time depends on, and shapes asked for are those of networks really built so."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from networks import tiny_resnet
from torch import Tensor, nn

from autocompress.compression.pruning import prune
from autocompress.compression.quantization import fold_batch_norm_, insert_activation_quantizers_
from autocompress.layers import trace, weight_layers
from autocompress.operators import (
    DEQUANTIZE,
    FLOAT32,
    INT8,
    INT8_DYNAMIC,
    QUANTIZE,
    QUANTIZE_DYNAMIC,
    Operator,
    arithmetic_of,
    from_json,
    operators,
)
from autocompress.plan import Precision

IMAGES = torch.zeros(2, 1, 8, 8)


def read(
    network: nn.Module,
    precision: Precision | dict[str, Precision] | None = None,
    inputs: Tensor = IMAGES,
    batch_size: int = 1,
    free_axis: int | None = None,
) -> list[Operator]:
    """Operators of a network, all of whose layers have one precision."""
    graph = trace(network.eval(), (inputs,), () if free_axis is None else ({free_axis: "length"},))
    fold_batch_norm_(graph)
    layers = weight_layers(graph)
    if not isinstance(precision, dict):
        chosen = {} if precision is None else {n: precision.for_layer(la.kind) for n, la in layers.items()}
    else:
        chosen = precision
    insert_activation_quantizers_(graph, chosen)
    return operators(graph, chosen, batch_size, sequence_length=12)


def named(found: list[Operator]) -> list[tuple[str, str]]:
    return [(operator.name, operator.arithmetic) for operator in found]


# --- the key ------------------------------------------------------------------------------------------------

CONVOLUTION = Operator(
    "conv2d", "stem", "stem", ((1, 8, 16, 16),), (1, 24, 8, 8), (24, 8, 3, 3), (2, 2), (1, 1), (1, 1)
)


def test_the_key_ignores_where_an_operator_stands() -> None:
    assert replace(CONVOLUTION, layer="other", module="somewhere").key == CONVOLUTION.key


@pytest.mark.parametrize(
    "change",
    [
        {"name": "conv1d"}, {"inputs": ((2, 8, 16, 16),)}, {"output": (1, 24, 7, 7)}, {"weight": (24, 8, 5, 5)},
        {"stride": (1, 2)}, {"padding": (0, 0)}, {"dilation": (2, 2)}, {"groups": 4}, {"arithmetic": INT8},
        {"kernel": (3, 3)},
    ],
)  # fmt: skip
def test_the_key_tells_all_else_apart(change: dict[str, object]) -> None:
    assert replace(CONVOLUTION, **change).key != CONVOLUTION.key


def test_operators_survive_json() -> None:
    for operator in read(tiny_resnet(), Precision.W8A8):
        assert from_json(json.loads(json.dumps(operator.as_json()))) == operator


# --- reading a graph ----------------------------------------------------------------------------------------


def test_float_network() -> None:
    found = read(tiny_resnet())
    layers = [operator.layer for operator in found if operator.layer]
    assert layers == list(weight_layers(trace(tiny_resnet().eval(), (IMAGES,))))
    assert {operator.arithmetic for operator in found} == {FLOAT32}
    names = [operator.name for operator in found]
    assert "batch_norm" not in names and "flatten" not in names
    # a ReLU after a layer is part of it, one after an addition is not
    assert names.count("relu") == names.count("add") == 3
    stem = found[0]
    assert (stem.inputs, stem.output, stem.weight) == (((1, 1, 8, 8),), (1, 16, 8, 8), (16, 1, 3, 3))
    reduce = next(operator for operator in found if operator.layer == "reduce")
    assert (reduce.output, reduce.stride, reduce.padding, reduce.groups) == ((1, 32, 4, 4), (2, 2), (1, 1), 1)
    assert reduce.module == "reduce"


def test_integer_network_rounds_at_its_ends_only() -> None:
    found = named(read(tiny_resnet(), Precision.W8A8))
    assert found[0] == (QUANTIZE, INT8)
    assert set(found) == {
        (QUANTIZE, INT8), (DEQUANTIZE, INT8), ("conv2d", INT8), ("add", INT8), ("linear", INT8),
        ("adaptive_avg_pool2d", FLOAT32),
    }  # fmt: skip
    assert found.count((QUANTIZE, INT8)) == 2  # of the image, and of what the float pooling gives
    assert found.count((DEQUANTIZE, INT8)) == 1


def test_a_float_layer_between_integer_ones_costs_two_conversions() -> None:
    network = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
    inputs = torch.zeros(2, 4, 8, 8)
    whole = named(read(network, dict.fromkeys(["0", "1", "2"], Precision.W8A8), inputs))
    mixed = named(read(network, {"0": Precision.W8A8, "1": Precision.FLOAT32, "2": Precision.W8A8}, inputs))
    assert whole == [(QUANTIZE, INT8), *[("conv2d", INT8)] * 3]
    assert mixed == [
        (QUANTIZE, INT8), ("conv2d", INT8), (DEQUANTIZE, INT8), ("conv2d", FLOAT32), (QUANTIZE, INT8), ("conv2d", INT8),
    ]  # fmt: skip


def test_weights_alone_in_few_bits_compute_in_float() -> None:
    assert named(read(tiny_resnet(), Precision.W4)) == named(read(tiny_resnet()))
    assert arithmetic_of(Precision.W8A8_DYNAMIC) == INT8_DYNAMIC
    assert arithmetic_of(None) == FLOAT32


def test_layers_that_share_a_dynamic_rounding() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(16, 24), nn.Linear(16, 24)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) * self.right(x)

    found = read(Pair(), Precision.W8A8_DYNAMIC, torch.zeros(2, 6, 16), free_axis=1)
    assert named(found) == [
        (QUANTIZE_DYNAMIC, INT8_DYNAMIC), ("linear", INT8_DYNAMIC), ("linear", INT8_DYNAMIC), ("mul", FLOAT32)
    ]  # fmt: skip
    assert found[1].inputs == ((1, 12, 16),) and found[1].output == (1, 12, 24)


def test_the_batch_is_the_first_axis() -> None:
    assert {operator.output[0] for operator in read(tiny_resnet(), batch_size=7)} == {7}


def test_same_padding_and_dilation() -> None:
    (layer,) = read(nn.Conv2d(1, 4, 3, padding="same", dilation=2))
    assert (layer.padding, layer.dilation, layer.output) == ((2, 2), (2, 2), (1, 4, 8, 8))


# --- other channels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [None, Precision.W8A8])
def test_resized_operators_are_those_of_a_pruned_network(precision: Precision | None) -> None:
    network = tiny_resnet().eval()
    pruned = prune(network, (IMAGES,), {"stage1.1.conv1": 0.5, "stage2.0.conv1": 0.75}, 8, {})
    found = {operator.layer: operator for operator in read(network, precision) if operator.layer}
    real = {operator.layer: operator for operator in read(pruned, precision) if operator.layer}
    assert real["stage1.1.conv1"].weight[0] == 8 and real["stage2.0.conv1"].weight[0] == 8
    for name, operator in real.items():
        inside = operator.weight[1]
        assert found[name].resized(inside, operator.weight[0]).key == operator.key


def test_resizing_an_addition_and_a_linear_layer() -> None:
    addition = Operator("add", "", "", ((1, 16, 8, 8),) * 2, (1, 16, 8, 8))
    assert addition.resized(8, 8).inputs == ((1, 8, 8, 8),) * 2
    assert addition.resized(8, 8).output == (1, 8, 8, 8)
    linear = Operator("linear", "fc", "fc", ((1, 12, 64),), (1, 12, 32), (32, 64))
    assert linear.resized(48, 24) == replace(linear, inputs=((1, 12, 48),), output=(1, 12, 24), weight=(24, 48))
    assert linear.resized() == linear


def test_resizing_a_table_of_embeddings() -> None:
    table = Operator("embedding", "words", "words", ((1, 12),), (1, 12, 64), (500, 64))
    assert table.resized(None, 32) == replace(table, output=(1, 12, 32), weight=(500, 32))


def test_resizing_keeps_to_the_groups() -> None:
    depthwise = Operator("conv2d", "d", "d", ((1, 16, 8, 8),), (1, 16, 8, 8), (16, 1, 3, 3), groups=16)
    smaller = depthwise.resized(8, 8)
    assert (smaller.groups, smaller.weight, smaller.output) == (8, (8, 1, 3, 3), (1, 8, 8, 8))
    assert depthwise.resized(out_channels=8) == depthwise.resized(in_channels=8) == smaller
    grouped = Operator("conv2d", "g", "g", ((1, 16, 8, 8),), (1, 32, 8, 8), (32, 4, 3, 3), groups=4)
    assert grouped.resized(in_channels=8).weight == (32, 2, 3, 3)
    with pytest.raises(ValueError, match="divisible by the groups"):
        grouped.resized(out_channels=30)


def test_another_arithmetic_changes_nothing_else() -> None:
    assert replace(CONVOLUTION.computed_in(INT8), arithmetic=FLOAT32) == CONVOLUTION
