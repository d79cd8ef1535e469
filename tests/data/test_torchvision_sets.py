"""torchvision's data sets, from files written here in the layouts that torchvision reads; none is downloaded."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refusal

from autocompress.config import DataSection
from autocompress.data.sources import load_data
from autocompress.data.task import TaskData
from autocompress.torchvision_compat import import_torchvision

FAKE = {"size": 60, "image_size": [3, 8, 6], "num_classes": 3}


def _load(name: str, folder: Path | None = None, **options: Any) -> TaskData:
    config = DataSection(source=f"torchvision:{name}", folder=None if folder is None else str(folder), **options)
    return load_data(config, 0)


def _write_mnist(folder: Path, counts: dict[str, int]) -> dict[str, np.ndarray]:
    """MNIST's four files with random images; label = row modulo 10."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = {}
    for prefix, count in counts.items():
        images[prefix] = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images[prefix].tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())
    return images


def _write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """CIFAR-10's batches with random images; their checksums in place of torchvision's."""
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (120, 3072), dtype=np.uint8)
    sums = {}
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]):
        rows = slice(20 * number, 20 * number + 20)
        content: dict[str, Any] = {"data": images[rows], "labels": [n % 10 for n in range(20)]}
        if name == "batches.meta":
            content = {"label_names": [f"class {letter}" for letter in "abcdefghij"]}
        (base / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    kind = import_torchvision().datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[f"data_batch_{n}", sums[f"data_batch_{n}"]] for n in range(1, 6)])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", dict(kind.meta, md5=sums["batches.meta"]))
    return images.reshape(120, 3, 32, 32)


# Splits


def test_a_set_without_splits_is_cut_seeded_and_stratified() -> None:
    task = _load("FakeData", arguments=FAKE)
    assert [len(task.train), len(task.validation), len(task.test)] == [42, 6, 12]
    assert task.train.inputs[0].shape[1:] == (3, 8, 6)
    assert task.class_names == ("0", "1", "2")
    assert len(set(task.validation.labels.tolist())) == 3
    again = _load("FakeData", arguments=FAKE)
    assert torch.equal(task.train.inputs[0], again.train.inputs[0])


def test_reading_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    _load("FakeData", arguments=FAKE)
    assert torch.equal(torch.rand(1), expected)


def test_mnist_keeps_its_test_split_and_gives_validation_from_train(tmp_path: Path) -> None:
    images = _write_mnist(tmp_path, {"train": 100, "t10k": 30})
    task = _load("MNIST", tmp_path, validation_fraction=0.2)
    assert [len(task.train), len(task.validation), len(task.test)] == [80, 20, 30]
    assert np.array_equal(task.test.inputs[0][:, 0].numpy(), images["t10k"])
    assert task.test.labels.tolist() == [row % 10 for row in range(30)]
    assert torch.bincount(task.validation.labels).tolist() == [2] * 10
    assert task.class_names[:2] == ("0 - zero", "1 - one")
    assert task.preprocessing["channels"] == "grey"
    rows = torch.cat([task.train.inputs[0], task.validation.inputs[0]])
    assert {row.numpy().tobytes() for row in rows} == {image.tobytes() for image in images["train"]}


def test_cifar_has_colours_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = _write_cifar(tmp_path, monkeypatch)
    task = _load("CIFAR10", tmp_path, mean=[0.5] * 3, std=[0.25] * 3, augment="crop-flip")
    assert [len(task.train), len(task.validation), len(task.test)] == [90, 10, 20]
    assert np.array_equal(task.test.inputs[0].numpy(), images[100:])
    assert task.class_names[:2] == ("class a", "class b")
    assert task.preprocessing | {"channels": "RGB", "mean": [0.5] * 3, "resize": None} == task.preprocessing


def test_a_set_whose_splits_have_names_keeps_those_it_has(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("val", 4), ("test", 6)):
        for name, level in (("n01440764", 10), ("n02102040", 200)):
            folder = tmp_path / "clevr-like" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (6, 4), (level, number, 0)).save(folder / f"{number}.png")
    datasets = import_torchvision().datasets

    class Named(datasets.ImageFolder):  # type: ignore[misc, name-defined]
        def __init__(self, root: str, split: str = "train", **kwargs: Any) -> None:
            verify = import_torchvision().datasets.utils.verify_str_arg
            verify(split, "split", ("train", "val", "test"))
            super().__init__(f"{root}/clevr-like/{split}", **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "Named", Named, raising=False)
        patch.setattr(datasets, "__all__", [*datasets.__all__, "Named"])
        task = _load("Named", tmp_path)
        assert [len(task.train), len(task.validation), len(task.test)] == [40, 8, 12]
        one = _load("Named", tmp_path, arguments={"split": "train"})
        assert [len(one.train), len(one.validation), len(one.test)] == [28, 4, 8]


def test_a_set_that_has_both_train_and_split_keeps_the_users_split(tmp_path: Path) -> None:
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for flag, count in (("train", 40), ("test", 10)):
        images = np.zeros((count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            shape = (0x803, *content.shape) if content.ndim == 3 else (0x801, *content.shape)
            packed = struct.pack(f">{len(shape)}I", *shape) + content.tobytes()
            (raw / f"emnist-digits-{flag}-{kind}-ubyte").write_bytes(packed)
            with gzip.open(raw / f"emnist-digits-{flag}-{kind}-ubyte.gz", "wb") as packed_file:
                packed_file.write(packed)
    task = _load("EMNIST", tmp_path, arguments={"split": "digits"}, validation_fraction=0.25)
    assert [len(task.train), len(task.validation), len(task.test)] == [30, 10, 10]


def test_images_become_squares_of_image_size() -> None:
    assert _load("FakeData", arguments=FAKE, image_size=16).train.inputs[0].shape[1:] == (3, 16, 16)


# What is refused


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("CIFAR11", {}, ["a data set of torchvision", "no 'CIFAR11'", "did you mean CIFAR10?"]),
        ("wrap_dataset_for_transforms_v2", {}, ["a data set of torchvision", "check the name"]),
        ("CIFAR10", {}, ["reads its files from data.folder", "it is not set", "--data"]),
        ("CIFAR10", {"folder": "/no/folder"}, ["/no/folder does not exist", "download = true"]),
        ("CIFAR10", {"folder": ".", "arguments": {"root": "/x"}}, ["root = '/x'", "set data.folder to it"]),
        ("FakeData", {"arguments": FAKE | {"depth": 3}}, ["must load", "TypeError", "'depth'", "data.arguments"]),
        ("FakeData", {"arguments": FAKE | {"size": 4}}, ["without a gap", "has 2 and no 1", "number them anew"]),
        ("SVHN", {"folder": ".", "arguments": {"split": "tset"}}, ["must load", "'tset'", "data.arguments"]),
        ("FakeData", {"arguments": FAKE, "tokenizer": None, "max_length": 8}, ["data.max_length", "text: or hf:"]),
    ],
)
def test_what_a_data_set_does_not_take_gets_one_line(name: str, options: dict[str, Any], parts: list[str]) -> None:
    refusal(lambda: load_data(DataSection(source=f"torchvision:{name}", **options), 0), parts)


@pytest.mark.parametrize(("name", "place"), [("CIFAR10", "cifar-10-batches-py"), ("MNIST", "MNIST/raw"), ("USPS", "")])
def test_missing_files_get_one_line_that_says_where_they_belong(tmp_path: Path, name: str, place: str) -> None:
    parts = [f"torchvision:{name} reads", str(tmp_path / place), "put them there", "arguments = {download = true}"]
    refusal(lambda: _load(name, tmp_path), parts)


def test_a_set_of_something_else_gets_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(b"no image")
    refusal(
        lambda: _load("ImageFolder", folder.parent), ["an image with its class number", "example 0 of train", "repair"]
    )
