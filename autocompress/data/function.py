"""``package.module:function`` and ``path/to/file.py:function``: data that a function of the user's returns.

It returns a :class:`~autocompress.data.task.TaskData`, which is taken as it is, or a mapping with ``train``
and, where there are such, ``validation``, ``test`` and ``class_names``. Each split is one of

- a torch Dataset, or a list, of (input, label);
- a pair (inputs, labels) of arrays or tensors with one row per example;
- ``{"inputs": ..., "labels": ...}``.

Inputs are a tensor or array, a tuple of them, or a dictionary of them by the names that the model knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, default_collate

from autocompress.config import DataSection
from autocompress.data.arrays import SINGLE_INPUT, Array, Arrays, array_task
from autocompress.data.options import refuse_image_options
from autocompress.data.splits import SPLIT_ALIASES, SPLIT_NAMES
from autocompress.data.task import TaskData
from autocompress.errors import DataError
from autocompress.reference import load_callable, one_line, suggest

_CLASS_NAMES = "class_names"
_PAIR = 2
_SPLIT_FORMS = 'a Dataset or list of (input, label), (inputs, labels), or {"inputs": ..., "labels": ...}'


def load_function(reference: str, config: DataSection, seed: int, classification: bool = True) -> TaskData:
    """What the function returns when it is called with ``config.arguments``.

    Raises:
        DataError: a reference that does not import, a function that raises or returns something else, or
            arrays that :func:`~autocompress.data.arrays.array_task` refuses.
    """
    return given_task(_call(reference, config.arguments), reference, config, seed, classification)


def given_task(given: Any, source: str, config: DataSection, seed: int, classification: bool = True) -> TaskData:
    """The task of data in any of the forms that a function may return.

    Args:
        source: what messages call their origin.

    Raises:
        DataError: another form, or arrays that :func:`~autocompress.data.arrays.array_task` refuses.
    """
    if isinstance(given, TaskData):
        refuse_image_options(config, "a TaskData")
        return given
    _check_mapping(given, source)
    class_names = _class_names(given, source)
    splits = {name: _arrays(given[name], name, source) for name in SPLIT_NAMES if given.get(name) is not None}
    by_name = isinstance(splits["train"][0], Mapping)
    arrays = {name: Arrays(_named(inputs), labels) for name, (inputs, labels) in splits.items()}
    return array_task(arrays, by_name, class_names, config, seed, classification)


def _call(reference: str, arguments: Mapping[str, Any]) -> Any:
    function = load_callable(reference, DataError, builds="the data")
    try:
        return function(**arguments)
    except Exception as error:  # the user's function may raise anything
        raise DataError(
            f"{reference} must return data; called with {dict(arguments)} it raised {type(error).__name__}: "
            f"{one_line(error)}; correct data.arguments or its code"
        ) from error


def _check_mapping(returned: object, reference: str) -> None:
    rule = "a data function returns a mapping with train and, where there are such, validation and test, or a TaskData"
    if not isinstance(returned, Mapping):
        raise DataError(f'{rule}; {reference} returned {type(returned).__name__}; return {{"train": ...}}')
    keys = [str(key) for key in returned]
    unknown = [key for key in keys if key not in (*SPLIT_NAMES, _CLASS_NAMES)]
    if unknown:
        near = suggest(SPLIT_ALIASES.get(unknown[0], unknown[0]), SPLIT_NAMES)
        raise DataError(f"{rule}; {reference} returned the key {unknown[0]!r}; {near}")
    if returned.get("train") is None:
        raise DataError(f"{rule}; {reference} returned {', '.join(keys) or 'nothing'}; add train")


def _class_names(returned: Mapping[str, Any], reference: str) -> list[str] | None:
    names = returned.get(_CLASS_NAMES)
    if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
        raise DataError(
            f"class_names is a list of names by class number; {reference} returned {type(names).__name__}; return a list"
        )
    return None if names is None else [str(name) for name in names]


def _arrays(part: Any, split: str, reference: str) -> tuple[Any, Any]:
    """(inputs, labels) of a split in any of its forms."""
    if isinstance(part, Mapping):
        if set(part) != {"inputs", "labels"}:
            raise DataError(
                f"a split is {_SPLIT_FORMS}; {split} of {reference} has the keys "
                f"{', '.join(map(str, part)) or 'none'}; name them inputs and labels"
            )
        return part["inputs"], part["labels"]
    if isinstance(part, tuple | list) and len(part) == _PAIR and _has_rows(part[1]):
        return part[0], part[1]
    return _collated(part, split, reference)


def _has_rows(value: object) -> bool:
    """An array, a tensor or a list of plain values: labels of many examples, not one example."""
    if isinstance(value, list):
        return all(isinstance(label, str | int | float) for label in value)
    return hasattr(value, "__array__") and np.ndim(value) > 0


def _collated(part: Any, split: str, reference: str) -> tuple[Any, Any]:
    """(inputs, labels) of a Dataset or a list of examples."""
    if not isinstance(part, Dataset | Sequence) or isinstance(part, str) or not hasattr(part, "__len__"):
        raise DataError(
            f"a split is {_SPLIT_FORMS}; {split} of {reference} is of type {type(part).__name__}; return one of these"
        )
    try:
        examples = [part[index] for index in range(len(part))]
    except Exception as error:  # the user's data set may raise anything
        raise DataError(
            f"every example can be read; {split} of {reference} raised {type(error).__name__}: {one_line(error)}; "
            "correct its code"
        ) from error
    if not examples:
        raise DataError(f"each split has examples; {split} of {reference} has none; add some or leave the split out")
    odd = [example for example in examples if not isinstance(example, tuple | list) or len(example) != _PAIR]
    if odd:
        raise DataError(
            f"an example is (input, label); {split} of {reference} has one of type {type(odd[0]).__name__}; return pairs"
        )
    return _stacked([example[0] for example in examples], split), _stacked([example[1] for example in examples], split)


def _stacked(values: list[Any], split: str) -> Any:
    """Rows of one array, or of a tuple or dictionary of arrays."""
    try:
        values = [np.asarray(value) if isinstance(value, list) else value for value in values]
        stacked = default_collate(values)
    except Exception as error:  # numpy and default_collate have several ways to say that shapes differ
        raise DataError(
            f"inputs are tensors or arrays of one shape; those of {split} cannot be stacked: {one_line(error)}; "
            "convert, resize or pad them"
        ) from error
    return tuple(stacked) if isinstance(values[0], tuple) else stacked


def _named(inputs: Any) -> dict[str, Array]:
    """Inputs by name: the model's names for them, or ours where it takes them by position."""
    if isinstance(inputs, Mapping):
        return {str(name): value for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return {f"{SINGLE_INPUT}_{number}": value for number, value in enumerate(inputs)}
    return {SINGLE_INPUT: inputs}
