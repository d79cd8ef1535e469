"""Joint compression search for PyTorch models, measured on the exported file.

This module imports nothing heavy: ``import autocompress`` must stay instant. :func:`search` is loaded when it is
first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.api import search
    from autocompress.results import Results

__version__ = "0.1.0"
__all__ = ["Results", "__version__", "search"]


def __getattr__(name: str) -> Any:
    # `from autocompress import search`: the folder of that name is no attribute until something imports it
    if name == "search":
        from autocompress.api import search

        return search
    if name == "Results":
        from autocompress.results import Results

        return Results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
