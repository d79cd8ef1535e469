"""Libraries that only some sources need."""

from __future__ import annotations

import importlib
from typing import Any

from autocompress.errors import DataError


def optional_library(name: str) -> Any:
    """The module of this name, which comes with ``autocompress[text]``.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"this data source needs the library {name.partition('.')[0]}; it is not installed; "
            'pip install "autocompress[text]"'
        ) from error
