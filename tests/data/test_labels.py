"""Labels of arrays and tables: which are classes, in which order, and what is refused."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal

from autocompress.data.labels import class_numbers, column_targets, named_classes, numbered_names


def _columns(**splits: list[Any]) -> dict[str, pd.Series]:
    return {split: pd.Series(values, name="label") for split, values in splits.items()}


# Arrays


@pytest.mark.parametrize(
    "values",
    [
        np.array([0, 2, 1]),
        np.array([0, 2, 1], dtype=np.uint8),
        np.array([0.0, 2.0, 1.0]),
        np.array([[0], [2], [1]], dtype=np.int32),
    ],
)
def test_whole_numbers_of_any_type_are_class_numbers(values: np.ndarray) -> None:
    numbers = class_numbers(values, "train")
    assert numbers.dtype == torch.int64
    assert numbers.tolist() == [0, 2, 1]


def test_booleans_are_the_classes_0_and_1() -> None:
    assert class_numbers(np.array([True, False]), "train").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (np.array(["cat", "dog"]), ["class numbers", "train has 'cat'", "number the classes", "task.loss"]),
        (np.array(["0", "1"]), ["class numbers", "train has '0'"]),
        (np.array([0.0, 1.5, 1.0]), ["class numbers", "train has 1.5", "task.loss"]),
        (np.array([0, -1]), ["train has -1", "number the classes"]),
        (np.array([0.0, np.nan]), ["train has nan"]),
        (np.array([[0, 1], [1, 0]]), ["one class number per example", "shape [2, 2]", "task.loss"]),
        (np.array(3), ["one class number per example", "shape []"]),
        (np.array([0, None]), ["class numbers", "type object"]),
        (np.array([1j]), ["class numbers", "type complex128"]),
    ],
)
def test_other_labels_of_arrays_get_one_line(values: np.ndarray, parts: list[str]) -> None:
    refusal(lambda: class_numbers(values, "train"), parts)


def test_numbers_name_themselves_unless_names_are_given() -> None:
    labels = {"train": torch.tensor([2, 0, 1]), "test": torch.tensor([1])}
    assert numbered_names(labels, None) == ("0", "1", "2")
    assert numbered_names(labels, ["a", "b", "c", "d"]) == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("train", "test", "names", "parts"),
    [
        ([0, 1], [2], None, ["class numbers 0...1", "test has 2", "add examples of the class to train"]),
        ([0, 1, 2], [0], ["a", "b"], ["class numbers 0...1", "train has 2", "the class names"]),
        ([0, 3], [0], None, ["without a gap", "has 3 and no 1", "number them anew"]),
        ([1, 2], [1], None, ["without a gap", "has 2 and no 0", "number them anew"]),
        ([0, 10**12], [0], None, ["without a gap", "and no 1"]),
    ],
)
def test_class_numbers_without_a_gap_and_with_names(
    train: list[int], test: list[int], names: list[str] | None, parts: list[str]
) -> None:
    labels = {"train": torch.tensor(train), "test": torch.tensor(test)}
    refusal(lambda: numbered_names(labels, names), parts)


# Tables


def test_texts_are_sorted_into_class_names() -> None:
    names, numbers = named_classes(_columns(train=["pos", "neg", "mixed", "neg"], test=["pos"]))
    assert names == ("mixed", "neg", "pos")
    assert numbers["train"].tolist() == [2, 1, 0, 1]
    assert numbers["test"].tolist() == [2]


@pytest.mark.parametrize(
    "values", [["10", "2", "0", "2"], [10, 2, 0, 2], [10.0, 2.0, 0.0, 2.0], ["10.0", "2", "0", "2"]]
)
def test_whole_numbers_are_sorted_as_numbers_however_they_are_written(values: list[Any]) -> None:
    names, numbers = named_classes(_columns(train=values))
    assert names == ("0", "2", "10")
    assert numbers["train"].tolist() == [2, 1, 0, 1]
    assert numbers["train"].dtype == torch.int64


def test_numbers_from_0_stay_what_they_are() -> None:
    names, numbers = named_classes(_columns(train=["0", "1", "2"], validation=[2, 0]))
    assert names == ("0", "1", "2")
    assert [numbers[split].tolist() for split in ("train", "validation")] == [[0, 1, 2], [2, 0]]


def test_booleans_and_words_for_numbers_are_texts() -> None:
    assert named_classes(_columns(train=[True, False]))[0] == ("False", "True")
    assert named_classes(_columns(train=["nan", "inf", "NA"]))[0] == ("NA", "inf", "nan")
    assert named_classes({"train": pd.Series(["b", "a"], dtype="category", name="label")})[0] == ("a", "b")


@given(st.lists(st.text(st.characters(codec="utf-8", categories=["L"]), min_size=1), min_size=1))
def test_class_names_and_numbers_give_the_texts_back(texts: list[str]) -> None:
    if all(text.lower() in ("nan", "inf", "infinity") for text in texts):
        return
    names, numbers = named_classes(_columns(train=texts))
    assert list(names) == sorted(set(texts))
    assert [names[number] for number in numbers["train"]] == texts


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        (
            _columns(train=["0", "1"], test=["pos"]),
            ["all numbers or all texts", "train has 0, test has 'pos'", "one way"],
        ),
        (_columns(train=["pos", "neg"], test=[1]), ["all numbers or all texts", "train has 'pos', test has 1"]),
        (_columns(train=["1", "two"]), ["all numbers or all texts", "train has '1' and 'two' in column 'label'"]),
        (_columns(train=["0.5", "1"]), ["are whole", "train has 0.5 in column 'label'", "task.loss"]),
        (_columns(train=[0.25, 1.0]), ["are whole", "train has 0.25"]),
        (_columns(train=["a", "", " "]), ["every row has a label", "2 of 3 rows of train", "first row 2", "add it"]),
        (_columns(train=["a", None]), ["every row has a label", "1 of 2 rows of train", "first row 2"]),
        (_columns(train=[1.0, float("nan")]), ["every row has a label", "first row 2"]),
        (_columns(train=["a", "b"], test=["a", "c"]), ["those of train", "test has 'c' in column 'label'", "add such"]),
        (_columns(train=[0, 1], validation=[7]), ["those of train", "validation has 7"]),
    ],
)
def test_other_columns_of_labels_get_one_line(columns: dict[str, pd.Series], parts: list[str]) -> None:
    refusal(lambda: named_classes(columns), parts)


@pytest.mark.parametrize("values", [[1, 2.5], ["1", "2.5"]])
def test_targets_of_a_column_are_float32(values: list[Any]) -> None:
    targets = column_targets(pd.Series(values, name="score"), "train")
    assert targets.dtype == torch.float32
    assert targets.tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (["1", "high"], ["targets are finite numbers", "train has 'high' in column 'score'", "remove task.loss"]),
        (["1", ""], ["every row has a label", "first row 2"]),
    ],
)
def test_targets_that_are_no_numbers_get_one_line(values: list[Any], parts: list[str]) -> None:
    refusal(lambda: column_targets(pd.Series(values, name="score"), "train"), parts)
