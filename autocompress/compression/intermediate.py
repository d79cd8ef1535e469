"""What a student can learn from inside its teacher: hidden states and attention relations.

Hidden states are what the blocks put out (Jiao et al. 2020, TinyBERT, section 3.1). Relations are the softmax of
the products of queries with queries, keys with keys and values with values in the last attention (Wang et al.
2021, MiniLMv2, section 3.1); they need no equal widths, so heads may have been taken out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.layers import matrices

MOST_RELATION_HEADS = 12


@dataclass(frozen=True)
class Points:
    """Where to look: blocks in order of execution, and the layers (one or three) that make queries, keys, values."""

    blocks: tuple[str, ...] = ()
    attentions: tuple[tuple[str, ...], ...] = ()

    def within(self, model: nn.Module) -> Points:
        """Those that this network has: blocks that still hold weights, and attentions in them."""
        modules = dict(model.named_modules())
        blocks = tuple(name for name in self.blocks if name in modules and matrices(modules[name]))
        attentions = tuple(names for names in self.attentions if all(name in modules for name in names))
        return Points(blocks, attentions)


@dataclass
class Captured:
    """Outputs of one forward pass: by block, and of the layers of the last attention."""

    blocks: dict[str, Tensor]
    attention: list[Tensor]


@contextmanager
def captured(model: nn.Module, points: Points) -> Iterator[Captured]:
    """Collects the outputs of each forward pass at ``points``."""
    found = Captured({}, [])
    handles = []
    for name in points.blocks:

        def record(_m: nn.Module, _args: object, output: Tensor, name: str = name) -> None:
            found.blocks[name] = output

        handles.append(model.get_submodule(name).register_forward_hook(record))
    for name in points.attentions[-1] if points.attentions else ():
        hook = lambda _m, _args, output: found.attention.append(output)  # noqa: E731
        handles.append(model.get_submodule(name).register_forward_hook(hook))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def counterparts(student: Sequence[str], teacher: Sequence[str]) -> dict[str, str]:
    """For each block that the student kept, the teacher's block whose output its output stands for.

    A kept block also does the work of those that are missing after it, so it answers for the last of them.
    """
    places = [teacher.index(name) for name in student]
    ends = [place - 1 for place in places[1:]] + [len(teacher) - 1]
    return {name: teacher[end] for name, end in zip(student, ends, strict=True)}


def hidden_loss(
    student: Captured, teacher: Captured, pairs: dict[str, str], regressors: nn.ModuleDict | None = None
) -> Tensor:
    """Mean over blocks of the squared distance of the outputs, in units of the teacher's variance.

    Args:
        pairs: teacher's block by student's.
        regressors: maps a student's output to the teacher's width, by ``width_key`` of the block; None for equal widths.
    """
    losses = []
    for own, other in pairs.items():
        mine, target = student.blocks[own].float(), teacher.blocks[other].float()
        if regressors is not None and width_key(own) in regressors:
            mine = regressors[width_key(own)](mine)
        losses.append(F.mse_loss(mine, target) / target.var().clamp_min(1e-6))
    return torch.stack(losses).mean()


def width_key(name: str) -> str:
    """A module's name as a key of ``nn.ModuleDict``, which takes no dots."""
    return name.replace(".", "/")


def relation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Kullback-Leibler divergence of the student's relations from the teacher's, mean over heads and positions.

    Args:
        student: queries, keys and values (batch, sequence, width), or one tensor that holds all three.
        teacher: the same of the teacher; widths may differ.
    """
    own, other = _parts(student), _parts(teacher)
    heads = _relation_heads(own[0].shape[-1], other[0].shape[-1])
    losses = [
        F.kl_div(_relations(mine, heads), _relations(theirs, heads), reduction="none", log_target=True).sum(-1).mean()
        for mine, theirs in zip(own, other, strict=True)
    ]
    return torch.stack(losses).mean()


def _parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(tensors[0].chunk(3, dim=-1)) if len(tensors) == 1 else list(tensors)


def _relation_heads(*widths: int) -> int:
    common = math.gcd(*widths)
    return max(heads for heads in range(1, min(common, MOST_RELATION_HEADS) + 1) if common % heads == 0)


def _relations(x: Tensor, heads: int) -> Tensor:
    """Log-probabilities (batch, heads, sequence, sequence)."""
    split = x.float().reshape(*x.shape[:-1], heads, -1).transpose(-3, -2)
    return F.log_softmax(split @ split.transpose(-1, -2) / math.sqrt(split.shape[-1]), dim=-1)
