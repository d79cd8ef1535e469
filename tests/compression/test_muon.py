"""Muon for filters: orthogonal updates, PyTorch's own on matrices, and which parameters it is for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.compression.distillation import FILTER_RATE, Schedule, train_
from autocompress.compression.muon import FilterMuon, mixes_channels
from autocompress.data.task import Split, TaskData
from autocompress.plan import DistillationSpec


def bank(*shape: int) -> nn.Parameter:
    parameter = nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))
    parameter.grad = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return parameter


@pytest.mark.parametrize("shape", [(32, 16, 3, 3), (64, 8, 1, 1), (24, 12, 5)])
def test_a_first_step_is_orthogonal(shape: tuple[int, ...]) -> None:
    """All singular values of the update are near one, those of its gradient are not."""
    filters = bank(*shape)
    before = filters.detach().clone()
    assert filters.grad is not None
    gradient = torch.linalg.svdvals(filters.grad.flatten(1))
    FilterMuon([filters], lr=0.1, weight_decay=0.0).step()
    rows, columns = before.flatten(1).shape
    update = (before - filters.detach()).flatten(1) / 0.1 / max(1.0, rows / columns) ** 0.5
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.5 and values.max() < 1.5
    assert values.max() / values.min() < gradient.max() / gradient.min()


def test_banks_take_the_steps_of_their_matrices() -> None:
    filters = bank(16, 8, 3, 3).detach().contiguous(memory_format=torch.channels_last)
    filters = nn.Parameter(filters)
    matrix = nn.Parameter(filters.detach().flatten(1).clone())
    ours = FilterMuon([filters], lr=0.02, weight_decay=0.1)
    theirs = torch.optim.Muon([matrix], lr=0.02, weight_decay=0.1)
    for step in range(4):
        filters.grad = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(step))
        matrix.grad = filters.grad.flatten(1)
        ours.step()
        theirs.step()
    assert torch.equal(filters.detach().flatten(1), matrix.detach())
    assert filters.is_contiguous(memory_format=torch.channels_last)


def test_a_bank_without_a_gradient_stays() -> None:
    filters, other = bank(16, 8, 3, 3), bank(16, 8, 3, 3)
    filters.grad = None
    before, moved = filters.detach().clone(), other.detach().clone()
    FilterMuon([filters, other], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(filters, before) and not torch.equal(other, moved)


def test_filters_over_enough_channels_are_meant() -> None:
    assert mixes_channels(torch.zeros(16, 8, 3, 3)) and mixes_channels(torch.zeros(16, 8, 5))
    assert not mixes_channels(torch.zeros(16, 3, 3, 3))  # the first layer of images
    assert not mixes_channels(torch.zeros(16, 1, 3, 3))  # depthwise
    assert not mixes_channels(torch.zeros(16, 64))  # linear
    assert not mixes_channels(torch.zeros(16))


def test_all_but_filters_train_as_under_sgd() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(16, 3, 6, 6), torch.arange(16) % 3
    split = Split((images,), labels)
    data = TaskData(
        train=split, calibration=split, validation=split, test=split, class_names=("a", "b", "c"),
        input_names=("image",), preprocessing={}, prepare=lambda inputs: inputs, augment=lambda inputs, *_: inputs,
    )  # fmt: skip
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    after: dict[str, dict[str, Tensor]] = {}
    for optimizer in ("sgd", "muon"):
        student = copy.deepcopy(network)
        schedule = Schedule(1, 0.1, 16, 0.0, 0, optimizer)
        train_(student, data, None, DistillationSpec(), schedule, views=1)
        after[optimizer] = student.state_dict()
    same = {name for name, value in after["sgd"].items() if torch.equal(value, after["muon"][name])}
    assert set(after["sgd"]) - same == {"2.weight"}
    moved = (after["muon"]["2.weight"] - network.state_dict()["2.weight"]).flatten(1)
    assert 0 < torch.linalg.svdvals(moved).max() < 1.5 * 0.1 * FILTER_RATE
