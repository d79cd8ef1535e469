"""Muon for the filters of convolutions.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks": the momentum of a matrix is made
orthogonal before it is applied, so that all directions learn alike. PyTorch's takes matrices; a filter bank
(out, in, height, width) is one of out rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LEAST_INPUTS = 8
"""Input channels below which the rows of a bank are too few numbers to be turned: first layers, depthwise layers."""


def mixes_channels(parameter: Tensor) -> bool:
    """Whether a parameter is a bank of filters (out, in, ...) over enough input channels."""
    return parameter.dim() > 2 and parameter.shape[1] >= LEAST_INPUTS


class FilterMuon(torch.optim.Muon):
    """:class:`torch.optim.Muon` for banks of filters, each as a matrix of its own.

    Args:
        banks: parameters (out, in, ...).
        lr: learning rate.
        weight_decay: decoupled from the gradient, in units of the rate.
    """

    def __init__(self, banks: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        self._banks = list(banks)
        self._matrices = [nn.Parameter(bank.detach().flatten(1).clone()) for bank in self._banks]
        super().__init__(self._matrices, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of every bank that has a gradient."""
        for bank, matrix in zip(self._banks, self._matrices, strict=True):
            matrix.grad = None if bank.grad is None else bank.grad.flatten(1)
        loss = super().step(closure)  # type: ignore[no-untyped-call]
        for bank, matrix in zip(self._banks, self._matrices, strict=True):
            bank.copy_(matrix.view_as(bank))
        return loss
