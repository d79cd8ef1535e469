"""Shared weights: networks of many shapes and bit-widths whose parameters are parts of one set.

A member's parameters are one differentiable gather from the shared ones, so training a member trains all that
overlap with it, and whatever can be pruned is elastic without being rewritten (Yu et al. 2019, Slimmable Neural
Networks; Cai et al. 2020, Once-for-All; Yu et al. 2020, BigNAS). Members of a model space share weights by name:
each takes the first channels and the centre of the kernels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from autocompress.compression.inner_widths import InnerWidth
from autocompress.compression.pruning import with_units
from autocompress.errors import TrialFailed
from autocompress.layers import call
from autocompress.plan import Precision

SEPARATOR = "/"
"""In the names of shared parameters, where a module's names cannot have dots."""

GAUSSIAN_STEP = {2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041, 7: 0.0569, 8: 0.0308}
"""Step of the uniform grid with the least squared error, in units of the root mean square of a row of normally
distributed weights (Max 1960, table II). A grid that is searched or learned would cost more than the step."""

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Positions = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Part:
    """Where a member's parameter lies in the shared one.

    ``positions`` are the indices along the first two axes, None for the first ones; along the further axes
    (kernels) it is the centre. ``bits`` say how finely the member rounds it; None where it does not.
    """

    shape: tuple[int, ...]
    positions: Positions = (None, None)
    bits: int | None = None

    def of(self, shared: Tensor) -> Tensor:
        """The member's values, differentiable in the shared ones, rounded as the member rounds them."""
        for axis, size in enumerate(self.shape):
            own = self.positions[axis] if axis < 2 else None
            if own is not None:
                shared = shared.index_select(axis, own.to(shared.device))
            elif size < shared.shape[axis]:
                first = 0 if axis < 2 else (shared.shape[axis] - size) // 2
                shared = shared.narrow(axis, first, size)
        return shared if self.bits is None else fake_quantize(shared, self.bits)


def fake_quantize(weight: Tensor, bits: int) -> Tensor:
    """Rounded to a grid per output channel that follows from its root mean square; gradients pass through.

    A batch norm scales whole output channels, so rounding before it is folded is rounding after.
    """
    with torch.no_grad():
        inner = tuple(range(1, weight.dim()))
        step = weight.square().mean(dim=inner, keepdim=True).sqrt().clamp_min(1e-12) * GAUSSIAN_STEP[bits]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scaled = (weight / step).clamp(low, high)
    return (scaled + (scaled.round() - scaled).detach()) * step


@dataclass
class Member:
    """A network without weights of its own: its structure, its buffers, and where its parameters lie."""

    structure: nn.Module
    parts: dict[str, Part]

    def buffers_to_(self, device: torch.device) -> None:
        """Move the statistics to where the shared weights are."""
        for buffer in self.structure.buffers():
            if buffer.device != device:
                buffer.data = buffer.data.to(device)


def make_member(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    kept: Mapping[str, Tensor],
    inner: Mapping[str, InnerWidth],
    precisions: Mapping[str, Precision],
) -> Member:
    """The member that a network becomes with the given units and precisions.

    Args:
        network: before pruning.
        inputs: two rows of model inputs.
        kept: units that stay, by group, as :func:`~autocompress.compression.pruning.kept_units` gives them.
        inner: the network's inner widths by name.
        precisions: by layer.
    """
    structure = with_units(network, inputs, kept, inner)
    positions = _positions(network, inputs, kept, inner) if kept else {}
    bits = {_weight_of(structure, layer): precision.weight_bits for layer, precision in precisions.items()}
    parts = {}
    for name, parameter in structure.named_parameters():
        parts[name] = Part(tuple(parameter.shape), positions.get(name, (None, None)), bits.get(name))
    _forget_values_(structure)
    return Member(structure, parts)


def _forget_values_(network: nn.Module) -> None:
    """Leave only the shapes of a network's parameters; what was tied stays tied."""
    empty: dict[int, nn.Parameter] = {}
    for name, parameter in list(network.named_parameters(remove_duplicate=False)):
        if id(parameter) not in empty:
            empty[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"))
        _set_parameter_(network, name, empty[id(parameter)])


def _weight_of(network: nn.Module, layer: str) -> str:
    """A layer's name is its weight's, but for a trailing ``.weight``."""
    names = dict(network.named_parameters())
    return layer if layer in names else f"{layer}.weight"


def _positions(
    network: nn.Module, inputs: tuple[Tensor, ...], kept: Mapping[str, Tensor], inner: Mapping[str, InnerWidth]
) -> dict[str, Positions]:
    """What is left of a network whose parameters hold their own indices: for each axis, which ones stayed."""
    found: list[dict[str, Tensor]] = []
    for axis in (0, 1):
        marked = copy.deepcopy(network)
        with torch.no_grad():
            for parameter in marked.parameters():
                if parameter.dim() > axis:
                    shape = [1] * parameter.dim()
                    shape[axis] = -1
                    parameter.copy_(torch.arange(parameter.shape[axis]).reshape(shape).expand_as(parameter))
        left = with_units(marked, inputs, kept, inner)
        found.append({name: p.detach() for name, p in left.named_parameters() if p.dim() > axis})
    sizes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    return {
        name: (
            _along(found[0][name], 0, sizes[name]),
            _along(found[1][name], 1, sizes[name]) if name in found[1] else None,
        )
        for name in found[0]
    }


def _along(marked: Tensor, axis: int, size: tuple[int, ...]) -> Tensor | None:
    """Indices along an axis; None where all stayed."""
    if marked.shape[axis] == size[axis]:
        return None
    rows = marked.movedim(axis, 0)
    return rows.reshape(len(rows), -1)[:, 0].round().long()


def _set_parameter_(model: nn.Module, name: str, value: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, value)


class SharedWeights(nn.Module):
    """Parameters of all members by name, each as large as the largest member's."""

    def cover_(self, network: nn.Module) -> None:
        """Make room for a network's parameters; what is new starts as the network's own values.

        Where a tensor grows, the new part is drawn with the mean and the spread of the network's.

        Raises:
            TrialFailed: a tensor has another number of dimensions than that of the same name.
        """
        for name, parameter in network.named_parameters():
            key, own = name.replace(".", SEPARATOR), parameter.detach()
            known = self._parameters.get(key)
            if known is None:
                self.register_parameter(key, nn.Parameter(own.clone()))
            elif known.dim() != own.dim():
                raise TrialFailed(
                    "sharing",
                    f"tensors that share weights have one number of dimensions; {name} has {own.dim()} here and "
                    f'{known.dim()} in another member; give the layers two names, or use engine = "plain"',
                )
            elif any(a < b for a, b in zip(known.shape, own.shape, strict=True)):
                shape = [max(sizes) for sizes in zip(known.shape, own.shape, strict=True)]
                grown = torch.empty(shape).normal_(float(own.mean()), float(own.std()) if own.numel() > 1 else 0.0)
                Part(tuple(own.shape)).of(grown).copy_(own)
                Part(tuple(known.shape)).of(grown).copy_(known.detach())
                self.register_parameter(key, nn.Parameter(grown))

    def load_(self, state: Mapping[str, Tensor]) -> None:
        """Take the tensors of a state as parameters."""
        for key, value in state.items():
            self.register_parameter(key, nn.Parameter(value))

    def of(self, member: Member, rounded: bool = True) -> dict[str, Tensor]:
        """A member's parameters by name, rounded as it rounds them or not at all."""
        found = {}
        for name, part in member.parts.items():
            shared = self._parameters[name.replace(".", SEPARATOR)]
            assert shared is not None
            found[name] = (part if rounded else Part(part.shape, part.positions)).of(shared)
        return found


class Elastic(nn.Module):
    """All members as one network to train: each forward in training is that of the next member.

    The sandwich rule of Yu and Huang 2019 (Universally Slimmable Networks) in turn instead of in one step:
    largest, smallest, two random members; the optimiser's momentum averages over them.
    """

    def __init__(self, shared: SharedWeights, members: list[Member], seed: int) -> None:
        super().__init__()
        self.shared = shared
        self._members = members  # largest first; a plain list, because they have no weights to train or to move
        self._turn = 0
        self._generator = torch.Generator().manual_seed(seed)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The next member's outputs."""
        return run_member(self.shared, self._next(), inputs, training=self.training)

    def _next(self) -> Member:
        turn, self._turn = self._turn % 4, self._turn + 1
        if turn < 2:
            return self._members[-turn]
        return self._members[int(torch.randint(len(self._members), (1,), generator=self._generator))]


def run_member(shared: SharedWeights, member: Member, inputs: tuple[Tensor, ...], training: bool = False) -> Tensor:
    """A member's outputs."""
    member.structure.train(training)
    member.buffers_to_(inputs[0].device)
    output: Tensor = functional_call(member.structure, shared.of(member), inputs)
    return output


def with_one_rounded(member: Member, name: str, bits: int) -> Member:
    """The member with one parameter rounded to so many bits and all others not at all."""
    parts = {own: replace(part, bits=bits if own == name else None) for own, part in member.parts.items()}
    return Member(member.structure, parts)


def reestimate_(shared: SharedWeights, member: Member, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Fit the member's batch-norm statistics to its weights, in place (Yu and Huang 2019, section 3.3)."""
    norms = [module for module in member.structure.modules() if isinstance(module, _NORMS)]
    if not norms:
        return
    member.structure.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
        norm.train()
    weights = shared.of(member)
    with torch.no_grad():
        for inputs in batches:
            functional_call(member.structure, weights, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    member.structure.eval()


def load_member_(network: nn.Module, shared: SharedWeights, member: Member) -> None:
    """Give a network of the member's shape the member's weights, not rounded, and its statistics."""
    state = {name: value.detach() for name, value in shared.of(member, rounded=False).items()}
    network.load_state_dict(state | dict(member.structure.named_buffers()), strict=False)


def outputs_of(
    shared: SharedWeights, network: nn.Module, member: Member, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """What a network and its member without rounding put out: equal where sharing works."""
    with torch.no_grad():
        own = call(network.eval(), inputs)
        member.structure.eval()
        gathered: Tensor = functional_call(member.structure, shared.of(member, rounded=False), inputs)
    return own, gathered
