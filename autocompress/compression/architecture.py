"""Which blocks of a network can go, taking them out, and handing weights down to a student."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.errors import first_line
from autocompress.layers import call, weight_layers


@dataclass(frozen=True)
class Block:
    """A module that can be replaced by an identity; ``run`` names the sequence of blocks it stands in."""

    name: str
    run: str


def find_blocks(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Block], dict[str, str]]:
    """The smallest modules with at least two weight layers whose output has the shape of their input.

    Args:
        model: the network, in evaluation mode, unchanged by this.
        inputs: one batch of model inputs.

    Returns:
        The blocks in order of execution, and for each one that looked right but cannot go, the reason.
    """
    shapes = _shape_preserving(model, inputs)
    smallest = [name for name in shapes if not any(other.startswith(name + ".") for other in shapes)]
    blocks, left_out = [], {}
    for name in smallest:
        reason = _dry_run(model, name, inputs)
        if reason is None:
            blocks.append(Block(name, name.rpartition(".")[0]))
        else:
            left_out[name] = reason
    return blocks, left_out


def _shape_preserving(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """Names of composite modules, called once with one tensor, that keep its shape; in order of execution."""
    calls: dict[str, list[bool]] = {}
    handles = []
    for name, module in model.named_modules():
        if name and not isinstance(module, nn.Linear) and len(weight_layers(module)) >= 2:

            def record(_m: nn.Module, args: tuple[object, ...], output: object, name: str = name) -> None:
                same = len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor)
                calls.setdefault(name, []).append(same and args[0].shape == output.shape)  # type: ignore[attr-defined]

            handles.append(module.register_forward_hook(record))
    try:
        with torch.no_grad():
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, keeps in calls.items() if keeps == [True]]


def _dry_run(model: nn.Module, name: str, inputs: tuple[Tensor, ...]) -> str | None:
    """Why the network does not run without the block; None if it does."""
    trial = drop_blocks(model, (name,))
    try:
        with torch.no_grad():
            call(trial, inputs)
    except Exception as error:
        return first_line(error)
    return None


def drop_blocks(model: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """A copy of the network in which the named blocks are identities.

    Raises:
        AttributeError: a name is not a module of the network.
    """
    student = copy.deepcopy(model)
    for name in names:
        student.set_submodule(name, nn.Identity(), strict=True)
    return student


def inherit_weights_(student: nn.Module, base: nn.Module) -> float:
    """Copy into the student what it shares by name with the base: equal shapes, or the leading slices.

    A tensor is inherited if it fits inside the base's in every dimension. A layer wider than the base's
    keeps its own initial values: there is nothing to fill the rest with.

    Returns:
        Share of the student's parameters that were inherited, in [0, 1].
    """
    source = base.state_dict()
    inherited = 0
    parameters = dict(student.named_parameters())
    with torch.no_grad():
        for name, target in student.state_dict().items():
            origin = source.get(name)
            if origin is None or origin.dim() != target.dim():
                continue
            if any(mine > theirs for mine, theirs in zip(target.shape, origin.shape, strict=True)):
                continue
            target.copy_(origin[tuple(slice(size) for size in target.shape)])
            inherited += target.numel() if name in parameters else 0
    return inherited / max(1, sum(parameter.numel() for parameter in parameters.values()))
