"""Splits against their definitions, pixels against the files, and a clear word for each bad input."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits as sklearn_digits

from autocompress.config import DataSection
from autocompress.data.digits import upscaled
from autocompress.data.sources import load_data
from autocompress.data.task import Split, TaskData
from autocompress.errors import DataError

SHARED = os.environ.get("AUTOCOMPRESS_DATA")


def _rows(split: Split) -> list[bytes]:
    pairs = zip(split.inputs[0], split.labels, strict=True)
    return [row.numpy().tobytes() + bytes([int(label)]) for row, label in pairs]


def _digits(seed: int = 0, **options: object) -> TaskData:
    return load_data(DataSection(source="sklearn:digits", **options), seed)  # type: ignore[arg-type]


# Digits


def test_digits_are_split_into_disjoint_parts_that_make_up_the_whole() -> None:
    task = _digits(image_size=8)
    together = Counter(_rows(task.train) + _rows(task.validation) + _rows(task.test))
    digits = sklearn_digits()
    pixels = np.round(digits.images.astype(np.float32) * (255 / 16)).astype(np.uint8)
    assert together == Counter(
        image.tobytes() + bytes([label]) for image, label in zip(pixels, digits.target, strict=True)
    )


def test_digits_are_stratified() -> None:
    task = _digits()
    total = torch.bincount(torch.from_numpy(sklearn_digits().target))
    for split, fraction in ((task.validation, 0.1), (task.test, 0.2), (task.train, 0.7)):
        assert abs(len(split) - fraction * 1797) <= 1
        assert (torch.bincount(split.labels) - fraction * total).abs().max() <= 1.5


def test_digits_depend_on_the_seed_alone() -> None:
    first, again, other = _digits(seed=1), _digits(seed=1), _digits(seed=2)
    for name in ("train", "calibration", "validation", "test"):
        assert _rows(getattr(first, name)) == _rows(getattr(again, name))
        assert _rows(getattr(first, name)) != _rows(getattr(other, name))


def test_calibration_is_a_sample_of_train_without_repetition() -> None:
    task = _digits(calibration_examples=300)
    assert len(task.calibration) == 300
    assert not Counter(_rows(task.calibration)) - Counter(_rows(task.train))


def test_calibration_takes_all_of_a_smaller_train() -> None:
    task = _digits(calibration_examples=5000)
    assert _rows(task.calibration) == _rows(task.train)


def test_digits_have_one_channel_of_the_asked_size() -> None:
    assert _digits().train.inputs[0].shape[1:] == (1, 32, 32)
    assert _digits(image_size=16).train.inputs[0].shape[1:] == (1, 16, 16)


def test_upscaling_keeps_constants_and_the_values_between_pixels() -> None:
    assert torch.equal(upscaled(torch.full((1, 8, 8), 16.0), 32), torch.full((1, 1, 32, 32), 255).byte())
    ramp = torch.arange(8.0).expand(1, 8, 8) * 2
    # Twice the size puts samples a quarter of a pixel beside the centres.
    expected = torch.tensor([max(0.0, min(14.0, 2 * (x / 2 - 0.25))) for x in range(16)]) * 255 / 16
    assert torch.equal(upscaled(ramp, 16)[0, 0, 3], expected.round().byte())


def test_model_inputs_are_what_the_preprocessing_says() -> None:
    task = _digits(mean=[0.3], std=[0.2])
    facts = task.preprocessing
    raw = task.test.inputs[0][:5].numpy().astype(np.float64)
    expected = (raw / facts["divide_by"] - facts["mean"][0]) / facts["std"][0]
    (inputs,) = task.model_inputs(task.test, torch.arange(5))
    assert inputs.dtype == torch.float32
    np.testing.assert_allclose(inputs.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert facts["size"] == [32, 32]


def test_without_normalisation_inputs_are_pixels_between_0_and_1() -> None:
    (inputs,) = _digits().example_inputs(16)
    assert inputs.min() == 0.0
    assert inputs.max() == 1.0


def test_preparing_leaves_stored_images_alone() -> None:
    task = _digits(mean=[0.5], std=[0.5])
    images = task.train.inputs[0][:4].float()
    before = images.clone()
    task.prepare((images,))
    assert torch.equal(images, before)


# Folders of images

COLOURS = {"ant": 10, "bee": 20, "cat": 30}


def _write(path: Path, level: int, size: tuple[int, int] = (5, 4)) -> None:
    """A lossless image: red and blue say which, green is its noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(level).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 2] = level, 255 - level
    Image.fromarray(pixels).save(path)


def _make_folder(folder: Path, splits: dict[str, int], classes: dict[str, int] = COLOURS) -> Path:
    for offset, (split, count) in enumerate(splits.items()):
        for name, level in classes.items():
            for number in range(count):
                _write(folder / split / name / f"{number:03}.png", level * 5 + number + 20 * offset)
    return folder


def _load(folder: Path, **options: object) -> TaskData:
    return load_data(DataSection(source=f"imagefolder:{folder}", **options), 0)  # type: ignore[arg-type]


def _red(split: Split) -> list[int]:
    return [int(level) for level in split.inputs[0][:, 0, 0, 0]]


def test_a_folder_with_all_three_splits_is_read_as_it_stands(tmp_path: Path) -> None:
    task = _load(_make_folder(tmp_path, {"train": 4, "val": 2, "test": 3}))
    assert task.class_names == ("ant", "bee", "cat")
    assert [len(task.train), len(task.validation), len(task.test)] == [12, 6, 9]
    assert task.validation.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert _red(task.validation) == [70, 71, 120, 121, 170, 171]


def test_pixels_are_those_of_the_files(tmp_path: Path) -> None:
    folder = _make_folder(tmp_path, {"train": 3, "val": 1, "test": 1})
    task = _load(folder)
    images = task.train.inputs[0]
    assert images.dtype == torch.uint8
    for number in range(3):
        file = np.asarray(Image.open(folder / "train" / "bee" / f"{number:03}.png"))
        assert np.array_equal(images[3 + number].numpy(), file.transpose(2, 0, 1))


def test_missing_splits_are_cut_from_the_end_of_each_class(tmp_path: Path) -> None:
    task = _load(_make_folder(tmp_path, {"train": 10}), validation_fraction=0.1, test_fraction=0.2)
    assert _red(task.train) == [*range(50, 57), *range(100, 107), *range(150, 157)]
    assert _red(task.test) == [57, 58, 107, 108, 157, 158]
    assert _red(task.validation) == [59, 109, 159]


@pytest.mark.parametrize(("given", "cut", "kept"), [("val", "test", 8), ("test", "validation", 9)])
def test_a_given_split_is_not_cut(tmp_path: Path, given: str, cut: str, kept: int) -> None:
    folder = _make_folder(tmp_path, {"train": 10, given: 1})
    task = _load(folder, validation_fraction=0.1, test_fraction=0.2)
    assert len(task.train) == 3 * kept
    assert len(getattr(task, cut)) == 3 * (10 - kept)


def test_images_become_squares_of_image_size(tmp_path: Path) -> None:
    folder = _make_folder(tmp_path, {"train": 2, "val": 1, "test": 1})
    _write(folder / "train" / "ant" / "wide.PNG", 99, size=(40, 6))
    images = _load(folder, image_size=8).train.inputs[0]
    assert images.shape == (7, 3, 8, 8)
    assert (images[2, 0] == 99).all()


def test_grey_images_and_palettes_become_rgb(tmp_path: Path) -> None:
    folder = _make_folder(tmp_path, {"train": 1, "val": 1, "test": 1})
    Image.new("L", (5, 4), 77).save(folder / "train" / "ant" / "a.png")
    Image.new("P", (5, 4), 0).save(folder / "train" / "ant" / "b.png")
    images = _load(folder).train.inputs[0]
    assert (images[1] == 77).all()
    assert images[2].shape == (3, 4, 5)


def test_more_files_than_one_share_of_the_pool_keep_their_order(tmp_path: Path) -> None:
    folder = _make_folder(tmp_path, {"val": 1, "test": 1}, {"a": 1})
    for number in range(600):
        _write(folder / "train" / "a" / f"{number:04}.png", number % 251, size=(2, 2))
    task = _load(folder, image_size=4)
    assert _red(task.train) == [number % 251 for number in range(600)]


# Folders of classes without splits


def _class_folders(folder: Path, count: int = 10) -> Path:
    for name, level in COLOURS.items():
        for number in range(count):
            _write(folder / name / f"{number:03}.png", level * 5 + number)
    return folder


def test_class_folders_without_splits_are_cut_seeded_and_stratified(tmp_path: Path) -> None:
    task = _load(_class_folders(tmp_path, 20))
    assert task.class_names == ("ant", "bee", "cat")
    assert [len(task.train), len(task.validation), len(task.test)] == [42, 6, 12]
    for split, each in ((task.train, 14), (task.validation, 2), (task.test, 4)):
        assert torch.bincount(split.labels).tolist() == [each] * 3
        assert [(level - 50) // 50 for level in _red(split)] == split.labels.tolist()
    levels = [level for split in (task.train, task.validation, task.test) for level in _red(split)]
    assert sorted(levels) == [*range(50, 70), *range(100, 120), *range(150, 170)]


def test_the_cut_of_class_folders_depends_on_the_seed_alone(tmp_path: Path) -> None:
    section = DataSection(source=f"imagefolder:{_class_folders(tmp_path, 20)}")
    first, again, other = (load_data(section, seed) for seed in (0, 0, 1))
    assert _rows(first.test) == _rows(again.test) != _rows(other.test)


# What goes wrong


def _break_nothing_there(folder: Path) -> None:
    pass


def _break_no_train(folder: Path) -> None:
    _make_folder(folder, {"test": 1})


def _break_no_class(folder: Path) -> None:
    (folder / "train").mkdir(parents=True)


def _break_empty_class(folder: Path) -> None:
    _make_folder(folder, {"train": 10})
    (folder / "train" / "dog").mkdir()


def _break_other_class(folder: Path) -> None:
    _make_folder(folder, {"train": 10, "test": 1})
    _write(folder / "test" / "dog" / "0.png", 1)


def _break_image(folder: Path) -> None:
    _make_folder(folder, {"train": 10})
    path = folder / "train" / "cat" / "005.png"
    path.write_bytes(path.read_bytes()[:60])


def _break_text(folder: Path) -> None:
    _make_folder(folder, {"train": 10})
    (folder / "train" / "cat" / "006.jpg").write_text("no image")


def _break_size(folder: Path) -> None:
    _make_folder(folder, {"train": 10})
    _write(folder / "train" / "cat" / "007.png", 1, size=(9, 4))


def _break_count(folder: Path) -> None:
    _make_folder(folder, {"train": 3})


def _break_empty_folder(folder: Path) -> None:
    folder.mkdir()


def _break_name_of_split(folder: Path) -> None:
    _make_folder(folder, {"train": 10, "validation": 5})


def _break_other_name_of_split(folder: Path) -> None:
    _make_folder(folder, {"train": 10, "valid": 5})


def _break_capital(folder: Path) -> None:
    _make_folder(folder, {"Train": 10, "Test": 5})


def _break_class_folders(folder: Path) -> None:
    _class_folders(folder, 2)


def _break_empty_class_folder(folder: Path) -> None:
    _class_folders(folder)
    (folder / "dog").mkdir()


@pytest.mark.parametrize(
    ("damage", "rule", "value", "step"),
    [
        (_break_nothing_there, "names a folder", "data", "correct"),
        (_break_no_train, "has train/<class>/", "train", "make it"),
        (_break_no_class, "one folder per class", "train", "make one"),
        (_break_empty_class, "each class has images", "dog", "add some"),
        (_break_other_class, "the same classes", "'dog'", "add or remove"),
        (_break_image, "must be readable", "cat/005.png", "replace"),
        (_break_text, "must be readable", "cat/006.jpg", "replace"),
        (_break_size, "one size", "cat/007.png is 9x4", "set data.image_size"),
        (_break_count, "to every split", "'ant' has 3", "add images"),
        (_break_empty_folder, "one folder per class", "data", "make one"),
        (_break_name_of_split, "train, val, test", "has validation", "rename it val"),
        (_break_other_name_of_split, "train, val, test", "has valid", "rename it val"),
        (_break_capital, "train, val, test", "has Test", "rename it test"),
        (_break_class_folders, "each class has an example for each split", "'ant' has 2 of 3", "add examples"),
        (_break_empty_class_folder, "each class has images", "dog", "add some"),
    ],
)
def test_a_bad_folder_gets_one_line(
    tmp_path: Path, damage: Callable[[Path], None], rule: str, value: str, step: str
) -> None:
    damage(tmp_path / "data")
    with pytest.raises(DataError) as caught:
        _load(tmp_path / "data")
    _assert_says(str(caught.value), rule, value, step)


@pytest.mark.parametrize(
    ("options", "rule", "value", "step"),
    [
        ({"source": "sklaern:digits"}, "data.source is", "'sklaern:digits'", "mean sklearn:digits?"),
        ({"source": "image_folder:x"}, "data.source is", "'image_folder:x'", "mean imagefolder:DIR?"),
        ({"source": "imagefolder"}, "data.source is", "'imagefolder'", "mean imagefolder:DIR?"),
        ({"source": "s3:bucket"}, "data.source is", "'s3:bucket'", "use one of these"),
        ({"source": "digits"}, "data.source is", "'digits'", "use one of these"),
        ({"source": "txt:a.tsv"}, "data.source is", "'txt:a.tsv'", "mean text:FILE?"),
        ({"source": "torchvison:CIFAR10"}, "data.source is", "'torchvison:CIFAR10'", "mean torchvision:NAME?"),
        ({"source": "function:load"}, "data.source is", "'function:load'", "use one of these"),
        ({"source": "no module.at all:load"}, "data.source is", "'no module.at all:load'", "use one of these"),
        ({"source": "no.such.module:load"}, "must import", "No module named 'no'", "correct"),
        ({"source": "own.py:load"}, "names a file", "own.py does not exist", "correct the path"),
        ({"source": "text:a.txt"}, "a table is a file", "a.txt does not exist", "correct"),
        ({"validation": "b.tsv"}, "data.validation goes with the source text:", "sklearn:digits", "remove it"),
        ({"text_columns": ["a"]}, "goes with the source text: or hf:", "sklearn:digits", "remove it"),
        ({"arguments": {"a": 1}}, "torchvision: or a function", "sklearn:digits", "remove it"),
        ({"exclude_overlap": True}, "data.exclude_overlap goes with", "sklearn:digits", "remove it"),
        ({"source": "npz:a.npz", "image_size": 8}, "data.image_size goes with", "npz:a.npz", "remove it"),
        ({"source": "sklearn:iris"}, "digits", "sklearn:iris", "write sklearn:digits"),
        ({"mean": [0.1, 0.2], "std": [1, 1]}, "one number per channel", "have 1, it has 2", "give 1"),
        ({"mean": [0.1], "std": [1, 1]}, "data.std has one", "have 1, it has 2", "give 1"),
        ({"validation_fraction": 0.001}, "each split", "gives 2", "raise"),
    ],
)
def test_a_bad_data_section_gets_one_line(options: dict[str, object], rule: str, value: str, step: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(DataSection(**({"source": "sklearn:digits"} | options)), 0)  # type: ignore[arg-type]
    _assert_says(str(caught.value), rule, value, step)


def _assert_says(message: str, rule: str, value: str, step: str) -> None:
    assert "\n" not in message
    first, *middle, last = message.split("; ")
    assert rule in first
    assert value in " ".join(middle)
    assert step in last


# CIFAR-10


@pytest.mark.shared_data
@pytest.mark.skipif(SHARED is None, reason="AUTOCOMPRESS_DATA is not set")
def test_cifar10_splits_are_the_documented_ones() -> None:
    folder = Path(SHARED or "") / "cifar10"
    task = _load(folder)
    assert [len(task.train), len(task.validation), len(task.test)] == [45_000, 5_000, 10_000]
    assert torch.bincount(task.validation.labels).tolist() == [500] * 10
    ships = sorted((folder / "train" / "ship").iterdir())
    last_ship = np.asarray(Image.open(ships[-1])).transpose(2, 0, 1)
    assert task.class_names[8] == "ship"
    assert np.array_equal(task.validation.inputs[0][task.validation.labels == 8][-1].numpy(), last_ship)
