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


# Inputs of a fixed length

LENGTHS = (3, 7, 1, 7, 5)


def _tokens(pad: int = 0, names: tuple[str, ...] = ("ids", "attention_mask")) -> TaskData:
    """Texts of these lengths: ids from 10 * example + 1 on, padded to 7; their mask; a float of fixed shape."""
    columns = torch.arange(7)
    mask = (columns < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.where(mask.bool(), 10 * torch.arange(5)[:, None] + columns + 1, torch.tensor(pad))
    inputs = {"ids": ids, "attention_mask": mask, "types": torch.zeros_like(ids), "weight": torch.arange(5.0)[:, None]}
    split = Split(tuple(inputs[name] for name in names), torch.arange(5))
    return TaskData(
        train=split,
        calibration=split,
        validation=split,
        test=split,
        class_names=tuple("abcde"),
        input_names=names,
        preprocessing={},
        prepare=lambda rows: rows,
        augment=lambda rows, indices, view: rows,
        by_name=True,
        free_axes={name: {1: "sequence"} for name in names if name != "weight"},
    )


@pytest.mark.parametrize("batch", [1, 3, 11])
@pytest.mark.parametrize("length", [1, 4, 7, 20])
def test_fixed_inputs_have_the_asked_shape(batch: int, length: int) -> None:
    ids, mask, weight = _tokens(names=("ids", "attention_mask", "weight")).fixed_inputs(batch, length)
    assert ids.shape == mask.shape == (batch, length)
    assert weight.shape == (batch, 1)


def test_fixed_inputs_are_the_longest_first_and_cut_exactly() -> None:
    ids, mask = _tokens().fixed_inputs(5, 4)
    assert ids.tolist() == [
        [11, 12, 13, 14],
        [31, 32, 33, 34],
        [41, 42, 43, 44],
        [1, 2, 3, 0],
        [21, 0, 0, 0],
    ]
    assert torch.equal(mask, (ids > 0).long())


def test_fixed_inputs_repeat_where_examples_are_shorter_and_fewer() -> None:
    ids, mask = _tokens().fixed_inputs(6, 10)
    assert ids[0].tolist() == [11, 12, 13, 14, 15, 16, 17, 11, 12, 13]
    assert mask[0].all()
    assert torch.equal(ids[5], ids[0])


def test_inputs_of_one_example_stay_together() -> None:
    ids, mask, weight = _tokens(names=("ids", "attention_mask", "weight")).fixed_inputs(5, 7)
    assert torch.equal((ids[:, 0] - 1) / 10, weight[:, 0])
    assert mask.sum(1).tolist() == [LENGTHS[int(number)] for number in weight[:, 0]]


@pytest.mark.parametrize("pad", [0, 1, 99])
@pytest.mark.parametrize("names", [("ids", "attention_mask", "types"), ("types", "ids", "attention_mask")])
def test_the_mask_says_what_is_longest_whatever_the_padding_and_the_order(pad: int, names: tuple[str, ...]) -> None:
    inputs = dict(zip(names, _tokens(pad, names).fixed_inputs(1, 7), strict=True))
    assert inputs["ids"].tolist() == [[11, 12, 13, 14, 15, 16, 17]]
    assert inputs["attention_mask"].all()


def test_without_free_axes_fixed_inputs_are_the_first_examples(task: TaskData) -> None:
    for fixed, example in zip(task.fixed_inputs(4, 99), task.example_inputs(4), strict=True):
        assert torch.equal(fixed, example)
