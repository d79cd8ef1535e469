"""Arrays against what a task promises: types, shapes, normalisation; and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from refusals import refusal

from autocompress.config import DataSection
from autocompress.data.arrays import Arrays, array_task
from autocompress.data.task import TaskData

GENERATOR = np.random.default_rng(0)
LABELS = np.arange(60) % 3


def _task(
    inputs: dict[str, Any],
    labels: Any = LABELS,
    by_name: bool = False,
    class_names: list[str] | None = None,
    classification: bool = True,
    **options: Any,
) -> TaskData:
    config = DataSection(source="npz:x", **options)
    return array_task({"train": Arrays(inputs, labels)}, by_name, class_names, config, 0, classification)


def _given(splits: dict[str, Arrays], classification: bool = True) -> TaskData:
    return array_task(splits, False, None, DataSection(source="npz:x"), 0, classification)


def _floats(*shape: int) -> np.ndarray:
    return GENERATOR.normal(size=shape)


# Types


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.float64, torch.float32),
        (np.float32, torch.float32),
        (np.float16, torch.float32),
        (np.int64, torch.int64),
        (np.int32, torch.int32),
        (np.int16, torch.int64),
        (np.uint32, torch.int64),
        (np.uint8, torch.int64),
        (np.dtype(">f8"), torch.float32),
        (np.dtype(">i4"), torch.int32),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.int8, torch.int64),
        (torch.uint8, torch.int64),
    ],
)
def test_floats_become_float32_and_integers_stay_integers(stored: Any, expected: torch.dtype) -> None:
    values = np.arange(60 * 4).reshape(60, 4) % 100
    x = torch.from_numpy(values).to(stored) if isinstance(stored, torch.dtype) else values.astype(stored)
    task = _task({"input": x}, validation_fraction=0.1, test_fraction=0.1)
    (inputs,) = task.example_inputs(5)
    assert inputs.dtype == expected
    rows = {tuple(row) for row in values.tolist()}
    assert all(tuple(row) in rows for row in task.train.inputs[0].to(torch.int64).tolist())


def test_read_only_arrays_and_lists_are_taken() -> None:
    frozen = _floats(60, 2).astype(np.float32)
    frozen.flags.writeable = False
    task = _task({"input": frozen}, labels=LABELS.tolist())
    assert len(task.train) + len(task.validation) + len(task.test) == 60
    assert _task({"input": frozen.tolist()}).train.inputs[0].dtype == torch.float32


def test_examples_keep_their_labels() -> None:
    x = np.stack([np.arange(60), LABELS], axis=1).astype(np.float64)
    task = _task({"input": x})
    for split in (task.train, task.validation, task.test, task.calibration):
        assert torch.equal(split.inputs[0][:, 1].long(), split.labels)


# Names


def test_one_input_by_position_and_several_by_name() -> None:
    one = _task({"input": _floats(60, 4)})
    assert (one.input_names, one.by_name, one.class_names) == (("input",), False, ("0", "1", "2"))
    ids = GENERATOR.integers(0, 9, (60, 5))
    two = _task({"ids": ids, "weights": _floats(60, 5)}, by_name=True, class_names=["a", "b", "c"])
    assert (two.input_names, two.by_name, two.class_names) == (("ids", "weights"), True, ("a", "b", "c"))
    assert [x.dtype for x in two.example_inputs(2)] == [torch.int64, torch.float32]
    assert two.preprocessing["inputs"]["weights"] == {"dtype": "float32", "shape": [5]}


def test_the_order_of_inputs_is_that_of_train() -> None:
    first, second = _floats(6, 2), _floats(6, 3)
    labels = np.array([0, 1] * 3)
    given = {
        "train": Arrays({"a": first, "b": second}, labels),
        "validation": Arrays({"b": second, "a": first}, labels),
        "test": Arrays({"a": first, "b": second}, labels),
    }
    task = _given(given)
    assert [x.shape[1] for x in task.validation.inputs] == [2, 3]


# Images


@pytest.mark.parametrize(("shape", "stored"), [((60, 6, 5), (1, 6, 5)), ((60, 3, 6, 5), (3, 6, 5))])
def test_uint8_of_three_or_four_dimensions_are_pixels(shape: tuple[int, ...], stored: tuple[int, ...]) -> None:
    pixels = GENERATOR.integers(0, 256, shape, dtype=np.uint8)
    channels = stored[0]
    mean, std = [0.4] * channels, [0.2] * channels
    task = _task({"input": pixels}, mean=mean, std=std, augment="crop")
    assert task.train.inputs[0].shape[1:] == stored
    (inputs,) = task.model_inputs(task.train, torch.arange(4))
    expected = (task.train.inputs[0][:4].numpy() / 255 - 0.4) / 0.2
    np.testing.assert_allclose(inputs.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert task.preprocessing["divide_by"] == 255
    assert task.input_names == ("input",)


def test_images_under_a_name_are_given_by_it() -> None:
    task = _task({"pixel_values": np.zeros((60, 3, 4, 4), np.uint8)}, by_name=True)
    assert (task.input_names, task.by_name) == (("pixel_values",), True)


def test_float_images_are_normalised_as_they_are() -> None:
    images = _floats(60, 2, 4, 4)
    task = _task({"input": images}, mean=[0.5, -1.0], std=[2.0, 4.0])
    (inputs,) = task.model_inputs(task.train, torch.arange(3))
    shift, scale = np.array([0.5, -1.0])[:, None, None], np.array([2.0, 4.0])[:, None, None]
    np.testing.assert_allclose(inputs.numpy(), (task.train.inputs[0][:3].numpy() - shift) / scale, rtol=1e-5, atol=1e-6)
    assert task.preprocessing["mean"] == [0.5, -1.0]


def test_float_images_are_augmented_and_left_alone_without_normalisation() -> None:
    task = _task({"input": _floats(60, 2, 6, 6)}, augment="crop-flip")
    assert torch.equal(task.example_inputs(3)[0], task.train.inputs[0][:3])
    assert not torch.equal(task.training_inputs(torch.arange(3), view=1)[0], task.train.inputs[0][:3])


# Targets that are no classes


def test_targets_of_any_shape_are_kept() -> None:
    targets = _floats(60, 2, 3)
    task = _task({"input": _floats(60, 4)}, targets, classification=False)
    assert task.class_names == ()
    assert task.train.labels.shape[1:] == (2, 3)
    assert task.train.labels.dtype == torch.float32
    assert _task({"input": _floats(60, 4)}, np.arange(60), classification=False).train.labels.dtype == torch.int64


# What is refused


@pytest.mark.parametrize(
    ("inputs", "labels", "options", "parts"),
    [
        ({"input": np.array(["a"] * 60)}, LABELS, {}, ["are numbers", "input of train has type <U1", "encode"]),
        ({"input": np.array([{}] * 60)}, LABELS, {}, ["are numbers", "type object"]),
        ({"input": [[1], [1, 2]] * 30}, LABELS, {}, ["arrays or tensors", "input of train cannot", "convert"]),
        ({"input": np.ones((60, 2), bool)}, LABELS, {}, ["integers or floats", "type bool", "convert it"]),
        ({"input": torch.ones(60, 2) * 1j}, LABELS, {}, ["integers or floats", "type complex64"]),
        ({"input": _floats(59, 2)}, LABELS, {}, ["one row per example", "[59, 2], the labels [60]", "as many"]),
        ({"input": np.float32(3)}, LABELS, {}, ["one row per example", "shape []"]),
        ({"input": _floats(60, 2)}, np.array(["x", "y"] * 30), {}, ["class numbers", "train has 'x'"]),
        ({"input": _floats(60, 2)}, np.arange(60) % 2 + 0.5, {}, ["class numbers", "0.5", "task.loss"]),
        ({"input": _floats(60, 2)}, LABELS * 2, {}, ["without a gap", "has 4 and no 1"]),
        ({"input": _floats(60, 2)}, LABELS * 0, {}, ["two classes or more", "only '0'"]),
        (
            {"input": np.zeros((60, 8, 8, 3), np.uint8)},
            LABELS,
            {},
            ["1, 3 or 4 channels", "[60, 8, 8, 3]", "transpose"],
        ),
        (
            {"a": np.zeros((60, 3, 8, 8), np.uint8), "b": _floats(60, 2)},
            LABELS,
            {},
            ["uint8 are the only input", "one of several", "float32"],
        ),
        ({"input": _floats(60, 2)}, LABELS, {"mean": [0], "std": [1]}, ["data.mean", "input [2] of float32", "remove"]),
        ({"input": _floats(60, 2)}, LABELS, {"augment": "crop"}, ["data.augment", "input [2]", "remove"]),
        (
            {"a": _floats(60, 2, 4, 4), "b": _floats(60, 2)},
            LABELS,
            {"mean": [0, 0], "std": [1, 1]},
            ["one input of images", "a [2, 4, 4] of float32, b [2] of float32"],
        ),
        (
            {"input": GENERATOR.integers(0, 9, (60, 2, 4, 4))},
            LABELS,
            {"mean": [0, 0], "std": [1, 1]},
            ["one input of images", "of int64"],
        ),
        ({"input": _floats(60, 2, 4, 4)}, LABELS, {"mean": [0], "std": [1]}, ["one number per channel", "have 2"]),
    ],
)
def test_arrays_that_are_no_task_get_one_line(
    inputs: dict[str, Any], labels: Any, options: dict[str, Any], parts: list[str]
) -> None:
    refusal(lambda: _task(inputs, labels, **options), parts)


def _spoilt(value: float, rows: list[int]) -> np.ndarray:
    x = _floats(60, 3)
    x[rows, 1] = value
    return x


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_inputs_that_are_not_finite_are_counted_by_split(value: float) -> None:
    good = Arrays({"input": _floats(60, 3)}, LABELS)
    bad = Arrays({"input": _spoilt(value, [3, 9, 20])}, LABELS)
    given = {"train": good, "validation": good, "test": good}
    for split in given:
        parts = ["finite numbers", f"3 of 60 examples of {split} have NaN or infinity in input", "repair"]
        refusal(lambda split=split: _given(given | {split: bad}), parts)  # type: ignore[misc]


def test_targets_that_are_not_finite_are_counted() -> None:
    targets = np.full(60, np.nan)
    parts = ["42 of 42 examples of train have NaN or infinity in the targets"]
    refusal(lambda: _task({"input": _floats(60, 2)}, targets, classification=False), parts)


def test_infinities_of_both_signs_do_not_cancel() -> None:
    x = _floats(60, 2)
    x[7] = [np.inf, -np.inf]
    refusal(lambda: _task({"input": x}), ["1 of"])


@pytest.mark.parametrize(
    ("test", "parts"),
    [
        (Arrays({"input": _floats(6, 5)}, np.arange(6) % 3), ["input of test has shape [5]", "of train has shape [4]"]),
        (
            Arrays({"input": np.ones((6, 4), np.int64)}, np.arange(6) % 3),
            ["one shape and type", "type int64", "type float32", "make them alike"],
        ),
        (Arrays({"inputs": _floats(6, 4)}, np.arange(6) % 3), ["the same inputs", "train has input, test has inputs"]),
        (Arrays({"input": _floats(6, 4)}, np.arange(6) % 3 + 1), ["0...2", "test has 3"]),
        (Arrays({"input": _floats(0, 4)}, np.zeros(0)), ["each split has examples", "test has none"]),
        (Arrays({"input": _floats(6, 4)}, np.array(["a"] * 6)), ["class numbers", "test has 'a'"]),
    ],
)
def test_splits_that_differ_get_one_line(test: Arrays, parts: list[str]) -> None:
    train = Arrays({"input": _floats(60, 4)}, LABELS)
    refusal(lambda: _given({"train": train, "validation": train, "test": test}), parts)


def test_a_class_without_examples_in_a_split_is_named() -> None:
    train = Arrays({"input": _floats(60, 4)}, LABELS)
    two = Arrays({"input": _floats(6, 4)}, np.arange(6) % 2)
    refusal(lambda: _given({"train": train, "validation": two, "test": two}), ["examples in validation; '2' has none"])
