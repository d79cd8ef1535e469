"""Members of shared weights compute what their networks do, and train the shared entries that they use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from networks import Grouped, with_random_norms
from sequences import Encoder
from sequences import task as sequence_task
from torch import Tensor, nn

from autocompress.analysis import analyse
from autocompress.compression.architecture import drop_blocks
from autocompress.compression.elastic import (
    GAUSSIAN_STEP,
    Elastic,
    Member,
    SharedWeights,
    fake_quantize,
    load_member_,
    make_member,
    outputs_of,
    reestimate_,
    run_member,
    with_one_rounded,
)
from autocompress.compression.inner_widths import InnerWidth
from autocompress.compression.pruning import find_groups, kept_units, prune, with_units
from autocompress.errors import TrialFailed
from autocompress.models import freeze, space_labels
from autocompress.plan import Precision


@dataclass
class Case:
    """A base, the network that a plan makes of it before pruning, and what the pruning keeps."""

    base: nn.Module
    network: nn.Module
    inputs: tuple[Tensor, ...]
    kept: dict[str, Tensor]
    inner: Mapping[str, InnerWidth] = field(default_factory=dict)

    def shared(self) -> SharedWeights:
        shared = SharedWeights()
        shared.cover_(self.base)
        return shared

    def member(self, precisions: Mapping[str, Precision] | None = None) -> Member:
        return make_member(self.network, self.inputs, self.kept, self.inner, precisions or {})


def images(rows: int = 2, size: int = 8) -> tuple[Tensor]:
    return (torch.randn(rows, 1, size, size, generator=torch.Generator().manual_seed(2)),)


def residual(resnet20: nn.Module) -> Case:
    network = drop_blocks(resnet20, ("layer1.1", "layer3.2"))
    ratios = {"layer1.0.conv1": 0.5, "layer2.0.conv1": 0.25, "layer2.2.conv1": 0.75, "layer3.1.conv1": 0.5}
    return Case(resnet20, network, images(), kept_units(network, images(), ratios, 4))


def grouped() -> Case:
    torch.manual_seed(3)
    network = with_random_norms(Grouped())
    groups, _ = find_groups(network, images())
    kept = kept_units(network, images(), {group.name: 0.5 for group in groups}, 4)
    assert {"stem", "pointwise"} <= set(kept)
    return Case(network, network, images(), kept)


def encoder() -> Case:
    torch.manual_seed(3)
    base, data = Encoder(2).eval(), sequence_task(numbers=False)
    analysis = analyse(base, data.example_inputs(4), data.axes)
    network = drop_blocks(base, ("layers.1",))
    ratios = {group.name: 0.5 for group in analysis.groups if not group.name.startswith("layers.1.")}
    kinds = {group.kind for group in analysis.groups if group.name in ratios}
    assert {"heads", "mlp"} <= kinds
    inputs = data.example_inputs(2)
    return Case(base, network, inputs, kept_units(network, inputs, ratios, 4, analysis.inner), analysis.inner)


@pytest.fixture(params=["residual", "grouped", "encoder"])
def case(request: pytest.FixtureRequest, resnet20: nn.Module) -> Case:
    makers: dict[str, Callable[[], Case]] = {
        "residual": lambda: residual(resnet20),
        "grouped": grouped,
        "encoder": encoder,
    }
    return makers[request.param]()


def used_entries(case: Case) -> dict[str, Tensor]:
    """For each parameter of the base, which entries a really pruned network is left with: each has its own number."""
    numbered = with_units(_numbered(case.network), case.inputs, case.kept, case.inner)
    left = {name: parameter.detach().long().flatten() for name, parameter in numbered.named_parameters()}
    found = {}
    for name, parameter in case.base.named_parameters():
        used = torch.zeros(parameter.numel(), dtype=torch.bool)
        used[left.get(name, torch.zeros(0, dtype=torch.long))] = True
        found[name] = used.reshape(parameter.shape)
    return found


def _numbered(network: nn.Module) -> nn.Module:
    marked = with_units(network, (), {})
    with torch.no_grad():
        for parameter in marked.parameters():
            assert parameter.numel() < 2**24  # exact in float32
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape))
    return marked


def by_name(shared: SharedWeights) -> dict[str, nn.Parameter]:
    return {key.replace("/", "."): parameter for key, parameter in shared.named_parameters()}


# Outputs


def test_a_member_computes_what_the_pruned_network_does(case: Case) -> None:
    pruned = with_units(case.network, case.inputs, case.kept, case.inner).eval()
    with torch.no_grad():
        whole = case.network.eval()(*case.inputs)
        expected, found = pruned(*case.inputs), run_member(case.shared(), case.member(), case.inputs)
    assert not torch.allclose(whole, expected)  # something was pruned
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_member_follows_the_shared_weights_and_not_those_it_was_made_of(case: Case) -> None:
    shared, member = case.shared(), case.member()
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    network = with_units(case.network, case.inputs, case.kept, case.inner)
    load_member_(network, shared, member)
    own, gathered = outputs_of(shared, network, member, case.inputs)
    torch.testing.assert_close(gathered, own, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        before = with_units(case.network, case.inputs, case.kept, case.inner).eval()(*case.inputs)
    assert not torch.allclose(own, before)


def test_a_member_has_no_weights_of_its_own(case: Case) -> None:
    member = case.member()
    assert all(parameter.is_meta for parameter in member.structure.parameters())


def test_a_network_that_reads_one_tensor_twice_shares_it_twice() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    network[2].weight = network[0].weight
    shared = SharedWeights()
    shared.cover_(network)
    inputs = (torch.randn(2, 6),)
    member = make_member(network, inputs, {}, {}, {})
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.mul_(2.0)
    load_member_(network, shared, member)
    own, gathered = outputs_of(shared, network, member, inputs)
    torch.testing.assert_close(gathered, own)


def test_only_the_named_layers_are_rounded(resnet20: nn.Module) -> None:
    case = residual(resnet20)
    member = case.member({"layer2.1.conv1": Precision.W3A8, "linear": Precision.W4})
    rounded, whole = case.shared().of(member), case.shared().of(member, rounded=False)
    different = {name for name in rounded if not torch.equal(rounded[name], whole[name])}
    assert different == {"layer2.1.conv1.weight", "linear.weight"}
    alone = case.shared().of(with_one_rounded(member, "linear.weight", 2))
    assert {name for name in alone if not torch.equal(alone[name], whole[name])} == {"linear.weight"}
    assert all(len(row.unique()) <= 4 for row in alone["linear.weight"])


# Gradients


def test_the_gradient_reaches_exactly_the_entries_that_are_used(case: Case) -> None:
    shared = case.shared()
    sum(value.sum() for value in shared.of(case.member()).values()).backward()  # type: ignore[union-attr]
    used, found = used_entries(case), by_name(shared)
    assert found.keys() == used.keys()
    for name, parameter in found.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.equal(gradient, used[name].float()), name
    assert 0 < sum(int(u.sum()) for u in used.values()) < sum(u.numel() for u in used.values())


def test_training_a_member_changes_only_what_it_uses(case: Case) -> None:
    shared = case.shared()
    before = {name: parameter.detach().clone() for name, parameter in by_name(shared).items()}
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.5)
    run_member(shared, case.member(), case.inputs, training=True).square().sum().backward()
    optimizer.step()
    used, changed, total = used_entries(case), 0, 0
    for name, parameter in by_name(shared).items():
        differs = parameter.detach() != before[name]
        assert not (differs & ~used[name]).any(), name
        changed, total = changed + int(differs.sum()), total + int(used[name].sum())
    assert changed > 0.6 * total  # not all: what a ReLU or an unknown word holds back


# Model spaces


@pytest.fixture
def members(small_space: Any) -> tuple[nn.Module, nn.Module]:
    """The largest and the smallest member."""
    labels = space_labels(small_space)
    torch.manual_seed(0)
    large, _ = freeze(small_space, lambda label, _options: max(labels[label]))
    small, _ = freeze(small_space, lambda label, _options: min(labels[label]))
    return large.eval(), small.eval()


def test_a_small_member_takes_leading_channels_and_the_kernels_centre(members: tuple[nn.Module, nn.Module]) -> None:
    large, small = members
    shared = SharedWeights()
    shared.cover_(large)
    values = shared.of(make_member(small, images(), {}, {}, {}))
    wide = dict(large.named_parameters())
    kernels = set()
    for name, parameter in small.named_parameters():
        leading = wide[name][tuple(slice(size) for size in parameter.shape[:2])]
        if parameter.dim() == 4:
            margin = (leading.shape[2] - parameter.shape[2]) // 2
            kernels.add((leading.shape[2], parameter.shape[2]))
            leading = leading[:, :, margin : margin + parameter.shape[2], margin : margin + parameter.shape[3]]
        assert torch.equal(values[name], leading), name
    assert (5, 3) in kernels


def test_what_is_known_stays_where_a_tensor_grows(members: tuple[nn.Module, nn.Module]) -> None:
    large, small = members
    shared = SharedWeights()
    shared.cover_(small)
    member = make_member(small, images(), {}, {}, {})
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.add_(1.0)
    before = {name: value.detach().clone() for name, value in shared.of(member).items()}
    shared.cover_(large)
    output = run_member(shared, make_member(large, images(), {}, {}, {}), images())
    assert output.isfinite().all()
    after = shared.of(member)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_tensors_of_one_name_have_one_number_of_dimensions() -> None:
    shared = SharedWeights()
    shared.cover_(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False)))
    before = {name: parameter.detach().clone() for name, parameter in shared.named_parameters()}
    with pytest.raises(TrialFailed, match=r"0\.weight has 2 here and 4 in another member") as caught:
        shared.cover_(nn.Sequential(nn.Linear(3, 4, bias=False)))
    assert caught.value.kind == "sharing"
    assert all(torch.equal(parameter, before[name]) for name, parameter in shared.named_parameters())


def test_a_network_that_fits_changes_nothing(members: tuple[nn.Module, nn.Module]) -> None:
    large, small = members
    shared = SharedWeights()
    shared.cover_(large)
    before = {name: parameter.detach().clone() for name, parameter in shared.named_parameters()}
    shared.cover_(small)
    assert all(torch.equal(parameter, before[name]) for name, parameter in shared.named_parameters())


# Rounding


def weights(rows: int = 32, columns: int = 4096, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", sorted(GAUSSIAN_STEP))
def test_a_row_has_no_more_values_than_its_bits_can_tell_apart(bits: int) -> None:
    rounded = fake_quantize(weights().reshape(32, 64, 8, 8), bits)
    counts = [len(row.unique()) for row in rounded]
    assert max(counts) <= 2**bits
    assert max(counts) > 2 ** (bits - 1)  # and the grid is not coarser


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradients_pass_straight_wherever_the_grid_reaches(bits: int) -> None:
    weight = weights().requires_grad_()
    rounded = fake_quantize(weight, bits)
    upstream = weights(seed=1)
    rounded.backward(upstream)
    assert weight.grad is not None
    scaled = weight.detach() / (weight.detach().square().mean(dim=1, keepdim=True).sqrt() * GAUSSIAN_STEP[bits])
    inside = (scaled > -(2 ** (bits - 1)) + 1e-3) & (scaled < 2 ** (bits - 1) - 1 - 1e-3)
    outside = (scaled < -(2 ** (bits - 1)) - 1e-3) | (scaled > 2 ** (bits - 1) - 1 + 1e-3)
    assert inside.float().mean() > 0.8
    torch.testing.assert_close(weight.grad[inside], upstream[inside])
    assert (weight.grad[outside] == 0).all()


def test_each_bit_less_raises_the_squared_error_about_fourfold() -> None:
    errors = {bits: float((fake_quantize(weights(), bits) - weights()).square().mean()) for bits in GAUSSIAN_STEP}
    for bits in range(3, 8):
        assert 3.0 < errors[bits] / errors[bits + 1] < 4.2


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_step_is_the_best_one_for_normal_weights(bits: int) -> None:
    def error(factor: float) -> float:
        step = GAUSSIAN_STEP[bits] * factor
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        return float(((weights() / step).round().clamp(low, high) * step - weights()).square().mean())

    own = float((fake_quantize(weights(), bits) - weights()).square().mean())
    assert own < 1.2 * min(error(factor) for factor in (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_before_a_norm_is_folded_is_rounding_after(bits: int) -> None:
    """A norm scales whole output channels."""
    weight = weights(16, 72).double().reshape(16, 8, 3, 3)
    scale = torch.linspace(0.01, 30.0, 16).double().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(fake_quantize(weight * scale, bits), fake_quantize(weight, bits) * scale)


def test_a_row_of_zeros_stays_zero() -> None:
    weight = torch.cat([torch.zeros(1, 8), torch.ones(1, 8)])
    assert torch.equal(fake_quantize(weight, 4)[0], torch.zeros(8))


# Batch norm


def test_statistics_are_the_averages_over_the_batches() -> None:
    torch.manual_seed(0)
    network = with_random_norms(
        nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3))
    )
    shared = SharedWeights()
    shared.cover_(network)
    member = make_member(network, images(), {}, {}, {})
    batches = [torch.randn(rows, 1, 8, 8) * scale + 1 for rows, scale in ((4, 1.0), (16, 3.0), (5, 0.5))]
    reestimate_(shared, member, [(batch,) for batch in batches])
    means: list[list[Tensor]] = [[], []]
    spreads: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        for batch in batches:
            x = batch
            for number, (convolution, norm) in enumerate(((network[0], network[1]), (network[2], network[3]))):
                x = convolution(x)
                mean, spread = x.mean((0, 2, 3)), x.var((0, 2, 3))
                means[number].append(mean)
                spreads[number].append(spread)
                biased = x.var((0, 2, 3), unbiased=False)
                x = (x - mean.reshape(-1, 1, 1)) / (biased.reshape(-1, 1, 1) + norm.eps).sqrt()
                x = x * norm.weight.reshape(-1, 1, 1) + norm.bias.reshape(-1, 1, 1)
    for number, place in enumerate(("1", "3")):
        norm = member.structure.get_submodule(place)
        torch.testing.assert_close(norm.running_mean, torch.stack(means[number]).mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, torch.stack(spreads[number]).mean(0), rtol=1e-4, atol=1e-5)
        assert norm.momentum == network.get_submodule(place).momentum
    assert not any(module.training for module in member.structure.modules())


def test_fitting_statistics_leaves_weights_and_the_base_alone(resnet20: nn.Module) -> None:
    case = residual(resnet20)
    shared, before = case.shared(), {name: value.clone() for name, value in resnet20.state_dict().items()}
    kept = {name: parameter.detach().clone() for name, parameter in shared.named_parameters()}
    reestimate_(shared, case.member(), [images(8)])
    assert all(torch.equal(value, before[name]) for name, value in resnet20.state_dict().items())
    assert all(torch.equal(parameter, kept[name]) for name, parameter in shared.named_parameters())


# The order of members


def small_family() -> tuple[SharedWeights, list[Member], Tensor]:
    """Five members of other widths, largest first."""
    torch.manual_seed(0)
    network, inputs = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(2, 4)
    shared = SharedWeights()
    shared.cover_(network)
    kept = [torch.arange(units) for units in (7, 5, 4, 2, 1)]
    return shared, [make_member(network, (inputs,), {"0": units}, {}, {}) for units in kept], inputs


def visited(seed: int, turns: int) -> list[int]:
    shared, members, inputs = small_family()
    elastic = Elastic(shared, members, seed)
    with torch.no_grad():
        own = [run_member(shared, member, (inputs,)) for member in members]
        outputs = [elastic(inputs) for _ in range(turns)]
    return [next(k for k, mine in enumerate(own) if torch.equal(mine, output)) for output in outputs]


def test_the_largest_the_smallest_and_two_random_members_take_turns() -> None:
    order = visited(seed=0, turns=80)
    assert set(order[0::4]) == {0}
    assert set(order[1::4]) == {4}
    assert set(order[2::4] + order[3::4]) == {0, 1, 2, 3, 4}


def test_the_random_turns_follow_from_the_seed() -> None:
    assert visited(seed=1, turns=24) == visited(seed=1, turns=24)
    assert visited(seed=1, turns=24) != visited(seed=2, turns=24)


def test_the_shared_weights_are_all_that_is_trained() -> None:
    shared, members, inputs = small_family()
    elastic = Elastic(shared, members, 0)
    assert {id(p) for p in elastic.parameters()} == {id(p) for p in shared.parameters()}
    elastic.train()(inputs).sum().backward()
    assert any(p.grad is not None for p in shared.parameters())


def test_pruning_with_ratios_is_what_kept_units_say(case: Case) -> None:
    """The units of a member are those that its network is pruned to."""
    ratios = dict.fromkeys(case.kept, 0.5)
    pruned = prune(case.network, case.inputs, ratios, 4, case.inner)
    kept = kept_units(case.network, case.inputs, ratios, 4, case.inner)
    member = make_member(case.network, case.inputs, kept, case.inner, {})
    assert {name: tuple(p.shape) for name, p in pruned.named_parameters()} == {
        name: part.shape for name, part in member.parts.items()
    }
