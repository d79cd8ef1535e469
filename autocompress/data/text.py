"""``text:FILE``: texts and labels in a .tsv, .csv or .parquet file."""

from __future__ import annotations

from pathlib import Path

from autocompress.config import DataSection
from autocompress.data.tables import read_table
from autocompress.data.task import TaskData
from autocompress.data.text_task import text_task


def load_text(file: str, config: DataSection, seed: int, classification: bool = True) -> TaskData:
    """A table of train, with ``config.validation`` and ``config.test`` beside it, or cut from it.

    Raises:
        DataError: a file that cannot be read, or what :func:`~autocompress.data.text_task.text_task` refuses.
    """
    files = {"train": file, "validation": config.validation, "test": config.test}
    tables = {split: read_table(Path(path)) for split, path in files.items() if path is not None}
    return text_task(tables, None, config, seed, classification)
