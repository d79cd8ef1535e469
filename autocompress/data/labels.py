"""Labels as sources hold them -> class numbers from 0, or targets that are no classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import DataError


def class_numbers(values: NDArray[Any], split: str) -> Tensor:
    """Class numbers of an array: (n,) or (n, 1) whole numbers from 0 -> (n,) int64.

    Raises:
        DataError: texts, fractions, negative numbers, or more than one number per example.
    """
    if values.dtype.kind not in "iufb":
        raise DataError(
            f"labels are class numbers 0, 1, ...; {split} has {_shown(values)}; number the classes, or set "
            "task.loss where targets are no classes"
        )
    if values.ndim != 1 and values.shape[1:] != (1,):
        raise DataError(
            f"labels are one class number per example; those of {split} have shape {list(values.shape)}; give "
            "the number of the class, or set task.loss where targets are no classes"
        )
    flat = values.reshape(-1)
    odd = ~np.isfinite(flat) | (flat < 0) | (flat != np.floor(flat))
    if odd.any():
        raise DataError(
            f"labels are class numbers 0, 1, ...; {split} has {flat[odd][0]}; number the classes, or set "
            "task.loss where targets are no classes"
        )
    return torch.from_numpy(flat.astype(np.int64))


def _shown(values: NDArray[Any]) -> str:
    return repr(values.reshape(-1)[0].item()) if values.size and values.dtype.kind in "US" else f"type {values.dtype}"


def numbered_names(labels: Mapping[str, Tensor], names: Sequence[str] | None) -> tuple[str, ...]:
    """Class names of labels that are class numbers: ``names``, or "0", "1", ... up to the greatest of train.

    Raises:
        DataError: a number without a name, or classes numbered with gaps.
    """
    train = labels["train"]
    count = len(names) if names is not None else int(train.max()) + 1 if len(train) else 0
    for split, values in labels.items():
        beyond = values[values >= count]
        if len(beyond):
            raise DataError(
                f"labels are class numbers 0...{count - 1}; {split} has {int(beyond[0])}; correct the labels or "
                f"{'the class names' if names is not None else 'add examples of the class to train'}"
            )
    present = len(torch.unique(train))
    if names is None and present < count:
        absent = int(np.setdiff1d(np.arange(min(count, present + 1)), train.numpy())[0])
        raise DataError(
            f"classes are numbered 0, 1, ... without a gap; train has {int(train.max())} and no {absent}; number them anew"
        )
    return tuple(names) if names is not None else tuple(str(number) for number in range(count))


def named_classes(columns: Mapping[str, pd.Series]) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Classes of a table's label column: names, sorted, and class numbers (n,) int64 of each split.

    Whole numbers are sorted as numbers, texts as texts. The classes are those of train.

    Raises:
        DataError: rows without a label, fractions, numbers among texts, a class that train has not.
    """
    values = {split: _values(column, split) for split, column in columns.items()}
    for split, ours in values.items():
        if ours.dtype.kind != values["train"].dtype.kind:
            raise DataError(
                f"labels are all numbers or all texts; train has {values['train'][0].item()!r}, {split} has {ours[0].item()!r}; "
                "write them one way"
            )
    classes = np.unique(values["train"])
    for split, ours in values.items():
        unknown = np.setdiff1d(ours, classes)
        if len(unknown):
            raise DataError(
                f"the classes are those of train; {split} has {unknown[0].item()!r} in column "
                f"{columns[split].name!r}; correct the label or add such examples to train"
            )
    numbers = {split: torch.from_numpy(np.searchsorted(classes, ours)) for split, ours in values.items()}
    return tuple(str(name) for name in classes), numbers


def _values(column: pd.Series, split: str) -> NDArray[Any]:
    """(n,) int64, or texts as str objects of one array."""
    _check_given(column, split)
    texts = column.astype(str)
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    is_number = np.isfinite(numbers)
    if not is_number.any():
        return texts.to_numpy(dtype=str)
    if not is_number.all():
        raise DataError(
            f"labels are all numbers or all texts; {split} has {texts[is_number].iloc[0]!r} and "
            f"{texts[~is_number].iloc[0]!r} in column {column.name!r}; write them one way"
        )
    odd = numbers != np.floor(numbers)
    if odd.any():
        raise DataError(
            f"numbers that are labels are whole; {split} has {numbers[odd][0]} in column {column.name!r}; "
            "correct it, or set task.loss where targets are no classes"
        )
    return numbers.astype(np.int64)


def _check_given(column: pd.Series, split: str) -> None:
    absent = np.flatnonzero(column.isna() | (column.astype(str).str.strip() == ""))
    if len(absent):
        raise DataError(
            f"every row has a label; {len(absent)} of {len(column)} rows of {split} have none in column "
            f"{column.name!r}, first row {absent[0] + 1}; add it or remove the row"
        )


def column_targets(column: pd.Series, split: str) -> Tensor:
    """Targets of a table's column that are no classes: (n,) float32.

    Raises:
        DataError: rows without a value, or with one that is no finite number.
    """
    _check_given(column, split)
    numbers = pd.to_numeric(column, errors="coerce")
    odd = column[~np.isfinite(numbers.to_numpy(dtype=np.float64, na_value=np.nan))]
    if len(odd):
        raise DataError(
            f"targets are finite numbers where task.loss is set; {split} has {odd.iloc[0]!r} in column {column.name!r}; "
            "write a number or remove task.loss"
        )
    return torch.from_numpy(numbers.to_numpy(dtype=np.float32))
