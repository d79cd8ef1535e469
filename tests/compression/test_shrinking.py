"""What a smaller network takes over from a trained one computes what the trained one does without the rest."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from benches import make_bench
from ladders import with_inner
from networks import tiny_resnet, with_random_norms
from sequences import Encoder
from sequences import task as sequence_task
from torch import Tensor, nn

from autocompress.compression.architecture import drop_blocks
from autocompress.compression.pruning import prune
from autocompress.compression.shrinking import shrunken_state
from autocompress.data.task import TaskData
from autocompress.models import space_labels
from autocompress.pipeline import build_network, take_over
from autocompress.plan import ArchitectureSpec, Plan, PruningSpec


def images() -> tuple[Tensor]:
    return (torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)),)


def outputs(network: nn.Module, state: dict[str, Tensor]) -> Tensor:
    network.load_state_dict(state)
    with torch.no_grad():
        found: Tensor = network.eval()(*images())
    return found


@pytest.fixture
def other() -> nn.Module:
    """Weights that are not those from which the smaller networks are built."""
    torch.manual_seed(5)
    return with_random_norms(tiny_resnet())


def test_the_channels_that_matter_to_the_trained_network_stay(trained: nn.Module, other: nn.Module) -> None:
    """The smaller network chose its channels by other weights; only its shape counts."""
    group, weak = "stage1.1.conv1", [0, 1, 4, 6, 9, 10, 13, 15]
    block = other.get_submodule("stage1.1")
    with torch.no_grad():
        for tensor in (block.conv1.weight, block.bn1.weight, block.bn1.bias):
            tensor[weak] *= 0.01
        block.conv2.weight[:, weak] *= 0.01
    smaller = prune(trained, images(), {group: 0.5}, 8)
    state = shrunken_state(other, smaller, [group, "stage1.0.conv1"], images(), {}, {})
    assert state is not None
    silenced = copy.deepcopy(other)
    with torch.no_grad():
        silenced.get_submodule("stage1.1.conv2").weight[:, weak] = 0.0
        expected = silenced(*images())
    torch.testing.assert_close(outputs(smaller, state), expected, rtol=1e-4, atol=1e-5)


def test_blocks_that_are_gone_take_nothing_with_them(trained: nn.Module, other: nn.Module) -> None:
    smaller = drop_blocks(trained, ("stage1.1", "stage2.0"))
    state = shrunken_state(other, smaller, [], images(), {}, {})
    assert state is not None
    with torch.no_grad():
        expected = drop_blocks(other, ("stage1.1", "stage2.0"))(*images())
    torch.testing.assert_close(outputs(smaller, state), expected)


def test_what_has_more_takes_nothing(trained: nn.Module) -> None:
    group = "stage1.0.conv1"
    narrow, shallow = prune(trained, images(), {group: 0.5}, 8), drop_blocks(trained, ("stage1.1",))
    for smaller in (narrow, shallow):
        assert shrunken_state(smaller, copy.deepcopy(trained), [group], images(), {}, {}) is None
    assert shrunken_state(narrow, shallow, [group], images(), {}, {}) is None


def test_a_plan_takes_over_from_a_plan_that_was_pruned_and_lacked_blocks(trained: nn.Module, digits: TaskData) -> None:
    bench = make_bench(trained, digits)
    before = Plan(
        architecture=ArchitectureSpec(dropped_blocks=("stage1.1",)),
        pruning=PruningSpec(ratios={"stage1.0.conv1": 0.0, "stage2.0.conv1": 0.25}),
    )
    after = Plan(
        architecture=ArchitectureSpec(dropped_blocks=("stage1.0", "stage1.1")),
        pruning=PruningSpec(ratios={"stage2.0.conv1": 0.5}),
    )
    first = build_network(bench, before)
    state = take_over(bench, after, before, first.state_dict())
    assert state is not None
    # magnitudes of the base choose a part of what they chose before
    network = build_network(bench, after)
    assert state.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(state[name], value)
    assert take_over(bench, before, after, network.state_dict()) is None
    same = take_over(bench, before, before, first.state_dict())
    assert same is not None and all(torch.equal(same[name], value) for name, value in first.state_dict().items())


def test_a_shallower_member_of_a_model_space_takes_the_first_blocks(
    trained: nn.Module, digits: TaskData, small_space: Any
) -> None:
    bench = make_bench(trained, digits, small_space)
    labels = space_labels(small_space)
    largest = {label: max(options) for label, options in labels.items()}
    smallest = {label: max(options) if "kernel" in label else min(options) for label, options in labels.items()}
    before, after = (Plan(architecture=ArchitectureSpec(family="space", choices=c)) for c in (largest, smallest))
    first = build_network(bench, before)
    state = take_over(bench, after, before, first.state_dict())
    assert state is not None
    network = build_network(bench, after)
    network.load_state_dict(state)
    with torch.no_grad():
        assert torch.isfinite(network.eval()(*digits.example_inputs(2))).all()
    assert take_over(bench, before, after, network.state_dict()) is None


def test_heads_and_hidden_units_shrink_too() -> None:
    torch.manual_seed(1)
    bench = with_inner(Encoder(2).eval(), sequence_task(numbers=False))
    names = list(bench.inner)
    assert names
    before = Plan(pruning=PruningSpec(ratios=dict.fromkeys(names, 0.25)))
    after = Plan(pruning=PruningSpec(ratios=dict.fromkeys(names, 0.5)))
    first = build_network(bench, before)
    state = take_over(bench, after, before, first.state_dict())
    assert state is not None
    network = build_network(bench, after)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(state[name], value)
