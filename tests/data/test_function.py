"""Data that a user's function returns, in each of its forms; and what such functions do wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal

from autocompress.config import DataSection
from autocompress.data.sources import load_data
from autocompress.data.task import TaskData

MODULE = """
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

X = torch.arange(120.0).view(40, 3)
Y = torch.arange(40) % 2


class Pairs(Dataset):
    def __init__(self, rows=40):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        return X[index].numpy(), int(Y[index])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


def of_dataset():
    return {"train": Pairs(), "test": Pairs(10)}

def of_tensor_dataset():
    return {"train": TensorDataset(X, Y)}

def of_list():
    return {"train": [(x, y) for x, y in zip(X.numpy(), Y.tolist())]}

def of_numbers():
    return {"train": [(x.tolist(), y) for x, y in zip(X, Y.tolist())]}

def of_pair():
    return {"train": (X, Y)}

def of_arrays():
    return {"train": (X.double().numpy(), Y.tolist()), "validation": None}

def of_mapping():
    return {"train": {"inputs": X, "labels": Y}, "class_names": ["even", "odd"]}

def of_one_name():
    return {"train": (X, Y), "class_names": "even odd"}

def two_by_position():
    return {"train": ((X, X.long()), Y)}

def two_by_position_of_examples():
    return {"train": [((x, x.long()), y) for x, y in zip(X, Y)]}

def by_name():
    return {"train": {"inputs": {"ids": X.long(), "weights": X}, "labels": Y}}

def by_name_of_examples():
    return {"train": [({"ids": x.long(), "weights": x}, y) for x, y in zip(X, Y)]}

def two_examples():
    return {"train": (X, Y), "validation": ((X[0], 0), (X[1], 1)), "test": [(X[2], 0), (X[3], 1)]}

def regression(columns=2):
    return {"train": (X, X[:, :columns] / 7)}

def scaled(factor, rows=40):
    return {"train": (X[:rows] * factor, Y[:rows])}

def fails():
    raise KeyError("no such\\nfile")

def returns_nothing():
    pass

def returns_pair():
    return Pairs(), Pairs(10)

def without_train():
    return {"test": Pairs()}

def other_key():
    return {"train": Pairs(), "val": Pairs()}

def other_members():
    return {"train": {"x": X, "y": Y}}

def a_string():
    return {"train": "data.csv"}

def a_stream():
    return {"train": Stream()}

def single_values():
    return {"train": [1.0, 2.0, 3.0]}

def triples():
    return {"train": TensorDataset(X, X, Y)}

def of_several_shapes():
    return {"train": [(torch.zeros(n + 1), n % 2) for n in range(40)]}

def none_at_all():
    return {"train": []}

def raises_inside():
    class Broken(Pairs):
        def __getitem__(self, index):
            raise OSError(f"cannot read image {index}")
    return {"train": Broken()}

def of_words():
    return {"train": [(x, "even" if y == 0 else "odd") for x, y in zip(X, Y)]}

def of_texts():
    return {"train": [("a text", y) for y in Y.tolist()]}

def with_nan():
    x = X.clone()
    x[5] = float("nan")
    return {"train": (X, Y), "validation": (x[:10], Y[:10]), "test": (X[:10], Y[:10])}

number = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("functions") / "own_data.py"
    path.write_text(MODULE)
    return path


def _load(file: Path, function: str, classification: bool = True, **options: Any) -> TaskData:
    config = DataSection(source=f"{file}:{function}", **options)
    return load_data(config, 0, classification=classification)


@pytest.mark.parametrize(
    "function",
    ["of_dataset", "of_tensor_dataset", "of_list", "of_numbers", "of_pair", "of_arrays", "of_mapping"],
)
def test_all_forms_of_a_split_give_the_same(file: Path, function: str) -> None:
    task = _load(file, function)
    rows = torch.cat([split.inputs[0] for split in (task.train, task.validation, task.test)])
    assert rows.dtype == torch.float32
    assert set(rows[:, 0].tolist()) == set(range(0, 120, 3))
    assert torch.equal((task.train.inputs[0][:, 0] / 3).long() % 2, task.train.labels)
    assert (task.input_names, task.by_name) == (("input",), False)
    assert task.class_names == (("even", "odd") if function == "of_mapping" else ("0", "1"))


def test_a_split_that_is_returned_is_not_cut(file: Path) -> None:
    task = _load(file, "of_dataset")
    assert [len(task.train), len(task.validation), len(task.test)] == [36, 4, 10]
    assert task.test.inputs[0][:, 0].tolist() == list(range(0, 30, 3))


@pytest.mark.parametrize("function", ["two_by_position", "two_by_position_of_examples"])
def test_a_tuple_is_several_inputs_by_position(file: Path, function: str) -> None:
    task = _load(file, function)
    assert (task.input_names, task.by_name) == (("input_0", "input_1"), False)
    assert [x.dtype for x in task.example_inputs(2)] == [torch.float32, torch.int64]
    assert torch.equal(task.train.inputs[0].long(), task.train.inputs[1])


@pytest.mark.parametrize("function", ["by_name", "by_name_of_examples"])
def test_a_dictionary_is_inputs_by_name(file: Path, function: str) -> None:
    task = _load(file, function)
    assert (task.input_names, task.by_name) == (("ids", "weights"), True)
    assert [x.dtype for x in task.example_inputs(2)] == [torch.int64, torch.float32]


def test_two_examples_are_not_taken_for_inputs_and_labels(file: Path) -> None:
    task = _load(file, "two_examples")
    assert task.validation.inputs[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert task.test.labels.tolist() == [0, 1]


def test_targets_that_are_no_classes(file: Path) -> None:
    task = _load(file, "regression", classification=False, arguments={"columns": 3})
    assert task.class_names == ()
    assert torch.equal(task.train.labels, task.train.inputs[0] / 7)


def test_arguments_are_passed_on(file: Path) -> None:
    task = _load(file, "scaled", arguments={"factor": 10, "rows": 20})
    assert len(task.train) + len(task.validation) + len(task.test) == 20
    assert int(task.train.inputs[0].max()) % 10 == 0


def test_a_task_data_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "whole.py"
    path.write_text(
        "from autocompress.config import DataSection\n"
        "from autocompress.data.sources import load_data\n"
        'TASK = load_data(DataSection(source="sklearn:digits", image_size=8), 3)\n'
        "def whole():\n    return TASK\n"
    )
    task = _load(path, "whole")
    assert task is _load(path, "whole")
    assert task.train.inputs[0].shape[1:] == (1, 8, 8)
    parts = ["data.mean is for images", "gives a TaskData", "remove"]
    refusal(lambda: _load(path, "whole", mean=[0.5], std=[1.0]), parts)


def test_a_module_of_an_installed_package_or_of_the_working_folder(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "lab_of_functions"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "own.py").write_text(MODULE)
    (tmp_path / "lone_functions.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for source in ("lab_of_functions.own:of_pair", "lone_functions:of_pair"):
        assert load_data(DataSection(source=source), 0).class_names == ("0", "1")


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        ("fails", ["must return data", "called with {} it raised KeyError", "no such", "data.arguments or its code"]),
        ("scaled", ["must return data", "TypeError", "'factor'"]),
        ("returns_nothing", ["returns a mapping", "returned NoneType", 'return {"train": ...}']),
        ("returns_pair", ["returns a mapping", "returned tuple"]),
        ("without_train", ["returns a mapping", "returned test", "add train"]),
        ("other_key", ["returned the key 'val'", "did you mean validation?"]),
        ("other_members", ["a split is", "has the keys x, y", "name them inputs and labels"]),
        ("a_string", ["a split is", "train of", "is of type str"]),
        ("a_stream", ["a split is", "is of type Stream"]),
        ("single_values", ["an example is (input, label)", "one of type float", "return pairs"]),
        ("triples", ["an example is (input, label)", "one of type tuple"]),
        ("of_several_shapes", ["of one shape", "those of train cannot be stacked", "pad them"]),
        ("none_at_all", ["each split has examples", "train of", "has none"]),
        ("raises_inside", ["every example can be read", "OSError: cannot read image 0", "correct its code"]),
        ("of_words", ["class numbers", "train has 'even'", "number the classes"]),
        ("of_texts", ["are numbers", "input of train has type <U6"]),
        ("with_nan", ["finite numbers", "1 of 10 examples of validation have NaN or infinity in input"]),
        ("regression", ["one class number per example", "shape [40, 2]", "task.loss"]),
        ("of_one_name", ["class_names is a list", "returned str", "return a list"]),
        ("number", ["a function or class", "of type int", "name what builds the data"]),
        ("missing", ["has no 'missing'", "check the name"]),
        ("of_lst", ["has no 'of_lst'", "did you mean of_list?"]),
    ],
)
def test_a_function_that_does_something_else_gets_one_line(file: Path, function: str, parts: list[str]) -> None:
    refusal(lambda: _load(file, function), parts)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("/no/such/file.py:build", ["names a file", "/no/such/file.py does not exist", "correct the path"]),
        ("no.such.package:build", ["must import", "No module named 'no'", "correct"]),
    ],
)
def test_a_reference_that_leads_nowhere_gets_one_line(source: str, parts: list[str]) -> None:
    refusal(lambda: load_data(DataSection(source=source), 0), parts)
