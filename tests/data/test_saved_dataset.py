"""Data sets that the library datasets saved: images, texts, arrays, and what is none of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from refusals import refusal
from token_task import write_model_folder

from autocompress.config import DataSection
from autocompress.data.sources import load_data
from autocompress.data.task import TaskData

datasets = pytest.importorskip("datasets")

GENERATOR = np.random.default_rng(0)
LABELS = [number % 2 for number in range(40)]
CLASSES = datasets.ClassLabel(names=["night", "day"])


@pytest.fixture(autouse=True)
def _no_progress_bars() -> None:
    datasets.disable_progress_bars()


def _dataset(columns: dict[str, Any], features: dict[str, Any] | None = None) -> Any:
    return datasets.Dataset.from_dict(columns, features=None if features is None else datasets.Features(features))


def _save(folder: Path, data: Any) -> str:
    data.save_to_disk(str(folder / "saved"))
    return f"hf:{folder / 'saved'}"


def _load(folder: Path, data: Any, classification: bool = True, **options: Any) -> TaskData:
    return load_data(DataSection(source=_save(folder, data), **options), 0, classification=classification)


def _images(count: int = 40, mode: str = "RGB") -> Any:
    made = [PilImage.fromarray(GENERATOR.integers(0, 256, (4, 5, 3), np.uint8)).convert(mode) for _ in range(count)]
    return _dataset(
        {"image": made, "id": list(range(count)), "label": LABELS[:count]},
        {"image": datasets.Image(), "id": datasets.Value("int64"), "label": CLASSES},
    )


# Images


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_images_are_decoded_and_classes_named(tmp_path: Path, mode: str, channels: int) -> None:
    data = _images(mode=mode)
    test = data.select(range(6))
    task = _load(tmp_path, datasets.DatasetDict({"train": data, "test": test}))
    assert [len(task.train), len(task.validation), len(task.test)] == [36, 4, 6]
    assert task.class_names == ("night", "day")
    assert task.test.labels.tolist() == [0, 1] * 3
    stored = task.test.inputs[0]
    assert stored.dtype == torch.uint8
    assert stored.shape[1:] == (channels, 4, 5)
    expected = np.asarray(test[2]["image"]).reshape(4, 5, channels).transpose(2, 0, 1)
    assert np.array_equal(stored[2].numpy(), expected)


def test_images_are_resized_and_normalised(tmp_path: Path) -> None:
    task = _load(tmp_path, _images(), image_size=8, mean=[0.5] * 3, std=[0.5] * 3)
    assert task.example_inputs(2)[0].shape == (2, 3, 8, 8)
    assert task.preprocessing["resize"] == "PIL bilinear"


# Texts


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    pytest.importorskip("transformers")
    write_model_folder(tmp_path / "words")
    return str(tmp_path / "words")


def test_texts_with_named_classes(tmp_path: Path, tokenizer: str) -> None:
    columns = {"sentence": ["the cave", "the sun"] * 20, "idx": list(range(40)), "label": LABELS}
    data = _dataset(columns, {"sentence": datasets.Value("string"), "idx": datasets.Value("int32"), "label": CLASSES})
    saved = datasets.DatasetDict({"train": data, "dev": data.select(range(8)), "unlabelled": data})
    task = _load(tmp_path, saved, tokenizer=tokenizer)
    assert [len(task.train), len(task.validation), len(task.test)] == [32, 8, 8]
    assert task.class_names == ("night", "day")
    assert task.by_name
    assert task.validation.labels.tolist() == LABELS[:8]


def test_texts_whose_labels_are_texts(tmp_path: Path, tokenizer: str) -> None:
    data = _dataset({"question": ["the cave", "the sun"] * 20, "answer": ["no", "yes"] * 20})
    task = _load(tmp_path, data, tokenizer=tokenizer, text_columns=["question"], label_column="answer")
    assert task.class_names == ("no", "yes")


def test_texts_with_targets(tmp_path: Path, tokenizer: str) -> None:
    data = _dataset({"sentence": ["the cave"] * 40, "label": [number / 8 for number in range(40)]})
    task = _load(tmp_path, data, classification=False, tokenizer=tokenizer)
    assert task.class_names == ()
    assert task.train.labels.dtype == torch.float32


# Arrays


def test_arrays_of_uint8_are_images(tmp_path: Path) -> None:
    pixels = GENERATOR.integers(0, 256, (40, 3, 4, 4), dtype=np.uint8)
    features = {"x": datasets.Array3D((3, 4, 4), "uint8"), "label": CLASSES}
    task = _load(tmp_path, _dataset({"x": pixels, "label": LABELS}, features), augment="crop")
    assert task.train.inputs[0].dtype == torch.uint8
    assert task.class_names == ("night", "day")
    assert task.preprocessing["divide_by"] == 255
    assert {row.numpy().tobytes() for row in task.train.inputs[0]} <= {image.tobytes() for image in pixels}


def test_one_column_of_numbers_is_the_input_and_several_are_given_by_name(tmp_path: Path) -> None:
    columns = {"ids": [[n, n + 1] for n in range(40)], "label": LABELS}
    one = _load(tmp_path / "one", _dataset(columns))
    assert (one.input_names, one.by_name) == (("input",), False)
    assert torch.equal(one.train.inputs[0][:, 0] % 2, one.train.labels)
    two = _load(tmp_path / "two", _dataset(columns | {"weights": GENERATOR.normal(size=(40, 3))}))
    assert (two.input_names, two.by_name) == (("ids", "weights"), True)
    assert [x.dtype for x in two.example_inputs(1)] == [torch.int64, torch.float32]


def test_arrays_with_targets(tmp_path: Path) -> None:
    x = GENERATOR.normal(size=(40, 3))
    task = _load(tmp_path, _dataset({"x": x, "label": x * 2}), classification=False)
    assert torch.allclose(task.train.labels, task.train.inputs[0] * 2)


# What is refused


@pytest.mark.parametrize(
    ("columns", "options", "parts"),
    [
        ({"sentence": ["a"] * 40}, {}, ["data.label_column", "train has sentence and no 'label'", "check the name"]),
        ({"label": LABELS}, {}, ["a data set has inputs", "the column 'label' only", "add some"]),
        ({"x": [[1, 2], [3]] * 20, "label": LABELS}, {}, ["are numbers", "input of train has type object"]),
        ({"x": [[0.5, 1.0]] * 40, "label": [-1] * 40}, {}, ["two classes or more", "only '-1'"]),
        ({"x": [[0.5, 1.0]] * 40, "label": LABELS}, {"image_size": 8}, ["data.image_size", "has arrays", "remove it"]),
        (
            {"x": [[0.5, 1.0]] * 40, "label": LABELS},
            {"max_length": 8},
            ["data.max_length", "gives arrays", "remove it"],
        ),
        ({"x": [[0.5, float("nan")]] * 40, "label": LABELS}, {}, ["28 of 28 examples of train", "NaN"]),
        ({"x": [[0.5, 1.0]] * 40, "label": [0, 1] * 19 + [0, None]}, {}, ["every row has a label", "row 40"]),
    ],
)
def test_columns_that_are_no_task_get_one_line(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], parts: list[str]
) -> None:
    refusal(lambda: _load(tmp_path, _dataset(columns), **options), parts)


def test_labels_beyond_the_named_classes_get_one_line(tmp_path: Path) -> None:
    columns = {"x": [[0.5, 1.0]] * 40, "label": LABELS}
    features = {"x": datasets.List(datasets.Value("float32")), "label": CLASSES}
    train, hidden = _dataset(columns, features), _dataset(columns | {"label": [-1] * 40}, features)
    saved = datasets.DatasetDict({"train": train, "test": hidden})
    refusal(lambda: _load(tmp_path, saved), ["class numbers", "test has -1"])


def test_images_that_do_not_fit_get_one_line(tmp_path: Path) -> None:
    two = _images().add_column("second", [None] * 40).cast_column("second", datasets.Image())
    refusal(lambda: _load(tmp_path / "two", two), ["one column of images", "has image, second", "remove all but one"])
    refusal(lambda: _load(tmp_path / "text", _images(), max_length=9), ["data.max_length", "gives images"])
    encoded = [{"bytes": b"no image", "path": None}] * 40
    features = {"image": datasets.Image(), "label": CLASSES}
    broken = _dataset({"image": encoded, "label": LABELS}, features)
    refusal(lambda: _load(tmp_path / "broken", broken), ["must be readable", "'image' of train", "replace it"])
    empty = _dataset({"image": [None] * 40, "label": LABELS}, features)
    refusal(lambda: _load(tmp_path / "empty", empty), ["examples are images", "has NoneType"])


def test_splits_that_do_not_fit_get_one_line(tmp_path: Path) -> None:
    data = _dataset({"x": [[1.0, 2.0]] * 40, "label": LABELS})
    other = datasets.DatasetDict({"first": data, "test": data})
    refusal(lambda: _load(tmp_path / "other", other), ["a split train", "has first, test", "rename or add"])
    fewer = datasets.DatasetDict({"train": data, "test": data.remove_columns("x")})
    refusal(lambda: _load(tmp_path / "fewer", fewer), ["the same columns", "test has no 'x'", "add it"])


def test_a_folder_that_holds_no_data_set_gets_one_line(tmp_path: Path) -> None:
    parts = ["save_to_disk", str(tmp_path), "save the data set there"]
    refusal(lambda: load_data(DataSection(source=f"hf:{tmp_path}"), 0), parts)
    refusal(lambda: load_data(DataSection(source="hf:/no/folder"), 0), ["hf:DIR", "/no/folder does not", "correct"])


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    parts = ["the library datasets", 'pip install "autocompress[text]"']
    refusal(lambda: load_data(DataSection(source=f"hf:{tmp_path}"), 0), parts)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = _save(tmp_path, _images())
    datasets.enable_progress_bars()
    load_data(DataSection(source=source), 0)
    assert capfd.readouterr() == ("", "")
