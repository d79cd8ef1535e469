"""torchvision beside a CPU build of torch.

PyPI's torchvision is compiled against the CUDA build of torch. Beside a CPU build its compiled part does not
load, which torchvision tolerates, until it registers shape functions for two operators that only the compiled
part defines: ``RuntimeError: operator torchvision::nms does not exist``. Declaring the two schemas is enough
to import it: models, datasets and transforms are pure Python. Where the compiled part does load, it declares
them itself and a second declaration would clash, so nothing is done there.

Every import of torchvision, and of what imports it (NNI, pytorch-lightning), goes through here first.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from functools import cache
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # torch forgets the schemas when their library is collected


@cache
def import_torchvision() -> ModuleType:
    """torchvision, importable whatever build of torch is installed; calling it again costs nothing.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    if "torchvision" not in sys.modules and not _compiled_part_loads():
        _declare_schemas()
    return importlib.import_module("torchvision")


def _compiled_part_loads() -> bool:
    """Load torchvision's operators the way torchvision itself will; the loader keeps one copy."""
    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return False
    details = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    found = importlib.machinery.FileFinder(package.submodule_search_locations[0], details).find_spec("_C")
    if found is None or found.origin is None:
        return False
    try:
        torch.ops.load_library(found.origin)  # type: ignore[no-untyped-call] # torch does not annotate it
    except (OSError, ImportError):
        return False
    return True


def _declare_schemas() -> None:
    global _library
    _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            _library.define(schema)  # type: ignore[no-untyped-call]
