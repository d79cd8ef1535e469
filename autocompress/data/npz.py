"""``npz:FILE``: arrays that ``numpy.savez`` wrote.

| names in the file                                           | splits           | inputs         |
|-------------------------------------------------------------|------------------|----------------|
| ``x``, ``y``                                                | cut              | one            |
| ``x_train``, ``y_train``, ``x_test``, ``y_test``, ...       | those that exist | one            |
| ``inputs.NAME``, ..., ``labels``                            | cut              | by their names |
| ``train.NAME``, ..., ``train.labels``, ``test.NAME``, ...   | those that exist | by their names |

``class_names`` may stand beside any of them.
"""

from __future__ import annotations

import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.config import DataSection
from autocompress.data.arrays import SINGLE_INPUT, Arrays, array_task
from autocompress.data.splits import SPLIT_ALIASES, SPLIT_NAMES
from autocompress.data.task import TaskData
from autocompress.errors import DataError
from autocompress.reference import one_line, suggest

_LABELS = "labels"
_CLASS_NAMES = "class_names"
_FORMS = "x and y, x_train and y_train, inputs.NAME and labels, or train.NAME and train.labels"
_PLAIN = {"x": ("train", SINGLE_INPUT), "y": ("train", _LABELS)} | {
    f"{letter}_{split}": (split, member)
    for split in SPLIT_NAMES
    for letter, member in (("x", SINGLE_INPUT), ("y", _LABELS))
}

Contents = dict[str, NDArray[Any]]


def load_npz(file: str, config: DataSection, seed: int, classification: bool = True) -> TaskData:
    """The arrays of a .npz file; splits that it has not are cut from train, seeded and stratified.

    Raises:
        DataError: a file that cannot be read, names that are none of those above, or arrays that
            :func:`~autocompress.data.arrays.array_task` refuses.
    """
    contents = _read(Path(file))
    names = contents.pop(_CLASS_NAMES, None)
    by_name = not any(name in _PLAIN for name in contents)
    given = _by_split(contents, by_name, Path(file))
    class_names = None if names is None else [str(name) for name in names.reshape(-1)]
    return array_task(given, by_name, class_names, config, seed, classification)


def _read(path: Path) -> Contents:
    if not path.is_file():
        raise DataError(f"npz:FILE names a file; {path} does not exist; correct data.source")
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it holds one array without a name")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"npz:FILE is an archive of plain arrays; {path}: {one_line(error)}; write it with numpy.savez, "
            "and no arrays of objects"
        ) from error


def _by_split(contents: Contents, by_name: bool, path: Path) -> dict[str, Arrays]:
    members: dict[str, Contents] = defaultdict(dict)
    for name, array in contents.items():
        split, member = _place(name, by_name, list(contents), path)
        if member in members[split]:
            raise DataError(f"each array is given once; {path} has {name!r} a second time; keep one way of naming")
        members[split][member] = array
    if "train" not in members:
        raise DataError(
            f"a file of arrays has {_FORMS}; {path} has {', '.join(contents) or 'none'}; name the arrays so"
        )
    return {split: _arrays(split, arrays, path) for split, arrays in members.items()}


def _place(name: str, by_name: bool, names: list[str], path: Path) -> tuple[str, str]:
    """(split, input or ``labels``) of an array's name."""
    split, _, member = name.partition(".")
    if by_name and name == _LABELS:
        return "train", _LABELS
    if by_name and member and split in ("inputs", *SPLIT_NAMES) and (split, member) != ("inputs", _LABELS):
        return ("train" if split == "inputs" else split), member
    if not by_name and name in _PLAIN:
        return _PLAIN[name]
    raise DataError(
        f"a file of arrays has {_FORMS}; {path} has {', '.join(names)}, of which {name!r} is none; {_near(name)}"
    )


def _near(name: str) -> str:
    letter, _, split = name.lower().partition("_")
    dotted = [f"{prefix}.{name.partition('.')[2]}" for prefix in ("inputs", *SPLIT_NAMES)]
    return suggest(f"{letter}_{SPLIT_ALIASES.get(split, split)}", dotted if "." in name else _PLAIN)


def _arrays(split: str, members: Contents, path: Path) -> Arrays:
    inputs = {name: array for name, array in members.items() if name != _LABELS}
    if _LABELS not in members or not inputs:
        absent = "labels" if inputs else "inputs"
        raise DataError(f"each split has inputs and labels; {path} has no {absent} of {split}; add the array")
    return Arrays(inputs, members[_LABELS])
