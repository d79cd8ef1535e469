"""References in a study file, ``package.module:name`` or ``path/to/file.py:name`` -> what they name."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from autocompress.errors import UserError


def load_callable(reference: str, error: type[UserError], builds: str = "the network") -> Callable[..., Any]:
    """Import the function or class that a reference names.

    Args:
        reference: ``package.module:name`` or ``path/to/file.py:name``; a module may lie in the working folder.
        error: the kind of error to raise.
        builds: what the function makes, for messages.

    Raises:
        UserError: of the kind ``error``: an incomplete reference, a module that does not import, a name that
            it has not or that cannot be called.
    """
    place, _, attribute = reference.rpartition(":")
    if not place or not attribute:
        raise error(
            f"{builds} is named as package.module:name or path/to/file.py:name; got {reference!r}; add what is missing"
        )
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise error(f"path/to/file.py:factory names a file; {place} does not exist; correct the path")
    try:
        module = _module_from_file(Path(place)) if is_file else _module_by_name(place)
        found = getattr(module, attribute, None)
    except Exception as problem:  # the user's module may raise anything while it is imported
        raise error(
            f"{place} must import; {type(problem).__name__}: {one_line(problem)}; correct the name or the module"
        ) from problem
    if found is None:
        near = suggest(attribute, _public_names(module))
        raise error(f"a reference names a factory of its module; {place} has no {attribute!r}; {near}")
    if not callable(found):
        raise error(
            f"a reference names a function or class; {reference} is of type {type(found).__name__}; "
            f"name what builds {builds}"
        )
    checked: Callable[..., Any] = found
    return checked


def _module_by_name(name: str) -> ModuleType:
    _make_importable(Path.cwd())
    return importlib.import_module(name)


def _module_from_file(path: Path) -> ModuleType:
    path = path.resolve()
    # The digest keeps files of one name apart; one module per file keeps its classes the same.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    _make_importable(path.parent)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _make_importable(folder: Path) -> None:
    # Last, so that nothing in the folder takes the place of an installed module.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _public_names(module: ModuleType) -> list[str]:
    names = {*dir(module), *getattr(module, "__all__", ())}
    return sorted(name for name in names if not name.startswith("_"))


def suggest(name: str, known: Iterable[str]) -> str:
    """The last part of an error's message: the known name that is near, or what to do without one."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else "check the name"


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of an exception on one line of at most ``limit`` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
