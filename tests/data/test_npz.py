"""Files of arrays: each way of naming them, and files that are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refusal

from autocompress.config import DataSection
from autocompress.data.sources import load_data
from autocompress.data.task import TaskData

X = np.random.default_rng(0).normal(size=(60, 4))
Y = np.arange(60) % 3


def _write(folder: Path, **arrays: Any) -> str:
    path = folder / "arrays.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


def _load(folder: Path, arrays: dict[str, Any], classification: bool = True, **options: Any) -> TaskData:
    config = DataSection(source=_write(folder, **arrays), **options)
    return load_data(config, 0, classification=classification)


def _same(split: Any, x: np.ndarray, y: np.ndarray) -> bool:
    return np.array_equal(split.inputs[0].numpy(), x.astype(np.float32)) and split.labels.tolist() == y.tolist()


def test_x_and_y_are_cut(tmp_path: Path) -> None:
    task = _load(tmp_path, {"x": X, "y": Y})
    assert [len(task.train), len(task.validation), len(task.test)] == [42, 6, 12]
    assert torch.bincount(task.validation.labels).tolist() == [2, 2, 2]
    assert (task.input_names, task.by_name, task.class_names) == (("input",), False, ("0", "1", "2"))
    rows = {tuple(row): label for row, label in zip(X.astype(np.float32).tolist(), Y, strict=True)}
    for split in (task.train, task.validation, task.test):
        assert [rows[tuple(row)] for row in split.inputs[0].tolist()] == split.labels.tolist()


def test_splits_of_the_file_are_read_as_they_stand(tmp_path: Path) -> None:
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:9], "y_test": Y[:9]}
    task = _load(tmp_path, arrays)
    assert [len(task.train), len(task.validation)] == [54, 6]
    assert _same(task.test, X[:9], Y[:9])
    task = _load(tmp_path, arrays | {"x_validation": X[3:12], "y_validation": Y[3:12]})
    assert _same(task.train, X, Y)
    assert _same(task.validation, X[3:12], Y[3:12])


def test_named_inputs_are_given_by_name(tmp_path: Path) -> None:
    arrays = {"inputs.ids": Y[:, None] + np.arange(5), "inputs.weights": X, "labels": Y}
    task = _load(tmp_path, arrays | {"class_names": np.array(["ant", "bee", "cat"])})
    assert (task.input_names, task.by_name, task.class_names) == (("ids", "weights"), True, ("ant", "bee", "cat"))
    assert torch.equal(task.train.inputs[0][:, 0], task.train.labels)


def test_named_inputs_of_splits(tmp_path: Path) -> None:
    arrays = {
        f"{split}.{name}": value
        for split in ("train", "validation", "test")
        for name, value in {"a": X, "labels": Y}.items()
    }
    task = _load(tmp_path, arrays)
    assert (task.input_names, task.by_name) == (("a",), True)
    assert all(_same(split, X, Y) for split in (task.train, task.validation, task.test))


def test_digits_as_keras_stores_them_are_images(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    task = _load(tmp_path, {"x_train": grey, "y_train": Y, "x_test": grey[:6], "y_test": Y[:6]}, mean=[0.1], std=[0.3])
    assert task.example_inputs(2)[0].shape == (2, 1, 8, 8)
    assert task.preprocessing["mean"] == [0.1]


def test_targets_for_a_loss_of_ones_own(tmp_path: Path) -> None:
    task = _load(tmp_path, {"x": X, "y": X[:, :2]}, classification=False)
    assert task.class_names == ()
    assert torch.equal(task.train.labels, task.train.inputs[0][:, :2])


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"arr_0": X, "arr_1": Y}, ["x and y", "has arr_0, arr_1, of which 'arr_0' is none", "check the name"]),
        ({"X_train": X, "y_train": Y}, ["has X_train, y_train, of which 'X_train' is none", "did you mean x_train?"]),
        ({"x_train": X, "y_train": Y, "x_val": X, "y_val": Y}, ["'x_val' is none", "did you mean x_validation?"]),
        ({"x_test": X, "y_test": Y}, ["x and y", "has x_test, y_test", "name the arrays so"]),
        ({"x": X}, ["inputs and labels", "no labels of train", "add the array"]),
        ({"y": Y}, ["inputs and labels", "no inputs of train"]),
        ({"x": X, "y": Y, "x_test": X}, ["no labels of test"]),
        ({"x": X, "y": Y, "x_train": X}, ["given once", "'x_train' a second time", "keep one"]),
        ({"x": X, "labels": Y}, ["'labels' is none"]),
        ({"inputs.labels": X, "labels": Y}, ["'inputs.labels' is none"]),
        ({}, ["x and y", "has none"]),
        ({"x": X, "y": np.array([{}] * 60, dtype=object)}, ["plain arrays", "allow_pickle", "numpy.savez"]),
        ({"x": X, "y": np.array(["a", "b", "c"] * 20)}, ["class numbers", "train has 'a'", "task.loss"]),
        ({"x": X[:20], "y": Y}, ["one row per example", "[20, 4], the labels [60]"]),
        ({"x": X, "y": Y, "class_names": np.array(["a", "b"])}, ["0...1", "train has 2", "the class names"]),
    ],
)
def test_other_files_get_one_line(tmp_path: Path, arrays: dict[str, Any], parts: list[str]) -> None:
    refusal(lambda: _load(tmp_path, arrays), parts)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_files_that_cannot_be_read_get_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    refusal(lambda: load_data(DataSection(source=f"npz:{path}"), 0), ["plain arrays", str(path), "numpy.savez"])


def test_a_lone_array_and_a_missing_file_get_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "lone.npy", X)
    refusal(lambda: load_data(DataSection(source=f"npz:{tmp_path / 'lone.npy'}"), 0), ["plain arrays", "numpy.savez"])
    refusal(lambda: load_data(DataSection(source="npz:/no/file.npz"), 0), ["/no/file.npz does not exist", "correct"])


def test_a_pickle_in_the_archive_is_not_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    arrays = {"x": np.array([Runs()] * 60, dtype=object), "y": Y}
    refusal(lambda: _load(tmp_path, arrays), ["plain arrays"])
    assert not (tmp_path / "ran").exists()
