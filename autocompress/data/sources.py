"""``[data]`` of a study file -> the task's data.

A source is ``KIND:NAME``, or names a function. Each kind has one loader, in a file of its own, listed here.
"""

from __future__ import annotations

import difflib
import importlib.machinery
import sys
from collections.abc import Callable
from pathlib import Path

from autocompress.config import DataSection
from autocompress.data.digits import load_digits
from autocompress.data.function import load_function
from autocompress.data.image_folder import load_image_folder
from autocompress.data.npz import load_npz
from autocompress.data.options import FUNCTION, check_options
from autocompress.data.saved_dataset import load_saved_dataset
from autocompress.data.task import TaskData
from autocompress.data.text import load_text
from autocompress.data.torchvision_sets import load_torchvision
from autocompress.errors import DataError

_LOADERS: dict[str, Callable[[str, DataSection, int, bool], TaskData]] = {
    "sklearn": load_digits,
    "imagefolder": load_image_folder,
    "torchvision": load_torchvision,
    "text": load_text,
    "npz": load_npz,
    "hf": load_saved_dataset,
    FUNCTION: load_function,
}
_FORMS = {
    "sklearn": "sklearn:digits",
    "imagefolder": "imagefolder:DIR",
    "torchvision": "torchvision:NAME",
    "text": "text:FILE",
    "npz": "npz:FILE",
    "hf": "hf:DIR",
    FUNCTION: "package.module:function or path/to/file.py:function",
}


def load_data(config: DataSection, seed: int, *, classification: bool = True) -> TaskData:
    """Load what ``config.source`` names.

    Args:
        config: the ``[data]`` section, its paths resolved.
        seed: decides random splits, the calibration examples and the augmentation.
        classification: labels are classes. Else arrays, functions and columns of numbers give their targets as
            they are, with no class names; images in folders keep their classes.

    Raises:
        DataError: unknown source, an option that it does not take, or data that are missing, unreadable or do
            not fit each other.
    """
    kind, name = _kind(config.source)
    check_options(config, kind)
    return _LOADERS[kind](name, config, seed, classification)


def _kind(source: str) -> tuple[str, str]:
    """(kind, what its loader takes)."""
    kind, _, name = source.partition(":")
    if kind in _LOADERS and kind != FUNCTION and name:
        return kind, name
    module, _, function = source.rpartition(":")
    if module and function and _is_module(module):
        return FUNCTION, source
    near = difflib.get_close_matches(kind, [name for name in _LOADERS if name != FUNCTION], n=1)
    hint = f"did you mean {_FORMS[near[0]]}?" if near else "use one of these"
    raise DataError(f"data.source is {', '.join(_FORMS.values())}; got {source!r}; {hint}")


def _is_module(place: str) -> bool:
    """A .py file or a module's name; one without a dot could be a kind that is written wrong, so it must exist."""
    if place.endswith(".py"):
        return True
    parts = place.split(".")
    if not all(part.isidentifier() for part in parts):
        return False
    return len(parts) > 1 or importlib.machinery.PathFinder.find_spec(place, [*sys.path, str(Path.cwd())]) is not None
