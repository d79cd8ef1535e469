"""What inputs and targets must keep to, whatever they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autocompress.data.splits import Splits
from autocompress.data.task import Split
from autocompress.errors import DataError


def check_finite(splits: Splits, input_names: Sequence[str]) -> None:
    """No NaN and no infinity in inputs and targets.

    Raises:
        DataError: naming the split, the input and the number of its examples.
    """
    for split_name, split in splits.items():
        for name, values in zip((*input_names, "the targets"), (*split.inputs, split.labels), strict=True):
            count = _examples_not_finite(values)
            if count:
                raise DataError(
                    f"inputs and targets are finite numbers; {count} of {len(split)} examples of {split_name} have "
                    f"NaN or infinity in {name}; repair or leave them out"
                )


def _examples_not_finite(values: Tensor) -> int:
    """(n, ...) -> how many of the n are not finite throughout; a sum is not only if a member is not."""
    if not values.is_floating_point() or bool(torch.isfinite(values.sum(dtype=torch.float64))):
        return 0
    return int((~torch.isfinite(values)).reshape(len(values), -1).any(dim=1).sum())


def check_agreement(given: Mapping[str, Split], input_names: Sequence[str]) -> None:
    """Inputs and targets have one type, and one shape but for the number of examples, in all splits.

    Raises:
        DataError: naming a split that differs from train.
    """
    for split_name, split in given.items():
        pairs = zip((*split.inputs, split.labels), (*given["train"].inputs, given["train"].labels), strict=True)
        for name, (values, expected) in zip((*input_names, "the targets"), pairs, strict=True):
            if _kind(values) != _kind(expected):
                raise DataError(
                    f"all splits have inputs and targets of one shape and type; {name} of {split_name} "
                    f"{_kind(values)}, of train {_kind(expected)}; make them alike"
                )


def _kind(values: Tensor) -> str:
    return f"has shape {list(values.shape[1:])} and type {str(values.dtype).removeprefix('torch.')}"
