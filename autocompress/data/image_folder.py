"""Folders of images, one folder per class.

DIR/train/<class>/*, with DIR/val and DIR/test where there are such, or DIR/<class>/* without splits. Images are decoded once into memory, n * 3 * height * width bytes; that suits small images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from autocompress.config import DataSection
from autocompress.data.images import image_task
from autocompress.data.splits import SPLIT_NAMES, Splits, check_labels, cut
from autocompress.data.task import Split, TaskData
from autocompress.errors import DataError
from autocompress.torchvision_compat import import_torchvision

_SPLIT_FOLDERS = ("train", "val", "test")
_MEANT_AS_SPLITS = {"validation": "val"} | {name: name for name in _SPLIT_FOLDERS}
_ALSO_BESIDE_TRAIN = {"valid": "val", "dev": "val"}  # without train they may be classes
_THREADS = 4
_SHARE = 256  # files a thread decodes before it takes the next share
_DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what PIL raises on a broken file

Files = dict[str, list[str]]  # class name -> paths in name order


@dataclass(frozen=True)
class _FileSplits:
    train: Files
    validation: Files
    test: Files


def load_image_folder(folder: str, config: DataSection, seed: int, classification: bool = True) -> TaskData:
    """``imagefolder:DIR``: RGB images, classes in alphabetical order.

    Where there is ``DIR/train`` without ``DIR/val``, the last ``validation_fraction`` of each class of train, in
    name order, is validation; without ``DIR/test`` the ``test_fraction`` before those is test. Class folders
    directly in DIR are split at random, seeded and stratified. Images become ``image_size`` squares (bilinear),
    or keep their size, which then is one for all. Labels are classes whatever ``classification`` says.

    Raises:
        DataError: folders or classes that are missing, empty or differ; an image that cannot be read or has
            another size; too few images to split.
    """
    splits = _file_splits(Path(folder), config, seed)
    decode = _decoder(config.image_size, next(iter(splits.train.values()))[0])
    parts = (_decode_split(files, decode) for files in (splits.train, splits.validation, splits.test))
    return image_task(
        Splits(*parts),
        class_names=tuple(splits.train),
        config=config,
        seed=seed,
        preprocessing={"channels": "RGB", "resize": "PIL bilinear" if config.image_size else None},
    )


def _file_splits(folder: Path, config: DataSection, seed: int) -> _FileSplits:
    if not folder.is_dir():
        raise DataError(f"imagefolder:DIR names a folder; {folder} does not exist; correct data.source")
    _check_split_names(folder)
    if not any((folder / split).is_dir() for split in _SPLIT_FOLDERS):
        return _random_splits(_list_files(folder), config, seed)
    whole = train = _list_files(folder / "train")
    validation, test = _optional_split(folder / "val", whole), _optional_split(folder / "test", whole)
    if validation is None:
        train, validation = _cut_off(train, whole, config.validation_fraction, "validation_fraction")
    if test is None:
        train, test = _cut_off(train, whole, config.test_fraction, "test_fraction")
    return _FileSplits(train, validation, test)


def _check_split_names(folder: Path) -> None:
    meant = _MEANT_AS_SPLITS | (_ALSO_BESIDE_TRAIN if (folder / "train").is_dir() else {})
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and entry.name not in _SPLIT_FOLDERS and entry.name.lower() in meant:
            raise DataError(
                f"splits of an image folder are {', '.join(_SPLIT_FOLDERS)}; {folder} has {entry.name}; rename it "
                f"{meant[entry.name.lower()]}"
            )


def _random_splits(files: Files, config: DataSection, seed: int) -> _FileSplits:
    """Cut at random from class folders without splits: equal parts of each class, each in name order."""
    whole = [(name, path) for name, paths in files.items() for path in paths]
    labels = np.array([number for number, paths in enumerate(files.values()) for _ in paths])
    rows = cut(len(whole), labels, list(files), ("validation", "test"), config, seed)
    check_labels({split: torch.from_numpy(labels[part]) for split, part in rows.items()}, list(files))
    parts = (_by_class([whole[row] for row in rows[split]], files) for split in SPLIT_NAMES)
    return _FileSplits(*parts)


def _by_class(examples: Sequence[tuple[str, str]], classes: Iterable[str]) -> Files:
    files: Files = {name: [] for name in classes}
    for name, path in examples:
        files[name].append(path)
    return files


def _optional_split(folder: Path, train: Files) -> Files | None:
    if not folder.is_dir():
        return None
    files = _list_files(folder)
    odd = sorted(set(files) ^ set(train))
    if odd:
        raise DataError(
            f"all splits have the same classes; {odd[0]!r} is not in both train and {folder}; add or remove the folder"
        )
    return files


def _list_files(folder: Path) -> Files:
    if not folder.is_dir():
        raise DataError(f"an image folder has train/<class>/ with images; {folder} does not exist; make it")
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if not found:
        raise DataError(f"images lie in one folder per class; {folder} has no folder; make one for each class")
    import_torchvision()
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    files: Files = {name: [] for name in found}
    numbers = {name: number for number, name in enumerate(found)}
    for path, number in make_dataset(str(folder), numbers, extensions=IMG_EXTENSIONS, allow_empty=True):
        files[found[number]].append(path)
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise DataError(f"each class has images; {folder / empty[0]} has none; add some or remove the folder")
    return files


def _cut_off(files: Files, whole: Files, fraction: float, option: str) -> tuple[Files, Files]:
    """Take the last ``fraction`` (of the class in ``whole``) from each class: (what stays, what is taken)."""
    stays, taken = {}, {}
    for name, paths in files.items():
        count = round(fraction * len(whole[name]))
        if not 0 < count < len(paths):
            raise DataError(
                f"each class gives images to every split; {name!r} has {len(whole[name])}, of which "
                f"data.{option} = {fraction} takes {count}; add images or change the fraction"
            )
        stays[name], taken[name] = paths[:-count], paths[-count:]
    return stays, taken


Decoder = Callable[[str], NDArray[np.uint8]]


def _decoder(image_size: int | None, first: str) -> Decoder:
    """path -> (height, width, 3); without ``image_size`` every image must have the size of ``first``."""
    if image_size is not None:
        target = (image_size, image_size)
        return lambda path: np.asarray(_open(path).resize(target, Image.Resampling.BILINEAR))
    expected = _open(first).size

    def decode(path: str) -> NDArray[np.uint8]:
        image = _open(path)
        if image.size != expected:
            raise DataError(
                f"without data.image_size all images have one size; {path} is {_times(image.size)}, "
                f"{first} {_times(expected)}; set data.image_size"
            )
        return np.asarray(image)

    return decode


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _open(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise DataError(f"every image must be readable; {path}: {reason}; replace or remove it") from error


def _decode_split(files: Files, decode: Decoder) -> Split:
    paths = [path for part in files.values() for path in part]
    labels = [label for label, part in enumerate(files.values()) for _ in part]
    return Split((_decode_all(paths, decode),), torch.tensor(labels, dtype=torch.int64))


def _decode_all(paths: Sequence[str], decode: Decoder) -> torch.Tensor:
    """(n, 3, height, width) of uint8. Threads help because PIL decodes without holding the interpreter."""
    first = decode(paths[0])
    images = np.empty((len(paths), 3, *first.shape[:2]), dtype=np.uint8)

    def decode_share(start: int) -> None:
        for index in range(start, min(start + _SHARE, len(paths))):
            images[index] = decode(paths[index]).transpose(2, 0, 1)

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode_share, range(0, len(paths), _SHARE)):
            pass  # map re-raises what a share raised
    return torch.from_numpy(images)
