"""The front for the terminal."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from autocompress.report import formats
from autocompress.report.frame import front_records

_COLUMNS = (
    ("trial", "right"),
    ("origin", "left"),
    ("val acc (drop)", "right"),
    ("test acc (drop, 95 %)", "right"),
    ("size (smaller)", "right"),
    ("latency (faster)", "right"),
    ("family", "left"),
    ("steps", "right"),
)


def front_table_text(frame: pd.DataFrame) -> Table:
    """The front, fastest first; drops are percentage points against the uncompressed file."""
    table = Table(title=None, box=None, header_style="bold", pad_edge=False)
    for name, justify in _COLUMNS:
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    for record in front_records(frame):
        # Text, because names and origins may hold what rich would read as markup.
        table.add_row(*(Text(cell) for cell in _cells(record)))
    return table


def _cells(record: dict[str, Any]) -> list[str]:
    noisy = "*" if record["noisy"] else ""
    test = formats.MISSING
    if record["test_accuracy"] is not None:
        drop = formats.drop(record["test_drop_points"], record["test_drop_low"], record["test_drop_high"])
        test = f"{formats.percent(record['test_accuracy'])} ({drop})"
    return [
        str(record["trial"]),
        origin_text(record),
        f"{formats.percent(record['val_accuracy'])} ({formats.points(record['val_drop_points'])})",
        test,
        f"{formats.kilobytes(record['size_bytes'])} ({formats.times(record['size_reduction'])})",
        f"{formats.milliseconds(record['latency_ms'])} ({formats.times(record['latency_speedup'])}){noisy}",
        record["family"],
        str(record["total_steps"]),
    ]


def origin_text(record: dict[str, Any]) -> str:
    """``sampled``, ``enqueued: int8`` or ``continued from 12``."""
    if record["parent"] is not None:
        return f"{record['origin']} from {record['parent']}"
    return f"{record['origin']}: {record['name']}" if record["name"] else str(record["origin"])
