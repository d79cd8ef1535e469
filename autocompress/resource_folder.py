"""Folders that a study file names: a path, or ``package:NAME/sub/folder`` inside an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from autocompress.errors import ConfigError

PACKAGE_PREFIX = "package:"


def resource_folder(text: str) -> Path:
    """The folder that ``text`` names.

    A package is found, not imported: none of its code runs.

    Args:
        text: a path, or ``package:NAME/sub/folder``.

    Raises:
        ConfigError: the package is not installed, or there is no such folder.
    """
    if not text.startswith(PACKAGE_PREFIX):
        return _existing(Path(text), text)
    name, _, inside = text.removeprefix(PACKAGE_PREFIX).partition("/")
    parts = Path(inside).parts
    if not name.isidentifier() or ".." in parts or Path(inside).is_absolute():
        raise ConfigError(
            f"package:NAME/sub/folder names a folder inside an installed package; got {text!r}; "
            "give the name that is imported, then the folders in it"
        )
    return _existing(_package_folder(name, text).joinpath(*parts), text)


def _package_folder(name: str, text: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a module that was put together without a spec
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{text} needs the package {name}; none of that name is installed; install it with pip")
    return Path(next(iter(spec.submodule_search_locations)))


def _existing(folder: Path, text: str) -> Path:
    if not folder.is_dir():
        shown = text if folder == Path(text) else f"{text}, which is {folder},"
        raise ConfigError(f"a folder must exist; {shown} does not; correct the path")
    return folder
