"""Which blocks of a network can go, taking them out, and handing weights down to a student."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.errors import first_line
from autocompress.layers import call, matrices


@dataclass(frozen=True)
class Block:
    """A module that can be replaced by an identity; ``run`` names the sequence of blocks it stands in."""

    name: str
    run: str


class Skip(nn.Module):
    """Passes its first input on, whatever else it is called with."""

    def forward(self, x: Tensor, *_others: object, **_options: object) -> Tensor:
        """``x``, unchanged; in training a copy, because what comes next may write into it in place."""
        return x.clone() if self.training else x


def find_blocks(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Block], dict[str, str]]:
    """Modules with at least two matrices of weights whose output has the shape of their input.

    Of modules within modules those are taken that stand in a row of their like (layers of an encoder, blocks of
    a stage), the innermost of these; where there is no row, the smallest.

    Args:
        model: the network, in evaluation mode, unchanged by this.
        inputs: one batch of model inputs.

    Returns:
        The blocks in order of execution, and for each one that looked right but cannot go, the reason.
    """
    keeping = _shape_preserving(model, inputs)
    rows = _innermost([name for name in keeping if _has_sibling_of_its_class(model, name)])
    others = [name for name in keeping if not any(_nested(name, row) for row in rows)]
    chosen = {*rows, *_innermost(others)}
    blocks, left_out = [], {}
    for name in keeping:
        if name not in chosen:
            continue
        reason = _dry_run(model, name, inputs)
        if reason is None:
            blocks.append(Block(name, name.rpartition(".")[0]))
        else:
            left_out[name] = reason
    return blocks, left_out


def _innermost(names: list[str]) -> list[str]:
    return [name for name in names if not any(other.startswith(name + ".") for other in names)]


def _nested(name: str, other: str) -> bool:
    """Whether one of two modules is inside the other, or they are the same."""
    return f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.")


def _has_sibling_of_its_class(model: nn.Module, name: str) -> bool:
    parent = model.get_submodule(name.rpartition(".")[0])
    own = type(model.get_submodule(name))
    return sum(type(child) is own for child in parent.children()) > 1


def _shape_preserving(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """Names of composite modules, called once, that keep the shape of their first input; in order of execution."""
    calls: dict[str, list[bool]] = {}
    handles = []
    for name, module in model.named_modules():
        if name and len(matrices(module)) >= 2:

            def record(_m: nn.Module, args: tuple[object, ...], output: object, name: str = name) -> None:
                first = args[0] if args else None
                same = isinstance(first, Tensor) and isinstance(output, Tensor) and first.shape == output.shape
                calls.setdefault(name, []).append(same and first.is_floating_point())  # type: ignore[attr-defined]

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
    """A copy of the network in which the named blocks pass their input on.

    Raises:
        AttributeError: a name is not a module of the network.
    """
    memo = {id(model.get_submodule(name)): Skip() for name in names}  # what goes is not worth copying
    return copy.deepcopy(model, memo)


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
