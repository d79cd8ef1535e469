"""A task with two inputs that are no images: nothing in it may assume them."""

import dataclasses

import pytest
import torch
from torch import Tensor

from autocompress.data.task import Split, TaskData, Tensors


def _split(first: int, rows: int) -> Split:
    tokens = torch.arange(first, first + rows)[:, None] * torch.tensor([1, 10])
    return Split((tokens, tokens + 1), torch.arange(first, first + rows) % 3)


def _prepare(inputs: Tensors) -> Tensors:
    tokens, mask = inputs
    return tokens.float() / 2, mask.float()


def _augment(inputs: Tensors, indices: Tensor, view: int) -> Tensors:
    tokens, mask = inputs
    return tokens + 1000 * view + indices[:, None], mask


@pytest.fixture
def task() -> TaskData:
    train = _split(0, 7)
    return TaskData(
        train=train,
        calibration=train.take(torch.tensor([1, 4])),
        validation=_split(7, 5),
        test=_split(12, 3),
        class_names=("a", "b", "c"),
        input_names=("tokens", "mask"),
        preprocessing={"kind": "tokens"},
        prepare=_prepare,
        augment=_augment,
    )


def test_take_keeps_inputs_and_labels_together_in_the_given_order() -> None:
    taken = _split(0, 7).take(torch.tensor([5, 2]))
    assert len(taken) == 2
    assert taken.inputs[0].tolist() == [[5, 50], [2, 20]]
    assert taken.inputs[1].tolist() == [[6, 51], [3, 21]]
    assert taken.labels.tolist() == [2, 2]


def test_batches_cover_a_split_once_and_in_order(task: TaskData) -> None:
    batches = list(task.batches(task.validation, 2))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([labels for _, labels in batches]), task.validation.labels)
    for position, whole in enumerate(_prepare(task.validation.inputs)):
        assert torch.equal(torch.cat([inputs[position] for inputs, _ in batches]), whole)


def test_training_inputs_are_prepared_after_augmentation_which_knows_index_and_view(task: TaskData) -> None:
    tokens, mask = task.training_inputs(torch.tensor([6, 0]), view=3)
    assert tokens.tolist() == [[(6 + 3006) / 2, (60 + 3006) / 2], [1500.0, 1500.0]]
    assert torch.equal(mask, _prepare(task.train.take(torch.tensor([6, 0])).inputs)[1])


def test_model_inputs_are_not_augmented(task: TaskData) -> None:
    tokens, _ = task.model_inputs(task.test, torch.tensor([2]))
    assert tokens.tolist() == [[7.0, 70.0]]


@pytest.mark.parametrize("batch", [1, 7, 16])
def test_example_inputs_have_the_asked_batch_and_repeat_when_train_is_smaller(task: TaskData, batch: int) -> None:
    inputs = task.example_inputs(batch)
    assert len(inputs) == len(task.input_names)
    assert inputs[0][:, 0].tolist() == [(row % 7) / 2 for row in range(batch)]


def test_a_task_is_frozen(task: TaskData) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.train = task.test  # type: ignore[misc]
