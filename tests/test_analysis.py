"""The analysis names what can change, and ranks blocks by what the outputs lose."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor, nn

from autocompress.analysis import Analysis, analyse
from autocompress.compression.architecture import drop_blocks


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor]:
    return (torch.randn(24, 1, 16, 16, generator=torch.Generator().manual_seed(4)),)


@pytest.fixture(scope="module")
def analysis(resnet20: nn.Module, inputs: tuple[Tensor]) -> Analysis:
    return analyse(resnet20, inputs)


def test_everything_that_can_change_is_named(analysis: Analysis, resnet20: nn.Module) -> None:
    expected = [(n, m.weight.numel()) for n, m in resnet20.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [(layer.name, layer.parameters) for layer in analysis.layers] == expected
    assert [layer.kind for layer in analysis.layers] == ["convolution"] * 19 + ["linear"]
    assert [run.name for run in analysis.runs] == ["layer1", "layer2", "layer3"]
    assert [sorted(run.blocks) for run in analysis.runs] == [
        ["layer1.0", "layer1.1", "layer1.2"],
        ["layer2.1", "layer2.2"],
        ["layer3.1", "layer3.2"],
    ]
    assert [group.name for group in analysis.groups] == [f"layer{s}.{n}.conv1" for s in (1, 2, 3) for n in range(3)]
    assert analysis.parameters == sum(parameter.numel() for parameter in resnet20.parameters())


def test_what_is_left_out_is_named_with_the_reason(analysis: Analysis) -> None:
    assert analysis.left_out.keys() == {"group conv1", "group linear"}
    assert all(analysis.left_out.values())


def test_blocks_are_ranked_by_the_divergence_of_the_outputs(
    analysis: Analysis, resnet20: nn.Module, inputs: tuple[Tensor]
) -> None:
    with torch.no_grad():
        whole = log_softmax(resnet20(*inputs).numpy().astype(float), axis=1)
        for run in analysis.runs:
            assert list(run.sensitivities) == sorted(run.sensitivities)
            for block, sensitivity in zip(run.blocks, run.sensitivities, strict=True):
                without = log_softmax(drop_blocks(resnet20, (block,))(*inputs).numpy().astype(float), axis=1)
                expected = (2.718281828459045**whole * (whole - without)).sum(axis=1).mean()
                assert sensitivity == pytest.approx(expected, rel=1e-3)


def test_a_block_that_does_nothing_is_missed_least(resnet20: nn.Module, inputs: tuple[Tensor]) -> None:
    network = copy.deepcopy(resnet20)
    with torch.no_grad():
        network.layer1[2].bn2.weight.zero_()
        network.layer1[2].bn2.bias.zero_()
    run = analyse(network, inputs).runs[0]
    assert run.blocks[0] == "layer1.2"
    assert run.sensitivities[0] == pytest.approx(0.0, abs=1e-7)


def test_blocks_can_be_left_alone(resnet20: nn.Module, inputs: tuple[Tensor], analysis: Analysis) -> None:
    without = analyse(resnet20, inputs, with_blocks=False)
    assert without.runs == ()
    assert without.groups == analysis.groups


def test_a_plain_network_has_groups_and_no_blocks() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    found = analyse(network, (torch.randn(5, 4),))
    assert found.runs == ()
    assert [(group.name, group.channels, group.layers) for group in found.groups] == [
        ("0", 8, ("0", "2")),
        ("2", 6, ("2", "4")),
    ]
    assert found.left_out.keys() == {"group 4"}


def test_an_analysis_survives_its_file_and_leaves_the_network_alone(resnet20: nn.Module, inputs: tuple[Tensor]) -> None:
    network = copy.deepcopy(resnet20)
    before = copy.deepcopy(network.state_dict())
    analysis = analyse(network, inputs)
    assert Analysis.model_validate_json(analysis.model_dump_json()) == analysis
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
