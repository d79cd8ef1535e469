"""Tables of texts: files to data frames, and their columns."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from autocompress.data.optional import optional_library
from autocompress.errors import DataError
from autocompress.reference import one_line, suggest


def read_table(path: Path) -> pd.DataFrame:
    """A file with one example per row; .tsv and .csv have a header, and all their columns are texts.

    A .tsv file has no quoting: a line is an example and a quotation mark is text. Nothing is read as missing,
    because ``NA`` and ``null`` are words.

    Raises:
        DataError: a file that is missing, of another kind, unreadable or empty.
    """
    if not path.is_file():
        raise DataError(f"a table is a file; {path} does not exist; correct the path")
    if path.suffix not in _READERS:
        raise DataError(f"a table ends in {', '.join(_READERS)}; got {path.name}; save it as one of these")
    try:
        table = _READERS[path.suffix](path)
    except DataError:
        raise
    except Exception as error:  # each reader has its own ways to say that a file is damaged
        raise DataError(f"a table must be readable; {path}: {one_line(error)}; correct or save it again") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise DataError(f"each row has as many fields as the header; {path} has rows with more; correct the header")
    if table.empty:
        raise DataError(f"a table has rows; {path} has none; add some or correct the path")
    return table


def _read_tsv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def _read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def _read_parquet(path: Path) -> pd.DataFrame:
    optional_library("pyarrow")
    return pd.read_parquet(path).reset_index(drop=True)


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def check_columns(table: pd.DataFrame, text_columns: Sequence[str], label_column: str, split: str) -> None:
    """The columns exist, and those of texts have a text in each row.

    Raises:
        DataError: naming the columns that there are, or the first row without a text.
    """
    columns = [str(column) for column in table.columns]
    for option, name in [*(("text_columns", name) for name in text_columns), ("label_column", label_column)]:
        if name not in columns:
            raise DataError(
                f"data.{option} names columns of the table; {split} has {', '.join(columns)} and no {name!r}; "
                f"{suggest(name, columns)}"
            )
    for name in text_columns:
        _check_texts(table[name], split)


def _check_texts(column: pd.Series, split: str) -> None:
    is_text = column.map(lambda value: isinstance(value, str)).to_numpy(dtype=bool)
    blank = ~is_text | (column.astype(str).str.strip() == "").to_numpy(dtype=bool)
    if not blank.any():
        return
    row = int(np.flatnonzero(blank)[0])
    raise DataError(
        f"each row has a text; {int(blank.sum())} of {len(column)} rows of {split} have none in column {column.name!r}, "
        f"the first is row {row + 1} with {column.iloc[row]!r}; add it or remove the row"
    )
