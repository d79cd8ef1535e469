"""The blocks that go are those that keep their input's shape; a student gets the weights that fit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compression.architecture import drop_blocks, find_blocks, inherit_weights_


def images(size: int = 16) -> tuple[Tensor]:
    return (torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(2)),)


def expected_blocks(depth: int) -> list[str]:
    """All blocks but those that halve the image."""
    return [f"layer{stage}.{n}" for stage in (1, 2, 3) for n in range(depth) if stage == 1 or n > 0]


# Finding and dropping blocks


@pytest.mark.parametrize(("name", "depth"), [("resnet20", 3), ("resnet56", 9)])
def test_blocks_are_exactly_the_shape_preserving_ones(name: str, depth: int, request: Any) -> None:
    blocks, left_out = find_blocks(request.getfixturevalue(name), images())
    assert [block.name for block in blocks] == expected_blocks(depth)
    assert {block.run for block in blocks} == {"layer1", "layer2", "layer3"}
    assert all(block.name.startswith(block.run + ".") for block in blocks)
    assert left_out == {}


@pytest.mark.parametrize("block", expected_blocks(3))
def test_dropping_a_block_equals_a_zero_residual_branch(block: str, resnet20: nn.Module) -> None:
    silenced = copy.deepcopy(resnet20)
    norm = silenced.get_submodule(f"{block}.bn2")
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.zero_()
        without = drop_blocks(resnet20, (block,))(*images())
        # the block's input has passed a ReLU, so the ReLU after the addition changes nothing
        assert torch.equal(without, silenced(*images()))
        assert not torch.allclose(without, resnet20(*images()))


def test_blocks_dropped_together_are_those_dropped_in_turn(resnet20: nn.Module) -> None:
    names = ("layer1.0", "layer1.2", "layer3.1")
    together, in_turn = drop_blocks(resnet20, names), resnet20
    for name in names:
        in_turn = drop_blocks(in_turn, (name,))
    assert together.state_dict().keys() == in_turn.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(together(*images()), in_turn(*images()))


def test_the_network_that_is_searched_stays_as_it_was(resnet20: nn.Module) -> None:
    before = copy.deepcopy(resnet20.state_dict())
    find_blocks(resnet20, images())
    student = drop_blocks(resnet20, ("layer2.1",))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in resnet20.state_dict().items())
    assert not any(module._forward_hooks for module in resnet20.modules())


class Pair(nn.Module):
    """Two layers that keep the shape of (n, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.gain = nn.Linear(4, 4), nn.Linear(4, 4), 2.0

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + self.second(torch.relu(self.first(x))) * scale


class Awkward(nn.Module):
    """Blocks that look alike and cannot all go."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.read, self.twice, self.with_argument = Pair(), Pair(), Pair(), Pair()
        self.single = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(x)
        x = self.read(x) * self.read.gain
        x = self.twice(self.twice(x))
        return self.single(self.with_argument(x, 0.5))


def test_blocks_that_cannot_go_are_left_out_with_the_reason() -> None:
    blocks, left_out = find_blocks(Awkward().eval(), (torch.randn(3, 4),))
    # called twice: not a block; fewer than two layers: not one either
    assert [(block.name, block.run) for block in blocks] == [("plain", ""), ("with_argument", "")]
    assert list(left_out) == ["read"]
    assert "gain" in left_out["read"]


def test_a_block_with_further_arguments_passes_its_first_one_on() -> None:
    network, x = Awkward().eval(), torch.randn(3, 4)
    without = drop_blocks(network, ("with_argument",))
    with torch.no_grad():
        before = network.single(network.twice(network.twice(network.read(network.plain(x)) * network.read.gain)))
        assert torch.equal(without(x), before)


class Mlp(Pair):
    """Of another class than what stands beside it."""


class Layer(nn.Module):
    """Two modules that keep the shape, in one that does: a layer of an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Pair(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.attention(x))


class Encoder(nn.Module):
    """Keeps the shape as a whole; layers in a row stand in a module that stands beside a lone block."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.before = Pair()
        self.body = nn.ModuleList(Layer() for _ in range(layers))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        for layer in self.body:
            x = layer(x)
        return self.head(x)


def test_layers_in_a_row_are_blocks_and_what_is_in_them_is_not() -> None:
    blocks, left_out = find_blocks(Encoder(3).eval(), (torch.randn(2, 4),))
    assert [(block.name, block.run) for block in blocks] == [
        ("before", ""), ("body.0", "body"), ("body.1", "body"), ("body.2", "body")
    ]  # fmt: skip
    assert left_out == {}


def test_where_there_is_no_row_the_smallest_modules_are_blocks() -> None:
    blocks, _ = find_blocks(Encoder(1).eval(), (torch.randn(2, 4),))
    assert [block.name for block in blocks] == ["before", "body.0.attention", "body.0.mlp"]


def test_an_unknown_block_is_an_error(resnet20: nn.Module) -> None:
    with pytest.raises(AttributeError):
        drop_blocks(resnet20, ("layer1.7",))


# Inheriting weights


@given(st.tuples(st.integers(1, 5), st.integers(1, 5)), st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_a_layer_inherits_the_leading_slice_if_it_fits_inside(mine: tuple[int, int], theirs: tuple[int, int]) -> None:
    student, base = nn.Linear(*mine), nn.Linear(*theirs)
    before = copy.deepcopy(student.state_dict())
    share = inherit_weights_(student, base)
    (inputs, outputs), (base_inputs, base_outputs) = mine, theirs
    fits = {"weight": inputs <= base_inputs and outputs <= base_outputs, "bias": outputs <= base_outputs}
    expected = {
        "weight": base.weight[:outputs, :inputs] if fits["weight"] else before["weight"],
        "bias": base.bias[:outputs] if fits["bias"] else before["bias"],
    }
    assert all(torch.equal(value, expected[name]) for name, value in student.state_dict().items())
    inherited = inputs * outputs * fits["weight"] + outputs * fits["bias"]
    assert share == pytest.approx(inherited / (inputs * outputs + outputs))


def test_inheriting_everything_gives_the_same_network(resnet20: nn.Module) -> None:
    student = copy.deepcopy(resnet20)
    for parameter in student.parameters():
        nn.init.normal_(parameter)
    assert inherit_weights_(student, resnet20) == 1.0
    with torch.no_grad():
        assert torch.equal(student.eval()(*images()), resnet20(*images()))


def test_layers_of_other_names_or_dimensions_keep_their_own_weights() -> None:
    base = nn.Sequential(nn.Conv1d(2, 2, 3), nn.BatchNorm1d(2))
    base[1].running_mean.fill_(3.0)
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    own = student[0].weight.clone()
    share = inherit_weights_(student, base)
    assert torch.equal(student[0].weight, own)
    assert torch.equal(student[0].bias, base[0].bias)
    assert torch.equal(student[1].running_mean, base[1].running_mean)
    # 2 of the first bias and 4 of the norm, of 6 + 4 + 6; buffers are not parameters
    assert share == pytest.approx(6 / 16)


def test_a_model_space_member_inherits_the_classifier_and_the_stem(resnet20: nn.Module, small_space: Any) -> None:
    from autocompress.models import freeze

    picked = {"stem.width": 8, "stage1.depth": 0}
    member, _ = freeze(small_space, lambda label, options: picked.get(label, options[0]))
    share = inherit_weights_(member, resnet20)
    assert torch.equal(member.conv1.weight, resnet20.conv1.weight[:8])
    assert torch.equal(member.linear.weight, resnet20.linear.weight[:, :24])
    assert 0.0 < share < 1.0
