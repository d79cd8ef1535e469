"""A pruned network computes what the whole one does once nothing reads the removed channels."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Grouped, tiny_resnet
from torch import Tensor, nn

from autocompress.compression import pruning
from autocompress.compression.architecture import drop_blocks
from autocompress.compression.pruning import find_groups, kept_channels, kept_units, prune, with_units
from autocompress.layers import parameter_count

BLOCKS = [f"layer{stage}.{n}" for stage in (1, 2, 3) for n in range(3)]


def images(size: int = 16) -> tuple[Tensor]:
    return (torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(2)),)


def surviving(whole: Tensor, pruned: Tensor) -> list[int]:
    """Which rows (output channels) of a weight are left, by their values."""
    rows = whole[:, : pruned.shape[1]].flatten(1)
    return [int((rows == row).all(dim=1).nonzero()) for row in pruned.flatten(1)]


def silence_(consumers: list[nn.Module], kept: list[int]) -> None:
    """Let layers ignore the input channels that are not kept."""
    for consumer in consumers:
        gone = [channel for channel in range(consumer.weight.shape[1]) if channel not in kept]
        with torch.no_grad():
            consumer.weight[:, gone] = 0.0


# Equivalence


@settings(max_examples=8)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.4, 0.5, 0.75, 0.9]), min_size=9, max_size=9), st.sampled_from([1, 4, 8]))
def test_pruning_equals_zeroed_channels_in_the_consumer(
    resnet20: nn.Module, ratios: list[float], multiple: int
) -> None:
    groups = {f"{block}.conv1": ratio for block, ratio in zip(BLOCKS, ratios, strict=True)}
    pruned, silenced = prune(resnet20, images(), groups, multiple), copy.deepcopy(resnet20)
    for block in BLOCKS:
        layer, small = resnet20.get_submodule(f"{block}.conv1"), pruned.get_submodule(f"{block}.conv1")
        kept = surviving(layer.weight, small.weight)
        assert len(kept) == kept_channels(layer.out_channels, groups[f"{block}.conv1"], multiple)
        assert kept == sorted(kept)
        silence_([silenced.get_submodule(f"{block}.conv2")], kept)
    with torch.no_grad():
        torch.testing.assert_close(pruned(*images()), silenced(*images()), rtol=1e-4, atol=1e-5)


def test_a_residual_stream_is_pruned_in_all_its_layers_at_once(trained: nn.Module) -> None:
    groups, _ = find_groups(trained, images(8))
    stream = next(group for group in groups if "stem" in group.layers)
    assert {"stem", "stage1.0.conv2", "stage1.1.conv2", "stage1.0.conv1", "stage1.1.conv1", "reduce"} <= set(
        stream.layers
    )
    pruned, silenced = prune(trained, images(8), {stream.name: 0.5}, 1), copy.deepcopy(trained)
    kept = surviving(trained.stem.weight, pruned.stem.weight)
    assert len(kept) == stream.channels // 2
    silence_([silenced.stage1[0].conv1, silenced.stage1[1].conv1, silenced.reduce], kept)
    with torch.no_grad():
        torch.testing.assert_close(pruned(*images(8)), silenced(*images(8)), rtol=1e-4, atol=1e-5)


def test_the_least_important_channels_go(resnet20: nn.Module) -> None:
    network = copy.deepcopy(resnet20)
    block, weak = network.layer2[1], [1, 5, 6, 8, 13, 21, 30, 31]
    with torch.no_grad():
        for tensor in (block.conv1.weight, block.bn1.weight, block.bn1.bias):
            tensor[weak] *= 0.01
        block.conv2.weight[:, weak] *= 0.01
    pruned = prune(network, images(), {"layer2.1.conv1": 0.25}, 1)
    kept = surviving(block.conv1.weight, pruned.layer2[1].conv1.weight)
    assert kept == [channel for channel in range(32) if channel not in weak]


def test_half_the_channels_of_a_block_are_half_its_parameters(resnet20: nn.Module) -> None:
    pruned = prune(resnet20, images(), {"layer3.2.conv1": 0.5}, 8)
    # two 3x3 convolutions of 64 channels and one norm, each halved
    assert parameter_count(resnet20) - parameter_count(pruned) == (2 * 64 * 64 * 9 + 2 * 64) // 2


# Groups


def test_the_stream_through_the_padded_shortcut_is_left_out_and_named(resnet20: nn.Module) -> None:
    groups, left_out = find_groups(resnet20, images())
    assert [group.name for group in groups] == [f"{block}.conv1" for block in BLOCKS]
    assert [group.channels for group in groups] == [16] * 3 + [32] * 3 + [64] * 3
    assert groups[4].layers == ("layer2.1.conv1", "layer2.1.bn1", "layer2.1.conv2")
    assert left_out.keys() == {"conv1", "linear"}
    assert "output" in left_out["linear"]
    assert left_out["conv1"]


def test_every_block_of_resnet56_has_a_prunable_group(resnet56: nn.Module) -> None:
    groups, left_out = find_groups(resnet56, images())
    assert len(groups) == 27
    assert left_out.keys() == {"conv1", "linear"}


@pytest.mark.parametrize("dropped", [("layer1.0", "layer3.2"), ("layer1.0", "layer1.1", "layer1.2")])
def test_groups_outside_dropped_blocks_stay_prunable(resnet20: nn.Module, dropped: tuple[str, ...]) -> None:
    shallow = drop_blocks(resnet20, dropped)
    groups, _ = find_groups(shallow, images())
    assert [group.name for group in groups] == [f"{b}.conv1" for b in BLOCKS if b not in dropped]
    pruned = prune(shallow, images(), {group.name: 0.5 for group in groups}, 8)
    assert pruned(*images()).shape == (2, 10)
    assert all(pruned.get_submodule(group.name).out_channels == group.channels // 2 for group in groups)


def test_all_groups_of_a_network_can_be_pruned_at_once(trained: nn.Module) -> None:
    groups, left_out = find_groups(trained, images(8))
    assert left_out.keys() == {"linear"}
    pruned = prune(trained, images(8), {group.name: 0.75 for group in groups}, 4)
    assert pruned(*images(8)).shape == (2, 10)
    assert all(pruned.get_submodule(group.name).weight.shape[0] == group.channels // 4 for group in groups)


# Which units stay


@pytest.mark.parametrize("multiple", [1, 4])
def test_the_units_that_stay_are_those_that_pruning_leaves(resnet20: nn.Module, multiple: int) -> None:
    ratios = {"layer1.0.conv1": 0.5, "layer2.1.conv1": 0.25, "layer3.2.conv1": 0.75, "layer3.0.conv1": 0.0}
    kept = kept_units(resnet20, images(), ratios, multiple)
    assert set(kept) == {name for name, ratio in ratios.items() if ratio}
    pruned, made = prune(resnet20, images(), ratios, multiple), with_units(resnet20, images(), kept)
    for name, units in kept.items():
        rows = surviving(resnet20.get_submodule(name).weight, pruned.get_submodule(name).weight)
        assert rows == units.tolist() == sorted(units.tolist())
    for (name, first), (_, second) in zip(pruned.named_parameters(), made.named_parameters(), strict=True):
        assert torch.equal(first, second), name


def test_a_group_that_keeps_all_its_units_is_left_out(resnet20: nn.Module) -> None:
    # sixteen channels and a quarter less are twelve, of which the nearest multiple is sixteen
    assert kept_units(resnet20, images(), {"layer1.0.conv1": 0.25, "layer2.0.conv1": 0.0}, 16) == {}


def test_the_units_that_stay_are_the_most_important(resnet20: nn.Module) -> None:
    """By the norm over all that goes with a channel: its filter, its norm and what reads it."""
    block = resnet20.get_submodule("layer2.1")
    with torch.no_grad():
        scores = (
            block.conv1.weight.square().sum((1, 2, 3))
            + block.bn1.weight.square()
            + block.conv2.weight.square().sum((0, 2, 3))
        )
    for ratio in (0.25, 0.5, 0.75):
        kept = kept_units(resnet20, images(), {"layer2.1.conv1": ratio}, 8)["layer2.1.conv1"]
        gone = [channel for channel in range(32) if channel not in kept.tolist()]
        assert scores[kept].min() >= scores[gone].max()


def test_given_units_stay_whatever_their_importance(resnet20: nn.Module) -> None:
    units = torch.tensor([0, 3, 4, 17, 31])
    made = with_units(resnet20, images(), {"layer2.1.conv1": units})
    assert surviving(resnet20.layer2[1].conv1.weight, made.layer2[1].conv1.weight) == units.tolist()


def test_each_group_of_a_convolution_keeps_as_many_channels() -> None:
    torch.manual_seed(0)
    network = Grouped(groups=4).eval()
    with torch.no_grad():
        network.pointwise.weight[:8] *= 10.0  # all the important channels are in the first group
    kept = kept_units(network, images(8), {"pointwise": 0.5}, 4)["pointwise"]
    assert [int(((kept >= start) & (kept < start + 8)).sum()) for start in (0, 8, 16, 24)] == [4, 4, 4, 4]
    with torch.no_grad():
        assert with_units(network, images(8), {"pointwise": kept})(*images(8)).shape == (2, 10)


# Channel counts


@given(st.integers(1, 200), st.floats(0.0, 0.999), st.sampled_from([1, 2, 4, 8, 16]))
def test_what_stays_is_the_nearest_multiple(channels: int, ratio: float, multiple: int) -> None:
    kept = kept_channels(channels, ratio, multiple)
    wanted = channels * (1 - ratio)
    assert min(channels, multiple) <= kept <= channels
    assert kept == channels or kept % multiple == 0
    if channels > multiple and ratio > 0 and multiple < kept < channels:
        assert abs(kept - wanted) <= multiple / 2 + 1e-9


@given(st.integers(1, 200), st.tuples(st.floats(0.0, 0.999), st.floats(0.0, 0.999)), st.sampled_from([1, 4, 8]))
def test_a_higher_ratio_never_keeps_more(channels: int, ratios: tuple[float, float], multiple: int) -> None:
    low, high = sorted(ratios)
    assert kept_channels(channels, high, multiple) <= kept_channels(channels, low, multiple)
    assert kept_channels(channels, 0.0, multiple) == channels


# Side effects


def test_the_input_network_is_unchanged(resnet20: nn.Module) -> None:
    network = copy.deepcopy(resnet20)
    before = copy.deepcopy(network.state_dict())
    find_groups(network, images())
    assert not network.training
    network.train()
    student = prune(network, images(), {"layer1.0.conv1": 0.5}, 8)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert network.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_pruning_is_deterministic(ratio: float) -> None:
    torch.manual_seed(0)
    network = tiny_resnet().eval()
    for layer in (network.stage1[0].conv1, network.stage1[0].conv2):
        nn.init.constant_(layer.weight, 0.1)  # equal scores: ties must break alike
    first, second = (prune(network, images(8), {"stage1.0.conv1": ratio, "stage2.0.conv1": ratio}, 8) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_ratio_of_zero_gives_an_equal_copy(resnet20: nn.Module) -> None:
    copied = prune(resnet20, images(), {"layer1.0.conv1": 0.0}, 8)
    assert copied is not resnet20
    assert copied.layer1[0].conv1.weight.data_ptr() != resnet20.layer1[0].conv1.weight.data_ptr()
    with torch.no_grad():
        assert torch.equal(copied(*images()), resnet20(*images()))


def test_a_ratio_of_no_group_is_an_error(resnet20: nn.Module) -> None:
    with pytest.raises(KeyError, match=r"layer9\.0\.conv1"):
        prune(resnet20, images(), {"layer9.0.conv1": 0.5}, 8)


def test_groups_that_take_too_long_are_left_out(resnet20: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "TIME_LIMIT_S", 1e-6)
    groups, left_out = find_groups(resnet20, images())
    # what comes after it would take as long
    assert groups == []
    assert list(left_out) == ["conv1"]
    assert "longer than" in left_out["conv1"]
