"""``hf:DIR``: a data set that the library datasets wrote with ``save_to_disk``.

What its columns hold decides what it is: images, texts, or arrays of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autocompress.config import DataSection
from autocompress.data.arrays import SINGLE_INPUT, Arrays, array_task
from autocompress.data.images import image_task
from autocompress.data.labels import class_numbers, named_classes, numbered_names
from autocompress.data.optional import optional_library
from autocompress.data.options import refuse_text_options
from autocompress.data.pixels import Pixels, pixels, stack_splits
from autocompress.data.splits import SPLIT_ALIASES, SPLIT_NAMES, complete
from autocompress.data.task import Split, TaskData
from autocompress.data.text_task import text_task
from autocompress.errors import ConfigError, DataError
from autocompress.reference import one_line, suggest
from autocompress.resource_folder import resource_folder

_SPLITS = SPLIT_ALIASES | {name: name for name in SPLIT_NAMES}

_TEXT_TYPES = ("string", "large_string")

Tables = Mapping[str, Any]  # split -> datasets.Dataset; the library is optional


def load_saved_dataset(folder: str, config: DataSection, seed: int, classification: bool = True) -> TaskData:
    """A Dataset, which is cut, or a DatasetDict with ``train`` and, where there are such, the other splits.

    A column of images is the input where there is one; else columns of texts, then ``config.text_columns`` are;
    else all columns but the labels are arrays: the only one is the model's input, several are given by name.

    Raises:
        DataError: a folder that holds no data set, no train or no column of labels, several columns of images,
            or examples that do not fit a task.
    """
    tables = _tables(_load(folder), folder)
    features = tables["train"].features
    _check_columns(tables, config)
    names = getattr(features[config.label_column], "names", None)
    inputs = [name for name in features if name != config.label_column]
    images = [name for name in inputs if type(features[name]).__name__ == "Image"]
    if images:
        return _image_task(tables, images, names, config, seed)
    if any(_leaf_type(features[name]) in _TEXT_TYPES for name in inputs):
        frames = {split: table.to_pandas() for split, table in tables.items()}
        return text_task(frames, names, config, seed, classification)
    return _array_task(tables, inputs, names, config, seed, classification)


def _load(folder: str) -> Any:
    datasets = optional_library("datasets")
    try:
        return datasets.load_from_disk(str(resource_folder(folder)))
    except ConfigError as error:
        raise DataError(f"hf:DIR: {error}") from error
    except Exception as error:  # the library has its own ways to say that files are missing or damaged
        raise DataError(
            f"hf:DIR is a folder that save_to_disk of the library datasets wrote; {folder}: {one_line(error)}; "
            "save the data set there"
        ) from error


def _tables(loaded: Any, folder: str) -> Tables:
    """Splits by our names; splits of other names are left out."""
    if not isinstance(loaded, Mapping):
        return {"train": loaded}
    tables = {_SPLITS[name]: table for name, table in loaded.items() if name in _SPLITS}
    if "train" not in tables:
        raise DataError(
            f"a data set has a split train; {folder} has {', '.join(map(str, loaded)) or 'none'}; rename or add it"
        )
    return tables


def _check_columns(tables: Tables, config: DataSection) -> None:
    for split, table in tables.items():
        if config.label_column not in table.features:
            raise DataError(
                f"data.label_column names a column; {split} has {', '.join(table.features)} and no "
                f"{config.label_column!r}; {suggest(config.label_column, table.features)}"
            )
        absent = [name for name in tables["train"].features if name not in table.features]
        if absent:
            raise DataError(f"all splits have the same columns; {split} has no {absent[0]!r}; add it")


def _labels(tables: Tables, names: Sequence[str] | None, column: str) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    columns = {split: table.select_columns([column]).to_pandas()[column] for split, table in tables.items()}
    if names is None:
        return named_classes(columns)
    numbers = {split: class_numbers(column.to_numpy(), split) for split, column in columns.items()}
    return numbered_names(numbers, names), numbers


def _image_task(
    tables: Tables, columns: Sequence[str], names: Sequence[str] | None, config: DataSection, seed: int
) -> TaskData:
    if len(columns) > 1:
        raise DataError(
            f"one column of images is the input; the data set has {', '.join(columns)}; remove all but one of them"
        )
    refuse_text_options(config, "images")
    class_names, labels = _labels(tables, names, config.label_column)
    images = stack_splits({split: _pixels(table, columns[0], split, config) for split, table in tables.items()})
    given = {split: Split((images[split],), labels[split]) for split in tables}
    facts = {
        "channels": "grey" if images["train"].shape[1] == 1 else "RGB",
        "resize": "PIL bilinear" if config.image_size else None,
    }
    return image_task(complete(given, class_names, config, seed), class_names, config, seed, facts)


def _pixels(table: Any, column: str, split: str, config: DataSection) -> list[Pixels]:
    try:
        return [pixels(row[column], config.image_size) for row in table.select_columns([column])]
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises on a broken file
        raise DataError(
            f"every image must be readable; column {column!r} of {split}: {one_line(error)}; replace it"
        ) from error


def _array_task(
    tables: Tables,
    columns: Sequence[str],
    names: Sequence[str] | None,
    config: DataSection,
    seed: int,
    classification: bool,
) -> TaskData:
    refuse_text_options(config, "arrays")
    if config.image_size is not None:
        raise DataError("data.image_size is for a column of images; this data set has arrays; remove it")
    if not columns:
        raise DataError(f"a data set has inputs; this one has the column {config.label_column!r} only; add some")
    class_names: Sequence[str] | None = names
    if classification:
        class_names, numbers = _labels(tables, names, config.label_column)
    by_name = len(columns) > 1
    given = {}
    for split, table in tables.items():
        inputs = {name if by_name else SINGLE_INPUT: _array(table, name) for name in columns}
        labels = numbers[split] if classification else _array(table, config.label_column)
        given[split] = Arrays(inputs, labels)
    return array_task(given, by_name, class_names, config, seed, classification)


def _array(table: Any, column: str) -> NDArray[Any]:
    """(n, ...) of the type that is stored; datasets makes int64 of any integer otherwise."""
    dtype = np.dtype(_leaf_type(table.features[column]))
    array: NDArray[Any] = table.select_columns([column]).with_format("numpy", dtype=dtype)[:][column]
    return array


def _leaf_type(feature: Any) -> str:
    """Type of the values that a column holds, below any lists."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return str(getattr(feature, "dtype", "object"))
