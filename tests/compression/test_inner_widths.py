"""Heads and hidden units are found however they are written, and without some the network is one that ignores them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compression.inner_widths import (
    InnerWidth,
    find_inner_widths,
    unit_importance,
    without_units_,
)
from autocompress.compression.pruning import find_groups, prune
from autocompress.layers import trace, weight_layers

WIDTH, HEADS, SIZE, HIDDEN = 12, 4, 6, 10  # the heads together are wider than the stream
X = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))

Core = Callable[[Tensor, Tensor, Tensor], Tensor]


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """With a scale, a mask and a dropout on the way."""
    scores = q @ k.transpose(-1, -2) / SIZE**0.5
    mask = torch.zeros(scores.shape[-1]).masked_fill(torch.arange(scores.shape[-1]) == 1, -1e4)
    return F.dropout(torch.softmax(scores + mask, dim=-1), 0.1, training=False) @ v


def scaled_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax((q * SIZE**-0.5) @ k.transpose(-1, -2), dim=-1) @ v


class Separate(nn.Module):
    """A layer each for queries, keys and values; the number of heads is an attribute, as in most code."""

    def __init__(self, core: Core = kernel, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.size, self.core = HEADS, SIZE, core
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * SIZE, bias=bias) for _ in range(3))
        self.out = nn.Linear(HEADS * SIZE, WIDTH)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.core(self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x)))
        return self.out(mixed.transpose(1, 2).flatten(2))


class FreeOfNumbers(Separate):
    """Knows the size of a head alone."""

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.size)).transpose(1, 2)


class WidthsAsAttributes(Separate):
    """Keeps the width of all heads too, as BERT does."""

    def __init__(self) -> None:
        super().__init__()
        self.all_heads = HEADS * SIZE

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.core(self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x)))
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], self.all_heads))


class FusedByPart(nn.Module):
    """One layer whose output is all queries, then all keys, then all values (ViT, GPT-2)."""

    def __init__(self, core: Core = kernel) -> None:
        super().__init__()
        self.heads, self.core = HEADS, core
        self.qkv, self.out = nn.Linear(WIDTH, 3 * HEADS * SIZE), nn.Linear(HEADS * SIZE, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(self.core(q, k, v).transpose(1, 2).flatten(2))


class FusedByUnit(nn.Module):
    """One layer whose output is each head's query, key and value side by side (BLOOM, GPT-NeoX)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.qkv, self.out = nn.Linear(WIDTH, 3 * HEADS * SIZE), nn.Linear(HEADS * SIZE, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], self.heads, 3 * SIZE).transpose(1, 2).chunk(3, dim=-1)
        return self.out(kernel(q, k, v).transpose(1, 2).flatten(2))


class Addmm(nn.Module):
    """Weights that lie the other way round, as in GPT-2: x @ weight + bias, on matrices."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) * 0.2), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


class FusedOtherWay(nn.Module):
    """GPT-2's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = HEADS * SIZE, HEADS
        self.c_attn, self.c_proj = Addmm(WIDTH, 3 * HEADS * SIZE), Addmm(HEADS * SIZE, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(x).split(self.embed_dim, dim=2)
        q, k, v = (part.view(*x.shape[:2], self.num_heads, SIZE).transpose(1, 2) for part in (q, k, v))
        return self.c_proj(kernel(q, k, v).transpose(1, 2).reshape(*x.shape[:2], self.embed_dim))


class Mlp(nn.Module):
    def __init__(self, layer: type[nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.up, self.down = layer(WIDTH, HIDDEN), layer(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class WrittenOutGelu(Mlp):
    """The tanh form, as older code has it: units that are silent before it are not silent after a constant."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        return self.down(0.5 * h * (1 + torch.tanh(0.79788 * (h + 0.044715 * torch.pow(h, 3)))) + 0.25)


class Gated(nn.Module):
    """SwiGLU, as in LLaMA."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """A block before its norm, as transformers have it."""

    def __init__(self, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), attention
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "separate": Separate,
    "separate without biases": lambda: Separate(bias=False),
    "separate, written out": lambda: Separate(written_out),
    "separate, scaled queries": lambda: Separate(scaled_queries),
    "free of numbers": FreeOfNumbers,
    "widths as attributes": WidthsAsAttributes,
    "fused by part": FusedByPart,
    "fused by part, written out": lambda: FusedByPart(written_out),
    "fused by unit": FusedByUnit,
    "fused, other way round": FusedOtherWay,
}
MLPS: dict[str, Callable[[], nn.Module]] = {
    "plain": Mlp,
    "written out": WrittenOutGelu,
    "gated": Gated,
    "other way round": lambda: Mlp(Addmm),
}


def made(network: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return network().eval()


def found(network: nn.Module, x: Tensor = X) -> tuple[list[InnerWidth], dict[str, str]]:
    return find_inner_widths(network, trace(network, (x,)), (x,))


def ignoring(network: nn.Module, width: InnerWidth, kept: list[int]) -> nn.Module:
    """A copy whose reader has zero weights for all other units; written without the code under test."""
    silenced = copy.deepcopy(network)
    weight = silenced.get_parameter(width.reader).data
    columns = weight if width.reader_in_axis == 1 else weight.T
    for unit in set(range(width.units)) - set(kept):
        columns[:, unit * width.size : (unit + 1) * width.size] = 0.0
    return silenced


@cache
def of_name(name: str) -> tuple[nn.Module, InnerWidth]:
    """A network, not to be changed, and its only width."""
    network = made((ATTENTIONS | MLPS)[name])
    (width,), _ = found(network)
    return network, width


def outputs(network: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return network(x)


# What is found


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_heads_of_an_attention_are_found(name: str) -> None:
    network = made(ATTENTIONS[name])
    (width,), left_out = found(network)
    assert (width.kind, width.units, width.size) == ("heads", HEADS, SIZE)
    assert left_out == {}
    layers = {name for name, module in network.named_modules() if hasattr(module, "weight")}
    assert set(width.layers) == layers


@pytest.mark.parametrize("name", MLPS)
def test_the_hidden_units_of_an_mlp_are_found(name: str) -> None:
    network = made(MLPS[name])
    (width,), left_out = found(network)
    assert (width.kind, width.units, width.size) == ("mlp", HIDDEN, 1)
    assert left_out == {}
    assert set(width.layers) == {name for name, module in network.named_modules() if hasattr(module, "weight")}


def test_a_network_of_blocks_has_the_widths_of_each_in_order() -> None:
    network = made(lambda: nn.Sequential(Block(Separate(), Mlp()), Block(FusedByPart(), Gated()), nn.Linear(WIDTH, 2)))
    widths, left_out = found(network)
    assert [(width.name, width.kind) for width in widths] == [
        ("0.attention.q", "heads"), ("0.mlp.up", "mlp"), ("1.attention.qkv", "heads"), ("1.mlp.gate", "mlp")
    ]  # fmt: skip
    assert left_out == {}


def test_looking_leaves_the_network_as_it_was() -> None:
    network = made(lambda: Block(WidthsAsAttributes(), Gated()))
    before, state = copy.deepcopy(network.state_dict()), outputs(network)
    found(network)
    assert network.attention.heads == HEADS and network.attention.all_heads == HEADS * SIZE
    assert network.attention.q.out_features == HEADS * SIZE
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(outputs(network), state)


def test_widths_survive_their_file() -> None:
    widths, _ = found(made(lambda: Block(WidthsAsAttributes(), Gated())))
    assert [InnerWidth.model_validate_json(width.model_dump_json()) for width in widths] == widths


# Taking units out


@pytest.mark.parametrize("name", [*ATTENTIONS, *MLPS])
@settings(max_examples=10)
@given(data=st.data())
def test_without_units_is_like_ignoring_them_whichever_they_are(name: str, data: st.DataObject) -> None:
    network, width = of_name(name)
    kept = sorted(data.draw(st.sets(st.integers(0, width.units - 1), min_size=1)))
    small = copy.deepcopy(network)
    without_units_(small, width, torch.tensor(kept))
    expected = outputs(ignoring(network, width, kept))
    torch.testing.assert_close(outputs(small), expected, rtol=1e-4, atol=1e-5)
    # any other batch size and length, too
    longer = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        outputs(small, longer), outputs(ignoring(network, width, kept), longer), rtol=1e-4, atol=1e-5
    )
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in network.parameters())
    if len(kept) < width.units:
        assert not torch.allclose(expected, outputs(network), atol=1e-3)


@pytest.mark.parametrize("name", [*ATTENTIONS, *MLPS])
def test_what_is_left_can_be_traced(name: str) -> None:
    network, width = of_name(name)
    small = copy.deepcopy(network)
    without_units_(small, width, torch.tensor([1]))
    assert set(width.layers) == set(weight_layers(trace(small, (X,))))


def test_modules_say_their_new_size() -> None:
    network = made(lambda: Block(WidthsAsAttributes(), Mlp()))
    heads, hidden = found(network)[0]
    without_units_(network, heads, torch.tensor([0, 3, 2]).sort().values)
    without_units_(network, hidden, torch.arange(7))
    attention, mlp = network.attention, network.mlp
    assert (attention.heads, attention.size, attention.all_heads) == (3, SIZE, 3 * SIZE)
    assert (attention.v.out_features, attention.out.in_features) == (3 * SIZE, 3 * SIZE)
    assert (mlp.up.out_features, mlp.down.in_features) == (7, 7)


# What cannot be taken from


class TalkingHeads(Separate):
    """Heads that read each other's scores (Shazeer et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = nn.Linear(HEADS, HEADS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        scores = self.talk((q @ k.transpose(-1, -2)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out((torch.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2))


class CompetingHeads(FreeOfNumbers):
    """Heads whose scores are relative to those of all heads: any number of them runs, and answers otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        scores = q @ k.transpose(-1, -2)
        mixed = torch.softmax(scores - scores.mean(dim=1, keepdim=True), dim=-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class FixedNumbers(Separate):
    """The number of heads stands in the code."""

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], 4, 6).transpose(1, 2)


@pytest.mark.parametrize(
    ("network", "reason"),
    [(TalkingHeads, ""), (CompetingHeads, "does not answer like one that ignores them"), (FixedNumbers, "")],
)
def test_heads_that_cannot_go_are_left_out_with_the_reason(network: type[nn.Module], reason: str) -> None:
    widths, left_out = found(made(network))
    assert widths == []
    assert list(left_out) == ["q"]
    assert left_out["q"] and reason in left_out["q"] and "\n" not in left_out["q"]


def test_a_reason_is_given_for_each_of_a_row_of_like_blocks() -> None:
    widths, left_out = found(made(lambda: nn.Sequential(*(Block(TalkingHeads(), Mlp()) for _ in range(3)))))
    assert [width.kind for width in widths] == ["mlp"] * 3
    assert left_out.keys() == {f"{n}.attention.q" for n in range(3)}
    assert len(set(left_out.values())) == 1


def test_a_single_head_stays() -> None:
    class OneHead(Separate):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.size = 1, HEADS * SIZE

    widths, left_out = found(made(OneHead))
    assert widths == [] and left_out == {"q": "it has one unit"}


class NormedHidden(Mlp):
    """A norm over the hidden units: each depends on all."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x)))


class ReadTwice(Mlp):
    """Hidden units that something else reads."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.up(x))
        return self.down(h) + h.mean(dim=-1, keepdim=True)


class WithOwnGains(Mlp):
    """A parameter for each hidden unit that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.rand(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)) * self.gains)


class SharedDown(Mlp):
    """A weight that is read twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x))) + self.down(torch.tanh(self.up(x)))


@pytest.mark.parametrize("network", [NormedHidden, ReadTwice, WithOwnGains, SharedDown])
def test_hidden_units_with_other_readers_or_owners_are_no_width(network: type[nn.Module]) -> None:
    assert found(made(network))[0] == []


# Importance


@pytest.mark.parametrize("name", [*ATTENTIONS, *MLPS])
def test_units_with_zero_weights_are_least_important(name: str) -> None:
    whole, width = of_name(name)
    network = copy.deepcopy(whole)
    gone = [1, width.units - 1]
    empty = copy.deepcopy(network)
    without_units_(empty, width, torch.tensor([u for u in range(width.units) if u not in gone]))
    with torch.no_grad():
        for producer in width.producers:
            rows = network.get_parameter(producer.weight).movedim(producer.out_axis, 0)
            rows[producer.channels(torch.tensor(gone), width.units, width.size)] = 0.0
    network = ignoring(network, width, [u for u in range(width.units) if u not in gone])
    scores = unit_importance(network, width)
    assert scores.shape == (width.units,)
    assert (scores[gone] == 0).all() and int((scores > 0).sum()) == width.units - 2
    # the squares of all weights, each counted once
    weights = [*(p.weight for p in width.producers), width.reader]
    total = sum(float(network.get_parameter(weight).detach().square().sum()) for weight in weights)
    assert float(scores.sum()) == pytest.approx(total, rel=1e-5)
    # pruning takes those that count least: the same network as when they were taken by number
    inner = {width.name: width}
    pruned = prune(network, (X,), {width.name: 2 / width.units}, 1, inner)
    assert {n: p.shape for n, p in pruned.named_parameters()} == {n: p.shape for n, p in empty.named_parameters()}
    torch.testing.assert_close(outputs(pruned), outputs(network), rtol=1e-4, atol=1e-5)


# Beside other channels


def test_other_groups_leave_the_inner_widths_alone() -> None:
    network = made(lambda: nn.Sequential(nn.Linear(7, WIDTH), Block(Separate(), Gated()), nn.Linear(WIDTH, 2)))
    x = torch.randn(3, 5, 7)
    inner, _ = found(network, x)
    assert [width.name for width in inner] == ["1.attention.q", "1.mlp.gate"]
    groups, left_out = find_groups(network, (x,), inner)
    # the stream, which every layer reads or writes; and the outputs of the network, which stay
    assert [group.name for group in groups] == ["0"]
    assert {"0", "1.attention.out", "1.mlp.down", "1.norm2"} <= set(groups[0].layers)
    assert left_out.keys() == {"2"}
    ratios = {"0": 0.5, **{width.name: 0.5 for width in inner}}
    pruned = prune(network, (x,), ratios, 4, {width.name: width for width in inner})
    assert pruned[0].out_features == 8  # the multiple of 4 nearest to 6
    # heads stay one by one, hidden units in multiples
    assert (pruned[1].attention.heads, pruned[1].mlp.up.out_features) == (2, 4)
    assert outputs(pruned, x).shape == (3, 5, 2)
