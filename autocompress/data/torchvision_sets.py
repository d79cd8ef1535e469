"""``torchvision:NAME``: a data set of torchvision with one image and one class per example.

Its files lie in ``data.folder`` as torchvision lays them out; nothing is downloaded unless
``arguments = {download = true}`` asks for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from autocompress.config import DataSection
from autocompress.data.images import image_task
from autocompress.data.labels import class_numbers, numbered_names
from autocompress.data.pixels import Pixels, pixels, stack_splits
from autocompress.data.splits import complete
from autocompress.data.task import Split, TaskData
from autocompress.errors import DataError
from autocompress.reference import one_line, suggest
from autocompress.torchvision_compat import import_torchvision

# What torchvision's data sets call their splits, the likeliest first; a set has at most one of each line.
_NAMES_OF_SPLITS = {
    "train": ("train", "trainval", "train-standard"),
    "validation": ("val", "valid"),
    "test": ("test",),
}
_UNKNOWN_SPLIT = "Valid values are"  # of torchvision.datasets.utils.verify_str_arg


def load_torchvision(name: str, config: DataSection, seed: int, classification: bool = True) -> TaskData:
    """The data set's own splits where its constructor takes ``train`` or ``split``; what is missing is cut from train.

    Images are decoded once, become ``image_size`` squares (bilinear) or keep their size, which then is one for
    all, and have one channel where none has colours.

    Raises:
        DataError: no such data set, files that are not there, arguments that it does not take, examples that
            are not an image with a class number.
    """
    given = _splits(_class(name), name, config)
    decoded = {split: _decode(data, split, config) for split, data in given.items()}
    images = stack_splits({split: some for split, (some, _) in decoded.items()})
    labels = {split: class_numbers(np.asarray(numbers), split) for split, (_, numbers) in decoded.items()}
    class_names = numbered_names(labels, _class_names(given["train"]))
    splits = {split: Split((images[split],), labels[split]) for split in given}
    facts = {
        "channels": "grey" if images["train"].shape[1] == 1 else "RGB",
        "resize": "PIL bilinear" if config.image_size else None,
    }
    return image_task(complete(splits, class_names, config, seed), class_names, config, seed, facts)


def _class(name: str) -> type[Any]:
    module: ModuleType = import_torchvision().datasets
    known = {key: value for key in module.__all__ if inspect.isclass(value := getattr(module, key))}
    if name not in known:
        raise DataError(f"torchvision:NAME is a data set of torchvision; it has no {name!r}; {suggest(name, known)}")
    return known[name]


def _splits(kind: type[Any], name: str, config: DataSection) -> dict[str, Any]:
    """The data set's own splits; all of it, under ``train``, where it has none or the arguments choose one."""
    parameters = _parameters(kind)
    options = {"root": _root(name, config)} if "root" in parameters else {}
    chosen = options | config.arguments
    if "train" in parameters and "train" not in config.arguments:
        flags = {"train": True, "test": False}
        return {split: _make(kind, name, chosen | {"train": flag}) for split, flag in flags.items()}
    if "split" in parameters and "split" not in config.arguments:
        found = {split: _first(kind, name, chosen, names) for split, names in _NAMES_OF_SPLITS.items()}
        if found["train"] is not None:
            return {split: data for split, data in found.items() if data is not None}
    return {"train": _make(kind, name, chosen)}


def _parameters(kind: type[Any]) -> set[str]:
    """What the constructor takes, and what it passes on to those of its bases."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names |= {parameter.name for parameter in parameters}
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
                break
    return names


def _root(name: str, config: DataSection) -> str:
    if "root" in config.arguments:
        raise DataError(
            f"torchvision:{name} reads its files from data.folder; data.arguments has root = "
            f"{config.arguments['root']!r}; set data.folder to it"
        )
    if config.folder is None:
        raise DataError(f"torchvision:{name} reads its files from data.folder; it is not set; set it, or give --data")
    if not Path(config.folder).is_dir() and not config.arguments.get("download"):
        raise DataError(
            f"torchvision:{name} reads its files from data.folder; {config.folder} does not exist; correct it, or set "
            "data.arguments = {download = true}"
        )
    return config.folder


def _first(kind: type[Any], name: str, options: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The split that has one of these names, or None."""
    made = (_make(kind, name, {**options, "split": split}, may_lack_split=True) for split in names)
    return next((data for data in made if data is not None), None)


def _make(kind: type[Any], name: str, options: Mapping[str, Any], may_lack_split: bool = False) -> Any:
    try:
        return kind(**options)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"torchvision:{name} reads its files from data.folder as torchvision lays them out; "
            f"{_place(kind, options)}: {one_line(error)}; put them there, or set data.arguments = {{download = true}}"
        ) from error
    except Exception as error:  # each data set checks its arguments in its own way
        if may_lack_split and _UNKNOWN_SPLIT in str(error) and repr(options["split"]) in str(error):
            return None
        raise DataError(
            f"torchvision:{name} must load; called with {dict(options)} it raised {type(error).__name__}: "
            f"{one_line(error)}; correct data.arguments"
        ) from error


def _place(kind: type[Any], options: Mapping[str, Any]) -> str:
    """Where the files are looked for, as far as the class says it."""
    inside = getattr(kind, "base_folder", None)
    if not isinstance(inside, str):
        inside = f"{kind.__name__}/raw" if hasattr(kind, "raw_folder") else ""
    return str(Path(options.get("root", ".")) / inside)


def _decode(data: Any, split: str, config: DataSection) -> tuple[list[Pixels], list[Any]]:
    """(images, class numbers), one after the other: a data set may draw from torch's global generator."""
    state = torch.get_rng_state()
    images, numbers = list[Pixels](), list[Any]()
    try:
        for index in range(len(data)):
            image, number = data[index]
            images.append(pixels(image, config.image_size))
            numbers.append(int(number))
    except DataError:
        raise
    except Exception as error:  # a file that is damaged, or a target that is no class
        raise DataError(
            f"an example is an image with its class number; example {len(numbers)} of {split}: {one_line(error)}; "
            "repair the file, or choose a set for classification"
        ) from error
    finally:
        torch.set_rng_state(state)
    return images, numbers


def _class_names(data: Any) -> list[str] | None:
    names = getattr(data, "classes", None) or getattr(data, "categories", None)
    return [str(name) for name in names] if isinstance(names, list | tuple) else None
