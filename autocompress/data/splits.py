"""The three splits of a task: those that a source has, and those that are cut from its train."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.config import DataSection
from autocompress.data.task import Split
from autocompress.errors import DataError

SPLIT_NAMES = ("train", "validation", "test")
SPLIT_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}
_FEWEST_CLASSES = 2

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """Examples as they are stored; inputs agree in type and, from the second axis on, in shape."""

    train: Split
    validation: Split
    test: Split

    def items(self) -> tuple[tuple[str, Split], ...]:
        """(name, split) of all three."""
        return tuple((name, getattr(self, name)) for name in SPLIT_NAMES)


def complete(given: Mapping[str, Split], class_names: Sequence[str], config: DataSection, seed: int) -> Splits:
    """Splits whose missing members are cut from train.

    Args:
        given: ``train``, and ``validation`` and ``test`` where the source has them.
        class_names: by label; none for targets that are no classes, which are cut without regard to them.
        config: the fractions of train to cut.
        seed: of the cut.

    Raises:
        DataError: an empty split, too few examples, a class without examples in train or validation.
    """
    train = given["train"]
    labels = train.labels.numpy() if class_names else None
    missing = [name for name in SPLIT_NAMES if name not in given]
    if missing:
        rows = cut(len(train), labels, class_names, missing, config, seed)
        given = dict(given) | {name: train.take(torch.from_numpy(part)) for name, part in rows.items()}
    splits = Splits(**given)
    check_labels({name: split.labels for name, split in splits.items()}, class_names)
    return splits


def cut(
    count: int,
    labels: NDArray[Any] | None,
    class_names: Sequence[str],
    missing: Collection[str],
    config: DataSection,
    seed: int,
) -> dict[str, Rows]:
    """Draw the missing splits from ``count`` examples: the rows of each and, under ``train``, those that stay.

    Args:
        count: number of examples.
        labels: (count,) class numbers; each split has equal parts of each class. None: any part.
        class_names: by label, for messages.
        missing: ``validation``, ``test``, both or none.
        config: the fractions, each of all examples.
        seed: of the draw.

    Raises:
        DataError: a fraction that gives a split no example of some class, or a class too small for that.
    """
    if labels is not None:
        _check_counts(labels, class_names, 1 + len(missing))
    rows = {"train": np.arange(count)}
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name in missing:
            rows["train"], rows[name] = _hold_out(rows["train"], count, labels, fraction, f"{name}_fraction", seed)
    return rows


def _check_counts(labels: NDArray[Any], class_names: Sequence[str], least: int) -> None:
    for number, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count < least:
            raise DataError(
                f"each class has an example for each split that is cut; {class_names[number]!r} has {count} of "
                f"{least}; add examples or leave the class out"
            )


def _hold_out(
    rows: Rows, total: int, labels: NDArray[Any] | None, fraction: float, option: str, seed: int
) -> tuple[Rows, Rows]:
    """(what stays, what is held out): that fraction of all the data, in equal parts of each class."""
    from sklearn.model_selection import train_test_split

    count, classes = round(total * fraction), 1 if labels is None else len(np.unique(labels))
    if not classes <= count <= len(rows) - classes:
        each = f"an example of each of {classes} classes" if labels is not None else "an example"
        raise DataError(
            f"each split has {each}; data.{option} = {fraction} of {total} gives {count} and leaves "
            f"{len(rows) - count}; {'raise the fraction' if count < classes else 'add examples'}"
        )
    strata = None if labels is None else labels[rows]
    try:
        stays, held = train_test_split(rows, test_size=count, stratify=strata, random_state=seed)
    except ValueError as error:  # a class of which an earlier cut left a single example
        raise DataError(
            f"each class has an example for each split that is cut; data.{option} = {fraction} finds one of a class; "
            "add examples or leave the class out"
        ) from error
    return np.sort(stays), np.sort(held)


def check_labels(labels: Mapping[str, Tensor], class_names: Sequence[str]) -> None:
    """Each split has examples; train and validation have some of each class, where there are classes.

    Raises:
        DataError: naming the split and the class.
    """
    for name, values in labels.items():
        if not len(values):
            raise DataError(f"each split has examples; {name} has none; add some or correct the source")
    if class_names and len(class_names) < _FEWEST_CLASSES:
        raise DataError(
            f"a task has two classes or more; here there is only {class_names[0]!r}; correct the labels or the source"
        )
    for name in ("train", "validation") if class_names else ():
        counts = torch.bincount(labels[name], minlength=len(class_names))
        if not counts.all():
            absent = class_names[int(counts.argmin())]
            raise DataError(f"each class has examples in {name}; {absent!r} has none; add some or leave the class out")


def draw_calibration(train: Split, examples: int, seed: int) -> Split:
    """``examples`` rows of train (all of them, where there are fewer), drawn without replacement."""
    generator = torch.Generator().manual_seed(seed)
    drawn: Tensor = torch.randperm(len(train), generator=generator)[:examples]
    return train.take(drawn.sort().values)
