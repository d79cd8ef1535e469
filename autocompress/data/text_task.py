"""Tables of texts -> a task of token ids: what ``text:`` and ``hf:`` have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from autocompress.config import DataSection
from autocompress.data.labels import class_numbers, column_targets, named_classes, numbered_names
from autocompress.data.options import refuse_image_options
from autocompress.data.overlap import overlapping
from autocompress.data.splits import SPLIT_NAMES, Rows, Splits, check_labels, cut, draw_calibration
from autocompress.data.tables import check_columns
from autocompress.data.task import Split, TaskData, Tensors
from autocompress.data.tokenizer import LEAST_TOKENS, Tokenizer, load_tokenizer
from autocompress.errors import DataError

_MOST_COLUMNS = 2


@dataclass(frozen=True)
class Texts:
    """Examples of one split before they become tokens: one or two columns of n texts, and labels (n,)."""

    columns: tuple[list[str], ...]
    labels: Tensor

    def take(self, rows: Rows) -> Texts:
        """The examples of these rows, in this order."""
        columns = tuple([column[row] for row in rows.tolist()] for column in self.columns)
        return Texts(columns, self.labels[torch.from_numpy(rows)])


def text_task(
    tables: Mapping[str, pd.DataFrame],
    class_names: Sequence[str] | None,
    config: DataSection,
    seed: int,
    classification: bool,
) -> TaskData:
    """The task of these texts.

    Args:
        tables: ``train``, and ``validation`` and ``test`` where the source has them; else they are cut.
        class_names: by label, where labels are class numbers; None: the labels, sorted, are the names.
        config: columns, tokeniser, the options for texts.
        seed: of the cut and of the draw of calibration examples.
        classification: labels are classes; else the column has numbers that are targets, (n,) of float32.

    Raises:
        DataError: missing columns, rows without a text or label, labels that are no classes, no tokeniser, a
            split without an example of a class.
    """
    refuse_image_options(config, "texts")
    _check_options(config)
    tokenizer = load_tokenizer(config.tokenizer, config.max_length)
    names, texts = _texts(tables, class_names, config, classification)
    texts = selected(_complete(texts, names, config, seed), config)
    check_labels({split: ours.labels for split, ours in texts.items()}, names)
    splits = Splits(**{split: Split(tokenizer.encode(ours.columns), ours.labels) for split, ours in texts.items()})
    return _task(splits, names, tokenizer, config, seed)


def _check_options(config: DataSection) -> None:
    columns = (*config.text_columns, config.label_column)
    if not 1 <= len(config.text_columns) <= _MOST_COLUMNS or len(set(columns)) < len(columns):
        raise DataError(
            f"data.text_columns has one column, or two for pairs, and the label has another; got "
            f"{list(config.text_columns)} and {config.label_column!r}; correct them"
        )


def _texts(
    tables: Mapping[str, pd.DataFrame], class_names: Sequence[str] | None, config: DataSection, classification: bool
) -> tuple[tuple[str, ...], dict[str, Texts]]:
    for split, table in tables.items():
        check_columns(table, config.text_columns, config.label_column, split)
    columns = {split: table[config.label_column] for split, table in tables.items()}
    names, labels = _labels(columns, class_names, classification)
    texts = {split: tuple(table[name].tolist() for name in config.text_columns) for split, table in tables.items()}
    return names, {split: Texts(texts[split], labels[split]) for split in tables}


def _labels(
    columns: Mapping[str, pd.Series], class_names: Sequence[str] | None, classification: bool
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    if not classification:
        return (), {split: column_targets(column, split) for split, column in columns.items()}
    if class_names is None:
        return named_classes(columns)
    labels = {split: class_numbers(column.to_numpy(), split) for split, column in columns.items()}
    return numbered_names(labels, class_names), labels


def _complete(
    given: Mapping[str, Texts], class_names: Sequence[str], config: DataSection, seed: int
) -> dict[str, Texts]:
    train = given["train"]
    missing = [name for name in SPLIT_NAMES if name not in given]
    labels = train.labels.numpy() if class_names else None
    rows = cut(len(train.labels), labels, class_names, missing, config, seed)
    cut_off = {split: train.take(part) for split, part in rows.items()}
    return {split: cut_off[split] if split in cut_off else given[split] for split in SPLIT_NAMES}


def selected(texts: Mapping[str, Texts], config: DataSection) -> dict[str, Texts]:
    """The splits with the longest texts of validation only, and without those of train that overlap with them.

    Each as far as ``config`` asks for it. A pair overlaps if its first or its second text does.

    Raises:
        DataError: validation has fewer examples than are to be kept.
    """
    train, validation = texts["train"], texts["validation"]
    if config.validation_longest is not None:
        validation = validation.take(_longest(validation, config.validation_longest))
    if config.exclude_overlap:
        pairs = zip(train.columns, validation.columns, strict=True)
        overlaps = np.logical_or.reduce([overlapping(ours, theirs) for ours, theirs in pairs])
        train = train.take(np.flatnonzero(~overlaps))
    return {"train": train, "validation": validation, "test": texts["test"]}


def _longest(texts: Texts, count: int) -> Rows:
    """Rows of the ``count`` examples with the most characters, in their order; of equals the first."""
    if count > len(texts.labels):
        raise DataError(
            f"data.validation_longest keeps some of validation; it asks for {count} of {len(texts.labels)}; lower it"
        )
    lengths = np.sum([[len(text) for text in column] for column in texts.columns], axis=0)
    return np.sort(np.argsort(-lengths, kind="stable")[:count])


def _task(
    splits: Splits, class_names: tuple[str, ...], tokenizer: Tokenizer, config: DataSection, seed: int
) -> TaskData:
    names = tokenizer.input_names(pairs=len(config.text_columns) > 1)
    return TaskData(
        train=splits.train,
        calibration=draw_calibration(splits.train, config.calibration_examples, seed),
        validation=splits.validation,
        test=splits.test,
        class_names=class_names,
        input_names=names,
        preprocessing=_facts(tokenizer, names, config),
        prepare=trim,
        augment=_keep,
        by_name=True,
        free_axes={name: {1: "sequence"} for name in names},
    )


def _facts(tokenizer: Tokenizer, names: Sequence[str], config: DataSection) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer.name,
        "tokenizer_sha256": tokenizer.sha256,
        "columns": list(config.text_columns),
        "max_length": tokenizer.max_length,
        "padding": {"side": "right", "id": tokenizer.pad_id, "to": "longest of the batch", "at_least": LEAST_TOKENS},
        "inputs": list(names),
        "dtype": "int64",
    }


def trim(inputs: Tensors) -> Tensors:
    """The ``prepare`` function: (n, stored length) each -> int64 (n, length of the longest, at least 2).

    The second input is the mask, 1 for tokens and 0 for the padding behind them.
    """
    mask = inputs[1]
    longest = int(mask.sum(dim=1, dtype=torch.int64).max()) if len(mask) else 0
    return tuple(x[:, : max(LEAST_TOKENS, longest)].to(torch.int64) for x in inputs)


def _keep(inputs: Tensors, indices: Tensor, view: int) -> Tensors:
    return inputs
